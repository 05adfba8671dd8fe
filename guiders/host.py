"""The one door from guidance rules to the host's sampling.

A term (rule, window, name) sits on a MODEL. When a run begins, an OUTER_SAMPLE wrapper puts the run's innermost
PREDICT_NOISE wrapper on the guider's own copy of model_options, and takes it off when the run ends: nothing stays on
the guider or the model. For each model call that wrapper asks which terms act at its σ. If none does, the call goes
through untouched. Otherwise

    rows    the branches' conditionings join the guider's own in one calc_cond_batch, under uuids of their own;
    roles   what other packs see of them are the places of the guider's own conditionings, positive 0 and negative 1;
    fold    the terms are applied to what the host made of its own predictions, before any post-CFG function of others.

A guider with a predict_noise of its own keeps it: rows are added to the call that carries its positive, and the terms
are applied to its result.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import math
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ..patches.host import KEY, Plan, planned
from .base import NEGATIVE, POSITIVE, Branch, GuidanceRule, Latent, Predictions, Step
from .classifier_free import SamplerCFG
from .compose import ActiveRules, GuidanceRun, evaluate_all
from .schedule import Steps, Window


@dataclass(frozen=True)
class Term:
    """One guidance on a model, as the user's node stated it."""

    rule: GuidanceRule | SamplerCFG
    window: Window
    node: str  # the node's title, for messages


def add_term(model, term: Term):
    """A clone of MODEL that carries `term` after those it has."""
    model = model.clone()
    model.model_options[KEY] = (*model.model_options.get(KEY, ()), term)
    if not model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sample_with_terms)
    return model


def make_guider(model, positive, negative, cfg: float):
    """The host's own CFG guider on MODEL, terms and all. `negative` may be None where `cfg` is 1.

    Raises ValueError where cfg is not finite, or needs a negative and there is none."""
    if not math.isfinite(cfg):
        raise ValueError(f"cfg is {cfg}; it must be a finite number")
    if negative is None and cfg != 1.0:
        raise ValueError(f"cfg is {cfg:g} but no negative is connected; connect one, or set cfg to 1 (no CFG)")
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive} if negative is None else {"positive": positive, "negative": negative})
    guider.set_cfg(cfg)
    return guider


def sample_with_terms(executor, *args, **kwargs):
    """The OUTER_SAMPLE wrapper: a run of the guider's terms around the sampling."""
    guider = executor.class_obj
    terms: tuple[Term, ...] = guider.model_options.get(KEY, ())
    if comfy.model_management.in_training:
        _say_once("guidance does not act while a model is trained; the terms on this model are left out")
        return executor(*args, **kwargs)
    if not any(isinstance(term.rule, SamplerCFG) or term.rule.branches() for term in terms):
        return executor(*args, **kwargs)
    if "positive" not in guider.conds:
        nodes = ", ".join(term.node for term in terms)
        raise ValueError(
            f"{nodes}: {type(guider).__name__} has no positive prompt to guide. Use a guider that takes one."
        )
    run = _Run(guider, terms, kwargs.get("latent_shapes") or ())
    kept = guider.model_options
    try:
        guider.model_options = comfy.model_patcher.create_model_options_clone(kept)
        for kind, wrapper in ((WrappersMP.SAMPLER_SAMPLE, run.sample), (WrappersMP.PREDICT_NOISE, run.predict_noise)):
            add_wrapper_with_key(kind, KEY, wrapper, guider.model_options, is_model_options=True)
        samples = executor(*args, **kwargs)
    finally:
        guider.model_options = kept
    run.report()
    return samples


