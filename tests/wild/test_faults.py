"""Runs that fail or are interrupted at any moment: the error comes out as it was raised, and nothing is left behind.

A moment is an operation on tensors, which is where memory runs out; for what makes none, a call of a function.
"""

import contextlib
import contextvars
import functools
import sys

import comfy.model_management
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import pytest
import torch
from pack.guiders import host
from pack.guiders.host import Recorder, classifiers, with_recorder
from pack.nodes.weaker_models import DegradedModel
from pack.tests.host import networks
from pack.tests.host.classifiers import clip_vision, guided, save, whole_vae
from pack.tests.host.harness import SKIPPING, network, sample
from pack.tests.host.test_memory import traces
from pack.tests.host.test_terms import NEGATIVES, TOGETHER, apply
from pack.tests.host.zoo.others import pixart
from pack.tests.wild.faults import At, Operations, on_stack

STAGES = {  # of a run, and the function that is on the stack meanwhile
    "loading": ("comfy/model_management.py", "load_models_gpu"),
    "the run's set-up": ("host/run.py", "__init__"),
    "ICG's prompt": ("host/condition_pools.py", "at"),
    "a forward": ("host/call.py", "_network"),
    "a perturbed attention": ("host/attention.py", "__call__"),
    "a module of the network": ("host/modules.py", "__call__"),
    "SAG's source": ("guiders/self_attention.py", "__call__"),
    "the classifier's picture": ("classifiers/latents.py", "log_probability"),
    "a weak model's forward": ("host/weak_models.py", "predict"),
    "the fold": ("guiders/compose.py", "stages"),
    "the recorder": ("host/recorder.py", "add"),
}
CALLS = {  # (owner, name) of functions that make no tensor
    "loading": (comfy.model_management, "load_models_gpu"),
    "the prompts": (comfy.samplers, "process_conds"),
    "a rule's beginning": (host.run.GuidanceRun, "__init__"),
    "a weak model's start": (host.weak_models.WeakModels, "begin"),
    "a weak model's end": (comfy.model_patcher.ModelPatcher, "restore_hook_patches"),
    "a patcher's end": (comfy.model_patcher.ModelPatcher, "cleanup"),
    "the host's end": (comfy.sampler_helpers, "cleanup_models"),
    "the recorder's end": (Recorder, "end"),
    "the last words": (host.run.Run, "report"),
}
INTERRUPT = comfy.model_management.InterruptProcessingException
ERRORS = (comfy.model_management.OOM_EXCEPTION, RuntimeError, INTERRUPT)
pytestmark = pytest.mark.xdist_group("faults")  # all on the same models
KINDS = ("unet", "sd3", "flux", "pixart")  # PixArt hands its modules no options


