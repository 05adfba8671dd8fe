"""A negative prompt inside the networks, held against the same made in another way: each prompt in a row of its own, and
the picture of both rows tied to one another in every attention by the authors' formula."""

import contextlib
import dataclasses
import functools
import re
import sys

import pytest
import torch
from pack.patches import NormalizedAttention
from pack.patches.architectures import ARCHITECTURES
from pack.patches.host import Plan, Proofs, architecture_of, choose_prompt_layers, planned
from pack.patches.host.lookup import network_of
from pack.patches.host.prompts import NegativePrompt
from pack.tests.host import invented, networks
from pack.tests.host.harness import SHARED, close
from pack.tests.host.zoo import SPECIMENS
from pack.tests.host.zoo.specimen import has

POSITIVE, NEGATIVE, OTHER = 1, 5, 9  # seeds
FUNCTIONS = ("optimized_attention", "optimized_attention_masked")
SHORTER = 4  # so that a text has another length than a picture
BESIDE = {  # specimens whose text holds what no negative prompt can act with
    "HunyuanVideo I2V", "HunyuanVideo 1.5", "HunyuanImage 2.1", "Z-Image Omni", "Z-Image, reference",
}  # fmt: skip


def with_shorter_text(specimen):
    """`specimen` with a text of another length than its picture has tokens, since a test tells them by their number."""
    conds = dict(specimen.conds)
    tokens, channels = conds["c_crossattn"]
    conds["c_crossattn"] = (tokens - SHORTER, channels)
    if "num_tokens" in conds:
        conds["num_tokens"] -= SHORTER
    if "attention_mask" in conds:
        conds["attention_mask"] = lambda rows, mask=conds["attention_mask"]: mask(rows)[:, : tokens - SHORTER]
    return dataclasses.replace(specimen, conds=conds)


def able() -> list:
    """The specimens in which a negative prompt can act."""
    rows = {row.name: row for row in ARCHITECTURES}
    return [
        with_shorter_text(one)
        for one in SPECIMENS
        if not rows[one.row].no_prompt and one.name not in BESIDE and "c_crossattn" in one.conds
    ]


def call(model, x, conds, plan=None):
    options = {"cond_or_uncond": [0] * len(x), "uuids": list(range(len(x)))}
    if plan is not None:
        chunks = len(plan.chunks)
        options = planned({"cond_or_uncond": [0] * chunks, "uuids": list(range(chunks))}, plan)
    sigma = model.model.model_sampling.percent_to_sigma(0.4)
    with torch.no_grad():
        return model.model.apply_model(x, torch.full((len(x),), float(sigma)), transformer_options=options, **conds)


def negative_of(specimen, guidance, seed=NEGATIVE, tokens=None, **more) -> NegativePrompt:
    _, conds = specimen.inputs([seed])
    mask = conds.get("attention_mask")
    return NegativePrompt(
        guidance, conds["c_crossattn"][:, :tokens], None if mask is None else mask[:, :tokens], **more
    )


def together(specimen, model, guidance, **more):
    """One row with both prompts."""
    negative = negative_of(specimen, guidance, **more)
    return call(model, *specimen.inputs([POSITIVE]), Plan((None,), Proofs([guidance]), None, negatives=(negative,)))


def nag(positive, negative, guidance):
    """As the authors' own function has it, of [rows, tokens, channels]."""
    guided = positive * guidance.scale - negative * (guidance.scale - 1)
    longer = guided.norm(p=1, dim=-1, keepdim=True) / positive.norm(p=1, dim=-1, keepdim=True)
    guided = guided * torch.minimum(longer, longer.new_full((1,), guidance.tau)) / longer
    return guided * guidance.alpha + positive * (1 - guidance.alpha)


def apart(specimen, model, guidance, monkeypatch):
    """A row for each prompt, whose pictures are the same: what each gets in an attention is the guided one."""
    x, conds = specimen.inputs([POSITIVE, POSITIVE])
    _, of_negative = specimen.inputs([NEGATIVE])
    conds["c_crossattn"] = torch.cat([conds["c_crossattn"][:1], of_negative["c_crossattn"]])
    row, network = architecture_of(model), network_of(model)
    place = row.place_of_text
    multiple = getattr(network, row.text.multiple or "none", None) or 1
    text = conds["c_crossattn"].shape[1]
    text += -text % multiple

    def tied(function, q, k, v, heads, *args, **kwargs):
        out = function(q, k, v, heads, *args, **kwargs)
        axis = 2 if kwargs.get("skip_reshape") else 1
        tokens, keys = q.shape[axis], k.shape[axis]
        if tokens == text or keys < text or (place == "keys" and keys != text):
            return out  # the text's own, or an attention without it
        rows = out.transpose(1, 2).flatten(2) if kwargs.get("skip_output_reshape") else out.clone()
        picture = {"first": slice(text, tokens), "last": slice(0, tokens - text), "keys": slice(0, tokens)}[place]
        rows[:, picture] = nag(rows[:1, picture], rows[1:, picture], guidance)
        return rows.unflatten(2, (heads, -1)).transpose(1, 2) if kwargs.get("skip_output_reshape") else rows

    with replaced_attention(monkeypatch, tied):
        return call(model, x, conds)[:1]


