"""ICG's condition is the positive with another text, whatever the network: all of its text, and nothing else of it."""

import inspect
import re

import comfy.model_base
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from pack.guiders import host
from pack.guiders.host.texts import ELSE, TEXT
from pack.guiders.independent_condition import Pool
from pack.tests.host import networks
from pack.tests.host.harness import SHARED, close, guider_of
from pack.tests.host.test_icg import icg
from pack.tests.host.zoo import SPECIMENS
from pack.tests.host.zoo.conditionings import conditioning, has_text, latent
from pack.tests.host.zoo.specimen import Specimen, has

WITH_TEXT = [one for one in SPECIMENS if has_text(one) and (not one.since or has(one.since))]
EVERY = pytest.mark.parametrize("specimen", WITH_TEXT, ids=str)
# What nodes add to a prompt. The host's default of each is another.
MINE = {
    "width": 512, "height": 1344, "crop_w": 64, "crop_h": 32, "target_width": 640, "target_height": 768,
    "aesthetic_score": 4.0, "guidance": 2.0, "frame_rate": 12, "seconds_start": 2, "seconds_total": 9,
}  # fmt: skip
THEIRS = {key: 2 * value for key, value in MINE.items()}


def sampled(model, specimen, conds, cfg, batch=1):
    """One model call in the middle of sampling; of what a sample packs, the first. All samples are the same."""
    noise = several(comfy.sample.prepare_noise(latent(specimen), 3), batch)
    sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([0.0, 0.0])
    sigmas[0] = float(model.get_model_object("model_sampling").percent_to_sigma(0.5))
    guider = guider_of(model, *conds, cfg)
    result = guider.sample(noise, latent(specimen, batch), sampler, sigmas, disable_pbar=True, seed=7)
    return result.unbind()[0] if result.is_nested else result


def several(packed, batch: int):
    if not packed.is_nested:
        return packed.repeat(batch, *[1] * (packed.ndim - 1))
    return type(packed)([several(part, batch) for part in packed.unbind()])


def built(specimen):
    torch.manual_seed(0)
    return SHARED.get(specimen.name, specimen.build)


@EVERY
def test_with_the_negatives_text_it_is_cfg_with_that_text_and_the_positives_sizes(specimen):
    """ICG of weight w is CFG w."""
    model = built(specimen)
    positive, theirs = conditioning(specimen, 1, **MINE), conditioning(specimen, 2, **THEIRS)
    conds = (positive, conditioning(specimen, 2, **MINE))
    expected = sampled(model, specimen, conds, 4.0)
    got = sampled(icg(model, host.prompts([*theirs, *theirs], 0), 3.0), specimen, conds, 1.0)
    floor = close(sampled(model, specimen, conds, 4.0, batch=2)[:1], expected)  # what another size of batch changes
    assert close(got, expected) <= 3 * max(floor, torch.finfo(torch.float32).eps)
    assert close(sampled(model, specimen, conds, 1.0), expected) > 1000 * floor


