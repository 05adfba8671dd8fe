"""Classifiers of latents that autograd can go back through.

Where the host loads models in inference mode their weights have no place in a backward pass. So each run holds copies
of them. The copies of VAE and CLIP are made before the diffusion model is loaded, which then finds less room, and are
freed with the run. A network of noisy latents is small: its copy is made where the latents are, when the first ones come.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import comfy.model_management
import torch
from torch import Tensor

from ....patches.host.log import warn
from ...base import Step
from ...classifier import LogProbability
from ...noisy_network import ABOUT
from .files import load_network
from .heads import Head

ENCODERS = ("network.encoder.", "network.taesd_encoder.", "network.quant_conv.")  # what decoding has no use for


class PictureClassifier:
    """log p(y | latent) of clean latents of MODEL. Raises ValueError where the parts do not fit."""

    def __init__(self, model, vae, clip_vision, head: Head):
        self.format, self.vae, self.clip_vision, self.head = (
            model.get_model_object("latent_format"),
            vae,
            clip_vision,
            head,
        )
        if vae.first_stage_model is None:
            raise ValueError("the VAE is empty: its checkpoint has none. Load one from a file of its own")
        if vae.latent_dim != 2 or self.format.latent_dimensions != 2:
            raise ValueError("works on pictures; this VAE or model is of another kind, such as video or sound")
        if vae.latent_channels != self.format.latent_channels:
            raise ValueError(
                f"the VAE has {vae.latent_channels} channels and the model's latents have "
                f"{self.format.latent_channels}. Use a VAE of the model's family"
            )

    def begin(self) -> LogProbability:
        vae, vision = self.vae, self.clip_vision
        with torch.inference_mode(False):
            decode = differentiable(vae.first_stage_model, "decode", vae.device)
            embed = differentiable(vision.model, "forward", vision.load_device)
            head, form = self.head.to(vision.load_device), copy.copy(self.format)
            for name, value in vars(form).items():
                if isinstance(value, Tensor):
                    setattr(form, name, value.clone())

        @checked
        def log_probability(step: Step) -> Tensor:
            latent = form.process_out(step.x)
            pixels = vae.process_output(decode((latent.to(vae.device, vae.vae_dtype),)).float())  # [batch, 3, h, w]
            embedding = embed((preprocess(pixels.to(vision.load_device), vision),))[2]  # [batch, features]
            return head.log_probability(embedding.float()).to(step.x)

        return log_probability


class LatentClassifier:
    """log p(y | x; σ) of noisy latents, by the network in a file of the folder `classifiers`; `label` is as of a head.
    Raises ValueError where the file does not fit MODEL."""

    def __init__(self, model, name: str, label: str):
        form = model.get_model_object("latent_format")
        if form.latent_dimensions != 2:
            raise ValueError("works on pictures; this model is of another kind, such as video or sound")
        self.network, self.wanted = load_network(form.latent_channels, name, label)

    def begin(self) -> LogProbability:
        copy_to = functools.cache(self.network.to)

        @checked
        def log_probability(step: Step) -> Tensor:
            network = copy_to(step.x.device, step.x.dtype)
            return network(step.x, step.noise, step.signal)[:, self.wanted]

        return log_probability


def checked(log_probability: LogProbability) -> LogProbability:
    """Refuses what is no picture's latent, and says in the log where the first numbers of a run are not finite."""
    first = True

    @functools.wraps(log_probability)
    def of(step: Step) -> Tensor:
        nonlocal first
        if step.x.ndim != 4:
            raise ValueError(f"{ABOUT.name}: it needs the latents of pictures, not of shape {[*step.x.shape]}")
        found = log_probability(step)
        if first and not found.isfinite().all():
            warn(f"{ABOUT.name} has no effect where its classifier gives no finite number, as now")
        first = False
        return found

    return of


def preprocess(picture: Tensor, vision) -> Tensor:
    """[batch, 3, h, w] from 0 to 1 → what CLIP sees: the whole picture. The host's own also rounds to 8 bits, which has
    no gradient."""
    size = (vision.image_size, vision.image_size)
    if picture.shape[-2:] != size:
        picture = torch.nn.functional.interpolate(picture, size=size, mode="bicubic", antialias=True)
    mean, std = (picture.new_tensor(values).view(3, 1, 1) for values in (vision.image_mean, vision.image_std))
    return (picture - mean) / std


def differentiable(network: torch.nn.Module, method: str, device: torch.device) -> Callable[..., Tensor]:
    """A method of a network of the host's, with weights that autograd takes: copies of those it does not."""
    called = _Called(network, method)
    own = {**dict(called.named_parameters()), **dict(called.named_buffers())}
    own = {name: tensor.detach() for name, tensor in own.items() if not name.startswith(ENCODERS)}
    copied = {name for name, tensor in own.items() if tensor.is_inference() or tensor.device != device}
    if not comfy.model_management.is_device_cpu(device):
        comfy.model_management.free_memory(sum(own[name].nbytes for name in copied), device)
    own |= {name: own[name].to(device, copy=True) for name in copied}
    return functools.partial(torch.func.functional_call, called, own)


class _Called(torch.nn.Module):
    """A network whose forward is a method of it."""

    def __init__(self, network: torch.nn.Module, method: str):
        super().__init__()
        self.network, self._method = network, method

    def forward(self, *args, **kwargs):
        return getattr(self.network, self._method)(*args, **kwargs)
