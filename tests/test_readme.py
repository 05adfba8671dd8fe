"""What README says that can be computed is what is computed."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_table_of_what_works_is_that_of_the_tests():
    """Else: python benchmarks/support.py"""
    assert runpy.run_path(str(ROOT / "benchmarks" / "support.py"))["main"](["--check"]) == 0
