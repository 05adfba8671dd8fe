"""How predictions are combined: guidance rules, and the run that composes them."""

from .adaptive_projected import AdaptiveProjected
from .classifier import CleanClassifier, NoisyClassifier
from .classifier_free import ClassifierFree
from .independent_condition import IndependentCondition
from .rescale import Rescale
from .self_attention import SelfAttention
from .weak_branch import WeakBranch
from .weak_model import WeakModel

RULES = (
    ClassifierFree,
    WeakBranch,
    Rescale,
    AdaptiveProjected,
    WeakModel,
    IndependentCondition,
    SelfAttention,
    NoisyClassifier,
    CleanClassifier,
)
