"""The Tuner's own maths and words: axes, the search over a function that is known, and a person's answers."""

import io
import json
import threading
import time

import numpy as np
import pytest
import requests
from PIL import Image

pytest.importorskip("optuna", reason="Optuna is not installed: python -m pip install -r requirements-fleet.txt")

from pack.fleet.cells import Cell, Result
from pack.fleet.command import commands
from pack.fleet.tuning import command
from pack.fleet.tuning.axes import Axis, axes_of, axis_of
from pack.fleet.tuning.command import written
from pack.fleet.tuning.page import AskingPage, Question
from pack.fleet.tuning.person import Remembered, compared
from pack.fleet.tuning.preference import Preferences, fitted, order
from pack.fleet.tuning.search import Goal, search, spread, startup
from pack.fleet.tuning.workflows import Function, Number, WorkflowTask, kept_values, recorded
from pack.tools.console import Failure

GRAPH = {
    "1": {"class_type": "BeyondCFGPAG", "inputs": {"scale": 3.0, "layers": "auto", "model": ["4", 0]}},
    "2": {"class_type": "KSampler", "inputs": {"steps": 20, "cfg": 4.0, "seed": 1}, "_meta": {"title": "My 1.5 sampler"}},
    "3": {"class_type": "Switch", "inputs": {"on": True}},
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- axes


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("2.cfg=1:8", Axis("2", "cfg", 1, 8)),
        ("KSampler.cfg=0.1:10:log", Axis("2", "cfg", 0.1, 10, is_log=True)),
        ("my 1.5 sampler.steps=4:30:whole", Axis("2", "steps", 4, 30, is_whole=True)),
        ("BeyondCFGPAG.layers=auto|single.3, single.4", Axis("1", "layers", choices=("auto", "single.3, single.4"))),
        ("2.cfg=1|2.5", Axis("2", "cfg", choices=(1.0, 2.5))),
        ("2.steps=4:30", Axis("2", "steps", 4, 30)),  # the page writes 8.0 as 8, so nothing follows from a whole number
        ("3.on=true|false", Axis("3", "on", choices=(True, False))),
    ],
)
def test_a_text_names_an_input_and_its_range_or_choices(text, axis):
    assert axis_of(GRAPH, text) == axis


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2.cfg", "NODE.INPUT=LOW:HIGH"),
        ("9.cfg=1:2", "the nodes are 1 (BeyondCFGPAG), 2 (KSampler)"),
        ("2.strength=1:2", "its inputs are steps, cfg, seed"),
        ("1.model=a|b", "comes from another node"),
        ("2.cfg=3", "a range such as 0:6"),
        ("2.cfg=8:1", "the first number must be below the second"),
        ("2.cfg=nan:inf", "both must be finite"),
        ("2.cfg=0:1:log", "must begin above 0"),
        ("2.cfg=1:2:cubic", "only be :log and :whole"),
        ("2.cfg=1:2:log::x", "only be :log and :whole"),
        ("2.steps=1.5:3:whole", "whole numbers"),
        ("1.layers=auto", "one choice only"),
        ("2.cfg=1|high", "must be a number"),
        ("3.on=1|2", "must be true or false"),
    ],
)
def test_a_text_that_is_wrong_is_refused_with_what_it_must_be(text, said):
    with pytest.raises(Failure) as caught:
        axis_of(GRAPH, text)
    assert said in str(caught.value) and text in str(caught.value)


def test_nothing_to_search_and_an_input_named_twice_are_refused():
    with pytest.raises(Failure, match="nothing to search"):
        axes_of(GRAPH, [])
    with pytest.raises(Failure, match=r"2\.cfg twice"):
        axes_of(GRAPH, ["2.cfg=1:2", "KSampler.cfg=1:3"])


# -------------------------------------------------------------------------------------------------------------- search


