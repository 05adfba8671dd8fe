"""What differs between the host's networks, one row each: which layers there are, where their self-attention is, which
of its tokens are the picture, and which layers are perturbed or skipped when nobody chooses.

A network without a row is refused by name. To add one: a row here, and a network in the tests that run every row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .layers import Layer, parse, whole_layers
from .layout import Layout, Place, after_text, first, last

Grid = Callable[[Any, tuple[int, ...]], tuple[int, ...]]  # (network, the latent's axes) → tokens on each axis
Latent = Callable[[tuple[int, ...], dict], tuple[int, ...]]  # (shape of x, conditionings) → the picture's own axes
Beside = Callable[[Any, dict, tuple[int, ...]], int]  # (network, conditionings, grid) → tokens

HALF_WAY = "0.5"
RULE = "the layer half way, by our rule for networks without a source; not tried on real weights"


def none(network, conds: dict, grid: tuple[int, ...]) -> int:
    """No tokens."""
    return 0


@dataclass(frozen=True)
class Stack:
    """A transformer's list of blocks, and what lies where in them."""

    name: str  # in the names of its layers
    blocks: str  # the network's list of them; with ".*", of lists in which they are those that have the attention
    attention: str = ""  # the module in a block whose attention is the self-attention; "": the block has no other
    image: Place = first  # among that attention's tokens
    text: str = ""  # the input, or the host's "img_slice", that tells how many tokens of text come first
    streams: tuple[str, ...] = ()  # inputs that a block gives back changed, in this order; none: it cannot be skipped
    picture: int | None = 0  # which of the streams has the picture's tokens as its attention has them; None: none
    parts: bool = False  # whether that attention may be made in calls for some of its tokens after the other
    rows: int = 0  # the axis of the batch in the streams
    prefix: bool = False  # whether keys that have no queries come first
    grid: Callable | None = None  # (network, the latent's axes, block) → tokens on each axis, where blocks differ in it
    options_free: bool | None = (
        None  # whether that attention gets no transformer_options; None: the module's inputs tell
    )
    prefix_sharing: bool = True  # whether a block can run with some rows of its inputs left out
    prompt: tuple[str, ...] = ()  # where the text is: "first" or "last" in that attention, or what attends to it alone


@dataclass(frozen=True)
class Text:
    """What a network does with a text beside attending to it, where that is not done with each of its tokens by itself. A
    negative prompt follows the prompt in the same text."""

    apart: tuple[tuple[str, str], ...] = ()  # (module or list of modules that take it whole, their input for positions)
    positions: str = ""  # the module that makes rotations of the positions of text and picture …
    counted: bool = False  # … whose first axis counts the text's tokens, and then goes on with the picture …
    first_call: bool = False  # … and whether the text's come in a first call of their own
    embedder: str = ""  # the module after which …
    multiple: str = ""  # … the network fills a text up to a multiple of this attribute …
    padding: str = ""  # … with this one
    also: tuple[str, ...] = ()  # lists of blocks beside the stacks whose attention sees it too
    alone: tuple[str, ...] = ()  # conditionings that put other things into it, with which no negative prompt can act


