"""dev.py's own logic: nothing here needs ComfyUI, PyTorch or the network."""

import hashlib
import http.server
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

DEV = Path(__file__).resolve().parent.parent / "dev.py"
spec = importlib.util.spec_from_file_location("dev_under_test", DEV)
dev = importlib.util.module_from_spec(spec)
spec.loader.exec_module(dev)

CONTENT = bytes(range(256)) * 2000
SUM = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    for name, folder in (("ROOT", ""), ("HOSTS", ".host"), ("VENV", ".venv"), ("OUTPUT", "output")):
        monkeypatch.setattr(dev, name, tmp_path / folder)
    for name in ("COMFYUI_PATH", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(dev.time, "sleep", lambda seconds: None)


# ---------------------------------------------------------------------------------------------------- workflows


@pytest.fixture
def workflow():
    return {
        "1": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 4, "model": ["2", 0], "kind.blocks": "mid"}},
        "2": {"class_type": "Loader", "inputs": {"name": "x"}, "_meta": {"title": "Model v1.5"}},
        "3": {"class_type": "Text", "inputs": {"text": "a"}},
        "4": {"class_type": "Text", "inputs": {"noise_seed": 2}},
    }


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("1.steps=8", (["1"], "steps", 8)),
        ("KSampler.steps=2.5", (["1"], "steps", 2.5)),
        ("Model v1.5.name=file.ckpt", (["2"], "name", "file.ckpt")),
        ("1.kind.blocks=all", (["1"], "kind.blocks", "all")),
        ("3.text=a = b", (["3"], "text", "a = b")),
        ('3.text="8"', (["3"], "text", "8")),
        ('1.model=["3", 0]', (["1"], "model", ["3", 0])),
        ("3.text=NaN", (["3"], "text", "NaN")),
        ("3.text=", (["3"], "text", "")),
    ],
)
def test_set_takes_ids_classes_and_titles(workflow, setting, expected):
    assert dev.parse_setting(workflow, setting) == expected


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("1.stepz=8", "its inputs are seed, steps, model, kind.blocks"),
        ("9.steps=8", r"the nodes are 1 \(KSampler\), 2 \(Loader\)"),
        ("Text.text=b", "its inputs are noise_seed"),  # of the second
        ("steps", "NODE.INPUT=VALUE"),
        ("steps=8", "NODE.INPUT=VALUE"),
    ],
)
def test_a_wrong_set_names_the_choices(workflow, setting, says):
    with pytest.raises(dev.Failure, match=says):
        dev.parse_setting(workflow, setting)


def test_set_reaches_all_nodes_of_a_class(workflow):
    workflow["5"] = {"class_type": "KSampler", "inputs": {"steps": 3}}
    assert dev.parse_setting(workflow, "KSampler.steps=8") == (["1", "5"], "steps", 8)


def test_seed_reaches_every_seed_and_the_node_that_several_have_it_from_but_no_other_link(workflow):
    workflow["2"]["inputs"]["seed"] = ["1", 0]
    workflow["5"] = {"class_type": "PrimitiveInt", "inputs": {"value": 1}}
    workflow["6"] = {"class_type": "KSampler", "inputs": {"seed": ["5", 0]}}
    dev.set_seed(workflow, 7)
    assert workflow["1"]["inputs"]["seed"] == workflow["4"]["inputs"]["noise_seed"] == 7
    assert workflow["5"]["inputs"]["value"] == 7 and workflow["6"]["inputs"]["seed"] == ["5", 0]
    assert workflow["2"]["inputs"]["seed"] == ["1", 0]
    with pytest.raises(dev.Failure, match="No node"):
        dev.set_seed({"3": workflow["3"]}, 7)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ('{"nodes": []}', r"Export \(API\)"),
        ("[]", "API format"),
        ("{}", "API format"),
        ('{"1": {"inputs": {}}}', "API format"),
    ],
)
def test_a_wrong_workflow_file_is_explained(tmp_path, text, says):
    path = tmp_path / "w.json"
    path.write_text(text)
    with pytest.raises(dev.Failure, match=says):
        dev.load_workflow(path)
    with pytest.raises(dev.Failure, match="no file"):
        dev.load_workflow(tmp_path / "none.json")


