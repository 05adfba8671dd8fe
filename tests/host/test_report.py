"""Guidance Recorder and Report: what they say is what happened, and nothing happens because of them."""

import csv
import itertools
import json
import math

import folder_paths
import pytest
import torch
from pack.guiders.host import Recorder, trace, with_recorder
from pack.guiders.host.recorder import Call
from pack.nodes.grids import GuidanceGrid
from pack.nodes.pictures.labelled_grid import LARGEST_SIDE, check_size
from pack.nodes.report import GuidanceRecorder, GuidanceReport
from pack.nodes.reuse import GuidanceReuse, GuidanceStop
from pack.nodes.verdict import moved, verdict
from pack.patches.texts import shown
from pack.tests.host import networks
from pack.tests.host.harness import TERM_NODES, guider_of, network, pag, prompts, run, sample, sigmas_of


def seg(model):
    node = TERM_NODES["BeyondCFGSEG"]
    given = {given.id: given.default for given in node.inputs if getattr(given, "default", None) is not None}
    return node.execute(**given, model=model).result[0]


def recorded(model, steps=(0, -1)):
    recorder = Recorder(steps)
    return with_recorder(model, recorder), recorder


@pytest.mark.parametrize("kind", ["unet", "flux"])
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_the_picture_is_the_same_bit_for_bit(kind, guided, cfg):
    model = network(kind)
    if guided:
        model = seg(pag(model, end=0.6))
    listening, recorder = recorded(model)
    assert torch.equal(sample(listening, kind, cfg=cfg), sample(model, kind, cfg=cfg))
    assert len(recorder.calls) == 4 and all(call.forwards for call in recorder.calls)


class Naive:
    """The predictions of each model call, taken by a post-CFG function of the host, and the terms' sums by hand."""

    def __init__(self, model):
        self.seen = []
        self.model = model.clone()
        self.model.set_model_sampler_post_cfg_function(self.look)

    def look(self, args):
        self.seen.append({name: args[name].clone() for name in ("cond_denoised", "uncond_denoised", "denoised")})
        return args["denoised"]


def test_sizes_angles_and_cost_are_those_counted_by_hand():
    """CFG's direction from the host's own two predictions; PAG's and SEG's from models with one guidance each."""
    kind, model, latent = "unet", network("unet"), networks.latent("unet", 2, 8, 12)
    listening, recorder = recorded(seg(pag(model)))
    with trace() as forwards:
        sample(listening, kind, latent=latent, steps=1)
    (call,) = recorder.calls
    assert call.names == ("CFG", "PAG", "SEG")
    assert call.forwards == len(forwards) == 1 and call.rows == 2 * len(forwards[0].roles) == 8

    ends = []  # each step's end, by one Euler step to σ = 0, is the guided prediction itself
    for guided, cfg in ((model, 1.0), (model, 4.0), (pag(model), 4.0), (seg(pag(model)), 4.0)):
        watched = Naive(guided)
        guider = guider_of(watched.model, *prompts(kind), cfg)
        run(guider, latent, sigmas=torch.cat([sigmas_of(model, 1)[:1], torch.zeros(1)]))
        ends.append(watched.seen[0]["denoised"].double())
    moves = [(after - before).flatten() for before, after in itertools.pairwise(ends)]
    for name, move in zip(call.names, moves, strict=True):
        assert call.sizes()[name] == pytest.approx(move.square().mean().sqrt().item(), rel=1e-4)
    for i, one in enumerate(call.names):
        for j in range(i + 1, 3):
            cosine = torch.nn.functional.cosine_similarity(moves[i], moves[j], dim=0).item()
            assert call.angles()[one, call.names[j]] == pytest.approx(math.degrees(math.acos(cosine)), abs=0.05)


