"""What README and the help pages say that can be computed is what is computed."""

import json
import re
from pathlib import Path

from pack.tools import evidence, node_table, support

ROOT = Path(__file__).resolve().parent.parent


def test_every_generated_page_is_what_python_dev_py_docs_makes_of_it():
    stale = [path.relative_to(ROOT).as_posix() for path in {**support.stale(), **evidence.stale()}]
    stale += [] if node_table.made() == node_table.PAGE.read_text("utf-8") else ["README.md: its tables of nodes"]
    assert not stale, f"These pages are out of date; python dev.py docs writes them anew: {', '.join(stale)}"


def test_the_readmes_have_the_tables_of_what_was_measured():
    own = dict.fromkeys(("quality: early", "quality: field", "high_cfg", "negatives"), "benchmarks/README.md")
    tables = {"cost": "README.md", "quality: overview": "README.md", **own}
    for table, page in tables.items():
        assert re.search(rf"<!-- {table} -->\n[^<]*\|.*?<!-- /", (ROOT / page).read_text("utf-8"), re.DOTALL), (
            page,
            table,
        )


def test_all_cells_are_of_commits_without_changes():
    """As benchmarks/README.md says. Else: python dev.py benchmark study --setting NAME --again, from a clean checkout"""
    for path in (ROOT / "benchmarks/results").glob("quality_*.jsonl"):
        records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        runs = {record["id"]: record["commit"] for record in records if record["kind"] == "run"}
        commits = {runs[record["run"]] for record in records if record["kind"] == "cell"}
        assert not [commit for commit in commits if "changes" in commit], (path.name, commits)
    for name in ("high_cfg", "negatives"):
        rows = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text("utf-8"))["rows"]
        assert not [row for row in rows if "changes" in row["commit"]]


def test_every_row_of_the_evidence_is_one_of_the_study_with_its_own_word_and_strengths():
    """Else: python dev.py benchmark study --setting NAME --again METHOD"""
    from pack.benchmarks.study.methods import ALL

    known = {method.name: method for method in ALL}
    for path in (ROOT / "benchmarks/results").glob("quality_*.jsonl"):
        records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for key in (record["key"] for record in records if record["kind"] == "cell"):
            if method := known.get(key["method"]):
                assert key["word"] == method.word and key["strength"] in method.strengths, (path.name, key)


def test_every_picture_and_file_that_a_page_names_is_there():
    for page in (*ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("benchmarks/*/*.md")):
        for name in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / name).exists(), f"{page.name}: {name}"
