"""The words of the help pages and of the notes in the examples. host/test_words.py reads those of the nodes."""

import json
from pathlib import Path

import pytest
from pack.tests.readability import faults, faults_of_page, sentences

ROOT = Path(__file__).resolve().parent.parent
PAGES = {path.stem: path for path in sorted((ROOT / "web/docs").glob("*.md"))}
EXAMPLES = {path.stem: path for path in sorted((ROOT / "workflows").glob("*.json"))}


@pytest.mark.parametrize("path", PAGES.values(), ids=PAGES)
def test_a_help_page_is_understood_at_the_first_reading(path):
    assert faults_of_page(path.read_text("utf-8"), longest=35) == []


@pytest.mark.parametrize("path", EXAMPLES.values(), ids=EXAMPLES)
def test_the_notes_of_an_example_are_understood_at_the_first_reading(path):
    nodes = json.loads(path.read_text("utf-8"))["nodes"]
    notes = [node["widgets_values"][0] for node in nodes if node["type"] in ("Note", "MarkdownNote")]
    assert notes and [fault for note in notes for fault in faults(note, longest=35)] == []


LONG = "It " + "goes on " * 20 + "and ends."
BAD = {  # what users stumbled over, in the texts of an earlier version
    "One more row per step.": "row",
    "Costs a forward of one row per step": "forward",
    "Terms of other nodes on it stay; all act together.": "Terms of",
    "It blurs the picture, and moves away from what it makes of that.": "makes of that",
    "It acts on all that stands before it.": "that stands before",
    "How far to move away, counted as `cfg` is; 1 is off.": "as",
    "It moves away from that of the weak model.": "that of",
    "PAG and SEG of the same layers do much the same; one is mostly enough.": "mostly enough",
    "Both models gain from a length of their own.": "length of their own",
    "An optional curve; unconnected is 1 all the way.": "all the way",
    "Whether an image token always sees itself.": "image token",
    "It takes out of the guidance what only saturates.": "saturates",
    LONG: "words, at most 30",
}


@pytest.mark.parametrize(("sentence", "named"), BAD.items(), ids=BAD.values())
def test_the_check_finds_what_users_stumbled_over(sentence, named):
    assert any(named in fault for fault in faults(f"A good sentence. {sentence}", longest=30))


def test_hard_words_are_for_formulas_and_limits_alone_and_long_sentences_for_none():
    page = f"# Node\n\nGood.\n\n## {{}}\n\nThe logits of each query. {LONG}\n"
    assert len(faults_of_page(page.format("Cost"), longest=35)) == 3
    assert len(faults_of_page(page.format("Limits"), longest=35)) == 1


def test_a_sentence_ends_where_a_reader_takes_a_breath():
    text = "# A title\n\nOne, 0.5 to 1. *Two* of [PAG]: `code here`\n- three\n- four\\\n  five\n\n| six | seven |\n\n[PAG]: https://x.y\n"
    assert [*sentences(text)] == [
        "A title",
        "One, 0.5 to 1.",
        "Two of PAG: code",
        "three",
        "four",
        "five",
        "six",
        "seven",
    ]
