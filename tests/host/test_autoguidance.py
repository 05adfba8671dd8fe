"""A second model: its own everything, one load, one forward, and never silently the first."""

import inspect
import logging
import os
from pathlib import Path

import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.sd
import comfy_extras.nodes_custom_sampler as custom
import node_helpers
import pytest
import torch
from comfy.patcher_extension import PatcherInjection, WrappersMP
from pack.guiders import host
from pack.guiders.schedule import Schedule
from pack.guiders.weak_model import WeakModelGuidance
from pack.tests.host import networks
from pack.tests.host.harness import Counter, close, network, pag, prompts, run, sample
from pack.tests.host.test_with_others import Control, in_area

CHECKPOINTS = os.environ.get("BEYOND_CFG_MODELS")


def autoguided(model, weak, scale=1.0, **when):
    model, name = host.with_weak_model(model, weak)
    return host.add_term(model, host.Term(WeakModelGuidance(scale, name), Schedule(**when), "Autoguidance"))


@pytest.mark.skipif(not hasattr(custom, "Guider_DualModel"), reason="this host has no DualModelGuider")
@pytest.mark.parametrize("kind", ["unet", "sd3", "flux"])
def test_autoguidance_is_the_hosts_dual_model_guider_with_the_same_prompt_on_both(kind):
    main, weak = network(kind), network(kind, seed=5)
    positive, _ = prompts(kind)
    guider = custom.Guider_DualModel(main, weak)
    guider.set_conds(positive, positive)
    guider.set_cfg(2.0)
    expected = run(guider, networks.latent(kind, 2))
    got = sample(autoguided(main, weak), kind, cfg=1.0, latent=networks.latent(kind, 2))
    assert (
        close(got, expected) < 2e-6 and close(sample(main, kind, cfg=1.0, latent=networks.latent(kind, 2)), got) > 1e-2
    )


def test_both_are_loaded_in_one_call_and_the_weak_one_is_asked_for_the_positive_alone(monkeypatch):
    main, weak = Counter(network("unet")), Counter(network("unet", seed=5))
    loads, load = [], comfy.model_management.load_models_gpu

    def counting(models, *args, **kwargs):
        loads.append({id(model.model) for model in models})
        return load(models, *args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", counting)
    sample(autoguided(main.model, weak.model))
    assert loads == [{id(main.model.model), id(weak.model.model)}]
    assert (main.rows, weak.rows) == ([2] * 4, [1] * 4)
    assert {roles for _, (roles,) in weak.forwards} == {0}
    assert main.model.model.current_patcher is weak.model.model.current_patcher is None


def test_both_are_resident_together_while_either_is_asked(monkeypatch):
    main, weak = Counter(network("unet")), Counter(network("unet", seed=5))
    seen = {"main": [], "weak": []}
    for name, counter in (("main", main), ("weak", weak)):

        def look(executor, *args, name=name, **kwargs):
            patchers = comfy.model_management.loaded_models()  # None where a test before has left its network alone
            loaded = {id(patcher.model) for patcher in patchers if patcher is not None}
            seen[name].append({id(main.model.model), id(weak.model.model)} <= loaded)
            return executor(*args, **kwargs)

        counter.model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "look", look)
    comfy.model_management.unload_all_models()
    sample(autoguided(main.model, weak.model))
    assert seen == {"main": [True] * 4, "weak": [True] * 4}


def test_with_cfg_it_is_the_papers_sum():
    """D₊ + (cfg − 1)(D₊ − D₋) + (w − 1)(D₊ − D₀): affine in w."""
    main, weak = network("unet"), network("unet", seed=5)
    at = {scale: sample(autoguided(main, weak, scale), cfg=3.0, steps=1) for scale in (0.0, 1.0, 2.5)}
    assert torch.equal(at[0.0], sample(main, cfg=3.0, steps=1))
    assert close(at[0.0] + 2.5 * (at[1.0] - at[0.0]), at[2.5]) < 1e-5
    alone = sample(autoguided(main, weak, -1.0), cfg=1.0, steps=1)
    assert close(alone, sample(weak, cfg=1.0, steps=1)) < 1e-5  # w = 0 is the weak model itself


