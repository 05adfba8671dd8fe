"""The host derives networks from networks. Each of them has a row of the table, or is refused, or is never sampled."""

import importlib
from pathlib import Path

import comfy.model_base
import pytest
from pack.patches.architectures import ARCHITECTURES, REFUSED, find, refused

NEVER_SAMPLED = {"ControlNetFlux", "QwenImageControlNetModel", "ControlledUnetModel"}  # they stand beside a network
COMFY = Path(comfy.model_base.__file__).parent


def load_all_networks() -> None:
    for path in sorted(path for folder in ("ldm", "cldm") for path in (COMFY / folder).rglob("*.py")):
        importlib.import_module(".".join(path.relative_to(COMFY.parent).with_suffix("").parts))


def classes(path: str) -> list[type]:
    """The host's classes that a row or a refusal names; none where this host has no such network."""
    module, _, name = path.rpartition(".")
    homes = (f"comfy.ldm.{module}", f"comfy.ldm.modules.diffusionmodules.{module}")
    found = [
        importlib.import_module(home) for home in homes if (COMFY.parent / f"{home.replace('.', '/')}.py").exists()
    ]
    return [getattr(home, name) for home in found if hasattr(home, name)]


def derived(kind: type) -> set[type]:
    found = {*kind.__subclasses__()}
    return found.union(*map(derived, found))


def is_the_hosts(kind: type) -> bool:
    return kind.__module__.startswith("comfy.")


@pytest.mark.parametrize("row", ARCHITECTURES, ids=lambda row: row.name)
def test_the_hosts_subclasses_of_a_network_are_decided_one_by_one(row):
    load_all_networks()
    others = {other.network for other in ARCHITECTURES if other is not row}
    named = {kind for path in row.also for kind in classes(path)}
    for kind in {kind for base in classes(row.network) for kind in derived(base) if is_the_hosts(kind)}:
        has_own_row = f"{kind.__module__}.{kind.__qualname__}".endswith(tuple(f".{path}" for path in others))
        network = object.__new__(kind)
        assert kind in named or has_own_row or refused(network) or kind.__qualname__ in NEVER_SAMPLED, kind
        assert (find(network) is row) == (kind in named), kind


def test_every_network_that_is_refused_is_where_the_table_says_on_hosts_that_have_it():
    for path in REFUSED:
        folder = COMFY / "ldm" / path.partition(".")[0]
        assert classes(path) or not folder.exists() or not has_class(folder, path), path


def has_class(folder: Path, path: str) -> bool:
    return any(f"class {path.rpartition('.')[2]}(" in file.read_text("utf-8") for file in folder.rglob("*.py"))
