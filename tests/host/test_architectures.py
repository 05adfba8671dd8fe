"""Every row of the table of architectures, on a network of the host's own classes, called as the host calls it.

Rows are [perturbed, positive, negative] of two samples each. What the network's attention gives is recorded in the host,
where its functions are called, and held against the host's own attention of the same queries, keys and values.
"""

import contextlib
import dataclasses
import functools
import itertools
import sys

import pytest
import torch
from comfy.ldm.modules import attention as host_attention
from pack.patches import (
    AttentionTemperature,
    BlurredQuery,
    IdentityAttention,
    NoisyTimeEmbedding,
    RandomSkippedLayer,
    ShuffledTokens,
    SkippedLayer,
    SwappedTokens,
)
from pack.patches import host as patches_host
from pack.patches.architectures import ARCHITECTURES
from pack.patches.attention_sums import AttentionSums
from pack.patches.base import About, Moment, TokenPerturbation
from pack.patches.host import Plan, Proofs, architecture_of, choose_layers, planned, select_layers
from pack.patches.host.degraded import with_dropout
from pack.patches.host.forwards import takes_options
from pack.patches.host.lookup import network_of
from pack.tests.host import networks
from pack.tests.host.harness import SHARED, close
from pack.tests.host.zoo import SPECIMENS
from pack.tests.host.zoo.others import pixart
from pack.tests.host.zoo.specimen import has

FUNCTIONS = ("optimized_attention", "optimized_attention_masked")
ROWS = [1, 2, 1, 2, 3, 4]  # seeds: the perturbed branch is of the positive's conditioning and x
OURS = slice(0, 2)
MOMENT = Moment(5, 2, 0.7)


@contextlib.contextmanager
def recorded(model, monkeypatch):
    """The attention calls of what is run meanwhile."""
    if not architecture_of(model).stacks:
        with contextlib.ExitStack() as stack:
            yield unet_record(model.model.diffusion_model, stack)
    else:
        with monkeypatch.context() as patch:
            yield Record(patch)


class Record(list):
    """Every attention that the host's networks ask for while it lasts, as (q, k, v of [rows, heads, tokens, dim], out,
    what the host's own would have been, both [rows, tokens, channels])."""

    def __init__(self, monkeypatch):
        self.depth = 0
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith("comfy.ldm."):
                for name in FUNCTIONS:
                    if hasattr(module, name) and module is not host_attention:
                        monkeypatch.setattr(module, name, self.recording(getattr(module, name)))
        for name in FUNCTIONS:
            monkeypatch.setattr(host_attention, name, self.recording(getattr(host_attention, name)))

    def recording(self, function):
        def attention(*args, **kwargs):
            self.depth += 1
            try:
                out = function(*args, **kwargs)
            finally:
                self.depth -= 1
            if self.depth == 0:
                plain = {key: value for key, value in kwargs.items() if key != "transformer_options"}
                self.append(Call(args, kwargs, out, function(*args, **plain)))
            return out

        return attention


def unet_record(network, stack) -> list:
    """The same of a UNet, whose self-attention runs in parts: from what goes into and comes out of its linear layers."""
    record = []
    for module in network.modules():
        if not hasattr(module, "to_q"):
            continue
        seen = {}

        def projected(linear, inputs, out, name, seen=seen):
            seen[name] = out

        def gives(linear, inputs, seen=seen, heads=module.heads):
            plain = host_attention.optimized_attention(seen["q"], seen["k"], seen["v"], heads)
            record.append(Call((seen["q"], seen["k"], seen["v"], heads), {}, inputs[0], plain))

        for name in "qkv":
            hook = getattr(module, f"to_{name}").register_forward_hook(functools.partial(projected, name=name))
            stack.callback(hook.remove)
        stack.callback(module.to_out[0].register_forward_pre_hook(gives).remove)
    return record


