"""Networks of full size without weights (meta tensors), in which the floating-point operations of a step are counted."""

import contextlib
from unittest import mock

import comfy.model_base
import comfy.model_management
import comfy.ops
import comfy.supported_models
import torch
from pack.guiders.windows import Windows
from pack.patches.architectures import find
from pack.patches.base import Moment
from pack.patches.host import Blocks, NegativePrompt, Plan, PrefixSharing, Proofs, planned, probe
from torch.utils.flop_counter import FlopCounterMode

SD15 = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": (1, 2, 4, 4),
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "context_dim": 768,
    "num_heads": 8,
    "num_head_channels": -1,
}
SDXL = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": (1, 2, 4),
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "context_dim": 2048,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "num_heads": -1,
    "num_head_channels": 64,
}
UNET = {"image_size": 32, "use_spatial_transformer": True, "legacy": False}
FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "axes_dim": [16, 56, 56],
    "depth": 19,
    "depth_single_blocks": 38,
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
LUMINA = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 2304,
    "cap_feat_dim": 2304,
    "n_layers": 26,
    "n_heads": 24,
    "n_kv_heads": 8,
    "qk_norm": True,
    "axes_dims": [32, 32, 32],
    "axes_lens": [300, 512, 512],
    "rope_theta": 10000.0,
    "ffn_dim_multiplier": 4.0,
}
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "in_dim": 16,
    "out_dim": 16,
    "dim": 1536,
    "ffn_dim": 8960,
    "num_heads": 12,
    "num_layers": 30,
    "text_dim": 4096,
    "freq_dim": 256,
}
NETWORKS = {  # the host's class, its configuration; x and conditionings of one row: shapes, or values
    "SD 1.5": ("BaseModel", "SD15", {**UNET, **SD15}, (4, 64, 64), {"c_crossattn": (77, 768)}),
    "SDXL": ("SDXL", "SDXL", {**UNET, **SDXL}, (4, 128, 128), {"c_crossattn": (77, 2048), "y": (2816,)}),
    "Flux": (
        "Flux", "Flux", FLUX, (16, 128, 128), {"c_crossattn": (512, 4096), "y": (768,), "guidance": ()},
    ),
    "Lumina 2": ("Lumina2", "Lumina2", LUMINA, (16, 128, 128), {"c_crossattn": (256, 2304), "num_tokens": 256}),
    "Wan 2.1 1.3B": ("WAN21", "WAN21_T2V", WAN, (16, 21, 60, 104), {"c_crossattn": (512, 4096)}),
}  # fmt: skip


class Step:
    """Counts a step of one network; rows are the positive, the negative where there is CFG, and perturbed positives."""

    def __init__(self, name: str):
        model_class, config_class, settings, self.latent, self.conds = NETWORKS[name]
        config = getattr(comfy.supported_models, config_class)(dict(settings))
        config.unet_config["dtype"] = torch.bfloat16
        config.custom_operations = comfy.ops.disable_weight_init
        self.model = getattr(comfy.model_base, model_class)(config, device="meta").to("meta")

    def negative(self, guidance: type) -> int:
        """A row with a negative prompt in all of its attention to the prompt."""
        layers = find(self.model.diffusion_model).prompt_layers(self.model.diffusion_model)
        return self.forward((None,), guidance=guidance(layers))

    def layers(self, text: str):
        return find(self.model.diffusion_model).select(text, self.model.diffusion_model)

    def forward(self, shares: tuple, copies: tuple = (), attention: bool = True, guidance=None, latent=None) -> int:
        """attention: whether it is computed; else it gives zeros. guidance: by a negative prompt in the attention of all
        rows, of as many tokens as the prompt. latent: its shape, where it is not the network's own."""
        options = {"cond_or_uncond": [0] * len(shares), "uuids": [*range(len(shares))]}
        if not attention:
            options["optimized_attention_override"] = lambda _, *given, **more: probe.zeros(*given, **more)
        if any(shares) or guidance:
            text = torch.zeros(1, *self.conds["c_crossattn"], device="meta")
            negatives = tuple(NegativePrompt(guidance, text) for _ in shares) if guidance else ()
            run = (PrefixSharing(), Blocks(), False, negatives)
            options = planned(options, Plan(shares, Proofs(shares), Moment(), None, copies, *run))
        x = torch.zeros(len(shares), *(latent or self.latent), device="meta")
        conds = {
            key: torch.zeros(len(shares), *value, device="meta") if isinstance(value, tuple) else value
            for key, value in self.conds.items()
        }
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.model.apply_model(x, torch.ones(len(shares), device="meta"), transformer_options=options, **conds)
        return counter.get_total_flops()

    def windowed(self, windows: Windows) -> tuple[int, int]:
        """(how many windows the picture has, what one forward of all of them costs)"""
        every = windows.of(*self.latent[-2:])
        return len(every), self.forward((None,) * len(every), latent=(*self.latent[:-2], *every[0][2:]))

    def shared(self, cfg: bool, *perturbations) -> int:
        own = ("negative", "positive") if cfg else ("positive",)
        copies = own + ("positive",) * len(perturbations)
        return self.forward((None,) * len(own) + perturbations, copies)

    def naive(self, cfg: bool, *perturbations) -> int:
        return self.forward((None,) * (2 if cfg else 1)) + sum(self.forward((p,)) for p in perturbations)


@contextlib.contextmanager
def without_values():
    """What cannot be asked of tensors without values has an answer: rows are equal, and there is memory."""
    free = 2**40
    memory = lambda _, torch_free_too=False: (free, free) if torch_free_too else free  # noqa: E731
    equal = mock.patch.object(torch, "equal", return_value=True)
    with equal, mock.patch.object(comfy.model_management, "get_free_memory", memory):
        yield
