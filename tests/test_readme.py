"""What README and the help pages say that can be computed is what is computed."""

import json
import re
from pathlib import Path

from pack.tools import support

ROOT = Path(__file__).resolve().parent.parent


def test_the_table_of_what_works_is_that_of_the_tests_there_and_in_the_help_pages():
    """Else: python dev.py docs"""
    assert not support.stale()


def test_the_tables_of_the_evidence_are_those_of_its_results():
    """Else: python dev.py benchmark study --only-report"""
    from pack.benchmarks.study.summary import in_step

    for page in ("benchmarks/README.md", "README.md"):
        text = (ROOT / page).read_text("utf-8")
        assert in_step(text, ROOT / "benchmarks/results") == text and "| real pictures |" in text


def test_all_cells_are_of_commits_without_changes():
    """As benchmarks/README.md says. Else: python dev.py benchmark study --setting NAME --again, from a clean checkout"""
    for path in (ROOT / "benchmarks/results").glob("quality_*.jsonl"):
        records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        runs = {record["id"]: record["commit"] for record in records if record["kind"] == "run"}
        commits = {runs[record["run"]] for record in records if record["kind"] == "cell"}
        assert not [commit for commit in commits if "changes" in commit], (path.name, commits)


def test_every_row_of_the_evidence_is_one_of_the_study_with_its_own_word_and_strengths():
    """Else: python dev.py benchmark study --setting NAME --again METHOD"""
    from pack.benchmarks.study.methods import METHODS

    known = {method.name: method for method in METHODS}
    for path in (ROOT / "benchmarks/results").glob("quality_*.jsonl"):
        records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for key in (record["key"] for record in records if record["kind"] == "cell"):
            if method := known.get(key["method"]):
                assert key["word"] == method.word and key["strength"] in method.strengths, (path.name, key)


def test_the_tables_of_costs_are_those_of_their_results():
    """Else: python dev.py benchmark cost"""
    from pack.benchmarks import cost

    path, readme = ROOT / "benchmarks/results/cost.json", (ROOT / "README.md").read_text("utf-8")
    results = json.loads(path.read_text("utf-8"))
    assert cost.page(results) == path.with_suffix(".md").read_text("utf-8")
    assert cost.in_step(readme, results) == readme and "<!-- cost -->" in readme


def test_every_picture_and_file_that_a_page_names_is_there():
    for page in (*ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("benchmarks/*/*.md")):
        for name in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / name).exists(), f"{page.name}: {name}"
