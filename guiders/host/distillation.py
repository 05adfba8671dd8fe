"""Distillation on the host: the guided model samples, and LoRA layers learn what it predicted.

The guided model samples as it always does, on the network that the host has loaded, with its terms, its sampler and its
schedule. The student is another copy of the network, read from the file again, since what the host loads for sampling
has no gradient and must stay as it is. That copy is let go of in the end, so nothing of the training is left on a
model.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from ...patches.host import KEY
from ...patches.host.log import LOG
from ...patches.texts import shown
from ..base import Latent
from ..distillation import Trajectories, distillation_loss, output_scale
from .attach import make_guider
from .condition_pools import PLACE
from .quirks import sampler_name
from .recorder import RECORDERS
from .training import Lora, attention_with_gradient, copies_kept, recomputed, training

KEPT = (
    "loras/distil_interrupted"  # where in the output folder an interrupted LoRA goes: the host lists it with the LoRAs
)
GUIDING = (
    "sampler_cfg_function",
    "sampler_post_cfg_function",
    "sampler_pre_cfg_function",
)  # of other packs, on a MODEL


@dataclass(frozen=True)
class Sampling:
    """How the guided model samples."""

    sampler: Any
    sigmas: Tensor
    cfg: float
    negative: list | None
    seed: int


@dataclass(frozen=True)
class Settings:
    """How the student is trained. recompute: little memory, and a third more time."""

    iterations: int
    batch: int
    learning_rate: float
    rank: int
    seed: int
    recompute: bool


@dataclass(eq=False)
class Student:
    """What a training has made so far: tensors as the host's Save LoRA takes them, and the loss of each iteration."""

    lora: dict[str, Tensor] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


class Progress:
    """The node's progress bar, over all that it does, with the host's preview where the user has that on."""

    def __init__(self, model, total: int):
        self._bar, self._total, self._done = comfy.utils.ProgressBar(total), total, 0
        self._previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def step(self, x0: Latent) -> None:
        """One more of the steps is done; it predicted `x0`, in the network's own units."""
        self._done += 1
        picture = None
        if self._previewer is not None:
            picture = self._previewer.decode_latent_to_preview_image("JPEG", x0[:1].detach())
        self._bar.update_absolute(min(self._done, self._total), self._total, picture)


def distil(model, prompts: Sequence[list], latent: Tensor, pictures: int, sampling: Sampling, settings: Settings,
           existing: str = "") -> Student:  # fmt: skip
    """A LoRA with which MODEL without its guidance predicts as it does with it.

    prompts: a conditioning of one entry each. latent: [pictures sampled together, …], of the pictures' size. existing:
    a file of the folder loras to go on from. Raises ValueError where there is nothing to distil or the network cannot
    be trained. Where it is interrupted or fails, what was learnt is in the output folder."""
    _check(model, prompts, latent, pictures, sampling)
    tensors = _load(existing) if existing else None
    steps = (len(sampling.sigmas) - 1) * math.ceil(pictures / len(latent))
    progress = Progress(model, steps + settings.iterations)
    trajectories = _sampled(model, prompts, latent, pictures, sampling, progress)
    student = Student()
    try:
        with training():
            _train(_own_copy(model), prompts, trajectories, latent[:1], settings, tensors, student, progress)
    except BaseException:
        if student.lora and all(map(math.isfinite, student.losses)):
            LOG.warning(f"Beyond CFG: what Distil Guidance has learnt until it stopped is in {_keep(student)}")
        raise
    return student


def prompts_of(conditionings: Sequence[list]) -> list[list]:
    """Every prompt by itself: each of a list, and each of those that the host's Conditioning (Combine) has joined."""
    return [[entry] for conditioning in conditionings for entry in conditioning]


