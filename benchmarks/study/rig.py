"""The host's side of the study: one model in this process, loaded by the host's own loader nodes."""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ...tools.imports import with_host
from ..provenance import named
from .methods import Method
from .suites import Prompt

EMPTY = ""
DECODED = 1  # pictures at a time: more take longer on a CPU


@dataclass
class Sampled:
    """The pictures of a cell and what they took; counts of calls are of all networks together."""

    pictures: np.ndarray  # [n, height, width, 3] of 0…1
    forwards: float = 0.0  # of a network, per step of the sampler
    rows: float = 0.0  # of those forwards, per step and picture
    cpu_seconds: float = 0.0  # of this process, sampling alone
    wall_seconds: float = 0.0


def noise_of(shape: Sequence[int], seed: int, pictures: Iterable[int]) -> torch.Tensor:
    """N(0, 1) [pictures, *shape]: that of a picture depends on seed and number alone, not on batch or method."""

    def one(picture: int) -> torch.Tensor:
        key = hashlib.blake2b(f"{seed} {picture}".encode(), digest_size=8).digest()
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1))

    return torch.stack([one(picture) for picture in pictures])


@dataclass
class Files:
    """The files of a model, for the host's loader nodes. What lies in a folder called diffusion_models or text_encoders is
    loaded as such, all else as a checkpoint."""

    checkpoint: Path
    clip: Path | None = None  # a checkpoint here is asked for its text encoder
    clip_type: str = "stable_diffusion"
    vae: Path | None = None
    # What methods need besides: "weak", "smaller", "smaller and weak" and "own pictures" are a model to move away from, or
    # a LoRA that makes one; "classifiers", one for each half of the latents; "snapshots" of training, from early to late.
    others: dict[str, tuple[Path, ...]] = field(default_factory=dict)


@dataclass
class Count:
    forwards: int = 0
    rows: int = 0


