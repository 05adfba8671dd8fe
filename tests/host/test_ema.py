"""Post-hoc EMA on files: what the host makes of them, and what the node says of files that cannot work."""

import logging
from pathlib import Path

import comfy.sd
import folder_paths
import pytest
import torch
from pack.nodes.weaker_models import PostHocEMA
from pack.patches.host import ema as host
from pack.patches.post_hoc_ema import coefficients, gamma_of
from pack.tests.host.harness import guider_of, noise_like, run

ROOT = Path(__file__).resolve().parent.parent.parent
PREFIX = "model.diffusion_model."


@pytest.fixture
def folder(sd3_weights, tmp_path, monkeypatch) -> Path:
    """The only model folder that the host has: a.ckpt, b.ckpt and c.ckpt are checkpoints, bare.ckpt is b alone."""
    places = {name: ([str(tmp_path / name)], {".ckpt", ".safetensors"}) for name in host.FOLDERS}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", folder_paths.folder_names_and_paths | places)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    for name in host.FOLDERS:
        (tmp_path / name).mkdir()
    for name, tensors in zip("abc", sd3_weights, strict=True):
        beside = {"first_stage_model.unused": torch.ones(2)}
        save(tmp_path / "checkpoints" / f"{name}.ckpt", {PREFIX + key: t for key, t in tensors.items()} | beside)
    save(tmp_path / "diffusion_models" / "bare.ckpt", sd3_weights[1])
    save(tmp_path / "diffusion_models" / "bare2.ckpt", sd3_weights[2])
    return tmp_path


def save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    torch.save({"state_dict": tensors}, path)


def average(*lines: str, snapshot_ema=0.0, ema=0.1):
    return PostHocEMA.execute(snapshots="\n".join(lines), snapshot_ema=snapshot_ema, ema=ema).result[0]


def refusal(*lines: str, **settings) -> str:
    with pytest.raises(ValueError) as error:
        average(*lines, **settings)
    title, _, message = str(error.value).partition(": ")
    assert title == "Post-hoc EMA"
    return message


def tensors_of(model) -> dict[str, torch.Tensor]:
    return model.model.diffusion_model.state_dict()


def same(a, b) -> bool:
    a, b = tensors_of(a), tensors_of(b)
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def sample(model) -> torch.Tensor:
    text = noise_like(torch.empty(1, 7, 4096), seed=1)
    condition = [[text, {"pooled_output": noise_like(torch.empty(1, 2048), seed=2)}]]
    return run(guider_of(model, condition, condition, 1.0), torch.zeros(1, 16, 8, 8), steps=2)


# -------------------------------------------------------------------------------------------------------------- models


def test_a_single_checkpoint_is_the_host_loaders_own_model_bit_for_bit(folder):
    plain = comfy.sd.load_checkpoint_guess_config(str(folder / "checkpoints" / "a.ckpt"), False, False, False)[0]
    model = average("a.ckpt")
    assert same(model, plain) and type(model) is type(plain)
    assert torch.equal(sample(model), sample(plain))


def test_a_single_diffusion_model_is_the_host_loaders_own_model_bit_for_bit(folder):
    plain = comfy.sd.load_diffusion_model(str(folder / "diffusion_models" / "bare.ckpt"))
    assert same(average("bare.ckpt"), plain)


@pytest.mark.parametrize("names", [("b.ckpt", "c.ckpt"), ("bare.ckpt", "bare2.ckpt")])
@pytest.mark.parametrize("snapshot_ema", [0.0, 0.05])
def test_two_snapshots_are_averaged_and_the_model_samples(folder, sd3_weights, names, snapshot_ema):
    model = average(*names, snapshot_ema=snapshot_ema)
    gamma = gamma_of(snapshot_ema)
    first, second = coefficients([(1.0, gamma), (2.0, gamma)], (2.0, gamma_of(0.1)))
    found = tensors_of(model)
    for key, tensor in sd3_weights[1].items():
        expected = (first * tensor.float() + second * sd3_weights[2][key].float()).half()
        torch.testing.assert_close(found[key].half(), expected, rtol=1e-3, atol=1e-6)
    picture = sample(model)
    assert picture.isfinite().all() and not torch.equal(picture, sample(average(names[1])))


