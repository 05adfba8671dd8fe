"""What a guided step costs, counted in floating-point operations of full-size networks without weights (meta tensors),
against the host's own way: one forward of the positive and the negative, and one more of the perturbed row."""

import pytest
from pack.patches import BlurredQuery, IdentityAttention, SkippedLayer
from pack.tests.host.full_size import Step, without_values


@pytest.fixture(scope="module")
def steps():
    """Each network once."""
    made = {}
    with without_values():
        yield lambda name: made.setdefault(name, Step(name))


@pytest.mark.parametrize(("cfg", "most"), [(True, 0.90), (False, 0.845)])
@pytest.mark.parametrize("name", ["SD 1.5", "SDXL"])
def test_pag_in_the_middle_of_a_unet(steps, name, cfg, most):
    step = steps(name)
    pag = IdentityAttention(step.layers("middle"))
    ratio = step.shared(cfg, pag) / step.naive(cfg, pag)
    print(name, cfg, ratio)
    assert ratio <= most


@pytest.mark.parametrize(("layer", "with_cfg", "without"), [("double.28", 0.84, 0.76), ("double.43", 0.755, 0.63)])
def test_pag_half_way_and_three_quarters_through_flux(steps, layer, with_cfg, without):
    step = steps("Flux")
    at = int(layer.split(".")[1])
    pag = IdentityAttention((step.layers("all")[at],))
    for cfg, most in ((True, with_cfg), (False, without)):
        ratio = step.shared(cfg, pag) / step.naive(cfg, pag)
        print(layer, cfg, ratio)
        assert ratio <= most


@pytest.mark.parametrize("name", ["SD 1.5", "SDXL"])
def test_seg_in_the_middle_and_decoder_of_a_unet(steps, name):
    """Against the same perturbation by a forward of its own that attends with all queries."""
    step = steps(name)
    layers = step.layers("middle, " + ("output.3-11" if name == "SD 1.5" else "output.0-5"))
    naive = step.forward((None, None)) + step.forward((None,))
    ratio = step.shared(True, BlurredQuery(layers, -1.0)) / naive
    print(name, ratio)
    assert ratio <= 0.87


def test_each_row_costs_what_it_does_not_have_in_common_with_another(steps):
    """PAG, SEG and Skip Layer on Flux: each row's own part is what comes after the layer where it parts."""
    step = steps("Flux")
    layers = step.layers("all")
    perturbations = (IdentityAttention((layers[19],)), BlurredQuery((layers[28],), -1.0), SkippedLayer((layers[43],)))
    together = step.shared(True, *perturbations)
    one_by_one = [step.shared(True, p) for p in perturbations]
    own = step.forward((None, None))
    assert abs(together - own - sum(one - own for one in one_by_one)) < 1e-3 * own
    print(together / step.naive(True, *perturbations))
    assert together < 0.8 * step.naive(True, *perturbations)


@pytest.mark.parametrize(("name", "layers", "most"), [("SDXL", "middle", 1.6), ("Flux", "0.5", 1.55)])
def test_cfg_and_pag_in_every_third_step(steps, name, layers, most):
    """Guidance Reuse: of three steps one computes both, the others evaluate the positive alone."""
    step = steps(name)
    plain = step.forward((None,))
    ratio = (step.shared(True, IdentityAttention(step.layers(layers))) + 2 * plain) / (3 * plain)
    print(name, ratio)
    assert ratio <= most