class Call:
    def __init__(self, args, kwargs, out, plain):
        given = dict(zip(("q", "k", "v", "heads", "mask"), args, strict=False)) | kwargs
        self.mask, heads = given.get("mask"), given["heads"]
        merged = not given.get("skip_reshape", False)

        def headed(x):
            return (x.reshape(*x.shape[:2], -1, given["q"].shape[-1] // heads).transpose(1, 2) if merged else x).clone()

        self.q, self.k, self.v = (headed(given[name]) for name in "qkv")
        self.k, self.v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (self.k, self.v))
        self.scale = given.get("scale") or self.q.shape[-1] ** -0.5
        if given.get("skip_output_reshape"):
            out, plain = (x.transpose(1, 2).flatten(2) for x in (out, plain))
        self.out, self.plain = out.clone(), plain.clone()

    def logits(self, q=None) -> torch.Tensor:
        logits = (self.q if q is None else q) * self.scale @ self.k.mT
        if self.mask is None:
            return logits
        mask = self.mask if self.mask.is_floating_point() else torch.where(self.mask, 0.0, -torch.inf)
        rows = 1 if mask.ndim == 2 else mask.shape[0]
        return logits + mask.reshape(rows, -1, *mask.shape[-2:])

    def attend(self, logits) -> torch.Tensor:
        return (logits.softmax(-1) @ self.v).transpose(1, 2).flatten(2)


def forward(specimen, model, perturbation=None, seeds=ROWS, ours=OURS, shares=None, report=None):
    """The network's prediction for rows of these seeds, of which `ours` are perturbed."""
    x, conds = specimen.inputs(seeds)
    shares = shares or [perturbation if ours.start <= row < ours.stop else None for row in range(len(seeds))]
    options = {"cond_or_uncond": [0] * len(seeds), "uuids": list(range(len(seeds)))}
    if any(shares):
        options = planned(options, Plan(tuple(shares), Proofs(shares), MOMENT, report))
    sigma = model.model.model_sampling.percent_to_sigma(0.4)
    with torch.no_grad():
        return model.model.apply_model(x, torch.full((len(seeds),), float(sigma)), transformer_options=options, **conds)


def chosen(model, name: str):
    return select_layers(model, name)


def test_every_row_of_the_table_has_a_specimen():
    assert {specimen.row for specimen in SPECIMENS} == {row.name for row in ARCHITECTURES}


def test_the_table_lists_the_layers_that_the_network_has(specimen, model):
    assert architecture_of(model).name == specimen.row
    assert [str(layer) for layer in select_layers(model, "all")] == specimen.layers


def test_pag_is_in_the_chosen_layers_image_tokens_and_nowhere_else(specimen, model, monkeypatch, supports):
    """Dense, with a mask, against what our attention does without one."""
    supports(specimen.row, "PAG", "yes")
    with recorded(model, monkeypatch) as record:
        plain = forward(specimen, model)
        assert len(record) == len(specimen.calls)
    for name in specimen.layers:
        with recorded(model, monkeypatch) as record:
            out = forward(specimen, model, IdentityAttention(chosen(model, name)))
        assert len(record) == len(specimen.calls)
        assert close(out[2:], plain[2:]) < 1e-5 and close(out[:2], plain[:2]) > 1e-5
        for at, (label, call) in enumerate(zip(specimen.calls, record, strict=True)):
            if label != name:
                assert close(call.out, call.plain) < 1e-5
                continue
            logits, image = call.logits(), torch.arange(call.q.shape[2])[specimen.image_of(name, at)]
            offset = call.k.shape[2] - call.q.shape[2] if specimen.prefix else 0
            pairs = (slice(None), slice(None), image[:, None], image + offset)
            logits[pairs] = logits[pairs].masked_fill(~torch.eye(len(image), dtype=torch.bool), -torch.inf)
            expected = call.plain.clone()
            expected[OURS, image] = call.attend(logits)[OURS, image]
            assert close(call.out, expected) < 1e-5
            assert close(call.out[OURS, image], call.plain[OURS, image]) > 1e-2  # attention was no identity


def identity(call, image, keys):
    """The map of the picture's tokens in which they see themselves and what is not the picture."""
    logits = call.logits()
    hidden = torch.zeros(logits.shape[2:], dtype=torch.bool)
    hidden[image[:, None], keys] = ~torch.eye(len(image), dtype=torch.bool)
    return logits.masked_fill(hidden, -torch.inf)[:, :, image].softmax(-1)


def itself(call, image, keys):
    return torch.eye(call.k.shape[2], dtype=call.v.dtype)[keys].expand(*call.k.shape[:2], -1, -1)


def tempered(call, image, keys, factor: float):
    """Queries times `factor`; what the host adds to the logits stays."""
    return call.logits(factor * call.q)[:, :, image].softmax(-1)


MAPS = {  # the perturbation and the map, [rows, heads, picture, keys], that it gives the picture's tokens
    "SoftPAG": (lambda layers: IdentityAttention(layers, 0.5), lambda *at: (tempered(*at, 1.0) + identity(*at)) / 2),
    "without text": (lambda layers: IdentityAttention(layers, 1.0, "identity without text"), itself),
    "uniform": (lambda layers: IdentityAttention(layers, 1.0, "uniform"), lambda *at: tempered(*at, 0.0)),
    "ERG": (lambda layers: AttentionTemperature(layers, 0.01), lambda *at: tempered(*at, 0.01)),
}


@pytest.mark.parametrize("made", MAPS.values(), ids=MAPS)
def test_another_map_is_that_of_the_chosen_layers_image_tokens_alone(specimen, model, monkeypatch, supports, made):
    supports(specimen.row, "ERG", "yes")
    make, map_of = made
    name = specimen.layers[-1]
    plain = forward(specimen, model)
    with recorded(model, monkeypatch) as record:
        out = forward(specimen, model, make(chosen(model, name)))
    assert close(out[2:], plain[2:]) < 1e-5 and close(out[:2], plain[:2]) > 1e-6
    for at, (label, call) in enumerate(zip(specimen.calls, record, strict=True)):
        if label == name:
            image = torch.arange(call.q.shape[2])[specimen.image_of(name, at)]
            offset = call.k.shape[2] - call.q.shape[2] if specimen.prefix else 0
            expected = call.plain.clone()
            picture = (map_of(call, image, image + offset) @ call.v).transpose(1, 2).flatten(2)
            expected[OURS, image] = picture[OURS]
            assert close(call.out, expected) < 1e-5


def with_heads(layers, *heads: int):
    return tuple(dataclasses.replace(layer, heads=heads) for layer in layers)


def test_in_a_chosen_head_alone_the_attention_is_perturbed(specimen, model, monkeypatch):
    name = specimen.layers[-1]
    plain = forward(specimen, model)
    with recorded(model, monkeypatch) as record:
        every = forward(specimen, model, IdentityAttention(chosen(model, name)))
    calls = [at for at, label in enumerate(specimen.calls) if label == name]
    count = record[calls[0]].q.shape[1]
    head = count - 1
    with recorded(model, monkeypatch) as headed:
        out = forward(specimen, model, IdentityAttention(with_heads(chosen(model, name), head)))
    assert close(out[2:], plain[2:]) < 1e-5
    assert count == 1 or (close(out[:2], plain[:2]) > 1e-7 and close(out[:2], every[:2]) > 1e-7)
    call, whole = headed[calls[0]], record[calls[0]]  # what comes before it is not perturbed
    expected, broken = (part.unflatten(2, (count, -1)).clone() for part in (whole.plain, whole.out))
    expected[OURS, :, head] = broken[OURS, :, head]
    assert close(call.out, expected.flatten(2)) < 1e-5
    with pytest.raises(
        ValueError, match=rf"PAG: .*{name} has no head h{count}\. It has {count} heads, h0 to h{head}\."
    ):
        forward(specimen, model, IdentityAttention(with_heads(chosen(model, name), 0, count)))


def test_sag_sees_the_chosen_heads_alone(specimen, model, monkeypatch):
    if specimen.grid is None:
        return
    name, seen = specimen.layers[0], {}

    def report(share, observation, sums, grid):
        seen.setdefault(share, sums)

    layers = with_heads(select_layers(model, name), 0)
    with recorded(model, monkeypatch) as record:
        forward(specimen, model, AttentionSums(layers), report=report)
    call, *_ = [call for label, call in zip(specimen.calls, record, strict=True) if label == name]
    image = torch.arange(call.q.shape[2])[specimen.image_of(name)]
    offset = call.k.shape[2] - call.q.shape[2] if specimen.prefix else 0
    sums = call.logits().softmax(-1)[OURS, 0][:, image[:, None], image + offset].sum(1)
    assert close(torch.cat([seen[0], seen[1]]), sums / sums.mean(1, keepdim=True)) < 1e-5


def test_blocks_that_are_left_out_have_no_heads():
    model = networks.sd3()
    with pytest.raises(ValueError, match=r"double\.0:h1 is a part of an attention, and here blocks are taken whole"):
        select_layers(model, "0:h1", skip=True)
    with pytest.raises(ValueError, match=r"double\.0:h1 is a part of an attention"):
        with_dropout(model, 0.1, "0:h1", 0)


def kernel(size: int, sigma: float) -> torch.Tensor:
    """[size, size]: a Gaussian around each place of a row that is mirrored at its edges, by counting images."""
    at = torch.arange(size, dtype=torch.float64)
    total = torch.zeros(size, size, dtype=torch.float64)
    for period in range(-12, 13):
        for image in (2 * size * period + at, 2 * size * period + 2 * size - 1 - at):
            total += torch.exp(-((at[:, None] - image) ** 2) / (2 * sigma**2))
    return total / total.sum(1, keepdim=True)


def test_seg_blurs_the_queries_over_the_pictures_own_grid(specimen, model, monkeypatch, supports):
    supports(specimen.row, "SEG", "yes" if specimen.grid else "blur_sigma -1")
    name = specimen.layers[-1]
    plain = forward(specimen, model)
    assert close(forward(specimen, model, BlurredQuery(chosen(model, name), 0.0)), plain) < 1e-5
    grid, image = specimen.grid_of(name), specimen.image_of(name)
    if grid is None:
        with pytest.raises(ValueError, match="no picture that could be blurred"):
            forward(specimen, model, BlurredQuery(chosen(model, name), 1.5))
        return
    with recorded(model, monkeypatch) as record:
        forward(specimen, model, BlurredQuery(chosen(model, name), 1.5))
    for call in [call for label, call in zip(specimen.calls, record, strict=True) if label == name]:
        q = call.q.clone()
        picture = q[:, :, image].unflatten(2, grid).double()
        for axis, size in enumerate(grid, 2):
            picture = torch.tensordot(kernel(size, 1.5), picture, ([1], [axis])).movedim(0, axis)
        q[:, :, image] = picture.flatten(2, 1 + len(grid)).to(q)
        expected = call.plain.clone()
        expected[OURS, image] = call.attend(call.logits(q))[OURS, image]
        assert close(call.out, expected) < 2e-5
        assert close(call.out[OURS, image], call.plain[OURS, image]) > 1e-3


def test_sag_sees_how_much_each_image_token_is_attended_to(specimen, model, monkeypatch, supports):
    supports(specimen.row, "SAG", "yes" if specimen.grid and "latent_shapes" not in specimen.conds else "no")
    name, seen = specimen.layers[0], {}

    def report(share, observation, sums, grid):
        seen.setdefault(share, (sums, grid))  # as in sampling, of a layer's attentions the first

    plain = forward(specimen, model)
    with recorded(model, monkeypatch) as record:
        observed = forward(specimen, model, AttentionSums(select_layers(model, name)), report=report)
    floor = close(forward(specimen, model, seeds=ROWS[:3]), plain[:3])  # what the size of a batch does by itself
    assert close(observed, plain) < 1e-6 + 4 * floor
    if specimen.grid is None:
        assert not seen
        return
    call, *_ = [call for label, call in zip(specimen.calls, record, strict=True) if label == name]
    image = torch.arange(call.q.shape[2])[specimen.image_of(name)]
    offset = call.k.shape[2] - call.q.shape[2] if specimen.prefix else 0
    sums = call.logits().softmax(-1)[OURS][:, :, image[:, None], image + offset].mean(1).sum(1)
    assert sorted(seen) == [0, 1] and all(grid == specimen.grid_of(name) for _, grid in seen.values())
    assert close(torch.cat([seen[0][0], seen[1][0]]), sums / sums.mean(1, keepdim=True)) < 1e-5


def test_any_order_of_rows_and_calls_of_their_own_agree(specimen, model):
    pag = IdentityAttention(chosen(model, specimen.layers[0]))
    together = forward(specimen, model, pag)
    order = [4, 0, 2, 5, 1, 3]
    shares = [pag if row in (0, 1) else None for row in order]
    mixed = forward(specimen, model, seeds=[ROWS[row] for row in order], shares=shares)
    assert close(mixed, together[order]) < 1e-5
    assert close(forward(specimen, model, pag, seeds=ROWS[:2]), together[:2]) < 1e-5
    assert close(forward(specimen, model, pag, seeds=ROWS[1:2], ours=slice(0, 1)), together[1:2]) < 1e-5


def test_a_skipped_block_gives_back_what_it_was_given(specimen, model, monkeypatch, supports):
    supports(specimen.row, "Skip Layer", "yes" if specimen.blocks else "no")
    if not specimen.blocks:
        with pytest.raises(ValueError, match="can be skipped"):
            select_layers(model, "all", skip=True)
        return
    network, names = model.model.diffusion_model, list(specimen.blocks)

    def seen(perturbation):
        """layer → the tensors that its block was given and gave."""
        found, handles = {}, []
        for name, path in specimen.blocks.items():

            def hook(block, args, kwargs, name=name):
                inputs = [x if isinstance(x, tuple) else (x,) for x in (*args, *kwargs.values())]
                given = [x for part in inputs for x in part if isinstance(x, torch.Tensor)]
                given = [x for x in given if 3 <= x.ndim < 6 and len(ROWS) in x.shape]  # 6 axes: a block's rotations
                found[name] = [x.movedim(x.shape.index(len(ROWS)), 0).clone() for x in given]  # the batch may come last

            handles.append(network.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True))
        out = forward(specimen, model, perturbation)
        for handle in handles:
            handle.remove()
        return found, out

    before, plain = seen(None)
    for name, following in itertools.pairwise(names):
        if name.partition(".")[0] != following.partition(".")[0]:
            continue  # the next stack has other inputs
        after, out = seen(SkippedLayer(select_layers(model, name, skip=True)))
        assert close(out[2:], plain[2:]) < 1e-5 and close(out[:2], plain[:2]) > 1e-5
        for given, kept, was in zip(before[name], after[following], before[following], strict=True):
            assert torch.equal(kept[OURS], given[OURS]) or close(kept[OURS], given[OURS]) < 1e-6
            assert torch.equal(kept[2:], was[2:]) or close(kept[2:], was[2:]) < 1e-5
    assert not [module for module in network.modules() if "forward" in vars(module)]


