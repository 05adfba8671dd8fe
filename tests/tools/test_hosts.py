"""Which ComfyUI a command uses, and how one is fetched. Nothing here needs ComfyUI, PyTorch or the network."""

import hashlib
import http.server
import io
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from pack.tools import environment, hosts, places
from pack.tools.console import Failure
from pack.tools.hosts import Choice
from pack.tools.places import PACK
from pack.tools.server import command_of

CONTENT = bytes(range(256)) * 2000


@pytest.fixture(autouse=True)
def without_settings(monkeypatch):
    for name in ("COMFYUI_PATH", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)


def test_own_comfyui_and_its_python(tmp_path, monkeypatch):
    with pytest.raises(Failure, match="no ComfyUI folder"):
        hosts.choose(Choice(comfyui=str(tmp_path)))
    own = tmp_path / "own"
    (own / "comfy").mkdir(parents=True)
    (own / "main.py").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(own))
    assert hosts.choose(Choice()).python == Path(sys.executable)
    python = environment.python_of(own / ".venv")
    python.parent.mkdir(parents=True)
    python.touch()
    host = hosts.choose(Choice())
    assert (host.python, host.version) == (python, None)
    assert hosts.choose(Choice(version="0.16.3")).version == "0.16.3"
    kept, short = (" ".join(map(str, command_of(host, 1, False, scratch))) for scratch in (None, "s"))
    assert "--disable-all" not in kept and "--cpu" not in kept and "--output-directory" not in kept
    assert "--disable-all" not in short and "--output-directory s" in short


# ---------------------------------------------------------------------------------------------------- downloads


class Site(http.server.BaseHTTPRequestHandler):
    """A package index with one project, p, of two files; one of them is not there."""

    def do_GET(self):
        links = b'<a href="../../f/p-1.tar.gz">p-1.tar.gz</a> <a href="../../f/p-2.tar.gz">p-2.tar.gz</a>'
        pages = {"/simple/p/": links, "/f/p-1.tar.gz": CONTENT}
        if self.path not in pages:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/gzip")
        self.send_header("Content-Length", str(len(pages[self.path])))
        self.end_headers()
        self.wfile.write(pages[self.path])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/simple"
    server.shutdown()
    server.server_close()


def test_a_file_is_fetched_from_the_index(site, tmp_path):
    hosts.download(site, "p", tmp_path / "p-1.tar.gz")
    assert hosts.sha256_of(tmp_path / "p-1.tar.gz") == hashlib.sha256(CONTENT).hexdigest()


def test_what_cannot_be_fetched_is_a_sentence_without_the_password(site, tmp_path):
    for name, says in (("p-3.tar.gz", "127.0.0.1 does not list p-3.tar.gz"), ("p-2.tar.gz", "answered 404 for p")):
        with pytest.raises(Failure, match=says):
            hosts.download(site, "p", tmp_path / name)
    with pytest.raises(Failure, match=r"Cannot reach 127.0.0.1") as error:
        hosts.download("http://user:secret@127.0.0.1:9/simple", "p", tmp_path / "p-1.tar.gz")
    assert "secret" not in str(error.value)


def test_a_damaged_download_is_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "HOSTS", tmp_path)
    monkeypatch.setattr(hosts, "download", lambda index, project, target: target.write_bytes(CONTENT))
    with pytest.raises(Failure, match=r"arrived damaged \(SHA-256 .* instead of de5d0c3204f9"):
        hosts.fetch(hosts.Host(tmp_path / "0.30.0", Path(sys.executable), "0.30.0"))
    assert list(tmp_path.iterdir()) == []


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
    hosts.unpack(archive(tmp_path / "a.tar.gz", names), tmp_path / "1.0")
    found = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    assert found == {"a.tar.gz", "1.0/main.py", "1.0/comfy/a.py"}


@pytest.mark.parametrize("name", ["../../x", "a/../../x", "a\\..\\x", "C:/x"])
def test_unsafe_paths_are_refused(tmp_path, name):
    with pytest.raises(Failure, match="unsafe path"):
        hosts.unpack(archive(tmp_path / "a.tar.gz", ["p-1/vendor/ComfyUI/" + name]), tmp_path / "1.0")
    assert not (tmp_path / "1.0").exists()


def test_a_damaged_archive_is_deleted(tmp_path):
    path = archive(tmp_path / "a.tar.gz", ["p-1/vendor/ComfyUI/main.py"])
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(Failure, match="damaged and was deleted"):
        hosts.unpack(path, tmp_path / "1.0")
    assert not path.exists() and not (tmp_path / "1.0").exists()


def test_the_disk_is_checked(monkeypatch):
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: type("", (), {"free": 2e9}))
    with pytest.raises(Failure, match=r"2.0 GB free, 7 GB are needed"):
        environment.check_disk(7)


def test_the_pack_is_linked_once_and_copies_are_respected(tmp_path, monkeypatch, capsys):
    root = tmp_path / "pack"
    root.mkdir()
    (root / "a.py").touch()
    monkeypatch.setattr(places, "ROOT", root)
    host = tmp_path / "host"
    host.mkdir()
    assert hosts.link_pack(host) == hosts.link_pack(host) == PACK
    place = host / "custom_nodes" / PACK
    assert place.samefile(root)
    assert capsys.readouterr().out.count("Linked") == 1
    moved = root.rename(tmp_path / "moved")
    monkeypatch.setattr(places, "ROOT", moved)
    hosts.link_pack(host)
    assert place.samefile(moved)
    inside = host / "custom_nodes" / "my-folder"
    inside.mkdir()
    monkeypatch.setattr(places, "ROOT", inside)
    assert hosts.link_pack(host) == "my-folder"
    other = tmp_path / "other"
    (other / "custom_nodes" / PACK).mkdir(parents=True)
    with pytest.raises(Failure, match="another copy"):
        hosts.link_pack(other)
