"""A run of a model's terms: set up when sampling begins, asked at each model call, and heard at the end."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ...patches.base import Moment
from ...patches.host import KEY, Blocks, Sharing, others, uncompiled
from ..base import POSITIVE, Branch, Step
from ..classifier_free import SamplerCFG
from ..compose import ActiveRules, GuidanceRun
from ..independent_condition import Pool
from ..schedule import Steps, fraction_of
from .call import ModelCall
from .pools import Pools
from .recorder import RECORDERS
from .rows import Rows
from .trace import warn, warn_once
from .weak_models import WeakModels

if TYPE_CHECKING:
    from .terms import Term

SHARING = "beyond_cfg_sharing"  # in model_options: "auto", or "off" where all rows are to be computed whole


def sample_with_terms(executor, *args, **kwargs):
    """The OUTER_SAMPLE wrapper: a run of the guider's terms around the sampling."""
    guider = executor.class_obj
    terms: tuple[Term, ...] = guider.model_options.get(KEY, ())
    if comfy.model_management.in_training:
        warn_once("guidance does not act while a model is trained; the terms on this model are left out")
        return executor(*args, **kwargs)
    acts = any(isinstance(term.rule, SamplerCFG) or term.rule.branches() for term in terms)
    if not acts and RECORDERS not in guider.model_options:
        return executor(*args, **kwargs)
    if "positive" not in guider.conds:
        nodes = ", ".join(term.node for term in terms)
        raise ValueError(
            f"{nodes}: {type(guider).__name__} has no positive prompt to guide. Use a guider that takes one."
        )
    run = Run(guider, terms, kwargs.get("latent_shapes") or ())
    kept = guider.model_options
    try:
        guider.model_options = comfy.model_patcher.create_model_options_clone(kept)
        for kind, wrapper in ((WrappersMP.SAMPLER_SAMPLE, run.sample), (WrappersMP.PREDICT_NOISE, run.predict_noise)):
            add_wrapper_with_key(kind, KEY, wrapper, guider.model_options, is_model_options=True)
        samples = executor(*args, **kwargs)
    finally:
        guider.model_options = kept
        run.rows.end()
        run.weak_models.end()
    run.report()
    return samples