@dataclasses.dataclass(frozen=True)
class Levelled(TokenPerturbation):
    """Every token of the picture becomes their mean, so that all have one value in the attention."""

    layers: tuple
    about = About("", "Levelled", "")

    def tokens(self, call):
        return call.tokens.mean(1, keepdim=True).expand_as(call.tokens)


def entered(specimen, model) -> list[str]:
    """Those of its layers of which it is known what enters them."""
    architecture = architecture_of(model)
    known = {name: architecture.knows_what_enters(*select_layers(model, name)) for name in specimen.layers}
    return [name for name, is_known in known.items() if is_known]


def test_the_tokens_that_enter_a_block_are_changed_where_the_picture_is_and_nowhere_else(
    specimen, model, monkeypatch, supports
):
    layers = entered(specimen, model)
    for method in (ShuffledTokens, SwappedTokens):
        supports(specimen.row, method.about.name, "yes" if layers else "no")
    if len(layers) < len(specimen.layers):
        with pytest.raises(ValueError, match="TPG and SSG do not work there"):
            choose_layers(model, "all", enter=True)
    for name in layers:
        with recorded(model, monkeypatch) as record:
            before = forward(specimen, model)
        before_calls = list(record)
        with recorded(model, monkeypatch) as record:
            out = forward(specimen, model, Levelled(chosen(model, name)))
        assert close(out[2:], before[2:]) < 1e-5 and close(out[:2], before[:2]) > 1e-5
        labels = zip(specimen.calls, before_calls, record, strict=True)
        for at, (was, now) in [(at, calls) for at, (label, *calls) in enumerate(labels) if label == name]:
            image = torch.arange(was.q.shape[2])[specimen.image_of(name, at)]
            image = image + (was.k.shape[2] - was.q.shape[2] if specimen.prefix else 0)
            beside = [token for token in range(was.v.shape[2]) if token not in image.tolist()]
            moved = (now.v[OURS] - was.v[OURS]).abs().amax((1, 3))  # [rows, tokens]
            assert moved[:, image].min() > 1e-3 * was.v.abs().max()
            if beside:
                assert close(now.v[OURS][:, :, beside], was.v[OURS][:, :, beside]) < 1e-5
            assert close(now.v[2:], was.v[2:]) < 1e-5


