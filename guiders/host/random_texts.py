"""Texts of random tokens, by any text encoder of the host."""

from __future__ import annotations

import random
import re

LENGTH = 75  # tokens of a text: as many as CLIP takes between its start and its end
SPECIAL = re.compile(r"<[^<>]*\w[^<>]*>|\[/?[A-Z_]+\]|\[unused\d+\]")  # such as <pad>, <|im_start|>, <0x0A>, [CLS]


def random_texts(clip, size: int, seed: int) -> list[list]:
    """`size` encoded texts. Each token is any of the encoder's vocabulary but the special ones, all as likely; start,
    end, padding and the encoder's template are as around a prompt. Encoders of one vocabulary see the same text.

    Raises ValueError where the host's tokens or their vocabulary have another form."""
    kind = type(clip.tokenizer).__name__
    # What differs between two texts is the prompt; both words are one token in all of the host's vocabularies.
    prompts = [clip.tokenize(" ".join([word] * LENGTH)) for word in ("cat", "dog")]
    one, other = (prompt if isinstance(prompt, dict) else {"": prompt} for prompt in prompts)
    places = _differences(one, other)
    if not places:
        raise ValueError(f"{kind} does not show which tokens are the prompt's. Set conditions to gaussian or prompts")
    vocabularies = {name: _vocabulary(clip.tokenizer, name) for name in places}
    for name, vocabulary in vocabularies.items():
        if not vocabulary:
            raise ValueError(f"{kind} does not show the vocabulary of {name}. Set conditions to gaussian or prompts")

        ordinary = set(vocabulary)
        places[name] = [(part, place) for part, place in places[name] if one[name][part][place][0] in ordinary]

    def text(at: int):
        tokens = dict(one)
        for name, vocabulary in vocabularies.items():
            draw = random.Random(f"{seed} {at}")
            tokens[name] = [list(part) for part in one[name]]
            for part, place in places[name]:
                tokens[name][part][place] = (draw.choice(vocabulary), *tokens[name][part][place][1:])
        return tokens if isinstance(prompts[0], dict) else tokens[""]

    return [clip.encode_from_tokens_scheduled(text(at)) for at in range(size)]


def _differences(one: dict, other: dict) -> dict[str, list[tuple[int, int]]]:
    """For each encoder the (part, place) of the tokens between the first and the last that differ in two texts."""
    found = {}
    for name, parts in one.items():
        if isinstance(parts, list):
            pairs = list(zip(parts, other[name], strict=False))
            found[name] = [(part, place) for part, pair in enumerate(pairs) for place in _between(*pair)]
    return {name: places for name, places in found.items() if places}


def _between(one: list, other: list) -> range:
    start, end = 0, len(one)
    shared = min(len(one), len(other))
    while start < shared and one[start] == other[start]:
        start += 1
    while len(one) - end < shared - start and one[end - 1] == other[end - 1 + len(other) - len(one)]:
        end -= 1
    return range(start, end)


def _vocabulary(tokenizer, name: str) -> list[int]:
    """The numbers of the tokens that `name`'s text may hold; none where they cannot be found."""
    known = [part for part in (tokenizer, *vars(tokenizer).values()) if getattr(part, "inv_vocab", None)]
    named = [part for key, part in vars(tokenizer).items() if key in (name, f"clip_{name}") and part in known]
    if len(known) > 1:
        known = named
    if not known:
        return []
    words, inner, end = known[0].inv_vocab, known[0].tokenizer, known[0].end_token
    special = {known[0].start_token, known[0].pad_token if end is None else end}
    for attribute in ("all_special_ids", "added_tokens_decoder"):
        special.update(getattr(inner, attribute, ()))
    return sorted(
        number for number, word in words.items() if number not in special and not SPECIAL.fullmatch(str(word))
    )