def _check(model, prompts, latent, pictures: int, sampling: Sampling) -> None:
    """Raise ValueError where there is nothing to distil, where the host cannot make the copy that is
    trained, or where a value is none that can be distilled."""
    acts = any(term.acts for term in model.model_options.get(KEY, ()))
    if not acts and sampling.cfg == 1 and not any(model.model_options.get(key) for key in GUIDING):
        raise ValueError(
            "there is nothing to distil: the model has no guidance on it and cfg is 1. Connect a model that comes out of a "
            "guidance node, or set cfg and connect a negative"
        )
    if "force_deepcopy" not in inspect.signature(model.clone).parameters:
        raise ValueError("this ComfyUI cannot copy a loaded model, which training needs; use a newer one")
    if model.cached_patcher_init is None:
        raise ValueError(
            "model cannot be loaded a second time, which training needs: the node that made it does not say from which "
            "file. Load it with Load Checkpoint or Load Diffusion Model"
        )
    if not prompts:
        raise ValueError("positive has no prompt; connect one at least")
    for number, ((_, about),) in enumerate(prompts, 1):
        wrong = [key for key in (*PLACE, "start_percent", "end_percent") if about.get(key) is not None]
        if wrong:
            raise ValueError(
                f"prompt {number} of positive has {', '.join(wrong)}; a prompt that acts in a part of the picture or of "
                f"sampling, or with a control, cannot be distilled. Connect plain prompts"
            )
    if pictures < len(prompts):
        raise ValueError(
            f"pictures is {pictures} and positive has {len(prompts)} prompts; each needs one picture at least"
        )
    if latent.is_nested:
        raise ValueError("this latent packs several, such as video and sound, which cannot be distilled together")
    if sampler_name(sampling.sampler).endswith("cfg_pp"):
        raise ValueError(
            f"the sampler is {sampler_name(sampling.sampler)}, which needs the negative's prediction in each step, and the "
            f"student has none. Choose {sampler_name(sampling.sampler).removesuffix('_cfg_pp')}"
        )


# ----------------------------------------------------------------------------------------------------------- the teacher


def _sampled(model, prompts, latent: Tensor, pictures: int, sampling: Sampling, progress: Progress) -> Trajectories:
    """Let MODEL sample so many pictures, of the prompts in turn, and note what it was asked and predicted."""
    found, now = Trajectories(), 0

    def listen(executor, x, timestep, model_options=None, seed=None):
        guided = executor(x, timestep, model_options, seed)
        found.add(now, x, timestep.expand(len(x)).tolist(), guided)
        return guided

    listening = model.clone()
    listening.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, f"{KEY}_distillation", listen)
    latent = comfy.sample.fix_empty_latent_channels(listening, latent)
    with torch.inference_mode():
        for number, begin in enumerate(range(0, pictures, len(latent))):
            now, seed = number % len(prompts), (sampling.seed + number) % 2**64
            start = latent[: pictures - begin]
            guider = make_guider(listening, prompts[now], sampling.negative, sampling.cfg)
            guider.sample(
                comfy.sample.prepare_noise(start, seed), start, sampling.sampler, sampling.sigmas, disable_pbar=True,
                seed=seed, callback=lambda step, x0, x, total: progress.step(x0),
            )  # fmt: skip
    return found


# ----------------------------------------------------------------------------------------------------------- the student


def _own_copy(model):
    """MODEL without its guidance, and with weights of its own. To be called where no inference mode is on, since
    weights that were made in it have no gradient."""
    plain = model.clone()
    for key in (KEY, RECORDERS):
        plain.model_options.pop(key, None)
    plain.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    plain.set_additional_models(KEY, [])  # weak models
    plain = plain.clone(force_deepcopy=True)
    plain.model.requires_grad_(False)
    return plain


def _train(model, prompts, trajectories: Trajectories, latent: Tensor, settings: Settings, existing, student: Student,
           progress: Progress) -> None:  # fmt: skip
    """Train LoRA layers on `model`, a copy that nobody else has. `student` has what was learnt, also after an error."""
    lora = Lora(model, settings.rank, settings.seed, existing)
    with lora.on():
        guider = comfy.samplers.CFGGuider(model)
        guider.inner_set_conds({"positive": [_with_gradient(entry) for ((entry),) in prompts]})
        latent = comfy.sample.fix_empty_latent_channels(model, _normal(latent)).repeat(
            settings.batch, *[1] * (latent.ndim - 1)
        )
        trainer = Trainer(lora, trajectories, settings, student, progress)
        try:
            guider.sample(
                torch.zeros_like(latent), latent, trainer, torch.ones(2), disable_pbar=True, seed=settings.seed
            )
        finally:
            if student.losses:
                student.lora = lora.tensors()


