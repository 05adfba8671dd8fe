"""The pack under test, as `pack`, whatever its folder is called; and the real host, where COMFYUI_PATH says it is.

`python dev.py test` sets the path. Without it only the tests that need no host are collected, and pytest says so.
"""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from tools.imports import as_pack, with_host  # pytest has the checkout on sys.path, by pyproject.toml

ROOT = Path(__file__).resolve().parent.parent
HOST = os.environ.get("COMFYUI_PATH")

as_pack()
if HOST:
    import torch

    HOST_VERSION = with_host(HOST, "--cpu", "--disable-api-nodes")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

collect_ignore = [] if HOST else ["host", "browser", "wild"]


def pytest_report_header():
    return f"host: {HOST}" if HOST else "host: none (COMFYUI_PATH is not set): only the tests that need none"


@pytest.hookimpl(tryfirst=True)  # before xdist looks
def pytest_collection_modifyitems(items, config):
    """Tests that share one running host share a worker. Long forms run where they are asked for, and are no skips."""
    for item in items:
        if "server" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("server"))
    _mark_further_specimens(items)
    _mark_cases_between(items)
    slow = [item for item in items if item.get_closest_marker("slow")]
    part, parts = map(int, config.getoption("--slow-part").split("/"))
    asked = config.getoption("--slow") or config.getoption("--update-support")
    left_out = {*slow} - {*slow[part - 1 :: parts]} if asked else {*slow}
    config.hook.pytest_deselected(items=[*left_out])
    items[:] = [item for item in items if item not in left_out]


def _mark_further_specimens(items) -> None:
    """Of the networks of one architecture, each test has one; the others are its long form."""
    seen = set()
    for item in items:
        given = dict(item.callspec.params) if hasattr(item, "callspec") else {}
        specimen = given.pop("specimen", None)
        if specimen is None:
            continue
        key = item.nodeid.partition("[")[0], specimen.row, repr(given)
        if key in seen:
            item.add_marker(pytest.mark.slow)
        seen.add(key)


def _mark_cases_between(items) -> None:
    """Of a test with the mark some_cases(n), n of its cases are its short form, as far apart as they can be."""
    cases = {}
    for item in items:
        if item.get_closest_marker("some_cases") and not item.get_closest_marker("slow"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for given in cases.values():
        number = given[0].get_closest_marker("some_cases").args[0]
        chosen = {at * len(given) // number for at in range(number)}
        for at, item in enumerate(given):
            if at not in chosen:
                item.add_marker(pytest.mark.slow)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the long forms of tests too")
    parser.addoption("--slow-part", default="1/1", metavar="K/N", help="only the K-th of N parts of the long forms")
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite tests/golden and workflows/api from what is given now"
    )
    parser.addoption(
        "--update-support", action="store_true", help="rewrite what tests/golden/support.json says of this host"
    )
    parser.addoption(
        "--uneven", action="store_true", help="play a processor that rounds by the number of rows in a batch"
    )
    parser.addoption(
        "--no-skips", action="store_true", help="fail if a test is skipped that this host and this Python could run"
    )


# What a skip may say: that the host or the system lacks what the test is about. Anything else fails under --no-skips.
MAY_SKIP = re.compile(
    r"this host (has no|cannot) |of ComfyUI [\d.]+ is built another way|could not import 'comfy\.|Windows has no "
    r"|types are checked against ComfyUI "
)


def _refuse_skip(report, config) -> None:
    """Under --no-skips a skipped test, or a skipped file, is a failure that says why it would have been skipped."""
    reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
    if config.getoption("--no-skips") and reason and not MAY_SKIP.search(reason) and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"not run, and --no-skips was given: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    _refuse_skip(report, item.config)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    _refuse_skip(report, collector.config)
    return report


def pytest_unconfigure(config):
    """After pytest's own last line, since nobody reads the list of skips above it."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", ()) if reporter and not hasattr(config, "workerinput") else ()
    reasons = {report.longrepr[2].removeprefix("Skipped: ") for report in skipped if "tests/browser" in report.nodeid}
    for reason in sorted(reason for reason in reasons if not MAY_SKIP.search(reason)):
        print(f"The browser tests did not run: {reason}")


@pytest.fixture(autouse=True)
def processor(request):
    """The one there is, or under --uneven one that is played."""
    if not request.config.getoption("--uneven"):
        yield
        return
    from pack.tests.uneven import Uneven

    with Uneven():
        yield


SUPPORT = ROOT / "tests" / "golden" / "support.json"


@pytest.fixture
def supports(record_property):
    """Note what a test shows: supports(architecture, method, "yes", "no" or with what settings)."""
    return lambda *shown: record_property("support", shown)


def pytest_terminal_summary(terminalreporter, config):
    """The notes of tests that passed. Under --update-support, what the tests have shown of this host goes into
    golden/support.json."""
    for report in terminalreporter.getreports("passed"):
        for name, note in report.user_properties if report.when == "call" else ():
            if name == "note" and note:
                terminalreporter.write_line(note)
    if not config.getoption("--update-support"):
        return
    found: dict[str, dict[str, str]] = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            for name, shown in report.user_properties if report.when == "call" else ():
                if name != "support":
                    continue
                architecture, method, can = shown
                methods = found.setdefault(architecture, {})
                can = can if outcome == "passed" else "no"
                methods[method] = can if methods.get(method, "yes") == "yes" else methods[method]
    known = json.loads(SUPPORT.read_text("utf-8")) if SUPPORT.exists() else {}
    of_host = known.setdefault(HOST_VERSION, {})
    for architecture, methods in found.items():  # of a part of the tests, the rest stays
        of_host[architecture] = of_host.get(architecture, {}) | methods
    SUPPORT.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", "utf-8")


@pytest.fixture
def golden(request):
    """Compare a JSON value with tests/golden/<name>, or rewrite that file under --update-golden."""

    def compare(name: str, value) -> None:
        path = ROOT / "tests" / "golden" / name
        text = json.dumps(value, indent=2, sort_keys=True) + "\n"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), (
            f"run: python dev.py test --update-golden, and read the diff of {name}"
        )

    return compare


@pytest.fixture(scope="session")
def server():
    """A running host with the pack and the tiny models, for tests that go through its HTTP API."""
    from pack.tools import hosts
    from pack.tools.places import OUTPUT
    from pack.tools.server import running

    host = hosts.ready(hosts.Choice(comfyui=HOST, python=sys.executable))
    with running(host, log=OUTPUT / os.environ.get("PYTEST_XDIST_WORKER", "") / "host.log") as server:
        yield server


@pytest.fixture(scope="module")
def small_files(server):
    """The names of files in the running host's own folders: CLIP, with text and vision, and WAN."""
    from pack.tests.host import checkpoints

    with checkpoints.small_files(server) as names:
        yield names