def test_one_weak_model_in_two_terms_is_evaluated_once():
    main, weak = network("unet"), Counter(network("unet", seed=5))
    twice = autoguided(autoguided(main, weak.model, 0.5), weak.model, 0.5)
    result = sample(twice, cfg=1.0)
    assert weak.rows == [1] * 4 and len(twice.get_additional_models_with_key(host.KEY)) == 1
    assert close(result, sample(autoguided(main, weak.model, 1.0), cfg=1.0)) < 1e-6


def test_a_smaller_network_of_the_same_family_and_another_parametrisation_may_guide():
    main = network("unet")
    for weak in (network("unet", channels=64), network("unet", prediction="v")):
        assert sample(autoguided(main, weak)).isfinite().all()


@pytest.mark.parametrize(("kind", "message"), [("sd3", "different latent spaces"), ("flux", "different latent spaces")])
def test_a_model_of_another_latent_space_is_refused_with_the_reason(kind, message):
    with pytest.raises(ValueError, match=message):
        autoguided(network("unet"), network(kind))


@pytest.mark.parametrize("kind", ["unet", "sd3", "flux", "wan"])
def test_a_model_of_another_text_encoder_is_refused_with_the_reason(kind, monkeypatch):
    main = network(kind)
    monkeypatch.setattr(networks, "CONTEXT", networks.CONTEXT + 8)
    with pytest.raises(ValueError, match="texts of different widths, 32 and 40, so one prompt cannot be for both"):
        autoguided(main, network(kind))


def test_patches_on_either_model_act_on_it_alone():
    main, weak = network("unet"), network("unet", seed=5)

    def shifted(model):
        model = model.clone()
        model.set_model_attn1_replace(lambda q, k, v, extra: v, "middle", 0)
        return model

    plain, on_main, on_weak = (
        sample(autoguided(a, b), steps=1, cfg=1.0)
        for a, b in ((main, weak), (shifted(main), weak), (main, shifted(weak)))
    )
    both = [sample(m, steps=1, cfg=1.0) for m in (main, weak, shifted(main), shifted(weak))]
    assert close(plain, 2 * both[0] - both[1]) < 1e-5
    assert close(on_main, 2 * both[2] - both[1]) < 1e-5
    assert close(on_weak, 2 * both[0] - both[3]) < 1e-5


def test_it_composes_with_pag_and_cfg():
    main, weak = Counter(network("unet")), Counter(network("unet", seed=5))
    assert sample(autoguided(pag(main.model), weak.model), cfg=3.0).isfinite().all()
    assert (main.rows, weak.rows) == ([3] * 4, [1] * 4)


def test_the_weak_model_has_the_areas_and_the_control_of_the_prompt():
    main, weak = network("unet"), network("unet", seed=5)
    positive, negative = prompts("unet")
    control = Control()
    runs = []
    pre_run = control.pre_run
    control.pre_run = lambda *args: runs.append(args) or pre_run(*args)
    conds = (node_helpers.conditioning_set_values(in_area(positive, (8, 16, 0, 0)), {"control": control}), negative)
    sample(main, conds=conds)
    alone = len(runs)
    assert sample(autoguided(main, weak), conds=conds).isfinite().all()
    assert len(runs) == 2 * alone and (0,) in control.seen  # made ready by the main model only, asked by both


def test_a_weak_model_that_is_the_main_one_says_so(caplog):
    main = network("unet")
    with caplog.at_level(logging.WARNING):
        assert close(sample(autoguided(main, main)), sample(main)) < 1e-5
    assert "Autoguidance has no effect: the weak model is the main model" in caplog.text


def test_patches_of_one_checkpoint_that_would_share_weights_are_refused_with_the_way_out():
    """|main − weak| would be 0 exactly."""
    main = network("unet")
    weak = main.clone()
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_v.weight"
    weak.add_patches({key: (torch.randn(64, 64, dtype=torch.float64),)})
    with pytest.raises(ValueError, match=r"share one set of weights. Load the checkpoint a second time"):
        sample(autoguided(main, weak))
    assert sample(main).isfinite().all()


def with_lora(model, strength=1.0):
    """The host's own loading of a LoRA file's tensors, on the values of the middle self-attention."""
    layer = "middle_block.1.transformer_blocks.0.attn1.to_v"
    width, generator = model.get_model_object(f"diffusion_model.{layer}.weight").shape[0], torch.Generator()
    up, down = (torch.randn(shape, generator=generator.manual_seed(0)) for shape in ((width, 4), (4, width)))
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_v"
    tensors = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(4.0)}
    return comfy.sd.load_lora_for_models(model, None, tensors, strength, 0.0)[0]