def test_the_effective_cfg_of_cfg_alone_is_its_cfg():
    for cfg in (0.5, 4.0):
        listening, recorder = recorded(network("unet"))
        sample(listening, "unet", cfg=cfg, steps=3)
        for call in recorder.calls:
            assert call.effective_cfg() == pytest.approx(cfg, rel=1e-4)
            assert call.shares() == {"CFG": pytest.approx(cfg - 1, rel=1e-4)}
        assert recorder.effective_cfg() == pytest.approx(cfg, rel=1e-4)


def test_the_effective_cfg_is_the_weight_of_the_nearest_plain_cfg():
    """By hand, from the host's own predictions: the least squares over all calls; and each guidance has its share."""
    listening, recorder = recorded(seg(pag(network("unet"))))
    watched = Naive(listening)
    sample(watched.model, "unet", steps=3)
    along = lengths = 0.0
    for seen, call in zip(watched.seen, recorder.calls, strict=True):
        positive, negative, result = (
            seen[name].double().flatten() for name in ("cond_denoised", "uncond_denoised", "denoised")
        )
        delta = positive - negative
        along, lengths = along + (result - negative) @ delta, lengths + delta @ delta
        assert call.effective_cfg() == pytest.approx(((result - negative) @ delta / (delta @ delta)).item(), rel=1e-4)
        assert sum(call.shares().values()) == pytest.approx(call.effective_cfg() - 1, rel=1e-6)
        cosine = torch.nn.functional.cosine_similarity(result, positive, dim=0).item()
        assert call.turn() == pytest.approx(math.degrees(math.acos(cosine)), abs=0.05)
    assert recorder.effective_cfg() == pytest.approx((along / lengths).item(), rel=1e-4)
    assert {"effective cfg", "share of PAG in it", "angle of result and positive"} <= {*recorder.table()[0]}


