"""Hosts in processes of their own: with the switches that change what they compute, and two at a time."""

import contextlib
import importlib.util
import os
import sys

import comfy.cli_args
import pytest
import torch
from graphs import DEMO, FLUX, SD3, SD15
from guidances import GUIDANCES, REFUSED, faults, prompt
from hosts import send, wait

NEEDS = {"--use-sage-attention": "sageattention", "--use-flash-attention": "flash_attn"}
VALUES = {"--cache-lru": ["3"]}
OTHERS = [
    ["--disable-smart-memory"],
    ["--force-channels-last"],
    ["--force-non-blocking"],
    ["--fp16-intermediates"],
    ["--deterministic"],
    ["--preview-method", "latent2rgb"],
]


def switches(*groups: str) -> list[list[str]]:
    """Each of the host's switches for one thing, by the names of their groups in its own list."""
    found = [action.option_strings[0] for group in groups for action in getattr(comfy.cli_args, group)._group_actions]
    there = [name for name in found if importlib.util.find_spec(NEEDS.get(name, "torch"))]
    return [[name, *VALUES.get(name, [])] for name in there]


ALL = [*switches("attn_group", "upcast", "fp_group", "fpunet_group", "cache_group"), *OTHERS]
KNOWN = [option for action in comfy.cli_args.parser._actions for option in action.option_strings]
SHORT = ["--use-split-cross-attention", "--fp8_e4m3fn-unet", "--cache-classic", "--disable-smart-memory"]


pytestmark = pytest.mark.xdist_group("server")  # two of these tests share two hosts


@contextlib.contextmanager
def started(dev, *switches: str):
    """Another host, with these switches."""
    options = dev.parse_arguments(["setup", "--comfyui", os.environ["COMFYUI_PATH"], "--python", sys.executable])
    with dev.running(dev.setup(options), options, switches=switches, log="another_host.log") as server:
        yield server


@pytest.fixture(scope="module")
def another(dev):
    with started(dev, *SHORT) as server:
        yield server


def test_guidances_act_under_switches(dev, another):
    info = another.ask("/object_info")
    assert [faults(dev, another, info, family) for family in (SD3, DEMO)] == [[], []]


@pytest.mark.slow
@pytest.mark.parametrize("given", [given for given in ALL if given[0] in KNOWN], ids=" ".join)
def test_guidances_act_under_each_switch(given, dev):
    with started(dev, *given) as server:
        info = server.ask("/object_info")
        found = {family.model[2]: faults(dev, server, info, family) for family in (SD15, SD3, FLUX, DEMO)}
    assert not any(found.values()), found


def latents(dev, family, *servers) -> list[torch.Tensor]:
    """What each server gives for the same prompts, which all have before the first is asked for an answer."""
    info, sent = servers[0].ask("/object_info"), []
    for name in ("", *(name for name in GUIDANCES if name not in REFUSED)):
        one = prompt(info, family, name)
        sent += [(server, send(dev, server, one)) for server in servers]
    return [wait(server, id).latents[0] for server, id in sent]


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def test_two_hosts_at_once_give_what_each_gives_alone(dev, server, another):
    first, second = latents(dev, DEMO, server), latents(dev, DEMO, another)
    together = latents(dev, DEMO, server, another)
    assert same(together[::2], first) and same(together[1::2], second)


@pytest.mark.slow
def test_two_hosts_at_once_give_the_same(dev, server):
    families = (SD15, SD3, FLUX, DEMO)
    alone = {family: latents(dev, family, server) for family in families}
    with started(dev) as other:
        for family in families * 3:
            together = latents(dev, family, server, other)
            assert same(together[::2], alone[family]) and same(together[1::2], alone[family])
