"""Who may import whom, and the other promises of the house that can be read off the code. Nothing is imported here."""

import ast
import graphlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACK = sorted(path for folder in ("guiders", "patches", "nodes") for path in (ROOT / folder).rglob("*.py"))
PACK.append(ROOT / "__init__.py")
AROUND = sorted(path for folder in ("tools", "benchmarks", "fleet") for path in (ROOT / folder).rglob("*.py"))
OURS = {"guiders", "patches", "nodes"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere in it; the pack's own as "guiders.base", wherever the pack lies."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            module = ".".join([*base, *((node.module or "").split(".") if node.module else [])])
            is_inside = bool(node.level) or f"{module}.".startswith("pack.")
            module = module if node.level else f"{module}.".removeprefix("pack.").rstrip(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".strip(".")
                of_ours = is_inside and (ROOT / inner.replace(".", "/")).with_suffix(".py").exists()
                found.add(inner if of_ours else module)
    return found


def methods(folder: str) -> list[Path]:
    """The files of rules or perturbations."""
    frame = {
        "__init__",
        "base",
        "compose",
        "schedule",
        "linalg",
        "region",
        "layers",
        "layer_map",
        "layout",
        "architectures",
        "host",
        "texts",
    }
    frame |= {"attended_negative"}  # for any of the prompt guidances
    frame |= {"post_hoc_ema", "attention_sums", "noisy_network", "memory", "moments", "windows"}  # neither of both
    frame |= {"reuse", "directions"}
    frame |= {"presets", "layer_probe"}
    frame |= {"others"}  # of other packs, for their old workflows
    frame |= {"distillation"}  # what a LoRA learns, of any of them
    frame |= {
        "post_hoc_ema",
        "attention_sums",
        "noisy_network",
        "memory",
        "moments",
        "windows",
    }  # no rule and no perturbation
    return [path for path in sorted((ROOT / folder).glob("*.py")) if path.stem not in frame]


METHODS = methods("guiders") + methods("patches")
MAY = {  # what a file of the pack may import of the pack, beyond what its kind may
    "__init__": {"nodes.extension", "nodes.routes"},
    "guiders.base": {"patches.base", "guiders.windows"},
    "guiders.windows": set(),
    "guiders.sliding_window": {"guiders.base", "guiders.windows"},
    "guiders.schedule": {"patches.texts"},
    "guiders.region": set(),
    "guiders.presets": set(),
    "guiders.layer_probe": {"guiders.base", "guiders.frequency_decoupled", "guiders.linalg"},
    "guiders.others": {f"guiders.{name}" for name in ("base", "linalg", "perturbation", "schedule")},
    "guiders.linalg": {"guiders.base"},
    "guiders.memory": {"guiders.base"},
    "guiders.attended_negative": {"guiders.base"},
    "guiders.distillation": {"guiders.base"},
    "guiders.moments": {"guiders.base", "guiders.memory"},
    "guiders.classifier": {"guiders.base", "guiders.linalg", "guiders.moments"},
    "guiders.compose": {"guiders.base", "guiders.directions", "guiders.schedule"},
    "guiders.directions": {"guiders.base", "guiders.linalg", "guiders.reuse"},
    "patches.post_hoc_ema": set(),
    "guiders.noisy_network": {"guiders.base"},
    "patches.attention_sums": {"patches.base", "patches.layers"},
    "patches.base": {"patches.layers"},
    "patches.texts": set(),
    "patches.layers": {"patches.texts"},
    "patches.layer_map": {"patches.layers"},
    "patches.layout": set(),
    "patches.architectures": {"patches.layers", "patches.layout"},
    "patches.discovery.probes": set(),
    "patches.discovery.grids": {"patches.discovery.probes"},
    "patches.discovery.architecture": {"patches.architectures", "patches.layers", "patches.layout"},
    "patches.discovery.modules": {"patches.architectures", "patches.layers"}
    | {f"patches.discovery.{name}" for name in ("architecture", "probes")},
    "patches.discovery.__init__": {"patches.layers"}
    | {f"patches.discovery.{name}" for name in ("architecture", "grids", "modules", "probes")},
    "guiders.__init__": {name_of(path) for path in methods("guiders")},
    "patches.__init__": {name_of(path) for path in methods("patches")},
}
KIND = {"guiders": {"guiders.base", "guiders.linalg", "guiders.memory"}, "patches": {"patches.base", "patches.layers"}}


def is_host(name: str) -> bool:
    return re.match(r"(guiders|patches)\.host(\.|$)", name) is not None


def may_import(name: str, other: str) -> bool:
    """Whether the pack's file `name` may import the pack's file `other`."""
    folder = name.partition(".")[0]
    if is_host(name):
        return other.startswith("patches") if folder == "patches" else other.startswith(("guiders", "patches"))
    if folder == "nodes":
        return other.partition(".")[0] in OURS
    return other in MAY.get(name, KIND.get(folder, set()))


@pytest.mark.parametrize("path", PACK, ids=name_of)
def test_a_file_imports_only_what_the_house_allows(path):
    name = name_of(path)
    for other in imports_of(path):
        top = other.partition(".")[0]
        if top in OURS:
            assert may_import(name, other), f"{name} imports {other}"
        elif top.startswith("comfy"):
            assert is_host(name) or name.startswith("nodes"), f"{name} imports {other}"
            assert top == "comfy_api" or not name.startswith("nodes"), f"{name} imports {other}"
        elif top in ("folder_paths", "latent_preview"):
            assert is_host(name), f"{name} imports {other}"
        elif top == "matplotlib":
            assert name == "nodes.pictures.drawing", f"{name} imports {other}"
        elif top == "PIL":
            assert name in ("nodes.pictures.labelled_grid", "nodes.pictures.tensors"), f"{name} imports {other}"
        elif top in ("aiohttp", "server"):
            assert name == "nodes.routes", f"{name} imports {other}"
        else:
            assert top == "torch" or top in sys.stdlib_module_names, f"{name} imports {other}"


MAY_KNOW = ("nodes", "tests", "benchmarks", "tools")  # the host, beside the doors


def test_only_the_doors_the_nodes_the_tests_the_tools_and_the_benchmarks_know_the_host():
    hidden = {path for path in ROOT.iterdir() if path.name.startswith(".") or path.name == "output"}
    for path in (path for top in set(ROOT.iterdir()) - hidden for path in ([top] if top.is_file() else top.rglob("*"))):
        if path.suffix == ".py" and any(other.startswith("comfy") for other in imports_of(path)):
            assert is_host(name_of(path)) or name_of(path).partition(".")[0] in MAY_KNOW, path


def test_no_files_of_pack_tools_and_benchmarks_import_each_other_in_a_circle_also_not_for_a_type():
    names = {name_of(path): path for path in (*PACK, *AROUND)}
    folders = {name.removesuffix(".__init__"): name for name in names}
    graph = {name: {folders.get(other, other) for other in imports_of(path)} & {*names} for name, path in names.items()}
    assert sum(map(len, graph.values())) > 100
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, with the files of a circle


# Beside the pack, tools and benchmarks. Programs that measure networks of the tests take these from there.
MAY_USE = {
    "tools.evidence": {"benchmarks"},
    "benchmarks.cost": {"tests.host"},
    "benchmarks.layer_probe": {"tests.host"},
    "benchmarks.orders": {"tests.host"},
    "benchmarks.overhead": {"tests.host"},
    "benchmarks.probes": {"tests.host"},
}


@pytest.mark.parametrize("path", AROUND, ids=name_of)
def test_tools_do_not_need_the_benchmarks_or_the_fleet_and_none_of_them_the_tests(path):
    name = name_of(path)
    rooms = {"tools"} if name.startswith("tools.") else {"tools", "benchmarks", "fleet"}
    for other in imports_of(path):
        if other.partition(".")[0] in ("tools", "benchmarks", "tests", "fleet"):
            allowed = rooms | MAY_USE.get(name, set())
            assert any(f"{other}.".startswith(f"{room}.") for room in allowed), f"{name} imports {other}"


def test_one_file_knows_how_the_pack_becomes_importable():
    """No other file changes sys.path, runs a file by its path, or makes a module of one."""
    ways = {"path", "run_path", "run_module", "spec_from_file_location", "SourceFileLoader", "addsitedir"}
    found = set()
    for path in (*PACK, *AROUND, ROOT / "dev.py", *(ROOT / "tests").rglob("*.py")):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and node.attr in ways:
                owner = getattr(node.value, "id", getattr(node.value, "attr", ""))
                if node.attr != "path" or owner == "sys":
                    found.add(name_of(path))
    assert found == {"tools.imports"}


@pytest.mark.parametrize("path", METHODS, ids=name_of)
def test_a_method_imports_no_other_method(path):
    others = {name_of(other) for other in METHODS if other != path}
    assert not imports_of(path) & others


@pytest.mark.parametrize("path", PACK, ids=name_of)
def test_nothing_imports_the_nodes_but_the_packs_root_when_the_host_asks(path):
    imports_nodes = {other for other in imports_of(path) if other.partition(".")[0] == "nodes"}
    assert not imports_nodes or name_of(path) == "__init__" or name_of(path).startswith("nodes")


def test_the_packs_root_imports_nothing_before_the_host_asks():
    top = tree_of(ROOT / "__init__.py").body
    assert not [node for node in top if isinstance(node, (ast.Import, ast.ImportFrom))]


@pytest.mark.parametrize("path", PACK, ids=name_of)
def test_the_pack_imports_itself_only_by_relative_imports_since_its_folder_may_have_any_name(path):
    for node in ast.walk(tree_of(path)):
        absolute = []
        if isinstance(node, ast.Import):
            absolute = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            absolute = [node.module]
        assert not [name for name in absolute if name.partition(".")[0] in OURS | {"pack", ROOT.name}]


@pytest.mark.parametrize("path", PACK, ids=name_of)
def test_no_file_of_the_pack_prints_or_holds_an_absolute_path(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = re.search(r"(?:^|[\s\"'(=:])(/[\w.-]+/[\w.-]+|~/|[A-Za-z]:[\\/](?!/))", node.value)
            assert not found, f"line {node.lineno}: {found}"


@pytest.mark.parametrize("path", METHODS, ids=name_of)
def test_a_method_fits_on_a_few_screens_and_opens_with_its_equation_and_its_paper(path):
    text = path.read_text(encoding="utf-8")
    doc = ast.get_docstring(tree_of(path))
    assert len(text.splitlines()) <= 150
    assert re.search(r"[=→]", doc.splitlines()[0]), "the first line has the equation"
    assert re.search(r"arXiv:\d{4}\.\d{5}|doi:10\.", doc), "the docstring names the paper"


@pytest.mark.parametrize(
    ("folder", "registries"), [("guiders", {"RULES"}), ("patches", {"PERTURBATIONS", "PROMPT_GUIDANCES"})]
)
def test_every_method_file_is_registered_in_its_folders_tuple(folder, registries):
    tree = tree_of(ROOT / folder / "__init__.py")
    assigns = [n for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id in registries]
    assert len(assigns) == len(registries)
    registered = {element.id for assign in assigns for element in assign.value.elts}
    for path in methods(folder):
        classes = {node.name for node in tree_of(path).body if isinstance(node, ast.ClassDef)}
        assert classes & registered, f"{path.name} has none of {registries}"


def is_described(node: ast.AST) -> bool:
    """Whether a function or class has a docstring, or is a node, whose `about` says to the user what it is."""
    fields = {getattr(part.targets[0], "id", "") for part in getattr(node, "body", ()) if isinstance(part, ast.Assign)}
    return bool(ast.get_docstring(node)) or (isinstance(node, ast.ClassDef) and "about" in fields)


def public_names(path: Path) -> list[tuple[str, ast.AST]]:
    """(name, where it is defined) of a file's public functions, classes and methods."""
    found = []
    for node in tree_of(path).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.append((node.name, node))
        if isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef))]
            found += [(f"{node.name}.{part.name}", part) for part in methods]
    return [(name, node) for name, node in found if not any(part.startswith("_") for part in name.split("."))]


