"""One model call of the sampler in which terms act, in the order in which it runs.

ModelCall.placed_in      puts the call's functions into the host's options
ModelCall.slot, .ride    the host calls one of them where it would evaluate the guider's own conditionings
HostEvaluator            evaluates them together with what the rules need besides: evaluate(branches, step)
ModelCall.post_cfg       folds the rules into what the host made of its own predictions
ModelCall.finish         the same, where the host called no post-CFG function; and the end of the call
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from ...patches.base import Moment
from ...patches.host import KEY, Chunks, Plan, planned, titles
from ...patches.host.log import warn_once
from ..base import NEGATIVE, POSITIVE, REFERENCE, Branch, Latent, Observation, Predictions, Step
from ..compose import ActiveRules, evaluate_all
from ..directions import Directions
from ..independent_condition import Pool
from .attention_maps import Found, assembled
from .call_info import CallInfo, CallResult
from .context import RunContext
from .negatives import negative_prompt
from .quirks import combines_by_cfg
from .trace import record

Conds = list[list[dict] | None]  # conditionings, as the host's calc_cond_batch takes them


@contextlib.contextmanager
def lent(options: dict, entries: dict) -> Iterator[None]:
    """Within this context `entries` are in these very `options`, since other packs remember things in that dict."""
    kept = {key: options[key] for key in entries if key in options}
    options.update(entries)
    try:
        yield
    finally:
        for key in entries:
            options.pop(key, None)
        options.update(kept)


class ModelCall:
    """The host's model call, with more rows in it and the rules folded into its result."""

    def __init__(
        self,
        context: RunContext,
        active: ActiveRules,
        directions: Directions | None,
        step: Step,
        timestep: torch.Tensor,
        moment: Moment,
    ):
        """directions: those of the run, where they may go on between steps."""
        self._context, self._active, self._directions = context, active, directions
        self._step, self._timestep, self._moment = step, timestep, moment
        self._previous_slot: Callable[[dict], list[Latent]] | None = None  # another pack's
        self.result = CallResult()

    @contextlib.contextmanager
    def placed_in(self, options: dict) -> Iterator[None]:
        """Within this context the model_options `options` hold the call's functions: in the host's own sampling function
        the batch slot and the first post-CFG function, in another guider a wrapper of its calc_cond_batch."""
        guider = self._context.guider
        if combines_by_cfg(guider):
            self._previous_slot = options.get("sampler_calc_cond_batch_function")
            after = [self.post_cfg, *options.get("sampler_post_cfg_function", [])]
            entries = {"sampler_calc_cond_batch_function": self.slot, "sampler_post_cfg_function": after}
            with lent(options, entries):
                yield
        elif options.get("context_handler") is not None:  # its windows lie above the wrapper and below the guider
            yield
        else:
            to = options.setdefault("transformer_options", {})
            wrappers = to.get("wrappers", {})
            with_ride = {**wrappers.get(WrappersMP.CALC_COND_BATCH, {}), KEY: [self.ride]}
            with lent(to, {"wrappers": {**wrappers, WrappersMP.CALC_COND_BATCH: with_ride}}):
                yield

    def slot(self, args: dict) -> list[Latent]:
        """The host's sampler_calc_cond_batch_function: the predictions of the guider's own conditionings."""
        model, conds, x, options = args["model"], args["conds"], args["input"], args["model_options"]
        if self._previous_slot:
            self._refuse_negative_prompt("another node evaluates the prompts in a way of its own")
            found = self._previous_slot(args)
            if self.result.predictions is None:
                negative = {NEGATIVE: found[1]} if conds[1] and found[1] is not None else {}
                self._evaluate([], model, x, options, known={POSITIVE: found[0], **negative}, asked=conds)
            predictions = self.result.predictions or {}
            return [found[0], predictions[NEGATIVE]] if self._active.of_negative else found
        if self.result.predictions is not None:
            return comfy.samplers.calc_cond_batch(model, conds, x, args["sigma"], options)
        return self._evaluate(conds, model, x, options)

    def ride(self, executor, model, conds: Conds, x: Latent, timestep, options: dict) -> list[Latent]:
        """The host's CALC_COND_BATCH wrapper, in the call of another guider that carries its positive."""
        carries = any(entries is self._context.conditionings.positive for entries in conds)
        if self.result.predictions is not None or not carries or model is not self._context.guider.inner_model:
            return executor(model, conds, x, timestep, options)
        return self._evaluate(conds, model, x, options, calc=executor)

    def _evaluate(
        self,
        conds: Conds,
        model,
        x: Latent,
        options: dict,
        known: Predictions | None = None,
        asked: Conds | None = None,
        calc: Callable = comfy.samplers.calc_cond_batch,
    ) -> list[Latent]:
        """Evaluate the guider's own `conds` and what the active rules need besides; returns the guider's predictions.
        `known` are predictions that need no evaluation, and `asked` are the conditionings that those are of."""
        known = dict(known or {})
        negative = self._context.guider.conds.get("negative")
        has_negative = NEGATIVE in known or any(entries is negative for entries in conds if entries is not None)
        if self._active.of_negative and not has_negative:
            nodes = ", ".join(self._context.node_of(one.rule) for one in self._active.of_negative)
            kind = type(self._context.guider).__name__
            raise ValueError(
                f"{nodes}: {kind} does not evaluate its negative together with its positive. Use CFGGuider"
            )
        windowed = options.get("context_handler") is not None
        replaced = self._active.replaces_negative
        reference = NEGATIVE if has_negative and not replaced else POSITIVE
        names = [self._context.conditionings.own(entries) for entries in conds]
        own = [branch for branch in names if branch is not None and not (replaced and branch == NEGATIVE)]
        branches = due = tuple(dict.fromkeys((POSITIVE, *own, *self._active.branches)))
        directions = self._directions
        if directions is not None:
            given = (*known, *(own if self._reads_the_negative(options) else ()))
            due = directions.due(branches, self._step, reference, given)
        observing = [active.rule for active in self._active.rules if active.rule.observation]
        call = CallInfo(
            self._step,
            self._timestep,
            self._moment,
            asked=tuple(conds if asked is None else asked),
            reference="negative" if reference == NEGATIVE else "positive",
            observation=next((rule.observation for rule in observing if {*rule.branches()} <= {*due}), None),
            # Tiles of another pack's wrapper, and windows of frames, are not the latent that a map would be of.
            hides_attention=windowed or "model_function_wrapper" in options,
            shares_prefixes=not windowed and "multigpu_clones" not in options,
        )
        call = replace(call, negative=negative_prompt(self._context, self._active, call))
        if known:
            known[REFERENCE] = known[NEGATIVE if has_negative else POSITIVE]
        evaluator = HostEvaluator(self._context, call, self.result, known, conds, model, x, options, calc)
        predictions = evaluate_all(due, self._step, evaluator)
        if directions is not None:
            predictions = directions.complete(predictions, self._step, reference)
            self.result.known = directions.known
            if self._context.recorders:
                self.result.saved = self._saved(call)
        self.result.predictions = predictions = self._active.with_negative(predictions, self._step)
        found = zip(names, evaluator.own, strict=True)
        return [value if branch is None else predictions.get(branch, value) for branch, value in found]

    def _saved(self, call: CallInfo) -> tuple[int, int]:
        """How many forwards and rows the directions did without that were not computed. A forward is saved where a branch
        would have been evaluated in one of its own: by a weak model, or at another x."""
        branches = [known.branch for known in self.result.known if not known.computed]
        forwards = sum(branch.model is not None for branch in branches)
        forwards += len({branch.source for branch in branches if branch.source is not None})
        entries = [self._context.conditionings.source(branch, call) or () for branch in branches]
        return forwards, call.samples * sum(map(len, entries))

    def _reads_the_negative(self, options: dict) -> bool:
        """Whether somebody asks for the true negative: a CFG++ sampler, or a node that takes out the host's saving at
        cfg 1."""
        if not options.get("disable_cfg1_optimization", False):
            return False
        warn_once(
            "the sampler or another node reads the negative's own prediction, so Guidance Reuse and Guidance Stop have it "
            "computed in every step"
        )
        return True

    def _refuse_negative_prompt(self, why: str) -> None:
        """Raise ValueError where a negative prompt should act in the attention."""
        if self._active.of_positive:
            nodes = ", ".join(self._context.node_of(one.rule) for one in self._active.of_positive)
            raise ValueError(f"{nodes}: {why}, so a negative prompt cannot act in its attention. Take the node out.")

    def post_cfg(self, args: dict) -> Latent:
        """The host's first sampler_post_cfg_function."""
        return self._fold(args["denoised"], args["model_options"])

    def finish(self, denoised: Latent, options: dict) -> Latent:
        """The call's result, folded here if no post-CFG function was called on the way."""
        return denoised if self.result.folded else self._fold(denoised, options)

    def _fold(self, denoised: Latent, options: dict) -> Latent:
        context, active, result = self._context, self._active, self.result
        if result.predictions is None:
            self._refuse_negative_prompt(f"{type(context.guider).__name__} evaluates the prompt in a way of its own")
        if result.predictions is None and active:  # no call of the host's has carried the rules' rows
            self._evaluate([context.conditionings.positive], context.guider.inner_model, self._step.x, options)
        result.folded = True
        if not context.recorders:
            return active.fold(denoised, result.predictions or {}, self._step)
        names = ["CFG", *(context.node_of(one.rule) if one.strength else "" for one in active.rules)]
        stages = [denoised, *active.stages(denoised, result.predictions or {}, self._step)]
        result.stages = [stage for stage in zip(names, stages, strict=True) if stage[0]]
        return stages[-1]


