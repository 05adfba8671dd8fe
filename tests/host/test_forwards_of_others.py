"""Where other packs replace forwards or hide blocks in the network, or keep things in a run's options: what theirs is
without us stays, our predictions get it too, and errors and logs name whose it is. Each pack is played by a few lines."""

import logging
import sys
import types
from unittest import mock

import comfy.samplers
import pytest
import torch
from pack.guiders import host
from pack.guiders.perturbation import PerturbationGuidance
from pack.guiders.schedule import Schedule
from pack.guiders.weak_model import WeakModelGuidance
from pack.nodes.weaker_models import DegradedModel
from pack.patches import SkippedLayer
from pack.patches.host import others, select_layers
from pack.tests.host import networks
from pack.tests.host.harness import Counter, close, guider_of, network, pag, prompts, run, sample
from pack.tests.host.reference import LAYERS, with_reference_pag


def mine(model, kind="unet"):
    return pag(model, layers=LAYERS[kind])


def with_forward(model, place, forward):
    """MODEL with `forward(module, *args, **kwargs)` in the place of a module's."""
    model = model.clone()
    module = model.get_model_object(place)
    model.add_object_patch(f"{place}.forward", types.MethodType(forward, module))
    return model


# ------------------------------------------------------------------------------------------- forwards that divide a batch


def halves(model):
    """As an attention guidance that takes a batch for a positive and a negative half, whatever it is of."""

    def forward(self, *args, **kwargs):
        out = type(self).forward(self, *args, **kwargs)
        one, *rest = out.chunk(2)
        return torch.cat([one * 1.5, *rest])

    return with_forward(model, "diffusion_model.middle_block.1.transformer_blocks.0.attn2", forward)


