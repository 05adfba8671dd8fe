"""Every term by itself and with every other, as users chain them, on the host."""

import asyncio
import itertools

import pytest
import torch
from comfy_extras.nodes_sd3 import SkipLayerGuidanceSD3
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from pack.guiders import host
from pack.guiders.perturbation import PerturbationGuidance
from pack.guiders.schedule import Curve, Schedule
from pack.nodes.extension import BeyondCFG
from pack.patches import PROMPT_GUIDANCES, NoisyTimeEmbedding, SkippedLayer
from pack.patches.host import select_layers
from pack.tests.host import networks
from pack.tests.host.harness import SKIPPING, Counter, close, pag, prompts, run, sample, shared_network, sigmas_of

KINDS = ("unet", "sd3", "flux")
NODES = {node.define_schema().node_id: node for node in asyncio.run(BeyondCFG().get_node_list())}
OTHERS = {"BeyondCFGClassifier", "BeyondCFGNoisyClassifier"}  # want a VAE, a file
OTHERS |= {
    "BeyondCFGDegradedModel",
    "BeyondCFGRecorder",
    "BeyondCFGOptions",
    "BeyondCFGReuse",
    "BeyondCFGStop",
    "BeyondCFGGuidance",  # puts others' on
}  # no terms of their own
TERMS = sorted(
    key
    for key, node in NODES.items()
    if [given.id for given in node.define_schema().inputs][:1] == ["model"]
    and node.define_schema().outputs[0].get_io_type() == "MODEL"
    and key not in OTHERS
    and not node.hidden_in_page
)


NEGATIVES = [method.about.node_id for method in PROMPT_GUIDANCES]  # one of them can act at a time
TOGETHER = [key for key in TERMS if key not in NEGATIVES[1:]]


def on_kinds(*groups, kinds=KINDS) -> list:
    """Each group of terms on each network it can be on; a UNet has no layer to skip, which test_nodes.py shows refused."""
    pairs = ((group, kind) for group in groups for kind in kinds)
    return [
        pytest.param(*pair, id="-".join((*pair[0], pair[1])))
        for pair in pairs
        if not (pair[1] == "unet" and {*SKIPPING} & {*pair[0]})
    ]


ABLE = [pair for pair in itertools.combinations(TERMS, 2) if not {*pair} <= {*NEGATIVES}]
AT_A_TIME = 5
ALL_KINDS = (*KINDS, "wan")


def able_on(kind: str) -> list[tuple[str, str]]:
    return [pair for pair in ABLE if not (kind == "unet" and {*SKIPPING} & {*pair})]


def chains_of(pairs) -> list[tuple[str, ...]]:
    """Chains that have each of these pairs of terms in one of them at least."""
    left, chains = dict.fromkeys(pairs), []
    able, terms = {*pairs}, sorted({key for pair in pairs for key in pair})

    def new(keys, key) -> int:
        """How many pairs are in no chain yet that `key` makes with `keys`; -1 where it cannot be beside one of them."""
        made = [tuple(sorted((key, other))) for other in keys]
        return sum(pair in left for pair in made) if {*made} <= able else -1

    while left:
        keys = [*next(iter(left))]
        while len(keys) < AT_A_TIME:
            keys.append(max((key for key in terms if key not in keys), key=lambda key: new(keys, key)))
        for pair in itertools.combinations(sorted(keys), 2):
            left.pop(pair, None)
        chains.append(tuple(keys))
    return chains


def on_a_kind(chain: tuple[str, ...], kind: str):
    return pytest.param(chain, kind, id="-".join((kind, *chain)))


def chains_in_turn() -> list:
    """Chains that have every two terms in one of them at least, each on a network in turn."""
    found = []
    for at, chain in enumerate(chains_of(ABLE)):
        kinds = [kind for kind in ALL_KINDS if not (kind == "unet" and {*SKIPPING} & {*chain})]
        found.append(on_a_kind(chain, kinds[at % len(kinds)]))
    return found


