"""Layers that others have made, and layers that are not all loaded: guidances act, and the model alone stays as it was."""

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import pytest
import torch
from pack.tests.host import networks
from pack.tests.host.harness import close, network, sample
from pack.tests.host.test_degraded import degraded
from pack.tests.host.test_terms import apply

KINDS = ["unet", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sd3", "flux"))]
TERMS = {
    "BeyondCFGPAG": {},
    "BeyondCFGSEG": {},
    "BeyondCFGSAG": {"scale": 1.0},
    "BeyondCFGICG": {"weight": 3.0},
    "BeyondCFGTSG": {"weight": 3.0, "noise": 2.0},
    "BeyondCFGAutoguidance": {"weight": 3.0},
}


def run(model, kind: str) -> torch.Tensor:
    return sample(model, kind, steps=2)


class PackedLinear(torch.nn.Module):
    """Weights of eight bits that become numbers when it runs, and are patched then: how GGUF files are run."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        self.weight = torch.nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias, self.patches = linear.bias, []

    def forward(self, x):
        weight = self.weight.to(x.dtype) * self.scale.to(x.dtype)
        weight = comfy.lora.calculate_weight(self.patches, weight, "") if self.patches else weight
        return torch.nn.functional.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))


class PackedPatcher(comfy.model_patcher.ModelPatcher):
    """Leaves the patches of such layers to them."""

    def patch_weight_to_device(self, key, *args, **kwargs):
        layer = self.get_model_object(key.rpartition(".")[0])
        if not isinstance(layer, PackedLinear):
            return super().patch_weight_to_device(key, *args, **kwargs)
        if key.endswith(".weight"):
            layer.patches = self.patches.get(key, [])

    def unpatch_model(self, *args, **kwargs):
        for layer in self.model.modules():
            if isinstance(layer, PackedLinear):
                layer.patches = []
        return super().unpatch_model(*args, **kwargs)


def packed(kind: str):
    model = getattr(networks, kind)()
    for parent in [*model.model.diffusion_model.modules()]:
        for name, layer in parent.named_children():
            if isinstance(layer, torch.nn.Linear):
                setattr(parent, name, PackedLinear(layer))
    return PackedPatcher(model.model, load_device=model.load_device, offload_device=model.offload_device)


@pytest.mark.parametrize("kind", KINDS)
def test_guidances_act_on_packed_layers(kind):
    model = packed(kind)
    plain = run(model, kind)
    assert 1e-4 < close(plain, run(getattr(networks, kind)(), kind)) < 0.5
    weak = degraded(model, "dropout")
    for key, changes in TERMS.items():
        found = run(apply(key, model, weak=weak, **changes), kind)
        assert found.isfinite().all() and close(found, plain) > 1e-4, key
        assert torch.equal(run(model, kind), plain), key
    rounded = degraded(model, "quantised weights")
    assert close(run(rounded, kind), plain) > 1e-4 and torch.equal(run(model, kind), plain)
    with pytest.raises(ValueError, match="Autoguidance: the weak model is the main model's checkpoint"):
        run(apply("BeyondCFGAutoguidance", model, weak=rounded), kind)
    assert torch.equal(run(model, kind), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_guidances_are_the_same_where_half_of_the_model_is_left_outside(kind, monkeypatch):
    """As on a device with too little memory: what is outside is cast, and patched, whenever it runs."""
    model, weak = network(kind), degraded(network(kind, seed=5), "quantised weights")
    terms = {"none": model} | {key: apply(key, model, weak=weak, **changes) for key, changes in TERMS.items()}
    whole = {key: run(term, kind) for key, term in terms.items()}
    comfy.model_management.unload_all_models()
    load, partly = comfy.model_management.LoadedModel.model_load, []

    def load_half(self, memory=0, *args, **kwargs):
        loaded = load(self, self.model.model_size() // 2, *args, **kwargs)
        partly.append(loaded.model_lowvram)
        return loaded

    monkeypatch.setattr(comfy.model_management.LoadedModel, "model_load", load_half)
    for key in [*whole, "none"]:
        assert close(run(terms[key], kind), whole[key]) < 1e-6, key
        comfy.model_management.unload_all_models()
    assert len(partly) > len(terms) and all(partly)
