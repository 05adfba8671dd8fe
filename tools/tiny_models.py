"""Tiny checkpoints with random weights that an unmodified ComfyUI loads with its own Load Checkpoint node.

    python -m tools.tiny_models --out ComfyUI/models/checkpoints

    tiny_sd15.ckpt   SD 1.5 format, noise prediction, one transformer at input 1 and one in the middle
    tiny_sd3.ckpt    SD 3 format, rectified flow, 3 joint blocks
    tiny_flux.ckpt   Flux dev format, rectified flow, 2 double and 4 single blocks. No text encoder, because that would
                     mean a T5 of full size: use the CLIP of tiny_sd3.ckpt

The weights are random where nothing else is needed, and made by hand where that lets a network behave like a
denoiser: noise is removed, what stays is smooth, and prompt, seed and attention all show in the picture.

The text encoder has every key of CLIP-L at full size, yet costs 0.3 MB: .ckpt files keep strides, so a tensor of
zeros or one that repeats itself costs a few bytes. (Safetensors cannot do that; hence .ckpt.)
"""

import argparse
import math
import os
import time
from pathlib import Path

import torch

RECIPE = 1  # raise it when a weight below changes: files of an older recipe are then made again


class Weights(dict):
    """A state dict that is written down layer by layer, with one random stream."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, std: float = 1.0) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator) * std

    def mix(self, outputs: int, inputs: int, gain: float = 1.0) -> torch.Tensor:
        """A random matrix that keeps the variance of its input, times gain²."""
        return self.normal(outputs, inputs, std=gain / math.sqrt(inputs))

    def layer(self, name: str, weight: torch.Tensor, bias: torch.Tensor | None = None):
        self[f"{name}.weight"] = weight
        self[f"{name}.bias"] = torch.zeros(weight.shape[0]) if bias is None else bias

    def norm(self, name: str, channels: int):
        self.layer(name, torch.ones(channels))

    def mlp(self, first: str, second: str, inputs: int, hidden: int, outputs: int, gain: float = 1.0):
        self.layer(first, self.mix(hidden, inputs))
        self.layer(second, self.mix(outputs, hidden, gain))

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        return {prefix + name: tensor for name, tensor in self.items()}


def half(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


# ---------------------------------------------------------------------------------------------------------------- UNet

CHANNELS, CONTEXT, GROUP = 320, 768, 10  # what the host recognises as SD 1.5; its norms have 32 groups of 10 channels
CARRIED = 4 * GROUP  # the first channels carry the noise of the 4 latent channels, untouched, to the output


def smooth(mixing: torch.Tensor) -> torch.Tensor:
    """[out, in] -> [out, in, 3, 3]: each pair of channels gets the binomial blur."""
    line = torch.tensor([0.25, 0.5, 0.25])
    return mixing[:, :, None, None] * torch.outer(line, line)


def pointwise(mixing: torch.Tensor) -> torch.Tensor:
    return mixing[:, :, None, None]  # [out, in, 1, 1]


def unet(seed: int) -> Weights:
    """ε(x) = (x − blur x) / rms + a little of everything else: detail is noise, large shapes are the picture.

    silu(a) − silu(−a) = a, so a pair ±a passes norms and non-linearities unchanged.
    """
    w = Weights(seed)
    w.mlp("time_embed.0", "time_embed.2", CHANNELS, 4 * CHANNELS, 4 * CHANNELS)

    carry = torch.zeros(CARRIED, 4)  # channels 10c … 10c+4 are +latent channel c, 10c+5 … 10c+9 are −c
    for channel in range(4):
        carry[GROUP * channel : GROUP * (channel + 1), channel] = torch.tensor([1.0, -1.0]).repeat_interleave(
            GROUP // 2
        )
    detail = -smooth(carry)
    detail[:, :, 1, 1] += carry
    shapes = smooth(w.mix(CHANNELS - CARRIED, 4))
    w.layer("input_blocks.0.0", torch.cat([detail, shapes]))  # [320, 4, 3, 3]

    residual_block(w, "input_blocks.1.0", CHANNELS)
    transformer(w, "input_blocks.1.1")
    residual_block(w, "middle_block.0", CHANNELS)
    transformer(w, "middle_block.1")
    residual_block(w, "middle_block.2", CHANNELS)
    residual_block(w, "output_blocks.0.0", 2 * CHANNELS)
    residual_block(w, "output_blocks.1.0", 2 * CHANNELS)

    w.norm("out.0", CHANNELS)
    noise = torch.zeros(4, CHANNELS, 3, 3)
    noise[:, :CARRIED, 1, 1] = carry.T / (GROUP // 2) * 1.1  # a little more than the blur leaves of white noise (0.8)
    picture = w.mix(4, CHANNELS, 0.12)
    picture = smooth(picture - picture.mean(1, keepdim=True))
    picture[:, :CARRIED] = 0
    w.layer("out.2", noise + picture)
    return w


def residual_block(w: Weights, name: str, inputs: int):
    leave = torch.ones(CHANNELS, 1)
    leave[:CARRIED] = 0
    w.norm(f"{name}.in_layers.0", inputs)
    w.layer(f"{name}.in_layers.2", smooth(w.mix(CHANNELS, inputs)))
    w.layer(f"{name}.emb_layers.1", w.mix(CHANNELS, 4 * CHANNELS, 0.3))
    w.norm(f"{name}.out_layers.0", CHANNELS)
    w.layer(f"{name}.out_layers.3", smooth(leave * w.mix(CHANNELS, CHANNELS)))
    if inputs != CHANNELS:  # an output block: [features, skipped features] -> features
        shortcut = torch.eye(CHANNELS, inputs)
        shortcut[CARRIED:] += w.mix(CHANNELS - CARRIED, inputs, 0.5)
        w.layer(f"{name}.skip_connection", pointwise(shortcut))


def transformer(w: Weights, name: str):
    block = f"{name}.transformer_blocks.0"
    w.norm(f"{name}.norm", CHANNELS)
    w.layer(f"{name}.proj_in", pointwise(w.mix(CHANNELS, CHANNELS)))
    for norm in "norm1", "norm2", "norm3":
        w.norm(f"{block}.{norm}", CHANNELS)

    # Queries equal keys: a token attends to those like it. The sum of their values is taken away: what is common fades.
    alike = w.mix(CHANNELS, CHANNELS, 1.3)
    value = torch.linalg.qr(w.normal(CHANNELS, CHANNELS)).Q
    w[f"{block}.attn1.to_q.weight"] = w[f"{block}.attn1.to_k.weight"] = alike
    w[f"{block}.attn1.to_v.weight"] = value
    w.layer(f"{block}.attn1.to_out.0", -0.8 * value.T)

    w[f"{block}.attn2.to_q.weight"] = w.mix(CHANNELS, CHANNELS, 1.5)
    w[f"{block}.attn2.to_k.weight"] = w.mix(CHANNELS, CONTEXT, 1.5)
    w[f"{block}.attn2.to_v.weight"] = w.mix(CHANNELS, CONTEXT)
    w.layer(f"{block}.attn2.to_out.0", w.mix(CHANNELS, CHANNELS, 1.5))

    w.mlp(f"{block}.ff.net.0.proj", f"{block}.ff.net.2", CHANNELS, 8 * CHANNELS, 4 * CHANNELS)
    w.layer(f"{block}.ff.net.2", w.mix(CHANNELS, 4 * CHANNELS))  # GEGLU: half of the hidden units gate the other half
    leave = torch.ones(CHANNELS, 1)
    leave[:CARRIED] = 0
    w.layer(f"{name}.proj_out", pointwise(leave * w.mix(CHANNELS, CHANNELS)))


# ---------------------------------------------------------------------------------------------- diffusion transformers

LATENT = 16
PATCH = 4 * LATENT  # a token's first 64 channels are its 2x2 patch as it came, in the order (channel, row, column)
AVERAGE = torch.eye(LATENT).repeat_interleave(4, 1) / 4  # [16, 64]: patch -> mean of each latent channel
SPREAD = 4 * AVERAGE.T  # [64, 16]: one value per latent channel -> patch


def reads_features(weight: torch.Tensor) -> torch.Tensor:
    """Blind to the patch itself, which is mostly noise; the features behind it are smooth."""
    weight[:, :PATCH] = 0
    return weight


def smoothing_value(w: Weights, rows: int, hidden: int) -> torch.Tensor:
    """[rows, hidden]: the mean of each latent channel, then mixed features."""
    return torch.cat([AVERAGE @ torch.eye(PATCH, hidden), reads_features(w.mix(rows - LATENT, hidden))])


def smoothing_output(w: Weights, hidden: int, rows: int, strength: float) -> torch.Tensor:
    """[hidden, rows]: the local mean is taken from the patch (only detail is noise) and given to the features."""
    out = w.mix(hidden, rows, 0.3)
    out[:PATCH] = 0
    out[:PATCH, :LATENT] = -strength * SPREAD
    out[PATCH:, :LATENT] = w.mix(hidden - PATCH, LATENT, 2.5)
    return out


def to_picture(w: Weights, weight: torch.Tensor, gain: float) -> torch.Tensor:
    """[hidden, n]: writes the same value to all pixels of a patch, and to the features."""
    colours = w.mix(LATENT, weight.shape[1], gain)
    weight[:PATCH] = SPREAD @ (colours - colours.mean(1, keepdim=True))
    return weight


def modulation(w: Weights, name: str, hidden: int, roles: str, gain: float = 0.2):
    """adaLN: a shift or scale ("-") near 0, a gate ("g") near 1."""
    bias = torch.cat([torch.full((hidden,), float(role == "g")) for role in roles])
    w.layer(name, w.mix(len(roles) * hidden, hidden, gain), bias)


def sd3(seed: int, depth: int = 3, side: int = 64) -> Weights:
    """The first head of each block attends by place, the others by content.

    side: largest picture, in tokens of 16 pixels.
    """
    hidden, head = 64 * depth, 64  # as the host derives them from the number of blocks
    place = slice(PATCH, PATCH + 32)
    w = Weights(seed)
    w.layer("x_embedder.proj", torch.eye(hidden, PATCH).reshape(hidden, LATENT, 2, 2))
    frequency = torch.linspace(0.1, 0.6, 8)
    angle = torch.arange(side)[:, None] * frequency  # [side, 8]
    wave = torch.cat([angle.cos(), angle.sin()], 1) * 0.5  # [side, 16]
    grid = torch.cat([wave[:, None].expand(-1, side, -1), wave[None].expand(side, -1, -1)], -1)  # [side, side, 32]
    w["pos_embed"] = torch.zeros(1, side * side, hidden)
    w["pos_embed"][:, :, place] = grid.reshape(1, side * side, 32)
    w.mlp("t_embedder.mlp.0", "t_embedder.mlp.2", 256, hidden, hidden)
    w.mlp("y_embedder.mlp.0", "y_embedder.mlp.2", 2048, hidden, hidden)
    w.layer("context_embedder", w.mix(hidden, 4096, math.sqrt(4096 / 768)))  # CLIP-L fills 768 of 4096, the rest is 0

    for i in range(depth):
        image, text = f"joint_blocks.{i}.x_block", f"joint_blocks.{i}.context_block"
        last = i == depth - 1
        modulation(w, f"{image}.adaLN_modulation.1", hidden, "--g--g")
        modulation(w, f"{text}.adaLN_modulation.1", hidden, "--" if last else "--g--g")

        query, key, value = (reads_features(w.mix(hidden, hidden, 1.5)) for _ in range(3))
        query[:head] = key[:head] = 0
        query[:32, place] = key[:32, place] = 3.5 * torch.eye(32)
        value[:head] = smoothing_value(w, head, hidden)
        out = to_picture(w, w.mix(hidden, hidden, 0.4), 0.1)
        out[:, :head] = smoothing_output(w, hidden, head, 0.45)
        w.layer(f"{image}.attn.qkv", torch.cat([query, key, value]))
        w.layer(f"{image}.attn.proj", out)
        query, key, value = (w.mix(hidden, hidden, 1.5) for _ in range(3))
        query[:head] = key[:head] = value[:head] = 0  # the head of places is the picture's own
        w.layer(f"{text}.attn.qkv", torch.cat([query, key, value]))

        w.layer(f"{image}.mlp.fc1", reads_features(w.mix(4 * hidden, hidden, 2.0)))
        w.layer(f"{image}.mlp.fc2", to_picture(w, w.mix(hidden, 4 * hidden, 0.3), 0.15))
        if not last:
            w.layer(f"{text}.attn.proj", w.mix(hidden, hidden, 0.5))
            w.mlp(f"{text}.mlp.fc1", f"{text}.mlp.fc2", hidden, 4 * hidden, hidden, 0.5)

    modulation(w, "final_layer.adaLN_modulation.1", hidden, "--", gain=0.0)
    rows = torch.arange(PATCH).reshape(LATENT, 4).T.flatten()  # the host un-patches from (row, column, channel)
    w.layer("final_layer.linear", (5 * torch.eye(PATCH, hidden))[rows])
    return w


def flux(seed: int, double: int = 2, single: int = 4) -> Weights:
    """Double blocks attend by content, single blocks by place."""
    hidden = 128  # one head
    w = Weights(seed)
    w.layer("img_in", torch.eye(hidden, PATCH))
    w.layer("txt_in", w.mix(hidden, 4096, math.sqrt(4096 / 768)))  # the CLIP of tiny_sd3 fills 768 of 4096
    for name, inputs in ("time_in", 256), ("vector_in", 2048), ("guidance_in", 256):
        w.mlp(f"{name}.in_layer", f"{name}.out_layer", inputs, hidden, hidden)

    for i in range(double):
        for stream in "img", "txt":
            block = f"double_blocks.{i}.{stream}"
            modulation(w, f"{block}_mod.lin", hidden, "--g--g")
            w.layer(f"{block}_attn.qkv", w.mix(3 * hidden, hidden), w.normal(3 * hidden, std=0.7))
            w.layer(f"{block}_attn.proj", w.mix(hidden, hidden, 0.5))
            w.layer(f"{block}_mlp.0", w.mix(4 * hidden, hidden, 2.0))
            w.layer(f"{block}_mlp.2", w.mix(hidden, 4 * hidden, 0.3))
            qk_norm(w, f"{block}_attn.norm", hidden, 1.0)
        image = f"double_blocks.{i}.img"
        reads_features(w[f"{image}_attn.qkv.weight"])
        reads_features(w[f"{image}_mlp.0.weight"])
        to_picture(w, w[f"{image}_attn.proj.weight"], 0.15)
        to_picture(w, w[f"{image}_mlp.2.weight"], 0.15)

    # Rotary positions turn one constant query = key into attention that falls with distance: rows turn the pairs from
    # channel 16, columns those from 72; pair i turns by 10000^(-i/28) radians per token, too fast for i = 0.
    near = torch.zeros(hidden)
    near[[axis + 2 * pair for axis in (16, 72) for pair in range(1, 9)]] = 3.0
    for i in range(single):
        block = f"single_blocks.{i}"
        modulation(w, f"{block}.modulation.lin", hidden, "--g")
        query, key = (reads_features(w.mix(hidden, hidden, 0.7)) for _ in range(2))
        value = smoothing_value(w, hidden, hidden)
        up = reads_features(w.mix(4 * hidden, hidden, 2.0))
        bias = torch.cat([near, near, torch.zeros(hidden), torch.zeros(4 * hidden)])
        w.layer(f"{block}.linear1", torch.cat([query, key, value, up]), bias)
        down = to_picture(w, w.mix(hidden, 4 * hidden, 0.3), 0.25)
        w.layer(f"{block}.linear2", torch.cat([smoothing_output(w, hidden, hidden, 0.4), down], 1))
        qk_norm(w, f"{block}.norm", hidden, 1.2)

    modulation(w, "final_layer.adaLN_modulation.1", hidden, "--", gain=0.0)
    w.layer("final_layer.linear", 4 * torch.eye(PATCH, hidden))
    return w


def qk_norm(w: Weights, name: str, channels: int, scale: float):
    w[f"{name}.query_norm.scale"] = torch.full((channels,), scale)
    w[f"{name}.key_norm.scale"] = torch.full((channels,), scale)


# ------------------------------------------------------------------------------------------------ text encoder and VAE


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros((), dtype=torch.half).expand(shape)


def windows(line: torch.Tensor, rows: int, width: int) -> torch.Tensor:
    return line.half().as_strided((rows, width), (1, 1))  # row i is line[i:i+width]


def reversal(width: int) -> torch.Tensor:
    """Reverses the channels; twice is the identity."""
    line = torch.zeros(2 * width - 1)
    line[width - 1] = 1
    return windows(line, width, width)


def text_encoder_l(seed: int, width: int = 768, layers: int = 12, vocabulary: int = 49408) -> dict[str, torch.Tensor]:
    """CLIP-L that does one thing: its first layer adds to each token the mean of the tokens up to it.

    So words, their order and the pooled vector all tell prompts apart. Everything else is zero.
    """

    mirror = reversal(width)
    w = Weights(seed)
    line = w.normal(vocabulary + width)
    line[vocabulary - 2 :] = 0  # the last two tokens are start and end (also padding): they say only what came before
    w["embeddings.token_embedding.weight"] = windows(line, vocabulary, width)
    w["embeddings.position_embedding.weight"] = w.normal(77, width, std=0.3)
    for i in range(layers):
        encoder_layer(w, f"encoder.layers.{i}", width)
    w["encoder.layers.0.self_attn.v_proj.weight"] = w["encoder.layers.0.self_attn.out_proj.weight"] = mirror
    w.norm("final_layer_norm", width)
    tensors = w.under("text_model.")
    tensors["text_projection.weight"] = mirror
    return tensors


def clip_l(seed: int, width: int = 1024, layers: int = 24, features: int = 768) -> dict[str, torch.Tensor]:
    """The whole ViT-L/14, text and vision, as one file for the folders text_encoders and clip_vision.

    A picture is the mean of its patches, each through the same random matrix.
    """
    w, pixels = Weights(seed), 3 * 14 * 14
    patches = windows(w.normal(width + pixels, std=pixels**-0.5), width, pixels)
    w["embeddings.patch_embedding.weight"] = patches.unflatten(1, (3, 14, 14))
    w["embeddings.class_embedding"] = w.normal(width, std=0.1)
    w["embeddings.position_embedding.weight"] = zeros(257, width)
    w.norm("pre_layrnorm", width)
    for i in range(layers):
        encoder_layer(w, f"encoder.layers.{i}", width)
    w["encoder.layers.0.self_attn.v_proj.weight"] = w["encoder.layers.0.self_attn.out_proj.weight"] = reversal(width)
    w.norm("post_layernorm", width)
    projection = windows(w.normal(features + width, std=width**-0.5), features, width)
    return {**text_encoder_l(seed), **w.under("vision_model."), "visual_projection.weight": projection}


def encoder_layer(w: Weights, layer: str, width: int):
    """One that changes nothing."""
    for name in "layer_norm1", "layer_norm2":
        w.norm(f"{layer}.{name}", width)
    for name in "q_proj", "k_proj", "v_proj", "out_proj":
        w.layer(f"{layer}.self_attn.{name}", zeros(width, width))
    w.layer(f"{layer}.mlp.fc1", zeros(4 * width, width))
    w.layer(f"{layer}.mlp.fc2", zeros(width, 4 * width))


def taesd(seed: int, channels: int, scale: float, shift: float, gain: float) -> Weights:
    """Decodes to a linear map of the latent to red, green, blue, enlarged smoothly; encodes the mean of 8x8 pixels.

    scale, shift: from what the host hands to a VAE back to what its models see. gain: contrast.
    """
    w = Weights(seed)
    colour = gain * torch.linalg.qr(w.normal(channels, 3)).Q.T  # [3, channels], orthogonal rows
    w["vae_scale"], w["vae_shift"] = torch.tensor(scale), torch.tensor(shift)

    # The fourth channel is a constant. It darkens at the edges, by the zeros around them, just as the colours do.
    keep = torch.eye(64, 64)
    keep[4:] = 0
    centre = torch.zeros(3, 3)
    centre[1, 1] = 1
    quarter = torch.zeros(3, 3)
    quarter[1:, 1:] = 0.25

    first = torch.zeros(64, channels, 3, 3)
    first[:3, :, 1, 1] = colour
    w.layer("taesd_decoder.1", first, torch.tensor([0.5] * 4 + [0.0] * 60))
    for i in 3, 4, 5, 8, 9, 10, 13, 14, 15, 18:
        idle_block(w, f"taesd_decoder.{i}")
    for i in 7, 12, 17:
        w[f"taesd_decoder.{i}.weight"] = smooth(keep)
    last = torch.eye(3, 64)
    last[:, 3] = -1
    w.layer("taesd_decoder.19", last[:, :, None, None] * centre, torch.full((3,), 0.5))

    w.layer("taesd_encoder.0", torch.eye(64, 3)[:, :, None, None] * centre)
    for i in 1, 3, 4, 5, 7, 8, 9, 11, 12, 13:
        idle_block(w, f"taesd_encoder.{i}")
    for i in 2, 6, 10:
        w[f"taesd_encoder.{i}.weight"] = keep[:, :, None, None] * quarter
    back = torch.linalg.pinv(colour)  # [channels, 3]
    w.layer("taesd_encoder.14", (back @ torch.eye(3, 64))[:, :, None, None] * centre, -0.5 * back.sum(1))
    return w


def idle_block(w: Weights, name: str):
    for i in 0, 2, 4:
        w.layer(f"{name}.conv.{i}", torch.zeros((), dtype=torch.half).expand(64, 64, 3, 3))


# --------------------------------------------------------------------------------------------------------- checkpoints


def tiny_sd15(seed: int) -> dict[str, torch.Tensor]:
    text = text_encoder_l(seed)
    del text["text_projection.weight"]  # the host has no place for it in an SD 1.5 checkpoint
    return {
        **unet(seed).under("model.diffusion_model."),
        **{f"cond_stage_model.transformer.{name}": tensor for name, tensor in text.items()},
        **taesd(seed, channels=4, scale=0.18215, shift=0.0, gain=0.14).under("first_stage_model."),
    }


def tiny_sd3(seed: int) -> dict[str, torch.Tensor]:
    return {
        **sd3(seed).under("model.diffusion_model."),
        **{f"text_encoders.clip_l.transformer.{name}": tensor for name, tensor in text_encoder_l(seed).items()},
        **taesd(seed, channels=16, scale=1.5305, shift=0.0609, gain=0.28).under("first_stage_model."),
    }


def tiny_flux(seed: int) -> dict[str, torch.Tensor]:
    return {
        **flux(seed).under("model.diffusion_model."),
        **taesd(seed, channels=16, scale=0.3611, shift=0.1159, gain=0.28).under("vae."),
    }


CHECKPOINTS = {"sd15": tiny_sd15, "sd3": tiny_sd3, "flux": tiny_flux}


def is_made(path: Path, recipe: str) -> bool:
    return path.exists() and torch.load(path, weights_only=True).get("recipe") == recipe


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=CHECKPOINTS, help="make one of them")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    recipe = f"{RECIPE}, seed {arguments.seed}"
    for name in [arguments.only] if arguments.only else CHECKPOINTS:
        path = arguments.out / f"tiny_{name}.ckpt"
        if is_made(path, recipe):
            print(f"{path.name}: already there")
            continue
        start = time.perf_counter()
        tensors = half(CHECKPOINTS[name](arguments.seed))
        unfinished = path.with_suffix(".part")
        torch.save({"state_dict": tensors, "recipe": recipe}, unfinished)
        os.replace(unfinished, path)
        print(f"{path.name}: {path.stat().st_size / 2**20:.1f} MB in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
