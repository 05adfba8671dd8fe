"""Trains the demo model: a small Flux that draws two coloured digits, and the judge that reads them.

    python dev.py benchmark train-digits --out demo --minutes 25                 # the same command goes on where it was
    python dev.py benchmark train-digits --out demo0 --minutes 25 --dropout 0    # never sees an empty prompt

    diffusion_models/demo_flux.safetensors          the average of the last tenth of training, for Load Diffusion Model
    diffusion_models/demo_flux_025.safetensors      the same at 25 % of training: a weak version (also 010 and 050)
    diffusion_models/demo_flux_ema_010.safetensors  at the end, averaged over more of training, for Post-hoc EMA
    text_encoders/demo_text.ckpt, vae/demo_vae.ckpt   made by hand, for Load CLIP (type stable_diffusion) and Load VAE
    diffusion_models/snapshots/demo_flux_STEP_005.safetensors   at each reading of the judge: averages of σ_rel 0.05,
                                                    and _010: of 0.10, for Post-hoc EMA; see log.jsonl for how good each is
    judge.safetensors, log.jsonl, state.pt          the judge, what happened, and where to go on

Seconds count training and its readings, not what comes before. With --steps alone (and --minutes large) a run is the same
again from its seed on the same machine; a limit of minutes also bends the learning rate.

The network has 1 double and 6 single blocks of 128 channels, 2.4 M parameters in fp16, 64 tokens for 128 x 128 pixels.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...tools import tiny_models
from .data import COLOUR_NAMES, DIGIT_NAMES, Digits, prompt_of

RECIPE = 2  # raise it when what is trained changes: a state of an older recipe is then refused
FRACTIONS = (0.1, 0.25, 0.5)  # of training, where weak versions are kept
AVERAGES = {0.05: 16.97, 0.10: 6.94}  # σ_rel -> γ, see guiders/post_hoc_ema.py

# ------------------------------------------------------------------------------------------------------------- latents
# A picture is seen as the means of its 4x4 pixels, and those in 2x2 cells: mean, and differences across, down, crosswise.
# So each of the 16x16 latent pixels has 12 numbers for 3 colours and 4 places; channels 12-15 are 0.

MIDDLE, MEANS, DETAILS = 0.4, 0.3, 0.15  # the grey that is 0, and what is 1 in the latent
# [kind, place]; its inverse is 4 times its transpose
HAAR = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 4.0
SCALE = torch.tensor([MEANS, DETAILS, DETAILS, DETAILS])
TO_LATENT = torch.kron(HAAR / SCALE[:, None], torch.eye(3))  # [kind * colour, place * colour]
TO_PLACES = torch.kron((4 * HAAR.T * SCALE).contiguous(), torch.eye(3))  # its inverse
SHARPEN = torch.tensor([-0.25, 1.5, -0.25])  # against the blur of the decoder's first enlargement
BLUR = torch.tensor([0.25, 0.5, 0.25])


def encode(pictures: Tensor) -> Tensor:
    """[n, 3, side, side] in 0 ... 1 -> [n, 16, 16, 16], as the network sees it."""
    small = F.avg_pool2d(pictures, pictures.shape[-1] // 32) - MIDDLE  # [n, 3, 32, 32]
    places = small.reshape(-1, 3, 16, 2, 16, 2).permute(0, 3, 5, 1, 2, 4).reshape(-1, 12, 16, 16)
    return F.pad(torch.einsum("kp,nphw->nkhw", TO_LATENT.to(places), places), (0, 0, 0, 0, 0, 4))


def decode(latents: Tensor) -> Tensor:
    """[n, 16, 16, 16] -> [n, 3, 128, 128] in 0 ... 1, as demo_vae.ckpt does."""
    places = torch.einsum("pk,nkhw->nphw", TO_PLACES.to(latents), latents[:, :12]).reshape(-1, 2, 2, 3, 16, 16)
    small = filtered(filtered(places.permute(0, 3, 4, 1, 5, 2).reshape(-1, 3, 32, 32), SHARPEN), BLUR)
    for _ in range(2):
        small = filtered(F.interpolate(small, scale_factor=2), BLUR)
    return (small + MIDDLE).clip(0, 1)


def filtered(pictures: Tensor, line: Tensor) -> Tensor:
    kernel = torch.outer(line, line).to(pictures).expand(3, 1, 3, 3)
    return F.conv2d(pictures, kernel, padding=1, groups=3)


def shifted(kernel: Tensor, place: int) -> Tensor:
    """Of SHARPEN: [place of the output, cell of the kernel, place in that cell], for one axis."""
    out = torch.zeros(3, 2)
    for tap in range(3):
        at = place + tap - 1  # -1 ... 2, in cells of two
        out[at // 2 + 1, at % 2] += kernel[tap]
    return out


def vae() -> dict[str, Tensor]:
    """A TAESD that does what encode and decode do. Its input is a tenth of the latent: nothing reaches its clamp."""
    w = tiny_models.Weights(0)
    w["vae_scale"], w["vae_shift"] = torch.tensor(0.03611), torch.tensor(0.1159)  # the host's own for Flux, scale / 10
    offset = 3.0  # ReLU leaves everything as it is

    axis = torch.stack([shifted(SHARPEN, place) for place in range(2)])  # [to, cell, from]
    places = torch.einsum("axc,byd->abcdxy", axis, axis).reshape(4, 4, 3, 3)  # [to, from, 3, 3], rows first
    first = torch.zeros(64, 16, 3, 3)
    sharp = torch.einsum("tfxy,cd->tcfdxy", places, torch.eye(3)).reshape(12, 12, 3, 3)
    first[:12, :12] = 10 * torch.einsum("tfxy,fk->tkxy", sharp, TO_PLACES)
    w.layer("taesd_decoder.1", first, offset * (torch.arange(64) < 13).float())  # channel 12 is the offset itself
    for i in 3, 4, 5, 8, 9, 10, 13, 14, 15, 18:
        tiny_models.idle_block(w, f"taesd_decoder.{i}")

    half = torch.tensor([[0.0, 0.5, 0.5], [0.5, 0.5, 0.0]]) / 2  # the tents around the two places of a cell
    tents = torch.einsum("ax,by->abxy", half, half).reshape(4, 3, 3)
    join = torch.zeros(64, 64, 3, 3)
    for place in range(4):
        for colour in range(3):
            join[colour, 3 * place + colour] = tents[place]
    join[3, 12] = torch.outer(BLUR, BLUR)
    keep = torch.diag((torch.arange(64) < 4).float())
    w["taesd_decoder.7.weight"] = join
    w["taesd_decoder.12.weight"] = w["taesd_decoder.17.weight"] = tiny_models.smooth(keep)
    last = torch.zeros(3, 64, 3, 3)
    last[:, :3, 1, 1], last[:, 3, 1, 1] = torch.eye(3), -1
    w.layer("taesd_decoder.19", last, torch.full((3,), MIDDLE))

    quarter = torch.zeros(3, 3)
    quarter[1:, 1:] = 0.25
    three = torch.diag((torch.arange(64) < 3).float())
    centre = torch.zeros(3, 3)
    centre[1, 1] = 1
    w.layer("taesd_encoder.0", torch.eye(64, 3)[:, :, None, None] * centre)
    for i in 1, 3, 4, 5, 7, 8, 9, 11, 12, 13:
        tiny_models.idle_block(w, f"taesd_encoder.{i}")
    w["taesd_encoder.2.weight"] = w["taesd_encoder.6.weight"] = three[:, :, None, None] * quarter
    split = torch.zeros(64, 64, 3, 3)
    for place in range(4):
        for colour in range(3):
            split[3 * place + colour, colour, 1 + place // 2, 1 + place % 2] = 1
    w["taesd_encoder.10.weight"] = split
    out = torch.zeros(16, 64, 3, 3)
    out[:12, :12, 1, 1] = TO_LATENT / 10
    w.layer("taesd_encoder.14", out, -MIDDLE * out[:, :12, 1, 1].sum(1))
    return tiny_models.half(w)


# ---------------------------------------------------------------------------------------------------------------- text

WIDTH, TOKENS = 768, 8  # start, four words, end three times: the host takes the length from the file, as for LongCLIP
START, END = 49406, 49407
NUMBERS = 736, 1901, 1746, 4481, 1579, 5848, 637, 1237, 2097, 2721, 3127, 4093, 5757, 7910, 7330  # CLIP's, of our words
TOKEN_OF = dict(zip(COLOUR_NAMES + DIGIT_NAMES, NUMBERS, strict=True))


def text_encoder() -> dict[str, Tensor]:
    """A CLIP-L of 8 tokens, without attention: a token is its vector plus that of its place."""
    tensors = tiny_models.text_encoder_l(0)
    zero = tiny_models.zeros(WIDTH, WIDTH)
    for name in "v_proj", "out_proj":
        tensors[f"text_model.encoder.layers.0.self_attn.{name}.weight"] = zero
    tensors["text_model.embeddings.position_embedding.weight"] = torch.randn(
        TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)
    )
    return tiny_models.half(tensors)


class Prompts:
    """What the host's CLIP Text Encode gives, for training: [n, 8, 768] and [n, 768] pooled."""

    def __init__(self, device):
        tensors = text_encoder()
        self.embedding = tensors["text_model.embeddings.token_embedding.weight"]
        self.place = tensors["text_model.embeddings.position_embedding.weight"].float()
        self.device, self.known = device, {}

    def _tokens(self, prompt: str) -> tuple[Tensor, Tensor]:
        if prompt not in self.known:
            numbers = [START, *map(TOKEN_OF.get, prompt.split()), *[END] * TOKENS][:TOKENS]
            rows = F.layer_norm(self.embedding[numbers].float() + self.place, (WIDTH,))
            self.known[prompt] = rows, rows[numbers.index(END)]
        return self.known[prompt]

    def __call__(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        rows, pooled = zip(*map(self._tokens, prompts), strict=True)
        return torch.stack(rows).to(self.device), torch.stack(pooled).to(self.device)


# ------------------------------------------------------------------------------------------------------------- network

HIDDEN, GRID = 128, 8


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(HIDDEN))


