"""The page of toy2d.py, from its numbers alone, and what the numbers say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from . import study as toy2d

Runs = Mapping[str, Mapping[str, float]]  # run → measure → value, of one seed


@dataclass(frozen=True)
class Statement:
    """Of the numbers of each seed: value < bound, or > bound where `above`."""

    text: str
    of: str  # "tree" or "degraded"
    value: Callable[[Runs], float]
    bound: float
    above: bool = False
    asked: bool = True  # the bound is what was asked before anything was measured; else it is from these seeds

    def values(self, results: Mapping) -> list[float]:
        return [self.value(runs) for runs in results[self.of].values()]

    def holds(self, results: Mapping) -> bool:
        return all(value > self.bound if self.above else value < self.bound for value in self.values(results))


def measure(run: str, name: str, against: str | None = None) -> Callable[[Runs], float]:
    """A run's measure, or its part of another run's."""
    return lambda runs: runs[run][name] / (1 if against is None else runs[against][name])


def best_weight(pair: str, name: str = "sw1") -> Callable[[Runs], float]:
    """The weight of the pair's sweep at which a measure is least; 1 is the first network alone."""
    first = pair.partition(" guided by ")[0]

    def best(runs):
        tried = {1.0: runs[first][name]}
        tried |= {
            float(run.rpartition("= ")[2]): each[name] for run, each in runs.items() if run.startswith(f"{pair},")
        }
        return min(tried, key=tried.get)

    return best


NONE, EVERYWHERE, NARROW = "no guidance", "CFG, w = 4", "CFG, w = 4, σ in (0.02, 0.2]"
MATCHED, DROPPED = "noise 10 % guided by noise 20 %", "dropout 5 % guided by dropout 10 %, w = 1.5"


def outliers_and_mean(run: str) -> tuple[Statement, Statement]:
    return (
        Statement(f"{run}: far outliers, of those without guidance", "tree", measure(run, "far", NONE), 1),
        Statement(f"{run}: shift of the mean", "tree", measure(run, "shift"), 0.02),
    )


HOLD = (
    *outliers_and_mean("autoguidance, w = 2"),
    Statement("autoguidance, w = 2: outliers, of those without guidance", "tree",
              measure("autoguidance, w = 2", "out", NONE), 0.83, asked=False),
    Statement("autoguidance, w = 3: variation of the branches' shares, of that of CFG, w = 4", "tree",
              measure("autoguidance, w = 3", "tv", EVERYWHERE), 0.56, asked=False),
    Statement("CFG, w = 4: shift of the mean", "tree", measure(EVERYWHERE, "shift"), 0.2, above=True),
    Statement("CFG, w = 4: share in the other class, of the data's", "tree", measure(EVERYWHERE, "other", "data"), 1e-9),
    Statement("CFG, w = 4, σ in (0.02, 0.2]: shift of the mean", "tree", measure(NARROW, "shift"), 0.032,
              asked=False),
    Statement("CFG, w = 4, σ in (0.02, 0.2]: sw1, of that of CFG everywhere", "tree",
              measure(NARROW, "sw1", EVERYWHERE), 0.094, asked=False),
    Statement("score × 1.4: outliers, of the data's", "tree", measure("score × 1.4", "out", "data"), 1),
    Statement("score × 1.4: standard deviation, of the data's", "tree", measure("score × 1.4", "std", "data"), 0.286,
              asked=False),
    Statement(f"{MATCHED}: distance of the best weight from 2", "degraded",
              lambda runs: abs(best_weight(MATCHED)(runs) - 2), 0.3),
    Statement(f"{MATCHED}, w = 2: sw1, of that of noise 10 %", "degraded",
              measure(f"{MATCHED}, w = 2", "sw1", "noise 10 %"), 0.83, asked=False),
    Statement(f"{DROPPED}: sw1, of that of dropout 5 %", "degraded", measure(DROPPED, "sw1", "dropout 5 %"), 0.42,
              asked=False),
    *(
        Statement(f"{one} guided by {other}, w = 1.5: sw1, of that of {one}", "degraded",
                  measure(f"{one} guided by {other}, w = 1.5", "sw1", one), 1, above=True)
        for one, other in (("noise 10 %", "dropout 10 %"), ("dropout 5 %", "noise 20 %"))
    ),
)  # fmt: skip
FAIL = outliers_and_mean("autoguidance, w = 3")


