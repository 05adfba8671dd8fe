"""A run of a model's terms: made when sampling begins, asked at each model call, and ended with the sampling."""

from __future__ import annotations

import contextlib
import functools
import time
import types
from collections.abc import Callable, Iterator

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ...patches.base import Moment
from ...patches.host import KEY, Blocks, PrefixSharing, Proofs, others, uncompiled
from ...patches.host.log import LOG, warn, warn_once
from ..attended_negative import AttendedNegative
from ..base import Observation, Step, WeakModelRef
from ..classifier_free import SamplerCFG
from ..compose import ActiveRules, GuidanceRun
from ..directions import Directions
from ..independent_condition import Pool
from ..reuse import Reuse, Stop
from ..schedule import Interval, StepTracker, fraction_of
from .attention_maps import LastMap
from .call import ModelCall
from .comfy_compiler import compiler_off
from .condition_pools import ConditionPools
from .conditionings import Conditionings, acts_at
from .context import RunContext
from .quirks import churns, combines_by_cfg, is_only_noise, mixture, reads_cfg, sampler_name
from .recorder import RECORDERS
from .sampler_inputs import SamplerInputs
from .term import Term
from .weak_models import WeakModels

CHECK = "beyond_cfg_check"  # in model_options: "auto", or "off" where the table of networks is not checked by a probe
PREFIX_SHARING = "beyond_cfg_sharing"  # in model_options: "auto", or "off" where all rows are to be computed whole
REUSE, STOP = "beyond_cfg_reuse", "beyond_cfg_stop"  # in model_options: a Reuse, a Stop


def sample_with_terms(executor, *args, **kwargs):
    """The OUTER_SAMPLE wrapper: a run of the guider's terms around the sampling. Raises ValueError where the guider has no
    positive prompt, or where the terms cannot act together."""
    guider = executor.class_obj
    terms: tuple[Term, ...] = guider.model_options.get(KEY, ())
    if comfy.model_management.in_training:
        warn_once("guidance does not act while a model is trained; the terms on this model are left out")
        return executor(*args, **kwargs)
    listens = any(key in guider.model_options for key in (RECORDERS, REUSE, STOP))
    if not any(term.acts for term in terms) and not listens:
        return executor(*args, **kwargs)
    if "positive" not in guider.conds:
        nodes = ", ".join(term.node for term in terms) or "Beyond CFG"
        raise ValueError(
            f"{nodes}: {type(guider).__name__} has no positive prompt to guide. Use a guider that takes one."
        )
    run = Run(guider, terms, kwargs.get("latent_shapes") or ())
    kept = guider.model_options
    try:
        guider.model_options = comfy.model_patcher.create_model_options_clone(kept)
        for kind, wrapper in ((WrappersMP.SAMPLER_SAMPLE, run.sample), (WrappersMP.PREDICT_NOISE, run.predict_noise)):
            add_wrapper_with_key(kind, KEY, wrapper, guider.model_options, is_model_options=True)
        with compiler_off() if run.reaches_into_the_network else contextlib.nullcontext():
            samples = executor(*args, **kwargs)
    finally:
        guider.model_options = kept
        run.end()
    run.report()
    return samples