def test_without_a_negative_there_is_no_effective_cfg_and_the_report_gives_1(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    listening, recorder = recorded(pag(network("unet")))
    samples = sample(listening, "unet", cfg=1.0, steps=2)
    assert recorder.effective_cfg() is None and "effective cfg" not in recorder.table()[0]
    assert GuidanceReport.build(recorder, {"samples": samples}, "").result[3] == 1.0


def test_the_predictions_are_the_hosts_own():
    model, latent = network("unet"), networks.latent("unet", 2, 8, 8)
    listening, recorder = recorded(model, (1, -1))
    watched = Naive(listening)
    sample(watched.model, "unet", latent=latent)
    assert sorted(recorder.predictions) == [1, 3]
    out = model.model.process_latent_out
    for step, found in recorder.predictions.items():
        seen = watched.seen[step]
        for name, theirs in (("positive", "cond_denoised"), ("negative", "uncond_denoised"), ("guided", "denoised")):
            assert torch.equal(found[name], out(seen[theirs][:1]).cpu()), name


@pytest.mark.parametrize(
    ("asked", "kept", "said"),
    [
        ((0, 99), [0, 3], "asks for step 99, but this run has the steps 0 to 3. It keeps step 3 instead"),
        ((-9, 1), [0, 1], "asks for step -9, but this run has the steps 0 to 3. It keeps step 0 instead"),
        (
            (-9, 7, 8),
            [0, 3],
            "asks for the steps -9, 7 and 8, but this run has the steps 0 to 3. It keeps the steps 0 and 3",
        ),
        ((-4, 3), [0, 3], None),
    ],
)
def test_a_step_that_the_run_does_not_have_counts_as_its_nearest_and_is_said_once(asked, kept, said, caplog):
    listening, recorder = recorded(network("unet"), asked)
    sample(listening, "unet")
    assert sorted(recorder.predictions) == kept
    messages = [message for message in caplog.messages if "predictions_at" in message]
    assert len(messages) == (said is not None)
    assert said is None or f"Beyond CFG: Guidance Recorder: predictions_at {said}" in messages[0]


def test_outside_its_interval_a_guidance_has_no_number_and_costs_no_row():
    listening, recorder = recorded(pag(network("unet"), end=0.5))
    sample(listening, "unet", cfg=1.0, steps=6)
    inside = [call for call in recorder.calls if "PAG" in call.names]
    outside = [call for call in recorder.calls if "PAG" not in call.names]
    assert inside and outside and {call.rows for call in inside} == {2} and {call.rows for call in outside} == {1}


def test_a_weak_models_forwards_are_counted():
    node = TERM_NODES["BeyondCFGAutoguidance"]
    given = {given.id: given.default for given in node.inputs if getattr(given, "default", None) is not None}
    model = node.execute(**given, model=network("unet"), weak_model=network("unet", seed=5)).result[0]
    listening, recorder = recorded(model)
    sample(listening, "unet", steps=2)
    assert [(call.forwards, call.rows) for call in recorder.calls] == [(2, 3), (2, 3)]


def test_two_guidances_of_one_kind_have_two_names():
    listening, recorder = recorded(pag(pag(network("unet"), scale=1.0), scale=2.0, layers="output.1"))
    sample(listening, "unet", cfg=1.0, steps=1)
    assert recorder.names == ["PAG", "PAG 2"]


def test_a_second_run_begins_anew():
    listening, recorder = recorded(pag(network("unet")))
    sample(listening, "unet", steps=3)
    first = recorder.table()
    sample(listening, "unet", steps=3)
    drop = lambda lines: [{**line, "milliseconds": 0} for line in lines]  # noqa: E731
    assert drop(recorder.table()) == drop(first) and len(first) == 3


def test_the_nodes_write_what_was_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    model, report = GuidanceRecorder.execute(model=pag(network("unet")), predictions_at="0, 2").result
    samples = {"samples": sample(model, "unet")}
    shown = GuidanceReport.build(report, samples, "reports/run")
    picture, predictions, files, scale, text = shown.result
    assert text.splitlines() == verdict(report) == list(shown.ui["text"][0].splitlines())
    assert scale == report.effective_cfg() > 1
    assert picture.ndim == 4 and picture.shape[-1] == 3 and picture.std() > 0.01
    assert predictions["samples"].shape == (6, *samples["samples"].shape[1:])  # 2 steps × 3 predictions
    paths = files.splitlines()
    file = json.loads((tmp_path / "reports" / "run_00001.json").read_text("utf-8"))
    lines = file["calls"]
    assert lines == json.loads(json.dumps(report.table())) and len(paths) == 2
    assert file["verdict"] == text.splitlines()
    with open(tmp_path / "reports" / "run_00001.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["size of PAG"]) for row in rows] == [line["size of PAG"] for line in lines]
    assert GuidanceReport.build(report, samples, "reports/run").result[2].splitlines()[0].endswith("run_00002.csv")
    assert GuidanceReport.build(report, samples, " ").result[2] == ""


def of_sizes(rows=(), **names) -> Recorder:
    """A run with these sizes of each guidance, step by step; None is where it did not act. rows: for each."""
    recorder, steps = Recorder(), max(map(len, names.values()))
    for step in range(steps):
        acting = [name.replace("_", " ") for name, sizes in names.items() if sizes[step] is not None]
        sizes = torch.tensor([sizes[step] for sizes in names.values() if sizes[step] is not None] + [1.0])
        needed = {(name,): count for name, count in rows if name in acting}
        count = 1 + sum(needed.values())
        recorder.calls.append(
            Call(step, 1.0, 1, count, 500.0, (*acting,), ("= result",), sizes.diag() ** 2, rows_for=needed)
        )
    return recorder


FADING = [0.02, 0.1, 0.2, 0.15, 0.12, 0.05, 0.03, 0.001, None, None]


@pytest.mark.parametrize(
    ("recorder", "said"),
    [
        (
            of_sizes(PAG=FADING, rows=[("PAG", 1)]),
            [
                "PAG acted most in steps 1 to 4, where it moved the picture by up to 20%. It did almost nothing after "
                "step 6. It made sampling up to 80% slower.",
                "Sampling took 5.0 s for 10 steps.",
            ],
        ),
        (
            of_sizes(CFG=[0.3, 0.2, 0.25], Rescale=[None, 0.005, None], rows=[("CFG", 1)]),
            [
                "CFG acted about equally in all steps, and moved the picture by up to 30%. It made sampling up to 100% "
                "slower.",
                "Rescale acted most in step 1, where it moved the picture by up to less than 1%. It did nothing before "
                "step 1 and after step 1. It made sampling no slower.",
                "Sampling took 1.5 s for 3 steps.",
            ],
        ),
        (
            of_sizes(PAG=[0.1, None, None, 0.1, 0.1], rows=[("PAG", 1)]),
            [
                "PAG acted most in steps 0, 3 and 4, where it moved the picture by up to 10%. It did nothing in steps 1 "
                "and 2. It made sampling up to 60% slower.",
                "Sampling took 2.5 s for 5 steps.",
            ],
        ),
        (
            of_sizes(PAG=[0.0], rows=[("PAG", 1)]),
            ["PAG changed nothing. It made sampling up to 100% slower.", "Sampling took 0.5 s for 1 step."],
        ),
        (
            of_sizes(PAG=[0.1, math.nan]),
            [
                "PAG gave values that are not numbers in step 1, so the picture is black or broken.",
                "Sampling took 1.0 s for 2 steps.",
            ],
        ),
        (
            of_sizes(PAG=[0.1], PAG_2=[0.1], rows=[("PAG", 2)]),
            [
                "PAG acted about equally in all steps, and moved the picture by up to 10%.",
                "PAG 2 acted about equally in all steps, and moved the picture by up to 10%.",
                "All PAG nodes together made sampling up to 200% slower.",
                "Sampling took 0.5 s for 1 step.",
            ],
        ),
    ],
    ids=["fading", "everywhere and in one step", "with a gap", "nothing", "no number", "two of a kind"],
)
def test_the_verdict_says_when_each_guidance_acted_how_much_and_what_it_cost(recorder, said):
    assert verdict(recorder) == said


def test_the_verdict_of_a_run_is_of_its_own_numbers():
    """Which steps, how much and how much slower, counted by hand from the table; and what pushes the same way."""
    listening, recorder = recorded(seg(pag(network("unet"), end=0.5)))
    sample(listening, "unet", cfg=4.0, steps=6)
    cfg, of_pag, of_seg, *others = verdict(recorder)
    table = recorder.table()
    sizes = [line.get("size of PAG", 0.0) for line in table]
    assert [*moved(recorder)["PAG"].values()] == pytest.approx(
        [size / recorder.calls[-1].size_of_result() for size in sizes]
    )
    last = max(step for step, size in enumerate(sizes) if size > 0.01 * max(sizes))
    assert "PAG acted most in step 0, where" in of_pag and f"nothing after step {last}." in of_pag
    rows, acting = sum(line["rows"] for line in table), sum("size of PAG" in line for line in table)
    assert 0 < acting < 6 and f"It made sampling up to {100 * acting / (rows - acting):.0f}% slower." in of_pag
    assert f"It made sampling up to {100 * 6 / (rows - 6):.0f}% slower." in cfg and "up to" in of_seg
    assert any(line.startswith("All guidance together was about as strong as cfg ") for line in others)


def test_the_verdict_names_what_was_continued_ended_or_without_effect():
    settings = {"every": 3, "mode": "regular", "tolerance": 0.6, "between": "linear", "first": 1, "last": 0}
    model = pag(pag(network("unet")), start=0.02, end=0.04)
    listening, recorder = recorded(GuidanceReuse.execute(model=model, **settings).result[0])
    sample(listening, "unet", cfg=4.0, steps=9)
    found = verdict(recorder)
    assert "It was computed in 3 of 9 model calls, and continued in 6." in found[0]
    assert "PAG had no effect: no step of this run lies in 0.02 to 0.04 of sampling." in found
    assert any(line.startswith("Continued and ended guidance saved ") for line in found)

    settings = {"cosine": 0.0, "length": 0.0}
    listening, recorder = recorded(GuidanceStop.execute(model=pag(network("unet")), **settings).result[0])
    sample(listening, "unet", cfg=1.0)
    assert "Guidance Stop ended it at step 1." in verdict(recorder)[0]


def test_two_guidances_with_one_prediction_and_one_without_a_curve_are_said():
    model = pag(pag(network("unet"), scale=1.0), scale=2.0)
    listening, recorder = recorded(model)
    sample(listening, "unet", cfg=1.0)
    assert "All PAG nodes together made sampling up to 100% slower." in verdict(recorder)
    assert "PAG and PAG 2 push the picture much the same way (0° apart). One of them may be enough." in verdict(
        recorder
    )

    node = TERM_NODES["BeyondCFGPerturbedNegative"]
    given = {given.id: given.default for given in node.inputs if getattr(given, "default", None) is not None}
    listening, recorder = recorded(node.execute(**given, model=network("unet")).result[0])
    sample(listening, "unet", cfg=4.0)
    name = node.about.name
    assert any(line.startswith(f"{name} acts inside another prediction") for line in verdict(recorder))


def test_numbers_that_are_none_are_said_and_drawn():
    call = Call(0, 1.0, 1, 2, 3.0, ("CFG", "PAG"), ("= positive", "= result", "= Δ"), torch.full((5, 5), math.nan))
    recorder = Recorder(calls=[call])
    found = verdict(recorder)
    assert found[0].startswith("CFG gave values that are not numbers in step 0") and not any(
        "nan" in line for line in found
    )
    assert GuidanceReport.build(recorder, {"samples": torch.zeros(1, 4, 8, 8)}, "").result[0].shape[0] == 1


def test_a_run_without_guidance_has_a_verdict_and_a_picture():
    listening, recorder = recorded(network("unet"))
    samples = sample(listening, "unet", cfg=1.0)
    assert verdict(recorder)[0] == "No guidance acted in this run."
    assert GuidanceReport.build(recorder, {"samples": samples}, "").result[0].shape[0] == 1


@pytest.fixture
def save(tmp_path, monkeypatch):
    """save(prefix) → the names of the files that it wrote in the output folder"""
    output = tmp_path / "output"
    output.mkdir()
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(output))
    recorder = Recorder()
    recorder.calls.append(Call(0, 1.0, 1, 2, 3.0, ("PAG",), torch.ones(1, 1)))

    def save(prefix: str) -> list[str]:
        before = set(tmp_path.rglob("*"))
        paths = recorder.save(prefix)
        assert {path for path in set(tmp_path.rglob("*")) - before if path.is_file()} == set(paths)
        return [str(path.relative_to(output)) for path in paths]

    save.files = lambda: [path for path in tmp_path.rglob("*") if path.is_file()]
    return save


@pytest.mark.parametrize(
    "prefix", ["cfg4.5", "a.b/c.d", "[cfg]", "cfg*", "CFG 4.5 ➜ é", "report_00001", "run.csv", ".x", "..."]
)
def test_a_report_never_takes_the_place_of_another(save, prefix):
    assert [save(prefix) for _ in range(3)] == [
        [f"{prefix}_{number:05}.csv", f"{prefix}_{number:05}.json"] for number in (1, 2, 3)
    ]


def test_reports_with_one_beginning_are_counted_each_by_itself(save):
    assert [save(prefix)[0] for prefix in ("cfg4.5", "cfg4.0", "cfg4", "cfg4.5")] == [
        "cfg4.5_00001.csv",
        "cfg4.0_00001.csv",
        "cfg4_00001.csv",
        "cfg4.5_00002.csv",
    ]


def test_a_number_is_free_only_where_neither_file_is_there(save, monkeypatch):
    monkeypatch.setattr(  # an older host does not count names that end in the number
        folder_paths, "get_save_image_path", lambda prefix, folder: (folder, prefix, 1, "", prefix)
    )
    save("run")
    (save.files()[0].parent / "run_00002.json").touch()
    assert save("run")[0] == "run_00003.csv"


@pytest.mark.parametrize(
    ("prefix", "why"),
    [
        ("..", "it must end in the name of a file"),
        (".", "it must end in the name of a file"),
        ("a/..", "it must end in the name of a file"),
        ("a/../..", "it must end in the name of a file"),
        ("/", "it must end in the name of a file"),
        ("a\0b", "it must end in the name of a file"),
        ("a\nb", "it must end in the name of a file"),
        ("../x", "it must stay inside the output folder"),
        ("a/../../x", "it must stay inside the output folder"),
        ("/x", "it must stay inside the output folder"),
        ("x" * 300, "no file can be written there (File name too long)"),
        ("x" * 246, "no file can be written there (File name too long)"),
        ("x" * 300 + "/y", "no file can be written there (File name too long)"),
        ("/".join(["x" * 200] * 30), "no file can be written there (File name too long)"),
    ],
)
def test_where_no_report_can_be_written_nothing_is_and_the_prefix_is_named(save, prefix, why):
    samples, report = {"samples": torch.zeros(1, 4, 8, 8)}, Recorder()
    report.calls.append(Call(0, 1.0))
    with pytest.raises(ValueError) as error:
        GuidanceReport.execute(report=report, samples=samples, filename_prefix=prefix)
    said = f'Guidance Report: filename_prefix is "{shown(prefix)}": {why}'
    assert str(error.value) == said
    assert save.files() == []
    if why.startswith("it must"):  # what shows without writing is said before a run
        with pytest.raises(ValueError) as error:
            GuidanceReport.validate_inputs(report=None, samples=None, filename_prefix=prefix)
        assert str(error.value) == said


def test_two_recorders_in_a_row_both_hear_the_run():
    model = pag(network("unet"))
    first, near = GuidanceRecorder.execute(model=model, predictions_at="0").result
    second, far = GuidanceRecorder.execute(model=pag(first, scale=1.0, layers="output.1"), predictions_at="-1").result
    assert torch.equal(sample(second), sample(pag(model, scale=1.0, layers="output.1")))
    drop = lambda lines: [{**line, "milliseconds": 0} for line in lines]  # noqa: E731
    assert len(near.calls) == 4 and drop(near.table()) == drop(far.table())
    assert (sorted(near.predictions), sorted(far.predictions)) == ([0], [3])


def test_a_recorder_in_a_row_does_not_hear_a_run_without_it():
    first, near = GuidanceRecorder.execute(model=network("unet"), predictions_at="").result
    _second, far = GuidanceRecorder.execute(model=first, predictions_at="").result
    sample(first)
    assert len(near.calls) == 4 and far.calls == []


def test_a_direction_that_is_not_finite_has_no_angle():
    call = Call(0, 1.0, names=("CFG", "PAG"), products=torch.full((2, 2), math.inf))
    assert call.angles() == {} and call.sizes() == {"CFG": math.inf, "PAG": math.inf}


def test_what_cannot_be_is_said():
    for text in ("now", "1.5", "9" * 5000, "1_0", "-", "0 1"):
        with pytest.raises(
            ValueError, match=r"Guidance Recorder: predictions_at is .*; write step numbers such as"
        ) as error:
            GuidanceRecorder.execute(model=network("unet"), predictions_at=text)
        assert len(str(error.value)) < 300
    with pytest.raises(ValueError, match='Guidance Recorder: predictions_at is "now"'):
        GuidanceRecorder.execute(model=network("unet"), predictions_at="now")
    with pytest.raises(ValueError, match="Guidance Report: nothing was recorded"):
        GuidanceReport.execute(report=Recorder(), samples={"samples": torch.zeros(1, 4, 8, 8)}, filename_prefix="")


def test_a_grid_has_every_picture_at_its_place_and_room_for_its_labels():
    colours = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
    images = colours[:, None, None].expand(6, 160, 200, 3)
    plain = GuidanceGrid.build(images, "", "", "").result[0]
    assert plain.shape == (1, 160 + 16, 6 * 208 + 8, 3)
    labelled = GuidanceGrid.build(images, "one\ntwo\nthree", "upper\nlower", "all of them").result[0][0]
    found = [(labelled - colour).abs().amax(-1) < 1 / 255 for colour in colours]
    centres = [mask.nonzero().float().mean(0) for mask in found]
    assert all(mask.sum() == 160 * 200 for mask in found)
    across = [centre[1].item() for centre in centres]
    assert across[0] < across[1] < across[2] and across[:3] == across[3:]
    assert {centre[0].item() for centre in centres[:3]} != {centre[0].item() for centre in centres[3:]}
    assert labelled.shape[0] > 2 * 168 + 8 + 20 and across[0] > 100 + 8 + 30  # a title and headings; labels
    with pytest.raises(ValueError, match="Guidance Grid: rows has 2 lines, and 6 pictures in 2 columns make 3 rows"):
        GuidanceGrid.execute(images=images, columns="a\nb", rows="1\n2", title="")


def drawn(images, columns="", rows="", title=""):
    return GuidanceGrid.execute(images=images, columns=columns, rows=rows, title=title).result[0]


def test_a_grid_of_grey_pictures_is_that_of_the_same_in_three_channels():
    images = torch.rand(2, 160, 200, 1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn(images), drawn(images.expand(-1, -1, -1, 3)))


def test_what_is_transparent_lets_the_sheet_through():
    colour = torch.rand(1, 160, 200, 3, generator=torch.Generator().manual_seed(0))
    alpha = torch.ones(1, 160, 200, 1)
    assert torch.equal(drawn(torch.cat([colour, alpha], -1)), drawn(colour))
    assert torch.equal(drawn(torch.cat([colour, 0 * alpha], -1)), drawn(torch.ones_like(colour)))


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (7, 300)])
def test_a_grid_of_pictures_of_any_shape_is_drawn(size):
    assert drawn(torch.rand(3, *size, 3), "a\nb", "1\n2").shape[0] == 1


