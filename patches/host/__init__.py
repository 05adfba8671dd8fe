"""The one door from perturbations to the host's networks.

A network call carries a batch of equal chunks, one for each conditioning. `planned` writes into the call's
transformer_options what is done in each chunk. `apply_model`, the innermost wrapper of that call, sees the network and
everything that other packs have installed by then, and puts the pack's functions in front of what is there. All of them
are removed when the call ends. What was there before is called from them.

What is replaced for the length of a call, and why no hook of the host serves:

    of UNets           nothing: the host's attn1 replace patches, in the options of the call, serve.
    of transformers    `forward` of the chosen modules (forwards.py). The host has no patch for the self-attention of most
                       of them, and none that tells where the picture's tokens are. The networks are shared objects, so
                       the replaced `forward` looks up what to do in the options of its own call.
    of Ernie-Image,    besides, `optimized_attention` and `optimized_attention_masked` in the Python modules in which the
    HiDream O1,        host writes these networks (options_free.py). The host gives the modules that attend no
    HunyuanDiT and     transformer_options, so its slot for an attention override is out of reach. A lock and a count of
    PixArt             users let several threads share the replacement.
"""

from .call import KEY, Plan, Proofs, planned
from .chunks import Chunks, titles
from .forwards import ForwardPatch, Streams, patched_forwards
from .layer_maps import known_layers, layer_map
from .lookup import (
    Blocks,
    architecture_of,
    check_layers,
    check_time,
    choose_layers,
    choose_prompt_layers,
    is_compiled,
    select_layers,
    uncompiled,
)
from .prefix_sharing import PrefixSharing
from .prompts import NegativePrompt

__all__ = ["KEY", "Blocks", "Chunks", "ForwardPatch", "NegativePrompt", "Plan", "PrefixSharing", "Proofs", "Streams"]
__all__ += ["architecture_of", "check_layers", "check_time", "choose_layers", "choose_prompt_layers", "is_compiled"]
__all__ += ["known_layers", "layer_map", "patched_forwards", "planned", "select_layers", "titles", "uncompiled"]
