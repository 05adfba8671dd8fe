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
        io.Model.Input("model", tooltip="The model with the guidances that the LoRA is to learn. It stays as it is."),
        io.Conditioning.Input(
            "positive",
            tooltip="The prompts to learn with, like those that you will use: many and different ones, joined with "
            "Conditioning (Combine), or as a list. With one prompt the LoRA is for that prompt.",
        ),
        io.Latent.Input(
            "latent",
            tooltip="Of the size to learn for, such as Empty Latent Image. Its batch is how many pictures are sampled "
            "together.",
        ),
        io.Sampler.Input(
            "sampler", tooltip="How the guided model samples, from KSamplerSelect: as you will use the LoRA."
        ),
        io.Sigmas.Input("sigmas", tooltip="In which steps it samples, from Basic Scheduler or another."),
        io.Conditioning.Input(
            "negative",
            optional=True,
            tooltip="The negative prompt for cfg, or for NAG and others at cfg 1. The LoRA learns its effect, and cannot "
            "change it later.",
        ),
        schema.cfg(1.0),
        io.Int.Input(
            "pictures",
            default=64,
            min=1,
            max=100_000,
            tooltip="How many pictures the guided model samples to learn from, of the prompts in turn. At least one for "
            "each prompt; more for a LoRA that is to serve for all prompts.",
        ),
        io.Int.Input("iterations", default=500, min=1, max=1_000_000, tooltip="How many times the LoRA is changed."),
        io.Int.Input(
            "batch_size",
            default=4,
            min=1,
            max=1024,
            tooltip="How many predictions each iteration learns from. More is smoother, and takes more memory and time.",
        ),
        io.Float.Input(
            "learning_rate",
            default=0.0002,
            min=0.0,
            max=1.0,
            step=0.00001,
            round=1e-9,
            tooltip="How far an iteration changes the LoRA at first; it falls to 0. Lower it if the loss jumps.",
        ),
        io.Int.Input("rank", default=16, min=1, max=256, tooltip="How much the LoRA can hold. Its file grows with it."),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            tooltip="For the noise of the pictures, the LoRA's first values and the order of learning.",
        ),
        io.Boolean.Input(
            "checkpointing",
            default=True,
            tooltip="Keeps only what enters each block, and computes the rest again: far less memory, a third more time.",
        ),
        io.String.Input(
            "existing_lora",
            default="",
            placeholder="none",
            tooltip="A LoRA of the folder loras to go on from, such as one that was kept when a training was cancelled. "
            "Do not load it into the model too. Empty: a new one.",
        ),
    )
    output = io.Custom("LORA_MODEL").Output(
        display_name="lora",
        tooltip="For the host's Save LoRA Weights and Load LoRA Model. At strength 1 it is as trained.",
    )
    further = (
        io.Custom("LOSS_MAP").Output(
            display_name="loss_map", tooltip="The loss of each iteration, for Plot Loss Graph."
        ),
        io.Int.Output(
            display_name="steps", tooltip="How many iterations it had, for the name that Save LoRA Weights gives."
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
