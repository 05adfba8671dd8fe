"""The benchmark of a cfg that is too high: how colours are measured, and what its table says of them."""

import json

import numpy as np
import pytest
from pack.benchmarks import high_cfg
from pack.benchmarks.digits import data
from pack.benchmarks.study.suites import Prompt

RED, BLUE, GREY = (0.9, 0.1, 0.1), (0.2, 0.4, 1.0), (0.2, 0.2, 0.25)


def picture(left, right, share=0.07) -> np.ndarray:
    """[40, 40, 3], grey with noise, and a stroke of `share` of each half."""
    found = np.array(GREY) + 0.02 * np.random.default_rng(0).standard_normal((40, 40, 3))
    rows = round(share * 40 * 20 / 10)
    found[4 : 4 + rows, 5:15], found[20 : 20 + rows, 25:35] = left, right
    return found.clip(0, 1)


def prompt(left: int, right: int) -> Prompt:
    return Prompt("", (left, 3, right, 4))


def test_the_colour_of_a_digit_is_that_of_its_stroke_in_each_half():
    found = high_cfg.digit_colours(np.stack([picture(RED, BLUE), picture(BLUE, RED, 0.12)]))
    np.testing.assert_allclose(found, [[RED, BLUE], [BLUE, RED]], atol=1e-6)


def test_the_error_is_the_distance_from_the_mean_of_the_same_word_in_real_pictures():
    right = high_cfg.right_colours(np.stack([picture(RED, BLUE), picture(BLUE, RED)]), [prompt(0, 1), prompt(1, 0)])
    np.testing.assert_allclose(right, [RED, BLUE], atol=1e-6)
    burnt = np.stack([picture((1.0, 0.1, 0.0), BLUE)])
    np.testing.assert_allclose(high_cfg.colour_errors(burnt, [prompt(0, 1)], right), [[0.02**0.5, 0.0]], atol=1e-6)


def test_real_digits_have_the_colour_of_their_word():
    """Tints differ by 0.05 in each channel, so that 0.09 is the most; strokes are blurred at their edges."""
    digits = data.Digits("reference")
    pictures = np.stack([digits.draw(at, 64) for at in range(30)])
    expected = np.array([list(data.COLOURS.values())[word] for at in range(30) for word in digits.label(at)[::2]])
    away = np.linalg.norm(high_cfg.digit_colours(pictures).reshape(-1, 3) - expected, axis=-1)
    assert np.median(away) < 0.09 and away.max() < 0.25  # two words are 0.6 apart at least


def row(measure: str, *changes, name="a", value=0.5) -> dict:
    """A row with a cell for each seed, whose measures all are `value`; `changes` are in standard errors of 0.1."""
    values = {each: [value, 0.0, 1.0, 0.1] for each in high_cfg.COLUMNS}
    cells = [
        {"seed": seed, "values": values, "against_alone": {measure: [0.1 * change, -1.0, 1.0, 0.1]}}
        for seed, change in enumerate(changes)
    ]
    return {"method": name, "setting": "cfg 15", "commit": "abc", "cells": cells}


@pytest.mark.parametrize(
    ("measure", "changes", "expected"),
    [
        ("clipped", (-4, -5), "**0.500**"),
        ("clipped", (4, 5), "~~0.500~~"),
        ("fd", (-4, -2), "0.500"),
        ("fd", (-9, 9), "0.500"),
        ("accuracy", (4, 5), "**0.500**"),
        ("accuracy", (-4, -5), "~~0.500~~"),
    ],
)
def test_what_is_marked_is_clear_on_each_seed_and_more_is_better_for_accuracy_alone(measure, changes, expected):
    assert high_cfg.shown(row(measure, *changes), measure) == expected


def test_what_the_corrections_are_compared_with_is_not_marked():
    alone = row("fd", 1, 1)
    for cell in alone["cells"]:
        cell["against_alone"] = {}
    assert high_cfg.shown(alone, "fd") == "0.500"


def results(*rows) -> dict:
    run = {"command": "test", "time": "now", "machine": "m", "host": "h", "torch": "t"}
    return {"run": run, "model": "toy", "pictures": 4, "seeds": [0, 1], "rows": list(rows)}


def test_the_page_and_the_readme_show_every_row_also_those_that_do_not_help():
    made = results(row("fd", -9, -9, name="good", value=0.25), row("fd", 9, 9, name="bad", value=0.75))
    page = high_cfg.page(made)
    readme = high_cfg.in_step("a\n<!-- high_cfg -->\nof before\n<!-- /high_cfg -->\nb", made)
    for text in (page, readme):
        assert "| good | cfg 15 | 0.250 |" in text and "| bad | cfg 15 | 0.750 |" in text and "~~0.750~~" in text
    assert readme.startswith("a\n") and readme.endswith("\nb") and "of before" not in readme
    assert "not tried on real weights" in page and high_cfg.in_step(readme, made) == readme


def test_rows_of_another_number_of_pictures_are_sampled_again(tmp_path):
    path = tmp_path / "high_cfg.json"
    assert high_cfg.known_rows(path, results()) == []
    known = results(row("fd", 1))
    path.write_text(json.dumps(known))
    assert high_cfg.known_rows(path, results()) == known["rows"]
    assert high_cfg.known_rows(path, {**results(), "pictures": 5}) == []


def test_every_row_has_another_name_and_all_but_the_usual_one_have_the_high_cfg():
    names = [(method.name, high_cfg.said(method)) for method in high_cfg.ROWS]
    assert len(set(names)) == len(names)
    weights = [method.strengths for method in high_cfg.ROWS]
    assert weights.count((high_cfg.CFG,)) == len(weights) - 1 and (high_cfg.USUAL,) in weights
