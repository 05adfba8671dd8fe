"""How predictions are combined: guidance rules, and the run that composes them."""

from .classifier_free import ClassifierFree, SamplerCFG
from .weak_branch import WeakBranch

RULES = (ClassifierFree, WeakBranch)