def chains_on_every_kind() -> list:
    """Chains that have every two terms in one of them at least, on every network that both can be on."""
    return [on_a_kind(chain, kind) for kind in ALL_KINDS for chain in chains_of(able_on(kind))]


def further_forwards(*keys) -> int:
    """A branch whose x is made from the first predictions has to wait for them, and windows are of another size."""
    return keys.count("BeyondCFGSAG") + keys.count("BeyondCFGSlidingWindow")


def apply(key, model, **changes):
    """The node with its defaults, over the whole of sampling."""
    given = {given.id: given.default for given in NODES[key].define_schema().inputs if hasattr(given, "default")}
    given |= {"start_percent": 0.0, "end_percent": 1.0, "model": model} | changes
    inputs = [given.id for given in NODES[key].define_schema().inputs]
    further = dict.fromkeys(("weak_model", "auxiliary_model", "negative_model"), given.pop("weak", None))
    further["empty_conditioning"] = given.pop("empty", None)
    given |= {name: value for name, value in further.items() if name in inputs}
    return NODES[key].execute(**given).result[0]


def chain(keys, kind, model):
    weak = shared_network(kind, seed=5)
    for key in keys:
        model = apply(key, model, weak=weak, empty=networks.conditioning(kind, 3))
    return model


@pytest.mark.parametrize(("keys", "kind"), on_kinds(*((key,) for key in TERMS), kinds=(*KINDS, "wan")))
def test_a_term_alone_is_finite_and_adds_no_forward_that_it_need_not(keys, kind):
    counter = Counter(chain(keys, kind, shared_network(kind)))
    latent = networks.latent(kind, 2, 12, 18)
    assert sample(counter.model, kind, latent=latent, steps=2).isfinite().all()
    assert len(counter.rows) == 2 * (1 + further_forwards(*keys))


def run_together(keys, kind):
    """As patch and as guider alike, with no forward that need not be."""
    latent = networks.latent(kind, 1, 8, 8)
    counter = Counter(chain(keys, kind, shared_network(kind)))
    patched = sample(counter.model, kind, latent=latent, steps=1)
    guider = host.make_guider(counter.model, *prompts(kind), 4.0)
    assert patched.isfinite().all() and torch.equal(run(guider, latent, steps=1), patched)
    assert len(counter.rows) == 2 * (1 + further_forwards(*keys))  # two runs of one step


@pytest.mark.parametrize(("keys", "kind"), chains_in_turn())
def test_every_two_terms_run_together_among_others(keys, kind):
    run_together(keys, kind)


@pytest.mark.slow
@pytest.mark.parametrize(("keys", "kind"), chains_on_every_kind())
def test_every_two_terms_run_together_on_every_network(keys, kind):
    run_together(keys, kind)


def test_the_chains_leave_no_two_terms_out():
    def together(chains):
        return {pair for chain in chains for pair in itertools.combinations(sorted(chain.values[0]), 2)}

    assert together(chains_in_turn()) == {*ABLE}
    for kind in ALL_KINDS:
        assert together(chain for chain in chains_on_every_kind() if chain.values[1] == kind) == {*able_on(kind)}