class _Run:
    """One sampling run: its rules' state, its schedule, and the conditionings of its branches."""

    def __init__(self, guider, terms: tuple[Term, ...], latent_shapes):
        to_sigma = guider.model_patcher.get_model_object("model_sampling").percent_to_sigma
        intervals = [(term, term.window.interval(to_sigma)) for term in terms]
        self.guider = guider
        self.cfg_intervals = [(term, i) for term, i in intervals if isinstance(term.rule, SamplerCFG)]
        self.guidance = GuidanceRun((term.rule, i) for term, i in intervals if not isinstance(term.rule, SamplerCFG))
        self.intervals = intervals
        self.shapes = tuple(tuple(shape) for shape in latent_shapes)
        self.steps = Steps([float("inf")])
        self.used: set[Term] = set()
        self.cfg_mattered = False
        self.unproven = {branch.perturbation for term, _ in intervals for branch in _branches(term.rule)} - {None}
        self._own: dict[
            Branch, tuple[list, list]
        ] = {}  # branch → (the guider's conditioning, its copy under own uuids)
        self.branch_of: dict[uuid.UUID, Branch] = {}
        self._role_of: dict[uuid.UUID, int] = {}
        self._controls: dict[int, _ControlWithRoles] = {}

    def sample(self, executor, guider, sigmas, *args, **kwargs):
        """The SAMPLER_SAMPLE wrapper: the first place where schedule and sampler are final."""
        sampler = executor.class_obj
        name = getattr(getattr(sampler, "sampler_function", None), "__name__", "").removeprefix("sample_")
        churns = getattr(sampler, "extra_options", {}).get("s_churn", 0) > 0
        self.steps = Steps(sigmas.tolist(), name.removesuffix("_function"), free=churns)
        return executor(guider, sigmas, *args, **kwargs)

    def predict_noise(self, executor, x, timestep, model_options, seed=None):
        """The innermost PREDICT_NOISE wrapper: one model call of the sampler."""
        sigma = timestep.flatten()[0].item()
        index, start = self.steps.of(sigma)
        self.used.update(term for term, interval in self.intervals if start in interval)
        step = Step(x, sigma, start, index, self.shapes)
        active = self.guidance.at(start) if self._positive_acts(sigma) else ActiveRules(())
        with self._cfg_at(start):
            if not active.branches:
                return executor(x, timestep, model_options, seed)
            call = _ModelCall(self, active, step, timestep)
            return call.finish(executor(x, timestep, call.options(model_options), seed), model_options)

    def report(self) -> None:
        """Say which terms had no effect in the run that has ended."""
        for term, _ in self.intervals:
            if term not in self.used:
                window = f"{term.window.start_percent:g} to {term.window.end_percent:g}"
                logging.warning(f"{_NAME}: {term.node} had no effect: no step of this run lies in {window} of sampling")
            elif isinstance(term.rule, SamplerCFG) and not self.cfg_mattered:
                why = "reads no cfg of this kind" if not _reads_cfg(self.guider) else "ran at cfg 1, which is no CFG"
                logging.warning(f"{_NAME}: {term.node} had no effect: {type(self.guider).__name__} {why}")

    @contextlib.contextmanager
    def _cfg_at(self, start: float) -> Iterator[None]:
        kept = self.guider.cfg
        self.cfg_mattered |= kept != 1.0 and _reads_cfg(self.guider)
        try:
            for term, interval in self.cfg_intervals:
                self.guider.cfg = term.rule.weight(self.guider.cfg, start in interval)
            yield
        finally:
            self.guider.cfg = kept

    def _positive_acts(self, sigma: float) -> bool:
        """Whether any of the positive is inside its own timestep range; the host's prediction is 0 where none is."""
        return any(
            _float32(row.get("timestep_end", 0.0)) <= sigma <= _float32(row.get("timestep_start", float("inf")))
            for row in self.guider.conds.get("positive") or ()
        )

    def rows(self, branch: Branch) -> list[dict]:
        """The branch's conditioning, under uuids that it keeps for the run: caches of other packs go by them."""
        source = self.guider.conds.get(branch.conditioning)
        if source is None:
            names = ", ".join(term.node for term, _ in self.intervals if branch in _branches(term.rule))
            raise ValueError(
                f"{names}: needs a {branch.conditioning} prompt, and {type(self.guider).__name__} has "
                f"{', '.join(self.guider.conds) or 'none'}. Use a guider that takes one."
            )
        if branch not in self._own or self._own[branch][0] is not source:
            self._own[branch] = (source, [{**row, "uuid": uuid.uuid4()} for row in source])
            self.branch_of.update((row["uuid"], branch) for row in self._own[branch][1])
        return self._own[branch][1]

    def set_roles(self, own: list[list[dict]], branches: dict[Branch, list[dict]]) -> None:
        """Remember whom other packs take each row for: a row of the guider's for its place in the guider's list, a row
        of ours for that of the guider's own conditioning of the same kind."""
        for role, rows in enumerate(own):
            self._role_of.update((row["uuid"], role) for row in rows or ())
        for branch, rows in branches.items():
            same = [role for role, theirs in enumerate(own) if theirs is self.guider.conds[branch.conditioning]]
            role = same[0] if same else int(branch.conditioning == "negative")
            self._role_of.update((row["uuid"], role) for row in rows)

    def give_roles(self, transformer_options: dict) -> None:
        """Write them into the transformer_options of one network call, which the host has made for that call alone."""
        seen = zip(transformer_options["uuids"], transformer_options["cond_or_uncond"], strict=True)
        transformer_options["cond_or_uncond"] = [self._role_of.get(row, place) for row, place in seen]

    def with_roles(self, rows: list[dict] | None) -> list[dict] | None:
        """`rows` with controls that see roles too. One proxy per control: rows share a batch only with the same one."""
        if rows is None or not any("control" in row for row in rows):
            return rows
        for row in rows:
            if "control" in row and id(row["control"]) not in self._controls:
                self._controls[id(row["control"])] = _ControlWithRoles(row["control"], self)
        return [{**row, "control": self._controls[id(row["control"])]} if "control" in row else row for row in rows]

    def shares(self, transformer_options: dict) -> tuple:
        """The perturbation of each equal share of a network call's rows, found by uuid."""
        branches = (self.branch_of.get(row, POSITIVE) for row in transformer_options["uuids"])
        return tuple(branch.perturbation for branch in branches)


