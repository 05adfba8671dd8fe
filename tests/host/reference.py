"""PAG a second time, made naively: one more forward per model call, with the attention of one layer replaced for
every row of it. What the pack computes in the host's own batch is compared with this."""

from __future__ import annotations

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

LAYERS = {"unet": "middle", "sdxl": "middle", "sd3": "double.1", "flux": "single.0"}


def identity(q, k, v, extra):
    return v


def with_reference_pag(model, kind: str, scale: float = 3.0, attention=identity):
    """A clone of MODEL whose guider's result is moved by scale · (D₊ − D_p) before any other post-CFG function, or
    after the guider's own predict_noise where it has one. `attention`: what the UNet's becomes, if not PAG's."""
    model, reference = model.clone(), _Reference(kind, scale, attention)
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "reference", reference.predict_noise)
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "reference", reference.calc_cond_batch)
    return model


class _Reference:
    def __init__(self, kind, scale, attention):
        self.kind, self.scale, self.attention = kind, scale, attention

    def predict_noise(self, executor, x, timestep, options, seed=None):
        self.guider, self.positive, self.handling = executor.class_obj, None, False
        native = type(self.guider).predict_noise is comfy.samplers.CFGGuider.predict_noise
        if not native:
            return executor(x, timestep, options, seed) + self.term(x, timestep, options)
        theirs = options.get("sampler_post_cfg_function", [])
        ours = [lambda args: args["denoised"] + self.term(x, timestep, options)]
        options["sampler_post_cfg_function"] = ours + theirs  # in these very options: others remember things there
        denoised = executor(x, timestep, options, seed)
        options["sampler_post_cfg_function"] = theirs
        return denoised

    def calc_cond_batch(self, executor, model, conds, x, timestep, options):
        """Remembers D₊ as the guider's own call gave it."""
        out = executor(model, conds, x, timestep, options)
        mine = [i for i, rows in enumerate(conds) if rows is self.guider.conds["positive"]]
        if mine and self.positive is None and not self.handling:
            self.positive = out[mine[0]].clone()
        return out

    def term(self, x, timestep, options):
        self.handling = True
        model, positive = self.guider.inner_model, self.guider.conds["positive"]
        (weak,) = comfy.samplers.calc_cond_batch(
            model, [positive], x, timestep, perturbed(options, self.kind, self.attention)
        )
        if self.positive is None:
            (self.positive,) = comfy.samplers.calc_cond_batch(model, [positive], x, timestep, options)
        return self.scale * (self.positive - weak)


def perturbed(options: dict, kind: str, attention=identity) -> dict:
    options = comfy.model_patcher.create_model_options_clone(options)
    replace = options["transformer_options"].setdefault("patches_replace", {})
    if kind in ("unet", "sdxl"):
        attn1 = replace.setdefault("attn1", {})
        attn1.update(dict.fromkeys({("middle", 0), ("middle", 0, 0), *attn1}, attention))
    else:
        stack, index = LAYERS[kind].split(".")
        replace.setdefault("dit", {})[(f"{stack}_block", int(index))] = _block
    return options


def _block(args, extra):
    options = args["transformer_options"]
    text = args["txt"].shape[1] if "txt" in args else options["img_slice"][0]

    def attention(func, q, k, v, heads, skip_reshape=False, **kwargs):
        if not skip_reshape:
            q, k, v = (part.reshape(*part.shape[:2], heads, -1).transpose(1, 2) for part in (q, k, v))
        logits = q @ k.mT / q.shape[-1] ** 0.5
        image = torch.arange(q.shape[2]) >= text
        hidden = image[:, None] & image[None, :] & ~torch.eye(q.shape[2], dtype=torch.bool)
        weights = logits.masked_fill(hidden, -torch.inf).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    return extra["original_block"](
        {**args, "transformer_options": {**options, "optimized_attention_override": attention}}
    )