class Trainer(comfy.samplers.Sampler):
    """What the host runs as a sampler, so that it loads the model and makes its conditionings ready as it does to
    sample."""

    def __init__(
        self, lora: Lora, trajectories: Trajectories, settings: Settings, student: Student, progress: Progress
    ):
        self._lora, self._trajectories, self._settings = lora, trajectories, settings
        self._student, self._progress = student, progress

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, mask=None, disable_pbar=False):  # noqa: ARG002
        """All iterations; `latent_image` comes back as it is."""
        model, settings = model_wrap.inner_model, self._settings
        network = Network(model, model_wrap.conds["positive"], extra_args["model_options"])
        optimizer = torch.optim.AdamW(self._lora.parameters, lr=settings.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.iterations)
        half = model.get_dtype_inference() == torch.float16  # whose small gradients would be 0
        scaler = GradScaler(noise.device.type, enabled=half)
        generator = torch.Generator().manual_seed(settings.seed % 2**63)
        keeping = recomputed(model.diffusion_model) if settings.recompute else copies_kept()
        with keeping:
            for _ in range(settings.iterations):
                comfy.model_management.throw_exception_if_processing_interrupted()
                x, sigma, prompts, guided = self._trajectories.draw(settings.batch, generator)
                optimizer.zero_grad()
                total = 0.0
                for rows in network.batches(x, sigma, prompts, guided):
                    loss, denoised = self._learn(model, scaler, len(x), *rows)
                    total += loss
                self._student.losses.append(total)
                if not math.isfinite(total):
                    raise ValueError(
                        f"the loss is {total} in iteration {len(self._student.losses)}; choose a lower learning_rate"
                    )
                scaler.step(optimizer)
                scaler.update()
                schedule.step()
                self._progress.step(denoised)
        return latent_image

    @staticmethod
    def _learn(
        model, scaler, size: int, x: Latent, sigma: Tensor, guided: Latent, conditions: dict
    ) -> tuple[float, Latent]:
        """(the part of these rows in the loss of a batch of so many, what the student predicts for them). Adds to
        gradients."""
        scale = output_scale(lambda out, x: model.model_sampling.calculate_denoised(sigma, out, x), x)
        try:
            denoised = model.apply_model(x, sigma, **conditions)
            loss = distillation_loss(denoised, guided, scale) * len(x) / size
            scaler.scale(loss).backward()
        except comfy.model_management.OOM_EXCEPTION:
            raise
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(f"{type(model).__name__} cannot be trained on this host: {error}") from error
        return loss.item(), denoised.detach()


class Network:
    """The student's network in the host's hands: its conditionings, made ready, and its options."""

    def __init__(self, model, entries: list[dict], options: dict):
        self._model, self._entries = model, entries
        self._options = options.get("transformer_options", {}) | {
            "optimized_attention_override": attention_with_gradient
        }

    def batches(self, x: Latent, sigma: Tensor, prompts: list[int], guided: Latent):
        """The rows in groups whose prompts the host would put into one batch: (x, σ, guided, what apply_model
        takes)."""
        device = self._model.current_patcher.load_device
        x, sigma, guided = x.to(device), sigma.to(device), guided.to(device)
        parts: list[Any] = [
            comfy.samplers.get_area_and_mult(self._entries[prompt], x[at : at + 1], sigma[at : at + 1])
            for at, prompt in enumerate(prompts)
        ]
        left = [*range(len(parts))]
        while left:
            group = [at for at in left if comfy.samplers.can_concat_cond(parts[left[0]], parts[at])]
            left = [at for at in left if at not in group]
            conditions = comfy.samplers.cond_cat([parts[at].conditioning for at in group])
            of_call = {"cond_or_uncond": [0], "uuids": [parts[group[0]].uuid], "sigmas": sigma[group]}
            yield x[group], sigma[group], guided[group], conditions | {"transformer_options": self._options | of_call}


def _with_gradient(entry: list) -> list:
    """A prompt whose tensors can stand in a backward pass, which those that nodes made in inference mode cannot."""
    return [_normal(entry[0]), {key: _normal(value) for key, value in entry[1].items()}]


def _normal(value):
    if isinstance(value, Tensor):
        return value.clone()
    return [*map(_normal, value)] if type(value) is list else value


# ------------------------------------------------------------------------------------------------------------------ files


def _load(name: str) -> dict[str, Tensor]:
    """The tensors of a file in the folder `loras`."""
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        known = ", ".join(folder_paths.get_filename_list("loras")) or "no files"
        raise ValueError(
            f'existing_lora is "{shown(name)}", which is not there. The folder loras has: {shown(known, 1000)}'
        )
    tensors: Any = comfy.utils.load_torch_file(path, safe_load=True)
    return tensors


def _keep(student: Student) -> Path:
    """Write what was learnt into the output folder, with the number of iterations in its name, where the host's Train
    LoRA reads it."""
    folder, name, counter, *_ = folder_paths.get_save_image_path(KEPT, folder_paths.get_output_directory())
    path = Path(folder, f"{name}_{counter:05}_{len(student.losses)}_steps_.safetensors")
    comfy.utils.save_torch_file(student.lora, str(path))
    return path
