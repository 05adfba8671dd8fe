"""Runs with perturbations leave the host's Comfy Compiler off, and as it was when they end.

What the compiler itself makes of a run needs CUDA and a host from 0.34 on; here its switch is looked at.
"""

import comfy.cli_args
import pytest
from comfy.patcher_extension import WrappersMP
from pack.guiders.host.comfy_compiler import SWITCH, compiler_off
from pack.tests.host.harness import TERM_NODES, network, pag, sample

SETTINGS = comfy.cli_args.args


@pytest.fixture(params=[False, True], ids=["compiler on", "compiler off by the user"])
def switch(request, monkeypatch) -> bool:
    monkeypatch.setattr(SETTINGS, SWITCH, request.param, raising=False)
    return request.param


def with_defaults(model, node_id: str):
    """The model after a node whose widgets stand as they come."""
    node = TERM_NODES[node_id]
    inputs = node.define_schema().inputs
    given = {value.id: value.default for value in inputs if hasattr(value, "default")}
    return node.execute(**{**given, "model": model})[0]


def sag(model):
    return with_defaults(model, "BeyondCFGSAG")


def rescale(model):
    return with_defaults(model, "BeyondCFGRescale")


def seen(model, fail: bool = False) -> list[bool]:
    """How the switch stands in each network call of a run."""
    found = []

    def look(executor, *args, **kwargs):
        found.append(getattr(SETTINGS, SWITCH))
        if fail and len(found) == 2:
            raise RuntimeError("another pack fails")
        return executor(*args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "look", look)
    if fail:
        with pytest.raises(RuntimeError, match="another pack fails"):
            sample(model, steps=3)
    else:
        sample(model, steps=3)
    return found


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("term", [pag, sag])
def test_a_run_that_reaches_into_the_network_leaves_it_off_and_puts_it_back(term, fail, switch):
    assert set(seen(term(network("unet")), fail)) == {True}
    assert getattr(SETTINGS, SWITCH) is switch


@pytest.mark.parametrize("term", [rescale, lambda model: model])
def test_other_runs_leave_it_as_it_is(term, switch):
    assert set(seen(term(network("unet")))) == {switch}


def test_the_last_of_several_runs_puts_it_back_whichever_that_is(switch):
    first, second = compiler_off(), compiler_off()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert getattr(SETTINGS, SWITCH) is True
    second.__exit__(None, None, None)
    assert getattr(SETTINGS, SWITCH) is switch


def test_a_host_without_the_compiler_gets_no_switch(monkeypatch):
    monkeypatch.delattr(SETTINGS, SWITCH, raising=False)
    sample(pag(network("unet")), steps=1)
    assert not hasattr(SETTINGS, SWITCH)