class _ModelCall:
    """One model call in which terms act: the host's call with our rows in it, and the fold of what they gave."""

    def __init__(self, run: _Run, active: ActiveRules, step: Step, timestep: torch.Tensor):
        self.run, self.active, self.step, self.timestep = run, active, step, timestep
        self.native = getattr(run.guider.predict_noise, "__func__", None) is comfy.samplers.CFGGuider.predict_noise
        self.predictions: Predictions | None = None
        self.folded = False

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
        carries = any(rows is self.run.guider.conds["positive"] for rows in conds)
        if self.predictions is not None or not carries or model is not self.run.guider.inner_model:
            return executor(model, conds, x, timestep, options)
        return self._evaluate(conds, model, x, options, calc=executor)

    def post_cfg(self, args: dict) -> Latent:
        return self._fold(args["denoised"], args["model_options"])

    def finish(self, denoised: Latent, options: dict) -> Latent:
        """The call's result, folded here if no post-CFG function of ours was called on the way."""
        return denoised if self.folded else self._fold(denoised, options)

    def _fold(self, denoised: Latent, options: dict) -> Latent:
        if self.predictions is None:  # our rows found no call to join
            conds = [self.run.guider.conds["positive"]]
            self._evaluate(conds, self.run.guider.inner_model, self.step.x, options)
        self.folded = True
        return self.active.fold(denoised, self.predictions, self.step)

    def _evaluate(self, conds, model, x, options, known=None, calc=comfy.samplers.calc_cond_batch) -> list[Latent]:
        """Evaluate the guider's own `conds` and what the active rules need besides; returns the guider's predictions.
        `known` are predictions that need no evaluation."""
        own: list[Latent] = []

        def evaluate(branches: tuple[Branch, ...], step: Step) -> Predictions:
            carried = conds if step is self.step else []  # the guider's own conditionings ask for the sampler's x
            place = {
                branch: at
                for branch in (POSITIVE, NEGATIVE)
                for at, rows in enumerate(carried)
                if rows is not None and rows is self.run.guider.conds.get(branch.conditioning)
            }
            given = {branch: value for branch, value in (known or {}).items() if value is not None}
            asked = [branch for branch in branches if branch not in place and branch not in given]
            out, values = self._forward(carried, asked, model, x if carried else step.x, options, calc)
            own.extend(out)
            return given | values | {branch: out[at] for branch, at in place.items()}

        self.predictions = evaluate_all((POSITIVE, *self.active.branches), self.step, evaluate)
        return own

    def _forward(self, conds, branches, model, x, options, calc) -> tuple[list[Latent], dict[Branch, Latent]]:
        """One calc_cond_batch of [branches that can share a batch with the positive, the guider's own, the others].

        The host runs the first list last in a batch and the first batch first, so every pack that looks for the first
        row, or the first call, finds the one it has without us. Where another pack has a model_function_wrapper, which
        may cut rows into tiles in its own order, each perturbed branch runs in a call of its own.
        """
        run, rows = self.run, {branch: self.run.rows(branch) for branch in branches}
        run.set_roles(conds, rows)
        wrapper = options.get("model_function_wrapper")
        apart = [branch for branch in branches if wrapper and branch.perturbation is not None]
        positive = run.guider.conds["positive"]
        first = [branch for branch in branches if branch not in apart and _can_share_a_batch(rows[branch], positive)]
        last = [branch for branch in branches if branch not in apart and branch not in first]
        options = {**options, "model_function_wrapper": functools.partial(self._network, wrapper)}

        def predict(lists: list) -> list[Latent]:
            return calc(model, [run.with_roles(rows) for rows in lists], x, self.timestep, options) if lists else []

        out = predict([*(rows[branch] for branch in first), *conds, *(rows[branch] for branch in last)])
        start, end = len(first), len(first) + len(conds)
        values = dict(zip([*first, *last], [*out[:start], *out[end:]], strict=True))
        values |= {branch: predict([rows[branch]])[0] for branch in apart}
        return out[start:end], values

    def _network(self, wrapper, apply_model, args: dict) -> Latent:
        """The outermost model_function_wrapper: one network call, its rows told apart and its roles set."""
        options = args["c"]["transformer_options"]
        self.run.give_roles(options)
        shares = self.run.shares(options)
        record = _TRACE.get()
        if record is not None:
            branches = tuple(self.run.branch_of.get(row) for row in options["uuids"])
            record.append(Forward(self.step.sigma, branches, tuple(options["cond_or_uncond"])))
        if any(shares):
            options = planned(options, Plan(shares, self.run.unproven))
        c = {**args["c"], "transformer_options": options}
        args = {**args, "c": c, "cond_or_uncond": options["cond_or_uncond"]}
        return wrapper(apply_model, args) if wrapper else apply_model(args["input"], args["timestep"], **c)


