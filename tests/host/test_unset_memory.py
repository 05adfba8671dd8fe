"""What memory held before never reaches a picture: each tensor that is made without values is full of NaN here."""

import pytest
import torch
from pack.tests.host import networks
from pack.tests.host.harness import SKIPPING, TERM_NODES, network, sample


@pytest.fixture(autouse=True)
def full_of_nan():
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.ones(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(was[0], warn_only=was[1])
    torch.utils.deterministic.fill_uninitialized_memory = filled


METHODS = ("PAG", "SEG", "SAG", "ICG", "TSG", "MaskedAttention", "SkipLayer", "S2", "ERG", "Autoguidance")
CASES = [(kind, method) for kind in ("unet", "sd3", "flux") for method in METHODS]
CASES = [(kind, method) for kind, method in CASES if not (kind == "unet" and f"BeyondCFG{method}" in SKIPPING)]


@pytest.mark.parametrize(("kind", "node_id"), CASES)
def test_a_picture_of_any_shape_is_finite(kind, node_id):
    node = TERM_NODES[f"BeyondCFG{node_id}"]
    defaults = {given.id: given.default for given in node.inputs if getattr(given, "default", None) is not None}
    weak = {given.id: network(kind, seed=5) for given in node.inputs if given.id == "weak_model"}
    whole = {"start_percent": 0.0, "end_percent": 1.0}
    model = node.execute(model=network(kind), **defaults | whole | weak).result[0]
    latent = networks.latent(kind, 3, 6, 10)
    picture = sample(model, kind, latent=latent, steps=2)
    assert picture.isfinite().all() and not torch.equal(picture, sample(network(kind), kind, latent=latent, steps=2))
