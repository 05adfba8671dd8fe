"""Where another node cuts or merges the tokens of a self-attention, each method acts on what that attention is, or says
that it cannot. What is expected is made from the host's HyperTile and ToMe nodes, and from naive attentions beside them."""

import comfy.ldm.modules.attention
import pytest
import torch
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_tomesd import TomePatchModel
from einops import rearrange
from pack.guiders import host
from pack.guiders.perturbation import PerturbationGuidance
from pack.guiders.schedule import Schedule
from pack.patches import BlurredQuery, MaskedAttention
from pack.patches.attention_sums import AttentionSums
from pack.patches.base import Moment
from pack.patches.blurred_query import blur_matrix
from pack.patches.host import Plan, Proofs, planned, select_layers
from pack.tests.host import networks
from pack.tests.host.harness import TERM_NODES, close, network, pag, sample
from pack.tests.host.reference import identity, with_reference_pag

SIDE = 4  # of HyperTile's tiles, in tokens, at every depth
SIZES = {"square": (16, 16), "wide": (16, 24), "stripes": (16, 8)}  # of the latent; PAG's layer has half of each


def hypertile(model):
    return HyperTile.execute(model, 8 * SIDE, 1, 2, False)[0]


def proper(model):
    """Tiles of queries, keys and values alike."""
    model = model.clone()

    def cut(*tokens_and_options):
        *parts, extra = tokens_and_options
        return [rearrange(p, "b (nh h w) c -> (b nh) (h w) c", nh=2, w=_sides(p, extra)[1]) for p in parts]

    def joined(out, extra):
        return rearrange(out, "(b nh) n c -> b (nh n) c", nh=2)

    model.set_model_attn1_patch(cut)
    model.set_model_attn1_output_patch(joined)
    return model


def _sides(tokens, extra):
    _, _, height, width = extra["activations_shape"]
    return height, width