class Hill:
    """Quality is best at (2, "b"), and what costs less is worse."""

    axes = (Axis("n", "x", 0, 6), Axis("n", "kind", choices=("a", "b", "c")), Axis("n", "every", 1, 4, is_whole=True))
    goals = (Goal("quality", True), Goal("cost", False))

    def __init__(self, goals=2):
        self.goals = self.goals[:goals]

    def cells(self, settings):
        return [Cell("echo", {"values": dict(settings)})]

    def score(self, results):
        (values,) = (result.values for result in results)
        quality = -((values["n.x"] - 2) ** 2) - (values["n.kind"] != "b") - 0.01 * values["n.every"]
        return (quality, 1 / values["n.every"])[: len(self.goals)]


class Here:
    """The pool without workers or a store; it may be stopped after some runs."""

    def __init__(self, known=None, stop_after=None):
        self.known, self.stop_after, self.computed = {} if known is None else known, stop_after, 0

    def run(self, cells):
        for cell in cells:
            if cell.id not in self.known:
                if self.computed == self.stop_after:
                    raise KeyboardInterrupt
                self.computed += 1
                self.known[cell.id] = Result(cell.work["values"])
        return [self.known[cell.id] for cell in cells]


def test_the_first_settings_are_spread_over_each_range_and_all_choices():
    axes = [Axis("n", "x", 0, 10), Axis("n", "kind", choices=tuple("abcde")), Axis("n", "every", 1, 3, is_whole=True)]
    axes.append(Axis("n", "log", 0.01, 100, is_log=True))
    settings = spread(axes, startup(axes, 60), 0)
    assert len(settings) == 15
    assert [startup(axes, trials) for trials in (1, 3, 10, 30, 60)] == [2, 3, 5, 10, 15]
    assert spread(axes, 15, 0) == settings != spread(axes, 15, 1)
    many = [Axis("n", "layer", choices=tuple(range(19))), Axis("n", "x", 0, 1)]
    assert {one["n.layer"] for one in spread(many, startup(many, 40), 0)} == {*range(19)}
    values = {axis.label: sorted(one[axis.label] for one in settings) for axis in axes}
    assert [int(1.5 * x) for x in values["n.x"]] == [*range(15)]
    assert values["n.kind"] == [*"aaabbbcccdddeee"] and values["n.every"] == [1] * 5 + [2] * 5 + [3] * 5
    assert sum(one < 1 for one in values["n.log"]) in (7, 8)
    assert all(axis.holds(one[axis.label]) for one in settings for axis in axes)


def test_it_finds_the_best_of_a_known_function():
    found = search(Hill(1), Here(), trials=60, at_once=4, seed=0)
    assert len(found.tried) == 60
    assert abs(found.best.settings["n.x"] - 2) < 0.3 and found.best.settings["n.kind"] == "b"
    with_seeds = [search(Hill(1), Here(), trials=12, at_once=4, seed=seed).tried for seed in (0, 0, 1)]
    assert with_seeds[0] == with_seeds[1] != with_seeds[2]


def test_a_search_that_was_stopped_goes_on_and_ends_the_same():
    whole = search(Hill(), Here(), trials=20, at_once=3, seed=5)
    known = {}
    with pytest.raises(KeyboardInterrupt):
        search(Hill(), Here(known, stop_after=8), trials=20, at_once=3, seed=5)
    rest = Here(known)
    assert search(Hill(), rest, trials=20, at_once=3, seed=5).tried == whole.tried
    assert rest.computed == 12


def test_the_front_is_what_nothing_beats_and_the_first_settings_are_tried_first():
    start = {"n.x": 1.0, "n.kind": "c", "n.every": 3}
    found = search(Hill(), Here(), trials=30, at_once=5, seed=2, first=[start])
    assert found.tried[0].settings == start
    front = found.front
    assert 2 <= len(front) < 30
    for one in front:
        for other in found.tried:
            better = other.scores[0] >= one.scores[0] and other.scores[1] <= one.scores[1]
            assert not better or other.scores == one.scores
    by_optuna = sorted(tuple(trial.values) for trial in found.study.best_trials)
    assert sorted(one.scores for one in front) == by_optuna