def by_roles(model):
    """As a reference control that attends again for the rows of the negative alone, in the host's way."""

    def forward(self, x, context=None, transformer_options=None):
        options = {**transformer_options, "n_heads": self.n_heads}  # and no attn_precision
        attend = (
            options["patches_replace"].get("attn1", {}).get(("middle", 0, 0)) if "patches_replace" in options else None
        )
        n = self.norm1(x)
        q, k, v = self.attn1.to_q(n), self.attn1.to_k(n), self.attn1.to_v(n)

        def attention(rows):
            given = q[rows], k[rows], v[rows]
            run = comfy.ldm.modules.attention.optimized_attention
            return self.attn1.to_out(attend(*given, options) if attend else run(*given, self.n_heads))

        roles, size = options["cond_or_uncond"], len(x) // len(options["cond_or_uncond"])
        negative = [row for row in range(len(x)) if roles[row // size] == 1]
        n = attention(slice(None))
        if negative:
            n[negative] = 0.5 * n[negative] + attention(negative)
        x = x + n
        x = x + self.attn2(self.norm2(x), context=context, transformer_options=transformer_options)
        return x + self.ff(self.norm3(x))

    return with_forward(model, "diffusion_model.middle_block.1.transformer_blocks.0", forward)


def two_rows(model):
    """As a guidance on a block's features, which acts where a batch is of one positive and one negative alone."""
    roles = []

    def forward(self, *args, **kwargs):
        out = type(self).forward(self, *args, **kwargs)
        if sorted(roles[-1]) == [0, 1]:
            rows = dict(zip(roles[-1], out.chunk(2), strict=True))
            rows[0] = rows[0] + 0.3 * (rows[0] - rows[1])
            out = torch.cat([rows[role] for role in roles[-1]])
        return out

    def patch(h, options):
        roles.append(options["cond_or_uncond"])
        return h

    model = with_forward(model, "diffusion_model.middle_block.2", forward)
    model.set_model_input_block_patch(patch)
    return model


class Companions:
    """PAG made naively under a forward that divides a batch: the guider's whole call again, with all rows perturbed."""

    def __init__(self, model, scale=3.0):
        self.scale, self.model = scale, model.clone()
        self.model.add_wrapper_with_key("predict_noise", "reference", self.predict_noise)

    def predict_noise(self, executor, x, timestep, options, seed=None):
        from pack.tests.host.reference import perturbed

        guider = executor.class_obj
        conds = [guider.conds["positive"], guider.conds["negative"] if guider.cfg != 1 else None]
        positive, _ = comfy.samplers.calc_cond_batch(guider.inner_model, conds, x, timestep, options)
        weak, _ = comfy.samplers.calc_cond_batch(guider.inner_model, conds, x, timestep, perturbed(options, "unet"))
        return executor(x, timestep, options, seed) + self.scale * (positive - weak)


@pytest.mark.parametrize("cfg", [4.0, 1.0])
@pytest.mark.parametrize("add", [halves, by_roles, two_rows])
def test_a_forward_that_divides_a_batch_gets_the_batches_it_gets_without_us(add, cfg):
    model, latent = network("unet"), networks.latent("unet", 2)
    expected = sample(Companions(add(model)).model, cfg=cfg, latent=latent)
    for chained in (add(mine(model)), mine(add(model))):
        counter = Counter(chained)
        assert close(sample(counter.model, cfg=cfg, latent=latent), expected) < 2e-6
        assert set(counter.rows) == {1 if cfg == 1 else 2}
    if add is halves or cfg != 1:  # else it has nothing to do
        assert close(sample(mine(model), cfg=cfg, latent=latent), expected) > 1e-4
    assert close(sample(add(model), cfg=cfg, latent=latent), expected) > 1e-3


def test_the_log_names_who_has_replaced_forwards(caplog):
    caplog.set_level(logging.INFO)
    sample(mine(halves(network("unet"))), steps=1)
    (said,) = {r.getMessage() for r in caplog.records if "has replaced forwards" in r.getMessage()}
    assert said.startswith("Beyond CFG: halves of ") and "in a call of its own" in said


# ------------------------------------------------------------------------------------ blocks that are hidden in a call


class Cached(torch.nn.Module):
    """As the cache of a first block does it: one block in the place of all, which calls those that were there."""

    def __init__(self, blocks, doubled=()):
        super().__init__()
        self.blocks = blocks

    def forward(self, *args, **kwargs):
        context, x = args[0], args[1]
        for block in self.blocks:
            context, x = block(context, x, *args[2:], **kwargs)
        return context, x


def cached(model):
    model, diffusion = model.clone(), model.get_model_object("diffusion_model")
    one = torch.nn.ModuleList([Cached(diffusion.joint_blocks)])

    def wrapper(apply_model, args):
        with mock.patch.object(diffusion, "joint_blocks", one):
            return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(wrapper)
    return model


@pytest.mark.parametrize("layers", ["double.0", "double.1"])
def test_blocks_that_a_cache_hides_in_a_module_of_its_own_are_found(layers):
    model = network("sd3")
    skip = host.Term(PerturbationGuidance(3.0, SkippedLayer(select_layers(model, layers))), Schedule(), "Skip Layer")
    for guide in (lambda m: pag(m, layers=layers), lambda m: host.add_term(m, skip)):
        expected = sample(guide(model), "sd3")
        for chained in (cached(guide(model)), guide(cached(model))):
            assert close(sample(chained, "sd3"), expected) < 2e-6
    assert close(sample(model, "sd3"), expected) > 1e-3


def test_blocks_that_are_hidden_when_a_run_begins_are_refused_by_name():
    model = network("sd3")
    guided = mine(model, "sd3")
    one = torch.nn.ModuleList([Cached(model.get_model_object("diffusion_model.joint_blocks"))])
    guided.add_object_patch("diffusion_model.joint_blocks", one)
    with pytest.raises(
        RuntimeError,
        match=r"PAG: the network is now OpenAISignatureMMDITWrapper of comfy\.ldm\S+, whose blocks are Cached of \S+, "
        r"without the layers double.1 that were chosen.*Put this node after it, or take it out",
    ):
        sample(guided, "sd3", steps=1)


def test_a_weaker_model_whose_blocks_are_hidden_says_so():
    model = network("sd3")
    given = {"degradation": "fewer layers", "amount": 0.1, "layers": "double.1", "bits": 4, "seed": 0}
    weak = cached(DegradedModel.execute(model=model, **given)[0])
    with pytest.raises(RuntimeError, match=r"^Degraded Model: the network is now .*whose blocks are Cached of "):
        sample(weak, "sd3", steps=1)


# ------------------------------------------------------------------------------------------- errors and options of others


def test_an_error_of_anothers_forward_comes_through():
    """One that hands its arguments on at the wrong places loses the options, on which our forwards relied."""

    def forward(self, x, timestep, context, y, guidance, control=None, transformer_options=None, **kwargs):
        return type(self).forward(self, x, timestep, context, y, guidance, control, transformer_options, **kwargs)

    model = with_forward(network("flux"), "diffusion_model", forward)
    with pytest.raises(Exception) as alone:
        sample(model, "flux", steps=1)
    with pytest.raises(type(alone.value)) as beside:
        sample(mine(model, "flux"), "flux", steps=1)
    assert str(beside.value) == str(alone.value)


@pytest.mark.parametrize("layers", ["double.0", "single.0"])
def test_a_block_that_is_called_without_options_is_perturbed_where_its_inputs_tell_what_is_text(layers):
    model = network("flux")
    expected = sample(pag(model, layers=layers), "flux")
    stack, _, index = layers.partition(".")
    block = getattr(model.model.diffusion_model, f"{stack}_blocks")[int(index)]

    def without(executor, *args, **kwargs):
        forward = block.forward
        with mock.patch.object(block, "forward", lambda *a, transformer_options=None, **k: forward(*a, **k)):
            return executor(*args, **kwargs)

    losing = pag(model, layers=layers)
    losing.add_wrapper_with_key("diffusion_model", "another pack", without)
    if stack == "double":
        assert close(sample(losing, "flux"), expected) < 1e-6
        return
    with pytest.raises(RuntimeError, match=r"^Flux single.0: nothing tells how much text comes first.*: \S+ of \S+"):
        sample(losing, "flux", steps=1)


def test_a_forward_that_another_pack_takes_off_does_not_hide_its_error():
    model = network("flux")
    block = model.model.diffusion_model.single_blocks[0]

    def failing(executor, *args, **kwargs):
        block.forward = type(block).forward.__get__(block)
        del block.forward
        raise ZeroDivisionError("theirs")

    model = mine(model, "flux")
    model.add_wrapper_with_key("diffusion_model", "another pack", failing)
    with pytest.raises(ZeroDivisionError, match="theirs"):
        sample(model, "flux", steps=1)
    assert "forward" not in vars(block)


def guided_by_cfg(guider, x, timestep, model_options):
    """What the host's CFG guider predicts, by its parts."""
    conds = [guider.conds["positive"], guider.conds["negative"]]
    out = comfy.samplers.calc_cond_batch(guider.inner_model, conds, x, timestep, model_options)
    return comfy.samplers.cfg_function(
        guider.inner_model, *out, guider.cfg, x, timestep, model_options=model_options, cond=conds[0], uncond=conds[1]
    )


@pytest.mark.parametrize("guider", ["CFG", "of its own"])
def test_what_a_hook_remembers_in_a_runs_options_stays(guider):
    """As a momentum of the result over the steps does, in model_options."""

    class Own(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006  the host's signature
            return guided_by_cfg(self, x, timestep, model_options)

    def momentum(args):
        kept = args["model_options"].setdefault("another pack", {})
        inner = args["model_options"]["transformer_options"].setdefault("another pack", [])
        inner.append(len(inner))
        steps.append(len(inner))
        before = kept.get("mean", args["denoised"])
        kept["mean"] = 0.5 * before + 0.5 * args["denoised"]
        return args["denoised"] + 0.5 * (args["denoised"] - before)

    def remembering(model):
        model = model.clone()
        model.set_model_sampler_post_cfg_function(momentum)
        return model

    def result(model):
        steps.clear()
        kind = comfy.samplers.CFGGuider if guider == "CFG" else Own
        return run(guider_of(model, *prompts("unet"), kind=kind), networks.latent("unet"))

    steps = []
    model = network("unet")
    expected = result(with_reference_pag(remembering(model), "unet"))
    for chained in (remembering(mine(model)), mine(remembering(model))):
        assert close(result(chained), expected) < 2e-6
        assert steps == [1, 2, 3, 4]
    assert close(result(mine(model)), expected) > 1e-3


def test_a_guider_that_leaves_cfg_out_on_the_way_gives_its_own_result_plus_our_term():
    """As an adaptive guidance does once the predictions are alike."""

    class Adaptive(comfy.samplers.CFGGuider):
        calls = 0

        def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006  the host's signature
            self.calls += 1
            if self.calls == 1:
                return guided_by_cfg(self, x, timestep, model_options)
            positive, negative = self.conds["positive"], self.conds["negative"]
            return comfy.samplers.sampling_function(
                self.inner_model, x, timestep, negative, positive, 1.0, model_options=model_options, seed=seed
            )

    def result(model):
        return run(guider_of(model, *prompts("unet"), kind=Adaptive), networks.latent("unet"))

    model = network("unet")
    expected = result(with_reference_pag(model, "unet"))
    assert close(result(mine(model)), expected) < 2e-6
    assert close(result(model), expected) > 1e-3 and close(sample(mine(model)), expected) > 1e-3


@pytest.mark.parametrize("on", ["main", "weak"])
def test_what_only_one_of_two_models_of_one_network_has_is_said(on, caplog):
    model = network("unet")
    given = {"degradation": "dropout", "amount": 0.2, "layers": "auto", "bits": 4, "seed": 0}
    twisted, plain = halves(model), model
    main, weak = (twisted, plain) if on == "main" else (plain, twisted)
    main, name = host.with_weak_model(main, DegradedModel.execute(model=weak, **given)[0])
    with caplog.at_level(logging.WARNING):
        sample(host.add_term(main, host.Term(WeakModelGuidance(1.0, name), Schedule(), "Autoguidance")), steps=1)
    said = {r.getMessage() for r in caplog.records if "share a network" in r.getMessage()}
    what = "acts on both" if on == "main" else "does not act"
    assert len(said) == 1 and f"halves of {halves.__module__.rpartition('.')[2]}" in said.pop().replace(
        "tests.host.", ""
    )
    assert any(f"is on the {on} model alone, and {what}, since" in r.getMessage() for r in caplog.records)


# -------------------------------------------------------------------------------------------------------------- names


def test_a_packs_python_module_is_named_as_its_folder_is():
    def of(module):
        function = types.FunctionType((lambda: None).__code__, {"__name__": module})
        function.__qualname__ = "ANode.patch.<locals>.patched"
        return function

    root = "/".join(("", "home", "someone", "ComfyUI", "custom_nodes", ""))
    assert others.whose(of(f"{root}A-Pack_x_js.nodes.model")) == "ANode of custom_nodes.A-Pack.js.nodes.model"
    assert others.whose(of("C:\\ComfyUI\\custom_nodes\\A-Pack.nodes")) == "ANode of custom_nodes.A-Pack.nodes"
    assert others.whose(of("/".join(("", "elsewhere", "A-Pack.nodes")))) == "ANode of A-Pack.nodes"
    assert others.whose(of("comfy_extras.nodes_hypertile")) == "ANode of comfy_extras.nodes_hypertile"
    assert not others.is_anothers(torch.nn.Linear) and not others.is_anothers(others.whose)
    assert not others.is_anothers(sys.modules["comfy.samplers"].CFGGuider.predict_noise)
    assert others.names([of("a.b"), of("a.b"), others.whose]) == "ANode of a.b"
