"""One model call in which terms act."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from ...patches.base import Moment
from ...patches.host import KEY, Plan, planned
from ..base import NEGATIVE, POSITIVE, REFERENCE, Branch, Latent, Predictions, Step
from ..compose import ActiveRules, evaluate_all
from ..independent_condition import Pool
from .maps import assembled
from .trace import record, warn_once

if TYPE_CHECKING:
    from .run import Run


@contextlib.contextmanager
def lent(options: dict, ours: dict) -> Iterator[None]:
    """While the context lasts `ours` are in these very options, since other packs remember things in them."""
    kept = {key: options[key] for key in ours if key in options}
    options.update(ours)
    try:
        yield
    finally:
        for key in ours:
            options.pop(key, None)
        options.update(kept)


class ModelCall:
    """The host's call with our rows in it, and the fold of what they gave."""

    def __init__(self, run: Run, active: ActiveRules, step: Step, timestep: torch.Tensor, moment: Moment):
        self.run, self.active, self.step, self.timestep, self.moment = run, active, step, timestep, moment
        self.native = getattr(run.guider.predict_noise, "__func__", None) is comfy.samplers.CFGGuider.predict_noise
        self.predictions: Predictions | None = None
        self.folded = False
        self.forwards = self.rows = 0  # of the networks in this call
        self.asked: list[list[dict] | None] = []  # the guider's conditionings in the call that our rows join
        self.stages: list[tuple[str, Latent]] = []  # what it was after each guidance, where somebody records

    @contextlib.contextmanager
    def placed_in(self, options: dict) -> Iterator[None]:
        """While the context lasts, model_options have our place in the call: in the host's own sampling function the batch
        slot and the first post-CFG function, in another guider a wrapper of its calc_cond_batch."""
        if self.native:
            self.previous_slot = options.get("sampler_calc_cond_batch_function")
            after = [self.post_cfg, *options.get("sampler_post_cfg_function", [])]
            ours = {"sampler_calc_cond_batch_function": self.slot, "sampler_post_cfg_function": after}
            with lent(options, ours):
                yield
        elif options.get("context_handler") is not None:  # its windows lie above the wrapper and below the guider
            yield
        else:
            to = options.setdefault("transformer_options", {})
            wrappers = to.get("wrappers", {})
            around = {**wrappers.get(WrappersMP.CALC_COND_BATCH, {}), KEY: [self.ride]}
            with lent(to, {"wrappers": {**wrappers, WrappersMP.CALC_COND_BATCH: around}}):
                yield

    def slot(self, args: dict) -> list[Latent]:
        model, conds, x, options = args["model"], args["conds"], args["input"], args["model_options"]
        self.asked = conds
        if self.previous_slot:
            own = self.previous_slot(args)
            if self.predictions is None:
                self._evaluate([], model, x, options, {POSITIVE: own[0], NEGATIVE: own[1] if conds[1] else None})
            return own
        if self.predictions is not None:
            return comfy.samplers.calc_cond_batch(model, conds, x, args["sigma"], options)
        return self._evaluate(conds, model, x, options)

    def ride(self, executor, model, conds, x, timestep, options):
        carries = any(rows is self.run.rows.own(POSITIVE) for rows in conds)
        if self.predictions is not None or not carries or model is not self.run.guider.inner_model:
            return executor(model, conds, x, timestep, options)
        self.asked = conds
        return self._evaluate(conds, model, x, options, calc=executor)

    def post_cfg(self, args: dict) -> Latent:
        return self._fold(args["denoised"], args["model_options"])

    def finish(self, denoised: Latent, options: dict) -> Latent:
        """The call's result, folded here if no post-CFG function of ours was called on the way."""
        return denoised if self.folded else self._fold(denoised, options)

    def _fold(self, denoised: Latent, options: dict) -> Latent:
        if self.predictions is None and self.active.rules:  # our rows found no call to join
            self.asked = [self.run.rows.own(POSITIVE)]
            self._evaluate(self.asked, self.run.guider.inner_model, self.step.x, options)
        self.folded = True
        if not self.run.recorders:
            return self.active.fold(denoised, self.predictions, self.step)
        names = ["CFG", *(self.run.node_of(rule) for rule, *_ in self.active.rules)]
        stages = [denoised, *self.active.stages(denoised, self.predictions, self.step)]
        self.stages = list(zip(names, stages, strict=True))
        return stages[-1]

    def _evaluate(self, conds, model, x, options, known=None, calc=comfy.samplers.calc_cond_batch) -> list[Latent]:
        """Evaluate the guider's own `conds` and what the active rules need besides; returns the guider's predictions.
        `known` are predictions that need no evaluation."""
        own: list[Latent] = []
        # Tiles of another pack's wrapper, and windows of frames, are not the latent that a map would be of.
        self.windowed = options.get("context_handler") is not None
        self.copied = not self.windowed and "multigpu_clones" not in options
        self.hidden = self.windowed or "model_function_wrapper" in options
        rows, known = self.run.rows, {branch: value for branch, value in (known or {}).items() if value is not None}
        negative = rows.own(NEGATIVE)
        has_negative = NEGATIVE in known or (negative is not None and any(mine is negative for mine in conds))
        rows.reference = "negative" if has_negative else "positive"
        if known:
            known[REFERENCE] = known[NEGATIVE if has_negative else POSITIVE]

        def evaluate(branches: tuple[Branch, ...], step: Step) -> Predictions:
            first = step is self.step  # at the sampler's own x, which the guider's own conditionings ask for
            carried = conds if first else []
            place = {
                branch: at
                for branch in (POSITIVE, NEGATIVE, REFERENCE)
                for at, mine in enumerate(carried)
                if mine is not None and mine is rows.own(branch)
            }
            self.found = {self.run.observation: {}} if first and self._observes else {}
            asked = [branch for branch in branches if branch not in place and branch not in known]
            out, values = self._forward(carried, asked, model, x if first else step.x, options, calc)
            own.extend(out)
            for observation, found in self.found.items():
                self._keep(observation, assembled(rows.own(REFERENCE), found, x))
            return known | values | {branch: out[at] for branch, at in place.items()}

        self.predictions = evaluate_all((POSITIVE, *self.active.branches), self.step, evaluate)
        return own

    @property
    def _observes(self) -> bool:
        return any(getattr(rule, "observation", None) for rule, *_ in self.active.rules)

    def _keep(self, observation, seen: Latent | None) -> None:
        """Hand the rules what was seen: in this call, or where a cache answered for the network, the last time."""
        if seen is not None:
            self.run.seen = seen
        if self.run.seen is None:
            why = "tiles, merged tokens or context windows"
            warn_once(f"SAG cannot see the attention here ({why}), and blurs everything instead")
        else:
            self.step.maps[observation] = self.run.seen

    def _forward(self, conds, branches, model, x, options, calc) -> tuple[list[Latent], dict[Branch, Latent]]:
        """One calc_cond_batch of [branches that can share a batch with the positive, the guider's own, the others].

        The host runs the first list last in a batch and the first batch first, so every pack that looks for the first
        row, or the first call, finds the one it has without us. Where another pack has a model_function_wrapper, which
        may cut rows into tiles in its own order, each perturbed branch runs in a call of its own; where it has replaced
        forwards in the network, each branch does, in a call like the guider's.
        """
        rows, values = self.run.rows, {}
        for branch in [branch for branch in branches if branch.model != POSITIVE.model]:
            values[branch] = self.run.weak_models.predict(branch, x, self.timestep, self.step.index)
            self._count(x.shape[0])
        branches = [branch for branch in branches if branch not in values]
        for branch in branches:
            self.run.check(branch)
        rows.set_roles(conds, branches)
        wrapper = options.get("model_function_wrapper")
        beside = self.run.changed
        apart = [branch for branch in branches if beside or (wrapper and branch.perturbation is not None)]
        together = [branch for branch in branches if branch not in apart]
        first = [branch for branch in together if rows.can_share_a_batch_with_the_positive(branch)]
        last = [branch for branch in together if branch not in first]
        network = functools.partial(self._network, wrapper)

        def predict(lists: list) -> list[Latent]:
            given = [rows.with_roles(conds) for conds in lists]
            with lent(options, {"model_function_wrapper": network}):
                return calc(model, given, x, self.timestep, options) if lists else []

        out = predict([*map(rows.of, first), *conds, *map(rows.of, last)])
        start, end = len(first), len(first) + len(conds)
        values |= dict(zip([*first, *last], [*out[:start], *out[end:]], strict=True))
        for branch in apart:
            place, lists = self._stand_in(branch) if beside else (0, [rows.of(branch)])
            values[branch] = predict(lists)[place]
        return out[start:end], values

    def _stand_in(self, branch: Branch) -> tuple[int, list]:
        """(place, the guider's conditionings with `branch` there, where what it is a copy of would be). The others are
        copies with the same perturbation: forwards of other packs may divide a batch in ways that nobody else knows."""
        rows, origin = self.run.rows, branch.conditioning
        copied = rows.own(POSITIVE if isinstance(origin, Pool) else branch)
        names = {id(mine): name for name, mine in self.run.guider.conds.items()}
        lists = [mine for mine in self.asked if mine is None or id(mine) in names]
        if not any(mine is copied for mine in lists):
            return 0, [rows.of(branch)]
        place = next(at for at, mine in enumerate(lists) if mine is copied)
        others = [None if mine is None else replace(branch, conditioning=names[id(mine)]) for mine in lists]
        others[place] = branch
        rows.set_roles(lists, [other for other in others if other])
        return place, [other and rows.of(other) for other in others]

    def _count(self, rows: int) -> None:
        self.forwards, self.rows = self.forwards + 1, self.rows + rows

    def _network(self, wrapper, apply_model, args: dict) -> Latent:
        """The outermost model_function_wrapper: one network call, its rows told apart and its roles set."""
        self._count(args["input"].shape[0])
        options = args["c"]["transformer_options"]
        self.run.rows.give_roles(options)
        branches = self.run.rows.branches(options)
        record(self.step.sigma, branches, tuple(options["cond_or_uncond"]))
        shares = tuple(branch.perturbation if branch else None for branch in branches)
        if self.found and not self.hidden:
            reference = {row["uuid"] for row in self.run.rows.own(REFERENCE)}
            seen = zip(shares, options["uuids"], strict=True)
            shares = tuple(self.run.observation if row in reference else share for share, row in seen)

        rows = options["uuids"]  # not the options, which will hold the plan, which holds this

        def report(share: int, observation, sums: torch.Tensor, grid: tuple[int, ...]) -> None:
            self.found[observation].setdefault(rows[share], (sums, grid))  # of a block's transformers the first

        if any(shares):
            copies = self.run.rows.copies(options) if self.copied else ()
            plan = Plan(shares, self.run.unproven, self.moment, report, copies, self.run.sharing, self.run.blocks)
            options = planned(options, plan)
        c = {**args["c"], "transformer_options": options}
        args = {**args, "c": c, "cond_or_uncond": options["cond_or_uncond"]}
        return wrapper(apply_model, args) if wrapper else apply_model(args["input"], args["timestep"], **c)
