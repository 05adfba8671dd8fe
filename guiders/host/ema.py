"""A MODEL averaged over snapshots of its training, which are files of the host's model folders."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from difflib import get_close_matches

import comfy.model_detection
import comfy.sd
import comfy.utils
import folder_paths

from .. import post_hoc_ema

FOLDERS = ("checkpoints", "diffusion_models")
QUANTISED = (".comfy_quant", "scaled_fp8", ".weight_scale", ".scale_weight")  # how such keys end
FAR = 0.2  # a misfit to tell the user


@dataclass(frozen=True)
class Snapshot:
    name: str
    path: str
    time: float
    ema: float  # σ_rel of the average it is; 0 for the weights of that moment


def find_snapshots(text: str, ema: float) -> tuple[Snapshot, ...]:
    """One per line: name, name @ time, or name @ time @ ema. Without times they are 1, 2, 3 …"""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"snapshots is empty; write one file name per line. {_choices('')}")
    found = [_parse(line, number) for number, line in lines]
    for (number, _), (_, _, numbers) in zip(lines, found, strict=True):
        if bool(numbers) != bool(found[0][2]):
            raise ValueError(f"snapshots, line {number}: write name @ time on all lines or on none")
    counted = [(name, path, numbers or [float(index)]) for index, (name, path, numbers) in enumerate(found, 1)]
    return tuple(Snapshot(name, path, *[*numbers, ema][:2]) for name, path, numbers in counted)


def _parse(line: str, number: int) -> tuple[str, str, list[float]]:
    """Its name, path and numbers. A file's own name may have an @ in it."""
    name, rest = line, []
    while not (path := _find(name)) and "@" in name:
        name, _, last = name.rpartition("@")
        name, rest = name.rstrip(), [last.strip(), *rest]
    if not path:
        raise ValueError(f'snapshots, line {number}: there is no "{name}". {_choices(name)}')
    try:
        time_and_ema = [float(part) for part in rest]
    except ValueError:
        time_and_ema = None
    if time_and_ema is None or len(rest) > 2:
        raise ValueError(
            f'snapshots, line {number}: cannot read "{" @ ".join(rest)}" after {name}; write name @ time, '
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
    logging.info("Post-hoc EMA: %s", ", ".join(f"{weight:.4g} × {snapshot.name}" for snapshot, weight in used))
    if snapshots[-1].ema and (misfit := post_hoc_ema.misfit(profiles, weights, target)) > FAR:
        logging.warning("Post-hoc EMA: these snapshots give an average %.0f%% off from ema %g.", 100 * misfit, ema)

    others, metadata = {}, {}  # what the file read last has beside its diffusion model
    progress = comfy.utils.ProgressBar(len(used))

    def diffusion_model(snapshot: Snapshot) -> dict:
        others.clear(), metadata.clear()
        state, about = _read(snapshot)
        prefix = comfy.model_detection.unet_prefix_from_state_dict(state)
        model = {key: state.pop(key) for key in list(state) if key.startswith(prefix)}
        model, rest = (model, state) if model else (state, {})  # a file of a diffusion model alone has no prefix
        if any(key.endswith(QUANTISED) for key in model):
            raise ValueError(f"{snapshot.name} is quantised, which cannot be averaged; use files in 16 or 32 bits")
        others.update(rest), metadata.update(about)
        progress.update(1)
        return model

    names = [snapshot.name for snapshot, _ in used]
    files = map(diffusion_model, (snapshot for snapshot, _ in used))
    state = post_hoc_ema.reconstruct(files, [weight for _, weight in used], names) | others
    model = _load(state, dict(metadata), disable_dynamic)
    if model is None:
        raise ValueError(f"{names[-1]} holds no diffusion model that this ComfyUI knows")
    model.cached_patcher_init = (average, (snapshots, ema))  # how the host makes another copy
    return model


def _read(snapshot: Snapshot) -> tuple[dict, dict]:
    try:
        state, metadata = comfy.utils.load_torch_file(snapshot.path, return_metadata=True)
    except Exception as error:  # each format has its own
        raise ValueError(f"{snapshot.name} cannot be read: {error}") from None
    return dict(state), metadata or {}


def _load(state: dict, metadata: dict, disable_dynamic: bool):
    """As the host's own loader nodes: a checkpoint has keys beside its diffusion model that say what it predicts."""
    options = {"metadata": metadata or None, "disable_dynamic": disable_dynamic}
    prefix = comfy.model_detection.unet_prefix_from_state_dict(state)
    if not any(key.startswith(prefix) for key in state):
        return comfy.sd.load_diffusion_model_state_dict(state, **options)
    return (comfy.sd.load_state_dict_guess_config(state, False, False, False, **options) or [None])[0]
