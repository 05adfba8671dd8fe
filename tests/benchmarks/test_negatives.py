"""The benchmark of negative prompts at cfg 1: what its cases ask for and count, and what its tables say of them."""

import json

import numpy as np
import pytest
from pack.benchmarks import negatives
from pack.benchmarks.digits.data import COLOUR_NAMES, DIGIT_NAMES
from pack.benchmarks.rows import marked
from pack.benchmarks.study.suites import Prompt

WHOLE = Prompt("red three blue four", (0, 3, 2, 4))
COLOUR, DIGIT, MISTAKE, ASKED = negatives.CASES


def test_a_case_leaves_out_or_replaces_words_of_a_prompt_and_keeps_the_labels_of_the_others():
    assert COLOUR.prompt(WHOLE).text == "the three the four" and COLOUR.prompt(WHOLE).labels[1::2] == (3, 4)
    assert DIGIT.prompt(WHOLE).text == "red the blue the" and DIGIT.prompt(WHOLE).labels[::2] == (0, 2)
    assert MISTAKE.prompt(WHOLE) == Prompt("red seven blue seven", (0, 7, 2, 7))


@pytest.mark.parametrize("case", negatives.CASES, ids=lambda case: case.name)
def test_accuracy_is_of_what_the_prompt_alone_asks_for_and_one_case_asks_for_what_the_negative_names(case):
    assert negatives.OPEN not in COLOUR_NAMES + DIGIT_NAMES
    part, which = case.names
    assert (COLOUR_NAMES, DIGIT_NAMES)[part][which] in case.negative and case.negative.count(negatives.OPEN) == 1
    assert case.words[part] is not None and (case.words[part] == case.negative[part]) == (case is ASKED)
    asked = {"easy": (0,), "hard": (1,), "all": (0, 1)}[case.asks]
    assert [at for at in (0, 1) if case.words[at] not in (negatives.OPEN, *case.negative)] == [*asked]


def test_digits_are_counted_that_are_what_the_negative_names():
    found = np.array([[2, 8, 0, 8], [1, 1, 2, 3]])  # colour and digit of each half
    assert COLOUR.shows(found).tolist() == [[True, False], [False, True]]
    assert DIGIT.shows(found).tolist() == [[True, True], [False, False]]
    assert MISTAKE.shows(found).tolist() == [[False, False], [True, False]]


def test_the_share_that_is_left_is_of_the_same_pictures_without_a_negative():
    before = np.array([[True, True], [True, False], [False, False], [True, False]])
    now = np.array([[True, False], [False, False], [False, False], [True, False]])
    left = negatives.share_left({"named": now, "named_without": before}, None, None)
    assert left(np.arange(4)) == 0.5
    assert left(np.array([0, 0, 3])) == pytest.approx(3 / 5)


def test_every_row_has_another_name_and_none_but_cfg_has_a_second_row_of_the_network():
    names = [(method.name, negatives.said(method)) for method in negatives.ROWS]
    assert len(set(names)) == len(names)
    assert {method.name for method in negatives.ROWS if method.needs} == {"CFG"}
    assert {method.name for method in negatives.ROWS} == {"none", "CFG", "NAG", "VSF", "NASA", "Orthogonal Negative"}


def row(change: float, name="NAG", case="colour", value=0.5, rows=1.0) -> dict:
    """A row of two seeds whose measures are all `value`, `change` standard errors from none."""
    measures = [each for each in negatives.COLUMNS if each != "rows"]
    values = {each: [value, 0.0, 1.0, 0.1] for each in measures}
    against = {each: [0.1 * change, -1.0, 1.0, 0.1] for each in measures if each != "left"}
    cells = [{"seed": seed, "rows": rows, "values": values, "against_none": against} for seed in (0, 1)]
    return {"case": case, "method": name, "setting": "scale 5", "commit": "abc", "cells": cells}


@pytest.mark.parametrize(
    ("measure", "change", "expected"),
    [
        ("named", -4, "**0.500**"),
        ("named", 4, "~~0.500~~"),
        ("named", -2, "0.500"),
        ("accuracy", -4, "~~0.500~~"),
        ("precision", 4, "**0.500**"),
        ("fd_pixel", 4, "~~0.500~~"),
        ("left", -4, "0.500"),
        ("rows", -4, "1"),
    ],
)
def test_less_of_what_the_negative_names_is_better_and_less_accuracy_is_worse(measure, change, expected):
    assert negatives.value(row(change), measure) == expected


def test_a_difference_that_all_pictures_have_is_marked_and_none_is_not():
    assert marked("0", [[-1.0, -1.0, -1.0, 0.0]], more_is_better=False) == "**0**"
    assert marked("0", [[0.0, 0.0, 0.0, 0.0]], more_is_better=False) == "0"


def test_without_a_negative_there_is_nothing_left_of_none():
    without = row(0)
    for cell in without["cells"]:
        cell["values"] = {each: value for each, value in cell["values"].items() if each != "left"}
    assert negatives.value(without, "left") == ""


def results(*rows) -> dict:
    run = {"command": "test", "time": "now", "machine": "m", "host": "h", "torch": "t"}
    return {"run": run, "model": "toy", "pictures": 4, "seeds": [0, 1], "rows": list(rows)}


def test_page_and_readme_show_every_case_and_row_also_those_that_do_not_help():
    made = results(row(-9, "good", value=0.25), row(9, "bad", value=0.75), row(0, "other", "digit"))
    page = negatives.page(made)
    readme = negatives.in_step("a\n<!-- negatives -->\nof before\n<!-- /negatives -->\nb", made)
    for text in (page, readme):
        assert "| good | scale 5 | **0.250** |" in text and "| bad | scale 5 | ~~0.750~~ |" in text
        assert 'negative "blue the blue the"' in text and "| other | scale 5 | 0.500 |" in text
        assert negatives.heading(MISTAKE) not in text and "Not sampled yet" in text
    assert readme.startswith("a\n") and readme.endswith("\nb") and "of before" not in readme
    assert "not tried on real weights" in page and negatives.in_step(readme, made) == readme


def test_rows_of_another_number_of_pictures_are_sampled_again(tmp_path):
    path = tmp_path / "negatives.json"
    known = results(row(1))
    path.write_text(json.dumps(known))
    assert negatives.known_rows(path, results()) == known["rows"]
    assert negatives.known_rows(path, {**results(), "pictures": 5}) == []