def drawn(model, specimen, positive, pool, batch=1) -> dict:
    """What the network is given of ŷ, in one model call."""
    seen = []

    def watch(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        options = transformer_options or {}
        seen.append((options["uuids"], {"c_concat": c_concat, "c_crossattn": c_crossattn, **kwargs}))
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    model = icg(model, pool)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", watch)
    with host.trace() as forwards:
        sampled(model, specimen, (positive, positive), 1.0, batch)
    (forward,), ((rows, conds),) = forwards, seen
    at = next(at for at, branch in enumerate(forward.branches) if branch is not None)
    return {key: of_row(cond, at, len(rows)) for key, cond in conds.items() if cond is not None}


def of_row(cond, at: int, rows: int):
    if isinstance(cond, list):
        return [of_row(part, at, rows) for part in cond]
    return cond.chunk(rows)[at] if torch.is_tensor(cond) else cond


def alike(one, other) -> bool:
    if isinstance(one, list):
        return all(alike(*pair) for pair in zip(one, other, strict=True))
    if not torch.is_tensor(one):
        return one == other
    if torch.equal(one, other) or one.shape != other.shape:
        return one.shape == other.shape
    return close(one / one.std(), other / other.std()) < 1e-5  # noise is like the text in its deviation, and only there


@EVERY
def test_nothing_of_the_positives_text_is_in_the_noise_that_stands_for_it(specimen):
    """Of a text and its opposite, −text, the deviations are the same."""
    if "input_ids" in specimen.conds:
        with pytest.raises(
            ValueError, match=r"ICG: HiDreamO1 .* numbers of tokens \(input_ids\).* random tokens or prompts"
        ):
            drawn(built(specimen), specimen, conditioning(specimen, 1), Pool())
        return
    one, other = conditioning(specimen, 1, **MINE), conditioning(specimen, 1, **MINE)
    for key, value in other[0][1].items():
        if torch.is_tensor(value) and key in TEXT and value.is_floating_point():
            other[0][1][key] = -value
    if other[0][0] is not None:
        other[0][0] = -other[0][0]
    model = built(specimen)
    one, other = (drawn(model, specimen, positive, Pool()) for positive in (one, other))
    assert one.keys() == other.keys()
    assert [key for key in one if not alike(one[key], other[key])] == []


def test_padding_stays_and_has_no_say_in_how_strong_the_noise_is():
    specimen = next(one for one in WITH_TEXT if one.name == "Wan 2.1")
    model = built(specimen)
    text = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([text, torch.zeros(1, 40, 32)], 1)
    seen = drawn(model, specimen, [[padded, {}]], Pool())["c_crossattn"]
    assert torch.equal(seen[:, 5:], padded[:, 5:]) and close(seen[:, :5].std(), text.std()) < 0.2

    specimen = next(one for one in WITH_TEXT if one.name == "Lumina 2")
    model = built(specimen)
    masked = {"attention_mask": (torch.arange(45) < 5).long()[None]}
    seen = [
        drawn(model, specimen, [[torch.cat([text, scale * torch.ones(1, 40, 32)], 1), masked]], Pool())
        for scale in (1, 9)
    ]
    assert torch.equal(seen[0]["c_crossattn"], seen[1]["c_crossattn"])  # the mask hides what the other tokens are


@pytest.mark.parametrize(
    ("name", "key", "of_text"), [("SDXL", "y", slice(24)), ("Stable Audio 1", "c_crossattn", slice(-2))]
)
def test_noise_leaves_sizes_and_times_that_share_a_condition_with_the_text(name, key, of_text):
    specimen = next(one for one in WITH_TEXT if one.name == name)
    model, positive = built(specimen), conditioning(specimen, 1, **MINE)
    given = {**positive[0][1], "cross_attn": positive[0][0], "noise": latent(specimen), "device": "cpu"}
    expected = model.model.extra_conds(**given)[key].cond
    noise = drawn(model, specimen, positive, Pool())[key]
    rest = slice(of_text.stop, None)
    assert torch.equal(noise[:, rest], expected[:, rest]) and not torch.equal(noise[:, of_text], expected[:, of_text])
    assert close(noise[:, of_text].std(), expected[:, of_text].std()) < 0.5


@pytest.mark.parametrize("pool", ["gaussian", "prompts"])
def test_what_stable_video_diffusion_is_told_of_the_movement_stays_and_a_video_has_one_draw(pool):
    model, frames = networks.svd(), 3
    specimen = Specimen("SVD", "", networks.svd, (4, 8, 8), {}, [], [], None)
    picture = {"motion_bucket_id": 60, "fps": 12, "augmentation_level": 0.1}
    others = {"motion_bucket_id": 200, "fps": 24, "augmentation_level": 0.0}
    positive, *rest = (
        [[torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(seed)), more]]
        for seed, more in enumerate((picture, others, others, others))
    )
    chosen = Pool() if pool == "gaussian" else host.prompts([*rest[0], *rest[1], *rest[2]], 0)
    seen = drawn(model, specimen, positive, chosen, frames)
    expected = model.model.encode_adm(**picture).repeat(frames, 1)
    assert torch.equal(seen["y"], expected)
    assert all(torch.equal(frame, seen["c_crossattn"][0]) for frame in seen["c_crossattn"])
    assert not torch.equal(seen["c_crossattn"][:1], positive[0][0])


def test_a_positive_without_text_is_refused_for_noise_and_not_for_others():
    specimen = next(one for one in WITH_TEXT if one.name == "Wan 2.1")
    model, empty = built(specimen), [[torch.zeros(1, 45, 32), {}]]
    with pytest.raises(ValueError, match=r"ICG: the positive has no text .* all zeros. Set conditions to"):
        sampled(icg(model, Pool()), specimen, (empty, empty), 1.0)
    others = icg(model, host.prompts([*conditioning(specimen, 2), *conditioning(specimen, 3)], 0))
    guided, plain = (sampled(one, specimen, (empty, empty), 1.0) for one in (others, model))
    assert close(guided, plain) > 0.01


def test_every_key_that_the_hosts_models_read_of_a_conditioning_is_known_to_be_text_or_not():
    source = inspect.getsource(comfy.model_base)
    read = re.findall(r"""\b(?:kwargs|args)(?:\.get\(|\[)["'](\w+)["']""", source)
    read += re.findall(r"""["'](\w+)["'] (?:not )?in (?:kwargs|args)\b""", source)
    assert len(set(read)) > 50 and set(read) - ELSE.union(TEXT) == set()
    assert not ELSE & set(TEXT)


def test_a_condition_that_the_table_does_not_know_is_said_to_stay(caplog):
    specimen = next(one for one in WITH_TEXT if one.name == "Wan 2.1")
    positive = [[conditioning(specimen, 1)[0][0], {"conditioning_of_tomorrow": torch.ones(1, 3), "note": "mine"}]]
    sampled(icg(built(specimen), Pool()), specimen, (positive, positive), 1.0)
    assert "ICG keeps conditioning_of_tomorrow of the positive" in caplog.text and "note" not in caplog.text
