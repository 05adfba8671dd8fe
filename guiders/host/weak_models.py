"""Further models of a run: how they travel on the main one, are loaded with it, and are evaluated.

They are additional models of the main patcher, so the host loads all in one call. Each has its own conditionings, made
from copies of the guider's own before the main model's were processed, its own model_options, hooks and wrappers.
"""

from __future__ import annotations

import uuid

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers

from ...patches.host import KEY, others
from ...patches.host.degraded import STEP
from ...patches.host.log import LOG, warn
from ..base import Branch, Conditioning, Latent, WeakModelRef
from .sampler_inputs import SamplerInputs


def with_weak_model(model, weak) -> tuple[object, WeakModelRef]:
    """(a clone of MODEL that carries `weak`, the reference that branches have to it). The same MODEL twice is one.

    Raises ValueError where the two cannot be combined: another latent space, another meaning of σ, or other texts."""
    check_agreement(model, weak)
    model = model.clone()
    models = list(model.get_additional_models_with_key(KEY))
    place = next((i for i, other in enumerate(models) if other.get_attachment(KEY) is weak), len(models))
    if place == len(models):
        carried = weak.clone()
        carried.set_attachments(KEY, weak)
        model.set_additional_models(KEY, [*models, carried])
    return model, WeakModelRef(place)


# What the host calls the width of the text tokens that a network takes, in the configurations of its networks.
_TEXT = ("context_dim", "context_in_dim", "text_dim", "cap_feat_dim", "caption_channels", "joint_attention_dim")


def check_agreement(model, weak) -> None:
    """Raise ValueError where the predictions of two MODELs cannot be compared."""
    main_space, weak_space = (m.get_model_object("latent_format") for m in (model, weak))
    if type(main_space) is not type(weak_space) or main_space.latent_channels != weak_space.latent_channels:
        raise ValueError(
            f"the models have different latent spaces, {type(main_space).__name__} and {type(weak_space).__name__}; "
            f"predictions can only be compared in one. Use a weak model of the same family"
        )
    main_flow, weak_flow = (
        isinstance(m.get_model_object("model_sampling"), comfy.model_sampling.CONST) for m in (model, weak)
    )
    if main_flow != weak_flow:
        kinds = ["a flow model" if flow else "a noise-prediction model" for flow in (main_flow, weak_flow)]
        raise ValueError(f"the main model is {kinds[0]} and the weak one {kinds[1]}; σ means different things to them")
    main_text, weak_text = map(_text_widths, (model, weak))
    for name in main_text.keys() & weak_text.keys():
        if main_text[name] != weak_text[name]:
            raise ValueError(
                f"the models take texts of different widths, {main_text[name]} and {weak_text[name]}, so one prompt cannot "
                f"be for both. Use a weak model with the main model's text encoder"
            )


def _text_widths(model) -> dict[str, int]:
    """Width of the text tokens by the host's name for it; empty for a network that the host configures in another way."""
    config = model.model.model_config.unet_config
    widths = {name: config.get(name) for name in _TEXT}
    widths["context_embedder_config"] = (
        (config.get("context_embedder_config") or {}).get("params", {}).get("in_features")
    )
    return {name: width for name, width in widths.items() if isinstance(width, int)}


