"""A small network of every architecture that the pack knows, of the host's own classes, for the tests of the table."""

import importlib
import pkgutil

from .specimen import Specimen

SPECIMENS: list[Specimen] = []
for _module in pkgutil.iter_modules(__path__):
    SPECIMENS += getattr(importlib.import_module(f"{__name__}.{_module.name}"), "SPECIMENS", [])
