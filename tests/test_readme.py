"""What README and the help pages say that can be computed is what is computed."""

import json
import re
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_table_of_what_works_is_that_of_the_tests_there_and_in_the_help_pages():
    """Else: python benchmarks/support.py"""
    assert runpy.run_path(str(ROOT / "benchmarks" / "support.py"))["main"](["--check"]) == 0


def test_the_tables_of_the_evidence_are_those_of_its_results():
    """Else: python benchmarks/quality.py --only-report"""
    from pack.benchmarks.study.summary import in_step

    for page in ("benchmarks/README.md", "README.md"):
        text = (ROOT / page).read_text("utf-8")
        assert in_step(text, ROOT / "benchmarks/results") == text and "| real pictures |" in text


def test_all_cells_of_a_setting_are_of_one_commit_without_changes():
    """As benchmarks/README.md says. Else: python benchmarks/quality.py --setting NAME --again, from a clean checkout"""
    for path in (ROOT / "benchmarks/results").glob("quality_*.jsonl"):
        records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        runs = {record["id"]: record["commit"] for record in records if record["kind"] == "run"}
        commits = {runs[record["run"]] for record in records if record["kind"] == "cell"}
        assert len(commits) == 1 and "changes" not in min(commits), (path.name, commits)


def test_the_tables_of_costs_are_those_of_their_results():
    """Else: python benchmarks/cost.py"""
    from pack.benchmarks import cost

    path, readme = ROOT / "benchmarks/results/cost.json", (ROOT / "README.md").read_text("utf-8")
    results = json.loads(path.read_text("utf-8"))
    assert cost.page(results) == path.with_suffix(".md").read_text("utf-8")
    assert cost.in_step(readme, results) == readme and "<!-- cost -->" in readme


def test_every_picture_and_file_that_a_page_names_is_there():
    for page in (*ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("benchmarks/*/*.md")):
        for name in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / name).exists(), f"{page.name}: {name}"
