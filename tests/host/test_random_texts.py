"""Random tokens: every token of a text is drawn from the encoder's whole vocabulary, by any tokenizer of the host."""

import functools
import importlib
import io
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import comfy.sd
import comfy.sd1_clip
import pytest
import sentencepiece
import tokenizers
import torch
from pack.guiders.host import random_tokens
from pack.guiders.host.random_texts import LENGTH, random_texts
from pack.tests.host import networks
from pack.tests.host.harness import close, network, sample
from pack.tests.host.test_icg import icg
from transformers import PreTrainedTokenizerBase

HOST = Path(comfy.sd.__file__).parent
SOURCE = (HOST / "sd.py").read_text(encoding="utf-8") + (HOST / "supported_models.py").read_text(encoding="utf-8")
FOUND = sorted(
    set(re.findall(r"text_encoders\.(\w+)\.(\w*Tokenizer\w*)|\b(sd1_clip|sdxl_clip)\.(\w*Tokenizer\w*)", SOURCE))
)
NEED_MORE = {
    "ErnieTokenizer",  # the host reads the vocabulary of these two by an older transformers only
    "Flux2Tokenizer",
    "MiniMaxMusic3Tokenizer",  # the host takes no vocabulary but its own checkpoint's
}
NAMES = [(a or c, b or d) for a, b, c, d in FOUND if (b or d) not in NEED_MORE]


@functools.cache
def checkpoint_files() -> dict:
    """Small vocabularies, as those that come with a checkpoint of the text encoder."""
    words = [f"{a}{b}{c}" for a in "bcdfg" for b in "aeo" for c in "tgnrs"]
    sentences = [" ".join(words[at:] + words[:at]) for at in range(len(words))] + ["the cat", "the dog"] * 50
    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=pieces, vocab_size=150, hard_vocab_limit=False, minloglevel=2,
        bos_id=2, eos_id=1, unk_id=3, pad_id=0,
    )  # fmt: skip
    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.train_from_iterator(
        sentences, tokenizers.trainers.BpeTrainer(vocab_size=200, special_tokens=["<|start|>", "<|end|>"])
    )
    spiece = pieces.getvalue()
    return {
        "spiece_model": spiece, "gemma_spiece_model": spiece, "jina_spiece_model": spiece, "mt5xl.spiece_model": spiece,
        "tokenizer_json": raw.to_str().encode(),
    }  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """Many tokenizers of the host share a vocabulary, which takes a second to read."""
    read = PreTrainedTokenizerBase.from_pretrained.__func__

    @functools.cache
    def cached(kind, path, **kwargs):
        return read(kind, path, **kwargs)

    with mock.patch.object(PreTrainedTokenizerBase, "from_pretrained", classmethod(cached)):
        yield


def clip_of(tokenizer):
    """The host's CLIP with this tokenizer, and tokens for an encoding."""
    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer, clip.tokenizer_options = tokenizer, {}
    clip.encode_from_tokens_scheduled = lambda tokens: tokens
    return clip


def tokenizer_of(module: str, name: str):
    folder = "comfy" if module in ("sd1_clip", "sdxl_clip") else "comfy.text_encoders"
    return getattr(importlib.import_module(f"{folder}.{module}"), name)(tokenizer_data=dict(checkpoint_files()))


def by_encoder(tokens) -> dict:
    tokens = tokens if isinstance(tokens, dict) else {"": tokens}
    return {
        name: [[token[0] for token in part] for part in parts]
        for name, parts in tokens.items()
        if isinstance(parts, list)
    }


def places_of(texts: list[dict], key: str) -> set:
    """(part, place) of the tokens that are not the same in all texts."""
    return {
        (part, place)
        for part, tokens in enumerate(zip(*(text[key] for text in texts), strict=True))
        for place, several in enumerate(zip(*tokens, strict=True))
        if len(set(several)) > 1
    }


