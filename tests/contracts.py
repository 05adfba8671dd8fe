"""What the classes of methods may define: a name that nobody calls is a misspelt one."""

from __future__ import annotations

import dataclasses
import inspect

from pack.guiders.base import GuidanceRule
from pack.patches import base
from pack.patches.base import Perturbation

KINDS = tuple(
    kind
    for kind in vars(base).values()
    if inspect.isclass(kind) and issubclass(kind, Perturbation) and kind is not Perturbation
)


def faults_of_perturbation(method: type) -> list[str]:
    """What keeps a class from being a perturbation of one kind, each as a sentence that names the class."""
    kinds = [kind for kind in KINDS if issubclass(method, kind)]
    if len(kinds) != 1:
        those = " and ".join(kind.__name__ for kind in kinds) or "none"
        return [f"{method.__name__} must be of one kind, {' or '.join(kind.__name__ for kind in KINDS)}; it is {those}"]
    return _faults(method, kinds[0])


def faults_of_rule(rule: type) -> list[str]:
    """What keeps a class from being a guidance rule, each as a sentence that names the class."""
    return _faults(rule, GuidanceRule)


def _faults(method: type, kind: type) -> list[str]:
    if not issubclass(method, kind):
        return [f"{method.__name__} is no {kind.__name__}"]
    known = {name for parent in kind.__mro__ for name in (*vars(parent), *vars(parent).get("__annotations__", ()))}
    classes = [parent for parent in method.__mro__ if parent not in kind.__mro__]
    fields = {field.name for field in dataclasses.fields(method)}
    defined = {name for parent in classes for name in vars(parent) if not name.startswith("_")}
    wanted = ", ".join(sorted(name for name in known if not name.startswith("_")))
    faults = [
        f"{method.__name__} has {name}, which nobody calls; a {kind.__name__} may have {wanted}"
        for name in sorted(defined - fields - known)
    ]
    return faults + [f"{method.__name__} lacks {name}" for name in sorted(method.__abstractmethods__)]