def hosts_tiles(tokens, extra):
    """[rows, tokens, …] → [rows · tiles, tokens of one, …], as HyperTile cuts: a picture that is not square otherwise."""
    *_, high, wide = extra["original_shape"]
    count = tokens.shape[1]
    aspect = wide / high
    high, wide = round((count * aspect) ** 0.5), round((count / aspect) ** 0.5)
    return rearrange(
        tokens, "b (nh h nw w) c -> (b nh nw) (h w) c", h=min(high, SIDE), w=min(wide, SIDE),
        nh=max(1, high // SIDE), nw=max(1, wide // SIDE),
    )  # fmt: skip


def own_values(q, k, v, extra):
    return hosts_tiles(v, extra)


def term(model, perturbation, scale=3.0):
    return host.add_term(model, host.Term(PerturbationGuidance(scale, perturbation), Schedule(), "test"))


@pytest.mark.parametrize("size", SIZES)
def test_pag_gives_every_token_its_own_value_whatever_tile_it_is_in(size):
    model, latent = network("unet"), networks.latent("unet", 2, *SIZES[size])
    expected = sample(with_reference_pag(hypertile(model), "unet", attention=own_values), latent=latent)
    for chained in (hypertile(pag(model)), pag(hypertile(model))):
        assert close(sample(chained, latent=latent), expected) < 2e-6
    assert close(sample(pag(model), latent=latent), expected) > 1e-3  # the tiles do something
    assert close(sample(hypertile(model), latent=latent), expected) > 1e-3


@pytest.mark.parametrize("sigma", [-1.0, 2.0])
def test_seg_blurs_each_tile_by_itself(sigma):
    def blurred(q, k, v, extra):
        if sigma < 0:
            q = q.mean(1, keepdim=True).expand_as(q)
        else:
            matrix = blur_matrix(SIDE, sigma, "symmetric", q.dtype, q.device)
            q = rearrange(q, "b (h w) c -> b h w c", h=SIDE)
            q = torch.einsum("ih,jw,bhwc->bijc", matrix, matrix, q).flatten(1, 2)
        return comfy.ldm.modules.attention.optimized_attention(q.contiguous(), k, v, extra["n_heads"])

    model = network("unet")
    expected = sample(with_reference_pag(hypertile(model), "unet", attention=blurred))
    seg = BlurredQuery(select_layers(model, "middle"), sigma)
    for chained in (hypertile(term(model, seg)), term(hypertile(model), seg)):
        assert close(sample(chained), expected) < 2e-6
    assert close(sample(term(model, seg)), expected) > 1e-3


def test_tiles_that_are_no_rectangles_of_the_picture_cannot_be_blurred():
    model, latent = network("unet"), networks.latent("unet", 1, *SIZES["wide"])
    layers = select_layers(model, "middle")
    with pytest.raises(
        ValueError, match=r"SEG: in middle the tokens are cut into 6 tiles.*HyperTile.*blur_sigma to -1"
    ):
        sample(hypertile(term(model, BlurredQuery(layers, 2.0))), latent=latent, steps=1)
    assert sample(hypertile(term(model, BlurredQuery(layers, -1.0))), latent=latent, steps=1).isfinite().all()


def test_where_a_tile_has_other_keys_than_its_own_nothing_is_masked_at_random():
    model = network("unet")
    masked = MaskedAttention(select_layers(model, "middle"), 0.5)
    with pytest.raises(
        RuntimeError, match=r"Masked Attention: in middle the tokens are cut into 4 tiles, and their keys"
    ):
        sample(hypertile(term(model, masked)), steps=1)
    assert sample(proper(term(model, masked)), steps=1).isfinite().all()


@pytest.mark.parametrize("perturbation", ["PAG", "SEG"])
def test_tiles_of_queries_keys_and_values_alike_are_pictures_of_their_own(perturbation):
    def blurred(q, k, v, extra):
        high, wide = (side // cut for side, cut in zip(_sides(q, extra), (2, 1), strict=True))
        down, across = (blur_matrix(side, 1.0, "symmetric", q.dtype, q.device) for side in (high, wide))
        q = torch.einsum("ih,jw,bhwc->bijc", down, across, rearrange(q, "b (h w) c -> b h w c", h=high)).flatten(1, 2)
        return comfy.ldm.modules.attention.optimized_attention(q, k, v, extra["n_heads"])

    model = network("unet")
    mine, attention = {
        "PAG": (pag, identity),
        "SEG": (lambda m: term(m, BlurredQuery(select_layers(m, "middle"), 1.0)), blurred),
    }[perturbation]
    expected = sample(with_reference_pag(proper(model), "unet", attention=attention))
    assert close(sample(proper(mine(model))), expected) < 2e-6
    assert close(sample(mine(model)), expected) > 1e-3


@pytest.mark.parametrize("add", [hypertile, proper])
def test_what_sag_sees_in_tiles_is_put_together(add):
    model, seen, maps = add(network("unet")), [], []
    sums = AttentionSums(select_layers(model, "middle"))

    def looked_at(q, k, v, extra):
        heads = extra["n_heads"]
        qh, kh = (part.reshape(len(q), -1, heads, part.shape[2] // heads).transpose(1, 2) for part in (q, k))
        maps.append((qh @ kh.mT / qh.shape[-1] ** 0.5).softmax(-1).mean(1).sum(1))  # [rows · tiles, keys of one]
        return comfy.ldm.modules.attention.optimized_attention(q, k, v, heads)

    options = model.model_options["transformer_options"]
    plain = model.clone()
    plain.set_model_attn1_replace(looked_at, "middle", 0)
    x, text = torch.randn(4, 4, 16, 16), torch.randn(4, 20, 32)
    call = {"t": torch.full((4,), 2.0), "c_crossattn": text}
    plan = Plan((None, sums), Proofs(()), Moment(), lambda *found: seen.append(found))
    more = {"cond_or_uncond": [0, 1], "uuids": [0, 1], "sigmas": torch.full((1,), 2.0)}
    with torch.no_grad():
        out = model.model.apply_model(x, transformer_options=planned({**options, **more}, plan), **call)
        given = {**plain.model_options["transformer_options"], **more}
        expected = model.model.apply_model(x, transformer_options=given, **call)
    assert close(out, expected) < 1e-6
    ((share, _, found, grid),) = seen
    assert (share, grid) == (1, (8, 8))
    assert close(found, maps[0].reshape(4, 64)[2:]) < 1e-6  # keys are stripes of whole lines in both


def merged(model):
    return TomePatchModel.execute(model, 0.5)[0]


def test_merged_tokens_are_refused_by_name_where_a_token_must_be_known():
    model = network("unet")
    for mine in (pag, lambda m, layers: term(m, BlurredQuery(select_layers(m, layers), 2.0))):
        for chained in (merged(mine(model, layers="input.1")), mine(merged(model), layers="input.1")):
            with pytest.raises(
                (RuntimeError, ValueError),
                match=r"(PAG|SEG): in input.1 there are 128 queries and 256 keys for 256 tokens of the picture.*"
                r"TomePatchModel of comfy_extras.nodes_tomesd.*or choose other layers",
            ):
                sample(chained, steps=1)
    assert close(sample(merged(pag(model, layers="middle"))), sample(merged(model))) > 1e-3  # it merges none there


def test_the_mean_query_of_merged_tokens_is_no_matter_of_their_places():
    model = network("unet")
    found = []
    for mine in (lambda m: m, lambda m: term(m, BlurredQuery(select_layers(m, "input.1"), -1.0))):
        torch.manual_seed(0)  # which tokens are merged is drawn
        found.append(sample(merged(mine(model)), steps=1))
    assert close(*found) > 1e-3


def test_a_cut_that_is_not_known_is_refused_and_says_whose_it_is():
    def backwards(q, k, v, extra):  # in halves
        return rearrange(q.flip(1), "b (n t) c -> (b n) t c", n=2), k, v

    def joined(out, extra):
        return rearrange(out, "(b n) t c -> b (n t) c", n=2).flip(1)

    def add(model):
        model = model.clone()
        model.set_model_attn1_patch(backwards)
        model.set_model_attn1_output_patch(joined)
        return model

    model = network("unet")
    assert sample(add(model), steps=1).isfinite().all()
    for node, settings in (("BeyondCFGPAG", {}), ("BeyondCFGSEG", {"blur_sigma": -1.0, "padding": "symmetric"})):
        window = {"start_percent": 0.0, "end_percent": 1.0}
        mine = TERM_NODES[node].execute(model=model, scale=3.0, layers="middle", **settings, **window)[0]
        with pytest.raises(
            RuntimeError,
            match=r"(PAG|SEG): the attention of middle gets 6 rows where the network has 3.* of (tests.host.)?test_tiles\.",
        ):
            sample(add(mine), steps=1)
