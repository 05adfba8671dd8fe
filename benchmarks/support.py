"""The table of what works on which architecture, from the tests' results into README.md and the nodes' help pages.

python dev.py test --update-support -k test_architectures     on each host version; then
python benchmarks/support.py                                   writes the table;  --check: fails where it is not there
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from patches.architectures import ARCHITECTURES, HALF_WAY, REFUSED, RULE  # noqa: E402

del sys.path[0]  # else the pack's nodes would hide the host's nodes.py

METHODS = ("PAG", "SEG", "SAG", "Skip Layer", "TSG")
BEGIN, END = "<!-- support: made by benchmarks/support.py -->", "<!-- /support -->"


def table(found: dict[str, dict[str, dict[str, str]]], skip: bool = False) -> str:
    """host version → architecture → method → what its tests have shown. `skip`: with the layers that are skipped."""
    versions = sorted(found, key=lambda version: [*map(int, version.split("."))])
    architectures = [row.name for row in ARCHITECTURES if any(row.name in found[version] for version in versions)]
    lines = [f"| | `auto` | {' | '.join(METHODS)} | ComfyUI |", f"|---|---|{'---|' * len(METHODS)}---|"]
    for name in architectures:
        row = next(row for row in ARCHITECTURES if row.name == name)
        auto, source = (row.auto_skip, row.skip_source) if skip else (row.auto, row.source)
        auto = f"`{auto}`" + " *" * (source == RULE)
        on = [version for version in versions if name in found[version]]
        cells = [_cell({version: found[version][name].get(method, "no") for version in on}) for method in METHODS]
        if skip and cells[METHODS.index("Skip Layer")] == "no":
            auto = ""
        lines.append(f"| {name} | {auto} | {' | '.join(cells)} | {_range(on)} |")
    refused = (f"{path.rpartition('.')[2]}: {why}" for path, why in REFUSED.items())
    notes = [
        f"\\* `{HALF_WAY}`: {RULE}. Where the others come from, Layer Map says.",
        f"Tried on ComfyUI {', '.join(versions)}. Refused by name: {'; '.join(refused)}.",
    ]
    return "\n".join([*lines, "", *notes])


def _range(versions: list[str]) -> str:
    return versions[0] if len(versions) == 1 else f"{versions[0]} – {versions[-1]}"


def _cell(on: dict[str, str]) -> str:
    """One word where all versions agree, else each with its own."""
    if len(set(on.values())) == 1:
        return on.popitem()[1]
    return ", ".join(f"{can} ({version})" for version, can in on.items())


def main(arguments: list[str]) -> int:
    found, stale = json.loads((ROOT / "tests/golden/support.json").read_text("utf-8")), {}
    for page in (ROOT / "README.md", *sorted((ROOT / "web/docs").glob("*.md"))):
        text = page.read_text("utf-8")
        made = f"{BEGIN}\n{table(found, skip='SkipLayer' in page.name)}\n{END}"
        new = re.sub(f"{BEGIN}.*?{END}", lambda _, made=made: made, text, flags=re.DOTALL)
        if new != text:
            stale[page] = new
    if "--check" in arguments:
        print(*(f"{page.relative_to(ROOT)} is not up to date" for page in stale), sep="\n", end="")
        return int(bool(stale))
    for page, new in stale.items():
        page.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
