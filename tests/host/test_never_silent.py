"""Every way in which a perturbation could miss the network is an error, or said."""

import types
from unittest import mock

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from pack.tests.host import networks
from pack.tests.host.harness import TERM_NODES, close, network, pag, sample

WAYS = {}


def way(function):
    WAYS[function.__name__] = function
    return function


@way
def a_block_that_is_replaced_without_the_hosts():
    model = network("flux")
    model.set_model_patch_replace(
        lambda args, extra: {"img": args["img"], "txt": args["txt"]}, "dit", "double_block", 0
    )
    return model, "flux", "double.0"


@way
def an_attention_that_is_replaced_without_the_hosts():
    model = network("unet")
    patched = pag(model, layers="middle")

    def strip(executor, *args, **kwargs):
        args = [{**a, "patches_replace": {}} if isinstance(a, dict) and "patches_replace" in a else a for a in args]
        return executor(*args, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", strip)
    return patched, "unet", None


@way
def a_module_whose_forward_is_anothers():
    model = network("sd3")
    model.add_object_patch("diffusion_model.forward", lambda x, *args, **kwargs: x)
    return model, "sd3", "double.1"


@way
def options_that_another_pack_replaces():
    model = network("flux")
    block = model.model.diffusion_model.single_blocks[1]

    def forward(*args, **kwargs):
        return type(block).forward(block, *args, **{**kwargs, "transformer_options": {}})

    def alone(executor, *args, **kwargs):
        block.forward, ours = forward, block.forward
        try:
            return executor(*args, **kwargs)
        finally:
            block.forward = ours

    patched = pag(model, layers="single.1")
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", alone)
    return patched, "flux", None


@pytest.mark.parametrize("name", WAYS)
def test_layers_that_do_not_run_are_an_error_that_names_them(name):
    model, kind, layers = WAYS[name]()
    sample(model if layers else network(kind), kind, steps=1)  # it is not the network that fails
    with pytest.raises(
        RuntimeError, match=r"^PAG: none of the layers \S+ ran in the host's way in \w+, so it would have"
    ):
        sample(pag(model, layers=layers) if layers else model, kind, steps=1)


class Replay:
    """Runs in the first step, and gives the same again in later ones: a recorded graph, or a cache."""

    def __init__(self):
        self.first, self.kept, self.asked = None, [], 0

    def __call__(self, time, run):
        time = time.flatten()[0].item()
        self.first = time if self.first is None else self.first
        if time == self.first:
            self.kept.append(run())
            return self.kept[-1]
        self.asked += 1
        return self.kept[(self.asked - 1) % len(self.kept)].clone()


def replayed(model, home: str):
    """In front of the network, in a function that is written in the Python module `home`."""
    replay = Replay()

    def forward(self, x, timestep, *args, **kwargs):
        return replay(timestep, lambda: type(self).forward(self, x, timestep, *args, **kwargs))

    forward.__module__ = home
    model = model.clone()
    model.add_object_patch("diffusion_model.forward", types.MethodType(forward, model.model.diffusion_model))
    return model


def tsg(model):
    given = {"weight": 3.0, "noise": 1.0, "power": 0.0, "start_percent": 0.0, "end_percent": 1.0}
    return TERM_NODES["BeyondCFGTSG"].execute(model=model, **given)[0]


@pytest.mark.parametrize("guide", [pag, tsg])
def test_a_perturbation_that_acts_in_the_first_call_alone_is_an_error_where_nothing_of_others_is_there(guide):
    model = replayed(guide(network("sd3")), "comfy.model_prefetch")
    sample(model, "sd3", steps=1)
    with pytest.raises(RuntimeError, match=r"^(PAG: none of the layers|TSG: the time embedding did not run)"):
        sample(model, "sd3", steps=2)


class Last(torch.nn.Module):
    """A cache in the place of the blocks of SD3, of which the last gives no text."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks, self.replay, self.time = blocks, Replay(), None

    def forward(self, context, x, *args, **kwargs):
        def run():
            text, picture = context, x
            for block in self.blocks:
                text, picture = block(text, picture, *args, **kwargs)
            return picture

        return None, self.replay(self.time, run)


@pytest.mark.parametrize("where", ["in front of the network", "around it", "in its class", "in its blocks' place"])
def test_where_another_packs_cache_may_have_answered_a_later_step_needs_no_proof(where, monkeypatch):
    kind, replay = "flux" if where == "around it" else "sd3", Replay()  # the host lets nobody around SD3
    model = pag(network(kind))
    net = model.model.diffusion_model
    if where == "in front of the network":
        model = replayed(model, "another_pack.cache")
    elif where == "around it":
        around = lambda run, x, t, *args, **kwargs: replay(t, lambda: run(x, t, *args, **kwargs))  # noqa: E731
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", around)
    elif where == "in its class":
        plain = type(net).forward
        forward = lambda self, x, t, *args, **kwargs: replay(t, lambda: plain(self, x, t, *args, **kwargs))  # noqa: E731
        monkeypatch.setattr(type(net), "forward", forward)
    else:
        last = Last(net.joint_blocks)

        def wrapper(apply_model, args):
            last.time = args["timestep"]
            with mock.patch.object(net, "joint_blocks", torch.nn.ModuleList([last])):
                return apply_model(args["input"], args["timestep"], **args["c"])

        model.set_model_unet_function_wrapper(wrapper)
        replay = last.replay
    assert sample(model, kind, steps=3).isfinite().all()
    assert replay.asked or where == "in front of the network"


def test_a_time_that_is_not_embedded_is_an_error():
    model = tsg(network("unet"))
    embed = model.model.diffusion_model.time_embed
    model.add_object_patch("diffusion_model.time_embed", torch.nn.Sequential(*embed))
    assert sample(model, steps=1).isfinite().all()  # another module in its place is found
    model.add_object_patch("diffusion_model.forward", lambda x, *args, **kwargs: x)
    with pytest.raises(RuntimeError, match=r"^TSG: the time embedding did not run in the host's way in UNetModel"):
        sample(model, steps=1)


class Unknown(torch.nn.Linear):
    dtype = torch.float32


@pytest.mark.parametrize("other", [lambda: Unknown(1, 1), lambda: networks.unet().model.diffusion_model])
def test_a_network_that_is_put_in_place_afterwards_is_an_error(other):
    model = pag(network("flux"), layers="single.0")
    model.add_object_patch("diffusion_model", other())
    with pytest.raises(
        RuntimeError, match=r"^PAG: the network is now .*, without the layers single.0 that were chosen"
    ):
        sample(model, "flux", steps=1)


def test_fewer_layers_that_do_not_run_are_an_error():
    model = network("flux")
    worse = degraded(model)
    worse.set_model_patch_replace(
        lambda args, extra: {"img": args["img"], "txt": args["txt"]}, "dit", "double_block", 0
    )
    with pytest.raises(
        RuntimeError, match=r"^Degraded Model: none of the layers double.0 of Flux ran in the host's way"
    ):
        sample(worse, "flux", steps=1)


def degraded(model):
    from pack.nodes.weaker_models import DegradedModel

    given = {"degradation": "fewer layers", "amount": 0.1, "layers": "double.0", "bits": 4, "seed": 0}
    return DegradedModel.execute(model=model, **given)[0]


def test_a_layer_that_another_pack_replaces_is_no_error_where_others_are_left():
    model = network("flux")
    model.set_model_patch_replace(
        lambda args, extra: {"img": args["img"], "txt": args["txt"]}, "dit", "double_block", 0
    )
    assert close(sample(pag(model, layers="all"), "flux", steps=1), sample(model, "flux", steps=1)) > 1e-3