class WeakModels:
    """The weak models of one run. `nodes`: the name of the node of each."""

    def __init__(self, guider, nodes: dict[WeakModelRef, str]):
        models = guider.model_patcher.get_additional_models_with_key(KEY)
        self._models = {ref: _apart(models, ref.index, guider.model_patcher, node) for ref, node in nodes.items()}
        kinds = [kind for kind in ("positive", "negative") if kind in guider.conds]  # each has the areas of the other
        self._raw = {kind: [dict(row) for row in guider.conds[kind]] for kind in kinds}
        self._options: dict[WeakModelRef, dict] = {}
        self._conds: dict[WeakModelRef, dict[Conditioning, list[dict]]] = {}

        if any(weak.model_options.get(KEY) for weak in self._models.values()):
            warn("guidance on a weak model does not act: it is only asked for its prediction")

    def begin(self, guider, inputs: SamplerInputs) -> None:
        """Process their conditionings and get them ready; the host has loaded them with the main model."""
        for ref, weak in self._models.items():
            conds = {kind: [{**row, "uuid": uuid.uuid4()} for row in rows] for kind, rows in self._raw.items()}
            options = comfy.model_patcher.create_model_options_clone(weak.model_options)
            options.setdefault("transformer_options", {})
            comfy.sampler_helpers.prepare_model_patcher(weak, conds, options)
            comfy.samplers.filter_registered_hooks_on_conds(conds, options)
            # Controls are made ready by the main model's own run, and would be a second time here.
            controls = {row["uuid"]: row.pop("control") for rows in conds.values() for row in rows if "control" in row}
            device, image, mask = guider.model_patcher.load_device, inputs.latent_image, inputs.mask
            conds = comfy.samplers.process_conds(
                weak.model, inputs.noise, conds, device, image, mask, inputs.seed, **inputs.shapes_argument
            )
            for row in (row for rows in conds.values() for row in rows):
                if row["uuid"] in controls:
                    row["control"] = controls[row["uuid"]]
            options["transformer_options"]["sample_sigmas"] = inputs.sigmas
            self._options[ref], self._conds[ref] = options, conds
            weak.pre_run()

    def predict(self, ref: WeakModelRef, branch: Branch, x: Latent, timestep, step: int) -> Latent:
        """The prediction of a branch by its weak model, `ref`, in an evaluation that belongs to this step of the sampler.
        `timestep`: σ as the host hands it on, [batch]."""
        weak, options = self._models[ref], self._options[ref]
        options["transformer_options"][STEP] = step
        conditioning = self._conds[ref][branch.conditioning]
        return comfy.samplers.calc_cond_batch(weak.model, [conditioning], x, timestep, options)[0]

    def end(self) -> None:
        """Undo what the run has changed in them."""
        for weak in self._models.values():
            weak.cleanup()
            weak.restore_hook_patches()


def _apart(models: list, place: int, main, node: str):
    """The weak model, with weights of its own where it is the main model's checkpoint with other patches.

    Two patched clones of one checkpoint share one network, and the main model's patches would be in both."""
    weak = models[place]
    if weak.is_clone(main) and weak.injections:
        raise ValueError(
            f"{node}: the weak model is the main model's checkpoint with a bypass LoRA or the like, which would act on "
            f"both, since they share one network. Turn bypass off, or load the checkpoint again from a copy of the file"
        )
    if not weak.is_clone(main) or weak.patches_uuid == main.patches_uuid:
        options = [{key: value for key, value in m.model_options.items() if key != KEY} for m in (weak, main)]
        if weak.is_clone(main):
            _tell_of_shared_parts(weak, main, node)
            if options[0] == options[1]:
                warn(f"{node} has no effect: the weak model is the main model")
        return weak
    reason = (
        "the weak model is the main model's checkpoint with other patches (such as a LoRA), and the two would share one "
        "set of weights. Load the checkpoint a second time from a copy of the file, or use a newer ComfyUI"
    )
    try:
        own = weak.clone(force_deepcopy=True)
    except TypeError:
        raise ValueError(f"{node}: {reason}: this one cannot copy a loaded model") from None
    except RuntimeError as error:
        raise ValueError(f"{node}: {reason} ({error})") from None
    size = comfy.model_management.module_size(own.model) / 2**20
    LOG.info(f"Beyond CFG: the weak model got weights of its own, {size:.0f} MB, since its patches differ")
    own.set_attachments(KEY, weak.get_attachment(KEY))
    models[place] = own
    main.set_additional_models(KEY, models)  # so that the next run has it
    return own


def _tell_of_shared_parts(weak, main, node: str) -> None:
    """Of what other packs have put into the one network of two models, the host leaves there what the main one has."""
    for one, other, which, acts in ((main, weak, "main", "acts on both"), (weak, main, "weak", "does not act")):
        alone = {
            place: part for place, part in one.object_patches.items() if other.object_patches.get(place) is not part
        }
        found = [
            part for place, part in alone.items() if place.startswith("diffusion_model.") and others.is_anothers(part)
        ]
        if found:
            warn(
                f"{node}: {others.names(found)} is on the {which} model alone, and {acts}, since the two share a network. "
                f"Put it on both, or load the checkpoint a second time from a copy of the file"
            )