# -------------------------------------------------------------------------------------------------------------- person


def test_the_scores_are_the_maximum_of_the_posterior_and_of_two_the_known_solution():
    wins = np.random.default_rng(0).integers(0, 5, (4, 4)).astype(float)
    np.fill_diagonal(wins, 0)
    theta, covariance = fitted(wins)

    def gain(theta):
        chances = 1 / (1 + np.exp(theta[None] - theta[:, None]))
        return (wins * np.log(chances)).sum() - (theta**2).sum() / (2 * 2.0**2)

    for at in range(4):
        for step in (-1e-3, 1e-3):
            other = theta.copy()
            other[at] += step
            assert gain(other) < gain(theta)
    assert np.allclose(covariance, covariance.T) and (np.linalg.eigvalsh(covariance) > 0).all()
    theta, _ = fitted(np.array([[0.0, 7.0], [3.0, 0.0]]))  # without the prior θ₀ − θ₁ = log(7/3)
    assert theta[0] == -theta[1] and 0.6 < theta[0] - theta[1] < np.log(7 / 3)


def test_no_difference_is_half_an_answer_for_each():
    tied, split = Preferences(2), Preferences(2)
    tied.add(0, 1, None)
    tied.add(0, 1, None)
    split.add(0, 1, 0)
    split.add(0, 1, 1)
    assert np.array_equal(tied.wins, split.wins) and not tied.scores()[0].any()


def test_of_two_settings_a_person_of_twenty_percent_wrong_answers_finds_the_better_nine_times_of_ten():
    right = 0
    for person in range(200):
        rng, asked = np.random.default_rng(person), Preferences(2)
        for _ in range(20):
            one, other = asked.question()
            truth = 1
            asked.add(one, other, truth if rng.random() < 0.8 else 1 - truth)
        right += order(asked.scores()[0])[0] == 1
    assert right >= 180


def test_of_eight_settings_the_questions_go_to_those_that_may_be_best():
    found = []
    for person in range(100):
        rng, asked = np.random.default_rng(person), Preferences(8)
        counts = np.zeros(8)
        for _ in range(20):
            one, other = asked.question()
            counts[[one, other]] += 1
            better = max(one, other)  # number 7 is the best
            asked.add(one, other, better if rng.random() < 0.8 else min(one, other))
        found.append(order(asked.scores()[0]).index(7))
        assert counts.min() >= 1
    assert np.mean([place <= 2 for place in found]) >= 0.8


class Eye:
    """A person who knows which picture is better: its size says how good it is. Wrong in a share of the answers."""

    def __init__(self, wrong, seed):
        self.wrong, self.rng, self.questions = wrong, np.random.default_rng(seed), []

    def ask(self, question):
        self.questions.append(question)
        better = "left" if len(question.left) > len(question.right) else "right"
        if len(question.left) == len(question.right):
            return "same"
        return better if self.rng.random() >= self.wrong else {"left": "right", "right": "left"}[better]


class Painted(Hill):
    """Its pictures are the larger the better the settings are; one for each of two seeds."""

    def cells(self, settings):
        return [Cell("echo", {"values": {**settings, "seed": seed}}) for seed in (1, 2)]


class Painter(Here):
    def run(self, cells):
        quality = Hill(1)
        found = []
        for cell in cells:
            values = cell.work["values"]
            (score,) = quality.score([Result(values)])
            found.append(Result(values, (bytes(round(1000 + 10 * score)) + bytes([values["seed"]]),)))
        return found


