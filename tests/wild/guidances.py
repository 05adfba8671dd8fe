"""One guidance after another on a running host: each is finite and acts, and the model alone stays what it was."""

from __future__ import annotations

import itertools

import torch
from pack.tests.host.harness import CAN_COPY
from pack.tests.wild.graphs import Family, Graph, sampled
from pack.tests.wild.hosts import ask

GUIDANCES = {  # its node, what is not its default, and how its weak model is degraded
    "PAG": ("BeyondCFGPAG", {}),
    "SEG": ("BeyondCFGSEG", {}),
    "SAG": ("BeyondCFGSAG", {"scale": 1.0}),
    "ICG": ("BeyondCFGICG", {"weight": 3.0}),
    "TSG": ("BeyondCFGTSG", {"weight": 3.0, "noise": 2.0}),
    "Autoguidance by dropout": ("BeyondCFGAutoguidance", {"weight": 3.0}, "dropout"),
    "Autoguidance by rounding": ("BeyondCFGAutoguidance", {"weight": 3.0}, "quantised weights"),
}
REFUSED = () if CAN_COPY else ("Autoguidance by rounding",)  # its weak model needs weights of its own
turns = itertools.count()


def prompt(info: dict, family: Family, name: str = "") -> dict:
    """Two steps under a guidance, from start to end; without a name, under none."""
    graph = Graph()

    def node(kind: str, links: dict, **changes) -> list:
        declared = info[kind]["input"]["required"].items()
        inputs = {key: links[key] if key in links else more[0]["default"] for key, (_, *more) in declared}
        window = {key: float(key == "end_percent") for key in ("start_percent", "end_percent") if key in inputs}
        return [graph.add(kind, **inputs | window | changes), 0]

    if not name:
        return sampled(graph, family, None, next(turns))
    kind, changes, *degraded = GUIDANCES[name]
    links = {"model": graph.load(family, "model")}
    for degradation in degraded:
        more = {"amount": 0.3, "bits": 3, "degradation": degradation}
        links["weak_model"] = node("BeyondCFGDegradedModel", links, **more)
    return sampled(graph, family, node(kind, links, **changes), next(turns))


def faults(server, info: dict, family: Family) -> list[str]:
    """What is wrong with any of the guidances on a model; nothing where the host cannot run the model by itself."""
    none = ask(server, prompt(info, family))
    if none.error:
        return []
    found = [] if none.is_finite else ["none is not finite"]
    for name in GUIDANCES:
        answer = ask(server, prompt(info, family, name))
        if name in REFUSED:
            found += [] if "this one cannot copy a loaded model" in answer.error else [f"{name} is not refused"]
        elif answer.error or not answer.is_finite:
            found.append(f"{name}: {answer.error or 'not finite'}")
        elif torch.equal(answer.latents[0], none.latents[0]):
            found.append(f"{name} has no effect")
    if not torch.equal(ask(server, prompt(info, family)).latents[0], none.latents[0]):
        found.append("none is another than before")
    return found