BASES = {"guiders.base", "patches.base", "nodes.schema"}
# What a contract says once: the abstract classes in base.py, and schema.Node, have the docstrings.
OF_A_CONTRACT = {
    "branches",
    "begin",
    "remembers",
    "attention",
    "time_embedding",
    "observe",
    "neutral",
    "random",
    "build",
    "foresee",
}


@pytest.mark.parametrize("path", PACK, ids=name_of)
def test_every_public_name_says_what_it_is(path):
    silent = [
        name
        for name, node in public_names(path)
        if not is_described(node) and (name_of(path) in BASES or name.split(".")[-1] not in OF_A_CONTRACT)
    ]
    assert not silent, f"{name_of(path)}: {', '.join(silent)} have no docstring"


@pytest.mark.parametrize("path", PACK, ids=name_of)
def test_no_attribute_is_born_in_the_middle_of_a_method(path):
    for kind in (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef)):
        functions = [part for part in kind.body if isinstance(part, ast.FunctionDef)]
        stores = {
            part.name: {
                node.attr
                for node in ast.walk(part)
                if isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and ast.unparse(node.value) == "self"
            }
            for part in functions
        }
        declared = {part.target.id for part in kind.body if isinstance(part, ast.AnnAssign)} | stores.pop(
            "__init__", set()
        )
        late = {name: born - declared for name, born in stores.items() if born - declared}
        assert not late, f"{kind.name} declares neither in its body nor in __init__: {late}"
