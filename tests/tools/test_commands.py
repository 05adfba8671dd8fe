"""The command line: dev.py, which only makes .venv, and the commands that it starts there."""

import subprocess
import sys

import pytest
from click.testing import CliRunner
from pack import dev as bootstrap
from pack.tools import __main__ as tools
from pack.tools.console import Failure
from pack.tools.hosts import Choice
from pack.tools.places import ROOT


@pytest.fixture
def dev(tmp_path, monkeypatch):
    """dev.py as a module, for a checkout in another place."""
    for name, place in (("VENV", ".venv"), ("LOCK", ".host/bootstrap"), ("LOG", "output/setup.log")):
        monkeypatch.setattr(bootstrap, name, tmp_path / place)
    return bootstrap


def test_a_python_that_is_too_old_or_too_new_or_lacks_venv_is_named(dev, monkeypatch):
    def answers(version: str, code: int = 0):
        done = subprocess.CompletedProcess([], code, stdout=version, stderr="")
        monkeypatch.setattr(dev.subprocess, "run", lambda *args, **kwargs: done)

    for version in ("3 9", "3 14"):
        answers(version)
        with pytest.raises(dev.Failure, match=f"py is Python {version.replace(' ', '.')}, but .* need 3.10 to 3.13"):
            dev.check_python("py")
    answers("3 12", 1)
    with pytest.raises(dev.Failure, match="python3-venv"):
        dev.check_python("py")
    for minor in range(10, 14):
        answers(f"3 {minor}")
        dev.check_python("py")


def test_a_python_that_does_not_run_is_named(dev):
    with pytest.raises(dev.Failure, match="Cannot run the Python no-such-python"):
        dev.check_python("no-such-python")


def test_a_foreign_venv_is_left_alone(dev):
    dev.VENV.mkdir()
    (dev.VENV / "pyvenv.cfg").touch()
    with pytest.raises(dev.Failure, match=r"not made by dev.py"):
        dev.bootstrap(sys.executable)


def test_a_step_that_fails_says_its_last_error(dev):
    code = "import sys; print('Error: no such thing'); print('bye'); sys.exit(3)"
    with pytest.raises(dev.Failure, match="Making x failed: Error: no such thing"):
        dev.run("Making x", [sys.executable, "-c", code])


def test_the_bootstrap_stays_small():
    """What a command needs besides the standard library belongs in tools/, where it can use libraries."""
    assert len((ROOT / "dev.py").read_text("utf-8").splitlines()) <= 150


@pytest.mark.parametrize("command", ["setup", "demo", "test", "serve"])
def test_every_command_takes_the_same_hosts(command, monkeypatch):
    asked = []

    def ready(choice):
        asked.append(choice)
        raise SystemExit(0)

    monkeypatch.setattr(tools.hosts, "ready", ready)
    CliRunner().invoke(tools.commands, [command, "--host-version", "0.16.3", "--gpu"])
    CliRunner().invoke(tools.commands, [command, "--comfyui", "here", "--python=py"])
    assert asked == [Choice(version="0.16.3", gpu=True), Choice(comfyui="here", python="py")]


def test_pytest_gets_its_own_arguments_in_their_order(monkeypatch):
    commands = []
    monkeypatch.setattr(tools.hosts, "ready", lambda choice: tools.hosts.Host(ROOT, "py", choice.version))
    monkeypatch.setattr(tools.environment, "get_browser", lambda arguments: None)
    monkeypatch.setattr(tools, "spawn", lambda command, **options: commands.append(command))
    monkeypatch.setattr(tools, "wait", lambda process: 5)
    given = ["-k", "a and b", "-x", "-n0", "--tb=short", "tests/test_dev.py::test_x"]
    result = CliRunner().invoke(tools.commands, ["test", *given[:2], "--host-version", "0.16.3", *given[2:]])
    assert result.exit_code == 5 and commands[0][-len(given) :] == given


def test_a_benchmark_gets_its_own_arguments_and_starts_where_the_user_stands(tmp_path, monkeypatch):
    commands = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tools.hosts, "ready", lambda choice: tools.hosts.Host(ROOT, "py", choice.version))
    monkeypatch.setattr(tools, "spawn", lambda command, **options: commands.append(command))
    monkeypatch.setattr(tools, "wait", lambda process: 3)
    given = ["study", "--help", "--prompts", "prompts.txt"]
    result = CliRunner().invoke(tools.commands, ["benchmark", "--host-version", "0.16.3", *given])
    assert result.exit_code == 3 and commands == [["py", "-m", "tools.benchmark", str(tmp_path), *given]]


def test_a_setting_of_a_workflow_that_cannot_be_read_ends_before_a_host_starts(tmp_path):
    path = tmp_path / "w.json"
    path.write_text('{"1": {"class_type": "KSampler", "inputs": {"steps": 4}}}', "utf-8")
    with pytest.raises(Failure, match=r"the nodes are 1 \(KSampler\)"):
        tools.commands.main(["run", str(path), "--set", "9.steps=8"], standalone_mode=False)
