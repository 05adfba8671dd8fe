"""What guidances did, to look at: in words, in curves, in numbers, and the predictions themselves."""

from __future__ import annotations

import re

from comfy_api.latest import io, ui

from ..guiders.base import About
from ..guiders.host import Recorder, check_prefix, with_recorder
from ..patches.texts import shown
from . import schema
from .pictures.report import draw_report
from .pictures.tensors import joined
from .verdict import moved, verdict

REPORT = io.Custom("BEYOND_CFG_REPORT")
STEP = re.compile(r"-?\d{1,9}", re.ASCII)


def steps_of(text: str) -> tuple[int, ...]:
    """ "0, -1" → the numbers of the steps. Raises ValueError for another text."""
    steps = [part.strip() for part in text.split(",") if part.strip()]
    if not all(map(STEP.fullmatch, steps)):
        raise ValueError(f'predictions_at is "{shown(text)}"; write step numbers such as 0, 5, -1')
    return tuple(map(int, steps))


class GuidanceRecorder(schema.Node):
    """MODEL → MODEL that records the next run, and the Recorder that it records into."""

    about = About(
        node_id="BeyondCFGRecorder",
        name="Guidance Recorder",
        title="Record (Guidance Recorder)",
        group="Tools",
        summary=(
            "Records what the guidance nodes do while a sampler runs, for Guidance Report. Put it between the last "
            "guidance node and the sampler. The picture stays exactly the same."
        ),
        aliases=(
            "measure guidance",
            "debug",
            "record",
            "report",
            "log",
        ),
    )
    inputs = (
        io.Model.Input("model", tooltip="The model with its guidances."),
        io.String.Input(
            "predictions_at",
            default="0, -1",
            tooltip="The steps whose predictions are kept to look at: positive, negative and guided. 0 is the first step, "
            "-1 is the last. A step after the end of the run counts as the last. Empty: none.",
        ),
    )
    output = io.Model.Output(tooltip="The model, for the sampler or guider.")
    further = (REPORT.Output(display_name="report", tooltip="For Guidance Report: what is heard in the run to come."),)

    @classmethod
    def build(cls, model, predictions_at):
        recorder = Recorder(steps_of(predictions_at))
        return io.NodeOutput(with_recorder(model, recorder), recorder)

    @classmethod
    def foresee(cls, written):
        steps_of(written.values.get("predictions_at", ""))


class GuidanceReport(schema.Node):
    """What a Recorder holds after a run → a picture, predictions to decode, and files."""

    about = About(
        node_id="BeyondCFGReport",
        name="Guidance Report",
        title="What Happened (Guidance Report)",
        group="Tools",
        summary=(
            "Tells you after sampling what each guidance did: in which steps it acted, how far it moved the picture, and "
            "how much slower it made sampling. You get it in words, as a chart and as a file, and the predictions "
            "themselves to decode."
        ),
        aliases=(
            "plot guidance",
            "debug",
            "analyse",
            "analyze",
            "angles",
            "statistics",
            "look at the negative",
            "effective scale",
        ),
    )
    inputs = (
        REPORT.Input("report", tooltip="From Guidance Recorder."),
        io.Latent.Input("samples", tooltip="What the sampler made, so that the report comes after it."),
        io.String.Input(
            "filename_prefix",
            default="guidance/report",
            tooltip="Where in the output folder the numbers go, as .csv and .json. Empty: no file.",
        ),
    )
    output = io.Image.Output(
        "IMAGE",
        tooltip="The verdict and the chart, and below them the details step by step: directions, effective cfg and cost.",
    )
    further = (
        io.Latent.Output(
            display_name="predictions",
            tooltip="Of the first picture, at the steps that Guidance Recorder was told: positive, negative where there is "
            "one, and guided, in turn. VAE Decode shows them. Without such steps, the samples.",
        ),
        io.String.Output(display_name="files", tooltip="The files written, one per line."),
        io.Float.Output(
            display_name="effective_cfg",
            tooltip="The cfg at which CFG alone comes nearest to this run. Sample with it, and compare: is the guidance "
            "better, or only stronger? 1 where the run had no negative prediction.",
        ),
        io.String.Output(
            display_name="verdict", tooltip="What each guidance did, in sentences. The picture begins with them."
        ),
    )
    shows = True

    @classmethod
    def build(cls, report, samples, filename_prefix):
        if not report.calls:
            raise ValueError(
                "nothing was recorded. The sampler that samples comes from must use the model that comes out of Guidance "
                "Recorder"
            )
        sentences = verdict(report)
        whole, summary = draw_report(report, sentences, moved(report))
        predictions = {"samples": joined(report.predictions)} if any(report.predictions.values()) else samples
        files = report.save(filename_prefix.strip(), sentences) if filename_prefix.strip() else []
        names, text = "\n".join(str(path) for path in files), "\n".join(sentences)
        shows = {**ui.PreviewImage(summary, cls=cls).as_dict(), **ui.PreviewText(text).as_dict()}
        shows["rows_per_step"] = (round(report.rows_per_step(), 4),)  # for programs; the page leaves it
        return io.NodeOutput(whole, predictions, names, report.effective_cfg() or 1.0, text, ui=shows)

    @classmethod
    def foresee(cls, written):
        if prefix := str(written.values.get("filename_prefix", "")).strip():
            check_prefix(prefix)


NODES = [GuidanceRecorder, GuidanceReport]
