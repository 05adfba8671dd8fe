"""Distil Guidance on small networks: what the LoRA learns, what a training leaves behind, and what it refuses."""

import math
import subprocess
import sys
from pathlib import Path

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import folder_paths
import pytest
import torch
from pack.guiders.host import distillation, make_guider
from pack.guiders.host.training import Lora, attention_with_gradient, copies_kept, recomputed, training
from pack.nodes.distillation import DistilGuidance
from pack.tests.host import networks
from pack.tests.host.harness import loadable as network
from pack.tests.host.harness import needs_copy, pag, prompts, sample, sigmas_of

import nodes as host_nodes

pytestmark = needs_copy
ROOT = Path(__file__).resolve().parent.parent.parent
KINDS = pytest.mark.parametrize("kind", ["unet", "sd3", "flux"])  # noise, flow, flow with blocks that write into inputs
STEPS, SEED = 4, 11
LEARN = distillation.Trainer._learn


def given(kind: str, model, **changes) -> dict:
    """The inputs of the node, each as one value."""
    values = {item.id: item.default for item in DistilGuidance.inputs if getattr(item, "default", None) is not None}
    values |= {
        "model": model, "positive": [networks.conditioning(kind, 1)], "latent": {"samples": networks.latent(kind)},
        "sampler": comfy.samplers.sampler_object("euler"), "sigmas": sigmas_of(model, STEPS), "seed": SEED,
        "pictures": 1, "iterations": 4, "batch_size": 2, "learning_rate": 2e-3, "rank": 4,
    }  # fmt: skip
    return values | changes


def run(kind: str, model, **changes):
    """(the LoRA, the losses) that the node gives, called as the host calls it."""
    values = given(kind, model, **changes)
    values = {name: value if name == "positive" else [value] for name, value in values.items()}
    with torch.inference_mode():
        lora, losses, steps = DistilGuidance.execute(**values).result
    assert len(losses["loss"]) == steps
    return lora, losses["loss"]


def refusal(kind: str, model, **changes) -> str:
    with pytest.raises(ValueError) as error:
        run(kind, model, **changes)
    title, _, message = str(error.value).partition(": ")
    assert title == "Distil Guidance"
    return message