@pytest.mark.parametrize("names", [("b.ckpt", "c.ckpt"), ("bare.ckpt", "bare2.ckpt")])
def test_the_attention_that_the_last_file_chooses_is_kept_and_need_not_be_in_all(
    folder, sd3_weights, names, monkeypatch
):
    expected, given = tensors_of(average(*names)), {}
    of_layer = "joint_blocks.0.x_block.attn.comfy_attention.config"
    for name, tensors, choice in zip(
        names, sd3_weights[1:], ('{"attention": "a"}', '{"attention": "longer"}'), strict=True
    ):
        prefix = "" if "bare" in name else PREFIX
        chosen = {of_layer: torch.tensor([*choice.encode()], dtype=torch.uint8)}
        saved = {prefix + key: tensor for key, tensor in (tensors | chosen).items()}
        save(next(folder.rglob(name)), saved)
    monkeypatch.setattr(host, "_load", lambda *args, real=host._load: given.update(args[0] | args[1]) or real(*args))
    averaged = tensors_of(average(*names))
    assert all(torch.equal(averaged[key], tensor) for key, tensor in expected.items())
    (found,) = [bytes(tensor.tolist()) for key, tensor in given.items() if key.endswith(of_layer)]
    assert found == b'{"attention": "longer"}'


def test_times_decide_and_their_unit_does_not(folder):
    counted = average("a.ckpt", "b.ckpt", "c.ckpt")
    assert same(counted, average("a.ckpt @ 100", "", "  b.ckpt@200  ", "c.ckpt @ 3e2"))
    assert not same(counted, average("a.ckpt @ 100", "b.ckpt @ 290", "c.ckpt @ 300"))


def test_a_snapshot_that_is_the_average_asked_for_is_taken_as_it_is_and_no_other_is_read(folder, monkeypatch):
    read = []
    monkeypatch.setattr(host, "_read", lambda snapshot, real=host._read: read.append(snapshot.name) or real(snapshot))
    model = average("a.ckpt @ 1", "b.ckpt @ 2 @ 0.05", "c.ckpt @ 2 @ 0.1", snapshot_ema=0.05)
    assert read == ["c.ckpt"] and same(model, average("c.ckpt"))


def test_snapshots_of_two_lengths_at_the_same_times(folder):
    snapshots = host.find_snapshots("a.ckpt @ 7\nb.ckpt @ 7 @ 0.1\nc.ckpt @ 8", 0.05)
    assert [(s.name, s.time, s.ema) for s in snapshots] == [
        ("a.ckpt", 7, 0.05),
        ("b.ckpt", 7, 0.1),
        ("c.ckpt", 8, 0.05),
    ]


def test_a_file_name_may_have_an_at_in_it(folder, sd3_weights):
    save(folder / "diffusion_models" / "run@3.ckpt", sd3_weights[0])
    (snapshot,) = host.find_snapshots("run@3.ckpt @ 5", 0.0)
    assert (snapshot.name, snapshot.time, snapshot.ema) == ("run@3.ckpt", 5.0, 0.0)
    assert host.find_snapshots("run@3.ckpt", 0.0)[0].time == 1.0


def test_what_the_last_checkpoint_says_beside_its_weights_is_heard(folder, monkeypatch):
    given = []
    real = comfy.sd.load_state_dict_guess_config
    monkeypatch.setattr(
        comfy.sd, "load_state_dict_guess_config", lambda sd, *a, **k: given.append(set(sd)) or real(sd, *a, **k)
    )
    tensors = torch.load(folder / "checkpoints" / "c.ckpt")["state_dict"]
    save(folder / "checkpoints" / "c.ckpt", tensors | {"v_pred": torch.tensor([])})
    average("a.ckpt", "c.ckpt")
    assert given == [set(tensors) | {"v_pred"}]


def test_the_host_can_make_another_copy_of_the_model(folder):
    model = average("a.ckpt", "b.ckpt")
    factory, arguments = model.cached_patcher_init
    assert same(factory(*arguments, disable_dynamic=True), model)


