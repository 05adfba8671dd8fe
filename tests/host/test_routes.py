"""What a running host answers the page: the curve of a Guidance Schedule while it is edited, and the nodes' names."""

import json
import urllib.parse

import pytest
import requests


@pytest.fixture
def ask(server):
    """ask(setting=value …) → (status, text)"""

    def ask(**settings) -> tuple[int, str]:
        try:
            return 200, server.get(f"/beyond_cfg_schedule?{urllib.parse.urlencode(settings)}").decode()
        except requests.HTTPError as error:
            return error.response.status_code, error.response.text

    return ask


def test_settings_become_a_line_and_those_that_are_left_out_are_the_nodes_own(ask):
    status, default = ask()
    drawn = json.loads(default)
    assert status == 200 and (drawn["low"], drawn["high"]) == (0, 1) and drawn["points"] == [[0, 1], [1, 0]]
    assert all(strength == pytest.approx(1 - at) for at, strength in drawn["line"]) and len(drawn["line"]) > 100
    assert ask(curve_type="linear", start=1, end="0", power=2.0, over="percent") == (200, default)


def test_of_points_the_line_has_each_and_their_order_does_not_matter(ask):
    status, text = ask(curve_type="points", points="14: 0, 5.05: 1, 0.3: 0.5", over="sigma")
    drawn = json.loads(text)
    assert status == 200 and drawn["points"] == [[0.3, 0.5], [5.05, 1], [14, 0]]
    assert drawn["low"] == 0 and drawn["high"] == pytest.approx(1.1 * 14)
    assert [point for point in drawn["line"] if point in drawn["points"]] == drawn["points"]
    assert ask(curve_type="points", points="0.3: 0.5, 14: 0, 5.05: 1", over="sigma") == (200, text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cls": "x"}, 'there is no setting "cls"; there are curve_type, start, end, power, points, over'),
        ({"curve": "x"}, 'there is no setting "curve"; there are curve_type, start, end, power, points, over'),
        ({"a" * 500: "x"}, f'there is no setting "{"a" * 100}… (500 characters)"; there are curve_type'),
        ({"start": "high"}, 'start is "high"; it must be a number from -10 to 10'),
        ({"start": "nan"}, "start is nan; it must be a number from -10 to 10"),
        ({"end": "1e400"}, "end is inf; it must be a number from -10 to 10"),
        ({"power": ""}, 'power is ""; it must be a number from 0.01 to 20'),
        ({"curve_type": "round"}, 'curve_type is "round"; it must be one of linear, cosine, power, points'),
        ({"over": "time"}, 'over is "time"; it must be one of percent, sigma'),
        ({"curve_type": "points", "points": "0: 1, x"}, 'points "0: 1, x": write pairs of where and strength'),
        (
            {"curve_type": "points", "points": "9: 1, 14: 0, 9: 2", "over": "sigma"},
            "points has two at 9; each must lie",
        ),
    ],
)
def test_what_cannot_be_drawn_is_said_in_the_nodes_own_words(ask, settings, message):
    status, text = ask(**settings)
    assert status == 400 and text.startswith(message)


@pytest.mark.parametrize("points", ["2: 1, 3: 0, 4: 1", "-3: 1, -2: 0, -1: 1", "0: 1e6, 1: -1e6", "0.5: 1"])
@pytest.mark.parametrize("over", ["percent", "sigma"])
def test_points_anywhere_make_a_line_of_numbers(ask, points, over):
    status, text = ask(curve_type="points", points=points, over=over)
    assert status == 200 and "NaN" not in text and "Infinity" not in text and len(json.loads(text)["line"]) > 100


def test_the_page_is_told_the_name_with_which_each_nodes_sentences_begin(server):
    from pack.nodes.extension import all_nodes

    names = server.ask("/beyond_cfg_nodes")
    assert names == {node.about.node_id: node.about.name for node in all_nodes()} and names["BeyondCFGPAG"] == "PAG"
    assert len({*names.values()}) == len(names)