def state_of(model) -> dict:
    return {name: value.clone() for name, value in model.model.state_dict().items()}


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch) -> Path:
    """The host's output folder and, as in a running host, the folder of LoRAs in it."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    folders = folder_paths.folder_names_and_paths | {"loras": ([str(tmp_path / "loras")], {".safetensors"})}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", folders)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


# ------------------------------------------------------------------------------------------------------- what it learns


@KINDS
def test_the_loss_falls_and_the_model_with_the_lora_samples_more_as_the_guided_model_does(kind):
    """On the trajectory that it was trained with. The losses are of the same rows, without learning and with it."""
    from comfy_extras.nodes_train import LoraModelLoader

    model = network(kind)
    guided = pag(model, 2.0)
    few = {"iterations": 32, "batch_size": 2, "rank": 8}
    lora, losses = run(kind, guided, learning_rate=1e-3, **few)
    _, unlearnt = run(kind, guided, learning_rate=0.0, **few)
    assert losses[0] == unlearnt[0] and sum(losses[-4:]) < 0.95 * sum(unlearnt[-4:])
    noise = comfy.sample.prepare_noise(networks.latent(kind), SEED)

    def sampled(of) -> torch.Tensor:
        guider = make_guider(of, networks.conditioning(kind, 1), None, 1.0)
        euler = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, networks.latent(kind), euler, sigmas_of(model, STEPS), disable_pbar=True, seed=SEED)

    student = LoraModelLoader.execute(network(kind), lora, 1.0).result[0]
    teacher, alone, learnt = sampled(guided), sampled(network(kind)), sampled(student)
    assert (learnt - teacher).norm() < 0.95 * (alone - teacher).norm()


def test_cfg_with_a_negative_is_learnt_too_and_cfg_is_what_it_learns_of():
    model = network("sd3")
    _, negative = prompts("sd3")
    loss = {cfg: run("sd3", model, negative=negative, cfg=cfg, iterations=1)[1][0] for cfg in (1.5, 2.0, 3.0)}
    assert loss[3.0] / loss[2.0] == pytest.approx(4, rel=0.5) and loss[2.0] / loss[1.5] == pytest.approx(4, rel=0.5)


def test_each_prompt_is_learnt_with_what_was_sampled_for_it():
    """Of a list, and of what Conditioning (Combine) joins; also where the prompts have different lengths."""
    model, seen = pag(network("sd3")), []
    one, other, longer = (networks.conditioning("sd3", seed, tokens) for seed, tokens in ((1, 20), (2, 20), (3, 33)))
    found = {}

    def watch(executor, x, t, *args, **kwargs):
        if comfy.model_management.in_training:
            context = next(arg for arg in (*args, *kwargs.values()) if torch.is_tensor(arg) and arg.ndim == 3)
            seen.extend((row, float(text.double().sum())) for row, text in zip(x, context, strict=True))
        return executor(x, t, *args, **kwargs)

    from comfy.patcher_extension import WrappersMP

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", watch)
    run("sd3", model, positive=[one + other, longer], pictures=3, batch_size=6, iterations=3)
    for row, text in seen:
        found.setdefault(text, set()).add(tuple(row.flatten()[:3].tolist()))
    assert len(found) == 3 and sum(map(len, found.values())) == len(set.union(*found.values()))


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_one_seed_gives_one_lora_and_another_seed_another(kind):
    model = pag(network(kind))
    torch.manual_seed(1)
    one, losses = run(kind, model)
    torch.manual_seed(2)
    same, as_before = run(kind, model)
    other, _ = run(kind, model, seed=SEED + 1)
    assert losses == as_before and all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@KINDS
def test_a_gradient_is_that_of_the_network_whether_blocks_are_computed_again_or_not(kind):
    """Against differences of the network itself along one direction, in float64 where the network allows it."""
    model = getattr(networks, kind)()
    exact = torch.float32 if kind == "flux" else torch.float64
    model.model.diffusion_model.to(exact).dtype = exact
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=exact)

    latent = networks.latent(kind, 2)
    x, weights = normal(*latent.shape), normal(*latent.shape)
    (text, about), *_ = networks.conditioning(kind, 1)
    conditions = {"c_crossattn": text.to(exact).repeat(2, 1, 1)}
    if "pooled_output" in about:
        conditions["y"] = about["pooled_output"].to(exact).repeat(2, 1)
    if kind == "flux":
        conditions["guidance"] = torch.tensor([3.5, 3.5])
    options = {"cond_or_uncond": [0], "uuids": [0], "optimized_attention_override": attention_with_gradient}
    sigma = torch.full((2,), float(model.model.model_sampling.percent_to_sigma(0.5)))
    with training():
        lora = Lora(model, 4, 0)
        for parameter in lora.parameters:
            parameter.data = 0.05 * normal(*parameter.shape)

        def value() -> torch.Tensor:
            return (model.model.apply_model(x, sigma, transformer_options=dict(options), **conditions) * weights).sum()

        def gradients(context) -> list[torch.Tensor]:
            with context:
                return torch.autograd.grad(value(), lora.parameters)

        with lora.on():
            kept, again = gradients(copies_kept()), gradients(recomputed(model.model.diffusion_model))
            one, other = (torch.cat([part.flatten() for part in found]) for found in (kept, again))
            assert (one - other).norm() < 100 * torch.finfo(exact).eps * one.norm()  # sums may be in another order
            direction = [0.05 * normal(*parameter.shape) for parameter in lora.parameters]
            ends = []
            with torch.no_grad():
                for sign in (1, -1):
                    for parameter, each in zip(lora.parameters, direction, strict=True):
                        parameter.add_(each, alpha=sign * 1e-2)
                    ends.append(value().item())
                    for parameter, each in zip(lora.parameters, direction, strict=True):
                        parameter.sub_(each, alpha=sign * 1e-2)
    along = sum((one * other).sum().item() for one, other in zip(kept, direction, strict=True))
    assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(along, rel=0.02)


# ------------------------------------------------------------------------------------------------------- what it leaves

LOAD = """
import sys
from tools.imports import as_pack, with_host
as_pack()
with_host(sys.argv[1], "--cpu", "--disable-api-nodes")
import folder_paths, torch, nodes
from pack.tests.host import networks
from pack.tests.host.harness import sample
folder_paths.folder_names_and_paths["loras"] = ([sys.argv[2]], {".safetensors"})
found = {}
for kind in sys.argv[3:]:
    name = next(name for name in folder_paths.get_filename_list("loras") if name.startswith(kind))
    model = nodes.LoraLoaderModelOnly().load_lora_model_only(getattr(networks, kind)(), name, 1.0)[0]
    found[kind] = sample(model, kind, cfg=1.0)
