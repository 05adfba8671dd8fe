"""What a running host answers the page: the picture of a Guidance Schedule while it is edited."""

import threading
import time
import urllib.parse

import pytest
import requests

PNG = b"\x89PNG"


@pytest.fixture
def ask(server):
    """ask(setting=value …) → (status, content)"""

    def ask(**settings) -> tuple[int, bytes]:
        try:
            return 200, server.get(f"/beyond_cfg_schedule?{urllib.parse.urlencode(settings)}")
        except requests.HTTPError as error:
            return error.response.status_code, error.response.content

    return ask


def test_settings_are_drawn_and_those_that_are_left_out_are_the_nodes_own(ask):
    status, default = ask()
    assert status == 200 and default.startswith(PNG)
    assert ask(curve_type="linear", start=1, end="0", power=2.0, over="percent") == (200, default)
    status, other = ask(curve_type="points", points="14: 0, 5: 1, 0.3: 0", over="sigma")
    assert status == 200 and other.startswith(PNG) and other != default
    assert ask(curve_type="points", points="0.3: 0, 5: 1, 14: 0", over="sigma") == (200, other)


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
        ({"curve_type": "points", "points": "9: 1, 14: 0, 5: 1", "over": "sigma"}, "points are out of order: 9 comes"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_the_nodes_own_words(ask, settings, message):
    status, text = ask(**settings)
    assert status == 400 and text.decode().startswith(message)


@pytest.mark.parametrize("points", ["2: 1, 3: 0, 4: 1", "-3: 1, -2: 0, -1: 1", "0: 1e6, 1: -1e6", "0.5: 1"])
@pytest.mark.parametrize("over", ["percent", "sigma"])
def test_points_anywhere_are_drawn(ask, points, over):
    status, picture = ask(curve_type="points", points=points, over=over)
    assert status == 200 and picture.startswith(PNG)


def test_while_many_are_drawn_the_server_answers_others(ask, server):
    answers = []
    began = time.perf_counter()
    pages = [threading.Thread(target=lambda n=n: answers.append(ask(end=n / 100))) for n in range(30)]
    for page in pages:
        page.start()
    longest = 0.0
    while any(page.is_alive() for page in pages):
        asked = time.perf_counter()
        server.ask("/queue")
        longest = max(longest, time.perf_counter() - asked)
    whole = time.perf_counter() - began
    assert len(answers) == 30 and all(status == 200 and picture.startswith(PNG) for status, picture in answers)
    assert len(set(answers)) == 30  # each its own
    assert longest < whole / 3, (longest, whole)


def test_what_was_drawn_is_not_drawn_again(ask):
    def seconds(**settings) -> float:
        began = time.perf_counter()
        assert ask(**settings)[0] == 200
        return time.perf_counter() - began

    new = [seconds(end=-n / 100) for n in range(1, 11)]
    again = [seconds(end=-n / 100) for n in range(1, 11)]
    assert sum(again) < sum(new) / 2, (new, again)


def test_the_page_is_told_the_name_with_which_each_nodes_sentences_begin(server):
    from pack.nodes.extension import nodes

    names = server.ask("/beyond_cfg_nodes")
    assert names == {node.about.node_id: node.about.name for node in nodes()} and names["BeyondCFGPAG"] == "PAG"
    assert len({*names.values()}) == len(names)