def test_a_person_is_led_to_better_settings_by_twenty_answers():
    start, gained = {"n.x": 5.5, "n.kind": "a", "n.every": 1}, []
    for seed in range(20):
        eye = Eye(0.2, seed)
        found = compared(Painted(1), Painter(), eye, answers=20, candidates=8, seed=seed, first=[start])
        assert [one.number for one in eye.questions] == [*range(1, 21)] and len(found.tried) == 8
        assert start in [one.settings for one in found.tried]
        truth = [Painted(1).score([Result(one.settings)])[0] for one in found.tried]
        gained.append(truth[0] >= sorted(truth)[-3])  # what it calls the best is among the best three of eight
    assert sum(gained) >= 16


def test_both_pictures_of_a_question_are_of_one_seed_and_stand_on_either_side():
    eye = Eye(0.0, 0)
    compared(Painted(1), Painter(), eye, answers=20, candidates=4, seed=1)
    assert all(one.left[-1] == one.right[-1] for one in eye.questions)
    assert {one.left[-1] for one in eye.questions} == {1, 2}
    assert {len(one.left) > len(one.right) for one in eye.questions} == {True, False}


# ---------------------------------------------------------------------------------------------------------------- page


def test_the_page_takes_one_answer_to_each_question_and_shows_what_it_was_given_alone():
    with AskingPage() as page:
        answers = []
        question = Question(7, 20, b"one", b"two")
        thread = threading.Thread(target=lambda: answers.append(page.ask(question)), daemon=True)
        thread.start()
        while page.state()["number"] != 7:
            time.sleep(0.01)
        ask = requests.Session()
        ask.trust_env = False
        assert ask.get(page.url + "state").json() == {"number": 7, "total": 20, "over": False}
        assert ask.get(page.url + "left?7").content == b"one" and ask.get(page.url + "right?7").content == b"two"
        assert "Which picture is better" in ask.get(page.url).text
        for path in ("left?8", "left", "../../etc/passwd", "page.py", "state/x"):
            assert ask.get(page.url + path).status_code == 404
        assert ask.get(page.url.replace(page.url.split("/")[3], "other") + "state").status_code == 404
        for body in ("", "[]", '{"number": 7, "answer": "<script>"}', '{"number": "7", "answer": "left"}', "x" * 5000):
            assert ask.post(page.url + "answer", data=body).status_code == 400
        assert ask.post(page.url + "answer", data='{"number": 6, "answer": "left"}').json() == {"taken": False}
        assert ask.post(page.url + "answer", data='{"number": 7, "answer": "right"}').json() == {"taken": True}
        assert ask.post(page.url + "answer", data='{"number": 7, "answer": "left"}').json() == {"taken": False}
        thread.join()
        assert answers == ["right"]
        page.finish()
        assert ask.get(page.url + "state").json() == {"number": 0, "over": True}


# ------------------------------------------------------------------------------------------------------------ workflow

PICTURE = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny_sd15.ckpt"}},
    "2": {"class_type": "BeyondCFGPAG", "inputs": {"model": ["1", 0], "scale": 3.0, "layers": "auto"}},
    "5": {"class_type": "KSampler", "inputs": {"model": ["2", 0], "seed": 1, "cfg": 1.0}},
    "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0]}},
}


def task(graph=PICTURE, texts=("BeyondCFGPAG.scale=0:6", "5.cfg=1|4"), seeds=(1, 2), objective=None, cost=False):
    return WorkflowTask(graph, axes_of(graph, texts), seeds, objective, True, cost)


def test_a_setting_is_a_workflow_for_each_seed_and_the_users_own_is_the_first():
    made = task(objective=Number("9.text"))
    assert made.start == {"2.scale": 3.0, "5.cfg": 1.0}
    first, second = made.cells({"2.scale": 0.5, "5.cfg": 4.0})
    for cell, seed in ((first, 1), (second, 2)):
        graph = cell.work["workflow"]
        assert (graph["2"]["inputs"]["scale"], graph["5"]["inputs"]["cfg"], graph["5"]["inputs"]["seed"]) == (
            0.5,
            4.0,
            seed,
        )
    assert PICTURE["2"]["inputs"]["scale"] == 3.0
    assert task(texts=("2.scale=4:6",), objective=Number("x")).start is None