torch.save(found, sys.argv[2] + "/found.pt")
"""


def test_a_saved_lora_loads_in_a_fresh_host_and_predicts_as_it_did_in_training(output, monkeypatch):
    """By the host's own saver and loader; against the layers as they were when the training ended."""
    from comfy_extras.nodes_train import SaveLoRA

    trained, plain, kinds = {}, {}, ("unet", "sd3", "flux")
    kept: list[Lora] = []

    class Kept(Lora):
        def __init__(self, model, *args):
            super().__init__(model, *args)
            self.model = model
            kept.append(self)

    monkeypatch.setattr(distillation, "Lora", Kept)
    for kind in kinds:
        lora, _ = run(kind, pag(network(kind)), learning_rate=5e-3)
        SaveLoRA.execute(lora, f"loras/{kind}", 4)
        with kept[-1].on():
            trained[kind] = sample(kept[-1].model, kind, cfg=1.0)
        plain[kind] = sample(network(kind), kind, cfg=1.0)
    folder = str(output / "loras")
    command = [sys.executable, "-c", LOAD, str(Path(folder_paths.__file__).parent), folder, *kinds]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    found = torch.load(f"{folder}/found.pt")
    for kind in kinds:
        moved = (trained[kind] - plain[kind]).norm()
        assert moved > 1e-3 * plain[kind].norm()
        assert (found[kind] - trained[kind]).norm() < 0.02 * moved  # of the file's float16


@pytest.mark.parametrize(
    ("kind", "end"), [("unet", "done"), ("sd3", "done"), ("flux", "done"), ("flux", "error"), ("sd3", "cancelled")]
)
def test_nothing_of_a_training_stays_on_the_model_or_the_host(kind, end, monkeypatch):
    model = network(kind)
    guided = pag(model)
    before, plain, options = state_of(model), sample(guided, kind), dict(guided.model_options)
    forwards = {name: module.forward for name, module in model.model.named_modules()}
    flags = [parameter.requires_grad for parameter in model.model.parameters()]
    if end == "done":
        run(kind, guided)
    else:
        error = RuntimeError("a fault") if end == "error" else comfy.model_management.InterruptProcessingException()
        fail_in_iteration(3, error, monkeypatch)
        with pytest.raises(type(error)):
            run(kind, guided)
        monkeypatch.undo()
    assert not comfy.model_management.in_training
    assert all(torch.equal(value, before[name]) for name, value in state_of(model).items())
    assert [parameter.requires_grad for parameter in model.model.parameters()] == flags
    assert {name: module.forward for name, module in model.model.named_modules()} == forwards
    assert guided.model_options == options and torch.equal(sample(guided, kind), plain)


def fail_in_iteration(number: int, error: BaseException, monkeypatch) -> None:
    """Once the training is there, it fails."""
    calls = []

    def failing(*args):
        calls.append(args)
        if len(calls) == number:
            raise error
        return LEARN(*args)

    monkeypatch.setattr(distillation.Trainer, "_learn", staticmethod(failing))


# ------------------------------------------------------------------------------------------------ cancelled, and resumed


def test_what_was_learnt_before_a_cancel_is_a_file_that_loads_and_that_a_training_goes_on_from(output, monkeypatch):
    guided = pag(network("sd3"))
    fail_in_iteration(9, comfy.model_management.InterruptProcessingException(), monkeypatch)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run("sd3", guided, iterations=50, learning_rate=1e-3)
    (name,) = folder_paths.get_filename_list("loras")
    assert name.startswith("distil_interrupted") and "_8_steps_" in name
    loaded = host_nodes.LoraLoaderModelOnly().load_lora_model_only(network("sd3"), name, 1.0)[0]
    assert not torch.equal(sample(loaded, "sd3", cfg=1.0), sample(network("sd3"), "sd3", cfg=1.0))
    monkeypatch.setattr(distillation.Trainer, "_learn", staticmethod(LEARN))
    still = {"learning_rate": 0.0, "iterations": 1, "batch_size": 8}
    on, (loss,) = run("sd3", guided, existing_lora=name, **still)
    _, (first,) = run("sd3", guided, **still)
    kept = comfy.utils.load_torch_file(str(output / "loras" / name))
    assert on.keys() == kept.keys() and all(torch.equal(on[key], kept[key]) for key in kept)
    assert loss < first  # it goes on from what was learnt, on the same trajectories


