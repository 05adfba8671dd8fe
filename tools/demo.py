"""`python dev.py demo`: what each guidance makes of a small model, through the API of a real host."""

from __future__ import annotations

import functools
import os
import platform
import time

from . import places
from .console import busy, say
from .hosts import Host
from .processes import run_step
from .server import Server

MODEL, WEAK = "demo_flux.safetensors", "demo_flux_early.safetensors"
STEPS = 12
PROMPTS = (  # a column each
    "red seven blue two",
    "white four green nine",
    "yellow three red five",
    "blue eight white one",
    "green six yellow zero",
    "red two white three",
)
ROWS = (  # a row each: its label, the sampler's cfg, and the pack's nodes with what is not their default
    ("no guidance", 1, {}),
    ("CFG 3", 3, {}),
    ("CFG 4, 20 to 75 %", 4, {"BeyondCFGInterval": {"start_percent": 0.2, "end_percent": 0.75}}),
    ("PAG 1, single.2", 1, {"BeyondCFGPAG": {"scale": 1, "layers": "single.2"}}),
    ("SEG 2, single.2", 1, {"BeyondCFGSEG": {"scale": 2, "layers": "single.2"}}),
    ("SAG 0.5", 1, {"BeyondCFGSAG": {"scale": 0.5}}),
    ("ICG 2", 1, {"BeyondCFGICG": {"weight": 2, "conditions": "prompts"}}),
    ("TSG 2, noise 0.5", 1, {"BeyondCFGTSG": {"weight": 2, "noise": 0.5}}),
    ("Autoguidance 2", 1, {"BeyondCFGAutoguidance": {"weight": 2}}),
    ("CFG 2 + PAG 1, single.2", 2, {"BeyondCFGPAG": {"scale": 1, "layers": "single.2"}}),
)


def workflow_of(server: Server, cfg: float, nodes: dict) -> dict:
    """One row of the demo, by the host's own nodes and the pack's. Each prompt has a seed of its own."""
    workflow = {}

    def add(node: str, **inputs) -> list:
        workflow[str(len(workflow) + 1)] = {"class_type": node, "inputs": inputs}
        return [str(len(workflow)), 0]

    clip = add("CLIPLoader", clip_name="demo_text.ckpt", type="stable_diffusion")
    vae = add("VAELoader", vae_name="demo_vae.ckpt")
    model, weak = (add("UNETLoader", unet_name=name, weight_dtype="default") for name in (MODEL, WEAK))
    latent = add("EmptySD3LatentImage", width=128, height=128, batch_size=1)
    empty, *prompts = (add("CLIPTextEncode", clip=clip, text=text) for text in ("", *PROMPTS))
    pool = functools.reduce(lambda a, b: add("ConditioningCombine", conditioning_1=a, conditioning_2=b), prompts)
    for node, settings in nodes.items():
        known = server.inputs_of(node)
        links = {"model": model, "weak_model": weak, "prompts": pool}
        given = known | {name: link for name, link in links.items() if name in known} | settings
        model = add(node, **{name: value for name, value in given.items() if value is not None})
    for seed, prompt in enumerate(prompts, 1):
        latents = add(
            "KSampler", model=model, seed=seed, steps=STEPS, cfg=cfg, sampler_name="euler", scheduler="simple",
            positive=prompt, negative=empty, latent_image=latent, denoise=1,
        )  # fmt: skip
        add("SaveImage", images=add("VAEDecode", samples=latents, vae=vae), filename_prefix=str(seed))
    return workflow


def show(host: Host, server: Server) -> None:
    """Every row of the demo into output/demo, and all of them side by side. Raises Failure where one fails."""
    folder, rows, begin = places.OUTPUT / "demo", [], time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    for number, (label, cfg, nodes) in enumerate(ROWS, 1):
        with busy(f"{number} of {len(ROWS)}: {label}") as detail:
            pictures = sorted(server.run(workflow_of(server, cfg, nodes), detail))  # named by their seeds
        files = [folder / f"{number}-{column}.png" for column in range(1, len(PROMPTS) + 1)]
        for file, (_, content) in zip(files, pictures, strict=True):
            file.write_bytes(content)
        rows += ["--rows", label, *files]
    seconds, facts = time.monotonic() - begin, server.ask("/system_stats")
    grid = folder / "grid.png"
    run_step("Drawing the grid", [host.python, "-m", "tools.grid", grid, "--columns", *PROMPTS, *rows])
    system, devices = facts["system"], ", ".join(device["name"] for device in facts["devices"])
    say(
        f"{len(ROWS) * len(PROMPTS)} pictures of {STEPS} steps by {MODEL}: {seconds:.0f} s\n"
        f"on {devices}, {os.cpu_count()} cores, ComfyUI {system['comfyui_version']}, PyTorch {system['pytorch_version']}, "
        f"Python {system['python_version'].split()[0]}, {platform.platform()}.\n"
        f"All pictures are in {folder}, side by side in {grid}"
    )
