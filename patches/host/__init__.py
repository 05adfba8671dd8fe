"""The one door from perturbations to the host's networks.

A network call carries a batch of equal shares of rows. `planned` writes into its transformer_options which perturbation
each share gets; `apply_model`, the innermost wrapper of that call, sees the network and everything other packs have
installed by then, and puts ours in front of the chosen layers for the length of the call: in a UNet by the host's
attn1 replace patches, in a transformer by a forward around its modules. Nothing is left behind, nothing of others is
replaced: what was there before is called from ours.
"""

from .call import KEY, Plan, planned
from .lookup import Blocks, architecture_of, check_layers, check_time, is_compiled, layer_map, select_layers, uncompiled
from .modules import Forward, Streams, around
from .sharing import Sharing

__all__ = [
    "KEY",
    "Blocks",
    "Forward",
    "Plan",
    "Sharing",
    "Streams",
    "architecture_of",
    "around",
    "check_layers",
    "check_time",
    "is_compiled",
    "planned",
]
__all__ += ["layer_map", "select_layers", "uncompiled"]
