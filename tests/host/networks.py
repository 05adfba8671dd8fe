"""Small networks of the host's own classes, built in memory: a model call takes milliseconds on a CPU.

Weights are random, with queries and keys large enough that attention is far from uniform.

    model = networks.unet()                     # a fresh ModelPatcher, same weights for the same seed
    positive = networks.conditioning("unet", seed=1)
    noise = torch.randn_like(networks.latent("unet"))

kind    network                 layers with self-attention (tokens for the default latent)
unet    SD 1.5 style UNet       input 1, 2 (256), 4, 5 (64) · middle 0 (64) · output 0, 1, 2 (64), 3, 4, 5 (256)
        sdxl_like               input 4, 5 · middle 0 · output 0, 1, 2 (64), two transformers each
sd3     MMDiT, 3 joint blocks   double_block 0, 1, 2 (64)
flux    Flux, 2 + 3 blocks      double_block 0, 1 · single_block 0, 1, 2 (64)
wan     Wan 2.1, 2 blocks       double_block 0, 1 (3 frames x 16)

The host has to be on sys.path before this module is imported.
"""

import comfy.model_base
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import torch

CONTEXT = 32  # width of the text tokens, for every kind
POOLED = 24  # width of the pooled text, for the kinds that have one
LATENT = {"unet": (4, 16, 16), "sdxl": (4, 16, 16), "sd3": (16, 16, 16), "flux": (16, 16, 16), "wan": (16, 3, 8, 8)}


def unet(prediction: str = "eps", channels: int = 32, seed: int = 0, sdxl_like: bool = False):
    """prediction: "eps" or "v". sdxl_like: no transformer at the first level, two per layer at the second."""
    family = comfy.supported_models.SDXL if sdxl_like else comfy.supported_models.SD15
    depth = [0, 2] if sdxl_like else [1, 1]  # transformers in series, at each level
    config = family(
        {
            "image_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": channels,
            "channel_mult": (1, 2),
            "num_res_blocks": [2, 2],
            "transformer_depth": [depth[0]] * 2 + [depth[1]] * 2,
            "transformer_depth_middle": depth[1],
            "transformer_depth_output": [depth[0]] * 3 + [depth[1]] * 3,
            "context_dim": CONTEXT,
            "use_spatial_transformer": True,
            "use_linear_in_transformer": sdxl_like,
            "legacy": False,
            "num_classes": "sequential" if sdxl_like else None,
            "adm_in_channels": POOLED + 6 * 256 if sdxl_like else None,  # the host appends six sizes of the picture
        }
    )
    config.unet_config.update(num_heads=4, num_head_channels=-1)
    types = {"eps": comfy.model_base.ModelType.EPS, "v": comfy.model_base.ModelType.V_PREDICTION}
    model_class = comfy.model_base.SDXL if sdxl_like else comfy.model_base.BaseModel
    return patcher(model_class, config, seed, model_type=types[prediction])


def svd(seed: int = 0):
    """Stable Video Diffusion: the batch is the frames of one video."""
    config = comfy.supported_models.SVD_img2vid(
        {
            "image_size": 32,
            "in_channels": 8,
            "out_channels": 4,
            "model_channels": 64,
            "channel_mult": (1, 2),
            "num_res_blocks": [1, 1],
            "transformer_depth": [1, 1],
            "transformer_depth_middle": 1,
            "transformer_depth_output": [1, 1, 1, 1],
            "context_dim": CONTEXT,
            "use_spatial_transformer": True,
            "use_linear_in_transformer": True,
            "use_temporal_attention": True,
            "use_temporal_resblock": True,
            "extra_ff_mix_layer": True,
            "use_spatial_context": True,
            "merge_strategy": "learned_with_images",
            "merge_factor": 0.0,
            "video_kernel_size": [3, 1, 1],
            "num_classes": "sequential",
            "adm_in_channels": 3 * 256,
            "legacy": False,
        }
    )
    return patcher(comfy.model_base.SVD_img2vid, config, seed)


def sd3(seed: int = 0):
    config = comfy.supported_models.SD3(
        {
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "depth": 3,
            "input_size": None,
            "adm_in_channels": POOLED,
            "pos_embed_scaling_factor": None,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": CONTEXT, "out_features": 3 * 64},
            },
            "num_patches": 32 * 32,
            "pos_embed_max_size": 32,  # pictures of up to 64 x 64 latent pixels
        }
    )
    return patcher(comfy.model_base.SD3, config, seed)


def flux(seed: int = 0):
    config = comfy.supported_models.Flux(
        {
            "image_model": "flux",
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "vec_in_dim": POOLED,
            "context_in_dim": CONTEXT,
            "hidden_size": 64,
            "mlp_ratio": 2.0,
            "num_heads": 2,
            "axes_dim": [8, 12, 12],
            "depth": 2,
            "depth_single_blocks": 3,
            "theta": 10000,
            "qkv_bias": True,
            "guidance_embed": True,
            "txt_ids_dims": [],
        }
    )
    return patcher(comfy.model_base.Flux, config, seed)


def wan(seed: int = 0):
    config = comfy.supported_models.WAN21_T2V(
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "in_dim": 16,
            "out_dim": 16,
            "dim": 64,
            "ffn_dim": 128,
            "num_heads": 2,
            "num_layers": 2,
            "text_dim": CONTEXT,
            "freq_dim": 64,
        }
    )
    return patcher(comfy.model_base.WAN21, config, seed)


def unknown():
    """A model whose network is in no table."""
    model = unet()
    model.add_object_patch("diffusion_model", torch.nn.Linear(1, 1))
    return model


def patcher(model_class, config, seed: int, **options):
    config.unet_config["dtype"] = torch.float32
    config.custom_operations = comfy.ops.disable_weight_init
    model = model_class(config, device="cpu", **options)
    fill(model.diffusion_model, seed)
    return comfy.model_patcher.ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def fill(network: torch.nn.Module, seed: int):
    """Random weights that keep the size of what passes through; norms stay neutral.

    Queries and keys count double; the last layer is small, so that samples stay bounded.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in [*network.named_parameters(), *network.named_buffers()]:
        random = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim < 2:
            is_scale = name.endswith(("weight", "scale", "gamma"))
            values = torch.ones_like(random) if is_scale else 0.1 * random
        else:
            values = random / parameter[0].numel() ** 0.5  # one row is what an output sums
        if "pos_embed" in name:
            values = random
        if any(part in name for part in ("qkv", "to_q.", "to_k.", "query_norm", "key_norm", "norm_q", "norm_k")):
            values = 2 * values
        if name.startswith(("out.2.", "final_layer.linear.", "head.head.")):
            values = 0.2 * values
        parameter.data.copy_(values)


def conditioning(kind: str, seed: int = 0, tokens: int = 20):
    generator = torch.Generator().manual_seed(seed)
    cross_attn = torch.randn(1, tokens, CONTEXT, generator=generator)
    pooled = {"pooled_output": torch.randn(1, POOLED, generator=generator)} if kind in ("sdxl", "sd3", "flux") else {}
    return [[cross_attn, pooled]]


def latent(kind: str, batch: int = 1, height: int | None = None, width: int | None = None) -> torch.Tensor:
    """Zeros, [batch, channels, *frames, height, width]."""
    *channels, default_height, default_width = LATENT[kind]
    return torch.zeros(batch, *channels, height or default_height, width or default_width)
