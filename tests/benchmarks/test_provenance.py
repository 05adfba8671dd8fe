"""What a result says of the code that made it."""

import subprocess

import pytest
from pack.benchmarks import provenance


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder with a file of code and one of results, both committed."""
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    for name in ("benchmarks/quality.py", "benchmarks/results/quality.jsonl"):
        (tmp_path / name).write_text("one\n")
    author = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "One"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_a_commit_is_with_changes_where_code_is_changed_and_not_where_results_are(repository):
    def commit():
        return provenance.facts_of_run("study", [])["commit"]

    clean = commit()
    assert len(clean) == 12
    (repository / "benchmarks/results/quality.jsonl").write_text("one\ntwo\n")  # as the setting before has left it
    assert commit() == clean
    (repository / "benchmarks/quality.py").write_text("two\n")
    assert commit() == f"{clean} with changes"
