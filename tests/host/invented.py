"""Networks that exist nowhere, so that nobody has written a row for them.

TextLast     the picture, then the text, in one sequence; one attention for both
References   the text, then tokens of another picture, then the picture; blocks that take them as two streams
TwoStacks    a video, in two stacks of blocks with an attention of their own to the text
Bare         the same, in one stack of blocks that call both attentions in their own forward
"""

from __future__ import annotations

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.supported_models_base
import torch
from comfy.ldm.modules.attention import optimized_attention
from pack.tests.host import networks
from torch import nn

WIDTH, HEADS = 32, 4


class Attention(nn.Module):
    def __init__(self, operations):
        super().__init__()
        self.to_qkv = operations.Linear(WIDTH, 3 * WIDTH)
        self.to_out = operations.Linear(WIDTH, WIDTH)

    def forward(self, x, transformer_options={}):  # noqa: B006 (as the host writes it)
        q, k, v = self.to_qkv(x).chunk(3, -1)
        return self.to_out(optimized_attention(q, k, v, HEADS, transformer_options=transformer_options))


class Block(nn.Module):
    def __init__(self, operations):
        super().__init__()
        self.attn, self.mlp = Attention(operations), operations.Linear(WIDTH, WIDTH)

    def forward(self, x, time, transformer_options={}):  # noqa: B006
        x = x + self.attn(x + time[:, None], transformer_options=transformer_options)
        return x + self.mlp(torch.tanh(x))


class BlockOfTwo(Block):
    def forward(self, text, image, *, time, transformer_options={}):  # noqa: B006
        both = super().forward(torch.cat([text, image], 1), time, transformer_options=transformer_options)
        return both[:, : text.shape[1]], both[:, text.shape[1] :]


class BlockToText(Block):
    def __init__(self, operations):
        super().__init__(operations)
        self.of_text = operations.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x, text, time, transformer_options={}):  # noqa: B006
        x = super().forward(x, time, transformer_options=transformer_options)
        return x + optimized_attention(
            x, *self.of_text(text).chunk(2, -1), HEADS, transformer_options=transformer_options
        )


class BareBlock(nn.Module):
    """Its attention is called in its own forward, beside one to the text."""

    def __init__(self, operations):
        super().__init__()
        self.qkv, self.of_text = operations.Linear(WIDTH, 3 * WIDTH), operations.Linear(WIDTH, 2 * WIDTH)
        self.to_out = operations.Linear(WIDTH, WIDTH)

    def forward(self, x, text, time, transformer_options={}):  # noqa: B006
        q, k, v = self.qkv(x + time[:, None]).chunk(3, -1)
        x = x + self.to_out(optimized_attention(q, k, v, HEADS, transformer_options=transformer_options))
        k, v = self.of_text(text).chunk(2, -1)
        return x + optimized_attention(
            self.qkv(x).chunk(3, -1)[0], k, v, HEADS, transformer_options=transformer_options
        )


class Time(nn.Module):
    def __init__(self, operations):
        super().__init__()
        self.inner, self.outer = operations.Linear(WIDTH, WIDTH), operations.Linear(WIDTH, WIDTH)

    def forward(self, t):
        angles = t[:, None].float() * torch.linspace(0.01, 1.0, WIDTH // 2)
        return self.outer(torch.tanh(self.inner(torch.cat([angles.sin(), angles.cos()], -1))))


class Invented(nn.Module):
    """What the three have in common: latents in patches of 2 × 2, a time, and a text."""

    def __init__(self, dtype=None, device=None, operations=None, **_):
        super().__init__()
        self.dtype = dtype
        self.embed, self.final_layer = (
            operations.Linear(16, WIDTH),
            nn.ModuleDict({"linear": operations.Linear(WIDTH, 16)}),
        )
        self.text_in, self.time_embedder = operations.Linear(networks.CONTEXT, WIDTH), Time(operations)
        self.build(operations)

    def patches(self, x):
        """[rows, 4, *frames, height, width] → [rows, tokens, 16]"""
        x = x.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))  # [rows, 4, *frames, h, 2, w, 2]
        return x.movedim(-3, -2).flatten(-2).movedim(1, -1).flatten(1, -3).flatten(-2)

    def picture(self, tokens, like):
        """The inverse of `patches`."""
        frames, (height, width) = like.shape[2:-2], like.shape[-2:]
        tokens = tokens.unflatten(-1, (4, 4)).unflatten(1, (*frames, height // 2, width // 2)).movedim(-1, 1)
        return tokens.unflatten(-1, (2, 2)).movedim(-2, -3).flatten(-2).flatten(-3, -2)

    def forward(self, x, timesteps, context, transformer_options={}, reference=None, **_):  # noqa: B006
        made = self.run(
            self.embed(self.patches(x)),
            self.text_in(context),
            self.time_embedder(timesteps),
            transformer_options,
            reference,
        )
        return self.picture(self.final_layer["linear"](made), x)


class TextLast(Invented):
    def build(self, operations):
        self.layers = nn.ModuleList(Block(operations) for _ in range(4))

    def run(self, image, text, time, transformer_options, _reference):
        x = torch.cat([image, text], 1)
        for block in self.layers:
            x = block(x, time, transformer_options=transformer_options)
        return x[:, : image.shape[1]]


class References(Invented):
    def build(self, operations):
        self.joint_blocks = nn.ModuleList(BlockOfTwo(operations) for _ in range(3))

    def run(self, image, text, time, transformer_options, reference):
        beside = torch.cat([text, self.embed(self.patches(reference))], 1)
        for block in self.joint_blocks:
            beside, image = block(beside, image, time=time, transformer_options=transformer_options)
        return image


class TwoStacks(Invented):
    def build(self, operations):
        self.first_blocks = nn.ModuleList(BlockToText(operations) for _ in range(2))
        self.second_blocks = nn.ModuleList(BlockToText(operations) for _ in range(3))

    def run(self, image, text, time, transformer_options, _reference):
        for block in (*self.first_blocks, *self.second_blocks):
            image = block(image, text, time, transformer_options=transformer_options)
        return image


class Bare(TwoStacks):
    def build(self, operations):
        self.first_blocks, self.second_blocks = nn.ModuleList(BareBlock(operations) for _ in range(4)), ()


NETWORKS = {"text last": TextLast, "references": References, "two stacks": TwoStacks, "bare": Bare}
LATENT = {
    "text last": (1, 4, 12, 20),
    "references": (1, 4, 12, 20),
    "two stacks": (1, 4, 3, 8, 12),
    "bare": (1, 4, 3, 8, 12),
}


class Config(comfy.supported_models_base.BASE):
    unet_config, latent_format = {}, comfy.latent_formats.SD15


class Model(comfy.model_base.BaseModel):
    """The host's model of an invented network; one that takes a reference gets a fixed one."""

    def extra_conds(self, **kwargs):
        reference = torch.randn(1, 4, 6, 10, generator=torch.Generator().manual_seed(3))
        out = super().extra_conds(**kwargs) | {"reference": comfy.conds.CONDRegular(reference)}
        return out | {"c_crossattn": comfy.conds.CONDRegular(kwargs["cross_attn"])}


def model(name: str, network: type | None = None):
    """A MODEL of the network of this name, or of another class in its place."""

    def make(config, **options):
        return Model(
            config, model_type=comfy.model_base.ModelType.FLOW, unet_model=network or NETWORKS[name], **options
        )

    return networks.patcher(make, Config({}), 0)