class _ControlWithRoles:
    """A control whose get_control sees roles; the host calls it before any wrapper of the network."""

    def __init__(self, control, run: _Run):
        self._control, self._run = control, run

    def get_control(self, x, t, cond, batched_number, transformer_options):
        self._run.give_roles(transformer_options)
        return self._control.get_control(x, t, cond, batched_number, transformer_options)

    def __getattr__(self, name):
        return getattr(self._control, name)


@dataclass(frozen=True)
class Forward:
    """One forward of the network in a model call where terms acted."""

    sigma: float
    branches: tuple[Branch | None, ...]  # by row of the batch; None: a row of the guider's own
    roles: tuple[int, ...]


_TRACE: contextvars.ContextVar[list[Forward] | None] = contextvars.ContextVar("trace", default=None)
_NAME = "Beyond CFG"


@contextlib.contextmanager
def trace() -> Iterator[list[Forward]]:
    """Collects the forwards that carry rows of ours, in the order they run."""
    token = _TRACE.set(record := [])
    try:
        yield record
    finally:
        _TRACE.reset(token)


@functools.cache
def _say_once(message: str) -> None:
    logging.warning(f"{_NAME}: {message}")


def _branches(rule) -> tuple[Branch, ...]:
    return () if isinstance(rule, SamplerCFG) else rule.branches()


def _reads_cfg(guider) -> bool:
    """DualCFG and others of the kind have weights of their own, and a `cfg` that nothing reads."""
    function = getattr(guider.predict_noise, "__func__", guider.predict_noise)
    return "cfg" in getattr(getattr(function, "__code__", None), "co_names", ("cfg",))


def _can_share_a_batch(rows: list[dict], others: list[dict]) -> bool:
    """Whether the host could put one of `rows` into the batch of one of `others`."""
    same_object = ("control", "hooks", "area")
    return any(
        all(row.get(key) is other.get(key) or (key == "area" and row.get(key) == other.get(key)) for key in same_object)
        and "gligen" not in row
        and comfy.samplers.cond_equal_size(row["model_conds"], other["model_conds"])
        for row in rows
        for other in others
    )


def _float32(value: float) -> float:
    """As the host compares it with the sampler's σ."""
    return torch.tensor(value, dtype=torch.float32).item()
