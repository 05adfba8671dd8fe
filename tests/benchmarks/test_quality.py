"""The study of quality: it resumes, its methods share prompts and noise, and its table is made of its results."""

import functools
import json
import os
import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pack.benchmarks.study import command as quality
from pack.benchmarks.study import methods, report
from pack.benchmarks.study.cells import CHOOSE_SEED, Cell, Results, Study, name_of, read_records
from pack.benchmarks.study.measured import features_of, measured
from pack.benchmarks.study.methods import METHODS, NEGATIVE, NONE, REAL, Method
from pack.benchmarks.study.rig import Files, Rig, Sampled, noise_of
from pack.benchmarks.study.suites import DemoDigits, Prompt, PromptFile, Reference
from pack.benchmarks.study.summary import summary

CHECKPOINTS = os.environ.get("BEYOND_CFG_MODELS")
LEVELS = np.array([0.2, 0.5, 0.8])


@dataclass
class Halves:
    """Pictures whose halves have one of three brightnesses; the judge measures them."""

    name: str = "halves"
    judged: bool = True
    decode: None = None
    hard: tuple = (1,)

    def prompts(self, count, seed):
        draw = np.random.default_rng(seed)
        labels = [tuple(int(one) for one in draw.integers(3, size=2)) for _ in range(count)]
        return [Prompt(f"{left} {right}", (left, right)) for left, right in labels]

    def read(self, pictures):
        halves = np.stack([pictures[:, :, :8], pictures[:, :, 8:]], 1)  # [n, 2, 16, 8, 3]
        mean, spread = halves.mean((2, 3, 4)), halves.std((2, 3, 4))
        return -np.abs(mean[..., None] - LEVELS), np.stack([mean, spread], -1)

    def real(self, count, seed):
        prompts = self.prompts(count, seed)
        return drawn(prompts, 0.05 * noise(count, 10**6 + seed)), prompts

    def reference(self):
        return self.real(150, 99)[0]


def noise(count, seed) -> np.ndarray:
    return noise_of((16, 16, 3), seed, range(count)).numpy()


def drawn(prompts, rest) -> np.ndarray:
    levels = LEVELS[np.array([prompt.labels for prompt in prompts])]  # [n, 2]
    return (levels.repeat(8, 1)[:, None, :, None] + rest).clip(0, 1)


@dataclass
class Painter:
    """In place of the host: less noise where a guidance is stronger, and too little at last."""

    calls: list = field(default_factory=list)  # (method, strength, seed, texts, noise)
    stop_at: int | None = None
    layers: str = "auto"

    def names(self, needs):
        return ""

    def sample(self, method, strength, prompts, seed):
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        rest = noise(len(prompts), seed)
        self.calls.append((method.name, strength, seed, [prompt.text for prompt in prompts], rest))
        return Sampled(drawn(prompts, rest * 0.2 / (1 + 1.5 * abs(strength - method.off))), 1.0, 2.0, 0.5, 0.25)


class Silent:
    """A progress bar that remembers."""

    def __init__(self):
        self.cells = []

    def expect(self, workers, total, known):
        pass

    def begin(self, worker, cell):
        self.cells.append(tuple(cell.labels.values()))

    def end(self, worker, cell, result):
        pass

    def say(self, text):
        pass


USED = tuple(replace(m, strengths=m.strengths[:3]) for m in METHODS if m.name in (NONE, "CFG", "CFG + interval", "PAG"))
COMMON = {"model": "toy sha256:0", "steps": 4, "per_prompt": 2}


@functools.cache
def reference() -> Reference:
    return Reference(Halves())


def study(folder: Path, painter: Painter, used=USED) -> Silent:
    results = Results(folder / "quality.jsonl", folder / "arrays")
    results.begin({"command": "test", "time": "now"})
    progress = Silent()
    run = Study(painter, Halves(), results, COMMON, draws=8, progress=progress)
    run.reference = reference()
    run.run(used, choose=40, report=44, seeds=(1, 2), tried=lambda method: method.strengths)
    return progress