@pytest.mark.parametrize("method", [ShuffledTokens, SwappedTokens])
def test_shuffled_and_swapped_tokens_reach_their_rows_alone(specimen, model, method):
    layers = entered(specimen, model)
    if not layers:
        return
    plain, changed = forward(specimen, model), method(chosen(model, ", ".join(layers)))
    out = forward(specimen, model, changed)
    assert close(out[2:], plain[2:]) < 1e-5 and close(out[:2], plain[:2]) > 1e-5
    assert close(forward(specimen, model, changed, seeds=ROWS[:2]), out[:2]) < 1e-4


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_blocks_that_are_left_out_by_chance_are_drawn_for_each_sample(specimen, model, supports, share):
    supports(specimen.row, "Random Skip Layer", "yes" if specimen.blocks else "no")
    if not specimen.blocks:
        return
    layers = select_layers(model, "all", skip=True)
    skip, plain = RandomSkippedLayer(layers, share), forward(specimen, model)
    out = forward(specimen, model, shares=[skip, None, None])  # of two samples each
    assert close(out[2:], plain[2:]) < 1e-5
    for sample in range(2):
        drawn = tuple(layer for layer in layers if skip.left_out(layer, 2, MOMENT)[sample])
        fixed = forward(specimen, model, SkippedLayer(drawn))
        assert close(out[sample], fixed[sample]) < 1e-5 < close(out[sample], plain[sample])
    alone = forward(specimen, model, skip, seeds=ROWS[:1], ours=slice(0, 1))
    assert close(alone, out[:1]) < 1e-5