def test_the_cost_is_heard_by_a_recorder_between_the_last_guidance_and_the_sampler():
    graph, report = recorded(PICTURE)
    recorder = graph["5"]["inputs"]["model"][0]
    assert graph[recorder]["inputs"]["model"] == ["2", 0] and graph[report]["inputs"]["report"] == [recorder, 1]
    assert graph[report]["inputs"]["samples"] == ["5", 0] and PICTURE["5"]["inputs"]["model"] == ["2", 0]
    assert recorded(graph) == (graph, report)  # who has one keeps it
    custom = {
        "1": PICTURE["1"],
        "3": {"class_type": "CFGGuider", "inputs": {"model": ["1", 0]}},
        "4": {"class_type": "SamplerCustomAdvanced", "inputs": {"guider": ["3", 0]}},
    }
    graph, report = recorded(custom)
    assert graph["3"]["inputs"]["model"][0] != "1" and graph[report]["inputs"]["samples"] == ["4", 0]
    with pytest.raises(Failure, match="has 2 samplers"):
        recorded(custom | {"5": PICTURE["5"], "2": PICTURE["2"]})


def test_scores_are_means_over_the_seeds_and_numbers_may_be_written_as_text():
    made = task(objective=Number("9.text"), cost=True)
    (_, report) = recorded(PICTURE)
    results = [Result({"9.text": text, f"{report}.rows_per_step": rows}) for text, rows in (("1.5", 2), ("2.5", 3.0))]
    assert made.score(results) == (2.0, 2.5)
    for values, said in (
        ({"8.x": 1.0}, "What they give: 8.x"),
        ({"9.text": "a lake"}, 'gave "a lake"'),
        ({"9.text": "nan"}, "gave nan"),
    ):
        with pytest.raises(Failure, match=said):
            made.score([Result(values)])


def test_a_function_of_the_user_judges_the_pictures(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def bright(pictures):\n    return pictures[0].mean()\n\n\ndef broken(pictures):\n    return float('inf')\n"
    )
    png = io.BytesIO()
    Image.new("RGB", (4, 2), (255, 0, 0)).save(png, "PNG")
    result = Result({}, (png.getvalue(),))
    assert Function(f"{file}:bright")(result) == pytest.approx(1 / 3)
    with pytest.raises(Failure, match="must give a finite number"):
        Function(f"{file}:broken")(result)
    with pytest.raises(Failure, match="makes no picture"):
        Function(f"{file}:bright")(Result({}))
    with pytest.raises(Failure, match="has no function dark"):
        Function(f"{file}:dark")
    with pytest.raises(Failure, match="there is no file"):
        Function("nowhere.py:bright")


class Asked(Eye):
    """The page, with a person before it."""

    url = "http://127.0.0.1/"

    def __init__(self):
        super().__init__(0.0, 0)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def finish(self):
        pass


class Painting(Here):
    """The pool; its pictures are the larger the nearer the scale of PAG is to 2."""

    def __init__(self, *given, **more):
        super().__init__()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def run(self, cells):
        scales = [cell.work["workflow"]["2"]["inputs"]["scale"] for cell in cells]
        return [Result({}, (b"x" * (1000 - round(100 * abs(scale - 2))),)) for scale in scales]


def test_the_command_asks_a_person_and_says_what_is_best(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "AskingPage", Asked)
    monkeypatch.setattr(command, "Pool", Painting)
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(PICTURE), "utf-8")
    words = ["tune", str(file), "--vary", "BeyondCFGPAG.scale=0:6", "--person", "--url", "http://127.0.0.1:9"]
    commands.main([*words, "--out", str(tmp_path / "out")], obj=None, standalone_mode=False)
    said = capsys.readouterr().out
    best = json.loads((tmp_path / "out/best_workflow.json").read_text("utf-8"))["2"]["inputs"]["scale"]
    assert f"Best: 2.scale {best:.4g}; " in " ".join(said.split()) and abs(best - 2) < 1


