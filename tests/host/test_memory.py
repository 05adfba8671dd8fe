"""When the outputs of nodes are dropped nothing of ours is left: in this process by count, on a running host by size."""

import collections
import gc
import json
import time
import types
import uuid
import weakref

import comfy.controlnet
import comfy.model_management
import comfy.model_patcher
import node_helpers
import psutil
import pytest
import torch
from pack.guiders import host
from pack.tests.host import networks
from pack.tests.host.classifiers import guided, whole_vae
from pack.tests.host.harness import SKIPPING, network, prompts, run, sample
from pack.tests.host.test_http_models import free
from pack.tests.host.test_sharing import Residuals
from pack.tests.host.test_terms import TOGETHER, apply, chain
from pack.tools.places import MODELS

HERE = ("pack.guiders", "pack.patches", "pack.nodes")
# One for each name of a forward, for compiled networks to know again; nothing of a run.
NAMES = ("_WithOptions", "_WithoutOptions")


def counted() -> collections.Counter:
    """All that is alive of ours, functions too, and of what we could hold: tensors and the host's patchers."""
    gc.collect()
    found = collections.Counter()
    for thing in gc.get_objects():
        kind = type(thing)
        if kind is types.FunctionType:
            if str(thing.__module__).startswith(HERE):
                found[thing.__module__, thing.__qualname__] += 1
        elif str(kind.__module__).startswith(HERE):
            found[kind.__module__, kind.__qualname__] += 1
        elif issubclass(kind, torch.Tensor | comfy.model_patcher.ModelPatcher):
            found[kind.__qualname__] += 1
    return found


