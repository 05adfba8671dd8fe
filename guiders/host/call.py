"""One model call in which terms act."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ...patches.base import Moment
from ...patches.host import KEY, Plan, planned
from ..base import NEGATIVE, POSITIVE, REFERENCE, Branch, Latent, Predictions, Step
from ..compose import ActiveRules, evaluate_all
from .maps import assembled
from .trace import record, warn_once

if TYPE_CHECKING:
    from .run import Run


class ModelCall:
    """The host's call with our rows in it, and the fold of what they gave."""

    def __init__(self, run: Run, active: ActiveRules, step: Step, timestep: torch.Tensor, moment: Moment):
        self.run, self.active, self.step, self.timestep, self.moment = run, active, step, timestep, moment
        self.native = getattr(run.guider.predict_noise, "__func__", None) is comfy.samplers.CFGGuider.predict_noise
        self.predictions: Predictions | None = None
        self.folded = False
        self.forwards = self.rows = 0  # of the networks in this call
        self.stages: list[tuple[str, Latent]] = []  # what it was after each guidance, where somebody records

    def options(self, options: dict) -> dict:
        """model_options with our place in the call: in the host's own sampling function the batch slot and the first
        post-CFG function, in another guider a wrapper of its calc_cond_batch."""
        if self.native:
            self.previous_slot = options.get("sampler_calc_cond_batch_function")
            return {
                **options,
                "sampler_calc_cond_batch_function": self.slot,
                "sampler_post_cfg_function": [self.post_cfg, *options.get("sampler_post_cfg_function", [])],
            }
        if options.get("context_handler") is not None:  # its windows lie above the wrapper and below the guider
            return options
        options = comfy.model_patcher.create_model_options_clone(options)
        add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, self.ride, options, is_model_options=True)
        return options

    def slot(self, args: dict) -> list[Latent]:
        model, conds, x, options = args["model"], args["conds"], args["input"], args["model_options"]
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
        return self._evaluate(conds, model, x, options, calc=executor)

    def post_cfg(self, args: dict) -> Latent:
        return self._fold(args["denoised"], args["model_options"])

    def finish(self, denoised: Latent, options: dict) -> Latent:
        """The call's result, folded here if no post-CFG function of ours was called on the way."""
        return denoised if self.folded else self._fold(denoised, options)

    def _fold(self, denoised: Latent, options: dict) -> Latent:
        if self.predictions is None and self.active.rules:  # our rows found no call to join
            conds = [self.run.rows.own(POSITIVE)]
            self._evaluate(conds, self.run.guider.inner_model, self.step.x, options)
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
            warn_once("SAG cannot see the attention here (tiles or context windows), and blurs everything instead")
        else:
            self.step.maps[observation] = self.run.seen

    def _forward(self, conds, branches, model, x, options, calc) -> tuple[list[Latent], dict[Branch, Latent]]:
        """One calc_cond_batch of [branches that can share a batch with the positive, the guider's own, the others].

        The host runs the first list last in a batch and the first batch first, so every pack that looks for the first
        row, or the first call, finds the one it has without us. Where another pack has a model_function_wrapper, which
        may cut rows into tiles in its own order, each perturbed branch runs in a call of its own.
        """
        rows, values = self.run.rows, {}
        for branch in [branch for branch in branches if branch.model != POSITIVE.model]:
            values[branch] = self.run.weak_models.predict(branch, x, self.timestep)
            self._count(x.shape[0])
        branches = [branch for branch in branches if branch not in values]
        for branch in branches:
            self.run.check(branch)
        rows.set_roles(conds, branches)
        wrapper = options.get("model_function_wrapper")
        apart = [branch for branch in branches if wrapper and branch.perturbation is not None]
        together = [branch for branch in branches if branch not in apart]
        first = [branch for branch in together if rows.can_share_a_batch_with_the_positive(branch)]
        last = [branch for branch in together if branch not in first]
        options = {**options, "model_function_wrapper": functools.partial(self._network, wrapper)}

        def predict(lists: list) -> list[Latent]:
            return calc(model, [rows.with_roles(conds) for conds in lists], x, self.timestep, options) if lists else []

        out = predict([*map(rows.of, first), *conds, *map(rows.of, last)])
        start, end = len(first), len(first) + len(conds)
        values |= dict(zip([*first, *last], [*out[:start], *out[end:]], strict=True))
        values |= {branch: predict([rows.of(branch)])[0] for branch in apart}
        return out[start:end], values

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
            plan = Plan(shares, self.run.unproven, self.moment, report, copies, self.run.sharing)
            options = planned(options, plan)
        c = {**args["c"], "transformer_options": options}
        args = {**args, "c": c, "cond_or_uncond": options["cond_or_uncond"]}
        return wrapper(apply_model, args) if wrapper else apply_model(args["input"], args["timestep"], **c)