@contextlib.contextmanager
def replaced_attention(monkeypatch, replacement):
    """Within this context the host's networks attend by replacement(the host's own function, ...)."""
    depth = []

    def outermost(function, *args, **kwargs):
        if depth:
            return function(*args, **kwargs)
        depth.append(True)
        try:
            return replacement(function, *args, **kwargs)
        finally:
            depth.pop()

    with monkeypatch.context() as patch:
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith("comfy.ldm."):
                for name in FUNCTIONS:
                    if hasattr(module, name):
                        patch.setattr(module, name, functools.partial(outermost, getattr(module, name)))
        yield


@pytest.fixture(params=able(), ids=str)
def specimen(request):
    if request.param.since and not has(request.param.since):
        pytest.skip(f"this host has no {request.param.since}")
    return request.param


def layers_of(model):
    return architecture_of(model).prompt_layers(network_of(model))


def test_nag_is_the_authors_formula_with_each_prompt_in_a_row_of_its_own(specimen, model, monkeypatch, supports):
    supports(specimen.row, "NAG", "yes")
    guidance = NormalizedAttention(layers_of(model), 4.0, 1.5, 0.5)
    plain = call(model, *specimen.inputs([POSITIVE]))
    ours, theirs = together(specimen, model, guidance), apart(specimen, model, guidance, monkeypatch)
    assert close(ours, theirs) < 1e-5 < 1e-3 < close(ours, plain)


def test_rows_of_others_are_what_they_are_and_a_region_is_where_the_picture_is(specimen, model):
    guidance = NormalizedAttention(layers_of(model), 4.0, 1.5, 0.5)
    inputs = specimen.inputs([OTHER, POSITIVE])
    plain, alone = call(model, *inputs), together(specimen, model, guidance, tokens=6)
    negatives = (None, negative_of(specimen, guidance, tokens=6))
    both = call(model, *inputs, Plan((None, None), Proofs([guidance]), None, negatives=negatives))
    assert close(both[:1], plain[:1]) < 1e-5 and close(both[1:], alone) < 1e-5
    if "latent_shapes" in specimen.conds or len(specimen.latent) < 3:
        return  # a region is of one latent, and of a picture
    ones = torch.ones(1, 1, *specimen.latent[1:])
    everywhere, nowhere = (together(specimen, model, guidance, tokens=6, region=ones * at) for at in (1, 0))
    assert close(nowhere, plain[1:]) < 1e-5
    beside = {"ref_latents", "reference_latent", "keyframe_idxs", "context_latents"} & specimen.conds.keys()
    if not beside and not getattr(network_of(model), "pad_tokens_multiple", None):
        assert close(everywhere, alone) < 1e-5  # else a region leaves the tokens of references and padding alone


REFUSED = {row.name: row for row in ARCHITECTURES if row.no_prompt}


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_in_which_no_negative_can_act_is_refused_with_the_reason(name, supports):
    specimen = next(one for one in SPECIMENS if one.row == name)
    if specimen.since and not has(specimen.since):
        pytest.skip(f"this host has no {specimen.since}")
    supports(name, "NAG", "no")
    with pytest.raises(
        ValueError, match=re.escape(f"in the attention of {name}: {REFUSED[name].no_prompt}. CFG works here")
    ):
        choose_prompt_layers(SHARED.get(specimen.name, specimen.build), "auto")


@pytest.mark.parametrize("name", sorted(BESIDE))
def test_a_text_that_holds_other_things_is_refused_when_it_comes(name):
    specimen = next(one for one in SPECIMENS if one.name == name)
    if specimen.since and not has(specimen.since):
        pytest.skip(f"this host has no {specimen.since}")
    model = SHARED.get(specimen.name, specimen.build)
    guidance = NormalizedAttention(layers_of(model), 4.0, 1.5, 0.5)
    with pytest.raises(RuntimeError, match=r"NAG: no negative prompt can act in .*: its text is put together with"):
        together(specimen, model, guidance)


def test_a_network_without_a_row_and_one_that_attends_to_pictures_are_refused():
    with pytest.raises(ValueError, match=r"probes do not tell which of its tokens are text\. CFG works here"):
        choose_prompt_layers(invented.model("text last"), "auto")
    with pytest.raises(ValueError, match=r"it attends to a picture and not to a text\. CFG works here"):
        choose_prompt_layers(networks.svd(), "auto")
