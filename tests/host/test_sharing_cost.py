"""What a guided step costs, counted in floating-point operations of full-size networks without weights (meta tensors),
against the host's own way: one forward of the positive and the negative, and one more of the perturbed row."""

import comfy.model_base
import comfy.model_management
import comfy.ops
import comfy.supported_models
import pytest
import torch
from pack.patches import BlurredQuery, IdentityAttention, SkippedLayer
from pack.patches.architectures import find
from pack.patches.base import Moment
from pack.patches.host import Plan, Sharing, planned
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
NETWORKS = {  # the host's class, its configuration; x and conditionings of one row
    "SD 1.5": ("BaseModel", "SD15", {**UNET, **SD15}, (4, 64, 64), {"c_crossattn": (77, 768)}),
    "SDXL": ("SDXL", "SDXL", {**UNET, **SDXL}, (4, 128, 128), {"c_crossattn": (77, 2048), "y": (2816,)}),
    "Flux": (
        "Flux", "Flux", FLUX, (16, 128, 128), {"c_crossattn": (512, 4096), "y": (768,), "guidance": ()},
    ),
}  # fmt: skip


class Step:
    """Counts a step of one network; rows are the positive, the negative where there is CFG, and perturbed positives."""

    def __init__(self, name: str):
        model_class, config_class, settings, self.latent, self.conds = NETWORKS[name]
        config = getattr(comfy.supported_models, config_class)(dict(settings))
        config.unet_config["dtype"] = torch.bfloat16
        config.custom_operations = comfy.ops.disable_weight_init
        self.model = getattr(comfy.model_base, model_class)(config, device="meta").to("meta")

    def layers(self, text: str):
        return find(self.model.diffusion_model).select(text, self.model.diffusion_model)

    def forward(self, shares: tuple, copies: tuple = ()) -> int:
        options = {"cond_or_uncond": [0] * len(shares), "uuids": [*range(len(shares))]}
        if any(shares):
            options = planned(options, Plan(shares, {*shares} - {None}, Moment(), None, copies, Sharing()))
        x, conds = (
            torch.zeros(len(shares), *self.latent, device="meta"),
            {key: torch.zeros(len(shares), *shape, device="meta") for key, shape in self.conds.items()},
        )
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.model.apply_model(x, torch.ones(len(shares), device="meta"), transformer_options=options, **conds)
        return counter.get_total_flops()

    def shared(self, cfg: bool, *perturbations) -> int:
        own = ("negative", "positive") if cfg else ("positive",)
        copies = own + ("positive",) * len(perturbations)
        return self.forward((None,) * len(own) + perturbations, copies)

    def naive(self, cfg: bool, *perturbations) -> int:
        return self.forward((None,) * (2 if cfg else 1)) + sum(self.forward((p,)) for p in perturbations)


@pytest.fixture(scope="module")
def steps():
    """Each network once."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "equal", lambda *_: True)  # which cannot be asked of tensors without values
        patch.setattr(
            comfy.model_management, "get_free_memory", lambda _, both=False: (2**40, 2**40) if both else 2**40
        )
        yield lambda name: made.setdefault(name, Step(name))


@pytest.mark.parametrize("cfg, most", [(True, 0.90), (False, 0.845)])
@pytest.mark.parametrize("name", ["SD 1.5", "SDXL"])
def test_pag_in_the_middle_of_a_unet(steps, name, cfg, most):
    step = steps(name)
    pag = IdentityAttention(step.layers("middle"))
    ratio = step.shared(cfg, pag) / step.naive(cfg, pag)
    print(name, cfg, ratio)
    assert ratio <= most


@pytest.mark.parametrize("layer, with_cfg, without", [("double.28", 0.84, 0.76), ("double.43", 0.755, 0.63)])
def test_pag_half_way_and_three_quarters_through_flux(steps, layer, with_cfg, without):
    step = steps("Flux")
    at = int(layer.split(".")[1])
    pag = IdentityAttention((step.layers("all")[at],))
    for cfg, most in ((True, with_cfg), (False, without)):
        ratio = step.shared(cfg, pag) / step.naive(cfg, pag)
        print(layer, cfg, ratio)
        assert ratio <= most


@pytest.mark.parametrize("name", ["SD 1.5", "SDXL"])
def test_seg_in_the_middle_and_decoder_of_a_unet(steps, name):
    """Against the same perturbation by a forward of its own that attends with all queries."""
    step = steps(name)
    layers = step.layers("middle, " + ("output.3-11" if name == "SD 1.5" else "output.0-5"))
    naive = step.forward((None, None)) + step.forward((None,))
    ratio = step.shared(True, BlurredQuery(layers, -1.0)) / naive
    print(name, ratio)
    assert ratio <= 0.87


def test_each_row_costs_what_it_does_not_have_in_common_with_another(steps):
    """PAG, SEG and Skip Layer on Flux: each row's own part is what comes after the layer where it parts."""
    step = steps("Flux")
    layers = step.layers("all")
    perturbations = (IdentityAttention((layers[19],)), BlurredQuery((layers[28],), -1.0), SkippedLayer((layers[43],)))
    together = step.shared(True, *perturbations)
    one_by_one = [step.shared(True, p) for p in perturbations]
    own = step.forward((None, None))
    assert abs(together - own - sum(one - own for one in one_by_one)) < 1e-3 * own
    print(together / step.naive(True, *perturbations))
    assert together < 0.8 * step.naive(True, *perturbations)
