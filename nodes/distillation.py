"""MODEL with guidances → a LoRA with which the model alone predicts as it does with them."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..guiders.base import About
from ..guiders.host import distillation as host
from . import schema
from .pictures.drawing import draw_losses


class DistilGuidance(schema.Node):
    """MODEL with its guidances, prompts and how to sample → the LoRA, its losses, and how many iterations it had."""

    about = About(
        node_id="BeyondCFGDistil",
        name="Distil Guidance",
        group="Tools",
        summary=(
            "Trains a LoRA that does what your guidance nodes and cfg do, so that you can sample at cfg 1 without "
            "them: fast, as without any guidance. It needs prompts and no pictures: the guided model samples, and "
            "the LoRA learns from that."
        ),
        paper="arXiv:2503.07274",
        aliases=(
            "train lora",
            "distillation",
            "faster guidance",
            "cfg distill",
            "agd",
            "guidance distillation",
        ),
    )
    inputs = (
        io.Model.Input("model", tooltip="The model with the guidance nodes that the LoRA learns. It stays as it is."),
        io.Conditioning.Input(
            "positive",
            tooltip=(
                "The prompts to learn with: many different ones, like those you will use. Join them with "
                "Conditioning (Combine), or give a list. With one prompt, the LoRA is for that prompt only."
            ),
        ),
        io.Latent.Input(
            "latent",
            tooltip=(
                "The size of the pictures to learn with, such as Empty Latent Image. Its batch size is how many "
                "pictures are sampled together."
            ),
        ),
        io.Sampler.Input(
            "sampler",
            tooltip="The sampler to learn with, from KSamplerSelect: the same that you will use with the LoRA.",
        ),
        io.Sigmas.Input("sigmas", tooltip="The steps to learn with, from Basic Scheduler or another scheduler."),
        io.Conditioning.Input(
            "negative",
            optional=True,
            tooltip=(
                "The negative prompt, for cfg above 1, or for NAG and others at cfg 1. The LoRA learns its effect, "
                "so you cannot change it later."
            ),
        ),
        schema.cfg(1.0),
        io.Int.Input(
            "pictures",
            default=64,
            min=1,
            max=100_000,
            tooltip=(
                "How many pictures are sampled to learn from. At least one for each prompt. More for a LoRA that "
                "works with every prompt."
            ),
        ),
        io.Int.Input(
            "iterations",
            default=500,
            min=1,
            max=1_000_000,
            tooltip="How many training steps there are. If the loss still falls at the end, take more.",
        ),
        io.Int.Input(
            "batch_size",
            default=4,
            min=1,
            max=1024,
            tooltip=(
                "How many predictions each training step learns from. Higher is smoother, and takes more memory and "
                "time."
            ),
        ),
        io.Float.Input(
            "learning_rate",
            default=0.0002,
            min=0.0,
            max=1.0,
            step=0.00001,
            round=1e-9,
            tooltip=(
                "How much the LoRA changes in a training step. It falls to 0 by the end. If the loss jumps, take less."
            ),
        ),
        io.Int.Input(
            "rank",
            default=16,
            min=1,
            max=256,
            tooltip="How much the LoRA can learn. Higher can learn more, and makes the file larger.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            tooltip="Which random numbers are used: for the pictures, the LoRA's first values and the order of learning.",
        ),
        io.Boolean.Input(
            "checkpointing",
            default=True,
            tooltip="On: takes far less memory, and a third more time.",
        ),
        io.String.Input(
            "existing_lora",
            default="",
            placeholder="none",
            tooltip=(
                "A LoRA file to go on from, in the folder loras. For example one that was saved when you cancelled a "
                "training. Do not load it into the model too. Empty: a new LoRA."
            ),
        ),
    )
    output = io.Custom("LORA_MODEL").Output(
        display_name="lora",
        tooltip="The LoRA, for ComfyUI's Save LoRA Weights and Load LoRA Model. Use it at strength 1.",
    )
    further = (
        io.Custom("LOSS_MAP").Output(
            display_name="loss_map", tooltip="The loss of each training step, for Plot Loss Graph."
        ),
        io.Int.Output(
            display_name="steps",
            tooltip="How many training steps it had. Save LoRA Weights puts it into the file's name.",
        ),
    )
    lists = ("positive",)

    @classmethod
    def build(
        cls, model, positive, latent, sampler, sigmas, cfg, pictures, iterations, batch_size, learning_rate, rank, seed,
        checkpointing, existing_lora, negative=None,
    ):  # fmt: skip
        sampling = host.Sampling(sampler, sigmas, cfg, negative, seed)
        settings = host.Settings(iterations, batch_size, learning_rate, rank, seed, checkpointing)
        prompts, existing = host.prompts_of(positive), existing_lora.strip()
        student = host.distil(model, prompts, latent["samples"], pictures, sampling, settings, existing)
        return io.NodeOutput(
            student.lora,
            {"loss": student.losses},
            len(student.losses),
            ui=ui.PreviewImage(draw_losses(student.losses), cls=cls),
        )


NODES = [DistilGuidance]