class Run:
    """One sampling run: its rules' state, its schedule, and the rows of its branches."""

    def __init__(self, guider, terms: tuple[Term, ...], latent_shapes):
        sampling = guider.model_patcher.get_model_object("model_sampling")
        self.mixture, to_sigma = functools.partial(mixture, sampling), sampling.percent_to_sigma
        self.terms = [(term, functools.cache(term.schedule.strength(to_sigma))) for term in terms]
        self.fraction_of = functools.cache(lambda sigma: fraction_of(sigma, to_sigma))
        self.guider = guider
        self.recorders = guider.model_options.get(RECORDERS, ())
        self.guidance = GuidanceRun((t.rule, k) for t, k in self.terms if not isinstance(t.rule, SamplerCFG))
        self.latent_shapes = latent_shapes  # as the host has them: rows share a batch only if theirs are alike in type
        self.shapes = tuple(tuple(shape) for shape in latent_shapes)
        self.steps = Steps([float("inf")])
        self.used: set[Term] = set()
        self.cfg_mattered = False
        self.sharing = Sharing(guider.model_options.get(SHARING) != "off")
        self.blocks: Blocks | None = None  # of the network, when all is in place …
        self.changed: dict = {}  # … and what other packs have put in the place of its forwards
        self.unproven = {branch.perturbation for term in terms for branch in _branches(term.rule)} - {None}
        conditionings = {branch.conditioning for term in terms for branch in _branches(term.rule)}
        self.pools = Pools({conditioning for conditioning in conditionings if isinstance(conditioning, Pool)})
        self.rows = Rows(guider, self.pools, self.sharing.on)
        observations = {term.rule.observation: term.node for term in terms if getattr(term.rule, "observation", None)}
        if len(observations) > 1:
            raise ValueError(
                f"{' and '.join(observations.values())}: they look at different layers; give them the same"
            )
        self.observation = next(iter(observations), None)
        if self.observation and len(self.shapes) > 1:
            raise ValueError(
                f"{observations[self.observation]}: this latent packs several, such as video and sound, and cannot be "
                f"blurred as one. Use PAG or SEG"
            )
        self.seen: torch.Tensor | None = None  # what it has seen last
        nodes = {branch.model: term.node for term in terms for branch in _branches(term.rule)}
        self.weak_models = WeakModels(guider, {name: nodes[name] for name in nodes if name != POSITIVE.model})

    def sample(
        self, executor, guider, sigmas, extra_args, callback, noise, latent_image=None, mask=None, *args, **kwargs
    ):
        """The SAMPLER_SAMPLE wrapper: the first place where schedule, sampler and conditionings are final."""
        sampler = executor.class_obj
        name = getattr(getattr(sampler, "sampler_function", None), "__name__", "").removeprefix("sample_")
        churns = getattr(sampler, "extra_options", {}).get("s_churn", 0) > 0
        for recorder in self.recorders:
            recorder.begin(len(sigmas) - 1)
        self.steps = Steps(sigmas.tolist(), name.removesuffix("_function"), free=churns)
        network = uncompiled(guider.inner_model.diffusion_model)
        self.blocks, self.changed = Blocks.at_the_begin(network), others.forwards(network)
        if self.changed:
            logging.info(
                f"Beyond CFG: {others.names(self.changed.values())} has replaced forwards in the network, so each weak "
                f"prediction is made in a call of its own, like the sampler's"
            )
        seed = extra_args.get("seed")
        self.weak_models.begin(guider, sigmas, noise, latent_image, mask, seed, self.shapes)
        self.pools.begin(guider, noise, latent_image, mask, seed, self.latent_shapes)
        return executor(guider, sigmas, extra_args, callback, noise, latent_image, mask, *args, **kwargs)

    def predict_noise(self, executor, x, timestep, model_options, seed=None):
        """The innermost PREDICT_NOISE wrapper: one model call of the sampler."""
        sigma = timestep.flatten()[0].item()
        index, start = self.steps.of(sigma)
        self.used.update(term for term, strength in self.terms if strength(start) != 0)
        step = Step(x, sigma, start, index, *self.mixture(sigma), seed or 0, self.shapes)
        active = self.guidance.at(start) if self._positive_acts(sigma) else ActiveRules(())
        with self._cfg_at(start):
            if not active.rules and not self.recorders:
                return executor(x, timestep, model_options, seed)
            self.rows.now = (seed or 0, index, x.shape[0])
            moment = Moment(seed or 0, index, 1 - self.fraction_of(start))
            call = ModelCall(self, active, step, timestep, moment)
            began = time.perf_counter()
            with call.placed_in(model_options):
                denoised = executor(x, timestep, model_options, seed)
            denoised = call.finish(denoised, model_options)
            for recorder in self.recorders:
                recorder.add(call, step, began, self.guider.inner_model.process_latent_out)
            return denoised

    def node_of(self, rule) -> str:
        """The title of the node that made a rule."""
        return next(term.node for term, _ in self.terms if term.rule is rule)

    def report(self) -> None:
        """Say which terms had no effect in the run that has ended."""
        for recorder in self.recorders:
            recorder.end()
        for term, _ in self.terms:
            if term not in self.used:
                where = f"{term.schedule.start_percent:g} to {term.schedule.end_percent:g} of sampling"
                curve = " where its schedule is not 0" if term.schedule.curve else ""
                warn(f"{term.node} had no effect: no step of this run lies in {where}{curve}")
            elif isinstance(term.rule, SamplerCFG) and not self.cfg_mattered:
                why = "reads no cfg of this kind" if not _reads_cfg(self.guider) else "ran at cfg 1, which is no CFG"
                warn(f"{term.node} had no effect: {type(self.guider).__name__} {why}")

    @contextlib.contextmanager
    def _cfg_at(self, start: float) -> Iterator[None]:
        kept = self.guider.cfg
        self.cfg_mattered |= kept != 1.0 and _reads_cfg(self.guider)
        try:
            for term, strength in self.terms:
                if isinstance(term.rule, SamplerCFG):
                    self.guider.cfg = term.rule.weight(self.guider.cfg, strength(start))
            yield
        finally:
            self.guider.cfg = kept

    def _positive_acts(self, sigma: float) -> bool:
        """Whether any of the positive is inside its own timestep range; the host's prediction is 0 where none is."""
        return any(
            _float32(row.get("timestep_end", 0.0)) <= sigma <= _float32(row.get("timestep_start", float("inf")))
            for row in self.rows.own(POSITIVE)
        )

    def check(self, branch: Branch) -> None:
        """Raise ValueError, naming the node, where the guider has no conditioning for `branch`."""
        if self.rows.own(branch) is None:
            nodes = ", ".join(term.node for term, _ in self.terms if branch in _branches(term.rule))
            raise ValueError(
                f"{nodes}: needs a {branch.conditioning} prompt, and {type(self.guider).__name__} has "
                f"{', '.join(self.guider.conds)}. Use a guider that takes one."
            )


def mixture(sampling, sigma: float) -> tuple[float, float]:
    """(a, b / σ) of x = a x₀ + b n, by the formula with which the host makes D of x and of what the network says.

    For CogVideoX that is x₀ = a x − b v with a² + b² = 1. The host's noise_scaling there begins from x₀ + σ n instead, and
    its samplers go on so; but ε, and with it all that shows the network another x, is what the network and D say it is."""
    if isinstance(sampling, comfy.model_sampling.CONST):
        return 1 - sigma, getattr(sampling, "noise_scale", 1.0)
    if isinstance(sampling, getattr(comfy.model_sampling, "V_PREDICTION_DDPM", ())):  # not in the oldest hosts
        return ((sigma**2 + 1) ** -0.5,) * 2
    return 1.0, 1.0


def _branches(rule) -> tuple[Branch, ...]:
    return () if isinstance(rule, SamplerCFG) else rule.branches()


def _reads_cfg(guider) -> bool:
    """DualCFG and others of the kind have weights of their own, and a `cfg` that nothing reads."""
    function = getattr(guider.predict_noise, "__func__", guider.predict_noise)
    return "cfg" in getattr(getattr(function, "__code__", None), "co_names", ("cfg",))


def _float32(value: float) -> float:
    """As the host compares it with the sampler's σ."""
    return torch.tensor(value, dtype=torch.float32).item()