class Embedder(nn.Module):
    def __init__(self, inputs: int):
        super().__init__()
        self.in_layer, self.out_layer = nn.Linear(inputs, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


def tree(**parts) -> nn.Module:
    module = nn.Module()
    for name, part in parts.items():
        module.add_module(name, part)
    return module


def norms() -> nn.Module:
    return tree(query_norm=Scale(), key_norm=Scale())


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, (HIDDEN,), eps=1e-6) * (1 + scale) + shift


class Stream(nn.Module):
    """One side of a double block: the picture's or the text's."""

    def __init__(self):
        super().__init__()
        self.mod = tree(lin=nn.Linear(HIDDEN, 6 * HIDDEN))
        self.attn = tree(qkv=nn.Linear(HIDDEN, 3 * HIDDEN), proj=nn.Linear(HIDDEN, HIDDEN), norm=norms())
        self.mlp = nn.Sequential(nn.Linear(HIDDEN, 4 * HIDDEN), nn.GELU("tanh"), nn.Linear(4 * HIDDEN, HIDDEN))


class Single(nn.Module):
    def __init__(self):
        super().__init__()
        self.modulation = tree(lin=nn.Linear(HIDDEN, 3 * HIDDEN))
        self.linear1, self.linear2 = nn.Linear(HIDDEN, 7 * HIDDEN), nn.Linear(5 * HIDDEN, HIDDEN)
        self.norm = norms()


