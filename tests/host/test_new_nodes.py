"""What each node needs beside its code, in one message."""

import pytest
from pack.tools import completeness, help_pages, locales

SCHEMAS = locales.schemas()


def test_no_node_lacks_what_a_user_would_miss(record_property):
    """Its help page. What else it lacks stands in the same message, and is only noted."""
    text = completeness.message(SCHEMAS)
    record_property("note", text)
    assert not [lack for schema in SCHEMAS for lack in completeness.lacks_of(schema) if lack.is_missed], f"\n{text}"


def test_what_a_help_page_copies_is_what_the_nodes_and_examples_say():
    stale = sorted(path.name for path in help_pages.stale(SCHEMAS))
    assert not stale, f"python dev.py docs writes these anew: {', '.join(stale)}"


def test_a_page_gets_its_title_opening_inputs_examples_and_links_and_keeps_the_rest():
    stop = next(schema for schema in SCHEMAS if schema.node_id == "BeyondCFGStop")
    page = (
        "# Old\n\nOld.\n\n![A](b.jpg)\n\n## Inputs\n\n- `old`: old\n\nMore.\n\n## Limits\n\nSee [PAG] and [Nobody].\n"
    )
    examples = {"big": {"BeyondCFGStop", "BeyondCFGPAG"}, "small": {"BeyondCFGStop"}, "other": set()}
    made = help_pages.made(page, stop, {"PAG": "BeyondCFGPAG"}, examples)
    title, opening, picture, try_it, inputs, more, limits, text, links = (
        part for part in made.replace("## Inputs\n\n", "").split("\n\n")
    )
    assert title == f"# {stop.display_name}" and opening == stop.description.removesuffix(" (arXiv:2312.12487)")
    assert picture == "![A](b.jpg)" and try_it.endswith("then *small* or *big*.")
    assert [line.partition("`:")[0] for line in inputs.splitlines()] == ["- `model", "- `cosine", "- `length"]
    assert (more, limits, text) == ("More.", "## Limits", "See [PAG] and [Nobody].")
    assert links == f"[PAG]: {help_pages.ON_GITHUB}/web/docs/BeyondCFGPAG.md\n"
    assert help_pages.made(made, stop, {"PAG": "BeyondCFGPAG"}, examples) == made


@pytest.fixture
def repository(tmp_path):
    """One in which no node has anything."""
    for folder in ("web/docs", "workflows/api", "tests/golden"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "tests/golden/schemas.json").write_text("{}", "utf-8")
    (tmp_path / "README.md").write_text("## Papers\n", "utf-8")
    return tmp_path


PAGE = """# Perturbed-Attention Guidance (PAG)

## Inputs

- `model`: the model
- `scale`: how strongly
- `strength`: how strongly

## Good values

To be written.
"""


def test_what_is_lacking_is_named_once_for_each_node_with_what_is_wrong_in_a_page(repository):
    pag = next(schema for schema in SCHEMAS if schema.node_id == "BeyondCFGPAG")
    missed = [lack.what for lack in completeness.lacks_of(pag, repository) if lack.is_missed]
    assert missed == ["no help page, web/docs/BeyondCFGPAG.md"]
    (repository / "web/docs/BeyondCFGPAG.md").write_text(PAGE, "utf-8")
    lacks = completeness.lacks_of(pag, repository)
    assert [lack.what for lack in lacks if lack.is_missed] == [
        "its help page does not name the inputs layers, start_percent, end_percent, blend, target, schedule, region",
        "its help page names inputs that it does not have: strength",
        "its help page does not name its paper, 2403.17377",
        'its help page has nothing under "Good values"',
    ]
    others = [lack.what for lack in lacks if not lack.is_missed]
    assert [what for what in others if not what.startswith("no Chinese")] == [
        "no picture for its help page, web/docs/BeyondCFGPAG.jpg",
        "no example workflow has it",
        "tests/golden/schemas.json does not hold its inputs (python dev.py test --update-golden)",
        "its paper, 2403.17377, is not among the papers in README.md",
    ]
