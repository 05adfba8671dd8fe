"""What a recorded run comes to, in sentences: when each guidance acted, how much, what it cost, and what had no effect.

A size here is a share of the picture: how far a guidance moved the model's prediction of the finished picture in a step,
as the root of the mean of squares, over that of the last prediction.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from ..guiders.host import Recorder

MOST, NOTHING = (
    0.5,
    0.01,
)  # parts of a guidance's largest size: it acts most above the first, as good as not below the other
ALIKE, AGAINST = 60, 120  # degrees between two guidances


def moved(recorder: Recorder) -> dict[str, dict[int, float]]:
    """Guidance → step → how far it moved the picture there, 0 where it did not act. Of a step with several model calls the
    mean."""
    calls = recorder.calls
    picture = next((size for call in reversed(calls) if 0 < (size := call.size_of_result()) < math.inf), 1.0)
    found = {}
    for name in recorder.names:
        steps: dict[int, list[float]] = {}
        for call in calls:
            steps.setdefault(call.step, []).append(call.sizes().get(name, 0.0) / picture)
        found[name] = {step: sum(sizes) / len(sizes) for step, sizes in sorted(steps.items())}
    return found


def verdict(recorder: Recorder) -> list[str]:
    """A paragraph for each guidance, then what holds for all."""
    sizes, costs = moved(recorder), Costs(recorder)
    found = [" ".join(_of_one(recorder, name, steps, costs)) for name, steps in sizes.items()]
    reasons = {title for title, _ in recorder.without_effect}
    for title in dict.fromkeys(recorder.guidances):
        if title not in sizes and title not in reasons:
            found.append(
                f"{title} acts inside another prediction, so the chart cannot show it. {costs.of(title)}".strip()
            )
    found += [f"{sentence}." for _, sentence in recorder.without_effect]
    found = found or ["No guidance acted in this run."]
    return [*found, *costs.shared(), *_together(recorder), *_saved(recorder), _time(recorder)]


class Costs:
    """How much slower each guidance made sampling, by the rows that the network computed for it."""

    def __init__(self, recorder: Recorder):
        self._all = sum(call.rows for call in recorder.calls)
        self._for: Counter[tuple[str, ...]] = Counter()
        for call in recorder.calls:
            self._for.update(call.rows_for)
        self._names = Counter(title_of(name, recorder) for name in recorder.names)

    def of(self, title: str) -> str:
        """The sentence for one guidance; empty where it shares its cost with another."""
        keys = [key for key in self._for if title in key]
        own = self._for.get((title,), 0)
        if own and len(keys) == 1 and self._names[title] < 2:
            return f"It made sampling {self._slower(own)}."
        return "" if keys else "It made sampling no slower."

    def shared(self) -> Iterator[str]:
        """Sentences for those that `of` leaves out."""
        for key, rows in self._for.items():
            title, *others = key
            if others:
                yield f"{_listed(key)} use the same prediction, which made sampling {self._slower(rows)}."
            elif not self.of(title):
                yield f"All {title} nodes together made sampling {self._slower(rows)}."

    def _slower(self, rows: int) -> str:
        return f"up to {_percent(rows / max(1, self._all - rows))} slower"


def title_of(name: str, recorder: Recorder) -> str:
    """The title of a node, from the name of its direction: a second PAG has the name PAG 2."""
    title, _, number = name.rpartition(" ")
    return title if number.isdigit() and title in recorder.names else name


def _of_one(recorder: Recorder, name: str, steps: dict[int, float], costs: Costs) -> Iterator[str]:
    broken = [step for step, size in steps.items() if not math.isfinite(size)]
    if broken:
        yield f"{name} gave values that are not numbers in {_steps(broken)}, so the picture is black or broken."
        return
    peak = max(steps.values())
    most = [step for step, size in steps.items() if size >= MOST * peak]
    much = f"moved the picture by up to {_percent(peak)}"
    if peak == 0:
        yield f"{name} changed nothing."
    elif len(most) == len(steps):
        yield f"{name} acted about equally in all steps, and {much}."
    else:
        yield f"{name} acted most in {_steps(most)}, where it {much}."
        yield from _nothing(steps, peak)
    title = title_of(name, recorder)
    yield from _heard(recorder, title)
    yield from filter(None, [costs.of(title)])


def _nothing(steps: dict[int, float], peak: float) -> Iterator[str]:
    """In which steps it did nothing."""
    acting = [step for step, size in steps.items() if size > NOTHING * peak]
    idle = [step for step in steps if step not in acting]
    parts = [f"before step {acting[0]}"] if acting[0] > min(steps) else []
    between = [step for step in idle if acting[0] < step < acting[-1]]
    parts += [f"in {_steps(between)}"] if between else []
    parts += [f"after step {acting[-1]}"] if acting[-1] < max(steps) else []
    if parts:
        almost = "almost " if any(steps[step] for step in idle) else ""
        yield f"It did {almost}nothing {_listed(parts)}."


def _heard(recorder: Recorder, name: str) -> Iterator[str]:
    """In how many model calls it was computed, went on and was stopped."""
    states = [(call.step, call.heard[name].state) for call in recorder.calls if name in call.heard]
    computed = sum(state in ("computed", "computed in part") for _, state in states)
    continued = sum(state == "continued" for _, state in states)
    stopped = [step for step, state in states if state == "stopped"]
    if continued:
        yield f"It was computed in {computed} of {len(states)} model calls, and continued in {continued}."
    if stopped:
        yield f"Guidance Stop ended it at step {stopped[0]}."


def _together(recorder: Recorder) -> Iterator[str]:
    """Which guidances push the same way or against each other, and how strong all are."""
    for one, other in itertools.combinations(recorder.names, 2):
        found = _sum(recorder, one, one), _sum(recorder, one, other), _sum(recorder, other, other)
        length = math.sqrt(found[0] * found[2])
        if not 0 < length < math.inf:
            continue
        angle = math.degrees(math.acos(max(-1.0, min(1.0, found[1] / length))))
        if angle < ALIKE:
            yield f"{one} and {other} push the picture much the same way ({angle:.0f}° apart). One of them may be enough."
        elif angle > AGAINST:
            yield f"{one} and {other} push the picture against each other ({angle:.0f}° apart)."
    strength = recorder.effective_cfg()
    if strength is not None and math.isfinite(strength) and recorder.names != ["CFG"]:
        yield f"All guidance together was about as strong as cfg {strength:.1f} alone."


def _sum(recorder: Recorder, one: str, other: str) -> float:
    both = (call for call in recorder.calls if one in call.names and other in call.names)
    return sum(call.product(one, other) for call in both)


def _saved(recorder: Recorder) -> Iterator[str]:
    done = sum(call.rows for call in recorder.calls)
    saved = sum(call.saved[1] for call in recorder.calls)
    if saved:
        yield f"Continued and ended guidance saved {_percent(saved / (done + saved))} of the work."


def _time(recorder: Recorder) -> str:
    seconds, steps = sum(call.milliseconds for call in recorder.calls) / 1000, {call.step for call in recorder.calls}
    return f"Sampling took {seconds:.1f} s for {len(steps)} step{'s' * (len(steps) != 1)}."


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.01 else "less than 1%"


def _steps(steps: Collection[int]) -> str:
    """'step 3', 'steps 2 to 6', 'steps 0 to 3 and 8 to 10'; of more pieces how many and between which."""
    pieces: list[list[int]] = []
    for step in sorted(steps):
        if pieces and step == pieces[-1][-1] + 1:
            pieces[-1].append(step)
        else:
            pieces.append([step])
    if len(pieces) > 3:
        return f"{len(steps)} of the steps {pieces[0][0]} to {pieces[-1][-1]}"
    pieces = [part for piece in pieces for part in ([piece] if len(piece) > 2 else [[step] for step in piece])]
    words = [str(piece[0]) if len(piece) == 1 else f"{piece[0]} to {piece[-1]}" for piece in pieces]
    return ("step " if len(steps) == 1 else "steps ") + _listed(words)


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
