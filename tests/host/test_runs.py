"""A run leaves nothing behind, says what had no effect, and refuses what cannot work."""

import logging

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy_api.torch_helpers.torch_compile import set_torch_compile_wrapper
from pack.guiders import host
from pack.guiders.base import Branch, GuidanceRule
from pack.guiders.classifier_free import SamplerCFG
from pack.guiders.host.quirks import reads_cfg
from pack.guiders.schedule import Schedule
from pack.patches.host.log import log_once
from pack.tests.host import networks
from pack.tests.host.harness import Counter, close, guider_of, network, pag, prompts, run, sample
from pack.tests.host.reference import with_reference_pag


def cfg_interval(model, start, end):
    return host.add_term(model, host.Term(SamplerCFG(), Schedule(start, end), "CFG Interval"))


def state_of(model):
    """Everything of a patcher that a run could have left something in."""
    return repr(model.model_options), repr(model.wrappers), repr(model.object_patches), model.patches_uuid


def test_a_guider_gives_the_same_twice_and_is_as_it_was():
    model, latent = pag(network("unet")), networks.latent("unet")
    guider = guider_of(model, *prompts("unet"))
    before, attributes = state_of(model), set(vars(guider))
    assert torch.equal(run(guider, latent), run(guider, latent))
    assert state_of(model) == before and set(vars(guider)) == attributes


def test_adding_a_term_leaves_the_model_it_was_added_to():
    model = network("unet")
    before = state_of(model)
    pag(pag(model))
    assert state_of(model) == before


@pytest.mark.parametrize("error", [RuntimeError, comfy.model_management.InterruptProcessingException])
def test_after_a_failed_or_interrupted_run_the_next_is_as_on_a_fresh_host(error):
    model, latent, conds = pag(network("unet")), networks.latent("unet"), prompts("unet")
    guider = guider_of(model, *conds)
    before = state_of(model)

    def stop(step, *_):
        if step == 2:
            raise error()

    with pytest.raises(error):
        run(guider, latent, steps=6, callback=stop)
    assert state_of(model) == before and guider.model_options is model.model_options
    assert torch.equal(run(guider, latent, steps=6), run(guider_of(pag(network("unet")), *conds), latent, steps=6))


def test_terms_are_a_no_op_in_training_and_say_so_once(monkeypatch, caplog):
    model = network("unet")
    log_once.cache_clear()
    monkeypatch.setattr(comfy.model_management, "in_training", True)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(sample(pag(model)), sample(model))
        sample(pag(model))
    assert [record.message for record in caplog.records if "train" in record.message] == [
        "Beyond CFG: guidance does not act while a model is trained; the terms on this model are left out"
    ]