@pytest.mark.skipif(not CHECKPOINTS, reason="BEYOND_CFG_MODELS is not set")
def test_a_lora_makes_a_weak_model_where_the_host_can_copy_the_checkpoint_and_is_refused_where_it_cannot(caplog):
    file = str(Path(CHECKPOINTS) / "tiny_sd15.ckpt")
    main = comfy.sd.load_checkpoint_guess_config(file, False, False, False)[0]
    conds = [[[torch.randn(1, 7, 768, generator=torch.Generator().manual_seed(seed)), {}]] for seed in (1, 2)]

    def result(model):
        return sample(model, cfg=1.0, conds=conds, steps=2, latent=torch.zeros(1, 4, 8, 8))

    plain, weak = result(main), with_lora(main)
    guided = autoguided(main, weak)
    if "force_deepcopy" not in inspect.signature(comfy.model_patcher.ModelPatcher.clone).parameters:
        with pytest.raises(ValueError, match=r"Autoguidance: .*share one set of weights.*cannot copy a loaded model"):
            result(guided)
    else:
        assert close(result(weak), plain) > 1e-3 and close(result(guided), plain) > 1e-3
        assert close(result(autoguided(main, weak, -1.0)), result(weak)) < 1e-3  # the weak model itself
        with caplog.at_level(logging.INFO):
            result(guided)
        assert "got weights of its own" not in caplog.text  # the first run's are kept
    assert torch.equal(result(main), plain)
    nothing = close(result(autoguided(main, main.clone())), plain)
    assert nothing < 1e-5  # unlike its clone without a LoRA


def test_guidance_on_the_weak_model_is_said_not_to_act(caplog):
    main, weak = network("unet"), network("unet", seed=5)
    with caplog.at_level(logging.WARNING):
        result = sample(autoguided(main, pag(weak)))
    assert "guidance on a weak model does not act" in caplog.text
    assert torch.equal(result, sample(autoguided(main, weak)))


def test_outside_its_interval_the_weak_model_is_not_asked():
    main, weak = network("unet"), Counter(network("unet", seed=5))
    sample(autoguided(main, weak.model, start_percent=0.5), steps=8)
    assert 2 <= len(weak.rows) <= 5


def test_injections_into_a_shared_network_are_refused():
    """A bypass LoRA on the weak model would act on the main one too."""
    main = network("unet")
    weak = main.clone()
    weak.set_injections("bypass", [PatcherInjection(inject=lambda patcher: None, eject=lambda patcher: None)])
    with pytest.raises(ValueError, match=r"Autoguidance: .* Turn bypass off"):
        sample(autoguided(main, weak))


def test_a_lora_hook_of_the_prompt_acts_on_both_models():
    """Registered with each; the host drops one that it never registered, and so do we."""
    main, weak, plain = network("unet"), network("unet", seed=5), prompts("unet")
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_v"
    generator = torch.Generator().manual_seed(0)
    lora = {f"{key}.lora_up.weight": torch.randn(64, 2, generator=generator)}
    lora[f"{key}.lora_down.weight"] = torch.randn(2, 64, generator=generator)

    def hooked():
        hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
        return node_helpers.conditioning_set_values(plain[0], {"hooks": hooks}), plain[1]

    def result(model, conds):
        return sample(model, cfg=1.0, conds=conds, steps=1)

    d_main, d_weak = result(main, hooked()), result(weak, hooked())
    assert close(d_weak, result(weak, plain)) > 1e-3
    assert close(result(autoguided(main, weak), hooked()), d_main + (d_main - d_weak)) < 1e-5
    assert torch.equal(result(main, plain), result(network("unet"), plain))  # gone afterwards, on both
    assert torch.equal(result(weak, plain), result(network("unet", seed=5), plain))
    never = hooked()
    for hook in never[0][0][1]["hooks"].hooks:
        hook.need_weight_init = False  # as if it had weights already: no model has them
    assert close(result(autoguided(main, weak), never), result(autoguided(main, weak), plain)) < 1e-6