class HostEvaluator:
    """evaluate(branches, step) → predictions, by the host's network: compose.Evaluate for one model call."""

    def __init__(
        self,
        context: RunContext,
        call: CallInfo,
        result: CallResult,
        known: Predictions,
        conds: Conds,
        model,
        x: Latent,
        options: dict,
        calc: Callable,
    ):
        """`known`: predictions that need no evaluation. `conds`, `model`, `x`, `options`: what the host would evaluate in
        this call, by its function `calc`, which is calc_cond_batch or what another guider has in its place."""
        self._context, self._call, self._result, self._known = context, call, result, known
        self._conds, self._model, self._x, self._options, self._calc = conds, model, x, options, calc
        self.own: list[Latent] = []  # the predictions of `conds`, after the first evaluation

    def __call__(self, branches: tuple[Branch, ...], step: Step) -> Predictions:
        """The predictions of `branches` at step.x, and those known before. The first evaluation, at the sampler's own x,
        carries the guider's own conditionings too. Raises ValueError where the guider has no conditioning for a branch."""
        call, conditionings = self._call, self._context.conditionings
        if step is not call.step:
            asked = [branch for branch in branches if branch not in self._known]
            return {**self._known, **self._forward([], asked, step.x, None)[1]}
        own = [conditionings.own(entries) for entries in self._conds]
        conds = [
            entries if branch is None or branch in branches else None
            for entries, branch in zip(self._conds, own, strict=True)
        ]
        place = {branch: at for at, branch in enumerate(own) if branch in branches}
        if Branch(call.reference) in place:
            place[REFERENCE] = place[Branch(call.reference)]
        asked = [branch for branch in branches if branch not in place and branch not in self._known]
        found: Found | None = None if call.observation is None else {}
        self.own, values = self._forward(conds, asked, self._x, found)
        if call.observation is not None and found is not None:
            self._keep_map(call.observation, assembled(conditionings.source(REFERENCE, call) or [], found, self._x))
        return {**self._known, **values, **{branch: self.own[at] for branch, at in place.items()}}

    def _keep_map(self, observation: Observation, seen: Latent | None) -> None:
        """Give the rules the attention map of this call, or the previous one if a cache has answered for the network."""
        seen = self._context.last_map.update(seen)
        if seen is None:
            why = "tiles, merged tokens or context windows"
            warn_once(f"SAG cannot see the attention here ({why}), and blurs everything instead")
        else:
            self._call.step.maps[observation] = seen

    def _forward(
        self, conds: Conds, branches: list[Branch], x: Latent, found: Found | None
    ) -> tuple[list[Latent], dict[Branch, Latent]]:
        """The predictions of the guider's own `conds` and of `branches` at x; what is observed goes into `found`.

        All in one calc_cond_batch of [branches that can share a batch with the positive, the guider's own, the others].
        The host runs the first list last in a batch and the first batch first, so every pack that looks for the first
        row, or the first call, finds the one that would be there without the branches. There are exceptions. Where
        another pack has a model_function_wrapper, which may cut rows into tiles in its own order, each perturbed branch
        runs in a call of its own. Where another pack has replaced forwards in the network, each branch runs in a call
        that looks like the guider's.
        """
        context, call, conditionings = self._context, self._call, self._context.conditionings
        values: dict[Branch, Latent] = {}
        for branch in branches:
            if branch.model is not None:
                values[branch] = context.weak_models.predict(branch.model, branch, x, call.timestep, call.step.index)
                self._result.count(x.shape[0], [branch])
        branches = [branch for branch in branches if branch not in values]
        for branch in branches:
            context.check(branch, call, self._options)
        conditionings.set_roles(conds, branches, call)
        wrapper = self._options.get("model_function_wrapper")
        alone = [b for b in branches if context.replaced_forwards or (wrapper and b.perturbation is not None)]
        together = [branch for branch in branches if branch not in alone]
        first = [branch for branch in together if conditionings.can_share_a_batch_with_the_positive(branch, call)]
        last = [branch for branch in together if branch not in first]
        network = functools.partial(self._network, wrapper, found)

        def predict(lists: Conds) -> list[Latent]:
            given = [conditionings.with_roles(conds) for conds in lists]
            with lent(self._options, {"model_function_wrapper": network}):
                return self._calc(self._model, given, x, call.timestep, self._options) if lists else []

        before, after = ([conditionings.copy(branch, call) for branch in part] for part in (first, last))
        out = predict([*before, *conds, *after])
        start, end = len(first), len(first) + len(conds)
        values |= dict(zip([*first, *last], [*out[:start], *out[end:]], strict=True))
        for branch in alone:
            place, like_the_guiders = self._stand_in(branch)
            values[branch] = predict(like_the_guiders)[place]
        return out[start:end], values

    def _stand_in(self, branch: Branch) -> tuple[int, Conds]:
        """(place, conditionings of a call in which `branch` is at that place). Where other packs have replaced forwards,
        which may divide a batch in ways that nobody else knows, the call looks like the guider's: `branch` stands where
        what it copies would, and the others are copies with the same perturbation."""
        context, call, conditionings = self._context, self._call, self._context.conditionings
        alone: tuple[int, Conds] = 0, [conditionings.copy(branch, call)]
        if not context.replaced_forwards or branch.windows is not None:  # windows are areas, which nobody has two of
            return alone
        copied = conditionings.source(POSITIVE if isinstance(branch.conditioning, Pool) else branch, call)
        names = {id(entries): name for name, entries in context.guider.conds.items()}
        lists = [entries for entries in call.asked if entries is None or id(entries) in names]
        if not any(entries is copied for entries in lists):
            return alone
        place = next(at for at, entries in enumerate(lists) if entries is copied)
        others = [e if e is None else replace(branch, conditioning=names[id(e)]) for e in lists]
        others[place] = branch
        conditionings.set_roles(lists, [other for other in others if other], call)
        return place, [other and conditionings.copy(other, call) for other in others]

    def _network(self, wrapper: Callable | None, found: Found | None, apply_model: Callable, args: dict) -> Latent:
        """The outermost model_function_wrapper: one network call, with its roles set and its plan in the options."""
        context, call, conditionings = self._context, self._call, self._context.conditionings
        options = args["c"]["transformer_options"]
        conditionings.give_roles(options)
        branches = conditionings.branches(options)
        uuids = options["uuids"]  # not the options, which will hold the plan, which holds this list
        own = [POSITIVE if conditionings.is_positive(key) else NEGATIVE for key in uuids]
        self._result.count(args["input"].shape[0], [branch or mine for branch, mine in zip(branches, own, strict=True)])
        record(call.step.sigma, branches, tuple(options["cond_or_uncond"]))
        chunks: Chunks = tuple(branch.perturbation if branch else None for branch in branches)
        if found is not None and not call.hides_attention:
            reference = {entry["uuid"] for entry in conditionings.source(REFERENCE, call) or ()}
            chunks = tuple(
                call.observation if key in reference else chunk for chunk, key in zip(chunks, uuids, strict=True)
            )

        def report(chunk: int, _observation: Observation, sums: torch.Tensor, grid: tuple[int, ...]) -> None:
            if found is not None:
                found.setdefault(uuids[chunk], (sums, grid))  # of a block's several transformers the first

        negatives = tuple(call.negative if conditionings.is_positive(key) else None for key in uuids)
        if wrapper and any(negatives) and not all(negatives):
            raise RuntimeError(
                f"{titles(one.guidance for one in negatives if one)}: another node cuts the batch in a way of its own, and "
                f"here the batch holds other predictions beside the positive. Set cfg to 1, or take that node out."
            )
        if any(chunks) or any(negatives):
            copies = conditionings.copies(options) if call.shares_prefixes else ()
            of_run = {"prefix_sharing": context.prefix_sharing, "blocks": context.blocks, "checks": context.checks}
            of_run["negatives"] = negatives if any(negatives) else ()
            options = planned(options, Plan(chunks, context.proofs, call.moment, report, copies, **of_run))
        c = {**args["c"], "transformer_options": options}
        args = {**args, "c": c, "cond_or_uncond": options["cond_or_uncond"]}
        return wrapper(apply_model, args) if wrapper else apply_model(args["input"], args["timestep"], **c)
