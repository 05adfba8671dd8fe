"""How predictions are combined: guidance rules, and the run that composes them."""

from .adaptive_projected import AdaptiveProjected
from .classifier_free import ClassifierFree
from .independent_condition import IndependentCondition
from .rescale import Rescale
from .weak_branch import WeakBranch
from .weak_model import WeakModel

RULES = (ClassifierFree, WeakBranch, Rescale, AdaptiveProjected, WeakModel, IndependentCondition)