def test_a_perturbed_time_is_of_its_own_rows_alone(specimen, model, supports):
    supports(specimen.row, "TSG", "yes" if specimen.time else "no")
    plain = forward(specimen, model)
    if not specimen.time:
        assert not architecture_of(model).time
        return
    assert close(forward(specimen, model, NoisyTimeEmbedding(noise=0.0)), plain) < 1e-5
    noisy = NoisyTimeEmbedding(noise=1.0)
    out = forward(specimen, model, noisy)
    assert close(out[2:], plain[2:]) < 1e-5 and close(out[:2], plain[:2]) > 1e-5
    assert close(forward(specimen, model, noisy, seeds=ROWS[:2]), out[:2]) < 1e-5


WITH_TIME_0 = [
    specimen
    for specimen in SPECIMENS
    if specimen.time_0_first or specimen.conds.get("ref_latents_method") == "index_timestep_zero"
]


@pytest.mark.parametrize("specimen", WITH_TIME_0, indirect=True, ids=str)
def test_a_perturbed_time_is_not_that_of_the_references(specimen, model):
    module, outs = model.model.diffusion_model.get_submodule(architecture_of(model).time), []
    hook = module.register_forward_hook(lambda module, inputs, out: outs.append(out.flatten(0, -2).clone()))
    forward(specimen, model)
    plain = torch.cat(outs)
    outs.clear()
    forward(specimen, model, NoisyTimeEmbedding(noise=1.0))
    hook.remove()
    changed = (torch.cat(outs) != plain).any(1)
    start = len(ROWS) if specimen.time_0_first else 0
    assert len(plain) == 2 * len(ROWS) and changed.nonzero().flatten().tolist() == [start, start + 1]