def add(model, perturbation, scale=2.0, **when):
    return host.add_term(model, host.Term(PerturbationGuidance(scale, perturbation), Schedule(**when), "test"))


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_skip_layer_is_the_hosts_skip_layer(cfg):
    model = shared_network("sd3")
    theirs = SkipLayerGuidanceSD3().skip_guidance_sd3(model, "0, 2", 2.0, 0.0, 1.0)[0]
    ours = add(model, SkippedLayer(select_layers(model, "0, 2", skip=True)))
    assert close(sample(ours, "sd3", cfg), sample(theirs, "sd3", cfg)) < 2e-6
    assert close(sample(model, "sd3", cfg), sample(theirs, "sd3", cfg)) > 1e-2

    model = shared_network("flux")
    theirs = SkipLayerGuidanceDiT.execute(model, 2.0, 0.0, 1.0, "1", "0, 2")[0]
    ours = add(model, SkippedLayer(select_layers(model, "double.1, single.0, single.2", skip=True)))
    assert close(sample(ours, "flux", cfg), sample(theirs, "flux", cfg)) < 1e-5
    assert close(sample(model, "flux", cfg), sample(theirs, "flux", cfg)) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_time_step_guidance_acts_by_its_noise_alone(kind):
    model = shared_network(kind)
    plain = sample(model, kind)
    assert close(sample(add(model, NoisyTimeEmbedding(noise=0.0)), kind), plain) < 1e-6
    noisy = add(model, NoisyTimeEmbedding(noise=1.0))
    state = torch.random.get_rng_state()
    assert close(sample(noisy, kind), plain) > 1e-3
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(sample(noisy, kind), sample(noisy, kind))  # drawn by seed and step
    assert not torch.equal(sample(noisy, kind, seed=8), sample(noisy, kind))
    assert not [module for module in model.model.diffusion_model.modules() if module._forward_hooks]


def test_a_samples_noise_does_not_depend_on_what_else_is_in_the_batch():
    model = add(shared_network("unet"), NoisyTimeEmbedding(noise=1.0))
    two = networks.latent("unet", 2)
    torch.manual_seed(0)
    both = sample(model, latent=two, steps=2)
    assert close(sample(model, latent=two[:1], steps=2), both[:1]) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_curve_multiplies_the_strength(kind):
    model = shared_network(kind)
    rule = pag(model, 2.0).model_options[host.KEY][0].rule
    half = host.add_term(model, host.Term(rule, Schedule(curve=Curve(((0.0, 0.5),))), "half"))
    assert close(sample(half, kind), sample(pag(model, 1.0), kind)) < 2e-6
    off = Counter(host.add_term(model, host.Term(rule, Schedule(curve=Curve(((0.0, 0.0),))), "off")))
    assert torch.equal(sample(off.model, kind), sample(model, kind)) and off.rows == [2] * 4


def test_a_curve_over_noise_levels_switches_where_it_says():
    model = shared_network("unet")
    sigmas = sigmas_of(model, 8)
    cut = (sigmas[3].item() + sigmas[4].item()) / 2
    rule = pag(model).model_options[host.KEY][0].rule
    curve = Curve(((cut, 1.0), (cut + 1e-6, 0.0)), over="sigma")
    counter = Counter(host.add_term(model, host.Term(rule, Schedule(curve=curve), "late")))
    sample(counter.model, sigmas=sigmas)
    assert counter.rows == [2] * 4 + [3] * 4


def test_rescale_takes_the_guided_result_back_to_the_positives_contrast():
    """One step, so that the result is the denoised prediction itself."""
    model = shared_network("unet")
    latent = networks.latent("unet", 2)
    guided, positive = (sample(model, cfg=cfg, latent=latent, steps=1) for cfg in (8.0, 1.0))
    rescaled = sample(apply("BeyondCFGRescale", model, amount=1.0), cfg=8.0, latent=latent, steps=1)
    for got, was, wanted in zip(rescaled, guided, positive, strict=True):
        assert close(got, was * (wanted.std() / was.std())) < 1e-5


def test_adaptive_projected_guidance_without_its_settings_is_plain_cfg():
    model = shared_network("unet")
    neutral = apply("BeyondCFGAdaptiveProjected", model, eta=1.0, norm_threshold=0.0, momentum=0.0)
    assert torch.equal(sample(neutral), sample(model))
    half = apply("BeyondCFGAdaptiveProjected", model, eta=1.0, norm_threshold=1e-3)
    assert (
        close(sample(half, cfg=8.0), sample(model, cfg=1.0))
        < 1e-3
        < close(sample(model, cfg=8.0), sample(model, cfg=1.0))
    )
