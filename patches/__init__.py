"""How a branch is made worse: perturbations, and where in each network they act."""

from .attention_temperature import AttentionTemperature
from .blurred_query import BlurredQuery
from .flipped_values import FlippedValues
from .identity_attention import IdentityAttention
from .masked_attention import MaskedAttention
from .noisy_time_embedding import NoisyTimeEmbedding
from .normalized_attention import NormalizedAttention
from .orthogonal_attention import OrthogonalAttention
from .random_skipped_layer import RandomSkippedLayer
from .shifted_time import ShiftedTime
from .shuffled_tokens import ShuffledTokens
from .skipped_layer import SkippedLayer
from .subtracted_attention import SubtractedAttention
from .swapped_tokens import SwappedTokens

PERTURBATIONS = (
    IdentityAttention,
    BlurredQuery,
    MaskedAttention,
    AttentionTemperature,
    NoisyTimeEmbedding,
    ShiftedTime,
    SkippedLayer,
    ShuffledTokens,
    SwappedTokens,
    RandomSkippedLayer,
)

PROMPT_GUIDANCES = (NormalizedAttention, FlippedValues, SubtractedAttention, OrthogonalAttention)
