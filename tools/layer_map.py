"""README's Layer Maps: SDXL and Flux at their real sizes, without weights."""

from .places import ROOT

SDXL = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "channel_mult": (1, 2, 4),
    "num_res_blocks": [2, 2, 2], "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context_dim": 2048, "use_spatial_transformer": True,
    "use_linear_in_transformer": True, "legacy": False, "num_classes": "sequential", "adm_in_channels": 2816,
    "num_head_channels": 64, "num_heads": -1,
}  # fmt: skip
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 768,
    "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "axes_dim": [16, 56, 56], "depth": 19,
    "depth_single_blocks": 38, "theta": 10000, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
MAPS = (("SDXL", "SDXL", SDXL, "middle, output.0.3-5"), ("Flux", "Flux", FLUX, "single.0, double.7-9"))


def write() -> None:
    """Draw both. The host has to be importable."""
    from comfy import model_base, model_patcher, ops, supported_models
    from PIL import Image
    from torch import device, float16

    from ..nodes.pictures.drawing import draw_layers
    from ..patches.host import layer_map

    pictures = []
    for config_class, model_class, settings, layers in MAPS:
        config = getattr(supported_models, config_class)(settings)
        config.unet_config["dtype"], config.custom_operations = float16, ops.disable_weight_init
        with device("meta"):
            network = getattr(model_base, model_class)(config, device="meta")
        model = model_patcher.ModelPatcher(network, device("cpu"), device("cpu"))
        pixels = (draw_layers(layer_map(model, layers, 1024, 1024))[0] * 255).byte().numpy()
        pictures.append(Image.fromarray(pixels))
    width = 1000
    pictures = [picture.resize((width, round(picture.height * width / picture.width))) for picture in pictures]
    sheet = Image.new("RGB", (width, sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    sheet.save(ROOT / "benchmarks" / "layer_map.jpg", quality=88)
