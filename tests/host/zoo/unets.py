"""UNets: each level has a grid of its own."""

from pack.tests.host import networks

from .specimen import Specimen


def double(model):
    """In float64, where the host's kernels allow it."""
    model.model.diffusion_model.double().dtype = networks.torch.float64
    return model


SD1 = {
    **dict.fromkeys(("input.1", "input.2", "output.3", "output.4", "output.5"), (6, 10)),
    **dict.fromkeys(("input.4", "input.5", "middle", "output.0", "output.1", "output.2"), (3, 5)),
}
SD1_ORDER = ["input.1", "input.2", "input.4", "input.5", "middle", *(f"output.{at}" for at in range(6))]
SDXL_BLOCKS = ("input.4", "input.5", "middle.0", "output.0", "output.1", "output.2")
SDXL_ORDER = [f"{block}.{part}" for block in SDXL_BLOCKS for part in (0, 1)]

SPECIMENS = [
    Specimen(
        "Stable Diffusion 1", "Stable Diffusion 1, 2, XL, SVD", lambda: double(networks.unet()), (4, 6, 10),
        {"c_crossattn": (15, 32)},
        [call for layer in SD1_ORDER for call in (layer, "")], slice(0, 15), (3, 5), grids=SD1,
    ),
    Specimen(
        "SDXL", "Stable Diffusion 1, 2, XL, SVD", lambda: double(networks.unet(sdxl_like=True)), (4, 6, 10),
        {"c_crossattn": (15, 32), "y": (24 + 6 * 256,)}, [call for layer in SDXL_ORDER for call in (layer, "")],
        slice(0, 15), (3, 5),
    ),
]  # fmt: skip
