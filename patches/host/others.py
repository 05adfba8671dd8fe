"""What other packs have put into a network, by name: for messages that say whose node is in the way."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable

from comfy.ldm.modules.attention import attention_pytorch, attention_split, attention_sub_quad
from comfy.patcher_extension import WrappersMP

THIS_PACK = __name__.rpartition(".patches.")[0]  # the name that the host has given to this pack
HOSTS = ("comfy", "torch")  # what the host itself may put in place of a forward
OVERRIDE = "optimized_attention_override"
ROW_BY_ROW = (attention_pytorch, attention_split, attention_sub_quad)
MOST = 6  # names in a sentence


def whose(thing) -> str:
    """A function, method or object by its name, and the Python module that it is from."""
    kind = _kind(thing)
    name = kind.__name__ if isinstance(kind, type) else kind.__qualname__.partition(".")[0]  # mostly a node's
    return f"{name} of {_home(kind)}"


def names(things: Iterable) -> str:
    """Whose they are, each once; things of this pack are left out."""
    found = [*dict.fromkeys(whose(thing) for thing in things if not _is_this_packs(thing))]
    return ", ".join([*found[:MOST], *(["others"] if len(found) > MOST else [])])


def forwards(network) -> dict[str, Callable]:
    """The forwards that other packs have put in place of those of the network's modules, by their places in it."""
    found = {}
    for place, module in network.named_modules():
        for name, forward in vars(module).items():
            if name.lstrip("_").startswith("forward") and callable(forward) and is_anothers(forward):
                found[f"{place}.{name}".lstrip(".")] = forward
    return found


def patches(options: dict, kind: str) -> list:
    """What is in the transformer_options under "patches" or "patches_replace"."""
    given = options.get(kind, {}).values()
    return [patch for some in given for patch in (some.values() if isinstance(some, dict) else some)]


def inside(network, options: dict) -> list:
    """All that others have put into a call of `network` with these transformer_options; the host's own nodes are others."""
    wrappers = options.get("wrappers", {}).get(WrappersMP.DIFFUSION_MODEL, {}).values()
    found = [*forwards(network).values(), *patches(options, "patches"), *patches(options, "patches_replace")]
    found += [*(wrapper for some in wrappers for wrapper in some), *filter(None, [options.get(OVERRIDE)])]
    return [thing for thing in found if not _is_this_packs(thing)]


def said(network, options: dict) -> str:
    """A sentence of all that others have put into a call of `network` with these transformer_options."""
    if whose := names(inside(network, options)):
        return f"Other nodes have put these into the network: {whose}."
    return "Another pack may have replaced a part of the network."


def may_answer(network, options: dict) -> bool:
    """Whether there is something of others that may answer in place of parts of `network`, as a cache does: in the call,
    among the network's modules, or in the classes of these."""
    if inside(network, options):
        return True
    kinds = {type(module) for module in network.modules() if any(True for _ in module.children())}
    methods = (item for kind in kinds for base in kind.__mro__ for item in vars(base).items())
    return any(name.lstrip("_").startswith("forward") and callable(one) and is_anothers(one) for name, one in methods)


def may_remember(network) -> list:
    """What stands in `network` in place of its own forwards and modules, the host's replacements included. It may remember
    calls, so that a probe would be one of them for it."""
    own = {_root(base) for base in type(network).__mro__} | {*HOSTS}
    found: list = [vars(module)["forward"] for module in network.modules() if "forward" in vars(module)]
    for module in network.modules():
        kind = type(module)
        if any(True for _ in module.children()) and _root(kind) not in own:
            found.append(kind)
        for base in kind.__mro__:
            forward = vars(base).get("forward")
            if callable(forward) and _root(forward) not in (_root(base), *HOSTS):
                found.append(forward)
    return list(dict.fromkeys(found))


def _root(thing) -> str:
    """The outermost Python package that a function or class is from."""
    return (_kind(thing).__module__ or "").partition(".")[0]


def treats_rows_alike(override: Callable) -> bool:
    """Whether an attention override is that of the host's Model Attention Backend, with an attention that gives a row
    alone what it gives it beside others. Of those in eight bits that is not known: nobody tried."""
    if getattr(override, "__module__", "") != "comfy.model_patcher" or not hasattr(override, "__code__"):
        return False
    return inspect.getclosurevars(override).nonlocals.get("optimized_attention") in ROW_BY_ROW


def is_anothers(thing) -> bool:
    """Whether a function, or the class of an object, is neither the host's nor PyTorch's nor this pack's."""
    return (_kind(thing).__module__ or "").partition(".")[0] not in HOSTS and not _is_this_packs(thing)


def _is_this_packs(thing) -> bool:
    return (_kind(thing).__module__ or "").startswith(f"{THIS_PACK}.")


def _kind(thing):
    """The function, or the class of the object: what has a name and a module."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    thing = getattr(thing, "__func__", thing)
    return thing if hasattr(thing, "__qualname__") else type(thing)


def _home(kind) -> str:
    """The host calls a pack's modules by the path of its folder, with "_x_" for the points in it."""
    parts = re.split(r"[\\/]+", (kind.__module__ or "?").replace("_x_", "."))
    return ".".join(parts[parts.index("custom_nodes") :] if "custom_nodes" in parts else parts[-1:])