def page(results: Mapping) -> str:
    run, seeds = results["run"], ", ".join(map(str, results["run"]["seeds"]))
    parts = [
        "# Guidance where the score is known",
        f"Made by `{run['command']}` at {run['time']}, commit {run['commit']}, on {run['machine']}, torch {run['torch']}, "
        f"Python {run['python']}; seeds {seeds}, each of networks and of points. All numbers are in toy2d.json. Written "
        "by benchmarks/toy2d/page.py.",
        "## The tree",
        "![](toy2d_tree.png)",
        "Class A of the autoguidance paper's 2-D example, sampled in 32 steps of Heun. Class B is grey. Of the first seed.",
        "Means over the seeds. " + "; ".join(f"**{name}**: {text}" for name, text in toy2d.MEASURES.items()) + ".",
        tree_table(results["tree"]),
        "### The main network made worse, guided by itself made worse still",
        tree_table(results["degraded"]),
        "## What holds of every seed, and what does not",
        "A bound was asked for before anything was measured, or (*) is from these seeds: the worst of them, and the range "
        "of the three once more beyond it. Far outliers are 19 to 27 of 8192 points without guidance, so that at w = 3 "
        "their parts are within chance of 1.",
        statement_table(results),
        "## An interval of CFG, in one dimension",
        "![](toy2d_interval.png)",
        "The data has modes at −1, 0 and 1, and the class those at 0 and 1. Where its points end, in 128 steps of Heun:",
        table(("run", "share that ends at 0"), ((name, f"{v:.3f}") for name, v in results["interval"].items())),
        "## Three Gaussians",
        "![](toy2d_triangle.png)",
        "The CFG paper's density p(x | c) p(c | x)ʷ, and what its guided score makes of noise, which is not that density. "
        "Of the class at the top, distance of the mean from the centre, and standard deviation:",
        table(
            ("w", "density: mean", "std", "sampled: mean", "std"),
            ((w, *(f"{value:.3f}" for value in row.values())) for w, row in results["triangle"].items()),
        ),
        "## The two tables of the CFG paper",
        "![](toy2d_tables.png)",
        "Eight classes that reach into each other, of four Gaussians each. FD: Fréchet distance in the plane between a "
        "class's points and its data, × 1000, the mean over classes; IS: inception score by the exact classifier, at most "
        "8. Means over the seeds. Bold: the best of each column.",
        "By the share of training without a class (16 steps of Heun):",
        w_table("p_uncond", results["p_uncond"]),
        f"By the number of Euler's steps T (p_uncond = {toy2d.STEPS_P}):",
        w_table("T", results["steps"]),
    ]
    return "\n\n".join(parts) + "\n"


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def table(head: Sequence[str], rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tree_table(seeds: Mapping[str, Runs]) -> str:
    first, *_ = seeds.values()
    percent = {"out", "far", "tv", "cov50", "other"}

    def cell(run, name):
        value = mean([runs[run][name] for runs in seeds.values()])
        return f"{value:.2%}" if name in percent else f"{value:.4f}" if name in ("sw1", "shift") else f"{value:.3f}"

    return table(("run", *toy2d.MEASURES), ((run, *(cell(run, name) for name in toy2d.MEASURES)) for run in first))


def statement_table(results: Mapping) -> str:
    def row(each: Statement):
        values = " / ".join(f"{value:.3g}" for value in each.values(results))
        bound = f"{'>' if each.above else '<'} {each.bound:g}{'' if each.asked else ' *'}"
        return each.text, values, bound, "yes" if each.holds(results) else "**no**"

    head = ("statement", "seeds " + " / ".join(results["tree"]), "bound", "of every seed")
    return table(head, map(row, HOLD + FAIL))


def w_table(name: str, columns: Mapping[str, Mapping]) -> str:
    """The shape of the paper's tables: a row for each w, in each cell the values of all columns."""
    found = {
        measure: [
            {w: mean([cell[measure] for cell in seeds.values()]) for w, seeds in rows.items()}
            for rows in columns.values()
        ]
        for measure in ("fd", "is")
    }
    best = {"fd": min, "is": max}

    def cells(measure, w):
        shown = []
        for column in found[measure]:
            text = f"{column[w] * 1000:.1f}" if measure == "fd" else f"{column[w]:.2f}"
            shown.append(f"**{text}**" if column[w] == best[measure](column.values()) else text)
        return " / ".join(shown)

    head = ("w", *(f"{title}, {name} = {' / '.join(columns)}" for title in ("FD", "IS")))
    rows = next(iter(columns.values()))
    return table(head, ((w, cells("fd", w), cells("is", w)) for w in rows))
