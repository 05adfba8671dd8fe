"""Rows that are equal so far are computed once, which changes what is computed and not what comes out.

Shared is held against batched, the same rows with sharing off, to what the size of a batch does to rounding: in float64
where the host's kernels allow it, else measured in the same test.
"""

import pytest
import torch
from harness import close
from pack.patches import BlurredQuery, IdentityAttention, SkippedLayer
from pack.patches.attention_sums import AttentionSums
from pack.patches.base import Moment
from pack.patches.host import Plan, Sharing, architecture_of, planned, select_layers
from test_architectures import model, specimen  # noqa: F401  fixtures

UNSHARED = {}


def predict(specimen, model, seeds, shares, sharing):  # noqa: F811
    """The network's prediction for shares of `seeds` rows each; equal seeds are copies."""
    x, conds = specimen.inputs([seed for share in seeds for seed in share])
    options = {"cond_or_uncond": [0] * len(seeds), "uuids": list(range(len(seeds)))}
    found = []
    plan = Plan(tuple(shares), {p for p in shares if p}, Moment(5, 2, 0.7), lambda *seen: found.append(seen), tuple(seeds), sharing)
    sigma = float(model.model.model_sampling.percent_to_sigma(0.4))
    with torch.no_grad():
        out = model.model.apply_model(
            x, torch.full((len(x),), sigma), transformer_options=planned(options, plan), **conds
        )
    return out, found


@pytest.mark.parametrize("batch", [1, 2])
def test_shared_is_batched_wherever_rows_part(specimen, model, batch, supports):  # noqa: F811
    layers = select_layers(model, "all")
    positive, negative = tuple(range(1, 1 + batch)), tuple(range(11, 11 + batch))
    sharing = None
    for layer in layers:
        for seeds in ((positive, positive), (negative, positive, positive)):
            shares = [None] * (len(seeds) - 1) + [IdentityAttention((layer,))]
            sharing = Sharing()
            shared, _ = predict(specimen, model, seeds, shares, sharing)
            batched, _ = predict(specimen, model, seeds, shares, Sharing(on=False))
            assert close(shared, batched) < 2e-5
            assert not sharing.refused
    print(specimen.name, sharing.taken, sharing.modules)
    supports(specimen.row, "sharing", "yes" if any(sharing.taken) else "no")