def test_snapshots_too_few_for_the_average_are_told(folder, caplog):
    with caplog.at_level(logging.WARNING):
        average("a.ckpt", "b.ckpt", ema=0.2)
        assert not [r for r in caplog.records if "Post-hoc EMA" in r.message]
        average("a.ckpt", "b.ckpt", ema=0.2, snapshot_ema=0.05)
    assert "off from ema 0.2" in next(r.message for r in caplog.records if "Post-hoc EMA" in r.message)


# -------------------------------------------------------------------------------------------------------------- errors

HAVE = "The folders checkpoints and diffusion_models have: a.ckpt, b.ckpt, bare.ckpt, bare2.ckpt, c.ckpt"


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_no_snapshots_are_refused_with_the_choices(folder, text):
    assert refusal(text) == f"snapshots is empty; write one file name per line. {HAVE}"


@pytest.mark.parametrize("line", ["d.ckpt", "d.ckpt @ 3", "../a.ckpt/../x", "@ 3"])
def test_a_file_that_is_not_there_is_refused_with_its_line_and_the_choices(folder, line):
    name = line.partition("@")[0].strip()
    assert refusal("a.ckpt", "", line) == f'snapshots, line 3: there is no "{name}". {HAVE}'


def test_many_choices_are_cut_to_those_that_are_alike(folder):
    for number in range(40):
        (folder / "checkpoints" / f"other_{number}.ckpt").touch()
    message = refusal("a.ckpy")
    assert "have: a.ckpt" in message and message.endswith("more") and message.count(",") < 21


@pytest.mark.parametrize("numbers", ["", "five", "1 @ x", "1 @ 0.1 @ 2"])
def test_numbers_that_cannot_be_read_are_refused_with_their_line(folder, numbers):
    message = refusal("a.ckpt @ 1", f"b.ckpt @ {numbers}")
    assert message.startswith(f'snapshots, line 2: cannot read "{numbers}" after b.ckpt; write name @ time')


@pytest.mark.parametrize("lines", [("a.ckpt", "b.ckpt @ 2"), ("a.ckpt @ 1", "b.ckpt")])
def test_times_on_some_lines_only_are_refused(folder, lines):
    assert refusal(*lines) == "snapshots, line 2: write name @ time on all lines or on none"


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        (("a.ckpt @ 2", "b.ckpt @ 1"), "snapshot 2 has time 1 and the one before it 2"),
        (("a.ckpt @ 2", "b.ckpt @ 2"), "snapshot 2 has time 2 and the one before it 2"),
        (("a.ckpt @ nan", "b.ckpt @ 2"), "snapshot 1 has time nan"),
        (("a.ckpt @ 0",), "snapshot 1 has time 0"),
        (("a.ckpt @ 1 @ 0.05", "b.ckpt @ 2"), "all snapshots must be of one kind"),
        (("a.ckpt @ 1 @ 5",), "σ_rel is 5.0"),
    ],
)
def test_profiles_that_cannot_work_are_refused(folder, lines, part):
    assert part in refusal(*lines)


def changed(folder: Path, change, names: str = "b") -> None:
    for name in names:
        path = folder / "checkpoints" / f"{name}.ckpt"
        tensors = torch.load(path)["state_dict"]
        change(tensors)
        save(path, tensors)


