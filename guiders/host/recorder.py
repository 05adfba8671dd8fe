"""What each guidance did in a run: how far it moved the prediction and which way, and what the step cost.

A Recorder on a MODEL hears every model call of its last run; where there is none nothing is measured. Directions are
Δᵢ = D after a guidance − D before it, in the order they act; CFG's is what the sampler made of the positive prediction.

Effective cfg, GA-Eval, arXiv:2602.22570: a = ⟨D − D₋, Δ⟩ / ⟨Δ, Δ⟩ with Δ = D₊ − D₋, the weight of the plain CFG that is
nearest to D. It is 1 + Σ ⟨Δᵢ, Δ⟩ / ⟨Δ, Δ⟩, so each guidance has its share.

Of a call with n directions only inner products are kept, on the device, and read when the run has ended.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import folder_paths
import torch

from ...patches.host.log import warn
from ...patches.texts import shown
from ..base import NEGATIVE, POSITIVE, Branch, Latent, Step
from ..directions import Known
from .call_info import CallResult

RECORDERS = "beyond_cfg_recorders"  # in model_options: a tuple
OF_POSITIVE, OF_RESULT, OF_CFG = "= positive", "= result", "= Δ"  # in Call.beside; no node has such a title


@dataclass(frozen=True)
class Heard:
    """How a model call knew the direction of one guidance."""

    computed: float  # the share of the samples
    over: float
    error: torch.Tensor | None = None  # of the continued direction where it was computed, in parts of the longest

    @property
    def state(self) -> str:
        """computed, computed in part (for some of the samples), continued or stopped."""
        if self.computed:
            return "computed" if self.computed + self.over == 1 else "computed in part"
        return "stopped" if self.over == 1 else "continued"


@dataclass(frozen=True)
class Call:
    """One model call of the sampler."""

    step: int
    sigma: float
    forwards: int = 0  # of any network
    rows: int = 0  # in them; a row is one sample under one conditioning
    milliseconds: float = 0.0
    names: tuple[str, ...] = ()  # of the directions
    beside: tuple[str, ...] = ()  # what else was measured: D₊, D, and Δ where D₋ was predicted
    products: torch.Tensor | None = None  # between all of them, means over all elements
    heard: dict[str, Heard] = field(default_factory=dict)  # of the guidances whose directions may go on
    saved: tuple[int, int] = (0, 0)  # forwards and rows that they did without
    rows_for: dict[tuple[str, ...], int] = field(default_factory=dict)  # titles → rows that only these guidances need
    samples: int = 1  # in the batch

    def on_cpu(self) -> Call:
        """The same with its measurements on the CPU."""
        heard = {
            name: replace(one, error=None if one.error is None else one.error.cpu()) for name, one in self.heard.items()
        }
        return replace(self, products=None if self.products is None else self.products.cpu(), heard=heard)

    def sizes(self) -> dict[str, float]:
        """Of each direction, the root of the mean of its squares: in units of the latent."""
        return {name: math.sqrt(self.product(name, name)) for name in self.names}

    def angles(self) -> dict[tuple[str, str], float]:
        """Between each two directions, in degrees; none with a direction that is 0."""
        pairs = itertools.combinations(self.names, 2)
        return {pair: angle for pair in pairs if (angle := self._angle(*pair)) is not None}

    def shares(self) -> dict[str, float]:
        """Of each direction, what it adds to the effective cfg; empty where that is not known."""
        length = self.length_of_cfg()
        return {name: self.product(name, OF_CFG) / length for name in self.names} if length > 0 else {}

    def length_of_cfg(self) -> float:
        """The mean of the squares of Δ; 0 where no negative was predicted."""
        return self.product(OF_CFG, OF_CFG)

    def size_of_result(self) -> float:
        """The root of the mean of the squares of D; 0 where nothing acted."""
        return math.sqrt(self.product(OF_RESULT, OF_RESULT))

    def effective_cfg(self) -> float | None:
        """The weight of the plain CFG that is nearest to the result; None where no negative was predicted."""
        shares = self.shares()
        return 1 + sum(shares.values()) if shares else None

    def turn(self) -> float | None:
        """The angle between the result and the positive prediction, in degrees; None where nothing acted."""
        return self._angle(OF_POSITIVE, OF_RESULT)

    def _angle(self, one: str, other: str) -> float | None:
        length = math.sqrt(self.product(one, one) * self.product(other, other))
        if not 0 < length < math.inf:
            return None
        return math.degrees(math.acos(max(-1.0, min(1.0, self.product(one, other) / length))))

    def product(self, one: str, other: str) -> float:
        """The mean of the product of two directions; 0 where one of them did not act."""
        known = (*self.names, *self.beside)
        if self.products is None or one not in known or other not in known:
            return 0.0
        return float(self.products[known.index(one), known.index(other)])


@dataclass(eq=False)
class Recorder:
    """predictions_at: numbers of steps, -1 the last, at which the predictions themselves are kept."""

    predictions_at: tuple[int, ...] = ()
    calls: list[Call] = field(default_factory=list)
    predictions: dict[int, dict[str, Latent]] = field(default_factory=dict)  # step → name → [1, …], of the first sample
    guidances: tuple[str, ...] = ()  # the titles of all that the model has
    without_effect: tuple[tuple[str, str], ...] = ()  # (title, a sentence that says why)
    _kept_steps: frozenset[int] = frozenset()  # predictions_at, counted from 0

    def begin(self, steps: int, guidances: Sequence[str] = ()) -> None:
        """A run of so many steps, with these guidances. For a step that it does not have, its first or last is kept, and
        the log says so."""
        steps = max(steps, 1)  # a schedule may have one noise level alone
        nearest = {step: min(max(step, -steps), steps - 1) for step in self.predictions_at}
        beyond = [step for step, kept in nearest.items() if kept != step]
        if beyond:
            kept = sorted({nearest[step] % steps for step in beyond})
            warn(
                f"Guidance Recorder: predictions_at asks for {_steps(beyond)}, but this run has the steps 0 to "
                f"{steps - 1}. It keeps {_steps(kept)} instead"
            )
        self._kept_steps = frozenset(step % steps for step in nearest.values())
        self.calls, self.predictions = [], {}
        self.guidances, self.without_effect = tuple(guidances), ()

    def add(
        self,
        call: CallResult,
        step: Step,
        began: float,
        finish: Callable[[Latent], Latent],
        names_of: Callable[[Branch], list[str]],
    ) -> None:
        """One model call that is over. `began`: when, on time.perf_counter. `finish` turns a prediction into what a LATENT
        holds. names_of: the guidances that a branch is for."""
        cost = step.index, step.sigma, call.forwards, call.rows, 1000 * (time.perf_counter() - began)

        def titles(branch: Branch) -> list[str]:  # the negative is CFG's where that acts, whoever else reads it
            return ["CFG"] if branch == NEGATIVE and step.cfg != 1 else names_of(branch)

        pairs = ((name, known) for known in call.known for name in titles(known.branch))
        more: dict = {"heard": {name: _heard(known, step.x.shape[0]) for name, known in pairs}, "saved": call.saved}
        rows_for: Counter[tuple[str, ...]] = Counter()
        for branch, rows in call.rows_of.items():
            if branch != POSITIVE:
                rows_for[tuple(dict.fromkeys(titles(branch)))] += rows
        more |= {"rows_for": rows_for, "samples": step.x.shape[0]}
        if call.predictions is None or POSITIVE not in call.predictions:
            self.calls.append(Call(*cost, **more))
            return  # another guider's, which keeps its predictions to itself
        before, directions, names = call.predictions[POSITIVE], [], []
        for name, after in call.stages:
            if name not in ("", "CFG") or not torch.equal(after, before):
                directions.append((after - before).flatten().float())
                names.append(f"{name} {names.count(name) + 1}" if name in names else name)
            before = after
        if not directions:
            self.calls.append(Call(*cost, **more))
        else:
            beside = {OF_POSITIVE: call.predictions[POSITIVE], OF_RESULT: before}
            if NEGATIVE in call.predictions:
                beside[OF_CFG] = call.predictions[POSITIVE] - call.predictions[NEGATIVE]
            measured = torch.stack([*directions, *(value.flatten().float() for value in beside.values())])
            products = measured @ measured.T / measured.shape[1]
            self.calls.append(Call(*cost, tuple(names), tuple(beside), products, **more))
        if step.index in self._kept_steps and step.index not in self.predictions and len(step.shapes) < 2:
            found = {"positive": call.predictions[POSITIVE], "guided": before}
            if NEGATIVE in call.predictions:
                found = {"positive": found["positive"], "negative": call.predictions[NEGATIVE], "guided": before}
            self.predictions[step.index] = {name: finish(value[:1]).detach().cpu() for name, value in found.items()}

    def end(self, without_effect: Iterable[tuple[str, str]] = ()) -> None:
        """The run is over: bring what was measured to the CPU. without_effect: (title, sentence) of each such guidance."""
        self.calls = [call.on_cpu() for call in self.calls]
        self.without_effect = tuple(without_effect)

    def rows_per_step(self) -> float:
        """Rows of the network for one picture, in the mean of all steps. Where each step calls the model once, 1 is the
        model alone, and 2 is CFG."""
        return sum(call.rows / call.samples for call in self.calls) / max(1, len({call.step for call in self.calls}))

    @property
    def names(self) -> list[str]:
        """All directions of the run, in the order they came."""
        return list(dict.fromkeys(name for call in self.calls for name in call.names))

    def table(self) -> list[dict]:
        """A line for each model call; what a call has no number for is left out of its line."""
        lines = []
        for call in self.calls:
            line = {"step": call.step, "sigma": call.sigma, "forwards": call.forwards, "rows": call.rows}
            line["milliseconds"] = round(call.milliseconds, 3)
            line |= {f"size of {name}": size for name, size in call.sizes().items()}
            line |= {f"angle of {one} and {other}": angle for (one, other), angle in call.angles().items()}
            of_all = {"effective cfg": call.effective_cfg(), "angle of result and positive": call.turn()}
            line |= {name: value for name, value in of_all.items() if value is not None}
            line |= {f"share of {name} in it": share for name, share in call.shares().items()}
            if call.heard:
                line |= {"forwards saved": call.saved[0], "rows saved": call.saved[1]}
            for name, one in call.heard.items():
                line[name] = one.state
                if one.error is not None:
                    line[f"error of {name}"] = one.error.item()
            lines.append(line)
        return lines

    def effective_cfg(self) -> float | None:
        """The weight of the plain CFG that is nearest to the results of the whole run, in which calls count by ⟨Δ, Δ⟩. None
        where no negative was predicted."""
        known = [(call, call.effective_cfg()) for call in self.calls]
        lengths = [(call.length_of_cfg(), weight) for call, weight in known if weight is not None]
        total = sum(length for length, _ in lengths)
        return sum(length * weight for length, weight in lengths) / total if total else None

    def save(self, prefix: str, verdict: Sequence[str] = ()) -> list[Path]:
        """The table as .csv and, with the sentences of `verdict`, as .json in the host's output folder, under the next
        number that is free. Raises ValueError where `prefix` leads out of that folder, or is no name of a file in it."""
        check_prefix(prefix)
        try:
            folder, name, counter, *_ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
        except OSError as error:
            raise _refusal(prefix, f"no file can be written there ({error.strerror})") from None
        except Exception:  # the host's own, which has no narrower type
            raise _refusal(prefix, "it must stay inside the output folder") from None
        for number in itertools.count(counter):
            stem = os.path.join(folder, f"{name}_{number:05}")
            table, same = Path(stem + ".csv"), Path(stem + ".json")
            if not os.path.lexists(table) and not os.path.lexists(same):
                break
        try:
            self._write(table, same, verdict)
        except OSError as error:
            raise _refusal(prefix, f"no file can be written there ({error.strerror})") from None
        return [table, same]

    def _write(self, table: Path, same: Path, verdict: Sequence[str]) -> None:
        lines = self.table()
        columns = list(dict.fromkeys(column for line in lines for column in line))
        with open(same, "x", encoding="utf-8") as file:  # never over a file that has come meanwhile
            json.dump({"verdict": [*verdict], "calls": lines}, file, indent=1, ensure_ascii=False)
        with open(table, "x", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(lines)


def _heard(known: Known, samples: int) -> Heard:
    error = None if known.error is None else known.error.mean()
    return Heard(known.computed / samples, known.over / samples, error)


def _steps(numbers: Iterable[int]) -> str:
    listed = [*map(str, numbers)]
    return f"step {listed[0]}" if len(listed) == 1 else f"the steps {', '.join(listed[:-1])} and {listed[-1]}"


def check_prefix(prefix: str) -> None:
    """Raise ValueError where no file can have this place in the output folder. Nothing is made."""
    if Path(os.path.normpath(prefix)).name in ("", "..") or any(letter < " " for letter in prefix):
        raise _refusal(prefix, "it must end in the name of a file")
    output = os.path.abspath(folder_paths.get_output_directory())
    if not Path(os.path.abspath(os.path.join(output, prefix))).is_relative_to(output):
        raise _refusal(prefix, "it must stay inside the output folder")


def _refusal(prefix: str, why: str) -> ValueError:
    return ValueError(f'filename_prefix is "{shown(prefix)}": {why}')
