"""Random prompts on a running host: a picture, or a sentence; and the next prompt never knows."""

import itertools
import json
import re

import pytest
import torch
from pack.tests.wild.graphs import DEMO, FLUX, SD3, SD15, Generator, checkpoint, plain
from pack.tests.wild.hosts import Answer, ask

SHORT, LONG = 72, 384
WORDS_OF_PYTHON = re.compile(
    "object has no attribute|unsupported operand|unexpected keyword|invalid literal|could not convert|index out of range"
    "|values to unpack|must be real number|not subscriptable|Exceeds the limit|Traceback|<.* object at 0x"
)


def is_picture(answer: Answer) -> bool:
    return not answer.error and answer.is_finite and bool(answer.latents)


def is_sentence(answer: Answer, titles: list[str]) -> bool:
    """Whether it is an error in the pack's words, that a person would read."""
    name = answer.error.partition(": ")[0]
    return (
        any(name in title for title in titles) and len(answer.error) < 4000 and not WORDS_OF_PYTHON.search(answer.error)
    )


def fails_alike(answer: Answer, other: Answer) -> bool:
    """In the same place with the same words, whatever the sizes in them; or both are not finite."""
    if not answer.error:
        return not other.error and not other.is_finite
    words = [re.sub(r"\d+", "0", each.error) for each in (answer, other)]
    return (answer.kind, answer.node, words[0]) == (other.kind, other.node, words[1])


@pytest.fixture(scope="module")
def generator(server, small_files):
    families = [SD15, SD3, FLUX, DEMO, checkpoint(small_files["WAN"], "EmptyHunyuanLatentVideo")]
    return Generator(server.ask("/object_info"), families, small_files["CLIP"])


@pytest.fixture(scope="module")
def is_as_before(server, generator):
    """Whether a prompt without our nodes gives what it gave before, in the same process."""
    turn = itertools.count()

    def latent(family):
        answer = ask(server, plain(family, next(turn), steps=1))
        assert answer.latents and answer.is_finite, answer
        return answer.latents[0]

    before = {family: latent(family) for family in generator.families}
    return lambda family: torch.equal(latent(family), before[family])


def test_the_short_form_has_every_node_of_ours_in_it(generator):
    prompts = [generator.prompt(seed)[0] for seed in range(SHORT)]
    assert {node["class_type"] for prompt in prompts for node in prompt.values()} >= {*generator.ours}
    assert len(generator.ours) <= SHORT


@pytest.mark.parametrize(
    "seed", [*range(SHORT), *(pytest.param(s, marks=pytest.mark.slow) for s in range(SHORT, LONG))]
)
def test_a_random_prompt_gives_a_picture_or_a_sentence_and_leaves_the_host_as_it_was(
    seed, server, generator, is_as_before
):
    prompt, family = generator.prompt(seed)
    answer = ask(server, prompt)
    assert is_as_before(family)
    if not is_picture(answer) and not is_sentence(answer, generator.titles):
        without = ask(server, generator.without_ours(prompt))
        assert fails_alike(answer, without), f"{answer}\nwithout our nodes {without}\n{json.dumps(prompt, indent=1)}"
