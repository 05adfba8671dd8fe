"""Hosts in processes of their own: with the switches that change what they compute, and two at a time."""

import contextlib
import importlib.util
import os
import sys

import comfy.cli_args
import pytest
import torch
from pack.tests.wild.graphs import DEMO, FLUX, SD3, SD15
from pack.tests.wild.guidances import GUIDANCES, REFUSED, faults, prompt
from pack.tests.wild.hosts import send, wait
from pack.tools import hosts
from pack.tools.places import OUTPUT
from pack.tools.server import running

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
def started(*switches: str):
    """Another host, with these switches."""
    host = hosts.ready(hosts.Choice(comfyui=os.environ["COMFYUI_PATH"], python=sys.executable))
    log = OUTPUT / os.environ.get("PYTEST_XDIST_WORKER", "") / "another_host.log"
    with running(host, switches=switches, log=log) as server:
        yield server


@pytest.fixture(scope="module")
def another():
    with started(*SHORT) as server:
        yield server


def test_guidances_act_under_switches(another):
    info = another.ask("/object_info")
    assert [faults(another, info, family) for family in (SD3, DEMO)] == [[], []]


@pytest.mark.slow
@pytest.mark.parametrize("given", [given for given in ALL if given[0] in KNOWN], ids=" ".join)
def test_guidances_act_under_each_switch(given):
    with started(*given) as server:
        info = server.ask("/object_info")
        found = {family.model[2]: faults(server, info, family) for family in (SD15, SD3, FLUX, DEMO)}
    assert not any(found.values()), found


def latents(family, *servers) -> list[torch.Tensor]:
    """What each server gives for the same prompts, which all have before the first is asked for an answer."""
    info, sent = servers[0].ask("/object_info"), []
    for name in ("", *(name for name in GUIDANCES if name not in REFUSED)):
        one = prompt(info, family, name)
        sent += [(server, send(server, one)) for server in servers]
    return [wait(server, key).latents[0] for server, key in sent]


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def test_two_hosts_at_once_give_what_each_gives_alone(server, another):
    first, second = latents(DEMO, server), latents(DEMO, another)
    together = latents(DEMO, server, another)
    assert same(together[::2], first) and same(together[1::2], second)


@pytest.mark.slow
def test_two_hosts_at_once_give_the_same(server):
    families = (SD15, SD3, FLUX, DEMO)
    alone = {family: latents(family, server) for family in families}
    with started() as other:
        for family in families * 3:
            together = latents(family, server, other)
            assert same(together[::2], alone[family]) and same(together[1::2], alone[family])