def traces(model) -> dict:
    """Where a network, and the patcher that the host keeps, could have something of ours."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    modules = {
        name: (sorted(vars(module)), [len(getattr(module, hook)) for hook in hooks], vars(module).get("forward"))
        for name, module in model.model.named_modules()
    }
    weights = {name: (id(weight), weight._version, weight.grad) for name, weight in model.model.named_parameters()}
    patcher = (model.model_options, model.wrappers, model.callbacks, model.object_patches, model.injections)
    patcher += (model.additional_models, model.attachments, model.patches, model.hook_patches, model.patches_uuid)
    return {"modules": modules, "weights": weights, "patcher": repr(patcher), "user": model.model.current_patcher}


@pytest.mark.parametrize("kind", ["unet", "sd3"])
def test_nothing_of_a_run_with_every_term_outlives_the_outputs_of_its_nodes(kind, classifier_folder):
    model, latent = network(kind), networks.latent(kind, 1, 8, 8)
    keys = [key for key in TOGETHER if "Classifier" not in key and not (kind == "unet" and key in SKIPPING)]
    sample(model, kind, latent=latent, steps=1)  # the host's own first load leaves marks
    comfy.model_management.unload_all_models()
    as_it_was, before, after = traces(model), counted(), []
    for seed in range(3):
        terms = chain(keys, kind, model)
        if kind == "unet":
            terms = guided(terms, whole_vae(), scale=1.0)
        assert sample(terms, kind, latent=latent, steps=2, seed=seed).isfinite().all()
        guider = host.make_guider(terms, *prompts(kind), 4.0)
        run(guider, latent, steps=1)
        with pytest.raises(ZeroDivisionError):  # one that fails on the way
            run(guider, latent, steps=2, callback=lambda *_: 1 / 0)
        comfy.model_management.unload_all_models()  # before `del`: without a patcher the host unloads nothing
        del terms, guider
        after.append(counted())
    assert traces(model) == as_it_was
    for left in after:
        assert {key: n for key, n in (left - before).items() if isinstance(key, tuple) and key[1] not in NAMES} == {}
    assert after[2] == after[1]  # the host's and PyTorch's own caches are full by then


def test_what_is_counted_shows_a_run_that_stays(monkeypatch):
    kept = []
    real = host.run.Run.__init__
    monkeypatch.setattr(host.run.Run, "__init__", lambda self, *args: kept.append(self) or real(self, *args))
    before = counted()
    sample(apply("BeyondCFGPAG", network("unet")), steps=1)
    found = counted() - before
    assert found["pack.guiders.host.run", "Run"] == 1 and found["Tensor"] > 0


def out_of_memory(*_):
    raise comfy.model_management.OOM_EXCEPTION("a test's")


def in_a_callback(model, run):
    run(callback=out_of_memory)


def in_the_network(model, run):
    last = [*model.model.diffusion_model.children()][-1]
    handle = last.register_forward_pre_hook(out_of_memory)
    try:
        run()
    finally:
        handle.remove()


def nowhere(model, run):
    run()


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("fails", [nowhere, in_a_callback, in_the_network])
@pytest.mark.parametrize("kind", ["unet", "sd3", "unet with a control"])
def test_a_run_lets_go_of_the_model_without_a_garbage_collector(kind, fails, no_collector):
    """Else the host finds models in use that nothing uses, and logs a memory leak, just where memory is short."""
    kind, _, control = kind.partition(" ")
    keys = ["BeyondCFGPAG", "BeyondCFGSAG", "BeyondCFGICG", "BeyondCFGTSG"]
    for guide in (lambda model: model, lambda model: chain(keys, kind, model)):  # without ours: the host does
        model, conds = network(kind), prompts(kind)
        if control:
            residuals = comfy.controlnet.ControlNet(Residuals(), load_device=torch.device("cpu"))
            residuals = residuals.set_cond_hint(torch.rand(1, 3, 64, 64))
            conds = [node_helpers.conditioning_set_values(prompt, {"control": residuals}) for prompt in conds]

        def run(guide=guide, model=model, conds=conds, **kwargs):
            try:
                sample(guide(model), kind, conds=conds, steps=2, **kwargs)
            except comfy.model_management.OOM_EXCEPTION:
                assert fails is not nowhere

        fails(model, run)
        alive = weakref.ref(model.model)
        comfy.model_management.unload_all_models()
        del model, conds, run
        assert alive() is None


# ------------------------------------------------------------------------------------------------------ a running host


def prompt_of(seed: int, degradation: str) -> dict:
    """Every kind of further row, a second network, and a forward of its own, on one checkpoint."""
    window = {"start_percent": 0.0, "end_percent": 1.0}
    weak = {"degradation": degradation, "amount": 0.2, "layers": "auto", "bits": 4, "seed": seed}
    icg = {"weight": 2.0, "conditions": "random tokens", "pool_size": 2, "pool_seed": seed, "clip": ["1", 1], **window}
    sag = {"scale": 0.5, "blur_sigma": 2.0, "mask": "attention", "layers": "auto", **window}
    sampler = {"steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "seed": seed}
    nodes = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": "tiny_sd15.ckpt"}),
        "2": ("BeyondCFGDegradedModel", {"model": ["1", 0], **weak}),
        "3": ("BeyondCFGAutoguidance", {"model": ["1", 0], "weak_model": ["2", 0], "weight": 2.0, **window}),
        "4": ("BeyondCFGPAG", {"model": ["3", 0], "scale": 3.0, "layers": "auto", **window}),
        "5": ("BeyondCFGICG", {"model": ["4", 0], **icg}),
        "6": ("BeyondCFGSAG", {"model": ["5", 0], **sag}),
        "7": ("CLIPTextEncode", {"clip": ["1", 1], "text": "a cottage"}),
        "8": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "9": ("KSampler", {"model": ["6", 0], "positive": ["7", 0], "negative": ["7", 0], "latent_image": ["8", 0]}),
        "10": ("VAEDecode", {"samples": ["9", 0], "vae": ["1", 2]}),
        "11": ("PreviewImage", {"images": ["10", 0]}),
    }
    nodes["9"][1].update(sampler)
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def settled(process) -> int:
    """The process's own memory, when it has stopped falling."""
    sizes = [process.memory_info().rss]
    while len(sizes) < 40 and (len(sizes) < 6 or min(sizes[-5:]) < min(sizes[:-5]) - 2**20):
        time.sleep(0.1)
        sizes.append(process.memory_info().rss)
    return sizes[-1]