@dataclass(eq=False)
class Rig:
    """The host in this process, with one model loaded by its own loader nodes."""

    files: Files
    steps: int
    sampler: str
    scheduler: str
    width: int
    height: int
    batch: int
    negative: str = EMPTY
    pool_texts: tuple[str, ...] = ()
    conditional: bool = True
    compute: str = "default"  # dtype, as the host's ModelComputeDtype sets it
    decode: Callable | None = None  # latents → pictures [n, 3, h, w], in place of a slow VAE that does the same
    layers: str = "auto"  # of PAG and SEG
    counted: Count = field(default_factory=Count)
    now: Sequence[Prompt] = ()  # those of the batch that is being sampled

    def __post_init__(self):
        import nodes

        self.model, self.clip, self.vae = self._loaded(self.files.checkpoint)
        if self.files.clip:
            self.clip = self._loaded(self.files.clip)[1]
        if self.files.vae:
            (self.vae,) = nodes.VAELoader().load_vae(self._named("vae", self.files.vae))
        for part, option in ((self.clip, "clip"), (self.vae, "vae")):
            if part is None:
                raise SystemExit(f"{self.files.checkpoint.name} has none of its own: give one with --{option}.")
        self.model = self._counting(self.model)
        self._encoded: dict[str, list] = {}

    def names(self, needs: Sequence[str]) -> str:
        """The files that a method needs, by name and content."""
        return ", ".join(named(path) for need in needs for path in self.files.others.get(need, ()))

    @functools.cache  # noqa: B019  a rig lives as long as its process
    def file_model(self, kind: str):
        """The MODEL of a file; of a LoRA, this model with it."""
        import nodes

        (path,) = self.files.others[kind]
        if "lora" not in path.name:
            return self._counting(self._loaded(path)[0])
        return nodes.LoraLoaderModelOnly().load_lora_model_only(self.model, self._named("loras", path), 1.0)[0]

    @functools.cache  # noqa: B019
    def degraded(self, model, degradation: str, amount: float, seed: int):
        return self.with_node("BeyondCFGDegradedModel", model, None, degradation=degradation, amount=amount, seed=seed)

    @functools.cache  # noqa: B019
    def average(self, ema: float):
        """The MODEL averaged over its snapshots, whose metadata says when they were kept and of what they are averages."""
        from safetensors import safe_open

        lines = []
        for path in self.files.others["snapshots"]:
            with safe_open(path, "pt") as file:
                about = file.metadata()
            lines.append(f"{self._named('diffusion_models', path)} @ {about['step']} @ {about['sigma_rel']}")
        model = self.with_node("BeyondCFGPostHocEMA", None, None, snapshots="\n".join(lines), ema=ema)
        return self._counting(model)

    def classifier_rule(self, scale: float):
        from ...guiders.classifier import NoisyClassifierGuidance

        return NoisyClassifierGuidance(PromptClassifier(self, self.files.others["classifiers"]), scale)

    @functools.cached_property
    def pool(self) -> list:
        """The prompts that ICG draws from, joined as the host's Conditioning (Combine) does."""
        return [row for text in self.pool_texts for row in self.encode(text)]

    def _named(self, folder: str, path: Path) -> str:
        """The name that the host's loaders know the file by."""
        import folder_paths

        folder_paths.add_model_folder_path(folder, str(path.resolve().parent), is_default=True)
        return path.name

    def _loaded(self, path: Path) -> tuple:
        """(MODEL, CLIP, VAE) of a checkpoint; of a file in a folder of diffusion models, or of text encoders, that only."""
        import nodes

        if path.resolve().parent.name in ("diffusion_models", "unet"):
            name = self._named("diffusion_models", path)
            return nodes.UNETLoader().load_unet(name, "default")[0], None, None
        if path.resolve().parent.name in ("text_encoders", "clip"):
            name = self._named("text_encoders", path)
            return None, nodes.CLIPLoader().load_clip(name, self.files.clip_type)[0], None
        return nodes.CheckpointLoaderSimple().load_checkpoint(self._named("checkpoints", path))

    def _counting(self, model):
        """A clone of MODEL in the study's dtype, whose forwards are counted, the rows in them too."""
        from comfy.patcher_extension import WrappersMP

        def count(executor, x, *args, **kwargs):
            self.counted.forwards += 1
            self.counted.rows += x.shape[0]
            return executor(x, *args, **kwargs)

        from comfy_extras.nodes_model_advanced import ModelComputeDtype

        (model,) = ModelComputeDtype().patch(model, self.compute)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "quality", count)
        return model

    def with_node(self, node_id: str, model, strength: float | None, **settings):
        """MODEL by one of the pack's own nodes, at the node's defaults but for what is given."""
        from ...nodes import reuse, terms, weaker_models

        known = [*terms.NODES, *weaker_models.NODES, *reuse.NODES]
        found = next(one for one in known if one.about.node_id == node_id)
        given = {one.id: one.default for one in found.inputs if getattr(one, "default", None) is not None}
        given |= {} if model is None else {"model": model}
        given |= {} if strength is None else {found.about.strength: strength}
        return found.execute(**{**given, **settings}).result[0]

    def with_rule(self, model, rule, title: str):
        from ...guiders.host import Term, add_term
        from ...guiders.schedule import Schedule

        return add_term(model, Term(rule, Schedule(), title))

    def encode(self, text: str) -> list:
        import nodes

        if text not in self._encoded:
            with torch.inference_mode():
                self._encoded[text] = nodes.CLIPTextEncode().encode(self.clip, text)[0]
        return self._encoded[text]

    def sample(
        self, method: Method, strength: float, prompts: Sequence[Prompt], seed: int, tick: Callable | None = None
    ) -> Sampled:
        """One picture for each prompt; picture i has the noise of number i of the seed. tick: hears after each batch how
        many pictures there are."""
        model, weight = method.build(self, self.model, strength)
        if not self.conditional:
            prompts = [Prompt(EMPTY, prompt.labels) for prompt in prompts]
        for text in dict.fromkeys([*(prompt.text for prompt in prompts), self.negative]):
            self.encode(text)
        # Of one picture, since the host splits a batch that its free memory is too small for.
        self.counted.forwards = self.counted.rows = 0
        steps = self._latent(model, weight, prompts, [0], seed)[1]
        forwards, rows = self.counted.forwards / steps, self.counted.rows / steps
        pictures, cpu, wall = [], 0.0, 0.0
        for chosen in self._batches([prompt.text for prompt in prompts]):
            started = time.process_time(), time.perf_counter()
            latent, _ = self._latent(model, weight, prompts, chosen, seed)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            cpu, wall = cpu + time.process_time() - started[0], wall + time.perf_counter() - started[1]
            pictures.append(self._decoded(latent).float().cpu().numpy().clip(0, 1))
            if tick is not None:
                tick(sum(map(len, pictures)))
        return Sampled(np.concatenate(pictures), forwards, rows, cpu, wall)

    def _decoded(self, latent: torch.Tensor) -> torch.Tensor:
        """[n, height, width, 3]"""
        with torch.inference_mode():
            if self.decode is not None:
                return self.decode(self.model.model.process_latent_in(latent)).permute(0, 2, 3, 1)
            return torch.cat([self.vae.decode(few) for few in latent.split(DECODED)])

    def _batches(self, texts: list[str]) -> list[list[int]]:
        """Numbers of pictures that are sampled together: their prompts must have one shape."""
        batches: list[list[int]] = []
        for at, text in enumerate(texts):
            last = batches[-1] if batches else []
            if last and len(last) < self.batch and (texts[last[0]] == text or self._alike(texts[last[0]], text)):
                last.append(at)
            else:
                batches.append([at])
        return batches

    def _alike(self, one: str, other: str) -> bool:
        one, other = self.encode(one), self.encode(other)
        if len(one) != 1 or len(other) != 1 or one[0][0].shape != other[0][0].shape:
            return False
        (first, second) = one[0][1], other[0][1]
        return set(first) == set(second) <= {"pooled_output"}

    def _conditioning(self, texts: list[str]) -> list:
        """The prompts of a batch, one for each picture."""
        if len(set(texts)) == 1:
            return self.encode(texts[0])
        rows = [self.encode(text)[0] for text in texts]
        extra = {}
        if "pooled_output" in rows[0][1]:
            pooled = [row[1]["pooled_output"] for row in rows]
            extra["pooled_output"] = None if pooled[0] is None else torch.cat(pooled)
        return [[torch.cat([row[0] for row in rows]), extra]]

    def _latent(self, model, weight: float, prompts: Sequence[Prompt], chosen: list[int], seed: int):
        """(latent [pictures, …], steps)"""
        import comfy.sample
        import comfy.samplers

        from ...guiders.host import make_guider

        self.now = [prompts[at] for at in chosen]
        empty = torch.zeros(len(chosen), 4, self.height // 8, self.width // 8)
        empty = comfy.sample.fix_empty_latent_channels(model, empty)
        noise = noise_of(empty.shape[1:], seed, chosen)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), self.scheduler, self.steps)
        negative = self.encode(self.negative) if weight != 1.0 else None
        guider = make_guider(model, self._conditioning([prompt.text for prompt in self.now]), negative, weight)
        # What a guidance draws, it draws by the sampler's seed and the place in the batch: each batch has its own seed.
        own = int.from_bytes(hashlib.blake2b(f"{seed} batch {chosen[0]}".encode(), digest_size=4).digest(), "big")
        with torch.inference_mode():
            sampler = comfy.samplers.sampler_object(self.sampler)
            latent = guider.sample(noise, empty, sampler, sigmas, disable_pbar=True, seed=own)
        return latent, len(sigmas) - 1


