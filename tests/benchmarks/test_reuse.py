"""The benchmarks of guidance in some steps alone: which rows they have, and what their tables say of them."""

import pytest
from pack.benchmarks import orders, reuse


def row(guidance: str, saving: str, rows=1.5, fd=1.0, change=0.0, gain=-1.0) -> dict:
    """A row of two seeds, `change` standard errors from every step and with a gain of FD over none."""
    values = {each: [fd, 0.0, 1.0, 0.1] for each in reuse.COLUMNS}
    cell = {"rows": rows, "batch_rows": rows, "values": values, "against_none": {"fd": [gain, -1.0, 1.0, 0.1]}}
    if saving != reuse.FULL.name:
        cell["against_full"] = {"fd": [0.1 * change, -1.0, 1.0, 0.1]}
    return {
        "guidance": guidance,
        "saving": saving,
        "commit": "abc",
        "cells": [{"seed": seed, **cell} for seed in (0, 1)],
    }


def results(*rows) -> dict:
    run = {"command": "test", "time": "now", "machine": "m", "host": "h", "torch": "t"}
    return {"table": "reuse", "run": run, "model": "toy", "pictures": 4, "seeds": [0, 1], "rows": list(rows)}


@pytest.mark.parametrize("table", reuse.GUIDANCES)
def test_every_guidance_is_sampled_with_every_saving_once_after_none(table):
    asked = reuse.asked(table)
    assert asked[0] == ((), reuse.FULL) and len(set(asked)) == len(asked)
    of_each = reuse.GUIDANCES[table], reuse.SAVINGS_OF[table]
    assert {*asked[1:]} == {(guidance, saving) for guidance in of_each[0] for saving in of_each[1]}


def test_a_line_says_what_a_saving_costs_and_gives_beside_every_step():
    every = row("PAG", "every step", rows=2.0, gain=-1.0)
    line = reuse.line(row("PAG", "every 3rd", rows=1.375, change=0.5, gain=-0.8), every)
    assert line == ["PAG", "every 3rd", "1.38", "1.38", *["1.000"] * 4, "+0.5, +0.5", "80%"]
    assert reuse.line(every, every)[-2:] == ["", "100%"]


@pytest.mark.parametrize("gain", [-0.29, 0.0, 1.0])
def test_no_share_is_said_of_a_gain_that_may_be_chance(gain):
    assert reuse.gain_left(row("PAG", "every 3rd"), row("PAG", "every step", gain=gain)) == ""


def test_page_and_readme_show_all_rows_also_those_that_lose(tmp_path):
    made = results(row("CFG", "every step"), row("PAG", "every step"), row("PAG", "every 3rd", change=9.0))
    text = reuse.in_step("a\n<!-- reuse -->\nold\n<!-- /reuse -->\nb", made)
    assert text.startswith("a\n") and text.endswith("\nb") and "old" not in text
    for shown in (text, reuse.page(made)):
        assert "+9.0, +9.0" in shown and "Not sampled yet" in shown
        assert shown.index("| CFG |") < shown.index("| PAG |")
    reuse.draw(made, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_the_order_is_the_power_of_the_number_of_steps():
    assert orders.order([4.0, 1.0, 0.25]) == 2 and orders.STEPS[2] == 2 * orders.STEPS[1]
    found = {name: [0.4, 0.2, 0.1] for name in orders.SAVINGS}
    assert "| euler | 2.0e-01 (1.0) |" in orders.page(
        {**results(), "run": {**results()["run"], "commit": "abc"}, "samplers": {"euler": found}}
    )