@dataclass(frozen=True)
class Architecture:
    """A row of the table: what is known of one of the host's networks."""

    name: str  # as people know it
    network: str  # the end of the module path and the class name of the host's network
    stacks: tuple[Stack, ...]  # none: a UNet, whose blocks are taken from input, middle and output
    also: tuple[str, ...] = ()  # the host's subclasses of that network for which the row holds too
    auto: str = HALF_WAY  # the layers whose attention is perturbed by default …
    source: str = RULE  # … and where that comes from
    auto_skip: str = HALF_WAY  # the layers that are skipped by default, where they can be …
    skip_source: str = RULE  # … and where that comes from
    time: str = ""  # the module that embeds the timestep; none where it cannot be perturbed
    time_rows: str = (
        "first"  # which of its outputs are the sampler's time: "first" or "last" rows, "first call", "tokens"
    )
    grid: Grid = lambda network, spatial: patched(network.patch_size, spatial)
    latent: Latent = lambda shape, conds: shape[2:]
    is_set: bool = False  # whether the tokens have no order, so that nothing can be blurred over them
    shift: Beside = none  # tokens, neither text nor picture, by which the picture begins after where it should
    across: Beside = none  # tokens of another picture that follow in each row of the grid
    text: Text = Text()  # what happens to it, where a negative prompt can act
    no_prompt: str = ""  # why no negative prompt can act in it

    @property
    def place_of_text(self) -> str:
        """Where the text is in an attention of it and the picture, "first" or "last"; "keys" where it has no queries."""
        places = {place for stack in self.stacks for place in stack.prompt}
        return "first" if "first" in places else "last" if "last" in places else "keys"

    def prompt_layers(self, network) -> tuple[Layer, ...]:
        """The layers of `network` in whose attention a negative prompt can act, in its order."""
        if self.no_prompt:
            return ()
        if not self.stacks:
            return () if has_frames(network) else _unet_layers(network)
        return tuple(layer for layer in self.layers(network) if self.stack(layer).prompt)

    def layers(self, network) -> tuple[Layer, ...]:
        """The layers of `network` with a self-attention that can be perturbed, in its order."""
        if not self.stacks:
            return _unet_layers(network)
        return tuple(Layer(stack.name, index) for stack in self.stacks for index in range(len(_blocks(network, stack))))

    def tokens(self, network, shape: tuple[int, ...], conds: dict, layer: Layer | None = None) -> tuple[int, ...]:
        """The grid of the picture that is denoised in one call of `network`, whose x has this shape, in `layer`."""
        return self._grid(network, tuple(self.latent(shape, conds)), layer)

    def _grid(self, network, spatial: tuple[int, ...], layer: Layer | None) -> tuple[int, ...]:
        if layer is not None and self.stacks and (grid := self.stack(layer).grid):
            return grid(network, spatial, self.block(network, layer))
        return self.grid(network, spatial)

    def stack(self, layer: Layer) -> Stack:
        """The stack that `layer` is in."""
        return next(stack for stack in self.stacks if stack.name == layer.stack)

    def knows_what_enters(self, layer: Layer) -> bool:
        """Whether it is known which of the tokens that enter `layer` are the picture."""
        return not self.stacks or (bool(self.stack(layer).streams) and self.stack(layer).picture is not None)

    def block(self, network, layer: Layer):
        """The transformer block that is `layer`."""
        return _blocks(network, self.stack(layer))[layer.index]

    def blocks(self, network) -> dict[Layer, Any]:
        """The transformer block of each layer; of a UNet's layers None."""
        if not self.stacks:
            return dict.fromkeys(self.layers(network))
        blocks = ((stack, index, block) for stack in self.stacks for index, block in enumerate(_blocks(network, stack)))
        return {Layer(stack.name, index): block for stack, index, block in blocks}

    def attention(self, block, layer: Layer):
        """The module in whose calls the self-attention of `layer`, which is `block`, happens."""
        path = self.stack(layer).attention
        return submodule(block, path) if path else block

    def layout(self, network, shape: tuple[int, ...], conds: dict, layer: Layer) -> Layout:
        """Where the picture's tokens are in the self-attention of a transformer's `layer`, in one call of `network` whose
        x has this shape."""
        stack, whole = self.stack(layer), self.tokens(network, shape, conds)
        grid = self.tokens(network, shape, conds, layer) if stack.grid else whole
        shift, across = (beside(network, conds, whole) for beside in (self.shift, self.across))
        return Layout(grid, self.is_set, stack.image, shift, across, stack.prefix)

    def grids(self, network, spatial: tuple[int, ...]) -> dict[tuple[str, int], tuple[int, ...]]:
        """Tokens per axis of every block by (stack, index), whether it has a self-attention or not, for a latent with
        these axes."""
        if not self.stacks:
            return _unet_grids(network, spatial)
        return {(layer.stack, layer.index): self._grid(network, spatial, layer) for layer in self.layers(network)}

    def select(self, text: str, network, skip: bool = False) -> tuple[Layer, ...]:
        """The layers of `network` that `text` names, to be perturbed or skipped. Raises ValueError as `parse` does."""
        layers = self.layers(network)
        if not layers:
            raise ValueError(f"this {self.name} has no self-attention that can be perturbed")
        if skip:
            layers = tuple(layer for layer in layers if self.stacks and self.stack(layer).streams)
        if not layers:
            raise ValueError(
                f"no layer of {self.name} can be skipped; this works on transformers. PAG and SEG work here"
            )
        chosen = parse(text, layers, auto=_auto(self.auto_skip if skip else self.auto, layers))
        return whole_layers(text, chosen) if skip else chosen