def test_the_best_values_of_guidance_nodes_are_kept_for_the_model_that_comes_before_them():
    texts = ("2.scale=0:6", "2.layers=auto|middle", "5.cfg=1:4")
    settings = {"2.scale": 2.5, "2.layers": "middle", "5.cfg": 3.0}
    ((what, graph),) = kept_values(PICTURE, axes_of(PICTURE, texts), settings).items()
    (node,) = (about["inputs"] for about in graph.values() if about["class_type"] == "BeyondCFGKeepValues")
    assert node["model"] == ["1", 0] and node["node"] == "PAG"
    assert json.loads(node["values"]) == {"scale": 2.5, "layers": "middle"}
    assert "1" in graph and "5" not in graph and what == "PAG, node 2 (scale 2.5, layers middle)"


def test_the_best_workflow_the_trials_and_the_pictures_are_written(tmp_path):
    axes = axes_of(PICTURE, ("2.scale=0:6", "5.cfg=1|4"))
    hill = Hill(2)
    hill.axes = axes
    hill.score = lambda results: (-abs(results[0].values["2.scale"] - 2), results[0].values["5.cfg"])
    found = search(hill, Here(), trials=12, at_once=4, seed=0)
    paths = written(tmp_path, PICTURE, axes, found)
    assert {"best_workflow.json", "trials.json", "front.png"} <= {path.name for path in paths}
    assert all(path.stat().st_size for path in paths)
    best = json.loads((tmp_path / "best_workflow.json").read_text("utf-8"))
    assert best["2"]["inputs"]["scale"] == found.best.settings["2.scale"]
    trials = json.loads((tmp_path / "trials.json").read_text("utf-8"))
    assert len(trials["trials"]) == 12 and trials["front"]


def test_the_node_of_the_results_says_how_many_rows_a_step_took(server):
    """On the host: CFG and PAG together take three rows."""
    prompts = {
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a lake"}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}},
    }
    sampler = {
        "model": ["2", 0], "seed": 1, "steps": 2, "cfg": 4.0, "positive": ["3", 0], "negative": ["3", 0],
        "sampler_name": "euler", "scheduler": "normal", "latent_image": ["4", 0], "denoise": 1.0,
    }  # fmt: skip
    pag = {"model": ["1", 0], "scale": 3.0, "layers": "auto", "start_percent": 0.0, "end_percent": 1.0}
    graph = {**prompts, "1": PICTURE["1"], "2": {"class_type": "BeyondCFGPAG", "inputs": pag}}
    graph["5"] = {"class_type": "KSampler", "inputs": sampler}
    made, report = recorded(graph)
    record = server.record_of(made)
    assert record["status"]["status_str"] == "success"
    assert record["outputs"][report]["rows_per_step"] == [3.0]


def test_answers_are_kept_and_not_asked_for_again(tmp_path):
    eye, path = Eye(0.2, 3), tmp_path / "answers.jsonl"
    whole = compared(Painted(1), Painter(), Remembered(eye, path), answers=12, candidates=4, seed=1)
    kept = path.read_text("utf-8").strip().splitlines()
    assert len(kept) == 12
    path.write_text("\n".join(kept[:7]) + '\n{"questi', "utf-8")  # of a run that was killed
    known = {one["question"]: one["answer"] for one in map(json.loads, kept)}
    asked = []

    class Again:
        """Answers as before."""

        def ask(self, question):
            asked.append(question.number)
            return json.loads(kept[question.number - 1])["answer"]

    again = compared(Painted(1), Painter(), Remembered(Again(), path), answers=12, candidates=4, seed=1)
    assert again.tried == whole.tried and asked == [8, 9, 10, 11, 12] and len(known) == 12