class PromptClassifier:
    """log p(prompt | x; σ) of the batch that the rig samples: a classifier for each half of its labels, of colour and
    digit together."""

    def __init__(self, rig: Rig, files: Sequence[Path]):
        from safetensors.torch import load_file

        from ...guiders.noisy_network import NoisyNetwork

        self.rig, self.networks = rig, [NoisyNetwork(load_file(path)) for path in files]

    def begin(self):
        networks = [network.to(torch.device("cpu"), torch.float32) for network in self.networks]
        with torch.inference_mode(False):  # they stand in a backward pass
            labels = torch.tensor([prompt.labels for prompt in self.rig.now])  # [n, 4]
            classes = labels[:, ::2] * 10 + labels[:, 1::2]  # of both halves

        def log_probability(step):
            found = [network(step.x, step.noise, step.signal) for network in networks]
            return sum(one.gather(1, wanted[:, None])[:, 0] for one, wanted in zip(found, classes.T, strict=True))

        return log_probability


def start_host(folder: Path | None, threads: int) -> str:
    """Make the host importable, the one in `folder` or that COMFYUI_PATH names; its version."""
    place = folder or os.environ.get("COMFYUI_PATH")
    if place is None:
        raise SystemExit("say which ComfyUI with --comfyui, or run this by  python dev.py benchmark")
    arguments = [] if torch.cuda.is_available() else ["--cpu", "--use-split-cross-attention"]  # a fifth faster
    try:
        version = with_host(place, *arguments)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
    torch.set_num_threads(threads)
    return version