def test_a_hosts_memory_does_not_grow_with_its_runs_once_it_is_told_to_free_it(server):
    """By less than half of one network in the last three of eight runs: a copy that stays would be six times as much.
    The least of several runs, since the allocator gives back what is free when it likes, and the first ones warm up."""
    process, sizes = psutil.Process(server.process.pid), []
    can_copy = "force_deepcopy" in comfy.model_patcher.ModelPatcher.clone.__code__.co_varnames
    network_size = (MODELS / "checkpoints" / "tiny_sd15.ckpt").stat().st_size
    for seed in range(8):
        prompt = prompt_of(seed, "quantised weights" if can_copy else "dropout")
        body = {"prompt": prompt, "client_id": str(uuid.uuid4()), "prompt_id": str(uuid.uuid4())}
        record = server.wait_for(server.ask("/prompt", body)["prompt_id"])
        assert record["status"]["status_str"] == "success", json.dumps(record["status"])
        free(server)
        sizes.append(settled(process))
    assert min(sizes[5:]) - min(sizes[3:5]) < network_size / 2, [round(size / 2**20) for size in sizes]


def short_prompt(number: int) -> dict:
    """One step of one of two models under one of five guidances, in turn; each prompt has a text and a seed of its own."""
    nodes = {
        "BeyondCFGPAG": {"scale": 3.0, "layers": "auto"},
        "BeyondCFGSEG": {"scale": 3.0, "layers": "auto", "blur_sigma": -1.0, "padding": "symmetric"},
        "BeyondCFGSAG": {"scale": 0.5, "blur_sigma": 2.0, "mask": "attention", "layers": "auto"},
        "BeyondCFGTSG": {"weight": 2.0, "noise": 0.5, "power": 0.0},
        "BeyondCFGICG": {"weight": 2.0, "conditions": "gaussian", "pool_size": 2, "pool_seed": number},
    }
    window = {"start_percent": 0.0, "end_percent": 1.0}
    key, settings = list(nodes.items())[number % len(nodes)]
    model, clip = (["2", 0], ["3", 0]) if number % 2 else (["1", 0], ["1", 1])
    empty = "EmptySD3LatentImage" if number % 2 else "EmptyLatentImage"
    sampler = {"steps": 1, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "seed": number}
    graph = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": "tiny_sd15.ckpt"}),
        "2": ("UNETLoader", {"unet_name": "demo_flux_small.safetensors", "weight_dtype": "default"}),
        "3": ("CLIPLoader", {"clip_name": "demo_text.ckpt", "type": "stable_diffusion"}),
        "4": (key, {"model": model, **settings, **window}),
        "5": ("CLIPTextEncode", {"clip": clip, "text": f"number {number}"}),
        "6": (empty, {"width": 64, "height": 64, "batch_size": 1}),
        "7": ("KSampler", {"model": ["4", 0], "positive": ["5", 0], "negative": ["5", 0], "latent_image": ["6", 0]}),
        "8": ("SaveLatent", {"samples": ["7", 0], "filename_prefix": "memory"}),
    }
    graph["7"][1].update(sampler)
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in graph.items()}


@pytest.mark.slow
def test_two_hundred_prompts_of_two_models_and_five_guidances_take_no_more_memory(server):
    """Less than 0.1 MB a prompt: the slope of a straight line through the sizes after prompts 50 to 200."""
    process, sizes = psutil.Process(server.process.pid), []
    for number in range(200):
        body = {"prompt": short_prompt(number), "client_id": str(uuid.uuid4()), "prompt_id": str(uuid.uuid4())}
        record = server.wait_for(server.ask("/prompt", body)["prompt_id"])
        assert record["status"]["status_str"] == "success", json.dumps(record["status"])
        sizes.append(process.memory_info().rss / 2**20)
    late = torch.tensor(sizes[50:], dtype=torch.float64)
    at = torch.arange(len(late), dtype=torch.float64) - (len(late) - 1) / 2
    slope = ((late - late.mean()) @ at / (at @ at)).item()
    assert slope < 0.1, (slope, [round(size) for size in sizes[::10]])