class Run:
    """One sampling run: the state of its rules, its schedule, and what its model calls have in common."""

    def __init__(self, guider, terms: tuple[Term, ...], latent_shapes):
        self._guider, self._terms, self._latent_shapes = guider, terms, latent_shapes
        self._shapes = tuple(tuple(shape) for shape in latent_shapes)
        self._sampling = sampling = guider.model_patcher.get_model_object("model_sampling")
        to_sigma = sampling.percent_to_sigma
        # No function that the run keeps may hold the run: it would stay until garbage is collected, and so would the model.
        self._call = types.SimpleNamespace(sigma=0.0)  # the model call
        self._strengths = [(term, self._strength(term)) for term in terms]
        self._timestep = functools.cache(lambda sigma: float(sampling.timestep(torch.tensor([sigma]))[0]))
        self._fraction_of = functools.cache(lambda sigma: fraction_of(sigma, to_sigma))
        by_host = [pair for pair in self._strengths if isinstance(pair[0].rule, SamplerCFG)]
        by_rule = [pair for pair in self._strengths if not isinstance(pair[0].rule, SamplerCFG)]
        # What a region takes back of the sampler's CFG comes before all that is folded into it.
        self._folds = [(fold, strength) for term, strength in by_host + by_rule if (fold := term.fold) is not None]
        self._guidance = GuidanceRun(())  # made in `sample`, where the latent is known
        self._directions: Directions | None = None  # likewise
        self._recorders = guider.model_options.get(RECORDERS, ())
        self._observation = _observation_of(terms, len(self._shapes))
        branches = {branch: term.node for term in terms for branch in term.branches}
        in_attention = {term.rule.guidance for term in terms if isinstance(term.rule, AttendedNegative)}
        self._to_be_proven = {branch.perturbation for branch in branches} | in_attention
        self._pools = ConditionPools({b.conditioning for b in branches if isinstance(b.conditioning, Pool)})
        nodes: dict[WeakModelRef, str] = {b.model: node for b, node in branches.items() if b.model is not None}
        # It copies the guider's conditionings here, before the host processes them for the main model.
        self._weak_models = WeakModels(guider, nodes)
        self._prefix_sharing = PrefixSharing(guider.model_options.get(PREFIX_SHARING) != "off")
        self._conditionings = Conditionings(guider, self._pools, self._prefix_sharing.on)
        self._steps = StepTracker([float("inf")])
        self.reaches_into_the_network = self._observation is not None or any(self._to_be_proven)
        self._context: RunContext | None = None  # made in `sample`
        self._in_reach: set[Term] = set()  # terms whose schedule was not 0 in some step
        self._mattered: set[Term] = set()  # those of them that could change the step

    def sample(
        self, executor, guider, sigmas, extra_args, callback, noise, latent_image=None, mask=None, *args, **kwargs
    ):
        """The SAMPLER_SAMPLE wrapper: the first place where schedule, sampler and conditionings are final."""
        for recorder in self._recorders:
            recorder.begin(len(sigmas) - 1, [term.node for term in self._terms if term.acts])
        sampler = executor.class_obj
        schedule = sigmas.tolist()
        self._steps = StepTracker(schedule, sampler_name(sampler), free=churns(sampler))
        network = uncompiled(guider.inner_model.diffusion_model)
        blocks, replaced = Blocks.at_the_begin(network), others.forwards(network)
        if replaced:
            LOG.info(
                f"Beyond CFG: {others.names(replaced.values())} has replaced forwards in the network, so each weak "
                f"prediction is made in a call of its own, like the sampler's"
            )
        regions = [fold.region_of(noise, self._shapes) for fold, _ in self._folds]
        self._guidance = GuidanceRun([(fold.rule, strength) for fold, strength in self._folds], regions)
        savings = (self._guider.model_options.get(key) for key in (REUSE, STOP))
        reuse, stop = (saving if saving is not None and saving.acts else None for saving in savings)
        if reuse or stop:
            self._directions = Directions(reuse, stop, schedule, measures=bool(self._recorders))
        inputs = SamplerInputs(sigmas, noise, latent_image, mask, extra_args.get("seed"), self._latent_shapes)
        self._weak_models.begin(guider, inputs)
        self._pools.begin(guider, inputs)
        self._context = RunContext(
            guider=self._guider,
            terms=self._terms,
            folds=tuple(fold for fold, _ in self._folds),
            conditionings=self._conditionings,
            weak_models=self._weak_models,
            recorders=self._recorders,
            observation=self._observation,
            last_map=LastMap(),
            proofs=Proofs(self._to_be_proven),
            prefix_sharing=self._prefix_sharing,
            checks=self._guider.model_options.get(CHECK) != "off",
            blocks=blocks,
            replaced_forwards=replaced,
            process_out=guider.inner_model.process_latent_out,
        )
        return executor(guider, sigmas, extra_args, callback, noise, latent_image, mask, *args, **kwargs)

    def predict_noise(self, executor, x, timestep, model_options, seed=None):
        """The innermost PREDICT_NOISE wrapper: one model call of the sampler."""
        self._call.sigma = sigma = timestep.flatten()[0].item()
        index, start = self._steps.of(sigma)
        in_reach = [term for term, strength in self._strengths if strength(start) != 0]
        context = self._context
        if context is None:
            raise RuntimeError("the sampler asks for a prediction before its run has begun")
        with self._cfg_at(start) as (own, cfg):
            cfg = cfg if combines_by_cfg(self._guider) else 1.0  # no rule can correct what it does not know
            self._in_reach.update(in_reach)
            self._mattered.update(term for term in in_reach if term.matters_at(own, cfg))
            acts = self._positive_acts(sigma)
            active = self._guidance.at(start, cfg) if acts else ActiveRules(())
            directions = self._directions if acts else None
            if self._directions is not None and not acts:
                self._directions.forget()
            if not active and not self._recorders and directions is None:
                return executor(x, timestep, model_options, seed)
            moment = Moment(seed or 0, index, 1 - self._fraction_of(start))
            mixed, noise = mixture(self._sampling, sigma), is_only_noise(self._sampling, sigma)
            about = moment.seed, cfg, self._shapes, {}, self._timestep, noise
            step = Step(x, sigma, start, index, moment.time, *mixed, *about)
            began = time.perf_counter()
            call = ModelCall(context, active, directions, step, timestep, moment)
            with call.placed_in(model_options):
                denoised = executor(x, timestep, model_options, seed)
            denoised = call.finish(denoised, model_options)
            for recorder in self._recorders:
                recorder.add(call.result, step, began, context.process_out, context.names_of)
            return denoised

    def _strength(self, term: Term) -> Callable[[float], float]:
        """σ at the start of a step → how strongly a term acts in it. An Interval looks at the call's own σ."""
        strength, call = functools.cache(term.strength(self._sampling.percent_to_sigma)), self._call
        return (lambda start: strength(call.sigma)) if isinstance(term.schedule.curve, Interval) else strength

    def end(self) -> None:
        """Let go of what the run holds on the host."""
        self._conditionings.end()
        self._weak_models.end()

    def report(self) -> None:
        """Tell recorders that the run is over, and the log which terms had no effect in it."""
        without_effect = [(node, f"{node} had no effect: {why}") for node, why in self._without_effect()]
        for _, message in without_effect:
            warn(message)
        for recorder in self._recorders:
            recorder.end(without_effect)

    def _without_effect(self) -> Iterator[tuple[str, str]]:
        """(node, why) of each that had no effect in this run."""
        for term in self._terms:
            if term.acts_nowhere:
                yield term.node, "its region is empty"
            elif term not in self._in_reach:
                where = f"{term.schedule.start_percent:g} to {term.schedule.end_percent:g} of sampling"
                curve = " where its schedule is not 0" if term.schedule.curve else ""
                yield term.node, f"no step of this run lies in {where}{curve}"
            elif term not in self._mattered:
                yield term.node, f"{type(self._guider).__name__} {self._why_no_cfg(term)}"
        directions = self._directions
        if directions is not None and not directions.saved:
            for key, node in ((REUSE, Reuse.about.name), (STOP, Stop.about.name)):
                saving = self._guider.model_options.get(key)
                if saving is not None and saving.acts:
                    yield node, directions.why_not(saving)

    def _why_no_cfg(self, term: Term) -> str:
        """Why there was no CFG for a term to act on."""
        if not reads_cfg(self._guider):
            return "reads no cfg of this kind"
        if isinstance(term.rule, SamplerCFG) or combines_by_cfg(self._guider):
            return "ran at cfg 1, which is no CFG"
        return "combines its predictions in a way of its own"

    @contextlib.contextmanager
    def _cfg_at(self, start: float) -> Iterator[tuple[float, float]]:
        """Within this context the guider's cfg is what the terms make of it. Yields (its own, that); 1 where nothing reads
        it."""
        kept, reads = self._guider.cfg, reads_cfg(self._guider)
        try:
            for term, strength in self._strengths:
                if isinstance(term.rule, SamplerCFG):
                    self._guider.cfg = term.rule.weight(self._guider.cfg, strength(start))
            yield (kept, self._guider.cfg) if reads else (1.0, 1.0)
        finally:
            self._guider.cfg = kept

    def _positive_acts(self, sigma: float) -> bool:
        """Whether any of the positive is inside its own timestep range; the host's prediction is 0 where none is."""
        return any(acts_at(entry, sigma) for entry in self._conditionings.positive)


def _observation_of(terms: tuple[Term, ...], latents: int) -> Observation | None:
    """The one observation that the terms ask for. Raises ValueError where there are several, or several latents."""
    rules = [(term.rule, term.node) for term in terms if not isinstance(term.rule, SamplerCFG)]
    observations = {rule.observation: node for rule, node in rules if rule.observation is not None}
    if len(observations) > 1:
        raise ValueError(f"{' and '.join(observations.values())}: they look at different layers; give them the same")
    for observation, node in observations.items():
        if latents > 1:
            raise ValueError(
                f"{node}: this latent packs several, such as video and sound, and cannot be blurred as one. Use PAG or SEG"
            )
        return observation
    return None