def test_a_cancel_while_the_teacher_samples_leaves_no_file(output, monkeypatch):
    def cancelled(self, x0):
        raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(distillation.Progress, "step", cancelled)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run("sd3", pag(network("sd3")))
    assert not [*output.rglob("*")] and not comfy.model_management.in_training


def test_the_hosts_cancel_ends_a_training(output, monkeypatch):
    step, calls = distillation.Progress.step, []

    def cancel(self, x0):
        step(self, x0)
        calls.append(x0)
        if len(calls) == STEPS + 2:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(distillation.Progress, "step", cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run("sd3", pag(network("sd3")), iterations=50)
    assert [*output.rglob("*_2_steps_*")]


def test_a_lora_that_others_have_made_can_be_gone_on_from_where_it_is_of_plain_linear_layers(output):
    """In the names of kohya's files, with an alpha that is not the rank; of one layer, beside which the others are new."""
    name = "joint_blocks.0.x_block.attn.qkv"
    module = network("sd3").model.diffusion_model.get_submodule(name)
    up, down = torch.randn(module.out_features, 2), torch.randn(2, module.in_features)
    of_one = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(1.0)}
    file = {f"lora_unet_{name.replace('.', '_')}.{key}": value for key, value in of_one.items()}
    (output / "loras").mkdir()
    comfy.utils.save_torch_file(file, str(output / "loras/other.safetensors"))
    lora, _ = run("sd3", pag(network("sd3")), existing_lora="other.safetensors", iterations=1, learning_rate=0.0)
    for key, value in of_one.items():
        assert torch.equal(lora[f"diffusion_model.{name}.{key}"], value.half())
    assert sum(key.endswith(".alpha") for key in lora) > 10
    comfy.utils.save_torch_file({"elsewhere.lora_up.weight": up}, str(output / "loras/foreign.safetensors"))
    assert "no layer of the network" in refusal("sd3", pag(network("sd3")), existing_lora="foreign.safetensors")
    file[f"lora_unet_{name.replace('.', '_')}.dora_scale"] = torch.ones(module.out_features, 1)
    comfy.utils.save_torch_file(file, str(output / "loras/dora.safetensors"))
    assert "no plain LoRA" in refusal("sd3", pag(network("sd3")), existing_lora="dora.safetensors")
    message = refusal("sd3", pag(network("sd3")), existing_lora="none.safetensors")
    assert (
        message.startswith('existing_lora is "none.safetensors", which is not there') and "other.safetensors" in message
    )


# ----------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("sd3", torch.float16), ("flux", torch.bfloat16)],
)
def test_a_network_of_half_precision_is_trained_as_it_is(kind, dtype):
    """The loss falls, and the network computes in its own precision. float16 needs its gradients scaled."""

    def halved(network):
        network.to(dtype).dtype = dtype

    guided, few = pag(network(kind, halved), 2.0), {"iterations": 8, "batch_size": 2, "rank": 8}
    assert guided.model.get_dtype_inference() == dtype
    lora, losses = run(kind, guided, learning_rate=1e-3, **few)
    _, unlearnt = run(kind, guided, learning_rate=0.0, **few)
    assert losses[0] == unlearnt[0] and sum(losses[-2:]) < sum(unlearnt[-2:])
    assert all(value.isfinite().all() for value in lora.values())