def test_a_picture_that_is_not_finite_is_drawn_as_far_as_it_is():
    image = torch.full((1, 160, 200, 3), 0.5)
    image[0, :80] = math.nan
    image[0, 80] = math.inf
    grid = drawn(image)[0, 8:168, 8:208]
    assert (grid[:80] == 0).all() and (grid[80] == 1).all() and (grid[81:] * 255 == 128).all()


@pytest.mark.parametrize(
    ("shape", "columns", "width", "height"),
    [
        ((1, 8, 8, 3), 2000, 2000 * 136, 136),
        ((500, 1, 1, 3), 0, 500 * 136, 136),
        ((600, 8, 8, 3), 1, 136, 600 * 136),
        ((1, 2, 9000, 3), 8, 8 * 9008, 10),
        ((1, 20000, 100, 3), 200, 200 * 108, 20008),
    ],
)
def test_a_grid_that_nobody_could_look_at_is_refused_before_it_is_made(monkeypatch, shape, columns, width, height):
    monkeypatch.setattr("PIL.ImageFont.load_default", None)  # nothing is drawn
    with pytest.raises(ValueError) as error:
        drawn(torch.zeros(shape), "\n".join("x" * columns))
    assert str(error.value).startswith(f"Guidance Grid: the grid would have {width:,} × {height:,} pixels; at most")


def test_labels_count_for_the_size_of_a_grid():
    with pytest.raises(ValueError, match=r"Guidance Grid: the grid would have 18 × 65,8.. pixels; at most"):
        drawn(torch.zeros(1, LARGEST_SIDE - 20, 2, 3), title="one line and another")


def test_the_largest_grid_is_one_of_many_large_pictures():
    check_size(15 * (1024 + 8), 15 * (1024 + 8))
    with pytest.raises(ValueError, match=r"use fewer|Use fewer"):
        check_size(16 * (1024 + 8), 16 * (1024 + 8))
