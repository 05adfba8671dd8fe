"""What the pack takes from the host: each function, class and method by its name, and why.

Nothing of the pack reads this list. A test does, on every host: it fails with the name of what a host lacks. Another test
holds the list complete. So a new version of the host is judged in seconds, and this page says what a lack would cost.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Symbol:
    """One thing of the host's."""

    path: str  # from the top of its Python package
    why: str
    parameters: tuple[str, ...] = ()  # those that the pack gives by name, or takes in the host's place, in this order
    since: str = ""  # the host's version that first has it; the pack does without on older ones


def _each(path: str, names: str, why: str) -> tuple[Symbol, ...]:
    return tuple(Symbol(f"{path}.{name}", why) for name in names.split())


SAMPLING = (
    Symbol("comfy.samplers.CFGGuider", "our guider nodes give it; a run's wrappers sit on its own options"),
    Symbol("comfy.samplers.CFGGuider.inner_set_conds", "our guider may have no negative", ("conds",)),
    Symbol("comfy.samplers.CFGGuider.set_cfg", "CFG Interval changes what it sets", ("cfg",)),
    Symbol(
        "comfy.samplers.CFGGuider.predict_noise",
        "a guider that has it as it is runs the host's own sampling function, else our rows ride on its calls",
        ("x", "timestep", "model_options", "seed"),
    ),
    Symbol(
        "comfy.samplers.calc_cond_batch",
        "evaluates our branches in one batch with the guider's own",
        ("model", "conds", "x_in", "timestep", "model_options"),
    ),
    Symbol(
        "comfy.samplers.process_conds",
        "makes ready the conditionings of weak models and of ICG",
        ("model", "noise", "conds", "device", "latent_image", "denoise_mask", "seed", "latent_shapes"),
    ),
    Symbol("comfy.samplers.filter_registered_hooks_on_conds", "a weak model's hooks", ("conds", "model_options")),
    Symbol("comfy.samplers.cond_equal_size", "which branches share a batch with the positive", ("c1", "c2")),
    Symbol("comfy.sampler_helpers.convert_cond", "ICG's texts come as nodes give them", ("cond",)),
    Symbol("comfy.sampler_helpers.prepare_model_patcher", "a weak model's hooks", ("model", "conds", "model_options")),
    Symbol("comfy.conds.CONDRegular", "ICG tells a text that others share from one that it may draw"),
    Symbol("comfy.conds.CONDList", "ICG tells a text that others share from one that it may draw"),
    Symbol("comfy.conds.CONDNoiseShape", "what lies over the picture, and is cut with it into SWG's windows"),
    Symbol("comfy.model_sampling.CONST", "what the network's x is a mixture of"),
    Symbol("comfy.model_sampling.EPS", "what the network's x is a mixture of"),
    Symbol("comfy.model_management.in_training", "guidance is left out of training"),
)

WRAPPERS = (
    Symbol(
        "comfy.patcher_extension.add_wrapper_with_key",
        "puts the pack's wrappers into options",
        ("wrapper_type", "key", "wrapper", "transformer_options", "is_model_options"),
    ),
    Symbol("comfy.patcher_extension.WrappersMP.OUTER_SAMPLE", "a run begins and ends here"),
    Symbol("comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE", "schedule and conditionings are final here"),
    Symbol("comfy.patcher_extension.WrappersMP.PREDICT_NOISE", "a model call of the sampler"),
    Symbol("comfy.patcher_extension.WrappersMP.CALC_COND_BATCH", "where our rows ride on a guider of its own kind"),
    Symbol("comfy.patcher_extension.WrappersMP.APPLY_MODEL", "a network call, where perturbations are put in"),
    Symbol("comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL", "who else stands around the network, for messages"),
)

MODELS = (
    *_each("comfy.model_patcher.ModelPatcher", "clone get_model_object", "terms sit on clones of a MODEL"),
    *_each("comfy.model_patcher.ModelPatcher", "add_wrapper_with_key get_wrappers", "a run begins by a wrapper on it"),
    *_each(
        "comfy.model_patcher.ModelPatcher",
        "get_additional_models_with_key set_additional_models get_attachment set_attachments is_clone pre_run",
        "a weak model is loaded with the strong one, and knows whether they share a network",
    ),
    Symbol("comfy.model_patcher.ModelPatcher.add_patches", "Degraded Model rounds weights", ("patches",)),
    Symbol("comfy.model_patcher.create_model_options_clone", "a run changes its own copy of the options"),
    Symbol("comfy.weight_adapter.WeightAdapterBase", "the kind of weight patch that rounds"),
    Symbol("comfy.model_management.module_size", "how much a copy of a weak model takes, for the log", ("module",)),
    Symbol("comfy.model_management.free_memory", "a classifier's room on the device", ("memory_required", "device")),
    Symbol("comfy.model_management.is_device_cpu", "a classifier's room on the device", ("device",)),
    Symbol("comfy.model_detection.unet_prefix_from_state_dict", "Post-hoc EMA: where a file holds its network"),
    Symbol(
        "comfy.model_detection.model_config_from_unet",
        "Post-hoc EMA: whether a network is known",
        ("state_dict", "unet_key_prefix", "metadata"),
    ),
    Symbol(
        "comfy.sd.load_diffusion_model_state_dict",
        "Post-hoc EMA: a file of a network alone",
        ("sd", "metadata", "disable_dynamic"),
    ),
    Symbol(
        "comfy.sd.load_state_dict_guess_config",
        "Post-hoc EMA: a checkpoint",
        ("sd", "output_vae", "output_clip", "output_clipvision", "metadata", "disable_dynamic"),
    ),
    Symbol("comfy.utils.load_torch_file", "Post-hoc EMA and classifiers", ("ckpt", "safe_load", "return_metadata")),
    Symbol("comfy.utils.ProgressBar", "Post-hoc EMA reads several files"),
)