def test_host_errors_become_lines():
    refused = {
        "error": {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed", "details": ""},
        "node_errors": {"5": {"class_type": "Pag", "errors": [{"message": "Value too big", "details": "scale"}]}},
    }
    text = dev.rejection(json.dumps(refused))
    assert text.splitlines()[1] == "  node 5 (Pag): Value too big: scale"
    failed = {"node_id": "5", "node_type": "Pag", "exception_type": "torch.OutOfMemory", "exception_message": "a\nb\n"}
    text = dev.execution_error([["execution_start", {}], ["execution_error", failed]])
    assert text == "Node 5 (Pag) failed with OutOfMemory:\n  a\n  b"


def test_pictures_are_never_overwritten(tmp_path):
    names = []
    for _ in range(3):
        path = dev.unused(tmp_path / "a.png")
        path.touch()
        names.append(path.name)
    assert names == ["a.png", "a-2.png", "a-3.png"]


# ---------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize("arguments", [["--host-version", "0.16.3", "test"], ["test", "--host-version", "0.16.3"]])
def test_shared_options_stand_before_or_after_and_pytest_gets_the_rest(arguments):
    options = dev.parse_arguments([*arguments, "-k", "a and b", "-x", "tests/test_dev.py::test_x"])
    assert options.host_version == "0.16.3"
    assert options.pytest_args == ["-k", "a and b", "-x", "tests/test_dev.py::test_x"]


def test_run_arguments():
    options = dev.parse_arguments(["run", "w.json", "--set", "1.a=-2", "--gpu", "--set=2.b=x y", "--seed", "3"])
    assert (options.set, options.seed, options.gpu, options.workflow) == (["1.a=-2", "2.b=x y"], 3, True, "w.json")


def test_own_comfyui_and_its_python(tmp_path, monkeypatch):
    with pytest.raises(dev.Failure, match="no ComfyUI folder"):
        dev.choose_host(dev.parse_arguments(["setup", "--comfyui", str(tmp_path)]))
    own = tmp_path / "own"
    (own / "comfy").mkdir(parents=True)
    (own / "main.py").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(own))
    assert dev.choose_host(dev.parse_arguments(["setup"])).python == Path(sys.executable)
    python = dev.venv_python(own / ".venv")
    python.parent.mkdir(parents=True)
    python.touch()
    host = dev.choose_host(dev.parse_arguments(["setup"]))
    assert (host.python, host.version) == (python, None)
    assert dev.choose_host(dev.parse_arguments(["setup", "--host-version", "0.16.3"])).version == "0.16.3"
    kept, short = (" ".join(map(str, dev.host_command(host, 1, False, scratch))) for scratch in (None, "s"))
    assert "--disable-all" not in kept and "--cpu" not in kept and "--output-directory" not in kept
    assert "--disable-all" not in short and "--output-directory s" in short


# ---------------------------------------------------------------------------------------------------- downloads


