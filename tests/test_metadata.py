"""What the registry reads: pyproject.toml, the icon, and what a published archive leaves out."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent
tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")  # pytest brings tomli to 3.10
DATA = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT, COMFY = DATA["project"], DATA["tool"]["comfy"]
OUR_FILES = PROJECT["urls"]["Repository"].replace("github.com", "raw.githubusercontent.com") + "/main/"


def test_name_version_and_publisher_are_in_the_registrys_form():
    assert re.fullmatch(r"[a-z](?:[-_.]?[a-z0-9])*", PROJECT["name"]) and len(PROJECT["name"]) < 100
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"])
    assert re.fullmatch(r"[a-z0-9-]+", COMFY["PublisherId"]) and COMFY["DisplayName"]


def test_classifiers_are_those_that_the_registry_knows():
    systems = [one for one in PROJECT["classifiers"] if one.startswith("Operating System :: ")]
    assert systems == ["Operating System :: OS Independent"]
    assert not [
        one for one in PROJECT["classifiers"] if one.startswith("Environment :: ")
    ]  # it runs wherever the host does


def test_dependencies_are_those_that_other_tools_install():
    assert PROJECT["dependencies"] == (ROOT / "requirements.txt").read_text("utf-8").split()


def test_the_oldest_host_is_the_one_that_the_readme_says():
    oldest = COMFY["requires-comfyui"].removeprefix(">=")
    assert f"ComfyUI {oldest} or newer" in (ROOT / "README.md").read_text("utf-8")
    assert f"--host-version {oldest}" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_the_icon_is_a_square_picture_of_this_repository():
    assert COMFY["Icon"].startswith(OUR_FILES)
    icon = ElementTree.parse(ROOT / COMFY["Icon"].removeprefix(OUR_FILES)).getroot()
    assert icon.tag.endswith("svg") and icon.get("width") == icon.get("height") == "400"


def test_an_archive_has_all_that_the_pack_needs_in_a_host():
    left_out = (ROOT / ".comfyignore").read_text("utf-8").split()
    assert all((ROOT / name).exists() for name in left_out)
    needed = (
        "__init__.py",
        "guiders/",
        "locales/",
        "nodes/",
        "patches/",
        "subgraphs/",
        "web/",
        "workflows/",
        "LICENSE",
        "README.md",
    )
    assert not set(needed) & set(left_out)
    assert {"benchmarks/", "tests/", "tools/"} <= set(left_out)
    sources = [path for name in ("guiders", "nodes", "patches") for path in (ROOT / name).rglob("*.py")]
    for path in (*sources, ROOT / "__init__.py"):
        assert not re.search(r"^\s*(from|import) \.*(benchmarks|tests|tools|dev)\b", path.read_text("utf-8"), re.M), (
            path
        )
