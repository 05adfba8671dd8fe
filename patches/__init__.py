"""How a branch is made worse: perturbations, and where in each network they act."""

from .identity_attention import IdentityAttention

PERTURBATIONS = (IdentityAttention,)