class Subject:
    """A model under every guidance that it takes, and what a run gives with them and without."""

    def __init__(self, kind: str):
        build = pixart("PixArtSigma", micro_condition=False) if kind == "pixart" else functools.partial(network, kind)
        self.kind = "unet" if kind == "pixart" else kind  # of its latents and prompts
        self.size = 48 if kind == "pixart" else 8  # it takes none below 32, and windows are three quarters
        self.model, other = build(), build()
        networks.fill(other.model.diffusion_model, 5)
        weak = {"degradation": "dropout", "amount": 0.2, "layers": "auto", "bits": 4, "seed": 1}
        self.weak = DegradedModel.execute(model=other, **weak).result[0]
        self.terms, refused = self.model, {"unet": SKIPPING, "pixart": NEGATIVES}.get(kind, ())
        for key in TOGETHER:
            if key not in refused:
                self.terms = apply(key, self.terms, weak=self.weak, empty=networks.conditioning(self.kind, 3))
        if kind == "unet":
            self.terms = guided(self.terms, whole_vae(), clip_vision(), scale=1.0)
        self.terms = with_recorder(self.terms, Recorder((0, -1)))
        self.plain = self.run(self.model)
        self.run(self.terms)  # the host's own first load leaves marks
        self.left = self.leftovers()
        with Operations() as operations:
            self.guided = self.run(self.terms)
        self.operations, self.moments = operations.count, operations.functions()

    def run(self, model):
        return sample(model, self.kind, latent=networks.latent(self.kind, 1, self.size, self.size), steps=2)

    def leftovers(self) -> tuple:
        """What a run could leave: on networks and patchers, in the host's Python modules, and in our own."""
        comfy.model_management.unload_all_models()
        patchers = [traces(model) | {"user": None} for model in (self.model, self.weak)]
        modules = {name: vars(module) for name, module in list(sys.modules.items()) if module is not None}
        of_host = {name: held for name, held in modules.items() if name.startswith("comfy.")}
        functions = {
            (name, key): id(value) for name, held in of_host.items() for key, value in held.items() if callable(value)
        }
        ours = [value for name, held in modules.items() if name.startswith("pack.") for value in held.values()]
        told = [value.get(None) for value in ours if isinstance(value, contextvars.ContextVar)]
        known = [len(value) for value in ours if isinstance(value, dict | list | set)]
        return patchers, functions, told, known

    def fails(self, event) -> BaseException | None:
        """What a run raises when `event` happens in it; it may also come to its end."""
        try:
            with event:
                assert torch.equal(self.run(self.terms), self.guided)
        except ERRORS as error:
            return error
        finally:
            comfy.model_management.interrupt_current_processing(False)
        return None

    def is_as_before(self) -> bool:
        """All but the guided run itself, which is asked for in the end."""
        return self.leftovers() == self.left and torch.equal(self.run(self.model), self.plain)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """kind → Subject. A head is in the host's model folder `classifiers` meanwhile."""
    import folder_paths

    folder = tmp_path_factory.mktemp("classifiers")
    save(folder / "pets.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        places = folder_paths.folder_names_and_paths | {classifiers.FOLDER: ([str(folder)], {""})}
        patch.setattr(folder_paths, "folder_names_and_paths", places)
        yield functools.cache(Subject)


def check(subject: Subject, moment: int, kind: type) -> bool:
    """Whether the run ended at the moment, or soon after where it was only told to."""
    planted = kind("planted")

    def event():
        nonlocal planted
        if kind is INTERRUPT:
            comfy.model_management.interrupt_current_processing()
            return
        if on_stack("sub_quadratic_attention.py"):  # there the host tries again where memory runs out
            planted = RuntimeError("planted")
        raise planted

    subject.leftovers()  # unloads, so that loading is a part of the run
    error = subject.fails(At(moment, event))
    assert error is planted or (kind is INTERRUPT and (error is None or isinstance(error, INTERRUPT))), (moment, error)
    assert subject.is_as_before(), (moment, kind)
    return error is not None


@pytest.mark.parametrize(("at", "stage"), enumerate(STAGES), ids=STAGES)
def test_a_run_that_fails_in_a_stage_leaves_nothing_behind(at, stage, subject):
    first_and_last = subject("unet").moments[STAGES[stage]]
    check(subject("unet"), first_and_last[at % 2], ERRORS[at % 3])


@pytest.mark.parametrize(
    ("kind", "many"), [("pixart", 6), *(pytest.param(kind, 60, marks=pytest.mark.slow) for kind in KINDS)]
)
def test_a_run_stops_at_any_moment_and_leaves_nothing_behind(kind, many, subject):
    moments = [round((at + 0.5) * subject(kind).operations / many) for at in range(many)]
    stopped = [check(subject(kind), moment, ERRORS[at % 3]) for at, moment in enumerate(moments)]
    assert sum(stopped) > many / 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_function_of_ours_may_fail_in_a_run(kind, subject):
    places = [place for place in subject(kind).moments if place[0].startswith(("guiders/", "patches/", "host/"))]
    assert len(places) > 60
    for at, moment in enumerate(sorted({moment for place in places for moment in subject(kind).moments[place]})):
        check(subject(kind), moment, ERRORS[at % 3])


@pytest.mark.parametrize("where", CALLS)
def test_a_call_that_fails_leaves_nothing_behind(where, subject, monkeypatch):
    owner, name = CALLS[where]
    real, planted, calls = getattr(owner, name), RuntimeError("planted"), []

    def failing(*args, **kwargs):
        calls.append(name)
        if len(calls) == 1:
            raise planted
        return real(*args, **kwargs)

    subject("unet").leftovers()  # unloads
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        assert subject("unet").fails(contextlib.nullcontext()) is planted
    assert calls and subject("unet").is_as_before()


@pytest.mark.parametrize("kind", ["unet", "pixart"])
def test_after_all_of_this_a_guided_run_is_as_before(kind, subject):
    assert torch.equal(subject(kind).run(subject(kind).terms), subject(kind).guided)
