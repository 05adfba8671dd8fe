"""How a branch is made worse: perturbations, and where in each network they act."""

from .identity_attention import IdentityAttention
from .noisy_time_embedding import NoisyTimeEmbedding
from .skipped_layer import SkippedLayer

PERTURBATIONS = (IdentityAttention, NoisyTimeEmbedding, SkippedLayer)
