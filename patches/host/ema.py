"""A MODEL averaged over snapshots of its training, which are files of the host's model folders."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

import comfy.model_detection
import comfy.sd
import comfy.utils
import folder_paths

from .. import post_hoc_ema
from ..texts import shown
from .log import LOG

FOLDERS = ("checkpoints", "diffusion_models")
QUANTISED = (".comfy_quant", "scaled_fp8", ".weight_scale", ".scale_weight")  # how such keys end
CHOICE = ".comfy_attention.config"  # how keys end that say by which attention a layer of this file runs
FAR = 0.2  # a misfit to tell the user
MOST = 500  # snapshots: their least squares take time by the cube
MISMATCH = re.compile(r"size mismatch for (\S+): .*torch\.Size\((\[.*?\])\).*torch\.Size\((\[.*?\])\)")  # torch's words


@dataclass(frozen=True)
class Snapshot:
    """A file with a network's weights at some time of its training."""

    name: str
    path: str
    time: float
    ema: float  # σ_rel of the average it is; 0 for the weights of that moment


def find_snapshots(text: str, ema: float) -> tuple[Snapshot, ...]:
    """One per line: name, name @ time, or name @ time @ ema. Without times they are 1, 2, 3 …"""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"snapshots is empty; write one file name per line. {_choices('')}")
    if len(lines) > MOST:
        raise ValueError(f"snapshots has {len(lines):,} files; at most {MOST} can be averaged")
    found = [_parse(line, number) for number, line in lines]
    for (number, _), (_, _, numbers) in zip(lines, found, strict=True):
        if bool(numbers) != bool(found[0][2]):
            raise ValueError(f"snapshots, line {number}: write name @ time on all lines or on none")
    counted = [(name, path, numbers or [float(index)]) for index, (name, path, numbers) in enumerate(found, 1)]
    return tuple(Snapshot(name, path, *[*numbers, ema][:2]) for name, path, numbers in counted)


def _parse(line: str, number: int) -> tuple[str, str, list[float]]:
    """Its name, path and numbers. A file's own name may have an @ in it."""
    name, rest = line, []
    while not (path := _find(name)) and "@" in name and len(rest) < 4:
        name, _, last = name.rpartition("@")
        name, rest = name.rstrip(), [last.strip(), *rest]
    if not path:
        raise ValueError(f'snapshots, line {number}: there is no "{shown(name)}". {_choices(name)}')
    try:
        time_and_ema = [float(part) for part in rest]
    except ValueError:
        time_and_ema = None
    if time_and_ema is None or len(rest) > 2:
        raise ValueError(
            f'snapshots, line {number}: cannot read "{shown(" @ ".join(rest))}" after {name}; write name @ time, '
            "or name @ time @ ema, as numbers"
        )
    return name, path, time_and_ema


def _find(name: str) -> str | None:
    return next(filter(None, (folder_paths.get_full_path(folder, name) for folder in FOLDERS)), None)


def _choices(name: str, most: int = 20) -> str:
    names = sorted({name for folder in FOLDERS for name in folder_paths.get_filename_list(folder)})
    shown = names if len(names) <= most else get_close_matches(name, names, most, 0.4) or names[:most]
    more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    return f"The folders {' and '.join(FOLDERS)} have: {', '.join(shown) or 'no files'}{more}"


