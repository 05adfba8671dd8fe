"""Models of the host's own class whose network is exact: the mean of Gaussian data given what is seen of it.

A condition's tokens are (mean, std) of Gaussians, each as likely as the others, pixel by pixel. The network gives ε, v or
the flow's velocity, and the host's own sampling makes D of it.
"""

from __future__ import annotations

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import torch

TYPES = {
    "eps": comfy.model_base.ModelType.EPS,
    "v": comfy.model_base.ModelType.V_PREDICTION,
    "flow": comfy.model_base.ModelType.FLOW,
}
if hasattr(comfy.model_base.ModelType, "V_PREDICTION_DDPM"):  # CogVideoX; not in the oldest hosts
    TYPES["vp"] = comfy.model_base.ModelType.V_PREDICTION_DDPM


def denoised(x: torch.Tensor, signal, noise, gaussians: torch.Tensor) -> torch.Tensor:
    """E[x₀ | x = signal · x₀ + noise · ε], for x₀ of the Gaussians [batch or 1, count, 2]."""
    mean, std = gaussians.to(x).reshape(*gaussians.shape, *(1 for _ in x.shape[1:])).unbind(2)  # [batch, count, …]
    x, spread = x[:, None], (signal * std) ** 2 + noise**2
    likely = (-((x - signal * mean) ** 2) / (2 * spread) - spread.log() / 2).softmax(1)
    return (likely * (signal * std**2 * x + noise**2 * mean) / spread).sum(1)


def log_probability(x: torch.Tensor, signal, noise, gaussians: torch.Tensor) -> torch.Tensor:
    """log p(x) of each sample, up to a constant of x's size, in the notation of `denoised`."""
    mean, std = gaussians.to(x).reshape(*gaussians.shape, *(1 for _ in x.shape[1:])).unbind(2)
    spread = (signal * std) ** 2 + noise**2
    each = -((x[:, None] - signal * mean) ** 2) / (2 * spread) - spread.log() / 2
    return (each.logsumexp(1) - torch.tensor(mean.shape[1]).log()).flatten(1).sum(1)


class ExactNetwork(torch.nn.Module):
    """`widen` multiplies what a condition says of its Gaussians' widths: a model that has learned less."""

    dtype = torch.float64

    def __init__(self, kind: str, sampling, widen: float):
        super().__init__()
        self.kind, self.sampling, self.widen = kind, [sampling], widen  # in a list: no submodule

    def forward(self, x, t, context=None, **kwargs):
        if not torch.is_tensor(x):  # latents of several kinds
            return [self.forward(part, t, context) for part in x]
        sigma = self.sampling[0].sigma(t).to(x).reshape(-1, *(1 for _ in x.shape[1:]))
        gaussians = context * context.new_tensor([1.0, self.widen])
        if self.kind == "flow":
            at = sigma[:, None]
            return (x - denoised(x, 1 - at, at, gaussians)) / sigma
        scale = (sigma**2 + 1) ** 0.5
        if self.kind == "vp":  # of x = (x₀ + σ n) / scale, as it is
            clean = denoised(x, 1 / scale[:, None], (sigma / scale)[:, None], gaussians)
            return (x - scale * clean) / sigma
        seen = x * scale  # the host has divided by it
        clean = denoised(seen, 1.0, sigma[:, None], gaussians)
        return (seen - clean) / sigma if self.kind == "eps" else (seen / scale - scale * clean) / sigma


class ExactModel(comfy.model_base.BaseModel):
    def extra_conds(self, **kwargs):
        shapes = kwargs.get("latent_shapes")
        more = {"latent_shapes": comfy.conds.CONDConstant(shapes)} if shapes and len(shapes) > 1 else {}
        return super().extra_conds(**kwargs) | more  # as the host's models of pictures with sound


def exact(kind: str, widen: float = 1.0):
    config = comfy.supported_models.SD15({"disable_unet_model_creation": True})
    model = ExactModel(config, TYPES[kind], device="cpu")
    model.latent_format = comfy.latent_formats.LatentFormat()
    model.diffusion_model = ExactNetwork(kind, model.model_sampling, widen)
    return comfy.model_patcher.ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def condition(*gaussians: tuple[float, float]):
    return [[torch.tensor([gaussians], dtype=torch.float64), {}]]


def signal_of(kind: str, sigma: float) -> float:
    if kind == "vp":
        return (1 + sigma**2) ** -0.5
    return 1 - sigma if kind == "flow" else 1.0


def noise_of(kind: str, sigma: float) -> float:
    return sigma * signal_of(kind, sigma) if kind == "vp" else sigma