class Network(nn.Module):
    """Flux, with one head. Parameters are named as in its files."""

    def __init__(self, singles: int = 6):
        super().__init__()
        self.img_in, self.txt_in = nn.Linear(64, HIDDEN), nn.Linear(WIDTH, HIDDEN)
        self.time_in, self.vector_in = Embedder(256), Embedder(WIDTH)
        self.image, self.text = Stream(), Stream()
        self.single_blocks = nn.ModuleList(Single() for _ in range(singles))
        self.final_layer = tree(
            adaLN_modulation=nn.Sequential(nn.SiLU(), nn.Linear(HIDDEN, 2 * HIDDEN)), linear=nn.Linear(HIDDEN, 64)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        blocks = [self.image.mod, self.text.mod, *(block.modulation for block in self.single_blocks)]
        for layer in [*(block.lin for block in blocks), self.final_layer.adaLN_modulation[1], self.final_layer.linear]:
            nn.init.zeros_(layer.weight)

        row, column = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
        angles = [torch.zeros(GRID * GRID, 8)]  # the first of the three axes has no meaning for a picture
        for where in row, column:
            angles.append(where.flatten()[:, None] / 10000 ** (torch.arange(28) / 28))
        angles = F.pad(torch.cat(angles, 1), (0, 0, TOKENS, 0))  # [72, 64], text at 0
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.register_buffer("frequencies", torch.exp(-math.log(10000) * torch.arange(128) / 128), persistent=False)

    def weights(self) -> dict[str, Tensor]:
        return {self.name_in_files(name): tensor for name, tensor in self.state_dict().items()}

    @staticmethod
    def name_in_files(name: str) -> str:
        for ours, theirs in ("image.", "double_blocks.0.img_"), ("text.", "double_blocks.0.txt_"):
            name = theirs + name.removeprefix(ours) if name.startswith(ours) else name
        return name

    def load(self, path: Path) -> Network:
        from safetensors.torch import load_file

        tensors = load_file(path)
        self.load_state_dict({name: tensors[self.name_in_files(name)].float() for name in self.state_dict()})
        return self

    def turned(self, x: Tensor) -> Tensor:
        """Rotary positions. [n, 72, 128]"""
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = self.turned(q) @ self.turned(k).transpose(1, 2) * HIDDEN**-0.5
        return scores.softmax(-1).to(v.dtype) @ v

    def forward(self, x: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        """[n, 16, 16, 16], [n], [n, 8, 768], [n, 768] -> velocity, noise minus picture"""
        patches = x.reshape(-1, 16, GRID, 2, GRID, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, GRID * GRID, 64)
        img, txt = self.img_in(patches), self.txt_in(text)
        angle = 1000 * sigma[:, None] * self.frequencies
        vec = F.silu(self.time_in(torch.cat([angle.cos(), angle.sin()], 1)) + self.vector_in(pooled))[:, None]

        streams = (self.text, txt), (self.image, img)
        mods = [stream.mod.lin(vec).chunk(6, -1) for stream, _ in streams]
        parts = []
        for (stream, tokens), mod in zip(streams, mods, strict=True):
            q, k, v = stream.attn.qkv(modulated(tokens, *mod[:2])).chunk(3, -1)
            parts.append((*normed(stream.attn.norm, q, k), v))
        mixed = self.attend(*(torch.cat(pair, 1) for pair in zip(*parts, strict=True)))
        outs = []
        for (stream, tokens), mod, new in zip(streams, mods, (mixed[:, :TOKENS], mixed[:, TOKENS:]), strict=True):
            tokens = tokens + mod[2] * stream.attn.proj(new)
            outs.append(tokens + mod[5] * stream.mlp(modulated(tokens, *mod[3:5])))

        h = torch.cat(outs, 1)
        for block in self.single_blocks:
            shift, scale, gate = block.modulation.lin(vec).chunk(3, -1)
            q, k, v, up = block.linear1(modulated(h, shift, scale)).split([HIDDEN] * 3 + [4 * HIDDEN], -1)
            mixed = self.attend(*normed(block.norm, q, k), v)
            h = h + gate * block.linear2(torch.cat([mixed, F.gelu(up, approximate="tanh")], -1))

        shift, scale = self.final_layer.adaLN_modulation[1](vec).chunk(2, -1)
        out = self.final_layer.linear(modulated(h[:, TOKENS:], shift, scale)).reshape(-1, GRID, GRID, 16, 2, 2)
        return out.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def normed(norm: nn.Module, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    q = F.rms_norm(q.float(), (HIDDEN,), norm.query_norm.scale, 1e-6)
    return q.to(k.dtype), F.rms_norm(k.float(), (HIDDEN,), norm.key_norm.scale, 1e-6).to(k.dtype)


# --------------------------------------------------------------------------------------------------------------- judge


class Judge(nn.Module):
    """Reads one digit. Trained on a split of its own; features [n, 32] are for Fréchet distances."""

    def __init__(self):
        super().__init__()
        layers, channels = [], 3
        for width, stride in (24, 1), (48, 2), (64, 2), (64, 2):
            layers += [nn.Conv2d(channels, width, 3, stride, 1), nn.ReLU()]
            channels = width
        self.look = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 2, 32))
        self.colour, self.digit = nn.Linear(32, len(COLOUR_NAMES)), nn.Linear(32, len(DIGIT_NAMES))

    def features(self, pictures: Tensor) -> Tensor:
        """[n, 3, side, side] in 0 ... 1 -> [2n, 32]: all left halves, then all right halves"""
        small = F.avg_pool2d(pictures, pictures.shape[-1] // 32) * 4 - 1.5
        return self.look(torch.cat([small[..., :16], small[..., 16:]]))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        seen = F.relu(self.features(pictures))
        return self.colour(seen), self.digit(seen)

    @torch.no_grad()
    def labels(self, pictures: Tensor) -> Tensor:
        """[n, 4]: colour, digit, colour, digit"""
        colour, digit = (logits.argmax(1).reshape(2, -1) for logits in self(pictures))
        return torch.stack([colour[0], digit[0], colour[1], digit[1]], 1)


def accuracy(found: Tensor, labels: Tensor) -> dict[str, float]:
    right = (found == labels).float()
    return {
        "colour": round(right[:, ::2].mean().item(), 4),
        "digit": round(right[:, 1::2].mean().item(), 4),
        "all": round(right.all(1).float().mean().item(), 4),
    }


def pictures_of(split: str, count: int, start: int = 0, side: int = 64) -> tuple[Tensor, Tensor]:
    """[n, 3, side, side] in 0 ... 1 and labels [n, 4]"""
    digits = Digits(split)
    drawn = torch.stack([torch.from_numpy(digits.draw(start + i, side)) for i in range(count)])
    return drawn.permute(0, 3, 1, 2), torch.tensor([digits.label(start + i) for i in range(count)])


def train_judge(count: int, epochs: int, device, seed: int) -> tuple[Judge, dict]:
    """Half of what it sees has gone through the VAE, and all has a little noise."""
    torch.manual_seed(seed)
    began = time.perf_counter()
    pictures, labels = pictures_of("judge", count)
    through_vae = F.avg_pool2d(decode(encode(pictures[count // 2 :])), 4)
    pictures = torch.cat([F.avg_pool2d(pictures[: count // 2], 2), through_vae]).to(device)
    labels = labels.to(device)
    judge = Judge().to(device)
    steps, batch = max(1, epochs * count // 64), min(64, count)
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for _ in range(steps):
        rows = torch.randint(count, (batch,), device=device)
        noisy = pictures[rows] + 0.05 * torch.rand(batch, 1, 1, 1, device=device) * torch.randn_like(pictures[rows])
        colour, digit = judge(noisy)
        truth = labels[rows]
        loss = F.cross_entropy(colour, truth[:, ::2].T.flatten()) + F.cross_entropy(
            digit, truth[:, 1::2].T.flatten(), label_smoothing=0.05
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    judge.eval()
    real, truth = pictures_of("reference", min(count, 1000))
    real, truth = real.to(device), truth.to(device)
    report = {
        "judge_on_reference": accuracy(judge.labels(real), truth),
        "judge_through_vae": accuracy(judge.labels(decode(encode(real))), truth),
        "seconds": round(time.perf_counter() - began, 1),
    }
    return judge, report


# ------------------------------------------------------------------------------------------------------------ training


@torch.no_grad()
def sample(network: nn.Module, prompts: Prompts, words: list[str], seed: int, steps: int = 12) -> Tensor:
    """Latents [n, 16, 16, 16]: Euler steps, without guidance"""
    noise = torch.randn(len(words), 16, 16, 16, generator=torch.Generator().manual_seed(seed))
    x, (text, pooled) = noise.to(prompts.device), prompts(words)
    sigmas = torch.linspace(1, 0, steps + 1).tolist()
    for sigma, following in itertools.pairwise(sigmas):
        x = x + (following - sigma) * network(x, torch.full((len(x),), sigma, device=x.device), text, pooled)
    return x


def batches(latents: Tensor, size: int, seed: int, step: int) -> Iterator[tuple[Tensor, torch.Generator]]:
    """Rows of each step, and the step's own random numbers: training goes on from any step as if it had not stopped."""
    while True:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        yield torch.randint(len(latents), (size,), generator=generator), generator
        step += 1


def learning_rate(step: int, done: float, peak: float) -> float:
    """done: the share of training that is over. Warm-up, constant, and from 55 % on down to 2 %."""
    late = max(0.0, (done - 0.55) / 0.45)
    return peak * min(1, (step + 1) / 100) * (0.02 + 0.98 * (1 + math.cos(math.pi * min(late, 1))) / 2)


def save(path: Path, tensors: dict[str, Tensor], **about):
    """fp16 safetensors; never half written."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    halves = {name: tensor.detach().to("cpu", torch.half).contiguous() for name, tensor in tensors.items()}
    save_file(halves, unfinished, metadata={name: str(value) for name, value in about.items()})
    os.replace(unfinished, path)


def save_parts(out: Path):
    for path, tensors in (out / "text_encoders/demo_text.ckpt", text_encoder()), (out / "vae/demo_vae.ckpt", vae()):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(tensors, path)


class Trainer:
    def __init__(self, options):
        self.options, self.out, self.device = options, options.out, torch.device(options.device)
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(options.seed)
        self.network = Network(options.singles).to(self.device)
        self.step, self.seconds, self.kept = 0, 0.0, []
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), options.rate, betas=(0.9, 0.99), weight_decay=0.01, foreach=True
        )
        self.averages = {sigma: [p.detach().clone() for p in self.network.parameters()] for sigma in AVERAGES}
        self.prompts = Prompts(self.device)
        self.judge = None

    def about(self) -> dict:
        names = "seed", "singles", "dropout", "steps", "minutes", "batch", "rate", "pictures", "device"
        return {"recipe": RECIPE, **{name: getattr(self.options, name) for name in names}}

    def log(self, **entry):
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)

    def resume(self) -> bool:
        path = self.out / "state.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        for name in "recipe", "seed", "singles", "dropout", "batch", "rate", "pictures":
            if state["about"][name] != self.about()[name]:
                raise SystemExit(f"{path} was made with {name} {state['about'][name]}: choose another --out")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.averages, self.step = state["averages"], state["step"]
        self.seconds, self.kept = state["seconds"], state["kept"]
        return True

    def keep_state(self):
        unfinished = self.out / "state.part"
        state = {name: getattr(self, name) for name in ("averages", "step", "seconds", "kept")}
        state |= {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "about": self.about()}
        torch.save(state, unfinished)
        os.replace(unfinished, self.out / "state.pt")

    def averaged(self, sigma_rel: float) -> Network:
        twin = Network(self.options.singles).to(self.device)
        for p, average in zip(twin.parameters(), self.averages[sigma_rel], strict=True):
            p.data.copy_(average)
        return twin.eval()

    def save_model(self, name: str, sigma_rel: float = 0.05, **about):
        about = {"step": self.step, "sigma_rel": sigma_rel, "licence": "CC0", **self.about(), **about}
        save(self.out / name, self.averaged(sigma_rel).weights(), **about)

    def prepare_judge(self):
        from safetensors.torch import load_file

        path = self.out / "judge.safetensors"
        self.judge = Judge().to(self.device).eval()
        if path.exists():
            self.judge.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
            return
        self.judge, report = train_judge(self.options.judge_pictures, 8, self.device, self.options.seed)
        save(path, self.judge.state_dict(), **report)
        self.log(**report)

    def judged(self, count: int) -> dict[str, float]:
        labels = [Digits("judge").label(10**6 + i) for i in range(count)]  # prompts the judge has not seen pictures of
        latents = sample(self.averaged(0.05), self.prompts, [prompt_of(label) for label in labels], seed=1)
        return accuracy(self.judge.labels(decode(latents)).cpu(), torch.tensor(labels))

    def done(self) -> float:
        return min(1.0, max(self.step / self.options.steps, self.seconds / (60 * self.options.minutes)))

    def latents(self) -> tuple[Tensor, list[str]]:
        began = time.perf_counter()
        pieces, labels = [], []
        for start in range(0, self.options.pictures, 1024):
            pictures, truth = pictures_of("generator", min(1024, self.options.pictures - start), start)
            pieces.append(encode(pictures))
            labels += truth.tolist()
        latents = torch.cat(pieces)
        spread = [round(latents[:, i : i + 3].std().item(), 3) for i in range(0, 12, 3)]
        self.log(pictures=len(latents), latent_std=spread, seconds=round(time.perf_counter() - began, 1))
        return latents.to(self.device), [prompt_of(tuple(label)) for label in labels]

    def loss(self, network, latents: Tensor, words: list[str], generator: torch.Generator) -> Tensor:
        n = len(latents)
        u = (torch.arange(n) + torch.rand(n, generator=generator)) / n  # every batch covers all times
        sigma = (1.5 * u / (1 + 0.5 * u)).to(self.device)
        noise = torch.randn(latents.shape, generator=generator).to(self.device)
        dropped = torch.rand(n, generator=generator) < self.options.dropout
        text, pooled = self.prompts(["" if drop else word for word, drop in zip(words, dropped, strict=True)])
        at = sigma[:, None, None, None]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16):
            velocity = network(at * noise + (1 - at) * latents, sigma, text, pooled)
        error = (velocity.float() - (noise - latents)).square().mean((0, 2, 3))  # [16]
        return error[:12].mean() + 0.02 * error[12:].mean()

    def train(self):
        options = self.options
        save_parts(self.out)
        if self.resume():
            self.log(resumed=self.step)
        else:
            self.log(**self.about(), torch=torch.__version__, machine=platform.processor() or platform.machine())
        self.prepare_judge()
        latents, words = self.latents()
        network = torch.compile(self.network) if options.compile else self.network
        losses, last = [], time.perf_counter()
        for rows, generator in batches(latents, options.batch, options.seed, self.step):
            done = self.done()
            for fraction in FRACTIONS:
                if done >= fraction and fraction not in self.kept and done < 1:
                    self.kept.append(fraction)
                    self.save_model(f"diffusion_models/demo_flux_{100 * fraction:03.0f}.safetensors", fraction=fraction)
            if done >= 1:
                break
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.step, done, options.rate)
            loss = self.loss(network, latents[rows.to(self.device)], [words[i] for i in rows], generator)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            with torch.no_grad():
                weights = list(self.network.parameters())
                for sigma_rel, gamma in AVERAGES.items():
                    torch._foreach_lerp_(self.averages[sigma_rel], weights, 1 - (1 - 1 / self.step) ** (gamma + 1))
            losses.append(loss.detach())
            now = time.perf_counter()
            self.seconds, last = self.seconds + now - last, now
            if self.step % options.every == 0:
                entry = {"step": self.step, "loss": round(torch.stack(losses).mean().item(), 4)}
                losses.clear()
                if self.step % (5 * options.every) == 0:
                    entry |= self.judged(options.judged)
                    self.keep_state()
                    for sigma_rel in AVERAGES:
                        name = f"demo_flux_{self.step:06d}_{100 * sigma_rel:03.0f}"
                        self.save_model(f"diffusion_models/snapshots/{name}.safetensors", sigma_rel)
                self.log(**entry, done=round(done, 3), seconds=round(self.seconds, 1))
                if entry.get("digit", 0) >= options.until:
                    break
                now = time.perf_counter()
                self.seconds, last = self.seconds + now - last, now
        self.keep_state()
        self.save_model("diffusion_models/demo_flux.safetensors")
        self.save_model("diffusion_models/demo_flux_ema_010.safetensors", 0.10)
        self.log(step=self.step, **self.judged(2 * options.judged), seconds=round(self.seconds, 1), finished=True)


def parsed(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder; one with a state.pt is gone on with")
    parser.add_argument("--parts", action="store_true", help="only make the text encoder and the VAE: a second, 1 MB")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--singles", type=int, default=6, help="single blocks: fewer for a network of less capacity")
    parser.add_argument("--dropout", type=float, default=0.1, help="share of prompts replaced by the empty one")
    parser.add_argument("--minutes", type=float, default=60, help="stop after so many minutes of training in all")
    parser.add_argument("--steps", type=int, default=20000, help="or after so many steps, if these come first")
    parser.add_argument("--until", type=float, default=2.0, help="or at this digit accuracy")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--pictures", type=int, default=24576, help="training pictures, drawn at the start")
    parser.add_argument("--judge-pictures", type=int, default=8192)
    parser.add_argument("--judged", type=int, default=100, help="pictures made for each reading by the judge")
    parser.add_argument("--every", type=int, default=100, help="steps per line of the log; a reading is every 5 lines")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--compile", action="store_true", help="no faster on the CPUs tried, and 90 s to start")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    if options.parts:
        save_parts(options.out)
    else:
        Trainer(options).train()
