"""What SEG costs, counted in floating-point operations, and that it acts on the sizes that pictures have."""

import pytest
from pack.guiders import host
from pack.tests.host import networks
from pack.tests.host.harness import close, pag, sample
from pack.tests.host.test_seg import seg
from torch.utils.flop_counter import FlopCounterMode

CHANNELS = 64  # of the UNet's middle block


def flops(model, latent) -> int:
    """Of one step with CFG, all rows computed whole."""
    with FlopCounterMode(display=False) as counter:
        sample(host.with_options(model, "off"), latent=latent, steps=1)
    return counter.get_total_flops()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 16), (16, 24)])
def test_an_infinite_blur_costs_one_query_and_a_finite_one_a_whole_attention_and_its_blur(height, width):
    """An attention of M queries to N keys of C channels is 2 M N C for the logits and as much for the values."""
    latent, model = networks.latent("unet", 1, height, width), networks.unet()
    h, w = height // 2, width // 2  # tokens of the middle block, after one halving
    plain, values = flops(model, latent), flops(pag(model), latent)
    off, infinite, finite = (flops(seg(model, sigma), latent) for sigma in (0.0, -1.0, 2.0))
    n, per_pair, third_row = h * w, 4 * CHANNELS, plain // 2
    assert off == plain
    assert infinite - values == n * per_pair
    assert plain + third_row - infinite == n * (n - 1) * per_pair
    assert finite - (plain + third_row) == 2 * n * (h + w) * CHANNELS


SIZES = [("unet", 64, 32), ("sd3", 64, 32), ("flux", 64, 32), ("flux", 96, 152), ("sdxl", 96, 152)]


@pytest.mark.parametrize(("kind", "height", "width"), SIZES)
def test_it_acts_on_a_picture_that_is_no_square(kind, height, width):
    latent = networks.latent(kind, 1, height, width)
    model = networks.unet(sdxl_like=True) if kind == "sdxl" else getattr(networks, kind)()
    plain = sample(model, kind, cfg=1.0, latent=latent, steps=1)
    for blur in (-1.0, 10.0) if kind != "sdxl" else (10.0,):  # whose attention is slow at that size
        guided = sample(seg(model, blur), kind, cfg=1.0, latent=latent, steps=1)
        assert guided.isfinite().all() and close(guided, plain) > 1e-3