def _auto(text: str, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The layers that `text` names, or in a network that is too small to have them the one in the middle."""
    try:
        return parse(text, layers, auto=())
    except ValueError:
        return (layers[len(layers) // 2],)


def _blocks(network, stack: Stack) -> list:
    path, nested, _ = stack.blocks.partition(".*")
    blocks = submodule(network, path)
    blocks = list(blocks.values() if hasattr(blocks, "values") else blocks)
    return [block for level in blocks for block in level if hasattr(block, stack.attention)] if nested else blocks


def submodule(module, path: str) -> Any:
    """The module at `path` in `module`."""
    for name in path.split("."):
        module = getattr(module, name)
    return module


def patched(patch, spatial: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens per axis of a latent that is cut into patches of `patch`, one size for height and width, or one per axis;
    a side that they do not divide is padded."""
    sizes = (1,) * (len(spatial) - 2) + (patch, patch) if isinstance(patch, int) else patch
    return tuple(-(-side // size) for side, size in zip(spatial, sizes[-len(spatial) :], strict=True))


def _unet_layers(network) -> tuple[Layer, ...]:
    return tuple(
        Layer(stack, index, part, len(module.transformer_blocks))
        for stack, index, module in unet_modules(network)
        if hasattr(module, "transformer_blocks")
        for part in range(len(module.transformer_blocks))
    )


def unet_modules(network) -> Iterator[tuple[str, int, Any]]:
    """(stack, number of the block there, module) of what a UNet's rows pass through, in order."""
    stacks = {"input": network.input_blocks, "middle": [network.middle_block], "output": network.output_blocks}
    for stack, blocks in stacks.items():
        for index, block in enumerate(blocks):
            for module in block or ():
                yield stack, index, module


def unet_transformer(network, layer: Layer) -> Any:
    """The transformer of a UNet that is `layer`."""
    return next(
        module.transformer_blocks[layer.part]
        for stack, index, module in unet_modules(network)
        if (stack, index) == (layer.stack, layer.index) and hasattr(module, "transformer_blocks")
    )


def has_frames(network) -> bool:
    """Whether a UNet's rows are the frames of videos, which it mixes."""
    return any(hasattr(module, "time_stack") for _, _, module in unet_modules(network))


def _unet_grids(network, spatial: tuple[int, ...]) -> dict[tuple[str, int], tuple[int, ...]]:
    """A block of the decoder works at the resolution of the encoder's that it takes over from."""
    sizes = []
    for block in network.input_blocks:
        if any(type(module).__name__ == "Downsample" for module in block):
            spatial = tuple(-(-side // 2) for side in spatial)
        sizes.append(spatial)
    grids = {("input", index): size for index, size in enumerate(sizes)} | {("middle", 0): spatial}
    return grids | {("output", index): size for index, size in enumerate(reversed(sizes))}


def _after_the_picture(network, conds, grid) -> int:
    """Ming-Image has its references after the picture, and Z-Image fills both up to a multiple of 32 tokens."""
    references = [patched(network.patch_size, tuple(frame.shape[-2:])) for frame in conds.get("ref_frames") or ()]
    after = sum(map(math.prod, references))
    return -after - (-(math.prod(grid) + after) % (getattr(network, "pad_tokens_multiple", None) or 1))


def _ltx_latent(shape, conds) -> tuple[int, ...]:
    """Where sound is packed with the video, x is a list of numbers; the frames of keyframe guides follow the video's."""
    frames, height, width = tuple((conds.get("latent_shapes") or [shape])[0])[2:]
    guides = conds.get("keyframe_idxs")
    return frames - (0 if guides is None else guides.shape[2] // (height * width)), height, width


def _cosmos_grid(network, spatial: tuple[int, ...]) -> tuple[int, ...]:
    return patched((network.patch_temporal, network.patch_spatial, network.patch_spatial), spatial)


def _wan_reference(network, conds, grid) -> int:
    """The tokens of Fun's reference picture come before the video's, as one more frame, and SCAIL's as some."""
    reference = conds.get("reference_latent")
    if reference is None:
        return 0
    if hasattr(network, "patch_embedding_pose"):
        return math.prod(patched(network.patch_size, tuple(reference.shape[2:])))
    return grid[1] * grid[2] if getattr(network, "ref_conv", None) is not None else 0


def _hidream_edited(network, conds, grid) -> int:
    """E1's picture that is edited lies at the right of the one that is made."""
    edited = conds.get("image_cond")
    return 0 if edited is None else patched(network.patch_size, tuple(edited.shape[2:]))[1]


def _hidream_timestep(network, conds, grid) -> int:
    """The last of the text's tokens, the time's, is among those of the picture."""
    return conds["input_ids"].shape[1] - conds["ar_len"]


def _cascade_level(network, spatial, block) -> tuple[int, ...]:
    """The grid of the level with `block`; the levels up are those down, the last first."""
    factor = network.embedding[0].downscale_factor
    levels = zip(network.down_blocks, reversed(network.up_blocks), network.down_downscalers, strict=True)
    for down, up, between in levels:
        parts = [(getattr(part, "stride", None), getattr(part, "scale_factor", None)) for part in between.modules()]
        factor *= 2 if any(stride == (2, 2) or scale == 0.5 for stride, scale in parts) else 1
        if any(block is other for other in (*down, *up)):
            return tuple(side // factor for side in spatial)
    raise LookupError(f"{type(network).__name__} has no level with this block")


_WAN_STG = "diffusers' STG pipeline for Wan 2.1 14B (block 8); not tried on real weights"
_FLUX = (
    Stack("double", "double_blocks", image=after_text, text="txt", streams=("img", "txt"), prompt=("first",)),
    Stack("single", "single_blocks", image=after_text, text="img_slice", streams=("x",), prompt=("first",)),
)
_HUNYUAN = (
    Stack("double", "double_blocks", image=last, streams=("img", "txt"), prompt=("first",)),
    Stack("single", "single_blocks", image=last, streams=("x",), prompt=("first",)),
)
_QWEN_TEXT = "encoder_hidden_states"
_QWEN = (
    Stack(
        "block",
        "transformer_blocks",
        "attn",
        image=after_text,
        text=_QWEN_TEXT,
        streams=(_QWEN_TEXT, "hidden_states"),
        picture=1,
        prompt=("first",),
    ),
)
_CASCADE = (  # no time: it is embedded by no module; no skipping: a block is an attention alone; the text's keys are last
    Stack("input", "down_blocks.*", "attention", grid=_cascade_level),
    Stack("output", "up_blocks.*", "attention", grid=_cascade_level),
)

ARCHITECTURES = (
    Architecture(
        name="Stable Diffusion 1, 2, XL, SVD",
        network="openaimodel.UNetModel",
        stacks=(),
        auto="middle",
        source="PAG's official Stable Diffusion demo (SD 1.5: m0; SDXL: all ten transformers of the middle block)",
        time="time_embed",
    ),
    Architecture(
        name="SD3, SD3.5",
        network="mmdit.OpenAISignatureMMDITWrapper",
        stacks=(Stack("double", "joint_blocks", image=last, streams=("context", "x"), picture=1, prompt=("first",)),),
        auto="double.1",
        source="diffusers' SD3 PAG pipeline (blocks.1); not tried on real weights",
        time="t_embedder",
        auto_skip="double.7-9",
        skip_source="Stability's own for SD3.5 medium, and the host's Skip Layer nodes",
    ),
    Architecture(
        name="Flux",
        text=Text(positions="pe_embedder"),
        network="flux.model.Flux",
        stacks=_FLUX,
        auto="single.0",
        source="a peer's default (Fluxtapoz: single 0); not tried on real weights",
        time="time_in",
        auto_skip="double.7-9, single.7-9",
        skip_source="the host's Skip Layer node, whose defaults are the same for all models; not tried on real weights",
    ),
    Architecture(
        name="Chroma, Chroma Radiance",
        text=Text(positions="pe_embedder"),
        network="chroma.model.Chroma",
        also=("chroma_radiance.model.ChromaRadiance",),
        stacks=_FLUX,
        # no time: it is embedded together with the number of what it modulates
    ),
    Architecture(
        name="Qwen-Image",
        text=Text(positions="pe_embedder"),
        network="qwen_image.model.QwenImageTransformer2DModel",
        stacks=_QWEN,
        time="time_text_embed.timestep_embedder",
    ),
    Architecture(
        name="Mage-Flow",
        network="mage_flow.model.MageFlowTransformer2DModel",
        stacks=_QWEN,
        time="time_text_embed.timestep_embedder",
    ),
    Architecture(
        name="Krea 2",
        text=Text(apart=(("txtfusion", ""),)),
        network="krea2.model.SingleStreamDiT",
        stacks=(
            Stack("block", "blocks", "attn", image=after_text, text="img_slice", streams=("x",), prompt=("first",)),
        ),
        time="tmlp",
        time_rows="first call",  # the references' time has another
        grid=lambda network, spatial: patched((1, network.patch, network.patch), spatial),
    ),
    Architecture(
        name="Lens",
        text=Text(positions="pos_embed"),
        network="lens.model.LensTransformer2DModel",
        stacks=(
            Stack(
                "block",
                "transformer_blocks",
                "attn",
                image=first,
                streams=("encoder_hidden_states", "hidden_states"),
                picture=1,
                prompt=("last",),
            ),
        ),
        time="time_text_embed",
        grid=lambda network, spatial: spatial,
    ),
    Architecture(
        name="HiDream I1, E1",
        no_prompt="each of its blocks gets a part of the text of its own",
        network="hidream.model.HiDreamImageTransformer2DModel",
        across=_hidream_edited,
        stacks=(
            Stack(
                "double", "double_stream_blocks", image=first, streams=("image_tokens", "text_tokens"), prompt=("last",)
            ),
            Stack("single", "single_stream_blocks", image=first, streams=("image_tokens",), prompt=("last",)),
        ),
        time="t_embedder",
    ),
    Architecture(
        name="HiDream O1",
        no_prompt="it takes the text as numbers of tokens, in one sequence with the picture",
        network="hidream_o1.model.HiDreamO1Transformer",
        # a layer cannot be skipped: the host keeps the text's keys of each, for all rows and steps
        stacks=(Stack("block", "language_model.layers", "self_attn", image=first, prefix=True),),
        time="t_embedder1",
        shift=_hidream_timestep,
    ),
    Architecture(
        name="Stable Cascade C",
        no_prompt="its text and the pooled text of a picture are one sequence",
        network="cascade.stage_c.StageC",
        stacks=_CASCADE,
        grid=lambda network, spatial: spatial,
    ),
    Architecture(
        name="Stable Cascade B",
        no_prompt="it gets the pooled text alone",
        network="cascade.stage_b.StageB",
        stacks=_CASCADE,
        grid=lambda network, spatial: spatial,
    ),
    Architecture(
        name="AuraFlow",
        no_prompt="it puts tokens of its own before each text",
        network="aura.mmdit.MMDiT",
        stacks=(
            Stack("double", "double_layers", image=last, streams=("c", "x"), picture=1, prompt=("first",)),
            Stack("single", "single_layers", image=last, streams=("cx",), prompt=("first",)),
        ),
        time="t_embedder",
    ),
    Architecture(
        name="OmniGen 2",
        no_prompt="the positions of its picture follow from the length of its text",
        network="omnigen.omnigen2.OmniGen2Transformer2DModel",
        stacks=(Stack("block", "layers", "attn", image=last, streams=("hidden_states",), prompt=("first",)),),
        time="time_caption_embed.timestep_embedder",
    ),
    Architecture(
        name="Boogu",
        no_prompt="the positions of its picture follow from the length of its text",
        network="boogu.model.BooguTransformer2DModel",
        stacks=(
            Stack(  # it has two attentions, one of the text and the picture and one of the picture alone
                "double", "double_stream_layers", image=last, streams=("img_hidden_states", "instruct_hidden_states")
            ),
            Stack("single", "single_stream_layers", "attn", image=last, streams=("hidden_states",)),
        ),
        time="time_caption_embed.timestep_embedder",
    ),
    Architecture(
        name="Wan",
        text=Text(also=("vace_blocks",)),
        network="wan.model.WanModel",
        also=(
            "wan.model.VaceWanModel",
            "wan.model.CameraWanModel",
            "wan.model.HumoWanModel",
            "wan.model.SCAILWanModel",
            "wan.model.SCAIL2WanModel",
            "wan.model_animate.AnimateWanModel",
            "wan.model_wandancer.WanDancerModel",
        ),
        stacks=(Stack("block", "blocks", "self_attn", image=first, streams=("x",), prompt=("cross_attn",)),),
        time="time_embedding",
        time_rows="tokens",
        auto_skip="block.8",
        skip_source=_WAN_STG,
        shift=_wan_reference,
    ),
    Architecture(
        name="Wan S2V",
        network="wan.model.WanModel_S2V",  # its references have times of their own among the video's
        stacks=(Stack("block", "blocks", "self_attn", image=first, streams=("x",), prompt=("cross_attn",)),),
        auto_skip="block.8",
        skip_source=_WAN_STG,
    ),
    Architecture(
        name="LTX-Video",
        network="lightricks.model.LTXVModel",
        stacks=(
            Stack("block", "transformer_blocks", "attn1", image=first, streams=("x",), parts=True, prompt=("attn2",)),
        ),
        auto="block.14, block.19",
        source="the default of Lightricks' own nodes for it (STG: 14, 19)",
        time="adaln_single.emb",
        time_rows="tokens",
        auto_skip="block.19",
        skip_source="diffusers' STG pipeline for it (block 19); not tried on real weights",
        grid=lambda network, spatial: spatial,
        latent=_ltx_latent,
    ),
    Architecture(
        name="LTX-2",
        network="lightricks.av_model.LTXAVModel",
        stacks=(  # the video's attention alone; a block that is skipped is skipped for the sound too
            Stack(
                "block",
                "transformer_blocks",
                "attn1",
                image=first,
                streams=("x",),
                parts=True,
                prompt=("attn2", "audio_attn2"),
            ),
        ),
        auto="block.29",
        source="Lightricks' own pipelines for it (STG: 29, or 28 for LTX-2.3), which perturb the sound too",
        time="adaln_single.emb",
        time_rows="tokens",
        grid=lambda network, spatial: spatial,
        latent=_ltx_latent,
    ),
    Architecture(
        name="Cosmos 1",
        network="cosmos.model.GeneralDIT",
        stacks=(
            Stack(
                "block",
                "blocks",
                "blocks.0.block.attn",
                image=first,
                streams=("x",),
                rows=3,
                prompt=("blocks.1.block.attn",),
            ),
        ),
        time="t_embedder.0",  # what follows gives two tensors
        grid=_cosmos_grid,
    ),
    Architecture(
        name="Cosmos-Predict2, Anima",
        network="cosmos.predict2.MiniTrainDIT",
        also=("anima.model.Anima",),
        stacks=(Stack("block", "blocks", "self_attn", image=first, streams=("x_B_T_H_W_D",), prompt=("cross_attn",)),),
        time="t_embedder.0",
        time_rows="tokens",
        grid=_cosmos_grid,
    ),
    Architecture(
        name="Mochi",
        no_prompt="it cuts its text to the number of its tokens",
        network="genmo.joint_model.asymm_models_joint.AsymmDiTJoint",
        stacks=(Stack("block", "blocks", "attn", image=first, streams=("x", "y"), prompt=("last",)),),
        time="t_embedder",
        auto_skip="block.34",
        skip_source="the STG authors' own example for it (block 34); not tried on real weights",
    ),
    Architecture(
        name="Kandinsky 5",
        text=Text(apart=(("text_transformer_blocks", "freqs"),)),
        network="kandinsky5.model.Kandinsky5",
        stacks=(
            Stack(
                "block",
                "visual_transformer_blocks",
                "self_attention",
                image=first,
                streams=("visual_embed",),
                prompt=("cross_attention",),
            ),
        ),
        time="time_embeddings",
    ),
    Architecture(
        name="CogVideoX",
        network="cogvideo.model.CogVideoXTransformer3DModel",
        stacks=(
            Stack("block", "blocks", image=last, streams=("hidden_states", "encoder_hidden_states"), prompt=("first",)),
        ),
        time="time_embedding_linear_2",
        auto_skip="block.11",
        skip_source="the STG authors' own example for CogVideoX-2b (block 11); not tried on real weights",
        grid=lambda network, spatial: patched(
            (network.patch_size_t or 1, network.patch_size, network.patch_size), spatial
        ),
    ),
    Architecture(
        name="Stable Audio",
        network="audio.dit.AudioDiffusionTransformer",
        stacks=(  # version 3 takes one attention from another: both are perturbed
            Stack("block", "transformer.layers", "self_attn", image=last, streams=("x",), prompt=("cross_attn",)),
        ),
        time="to_timestep_embed",
    ),
    Architecture(
        name="HunyuanVideo",
        text=Text(apart=(("txt_in", ""),), alone=("txt_byt5", "clip_fea", "guiding_frame_index")),
        network="hunyuan_video.model.HunyuanVideo",
        stacks=_HUNYUAN,
        time="time_in",
        time_rows="first call",  # the second is the guiding frame's
        auto_skip="double.2",
        skip_source="diffusers' STG pipeline for HunyuanVideo (transformer block 2); not tried on real weights",
    ),
    Architecture(
        name="Lumina 2, Z-Image",
        text=Text(
            apart=(("context_refiner", "freqs_cis"),),
            positions="rope_embedder",
            counted=True,
            first_call=True,
            embedder="cap_embedder",
            multiple="pad_tokens_multiple",
            padding="cap_pad_token",
            alone=("ref_latents", "ref_contexts", "siglip_feats"),
        ),
        network="lumina.model.NextDiT",
        also=("lumina.model.NextDiTPixelSpace",),
        stacks=(Stack("block", "layers", "attention", image=last, streams=("x",), prompt=("first",)),),
        time="t_embedder",
        time_rows="last",  # the references' time comes first
        shift=_after_the_picture,
    ),
    Architecture(
        name="PixArt",
        no_prompt="the text of all rows is one sequence",
        network="pixart.pixartms.PixArtMS",
        # the text of all rows is one sequence
        stacks=(
            Stack("block", "blocks", "attn", image=first, streams=("x",), prefix_sharing=False, prompt=("cross_attn",)),
        ),
        auto="block.1",
        source="diffusers' PixArt-Σ PAG pipeline (blocks.1); not tried on real weights",
        time="t_embedder",
    ),
    Architecture(
        name="HunyuanDiT",
        no_prompt="its text has a length of its own, with learned padding",
        network="hydit.models.HunYuanDiT",
        stacks=(Stack("block", "blocks", "attn1", image=first, streams=("x",), prompt=("attn2",)),),
        auto="block.1",
        source="diffusers' HunyuanDiT PAG pipeline (blocks.1); not tried on real weights",
        time="t_embedder",
    ),
    Architecture(
        name="Ernie-Image",
        text=Text(positions="pos_embed", counted=True),
        network="ernie.model.ErnieImageModel",
        stacks=(Stack("block", "layers", "self_attention", image=first, streams=("x",), prompt=("last",)),),
        time="time_embedding",
    ),
    Architecture(
        name="Ideogram 4",
        no_prompt="nothing outside its forward tells the positions of its text",
        network="ideogram4.model.Ideogram4Transformer2DModel",
        stacks=(Stack("block", "layers", "attention", image=last, streams=("x",), prompt=("first",)),),
        time="t_embedding",
        grid=lambda network, spatial: spatial,
    ),
    Architecture(
        name="PixelDiT, PiD",
        no_prompt="nothing outside its forward tells the positions of its text",
        network="pixeldit.model.PixDiT_T2I",
        also=("pixeldit.pid.PidNet",),
        stacks=(
            Stack("patch", "patch_blocks", "attn", image=last, streams=("x", "y"), prompt=("first",)),
            Stack("pixel", "pixel_blocks", "attn", image=first, streams=("x",), picture=None),
        ),
        time="t_embedder",
    ),
    Architecture(
        name="JoyImage",
        network="joyimage.model.JoyImageTransformer3DModel",
        stacks=(
            Stack(
                "block",
                "double_blocks",
                "attn",
                image=first,
                streams=("hidden_states", "encoder_hidden_states"),
                prompt=("last",),
            ),
        ),
        time="condition_embedder.time_embedder",
    ),
    Architecture(
        name="Hunyuan3D 2",
        no_prompt="it gets a picture and no text",
        network="hunyuan3d.model.Hunyuan3Dv2",
        stacks=_HUNYUAN,
        time="time_in",
        grid=lambda network, spatial: spatial[-1:],
        is_set=True,
    ),
    Architecture(
        name="TripoSplat",
        no_prompt="it gets pictures and no text",
        network="triposplat.model.LatentSeqMMFlowModel",
        stacks=(Stack("block", "blocks", "attn", image=first, streams=("x",)),),
        time="t_embedder",
        grid=lambda network, spatial: (network.q_token_length,),
        is_set=True,
    ),
)


REFUSED = {  # networks whose self-attention cannot be perturbed, and why
    "minimax.model.MiniMaxH3Model": "it takes one row at a time, video and sound in one sequence",
    "wan.ar_model.CausalWanModel": "it makes frame after frame over a cache of keys that all rows share",
    "ace.model.ACEStepTransformer2DModel": "its self-attention is linear, without weights that could be perturbed",
    "ace.ace_step15.AceStepConditionGenerationModel": "the host gives the timbre of all rows of a batch to the first",
    "hunyuan3dv2_1.hunyuandit.HunYuanDiTPlain": "the host exchanges the halves of a batch, whatever they are of",
    "seedvr.model.NaDiT": "it attends within windows of many sizes, one after the other",
    "wan.model_animate2.WanAnimate2Model": "it attends frame by frame, and each frame sees the keys of a pose too",
    "trellis2.model.Trellis2": "its shapes are sets of cells, whose number differs from row to row",
}


def find(network) -> Architecture | None:
    """The row of a network of the host's, or None. A class that derives from one with a row has none, unless the row
    names it: what it has changed is not known."""
    if refused(network):
        return None
    name = _name(type(network))
    return next((row for row in ARCHITECTURES for path in (row.network, *row.also) if name.endswith(f".{path}")), None)


def refused(network) -> str:
    """Why a network is refused; "" for one that is not. What derives from a refused network is refused too."""
    names = [_name(kind) for kind in type(network).__mro__]
    return next((why for name in names for path, why in REFUSED.items() if name.endswith(f".{path}")), "")


def why_not(network) -> str:
    """Why a network without a row cannot be perturbed."""
    return refused(network) or "nothing here knows where its self-attention is"


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
