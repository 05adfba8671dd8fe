"""The page of what students have learnt of their teachers."""

import pytest
from pack.benchmarks import distil


def cells(fd: float, apart: float, rows=1.0, error=0.01, against_teacher=0.0) -> list[dict]:
    """Of two seeds, alike. apart: how much less FD than none."""
    values = {"accuracy": 0.5, "fd": fd, "fd_pixel": fd, "diversity": 1.0}
    against = {name: [0.0, -0.1, 0.1, error] for name in values} | {"fd": [-apart, -apart, -apart, error]}
    measured = {
        "values": {name: [value, value - 0.1, value + 0.1, 0.1] for name, value in values.items()},
        "against_none": against,
        "against_teacher": {"fd": [against_teacher, 0, 0, error]},
        "rows": rows,
    }
    return [measured, measured]


def results(*pairs) -> dict:
    run = {"command": "test", "time": "now", "machine": "m", "host": "h", "torch": "t"}
    none = [{"seed": seed, **cell} for seed, cell in enumerate(cells(1.2, 0.0))]
    rows = [
        {
            "teacher": name, "commit": "c", "lora": "file",
            "training": {"first_loss": 0.1, "last_loss": 0.01, "weights": 3, "cpu_seconds": 4, "commit": "c"},
            "cells": [
                {"seed": seed, "teacher": one, "student": two}
                for seed, (one, two) in enumerate(zip(teacher, student, strict=True))
            ],
        }
        for name, teacher, student in pairs
    ]  # fmt: skip
    made = {"run": run, "model": "toy", "pictures": 4, "seeds": [0, 1]}
    return {**made, "none": {"commit": "c", "cells": none}, "rows": rows}


def test_the_share_is_of_the_teachers_gain_and_of_none_where_it_has_none():
    none = cells(1.2, 0.0)
    assert distil.share(none, cells(1.0, 0.2), cells(1.05, 0.15)) == pytest.approx(0.75)
    assert distil.share(none, cells(1.0, 0.2), cells(1.3, -0.1)) == pytest.approx(-0.5)
    assert distil.share(none, cells(1.3, -0.1), cells(1.0, 0.2)) is None


def test_page_and_readme_show_teachers_and_students_also_those_that_have_not_learnt():
    good = ("PAG 1", cells(1.0, 0.2, rows=2.0), cells(1.02, 0.18, against_teacher=0.02))
    bad = ("CFG 2", cells(1.3, -0.1, rows=2.0), cells(1.4, -0.2))
    unclear = ("PAG 0.1", cells(1.18, 0.02), cells(1.18, 0.02))
    made = results(good, bad, unclear)
    page = distil.page(made)
    readme = distil.in_step("a\n<!-- distil -->\nof before\n<!-- /distil -->\nb", made)
    for text in (page, readme):
        assert "| PAG 1 | teacher | 2.00 | 0.500 | **1.000** |" in text
        assert (
            "|  | **student** | 1.00 | 0.500 | **1.020** |" in text
            and "| 90 % | +0.020 (+2.0), +0.020 (+2.0) |" in text
        )
        assert "| CFG 2 | teacher | 2.00 | 0.500 | ~~1.300~~ |" in text and "~~1.400~~" in text
        assert "| (100 %) |" in text
        assert "Not sampled yet" in text and all(teacher.name in text for teacher in distil.TEACHERS)
    assert "not tried on real weights" in page and distil.in_step(readme, made) == readme


def test_a_teacher_is_known_by_its_guidances_and_has_strengths_of_the_study_but_for_the_gentle_one():
    methods = {method.name: method for method in distil.METHODS}
    *of_the_study, gentle = distil.TEACHERS
    for teacher in of_the_study:
        assert all(strength in methods[name].strengths for name, strength in teacher.parts)
    for name, strength in gentle.parts:
        assert name in methods and strength <= min(methods[name].strengths)
    for teacher in distil.TEACHERS:
        assert all(f"{name} {strength:g}" in teacher.name for name, strength in teacher.parts)
    assert len({teacher.name for teacher in distil.TEACHERS}) == len(distil.TEACHERS)