@pytest.mark.parametrize(("module", "name"), NAMES, ids=str)
def test_all_tokens_of_the_prompt_are_drawn_and_none_around_it(module, name):
    clip = clip_of(tokenizer_of(module, name))
    plain = [by_encoder(clip.tokenize(" ".join([word] * LENGTH))) for word in ("cat", "dog")]
    texts = [by_encoder(text) for text in random_texts(clip, 4, seed=1)]
    assert texts == [by_encoder(text) for text in random_texts(clip, 4, seed=1)]
    assert texts != [by_encoder(text) for text in random_texts(clip, 4, seed=2)]
    assert any(places_of(plain, key) for key in plain[0])
    for key in plain[0]:
        places = places_of(plain, key)
        assert places_of([*texts, plain[0]], key) == places and (len(places) in (0, LENGTH) or name.startswith("SAM3"))
        own = next((part for at, part in vars(clip.tokenizer).items() if at in (key, f"clip_{key}")), clip.tokenizer)
        special = set(getattr(getattr(own, "tokenizer", None), "all_special_ids", ()))
        assert not special & {text[key][part][place] for text in texts for part, place in places}


def test_each_token_is_as_likely_as_any_other_and_both_encoders_of_sdxl_see_one_text():
    clip = clip_of(tokenizer_of("sdxl_clip", "SDXLTokenizer"))
    texts = [by_encoder(text) for text in random_texts(clip, 300, seed=0)]
    drawn = [token for text in texts for token in text["l"][0][1:-1]]
    words = clip.tokenizer.clip_l.inv_vocab
    buckets = Counter(50 * token // len(words) for token in drawn)
    expected = len(drawn) / 50
    assert len(drawn) == 300 * LENGTH and sum((n - expected) ** 2 / expected for n in buckets.values()) < 90  # χ², 49
    share = sum(not words[token].removesuffix("</w>").isalpha() for token in drawn) / len(drawn)
    assert abs(share - sum(not word.removesuffix("</w>").isalpha() for word in words.values()) / len(words)) < 0.02
    assert all(text["l"][0][1:-1] == text["g"][0][1:-1] for text in texts)


def small_clip():
    """The host's CLIP-L, two narrow layers of it."""
    size = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 2}
    target = SimpleNamespace(params={}, clip=comfy.sd1_clip.SD1ClipModel, tokenizer=comfy.sd1_clip.SD1Tokenizer)
    clip = comfy.sd.CLIP(target, model_options={"clip_l_model_config": {**size, "projection_dim": 32}})
    networks.fill(clip.cond_stage_model, 0)
    return clip


def test_the_texts_are_encoded_by_the_clip_and_drawn_by_the_seed():
    clip, model = small_clip(), network("unet")
    pool, again, other = (random_tokens(clip, 3, seed) for seed in (1, 1, 2))
    state = torch.random.get_rng_state()
    encoded = [text[0][0] for text in pool.conditions]
    assert all(text.shape == (1, 77, 32) for text in encoded) and close(encoded[0], encoded[1]) > 0.01
    assert all(torch.equal(*pair) for pair in zip(encoded, (text[0][0] for text in again.conditions), strict=True))
    assert not torch.equal(encoded[0], other.conditions[0][0][0])
    result = sample(icg(model, pool), cfg=1.0)
    assert torch.equal(torch.random.get_rng_state(), state) and close(result, sample(model, cfg=1.0)) > 1e-3


def test_a_clip_that_shows_no_tokens_or_no_vocabulary_is_refused_by_name():
    class Closed:
        def tokenize_with_weights(self, text, *args, **kwargs):
            return {"closed": [[(sum(map(ord, word)), 1.0) for word in text.split()] if self.open else [(1, 1.0)]]}

    clip = clip_of(Closed())
    for clip.tokenizer.open, words in ((False, "which tokens are the prompt's"), (True, "the vocabulary of closed")):
        with pytest.raises(ValueError, match=f"Closed does not show {words}.* gaussian or prompts"):
            random_tokens(clip, 2, 0)