class Site(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; /cut promises more than it sends, /ranged can resume."""

    asked: list = []

    def do_GET(self):
        start = self.headers["Range"]
        self.asked.append((self.path, start))
        content = CONTENT
        if self.path.startswith("/simple/"):
            content = b'<a href="other.tar.gz">x</a> <a class=a href="../../f/a%5Fb-1.tar.gz#sha256=0">x</a>'
        if self.path == "/missing":
            return self.send_error(404)
        if start and self.path == "/ranged":
            content = content[int(start[6:-1]) :]
            if not content:
                return self.send_error(416)
        self.send_response(206 if start and self.path == "/ranged" else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:1000] if self.path == "/cut" else content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def site():
    Site.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_index_page_may_be_relative(site):
    assert dev.find_archive(site + "/simple/", "a_b-1.tar.gz") == site + "/f/a%5Fb-1.tar.gz"
    with pytest.raises(dev.Failure, match="does not list c.tar.gz"):
        dev.find_archive(site + "/simple", "c.tar.gz")


@pytest.mark.parametrize(("path", "asks"), [("/ranged", "bytes=5000-"), ("/whole", "bytes=5000-")])
def test_a_download_goes_on_where_it_stopped(site, tmp_path, path, asks):
    target = tmp_path / "a.tar.gz"
    (tmp_path / "a.tar.gz.part").write_bytes(CONTENT[:5000])
    dev.download(site + path, target, SUM)
    assert target.read_bytes() == CONTENT
    assert Site.asked == [(path, asks)]
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar.gz"]


def test_a_local_file_and_a_finished_part(tmp_path):
    (tmp_path / "source").write_bytes(CONTENT)
    dev.download((tmp_path / "source").as_uri(), tmp_path / "a", SUM)
    assert (tmp_path / "a").read_bytes() == CONTENT
    (tmp_path / "a").rename(tmp_path / "b.part")
    dev.download("http://127.0.0.1:9/never-asked", tmp_path / "b", SUM)
    assert (tmp_path / "b").read_bytes() == CONTENT


def test_a_broken_off_download_keeps_what_came(site, tmp_path):
    with pytest.raises(dev.NetworkFailure, match=f"broke off after 1000 of {len(CONTENT)} bytes: run this again"):
        dev.download(site + "/cut", tmp_path / "a.tar.gz", SUM)
    assert (tmp_path / "a.tar.gz.part").stat().st_size == 1000
    dev.download(site + "/ranged", tmp_path / "a.tar.gz", SUM)


def test_a_wrong_checksum_deletes_the_file(site, tmp_path):
    with pytest.raises(dev.NetworkFailure, match=r"arrived damaged \(SHA-256 .* instead of 000000000000"):
        dev.download(site + "/whole", tmp_path / "a.tar.gz", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_part_longer_than_the_file_starts_over(site, tmp_path):
    (tmp_path / "a.part").write_bytes(CONTENT + b"more")
    dev.twice(dev.download, site + "/ranged", tmp_path / "a", SUM)
    assert [start for _, start in Site.asked] == [f"bytes={len(CONTENT) + 4}-", None]


def test_no_network_and_no_file_are_sentences(site, capsys):
    with pytest.raises(dev.NetworkFailure, match=r"answered 404 \(Not Found\) for missing"):
        dev.open_url(site + "/missing")
    with pytest.raises(dev.NetworkFailure, match="Cannot reach 127.0.0.1"):
        dev.twice(dev.open_url, "http://user:secret@127.0.0.1:9/x")
    text = capsys.readouterr().out
    assert "Trying once more" in text and "secret" not in text


# ------------------------------------------------------------------------------------------------ archive, setup


def archive(path: Path, names) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
    return path


def test_only_the_host_is_unpacked(tmp_path):
    (tmp_path / "1.0.partial").mkdir()
    (tmp_path / "1.0.partial/left-over").touch()
    names = ["p-1/vendor/ComfyUI/main.py", "p-1/vendor/ComfyUI/comfy/a.py", "p-1/other.py", "p-1/../../evil"]
    dev.unpack(archive(tmp_path / "a.tar.gz", names), tmp_path / "1.0")
    found = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    assert found == {"a.tar.gz", "1.0/main.py", "1.0/comfy/a.py"}


@pytest.mark.parametrize("name", ["../../x", "a/../../x", "a\\..\\x", "C:/x"])
def test_unsafe_paths_are_refused(tmp_path, name):
    with pytest.raises(dev.Failure, match="unsafe path"):
        dev.unpack(archive(tmp_path / "a.tar.gz", ["p-1/vendor/ComfyUI/" + name]), tmp_path / "1.0")
    assert not (tmp_path / "1.0").exists()


def test_a_damaged_archive_is_deleted(tmp_path):
    path = archive(tmp_path / "a.tar.gz", ["p-1/vendor/ComfyUI/main.py"])
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(dev.Failure, match="damaged and was deleted"):
        dev.unpack(path, tmp_path / "1.0")
    assert not path.exists() and not (tmp_path / "1.0").exists()


def test_wrong_pythons_are_sentences():
    with pytest.raises(dev.Failure, match=r"py is Python 3.9, but .* need 3.10 to 3.13"):
        dev.check_python((3, 9), True, "py")
    with pytest.raises(dev.Failure, match="Python 3.14"):
        dev.check_python((3, 14), True, "py")
    with pytest.raises(dev.Failure, match="python3-venv"):
        dev.check_python((3, 12), False, "py")
    for minor in range(10, 14):
        dev.check_python((3, minor), True, "py")


def test_the_disk_is_checked(monkeypatch):
    monkeypatch.setattr(dev.shutil, "disk_usage", lambda path: type("", (), {"free": 2e9}))
    with pytest.raises(dev.Failure, match="2.0 GB free, 7 GB are needed"):
        dev.check_disk(7)


@pytest.mark.parametrize(
    ("log", "kind", "says"),
    [
        ("error: Failed to fetch: `https://x`\n  dns error", "NetworkFailure", "could not be reached"),
        ("error: failed to write\n  No space left on device (os error 28)", "Failure", "disk is full"),
        ("PermissionError: [Errno 13] Permission denied: 'x'", "Failure", "permission denied"),
        ("Traceback\nValueError: no such thing\n\n", "Failure", "failed: ValueError: no such thing"),
        ("", "Failure", "no message"),
    ],
)
def test_installer_logs_become_one_sentence(log, kind, says):
    failure = dev.explain("Installing", log)
    assert type(failure).__name__ == kind
    assert says in str(failure) and "\n" not in str(failure)


def test_a_foreign_venv_is_left_alone(tmp_path):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/pyvenv.cfg").touch()
    (tmp_path / "requirements.txt").touch()
    host = dev.Host(tmp_path, dev.venv_python(tmp_path / ".venv"), "0.30.0")
    with pytest.raises(dev.Failure, match="not made by dev.py"):
        dev.install_packages(host, dev.parse_arguments(["setup"]))


def test_the_pack_is_linked_once_and_copies_are_respected(tmp_path, monkeypatch, capsys):
    root = tmp_path / "pack"
    root.mkdir()
    (root / "dev.py").touch()
    monkeypatch.setattr(dev, "ROOT", root)
    host = tmp_path / "host"
    host.mkdir()
    assert dev.link_pack(host) == dev.link_pack(host) == dev.PACK
    place = host / "custom_nodes" / dev.PACK
    assert place.samefile(root)
    assert capsys.readouterr().out.count("Linked") == 1
    moved = root.rename(tmp_path / "moved")
    monkeypatch.setattr(dev, "ROOT", moved)
    dev.link_pack(host)
    assert place.samefile(moved)
    inside = host / "custom_nodes" / "my-folder"
    inside.mkdir()
    monkeypatch.setattr(dev, "ROOT", inside)
    assert dev.link_pack(host) == "my-folder"
    other = tmp_path / "other"
    (other / "custom_nodes" / dev.PACK).mkdir(parents=True)
    with pytest.raises(dev.Failure, match="another copy"):
        dev.link_pack(other)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups")
def test_stopping_leaves_no_process_behind(tmp_path):
    """A child that ignores the polite signal's sender still goes, and its own child with it."""
    code = (
        f"import importlib.util as u; s = u.spec_from_file_location('dev', {str(DEV)!r}); d = u.module_from_spec(s);"
        "s.loader.exec_module(d); import pathlib, signal;"
        f"d.OUTPUT = pathlib.Path({str(tmp_path)!r});"
        "d.COMMANDS['setup'] = lambda o: d.run_step('x', ['sh', '-c', 'sleep 98 & echo $!; echo $$; sleep 99']);"
        "raise SystemExit(d.main(['setup']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    log = tmp_path / "setup.log"
    end = time.monotonic() + 20
    while time.monotonic() < end and not (log.exists() and len(log.read_text().split()) == 2):
        threading.Event().wait(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    assert process.stderr.read().strip() == b"Stopped."
    process.stderr.close()
    for pid in map(int, log.read_text().split()):
        while time.monotonic() < end and alive(pid):
            threading.Event().wait(0.02)
        assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")  # zombies hold nothing
