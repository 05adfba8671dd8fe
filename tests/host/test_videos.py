"""What videos have beside their own tokens, and the networks that are refused."""

import pytest
import torch
from pack.patches import NoisyTimeEmbedding
from pack.patches.architectures import find, why_not
from pack.tests.host.harness import close
from pack.tests.host.test_architectures import OURS, ROWS, forward
from pack.tests.host.zoo import SPECIMENS
from pack.tests.host.zoo.specimen import has


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("LTX-Video with keyframes", 45),  # a time for each token
        ("LTX-2.3 with weaker keyframes", 45),
        ("Wan 2.2 5B", 3),  # one for each frame
        ("Wan 2.1", 1),
    ],
)
def test_the_times_of_guides_stay_as_they_are(name, own):
    specimen = next(specimen for specimen in SPECIMENS if specimen.name == name)
    if specimen.since and not has(specimen.since):
        pytest.skip(f"this host has no {specimen.since}")
    torch.manual_seed(0)
    model, seen = specimen.build(), []
    network = model.model.diffusion_model
    embedder = getattr(network, "adaln_single", network).get_submodule("emb" if "LTX" in name else "time_embedding")
    embedder.register_forward_hook(lambda module, args, out: seen.append(out.reshape(len(ROWS), -1, out.shape[-1])))
    forward(specimen, model)
    forward(specimen, model, NoisyTimeEmbedding(noise=1.0))
    plain, noisy = seen
    assert torch.equal(noisy[2:], plain[2:]) and torch.equal(noisy[OURS, own:], plain[OURS, own:])
    assert all(close(noisy[OURS, at], plain[OURS, at]) > 0.1 for at in range(own))
    assert plain.shape[1] > own or "LTX" not in name


@pytest.mark.parametrize(("module", "name"), [("wan.ar_model", "CausalWanModel"), ("minimax.model", "MiniMaxH3Model")])
def test_these_are_refused_by_name(module, name):
    network = getattr(pytest.importorskip(f"comfy.ldm.{module}"), name)
    made = object.__new__(network)
    assert find(made) is None and "nothing here knows" not in why_not(made)
