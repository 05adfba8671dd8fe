"""Independent conditions on the host: made before models load, processed when a run begins, drawn at each step.

ŷ is the positive with another text: the host makes the network's conditions of it again, so that sizes, pictures, masks
and lengths are what they would be with that text in the positive.
"""

from __future__ import annotations

import copy
import uuid

import comfy.conds
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.samplers import cond_equal_size

from ...patches.host.log import warn_once
from ..independent_condition import Pool
from .random_texts import random_texts
from .sampler_inputs import SamplerInputs
from .texts import NUMBERS, is_masked, other_text, text_of, unknown_of

# The keys of an entry that say where, when and with what else it acts.
PLACE = ("area", "mask", "control", "hooks", "gligen", "default")


def random_tokens(clip, size: int, seed: int) -> Pool:
    """`size` texts of random tokens through CLIP. Draws from a generator of its own. Raises ValueError as random_texts."""
    return Pool(tuple(map(tuple, random_texts(clip, size, seed))), seed)


def prompts(conditioning: list, seed: int) -> Pool:
    """Each of the prompts that are combined in `conditioning`. Raises ValueError for fewer than two."""
    if len(conditioning) < 2:
        raise ValueError(
            f"the pool holds {len(conditioning)} prompt; at least 2 are needed to draw from. Join several with the host's "
            f"Conditioning (Combine)"
        )
    return Pool(tuple((prompt,) for prompt in conditioning), seed)


def one_prompt(conditioning: list, node: str, name: str) -> Pool:
    """The prompt in `conditioning`, which is the input `name` of the node of this title; the same in every step. Raises
    ValueError where it joins several."""
    if len(conditioning) != 1:
        raise ValueError(f"{name} joins {len(conditioning)} prompts; it must be one")
    return Pool(((conditioning[0],),), node=node)


class ConditionPools:
    """The pools of one run, as conditionings that the host can evaluate."""

    def __init__(self, pools: set[Pool]):
        self._pools = pools
        self._sources: dict[Pool, Texts | Noise] = {}
        self._drawn: dict[Pool, tuple[tuple, list[dict]]] = {}

    def begin(self, guider, inputs: SamplerInputs) -> None:
        """Make the conditions of each pool's texts. They are processed by themselves, so that the areas of the user's own
        entries stay as they are."""
        if not self._pools:
            return
        positive, model, device = guider.conds["positive"][0], guider.inner_model, guider.model_patcher.load_device
        if unknown := unknown_of(positive):
            nodes = ", ".join(sorted({pool.node for pool in self._pools}))
            warn_once(f"{nodes} keeps {', '.join(unknown)} of the positive: it does not know whether that is text")
        own = text_of(positive)
        rest = {key: value for key, value in positive.items() if key not in own and key not in PLACE}
        noise, image, mask = inputs.noise, inputs.latent_image, inputs.mask

        def conditions(text: dict) -> dict:
            """What the host gives the network for the positive with this text."""
            conds = {"positive": [{**rest, **text, "model_conds": {}}]}
            conds = comfy.samplers.process_conds(
                model, noise, conds, device, image, mask, inputs.seed, **inputs.shapes_argument
            )
            return conds["positive"][0]["model_conds"]

        made = conditions(own)
        others = {key: cond for key, cond in positive["model_conds"].items() if key not in made}  # of other packs
        for pool in self._pools:
            if pool.is_gaussian:
                probes = [
                    conditions(other_text(own, masked)) for masked in ([True, False] if is_masked(own) else [True])
                ]
                self._sources[pool] = Noise({**others, **made}, probes, type(model).__name__)
            else:
                texts = [text_of(comfy.sampler_helpers.convert_cond(list(text))[0]) for text in pool.conditions]
                rows = []
                for text in texts:
                    _check_width(pool.node, own.get("cross_attn"), text.get("cross_attn"))
                    conds = conditions(text)
                    _check_width(pool.node, *(each["y"].cond if "y" in each else None for each in (made, conds)))
                    rows.append({**others, **_shared(conds, made)})
                self._sources[pool] = Texts(rows, noise.ndim - 2, device)

    def at(self, pool: Pool, positive: dict, seed: int, step: int, samples: int) -> list[dict]:
        """The conditioning of ŷ at this step; the same object in all evaluations of the step. All but the text is as in the
        `positive` entry."""
        moment = (seed, step, samples)
        if pool not in self._drawn or self._drawn[pool][0] != moment:
            kept = {key: positive[key] for key in ("control", "hooks", "uuid") if key in positive}
            frames = "num_video_frames" in positive["model_conds"]  # the samples are frames of one video
            draws = [pool.draw(seed, step, 0 if frames else sample) for sample in range(samples)]
            made = self._sources[pool].entries(draws, positive["model_conds"])
            entries = [{**kept, **one, "uuid": uuid.uuid4()} for one in made]
            entries[0]["uuid"] = positive[
                "uuid"
            ]  # the first copies the positive with another text; the others copy nothing
            self._drawn[pool] = (moment, entries)
        return self._drawn[pool][1]