def test_tokens_that_share_keys_are_refused():
    compressed = {"sampling": "uniform_every", "scale_factor": 2, "kv_compress_layer": [1]}
    specimen = next(specimen for specimen in SPECIMENS if specimen.name == "PixArt sigma")
    model = pixart("PixArtSigma", micro_condition=False, kv_compress_config=compressed)()
    forward(specimen, model, IdentityAttention(chosen(model, "0, 2")))
    with pytest.raises(RuntimeError, match=r"PixArtMS block\.1: its 120 tokens share 60 keys"):
        forward(specimen, model, IdentityAttention(chosen(model, "1")))


# ------------------------------------------------------------------------------------------------------- video UNets


@pytest.mark.parametrize(("frames", "height", "width"), [(3, 6, 10), (15, 3, 5), (4, 4, 4)])
def test_of_a_video_unet_the_pictures_are_perturbed_and_the_attention_over_time_is_not(frames, height, width):
    """Whose name is the same; the batch is [perturbed, positive] of the frames of one video."""
    model = networks.svd()
    times = torch.full((2 * frames,), 1.5)
    x, image = (
        torch.randn(frames, 4, 2 * height, 2 * width, generator=torch.Generator().manual_seed(i)) for i in (0, 1)
    )
    text, y = (torch.randn(frames, *shape, generator=torch.Generator().manual_seed(2)) for shape in ((1, 32), (768,)))
    inputs = {"c_concat": image, "c_crossattn": text, "y": y, "image_only_indicator": torch.zeros(1, frames)}
    inputs = {key: torch.cat([value, value]) for key, value in inputs.items()} | {"num_video_frames": frames}
    pag = IdentityAttention(select_layers(model, "input.3"))
    outs, records = [], []
    for shares in ((None, None), (pag, None)):
        options = {"cond_or_uncond": [0, 0], "uuids": [0, 1]}
        if any(shares):
            options = planned(options, Plan(shares, Proofs([pag]), Moment()))
        with recorded(model, None) as record, torch.no_grad():
            outs.append(model.model.apply_model(torch.cat([x, x]), times, transformer_options=options, **inputs))
        records.append(record)
    plain, ours = outs
    assert close(ours[frames:], plain[frames:]) < 1e-5 < close(ours[:frames], plain[:frames])
    changed = [call for call in records[1] if close(call.out, call.plain) > 1e-5]
    assert len(changed) == 1 and changed[0].q.shape[0] == 2 * frames  # input.3 has one attention over each frame
    assert close(changed[0].out[:frames], changed[0].v[:frames].transpose(1, 2).flatten(2)) < 1e-6
    assert any(call.q.shape[2] == frames and call.q.shape[0] != 2 * frames for call in records[1])


def test_the_overview_names_the_networks_whose_attention_gets_no_options():
    without: dict[str, bool] = {}  # architecture → whether modules that attend get no options
    for specimen in SPECIMENS:
        if specimen.since and not has(specimen.since):
            continue
        model = SHARED.get(specimen.name, specimen.build)
        architecture, network = architecture_of(model), network_of(model)
        blocks = architecture.blocks(network).items() if architecture.stacks else ()
        takes = all(takes_options(architecture.attention(block, layer)) for layer, block in blocks)
        without[architecture.name] = without.get(architecture.name, False) or not takes
    overview = " ".join(patches_host.__doc__.split())
    assert any(without.values())
    assert {name: name in overview for name in without} == without
