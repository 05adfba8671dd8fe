"""Sampling with the real host in this process, and counting what its network is asked for."""

from __future__ import annotations

import inspect

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from pack.guiders.host import Term, add_term
from pack.guiders.perturbation import PerturbationGuidance
from pack.guiders.schedule import Schedule
from pack.nodes import terms
from pack.patches import PERTURBATIONS, IdentityAttention
from pack.patches.base import BlockPerturbation
from pack.patches.host import select_layers
from pack.tests.host import networks

TERM_NODES = {node.about.node_id: node for node in terms.NODES}
SKIPPING = [
    method.about.node_id for method in PERTURBATIONS if issubclass(method, BlockPerturbation)
]  # no UNet's layers

CAN_COPY = "force_deepcopy" in inspect.signature(comfy.model_patcher.ModelPatcher.clone).parameters
NO_COPY = "this host cannot copy a loaded model"
needs_copy = pytest.mark.skipif(not CAN_COPY, reason=NO_COPY)


def close(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


def rounding(model, kind="unet", cfg=4.0, **kwargs) -> float:
    """How far the size of a batch alone moves a result of `model` on this processor, as `close` counts: one sample by
    itself, and beside copies of itself. What rows are computed together with may change a result by as much."""
    latent = networks.latent(kind)

    def first_of(copies: int) -> torch.Tensor:
        return sample(model, kind, cfg, latent=latent.repeat(copies, *[1] * (latent.ndim - 1)), **kwargs)[:1]

    alone = first_of(1)
    return max(close(first_of(copies), alone) for copies in (2, 3))


def network(kind: str, **kwargs):
    """A fresh small model. In float64 where the host's kernels allow it: what is left of the rounding that depends on
    the size of a batch cannot hide a difference then."""
    model = networks.unet(sdxl_like=True, **kwargs) if kind == "sdxl" else getattr(networks, kind)(**kwargs)
    if kind not in ("flux", "wan"):
        model.model.diffusion_model.double().dtype = torch.float64
    return model


def loadable(kind: str, change=None, **kwargs):
    """A small network that the host can load a second time, as it can those of files. `change` is done to each copy."""

    def load(disable_dynamic=False):  # the host's name
        model = getattr(networks, kind)(**kwargs)
        if change is not None:
            change(model.model.diffusion_model)
        model.cached_patcher_init = load, ()
        return model

    return load()


def shared_network(kind: str, **kwargs):
    """The same, of one network for all tests: a user's MODELs, too, are of one that was loaded once."""
    return SHARED.get((kind, *kwargs.items()), lambda: network(kind, **kwargs))


class Shared:
    """Models that tests share, since to build one takes longer than to call it. A test that leaves one changed fails."""

    def __init__(self):
        self.models, self.states, self.used = {}, {}, set()

    def get(self, key, build):
        """A clone of the model of this key, which is built when it is first asked for."""
        if key not in self.models:
            self.models[key] = build()
            self.states[key] = state_of(self.models[key])
        self.used.add(key)
        return self.models[key].clone()

    def check(self) -> None:
        """Raises AssertionError with the keys of those that are not as they were built. They are built anew."""
        used, self.used = self.used, set()
        changed = [key for key in used if state_of(self.models[key]) != self.states[key]]
        if changed:  # by a patch of weights or objects, which the host takes off when it unloads
            comfy.model_management.unload_all_models()
        changed = [key for key in changed if state_of(self.models[key]) != self.states[key]]
        for key in changed:
            del self.models[key], self.states[key]
        assert not changed, f"the test has changed the networks {changed}"


SHARED = Shared()


def state_of(model) -> list:
    """What a run could leave in a network: other modules, forwards and hooks on them, other weights."""
    modules = [*model.model.named_modules(remove_duplicate=False)]
    on = [("forward" in vars(one), [*one._forward_hooks], [*one._forward_pre_hooks]) for _, one in modules]
    values = [*model.model.parameters(), *model.model.buffers()]
    sums = [
        (value.dtype, str(value.sum(dtype=torch.float64).item())) for value in values
    ]  # as text, a NaN is equal to itself
    return [[(name, id(module)) for name, module in modules], on, sums]


def pag(model, scale=3.0, layers="auto", start=0.0, end=1.0):
    rule = PerturbationGuidance(scale, IdentityAttention(select_layers(model, layers)))
    return add_term(model, Term(rule, Schedule(start, end), "PAG"))


class Counter:
    """Counts a model's forwards and rows on a clone of it, as anything that the host calls would see them."""

    def __init__(self, model):
        self.forwards: list[tuple[int, list[int]]] = []  # (rows of the latent's batch of 1, cond_or_uncond)
        self.model = model.clone()
        self.model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "counter", self._count)

    def _count(self, executor, x, *args, **kwargs):
        options = next(arg for arg in (*args, *kwargs.values()) if isinstance(arg, dict) and "uuids" in arg)
        self.forwards.append((len(options["uuids"]), list(options["cond_or_uncond"])))
        return executor(x, *args, **kwargs)

    @property
    def rows(self) -> list[int]:
        return [rows for rows, _ in self.forwards]


def prompts(kind: str, **kwargs):
    return networks.conditioning(kind, 1, **kwargs), networks.conditioning(kind, 2, **kwargs)


def guider_of(model, positive, negative, cfg=4.0, kind=comfy.samplers.CFGGuider):
    guider = kind(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def sigmas_of(model, steps: int, scheduler="normal"):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)


def noise_like(latent, seed=0):
    return torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))


def run(guider, latent, steps=4, sampler="euler", seed=7, mask=None, sigmas=None, callback=None):
    """Sample with a guider. Same seed, same noise."""
    sigmas = sigmas_of(guider.model_patcher, steps) if sigmas is None else sigmas
    sampler = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    return guider.sample(
        noise_like(latent), latent, sampler, sigmas, denoise_mask=mask, callback=callback, disable_pbar=True, seed=seed
    )


def sample(model, kind="unet", cfg=4.0, conds=None, **kwargs):
    """Sample with the host's CFG guider on the network's default latent."""
    latent = kwargs.pop("latent", None)
    latent = networks.latent(kind) if latent is None else latent
    return run(guider_of(model, *(conds or prompts(kind)), cfg), latent, **kwargs)