@pytest.mark.parametrize("kind", ["unet", "sd3", "flux"])
def test_a_compiled_network_stays_one_graph_and_is_compiled_once(kind):
    """With PyTorch's attention, which the host takes on a GPU; its CPU kernels break graphs by themselves."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    def pytorch_attention(func, *args, **kwargs):
        return attention_pytorch(*args, **kwargs)

    plain = network(kind)
    plain.model_options["transformer_options"]["optimized_attention_override"] = pytorch_attention
    for model in (plain, pag(plain)):
        torch._dynamo.reset()
        eager = sample(model, kind, steps=3)
        model = model.clone()
        set_torch_compile_wrapper(model, backend=backend)
        for graphs in (1, 0):
            compiled.clear()
            assert close(sample(model, kind, steps=3), eager) < 1e-6
            assert len(compiled) == graphs


def test_a_replaced_sampling_function_that_ignores_our_slot_is_served_by_one_call_more(monkeypatch):
    def theirs(model, x, timestep, uncond, cond, cond_scale, model_options, seed=None):
        positive, negative = comfy.samplers.calc_cond_batch(
            model,
            [cond, uncond],
            x,
            timestep,
            {key: value for key, value in model_options.items() if not key.startswith("sampler_")},
        )
        return negative + (positive - negative) * cond_scale

    model = network("unet")
    expected = sample(pag(model))
    monkeypatch.setattr(comfy.samplers, "sampling_function", theirs)
    counter = Counter(pag(model))
    assert close(sample(counter.model), expected) < 2e-6
    assert sorted(counter.rows) == [2] * 8  # [positive, negative] and [positive, weak]


def test_a_second_evaluation_at_another_input_joins_the_run():
    """A branch whose x is made from the first predictions; with x itself it must be the positive again."""

    def same_x(predictions, step):
        return step.x.clone()

    class AtAnotherX(GuidanceRule):
        def branches(self):
            return (Branch(source=same_x),)

        def begin(self):
            return lambda denoised, predictions, step: (
                denoised + predictions[Branch(source=same_x)] - predictions[Branch()]
            )

    model = network("unet")
    counter = Counter(host.add_term(model, host.Term(AtAnotherX(), Schedule(), "test")))
    assert close(sample(counter.model), sample(model)) < 2e-6
    assert counter.rows == [2, 1] * 4


def messages(caplog, model, **kwargs):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        sample(model, steps=6, **kwargs)
    return [record.message for record in caplog.records if record.message.startswith("Beyond CFG")]


def test_a_term_without_effect_says_so(caplog):
    model = network("unet")
    assert messages(caplog, pag(model)) == []
    assert messages(caplog, pag(model, start=0.98, end=0.99)) == [
        "Beyond CFG: PAG had no effect: no step of this run lies in 0.98 to 0.99 of sampling"
    ]
    assert messages(caplog, cfg_interval(model, 0.2, 0.8)) == []
    assert messages(caplog, cfg_interval(model, 0.2, 0.8), cfg=1.0) == [
        "Beyond CFG: CFG Interval had no effect: CFGGuider ran at cfg 1, which is no CFG"
    ]


def test_a_cfg_interval_on_a_guider_without_such_a_cfg_says_so(caplog):
    import comfy_extras.nodes_custom_sampler as custom

    guider = custom.Guider_DualCFG(cfg_interval(network("unet"), 0.2, 0.8))
    guider.set_conds(*(networks.conditioning("unet", seed) for seed in (1, 2, 3)))
    guider.set_cfg(3.0, 2.0)
    with caplog.at_level(logging.WARNING):
        run(guider, networks.latent("unet"))
    assert "CFG Interval had no effect: Guider_DualCFG reads no cfg of this kind" in caplog.text


class Stores(comfy.samplers.CFGGuider):
    """As LTXV's guider of two modalities: `cfg` is one of its own weights, set anew at each call."""

    def set_cfg(self, cfg):
        self.weight = self.cfg = cfg

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 (as the host's)
        self.cfg = self.weight
        return super().predict_noise(x, timestep, model_options, seed)


class Hands(comfy.samplers.CFGGuider):
    """It hands the work on, and what it hands it to reads `cfg`."""

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        return super().predict_noise(x, timestep, model_options, seed)


class HandsByName(comfy.samplers.CFGGuider):
    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        return comfy.samplers.CFGGuider.predict_noise(self, x, timestep, model_options, seed)


class ReadsElsewhere(comfy.samplers.CFGGuider):
    def predict_noise(self, *args, **kwargs):
        return self.guided(*args, **kwargs)

    def guided(self, *args, **kwargs):
        self.again = self.predict_noise  # two methods that know each other
        return comfy.samplers.CFGGuider.predict_noise(self, *args, **kwargs) * (self.cfg / self.cfg)


@pytest.mark.parametrize("kind", [Stores, Hands, HandsByName, ReadsElsewhere], ids=lambda kind: kind.__name__)
def test_a_cfg_interval_acts_and_is_silent_just_where_the_guider_reads_what_it_sets(kind, caplog):
    def result(model):
        return run(guider_of(model, *prompts("unet"), kind=kind), networks.latent("unet"))

    with caplog.at_level(logging.WARNING):
        changed = not torch.equal(result(cfg_interval(network("unet"), 0.2, 0.8)), result(network("unet")))
    said = f"CFG Interval had no effect: {kind.__name__} reads no cfg of this kind" in caplog.text
    assert (changed, said) == ((False, True) if kind is Stores else (True, False))


def test_a_cfg_interval_on_the_hosts_guider_of_video_and_sound_says_that_it_has_no_effect():
    guiders = pytest.importorskip("comfy_extras.nodes_lt")
    if not hasattr(guiders, "Guider_LTXAVDualCFG"):
        pytest.skip("this host has no LTXV Dual CFG guider")
    guider = guiders.Guider_LTXAVDualCFG(network("unet"))
    guider.set_cfg(3.0, 7.0)
    assert not reads_cfg(guider) and reads_cfg(comfy.samplers.CFGGuider(network("unet")))


def test_a_guider_without_a_positive_is_refused():
    guider = comfy.samplers.CFGGuider(pag(network("unet")))
    guider.inner_set_conds({"other": networks.conditioning("unet")})
    with pytest.raises(ValueError, match="PAG: CFGGuider has no positive prompt"):
        run(guider, networks.latent("unet"))


def test_a_branch_that_needs_a_negative_names_the_node_and_the_guider():
    class FromNegative(GuidanceRule):
        def branches(self):
            return (Branch("negative"),)

        def begin(self):
            return lambda denoised, predictions, step: denoised

    guider = comfy.samplers.CFGGuider(host.add_term(network("unet"), host.Term(FromNegative(), Schedule(), "A node")))
    guider.inner_set_conds({"positive": networks.conditioning("unet")})
    with pytest.raises(ValueError, match="A node: needs a negative prompt, and CFGGuider has positive"):
        run(guider, networks.latent("unet"))


def test_tokens_of_another_layout_are_an_error_that_names_the_layer():
    def longer(args, extra):
        return extra["original_block"]({**args, "img": args["img"][:, :-8], "pe": args["pe"][:, :, :-8]})

    model = network("flux")
    model.set_model_patch_replace(longer, "dit", "single_block", 2)
    with pytest.raises(RuntimeError, match=r"Flux single.2: 76 tokens hold no picture of 8 × 8 from token 20 on"):
        sample(pag(model, layers="single.2"), "flux")


def test_reference_pag_is_not_the_plain_sample():
    model = network("unet")
    assert close(sample(with_reference_pag(model, "unet")), sample(model)) > 1e-2
