"""Workflows in the API format: read, changed, and what the host says of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .console import Failure


def read(path: Path) -> Any:
    """What a file of JSON holds. Raises Failure."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise Failure(f"There is no file {path}.") from None
    except ValueError as error:
        raise Failure(f"{path} is not JSON ({error}).") from None


def load(path: Path) -> dict:
    workflow = read(path)
    if isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list):
        raise Failure(f"{path} is in the editor's format: in ComfyUI choose Export (API) and run that file.")
    nodes = [*workflow.values()] if isinstance(workflow, dict) else []
    if not nodes or not all(isinstance(node, dict) and "class_type" in node for node in nodes):
        raise Failure(f"{path} is not a workflow in the API format.")
    for node in nodes:
        node.setdefault("inputs", {})
    return workflow


def parse_setting(workflow: dict, setting: str) -> tuple:
    """'NODE.INPUT=VALUE' → (ids of all nodes that NODE is the id, class or title of, input, value). Titles and inputs may
    hold dots, so every dot is tried."""
    target, equals, text = setting.partition("=")
    if not equals or "." not in target:
        raise Failure(f"--set {setting} is not of the form NODE.INPUT=VALUE.")
    for dot in (match.start() for match in re.finditer(r"\.", target)):
        name, key = target[:dot], target[dot + 1 :]
        nodes = [name] if name in workflow else []
        nodes = nodes or [key for key, node in workflow.items() if node["class_type"] == name]
        nodes = nodes or [key for key, node in workflow.items() if (node.get("_meta") or {}).get("title") == name]
        if nodes:
            break
    else:
        listing = ", ".join(f"{key} ({node['class_type']})" for key, node in workflow.items())
        raise Failure(f"--set {setting}: there is no such node; the nodes are {listing}.")
    for inputs in (workflow[node]["inputs"] for node in nodes):
        if key not in inputs:
            raise Failure(f"--set {setting}: {name} has no input {key}; its inputs are {', '.join(inputs) or 'none'}.")
    return nodes, key, parse_value(text)


def parse_value(text: str):
    def refuse(constant):
        raise ValueError(constant)

    try:
        return json.loads(text, parse_constant=refuse)  # NaN and Infinity are not JSON to the host
    except ValueError:
        return text


def set_seed(workflow: dict, seed: int) -> None:
    found = False
    for node in workflow.values():
        for key in ("seed", "noise_seed"):
            inputs = node["inputs"]
            if isinstance(inputs.get(key), list):  # of a node for several
                inputs, key = workflow.get(inputs[key][0], node)["inputs"], "value"
            if key in inputs and not isinstance(inputs[key], list):
                inputs[key], found = seed, True
    if not found:
        raise Failure("No node of this workflow has a seed or noise_seed to set.")


def rejection(body: str) -> str:
    """The host's answer to a workflow it refuses, in readable lines."""
    try:
        answer = json.loads(body)
        error = answer["error"]
        lines = ["ComfyUI refused the workflow: " + (error if isinstance(error, str) else error["message"])]
        if isinstance(error, dict) and error.get("details") and not answer.get("node_errors"):
            lines.append(f"  {error['details']}")
        for key, node in (answer.get("node_errors") or {}).items():
            lines += [f"  node {key} ({node['class_type']}): {e['message']}: {e['details']}" for e in node["errors"]]
        return "\n".join(lines)
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"ComfyUI refused the request: {body[:300]}"


def execution_error(messages: list) -> str:
    for event, data in messages:
        if event == "execution_error":
            text = str(data.get("exception_message", "")).strip().replace("\n", "\n  ")
            kind = str(data.get("exception_type", "error")).rpartition(".")[2]
            return f"Node {data.get('node_id')} ({data.get('node_type')}) failed with {kind}:\n  {text}"
        if event == "execution_interrupted":
            return f"The workflow was interrupted at node {data.get('node_id')} ({data.get('node_type')})."
    return "The workflow failed without a message; see output/host.log."


def unused(path: Path) -> Path:
    tries = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(2, 1_000_000))
    return path if not path.exists() else next(other for other in tries if not other.exists())
