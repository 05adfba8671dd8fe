"""patches/host/symbols.py lists what the pack takes from the host: all of it is there, and all of it is listed."""

import ast
import importlib
import inspect
import os
from pathlib import Path

import comfyui_version
import pytest
from pack.patches.host.symbols import SYMBOLS

ROOT = Path(__file__).resolve().parents[2]
PACK = [ROOT / "__init__.py", *(path for top in ("patches", "guiders", "nodes") for path in (ROOT / top).rglob("*.py"))]
HOSTS = ("comfy", "folder_paths", "server", "execution", "node_helpers", "latent_preview")
OF_AN_INSTANCE = "server.PromptServer.instance"  # the host makes it when it starts


def number(version: str) -> list[int]:
    return [*map(int, version.split("."))]


def resolved(path: str):
    """What stands at a path. Raises AttributeError or ImportError, with the name of what is not there."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            found = getattr(found, name)
        return found
    raise ImportError(path)


def test_the_version_under_which_results_are_kept_is_the_hosts_own_word():
    assert Path(comfyui_version.__file__).resolve().parent == Path(os.environ["COMFYUI_PATH"]).resolve()


@pytest.mark.parametrize("symbol", SYMBOLS, ids=lambda symbol: symbol.path)
def test_this_host_has_it_from_its_version_on(symbol):
    if symbol.since and number(comfyui_version.__version__) < number(symbol.since):
        with pytest.raises((AttributeError, ImportError)):
            resolved(symbol.path)
        return
    found = resolved(symbol.path)
    if symbol.parameters:
        has = [name for name in inspect.signature(found).parameters if name in symbol.parameters]
        assert has == [*symbol.parameters]


def taken(path: Path) -> set[str]:
    """The host's names that a file of the pack imports, and what it takes from them, by their whole paths."""
    tree, homes, found = ast.parse(path.read_text("utf-8")), {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(alias.asname or alias.name.partition(".")[0], alias.name, alias.asname) for alias in node.names]
            for local, whole, renamed in (name for name in names if name[1].startswith(HOSTS)):
                homes[local] = whole if renamed else local
                found.add(whole)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module.startswith(HOSTS):
            for alias in node.names:
                homes[alias.asname or alias.name] = whole = f"{node.module}.{alias.name}"
                found.add(whole)
    for node in ast.walk(tree):
        names, inner = [], node
        while isinstance(inner, ast.Attribute):
            names, inner = [inner.attr, *names], inner.value
        if names and isinstance(inner, ast.Name) and inner.id in homes:
            found.add(".".join([homes[inner.id], *names]))
    return found


def test_nothing_is_taken_that_is_not_listed_and_nothing_is_listed_twice():
    listed = [symbol.path for symbol in SYMBOLS]
    assert len(listed) == len({*listed}) and all(symbol.why for symbol in SYMBOLS)
    used = {path: file for file in PACK for path in taken(file)}
    assert len(used) > 80
    missing = {
        f"{file.relative_to(ROOT)}: {path}"
        for path, file in used.items()
        if not path.startswith(OF_AN_INSTANCE)
        and path not in listed
        and not any(symbol.startswith(f"{path}.") for symbol in listed)
    }
    assert not missing, "list it in patches/host/symbols.py, with why"


def test_what_is_listed_is_taken():
    """But for methods of the host's objects, which no reader of the code can tell, and what is known by name alone."""
    used = {path for file in PACK for path in taken(file)}
    code = "\n".join(path.read_text("utf-8") for path in PACK if path.name != "symbols.py")
    for symbol in SYMBOLS:
        name = symbol.path.rpartition(".")[2]
        assert symbol.path in used or f".{name}(" in code or f'"{name}"' in code or symbol.since, symbol.path