KEY = PREFIX + "x_embedder.proj.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY), f"b.ckpt has no {KEY}, but a.ckpt has"),
        (lambda t: t.update({KEY: t[KEY][:5]}), f"{KEY} is [5] in b.ckpt but [192] in a.ckpt"),
        (lambda t: t[KEY].fill_(float("nan")), f"{KEY} of b.ckpt has values that are not finite"),
        (lambda t: t.update({PREFIX + "scaled_fp8": torch.ones(2)}), "b.ckpt is quantised"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(folder, change, message):
    changed(folder, change)
    assert refusal("a.ckpt", "b.ckpt").startswith(message)


def test_a_file_that_cannot_be_read_is_refused_by_name(folder):
    (folder / "checkpoints" / "b.ckpt").write_bytes(b"no checkpoint")
    (folder / "checkpoints" / "d.safetensors").write_bytes(b"no checkpoint")
    assert refusal("a.ckpt", "b.ckpt").startswith("b.ckpt cannot be read: ")
    assert refusal("d.safetensors").startswith("d.safetensors cannot be read: ")


def test_a_file_without_a_diffusion_model_is_refused_by_name(folder):
    save(folder / "checkpoints" / "b.ckpt", {"first_stage_model.x": torch.ones(2)})
    assert refusal("b.ckpt") == "b.ckpt holds no diffusion model that this ComfyUI knows"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY), "c.ckpt lacks x_embedder.proj.bias, which a network of this kind (SD3) has"),
        (
            lambda t: [t.pop(key) for key in list(t) if ".context_block.attn.proj." in key],
            "c.ckpt lacks joint_blocks.0.context_block.attn.proj.weight and 3 more, which a network of this kind (SD3) has",
        ),
        (
            lambda t: t.update({KEY: t[KEY][:5]}),
            "x_embedder.proj.bias of c.ckpt is [5], and a network of this kind has [192]",
        ),
        (lambda t: [t.pop(key) for key in list(t) if "joint_blocks" in key], "c.ckpt holds no diffusion model that"),
    ],
)  # fmt: skip
def test_files_that_are_alike_and_no_whole_network_are_refused_by_the_key(folder, change, message):
    """What a file lacks the host would leave as the memory was."""
    changed(folder, change, "abc")
    assert refusal("a.ckpt", "c.ckpt").startswith(message)


def test_every_demo_network_is_whole(monkeypatch):
    models = ROOT / "benchmarks" / "models" / "diffusion_models"
    monkeypatch.setattr(
        folder_paths, "folder_names_and_paths", folder_paths.folder_names_and_paths | {
            "diffusion_models": ([str(models)], {".safetensors"})
        },
    )  # fmt: skip
    for path in models.iterdir():
        assert average(path.name)


def test_a_network_in_the_layout_of_diffusers_is_taken_as_the_host_takes_it(folder, monkeypatch):
    """Its keys are not those of the network that the host makes of it."""
    real = host.comfy.model_detection.model_config_from_unet
    there = {}

    def renamed(state, *args, **kwargs):
        return None if any(key.startswith("their.") for key in state) else real(state, *args, **kwargs)

    def back(state, prefix):
        there.update(state)
        return {key.removeprefix("their."): tensor for key, tensor in state.items()}

    monkeypatch.setattr(host.comfy.model_detection, "model_config_from_unet", renamed)
    monkeypatch.setattr(host.comfy.model_detection, "convert_diffusers_mmdit", back)
    tensors = torch.load(folder / "diffusion_models" / "bare.ckpt")["state_dict"]
    save(folder / "diffusion_models" / "theirs.ckpt", {f"their.{key}": tensor for key, tensor in tensors.items()})
    assert same(average("theirs.ckpt"), average("bare.ckpt")) and there


def test_an_average_that_leaves_the_range_of_its_files_is_refused_by_the_key(folder):
    changed(folder, lambda t: t[KEY].fill_(60000.0), "b")
    changed(folder, lambda t: t[KEY].fill_(-60000.0), "a")
    message = refusal("a.ckpt @ 1", "b.ckpt @ 1.1", snapshot_ema=0.25, ema=0.01)
    assert message.startswith(f"{KEY} leaves the range of torch.float16")


def test_too_many_snapshots_are_refused_by_their_number(folder):
    assert refusal(*["a.ckpt"] * 501) == "snapshots has 501 files; at most 500 can be averaged"


def test_a_line_of_many_ats_is_refused_at_once_and_by_its_beginning(folder, monkeypatch):
    looked = []
    monkeypatch.setattr(host, "_find", lambda name: looked.append(name))
    message = refusal("@ 1" * 5000)
    assert len(looked) < 10 and message.startswith('snapshots, line 1: there is no "@ 1@ 1') and len(message) < 400