class Noise:
    """Gaussian noise for the text: for all numbers of the network's conditions that change when the text's tokens do, each
    condition with its own deviation, of the tokens that the network sees. Padding of zeros stays, and all else.

    Raises ValueError where no noise can stand for the text."""

    def __init__(self, made: dict, probes: list[dict], model: str):
        if numbers := [key for key in NUMBERS if key in made]:
            raise ValueError(
                f"ICG: {model} gets the text as numbers of tokens ({', '.join(numbers)}), and no noise is like those. Set "
                f"conditions to random tokens or prompts"
            )
        self._made = made
        changes = [_changes(made, probe) for probe in probes]
        text, seen = changes[0], changes[-1]
        self._text = {key: comfy.conds.CONDRegular(changed) for key, changed in text.items()}
        self._deviation = {key: made[key].cond.float()[seen.get(key, text[key])].std() for key in text}
        if not self._text:
            raise ValueError(
                "ICG: the positive has no text that noise could be like, or its text is all zeros. Set conditions to "
                "random tokens or prompts"
            )

    def entries(self, draws: list[int], _positive: dict) -> list[dict]:
        """One entry whose text is noise, a sample for each number in `draws`."""
        return [{"model_conds": {**self._made, **{key: self._noise_like(key, draws) for key in self._text}}}]

    def _noise_like(self, key: str, draws: list[int]):
        made, text = (
            cond.process_cond(batch_size=len(draws), area=None) for cond in (self._made[key], self._text[key])
        )
        noise = [torch.randn(made.cond[:1].shape, generator=torch.Generator().manual_seed(draw)) for draw in draws]
        noise = torch.cat(noise).to(made.cond) * self._deviation[key].to(made.cond)
        made.cond = torch.where(text.cond, noise, made.cond)
        return made


class Texts:
    """The conditions of several texts. An entry holds texts of one shape. Samples with another shape get entries of
    their own, in which the other samples are masked out. So no text is changed to fit those of other samples."""

    def __init__(self, conditions: list[dict], dims: int, device: torch.device):
        self._conditions, self._dims, self._device = conditions, dims, device

    def entries(self, draws: list[int], positive: dict) -> list[dict]:
        """Entries with a text for each number in `draws`; the first one can share a batch with `positive`, if any can."""
        chosen = [self._conditions[draw % len(self._conditions)] for draw in draws]
        groups: list[list[int]] = []
        for at, conds in enumerate(chosen):
            group = next((group for group in groups if cond_equal_size(chosen[group[0]], conds)), [])
            groups += [] if group else [group]
            group.append(at)
        groups.sort(key=lambda group: not cond_equal_size(positive, chosen[group[0]]))  # the host starts with the first
        return [self._entry(chosen, group, masked=len(groups) > 1) for group in groups]

    def _entry(self, chosen: list[dict], group: list[int], masked: bool) -> dict:
        own = [conds if at in group else chosen[group[0]] for at, conds in enumerate(chosen)]
        row: dict = {"model_conds": {key: _stacked([conds[key] for conds in own]) for key in own[0]}}
        if masked:
            acts = torch.tensor([float(at in group) for at in range(len(chosen))], device=self._device)
            row["mask"] = acts.reshape(-1, *[1] * self._dims)
        return row


def _changes(made: dict, probe: dict) -> dict[str, torch.Tensor]:
    """For each condition of real numbers that differs: which of its numbers do."""
    pairs = {key: (made[key].cond, cond.cond) for key, cond in probe.items() if key in made}
    reals = {key: pair for key, pair in pairs.items() if _same_shape(*pair) and pair[0].is_floating_point()}
    return {key: one != other for key, (one, other) in reals.items() if not torch.equal(one, other)}


def _check_width(node: str, own, other) -> None:
    """Raise ValueError for a text that the network cannot take, since it takes one of the positive's width."""
    if torch.is_tensor(own) and torch.is_tensor(other) and own.shape[-1] != other.shape[-1]:
        raise ValueError(
            f"{node}: its texts have {other.shape[-1]} numbers where the positive has {own.shape[-1]}, so the text encoder "
            f"of another model made them. Encode them with the CLIP that encodes the positive"
        )


def _shared(conds: dict, made: dict) -> dict:
    """`conds` with the condition of `made` itself where it is the same, so that it is kept and batched once."""
    pairs = {key: (cond, made.get(key, cond)) for key, cond in conds.items()}
    return {
        key: other if _same_shape(cond.cond, other.cond) and torch.equal(cond.cond, other.cond) else cond
        for key, (cond, other) in pairs.items()
    }


def _same_shape(one, other) -> bool:
    return torch.is_tensor(one) and torch.is_tensor(other) and one.shape == other.shape


def _stacked(conds: list):
    """One condition whose sample i comes from conds[i], joined as the host joins entries in a batch."""
    if all(cond is conds[0] for cond in conds):
        return conds[0]
    samples = [_sample(cond.process_cond(batch_size=len(conds), area=None), at) for at, cond in enumerate(conds)]
    stacked = copy.copy(samples[0])
    stacked.cond = samples[0].concat(samples[1:])
    return stacked


def _sample(cond, at: int):
    if torch.is_tensor(cond.cond):
        cond.cond = cond.cond[at : at + 1]
    elif isinstance(cond.cond, list) and isinstance(cond, comfy.conds.CONDList):
        cond.cond = [part[at : at + 1] for part in cond.cond]
    return cond