def average(snapshots: tuple[Snapshot, ...], ema: float, disable_dynamic: bool = False):
    """The MODEL at the time of the last snapshot, averaged with σ_rel `ema`. Reads one file at a time."""
    target = (snapshots[-1].time, post_hoc_ema.gamma_of(ema))
    profiles = [(snapshot.time, post_hoc_ema.gamma_of(snapshot.ema)) for snapshot in snapshots]
    weights = post_hoc_ema.coefficients(profiles, target)
    used = [(snapshot, weight) for snapshot, weight in zip(snapshots, weights, strict=True) if weight]
    LOG.info("Post-hoc EMA: %s", ", ".join(f"{weight:.4g} × {snapshot.name}" for snapshot, weight in used))
    if snapshots[-1].ema and (misfit := post_hoc_ema.misfit(profiles, weights, target)) > FAR:
        LOG.warning("Post-hoc EMA: these snapshots give an average %.0f%% off from ema %g.", 100 * misfit, ema)

    others, metadata = {}, {}  # what the file read last has beside its diffusion model
    progress = comfy.utils.ProgressBar(len(used))

    def diffusion_model(snapshot: Snapshot) -> dict:
        others.clear()
        metadata.clear()
        state, about = _read(snapshot)
        prefix = comfy.model_detection.unet_prefix_from_state_dict(state)
        model = {key: state.pop(key) for key in list(state) if key.startswith(prefix)}
        model, rest = (model, state) if model else (state, {})  # a file of a diffusion model alone has no prefix
        if any(key.endswith(QUANTISED) for key in model):
            raise ValueError(f"{snapshot.name} is quantised, which cannot be averaged; use files in 16 or 32 bits")
        choices = {
            key: model.pop(key) for key in list(model) if key.endswith(CHOICE)
        }  # no weights, and not in each file
        others.update(rest | choices)
        metadata.update(about)
        progress.update(1)
        return model

    names = [snapshot.name for snapshot, _ in used]
    files = map(diffusion_model, (snapshot for snapshot, _ in used))
    averaged = post_hoc_ema.reconstruct(files, [weight for _, weight in used], names)
    model = _load(averaged, others, dict(metadata), names[-1], disable_dynamic)
    model.cached_patcher_init = (average, (snapshots, ema))  # how the host makes another copy
    return model


def _read(snapshot: Snapshot) -> tuple[dict, dict]:
    try:
        state, metadata = comfy.utils.load_torch_file(snapshot.path, return_metadata=True)
    except Exception as error:  # each format has its own
        raise ValueError(f"{snapshot.name} cannot be read: {error}") from None
    return dict(state), metadata or {}


def _load(weights: dict, others: dict, metadata: dict, name: str, disable_dynamic: bool):
    """As the host's own loader nodes: a checkpoint has keys beside its diffusion model that say what it predicts. Raises
    ValueError, naming the file, where these are not the weights of a network that the host knows, each of its shape and
    none missing: what a file lacks the host leaves as the memory was."""
    options = {"metadata": metadata or None, "disable_dynamic": disable_dynamic}
    state = weights | others
    prefix = comfy.model_detection.unet_prefix_from_state_dict(state)
    whole = any(key.startswith(prefix) for key in state)
    given = {key.removeprefix(prefix) if whole else key: tensor for key, tensor in weights.items()}
    try:
        detected = comfy.model_detection.model_config_from_unet(
            state, prefix if whole else "", metadata=metadata or None
        )
        if whole:
            loaded = comfy.sd.load_state_dict_guess_config(state, False, False, False, **options)
            model = (loaded or [None])[0]
        else:
            model = comfy.sd.load_diffusion_model_state_dict(state, **options)
    except Exception as error:  # each network is told from the keys and shapes that it should have, in its own way
        if wrong := MISMATCH.search(str(error)):
            key, here, there = wrong.groups()
            raise ValueError(f"{key} of {name} is {here}, and a network of this kind has {there}") from None
        LOG.warning("Post-hoc EMA: %s", name, exc_info=True)
        model = None
    if model is None:
        raise ValueError(f"{name} holds no diffusion model that this ComfyUI knows")
    if detected is not None:  # else it is of another layout, whose keys the host has renamed
        has = model.model.model_config.process_unet_state_dict(given).keys()
        missing = [key for key, _ in model.model.diffusion_model.named_parameters() if key not in has]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            kind = type(model.model).__name__
            raise ValueError(f"{name} lacks {missing[0]}{more}, which a network of this kind ({kind}) has")
    return model