def test_a_loss_that_is_no_number_ends_the_training_with_what_to_do_and_keeps_no_file(output, monkeypatch):
    calls = []

    def diverging(*args):
        calls.append(args)
        loss, denoised = LEARN(*args)
        return (math.inf if len(calls) == 3 else loss), denoised

    monkeypatch.setattr(distillation.Trainer, "_learn", staticmethod(diverging))
    message = refusal("sd3", pag(network("sd3")))
    assert message == "the loss is inf in iteration 3; choose a lower learning_rate"
    assert not [*output.rglob("*.safetensors")]


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_model_without_guidance_at_cfg_1_has_nothing_to_distil():
    assert "nothing to distil" in refusal("sd3", network("sd3"))
    assert "nothing to distil" in refusal("sd3", pag(network("sd3"), 0.0))  # a term that is off
    assert "nothing to distil" in refusal("sd3", network("sd3"), negative=networks.conditioning("sd3", 2))


def test_a_guidance_of_another_pack_is_one_to_distil():
    model = network("sd3")
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 1.5)
    _, losses = run("sd3", model, iterations=1)
    assert losses[0] > 0


@pytest.mark.parametrize(
    ("key", "value"),
    [("area", (8, 8, 0, 0)), ("mask", torch.ones(1, 8, 8)), ("start_percent", 0.5), ("control", object())],
)
def test_a_prompt_that_acts_in_a_part_is_refused_with_its_number(key, value):
    plain, ((text, about),) = networks.conditioning("sd3", 1), networks.conditioning("sd3", 2)
    message = refusal("sd3", pag(network("sd3")), positive=[plain, [[text, about | {key: value}]]], pictures=2)
    assert message.startswith(f"prompt 2 of positive has {key}")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"positive": [[]]}, "positive has no prompt"),
        (
            {"positive": [networks.conditioning("sd3", 1)] * 3, "pictures": 2},
            "pictures is 2 and positive has 3 prompts",
        ),
        ({"cfg": 3.0}, "cfg is 3 but no negative is connected"),
        ({"sampler": comfy.samplers.sampler_object("euler_cfg_pp")}, "the sampler is euler_cfg_pp"),
        ({"sigmas": torch.ones(1)}, "sigmas is a tensor [1] of torch.float32; it must be two noise levels or more"),
        ({"iterations": 0}, "iterations is 0; it must be a whole number from 1"),
        ({"positive": [networks.conditioning("sd3", 1), "text"]}, 'positive is "text"; it must be a conditioning'),
    ],
)
def test_what_cannot_be_distilled_is_refused_in_a_sentence(changes, part):
    assert refusal("sd3", pag(network("sd3")), **changes).startswith(part)


def test_two_values_for_an_input_that_takes_one_are_refused():
    values = {name: [value] for name, value in given("sd3", pag(network("sd3"))).items()}
    with pytest.raises(ValueError, match="Distil Guidance: cfg gets 2 values; it takes one"):
        DistilGuidance.execute(**values | {"cfg": [1.0, 2.0], "positive": [networks.conditioning("sd3", 1)]})


def test_a_network_that_the_host_cannot_load_again_or_train_is_refused_in_a_sentence(monkeypatch):
    assert "cannot be loaded a second time" in refusal("sd3", pag(networks.sd3()))

    def without_gradient(self, *args, **kwargs):
        with torch.no_grad():
            return forward(self, *args, **kwargs)

    kind = type(network("sd3").model.diffusion_model)
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", without_gradient)
    assert "SD3 cannot be trained on this host" in refusal("sd3", pag(network("sd3")))


def test_a_latent_of_several_is_refused():
    from comfy.nested_tensor import NestedTensor

    several = NestedTensor([networks.latent("sd3"), networks.latent("sd3")])
    assert "packs several" in refusal("sd3", pag(network("sd3")), latent={"samples": several})


# ---------------------------------------------------------------------------------------------------------- the picture


def test_the_node_shows_the_curve_of_its_losses_and_counts_every_step(monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total):
            bars.append([total])

        def update_absolute(self, value, total, preview):
            bars[0].append(value)

    monkeypatch.setattr(comfy.utils, "ProgressBar", Bar)
    values = {name: [value] for name, value in given("sd3", pag(network("sd3")), pictures=3).items()}
    values["positive"] = values["positive"][0]
    out = DistilGuidance.execute(**values | {"latent": [{"samples": networks.latent("sd3", 2)}]})
    assert out.ui is not None
    assert bars == [[2 * STEPS + 4, *range(1, 2 * STEPS + 5)]]