def cells_of(folder: Path) -> dict[tuple, dict]:
    records = read_records(folder / "quality.jsonl")
    cells = [record for record in records if record["kind"] == "cell"]
    found = {tuple(c["key"][name] for name in ("stage", "method", "strength", "seed")): c for c in cells}
    assert len(found) == len(cells)  # none was done twice
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A whole study: (folder, what was sampled)."""
    folder, painter = tmp_path_factory.mktemp("study"), Painter()
    study(folder, painter)
    return folder, painter.calls


# ------------------------------------------------------------------------------------------------------------ resuming


def test_a_second_run_samples_nothing_and_changes_no_byte(done):
    folder, _ = done
    before, painter = (folder / "quality.jsonl").read_bytes(), Painter()
    assert study(folder, painter).cells == [] and painter.calls == []
    assert (folder / "quality.jsonl").read_bytes() == before


@pytest.mark.parametrize("stop_at", [1, 9, 16])
def test_a_run_that_was_stopped_goes_on_with_what_is_missing_and_ends_with_the_same_numbers(done, tmp_path, stop_at):
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, Painter(stop_at=stop_at))
    first = cells_of(tmp_path)
    with (tmp_path / "quality.jsonl").open("a") as file:
        file.write('{"kind": "cell", "id": "unfini')  # as a killed process leaves it
    again = Painter()
    cells = study(tmp_path, again).cells
    found, expected = cells_of(tmp_path), cells_of(done[0])
    assert set(first).isdisjoint(cells) and {*first, *cells} == set(expected) == set(found)
    assert len(again.calls) + stop_at == len(done[1])
    for name, cell in expected.items():
        assert {**found[name], "run": ""} == {**cell, "run": ""}
    runs = [r["id"] for r in read_records(tmp_path / "quality.jsonl") if r["kind"] == "run"]
    assert len(runs) == 2 and {cell["run"] for cell in found.values()} <= set(runs)


def test_what_is_forgotten_of_some_methods_is_all_of_them_and_no_more(done, tmp_path):
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    before = read_records(tmp_path / "quality.jsonl")
    stale = [r for r in before if r["kind"] != "run" and "PAG" in (r["key"]["method"], r["key"].get("than"))]
    results = Results(tmp_path / "quality.jsonl", tmp_path / "arrays")
    assert results.forget(["PAG", "PGA"]) == ["PGA"]
    assert read_records(tmp_path / "quality.jsonl") == [record for record in before if record not in stale]
    assert {record["kind"] for record in stale} == {"cell", "comparison"}
    gone = {path.name for path in (done[0] / "arrays").iterdir()} - {path.name for path in results.arrays.iterdir()}
    assert gone == {f"{record['id']}.npz" for record in stale if record["kind"] == "cell"}
    again = Painter()
    study(tmp_path, again)
    assert [call[0] for call in again.calls] == ["PAG"] * (3 + 2)
    records = read_records(tmp_path / "quality.jsonl")
    assert {r["id"]: {**r, "run": ""} for r in records if r["kind"] != "run"} == {
        r["id"]: {**r, "run": ""} for r in before if r["kind"] != "run"
    }
    by_row = [row[0] for row in rows_of("\n".join(summary(records)))]
    assert by_row == ["method", "---", REAL, *(method.name for method in USED), "CFG + interval + PAG"]


def test_another_setting_is_another_cell(done, tmp_path):
    keys = [Cell("report", METHODS[1], 3, seed, n).key({**COMMON, "steps": steps}, "weak", "auto")
            for seed, n, steps in ((1, 44, 4), (2, 44, 4), (1, 45, 4), (1, 44, 5))]  # fmt: skip
    auto = next(method for method in METHODS if method.name == "Autoguidance")
    keys += [Cell("report", auto, 3, 1, 44).key(COMMON, weak, "auto") for weak in ("one", "other")]
    assert len({name_of(key) for key in keys}) == len(keys)


def test_features_that_were_lost_are_sampled_again_and_the_differences_stay(done, tmp_path):
    """The unguided pictures are needed for what comes later, though their numbers are known."""
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, Painter(stop_at=6))
    for path in (tmp_path / "arrays").iterdir():
        path.unlink()
    again = Painter()
    study(tmp_path, again)
    assert again.calls[0][:3] == (NONE, 0.0, CHOOSE_SEED) and len(again.calls) == len(done[1]) - 6 + 1
    for name, cell in cells_of(tmp_path).items():
        assert cell["against_none"] == cells_of(done[0])[name]["against_none"]


def test_the_pair_is_compared_with_each_of_its_parts_on_every_seed(done):
    records = read_records(done[0] / "quality.jsonl")
    ids = {(m, seed): cell["id"] for (stage, m, _, seed), cell in cells_of(done[0]).items() if stage == "report"}
    keys = [record["key"] for record in records if record["kind"] == "comparison"]
    assert {key["method"] for key in keys} == {"CFG + interval + PAG"}
    assert [(key["than"], key["seed"]) for key in keys] == [(m, s) for m in ("CFG + interval", "PAG") for s in (1, 2)]
    for key in keys:
        assert key["cells"] == [ids[key[name], key["seed"]] for name in ("method", "than")]


def test_a_comparison_with_none_is_the_difference_from_none(done, tmp_path):
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    results = Results(tmp_path / "quality.jsonl", tmp_path / "arrays")
    results.begin({"command": "test", "time": "later"})
    run = Study(Painter(), Halves(), results, COMMON, draws=8, progress=Silent())
    run.reference = reference()
    pag = next(method for method in USED if method.name == "PAG")
    (cell,) = (cell for name, cell in cells_of(tmp_path).items() if name[:2] == ("report", "PAG") and name[3] == 1)
    one, other = Cell("report", pag, cell["key"]["strength"], 1, 44), Cell("report", USED[0], 0.0, 1, 44)
    run._compare(one, other)
    (record,) = (one for one in read_records(tmp_path / "quality.jsonl") if one.get("key", {}).get("than") == NONE)
    assert record["differences"] == cell["against_none"] and record["differences"]["fd"][0] < 0


# ------------------------------------------------------------------------------------------------- one prompt, one noise


def test_all_methods_of_a_seed_and_stage_have_the_same_prompts_and_noise_and_seeds_differ(done):
    by_set: dict[tuple, list] = {}
    for _, _, seed, texts, rest in done[1]:
        by_set.setdefault((seed, len(texts)), []).append((texts, rest))
    assert set(by_set) == {(0, 40), (1, 44), (2, 44)}
    for same in by_set.values():
        assert len(same) >= 5 and all(texts == same[0][0] and (rest == same[0][1]).all() for texts, rest in same)
        texts, rest = same[0]
        assert texts[::2] == texts[1::2] and (rest[0] != rest[1]).all()  # two noises for each prompt
    assert by_set[1, 44][0][0] != by_set[2, 44][0][0] and (by_set[1, 44][0][1] != by_set[2, 44][0][1]).all()


def test_the_noise_of_a_picture_depends_on_seed_and_number_alone():
    together = noise_of((4, 8, 8), 3, range(10))
    alone = torch.cat([noise_of((4, 8, 8), 3, [at]) for at in range(10)])
    assert torch.equal(together, alone) and not torch.equal(together[0], noise_of((4, 8, 8), 4, [0])[0])
    assert len({float(one[0, 0, 0]) for one in together}) == 10 and abs(together.std() - 1) < 0.05


def test_pairing_is_worth_something_and_the_difference_is_that_of_the_values(done):
    cells = cells_of(done[0])
    guided, plain = cells["report", "PAG", 1, 1], cells["report", NONE, 0.0, 1]
    value, _, _, error = guided["against_none"]["fd_pixel"]
    assert value == pytest.approx(guided["values"]["fd_pixel"][0] - plain["values"]["fd_pixel"][0], abs=2e-6)
    unpaired = np.hypot(guided["values"]["fd_pixel"][3], plain["values"]["fd_pixel"][3])
    assert error < unpaired and plain["against_none"] == {} and guided["values"]["change"][0] > 0


# ------------------------------------------------------------------------------------------------------ choosing, pairs


def test_each_strength_is_tried_on_one_seed_and_the_nearest_one_is_reported_on_the_others(done):
    cells = cells_of(done[0])
    for method in USED:
        tries = {name[2]: cell for name, cell in cells.items() if name[:2] == ("choose", method.name)}
        assert set(tries) == set(method.strengths) and {cell["key"]["seed"] for cell in tries.values()} == {0}
        best = min(tries, key=lambda strength: tries[strength]["values"]["fd"][0])
        reported = {(name[2], name[3]) for name in cells if name[:2] == ("report", method.name)}
        assert reported == {(best, 1), (best, 2)}
    assert {cell["key"]["n"] for name, cell in cells.items() if name[0] == "report"} == {44}
    assert ("report", REAL, 0.0, 1) in cells
    assert sum(name[0] == "choose" and name[1].endswith("+ PAG") for name in cells) == len(methods.SHARES)


def test_the_best_pair_is_of_the_two_nearest_terms_that_can_stand_together():
    by_name = {method.name: method for method in METHODS}
    chosen = {by_name[name]: (2.0, fd) for name, fd in (("CFG", 1.0), ("CFG + interval", 0.5), ("Truncation", 0.1))}
    assert methods.best_pair(chosen) is None  # two kinds of CFG, and a baseline that is no term
    chosen |= {by_name["SAG"]: (1.0, 3.0), by_name["PAG"]: (1.5, 2.0)}
    both = methods.best_pair(chosen)
    assert (
        both.name == "CFG + interval + PAG"
        and both.settings == "1 is CFG + interval 2 0.2 to 0.75 of sampling and PAG 1.5 {layers}"
    )
    assert both.needs == (NEGATIVE,)


def test_a_pair_is_both_methods_one_after_the_other_at_a_share_of_their_strength():
    def adding(name, weight=None):
        return lambda rig, model, strength: ([*model, (name, strength)], 1.0 if weight is None else strength)

    one = Method("one", "cfg", (), (), adding("one", "cfg"), off=1.0)
    other = Method("other", "scale", (), (), adding("other"), off=0.0)
    both = methods.pair(one, 3.0, other, 2.0)
    assert both.build(None, [], 1.0) == ([("one", 3.0), ("other", 2.0)], 3.0)
    assert both.build(None, [], 0.25) == ([("one", 1.5), ("other", 0.5)], 1.5)
    assert methods.pair(other, 2.0, one, 3.0).build(None, [], 0.5) == ([("other", 1.0), ("one", 2.0)], 2.0)


# -------------------------------------------------------------------------------------------------------------- report


def rows_of(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines]


def test_every_number_of_the_table_is_one_of_the_results(done):
    records = read_records(done[0] / "quality.jsonl")
    made = list(cells_of(done[0]).values())
    cells = {(c["key"]["method"], report.setting(c["key"]), str(c["key"]["seed"])): c for c in made}
    titles = {title: name for name, title in report.COLUMNS}
    rows, header, seen = rows_of(report.report(records)), None, set()
    for row in rows:
        if row[0] == "method":
            header = row
        if header is None or "CPU ms a picture" not in header or row[0] in ("method", "---"):
            continue
        shown = dict(zip(header, row, strict=True))
        cell = cells[shown["method"], shown["setting"], shown["seed"]]
        seen.add(cell["id"])
        for title, name in titles.items():
            if title in shown:
                numbers = [float(part) for part in re.findall(r"-?\d+\.\d+", shown[title])]
                expected = cell["values"].get(name, [])[:3]
                assert numbers == pytest.approx(expected, abs=5.1e-4), (shown["method"], title)
        if shown["method"] != REAL:
            assert (float(shown["forwards"]), float(shown["rows"])) == (
                cell["forwards_per_step"],
                cell["rows_per_step"],
            )
    assert len(cells) == len(made) and seen == {cell["id"] for cell in made}


def test_the_report_is_made_of_the_records_alone_and_changes_with_them(done, tmp_path):
    path = tmp_path / "quality.jsonl"
    path.write_bytes((done[0] / "quality.jsonl").read_bytes())
    written = report.write_report(path)
    assert [file.suffix for file in written] == [".md", ".png"] and written[1].stat().st_size > 10_000
    text = written[0].read_text("utf-8")
    assert text == report.report(read_records(path)) and "`test`: 26 cells; time now" in text
    records = read_records(path)
    changed = next(
        r for r in records if r["kind"] == "cell" and r["key"]["stage"] == "report" and r["values"].get("fd")
    )
    changed["values"]["fd"] = [777.125, 776.0, 778.0, 0.5]
    assert "777.125 (776.000 to 778.000)" in report.report(records) and "777.125" not in text
    path.write_text("\n".join(map(json.dumps, records)) + "\n")
    path.rename(tmp_path / "quality_early.jsonl")
    assert quality.main(["--only-report", "--setting", "early", "--results", str(tmp_path)]) == 0  # needs no host
    assert "777.125" in (tmp_path / "quality_early.md").read_text("utf-8")


def test_at_one_accuracy_a_method_is_between_its_strengths_or_not_reached():
    points = [(0.5, 8.0), (0.7, 4.0), (0.9, 6.0)]
    assert report.at_accuracy(points, 0.6) == pytest.approx(6.0)
    assert report.at_accuracy(points, 0.85) == pytest.approx(5.5)
    assert report.at_accuracy(points, 0.95) is None and report.at_accuracy(points, 0.5) == 8.0


def test_the_numbers_of_too_few_pictures_are_left_out_and_not_invented():
    prompts = Halves().prompts(4, 0)
    found = features_of(Sampled(drawn(prompts, noise(4, 0))), prompts, reference())
    values = measured(found, np.arange(4), reference(), None, draws=5)["values"]
    assert "accuracy" in values and not {"fd_pixel", "recall", "diversity"} & set(values)  # 4 pictures, 4 prompts
    assert values["accuracy"][0] == (found["hard"]).mean() and 0 <= values["accuracy"][1] <= values["accuracy"][2] <= 1


def test_a_file_of_prompts_has_one_on_each_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n# not this\n a dog \n", "utf-8")
    assert [prompt.text for prompt in PromptFile.load(path).prompts(3, 5)] == ["a cat", "a dog", "a cat"]
    path.write_text("\n", "utf-8")
    with pytest.raises(SystemExit, match="holds no prompt"):
        PromptFile.load(path)


# ------------------------------------------------------------------------------------------------------ the demo's judge


def test_the_demo_judge_is_read_as_it_was_trained(tmp_path):
    pytest.importorskip("safetensors")
    from pack.benchmarks.digits import data as demo_data
    from pack.benchmarks.digits import train_model as trained
    from safetensors.torch import save_file

    torch.manual_seed(0)
    judge = trained.Judge().eval()
    save_file(
        {name: tensor.contiguous() for name, tensor in judge.state_dict().items()}, tmp_path / "judge.safetensors"
    )
    suite = DemoDigits(tmp_path)
    pictures, prompts = suite.real(6, 1)
    logits, features = suite.read(pictures)
    assert pictures.shape == (6, 128, 128, 3) and logits.shape == (6, 4, 10) and features.shape == (6, 2, 32)
    seen = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    assert (logits.argmax(-1) == judge.labels(seen).numpy()).all()
    with torch.no_grad():
        expected = judge.features(seen).numpy()  # left halves, then right
    np.testing.assert_allclose(features[:, 0], expected[:6], atol=1e-5)
    np.testing.assert_allclose(features[:, 1], expected[6:], atol=1e-5)
    assert prompts[2].text == trained.prompt_of(prompts[2].labels) == trained.Digits("generator").prompt(10_002)
    asked = suite.prompts(5, 3)
    assert asked == suite.prompts(9, 3)[:5] and asked != suite.prompts(5, 4)
    assert all(demo_data.label_of(one.text) == one.labels for one in asked)


# ---------------------------------------------------------------------------------------------------------- on the host


COST = {  # forwards and rows of a step
    NONE: (1, 1), "CFG + interval": (1, 5 / 3), "PAG": (1, 2), "SAG": (2, 2), "ICG": (1, 2),
    "Autoguidance": (2, 2), "Truncation": (1, 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def own_model(tmp_path_factory):
    """What the command leaves for a checkpoint of a user: (folder, cells by method and strength)."""
    if not CHECKPOINTS:
        pytest.skip("no host, or no tiny checkpoints")
    folder, models = tmp_path_factory.mktemp("own"), Path(CHECKPOINTS)
    (folder / "prompts.txt").write_text("a red house by the sea\na small grey cat\n", "utf-8")
    arguments = ["--checkpoint", models / "tiny_flux.ckpt", "--prompts", folder / "prompts.txt"]
    arguments += ["--clip", models / "tiny_sd3.ckpt", "--weak", models / "tiny_flux.ckpt", "--size", 64, 64]
    arguments += ["--steps", 3, "--quick", "--report", 2, "--seeds", 3, "--comfyui", os.environ["COMFYUI_PATH"]]
    arguments += ["--per-prompt", 1, "--methods", *(name for name in COST if name != NONE)]
    arguments = [str(one) for one in [*arguments, "--results", folder]]
    threads = ["--threads", str(torch.get_num_threads())]
    kept, quality.ROOT = quality.ROOT, folder  # where the features go
    try:
        quality.main([*arguments, *threads])
    finally:
        quality.ROOT = kept
    return folder, {
        (c["key"]["method"], c["key"]["strength"]): c for c in read_records(folder / "quality_own.jsonl")[1:]
    }


def test_of_a_users_model_forwards_rows_time_and_appearance_are_reported(own_model):
    folder, cells = own_model
    assert len(cells) == 1 + 2 * (len(COST) - 1)
    for (name, _), cell in cells.items():
        assert (cell["forwards_per_step"], cell["rows_per_step"]) == pytest.approx(COST[name], abs=1e-4), name
        assert cell["cpu_seconds"] > 0 and {"contrast", "saturation", "clipped"} <= set(cell["values"])
        assert not {"accuracy", "fd"} & set(cell["values"])
    for name, strength in (("CFG + interval", 10), ("PAG", 5), ("SAG", 1.5), ("ICG", 8), ("Truncation", 1.2)):
        assert cells[name, strength]["values"]["change"][0] > 1e-3, name
    assert "CPU ms a picture" in (folder / "quality_own.md").read_text("utf-8")


def test_on_the_host_a_picture_does_not_depend_on_its_batch(own_model):
    models = Path(CHECKPOINTS)
    files = Files(models / "tiny_flux.ckpt", models / "tiny_sd3.ckpt")
    rig = Rig(files, 2, "euler", "simple", 64, 64, batch=4)
    prompts = [Prompt(text) for text in ("a cat", "a dog", "a dog", "a red house")]
    together = rig.sample(METHODS[1], 3.0, prompts, 5)
    rig.batch = 1
    alone = rig.sample(METHODS[1], 3.0, prompts, 5)
    np.testing.assert_allclose(together.pictures, alone.pictures, atol=2e-3)
    apart = np.abs(together.pictures[:, None] - together.pictures[None]).mean((2, 3, 4))
    assert (apart[~np.eye(4, dtype=bool)] > 1e-2).all()  # each has its own prompt and noise


def test_what_is_counted_is_what_the_pack_traces(own_model):
    from pack.guiders.host import trace

    models = Path(CHECKPOINTS)
    rig = Rig(Files(models / "tiny_flux.ckpt", models / "tiny_sd3.ckpt"), 3, "euler", "simple", 64, 64, 2)
    sag = next(method for method in METHODS if method.name == "SAG")
    with trace() as forwards:
        sampled = rig.sample(sag, 1.0, [Prompt("a cat")] * 2, 0)
    probe = forwards[: len(forwards) // 2]  # of one picture; then those of both
    assert len(probe) / 3 == sampled.forwards and sum(len(one.roles) for one in probe) / 3 == sampled.rows


def test_again_forgets_what_a_setting_has_and_samples_it_anew(tmp_path, monkeypatch, capsys):
    if not CHECKPOINTS:
        pytest.skip("no host, or no tiny checkpoints")
    monkeypatch.setattr(quality, "ROOT", tmp_path)  # where the features go
    models, path = Path(CHECKPOINTS), tmp_path / "quality_own.jsonl"
    (tmp_path / "prompts.txt").write_text("a small grey cat\n", "utf-8")
    arguments = ["--checkpoint", models / "tiny_flux.ckpt", "--prompts", tmp_path / "prompts.txt", "--quick"]
    arguments += ["--clip", models / "tiny_sd3.ckpt", "--size", 64, 64, "--steps", 1, "--report", 1, "--seeds", 3]
    arguments += ["--results", tmp_path, "--comfyui", os.environ["COMFYUI_PATH"], "--threads", torch.get_num_threads()]
    arguments = [str(one) for one in [*arguments, "--methods", NONE]]
    quality.main(arguments)
    known, features = read_records(path), list(tmp_path.rglob("*.npz"))
    known[1]["key"]["method"] = "one that is no more"
    path.write_text("".join(json.dumps(record) + "\n" for record in known))
    features[0].rename(features[0].with_stem("old"))
    quality.main([*arguments, "--again"])
    records = read_records(path)
    assert [record["kind"] for record in records] == ["run", "cell"] and "--again" in records[0]["command"]
    assert records[1]["key"]["method"] == NONE and list(tmp_path.rglob("*.npz")) == features
    quality.main([*arguments, "--again", "another method"])
    assert read_records(path) == records and list(tmp_path.rglob("*.npz")) == features
    assert "--again: quality_own.jsonl holds no row called another method\n" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        quality.parse(["--again", "--only-report"])


@pytest.mark.parametrize(
    "methods",
    [("CFG", "PAG", "SEG"), pytest.param(quality.SETTINGS["early"].methods, marks=pytest.mark.slow, id="all")],
)
def test_the_quick_study_of_the_demo_models_samples_every_method(methods, tmp_path, monkeypatch):
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("no host")
    from pack.tests.host.harness import CAN_COPY

    models = quality.ROOT / "benchmarks/models"
    monkeypatch.setattr(quality, "ROOT", tmp_path)  # where the features go
    arguments = ["--quick", "--demo", models, "--results", tmp_path, "--comfyui", os.environ["COMFYUI_PATH"]]
    sampled = [name for name in methods if CAN_COPY or name != "SIMS"]
    arguments += ["--methods", *sampled]
    assert quality.main([*map(str, arguments), "--threads", str(torch.get_num_threads())]) == 0
    cells = [record for record in read_records(tmp_path / "quality_early.jsonl") if record["kind"] == "cell"]
    wanted = {*sampled, NONE, REAL}
    pair = {cell["key"]["method"] for cell in cells} - wanted
    assert len(pair) == 1 and pair.pop().count(" + ") >= 1
    for method in wanted - {NONE, REAL}:
        mine = [cell for cell in cells if cell["key"]["method"] == method]
        assert {cell["key"]["stage"] for cell in mine} == {"choose", "report"}, method
        assert all(cell["values"]["change"][0] > 1e-4 for cell in mine), method
    assert {"accuracy", "fd", "fd_pixel", "precision", "recall", "diversity"} <= cells[-1]["values"].keys()
    assert (tmp_path / "quality_early.md").exists() and (tmp_path / "quality_early.png").exists()
