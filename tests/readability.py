"""Whether somebody who learnt English at school and knows none of our words understands a text at the first reading."""

from __future__ import annotations

import re
from collections.abc import Iterator

# What a reader would stumble over → what to say instead. Formulas and limits may use the words of the field.
HARD = {
    r"\b(one|no|further|more|two|\d|without a|costs? a) rows?\b|\brows? more\b|row of the negative": "what time it takes",
    r"\b(a|one|no|each|further|\d) forwards?\b|\bforwards? of\b": "prediction, or what time it takes",
    r"\b(its|each|a|the|this) terms?\b|\b[Tt]erms of\b": "guidance, or what it adds",
    r"that stands? before|that stood before": "the nodes before it",
    r"\bmakes? of (it|that|this|them)\b|\bwhat it makes\b": "predicts",
    r"\bas (code|cfg|CFG) is\b": "like cfg",
    r"\bthose? of (others|another)'s\b|\bthat of\b": "name the thing again",
    r"\b(the )?(positive|negative|prompt|reference)'s (row|part|one)\b": "the prediction for the prompt",
    r"\bmostly enough\b": "usually enough",
    r"\b(its|their) own length\b|\blength of (its|their) own\b": "say which length",
    r"\ball the way\b(?!\*)": "from the first step to the last",
    r"\b[Uu]nconnected is\b": "if nothing is connected",
    r"\b(image|picture) tokens?\b": "part of the picture",
    r"\blogits?\b": "how strongly the attention looks at something",
    r"\bquer(y|ies)\b": "attention",
    r"\barchitectures?\b": "network, or model",
    r"\b(is|are|gets?) perturbed\b|\bperturbed (layer|network|row)": "made worse",
    r"\bhalves the\b": "takes half the time",
    r"\bmay do\b|\bwill do\b|\bwill not do\b": "is enough, or works",
    r"\bin (its|their|the) turn\b": "one after the other",
    r"\bbit for bit\b": "exactly",
    r"\b[Tt]he host\b": "ComfyUI",
    r"\battend(s|ed)? (to|over)\b": "look at",
    r"\bsaturates?\b": "makes colours too strong",
    r"\bevaluat(e|es|ed|ion)\b": "compute, or ask the model",
    r"\bweights? (of|in) (one|other|real)\b|\breal weights\b": "real models",
}
EASIER = {re.compile(pattern): instead for pattern, instead in HARD.items()}
OF_THE_FIELD = ("Formula", "Limits")  # sections of help pages for those who want to know exactly
END = re.compile(r"(?<=[.!?])\)?\s+(?=\S)")
WORD = re.compile(r"[^\W_]+(?:[-'’.,/][^\W_]+)*")


def faults(text: str, longest: int, plain: bool = True) -> list[str]:
    """What is wrong with a text: sentences of more than `longest` words and, where it is to be `plain`, hard words."""
    found = []
    for sentence in sentences(text):
        if (length := len(WORD.findall(sentence))) > longest:
            found.append(f"{length} words, at most {longest}: {sentence}")
        hits = [(hit, instead) for pattern, instead in EASIER.items() if plain and (hit := pattern.search(sentence))]
        found += [f'"{hit[0]}": say {instead}: {sentence}' for hit, instead in hits]
    return found


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text in Markdown. A line of a list, a heading and a cell of a table end one; a
    formula in a block is none."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    text = re.sub(r"^\[[^\]\n]+\]: \S+$|<!--.*?-->|!\[.*?\]\(.*?\)", "", text, flags=re.M)
    text = re.sub(r"`[^`\n]+`", "code", re.sub(r"\]\([^)\s]+\)|[\[\]*]", "", text))
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-#>|]|\d+\. ))|\\\n| \| ", text):
        yield from (part for part in END.split(" ".join(block.strip(" -#>|").split())) if part)


def faults_of_page(page: str, longest: int) -> list[str]:
    """What is wrong with a help page."""
    found = []
    for section in page.split("\n## "):
        title = section.partition("\n")[0]
        if title != "Inputs":  # are the tooltips
            found += faults(section, longest, plain=title not in OF_THE_FIELD)
    return found
