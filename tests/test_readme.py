"""What README and the help pages say that can be computed is what is computed."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_table_of_what_works_is_that_of_the_tests_there_and_in_the_help_pages():
    """Else: python benchmarks/support.py"""
    assert runpy.run_path(str(ROOT / "benchmarks" / "support.py"))["main"](["--check"]) == 0