ATTENTION = (
    Symbol("comfy.ldm.modules.attention.optimized_attention", "the host's attention, of UNets and untold modules"),
    *_each(
        "comfy.ldm.modules.attention",
        "attention_pytorch attention_split attention_sub_quad",
        "the attentions with which rows agree, so that those that are equal are computed once",
    ),
    Symbol(
        "comfy.model_base.BaseModel._apply_model",
        "a probe is a call of it, without the wrappers of other packs",
        ("x", "t", "c_concat", "c_crossattn", "control", "transformer_options"),
    ),
    *_each("comfy.model_management", "InterruptProcessingException OOM_EXCEPTION", "no reasons for a probe to fail"),
    Symbol("comfy.model_management.soft_empty_cache", "after a check for which there was no memory"),
    Symbol(
        "comfy.model_patcher.ModelPatcher.set_model_optimized_attention",
        "the override of Model Attention Backend is told by the name that it has in here",
        ("optimized_attention",),
        since="0.33.0",
    ),
    Symbol("comfy.cli_args.args", "has the switch of the Comfy Compiler, on hosts that have one"),
    Symbol("comfy.model_sampling.V_PREDICTION_DDPM", "what CogVideoX's x is a mixture of", since="0.24.0"),
)

TRAINING = (
    Symbol(
        "comfy.sample.fix_empty_latent_channels", "Distil Guidance samples as KSampler does", ("model", "latent_image")
    ),
    Symbol("comfy.sample.prepare_noise", "Distil Guidance samples as KSampler does", ("latent_image", "seed")),
    Symbol("comfy.samplers.Sampler", "a training is run as a sampler, so that model and conditionings are made ready"),
    Symbol("comfy.samplers.get_area_and_mult", "what the student's network takes of a prompt", ("conds", "x_in")),
    Symbol("comfy.samplers.can_concat_cond", "which prompts share a forward of the student", ("c1", "c2")),
    Symbol("comfy.samplers.cond_cat", "prompts that share a forward of the student", ("c_list",)),
    Symbol("comfy.model_management.throw_exception_if_processing_interrupted", "Cancel ends a training"),
    Symbol("comfy.model_patcher.ModelPatcher.remove_wrappers_with_key", "the student has no guidance"),
    Symbol("comfy.model_base.BaseModel.get_dtype_inference", "gradients of float16 are scaled"),
    Symbol("comfy.weight_adapter.LoRAAdapter", "the layers that are trained"),
    Symbol("comfy.weight_adapter.LoRAAdapter.create_train", "the layers that are trained", ("weight", "rank", "alpha")),
    Symbol("comfy.weight_adapter.LoRAAdapter.to_train", "layers that a training goes on from"),
    Symbol(
        "comfy.weight_adapter.bypass.BypassForwardHook", "puts them beside the linear layers", ("module", "adapter")
    ),
    Symbol("comfy.lora.model_lora_keys_unet", "the layers of a LoRA file", ("model", "key_map")),
    Symbol("comfy.lora.load_lora", "the layers of a LoRA file", ("lora", "to_load", "log_missing")),
    Symbol("comfy.lora_convert.convert_lora", "the layers of a LoRA file", ("sd",)),
    Symbol("comfy.utils.save_torch_file", "what a cancelled training has learnt is a file", ("sd", "ckpt")),
    Symbol("latent_preview.get_previewer", "previews of a training", ("device", "latent_format")),
)

NODES = (
    *_each("comfy_api.latest", "ComfyExtension", "what the host asks for the nodes"),
    *_each("comfy_api.latest.io", "ComfyNode Schema NodeOutput Input Output Custom", "what nodes are made of"),
    *_each(
        "comfy_api.latest.io",
        "Boolean.Input Clip.Input ClipVision.Input Combo.Input Conditioning.Input Float.Input Float.Output "
        "Image.Input Image.Output Int.Input Int.Output Latent.Input Latent.Output Mask.Input "
        "Model.Input Model.Output Sampler.Input Sigmas.Input String.Input String.Output Vae.Input Guider.Output",
        "the kinds of what nodes take and give",
    ),
    *_each("comfy_api.latest", "ComfyAPI io.NodeReplace", "nodes of other packs are swapped for ours"),
    Symbol("comfy_api.latest.ui.PreviewImage", "pictures that nodes show"),
    Symbol("comfy_api.latest.ui.PreviewText", "the verdict that Guidance Report shows"),
    *_each(
        "comfy_api.latest.io",
        "Hidden Hidden.dynprompt Hidden.unique_id HiddenHolder",
        "Guidance Grid labels itself by the graph that runs, and Guidance Sweep copies a part of it",
    ),
    Symbol("comfy.model_base.SDXL", "Guidance (easy) tells the families of models apart"),
    *_each("comfy.supported_models", "SD15 SD20", "Guidance (easy) tells the families of models apart"),
    Symbol("server.PromptServer", "the page asks the server, and is told warnings"),
    *_each("folder_paths", "get_filename_list get_full_path get_folder_paths", "snapshots and classifiers are files"),
    *_each("folder_paths", "get_output_directory get_save_image_path", "a Guidance Report is a file"),
    Symbol("folder_paths.get_user_directory", "measured values are files of the user"),
)

SYMBOLS = (*SAMPLING, *WRAPPERS, *MODELS, *ATTENTION, *TRAINING, *NODES)
