"""How predictions are combined: guidance rules, and the run that composes them."""

from .classifier_free import ClassifierFree
from .weak_branch import WeakBranch

RULES = (ClassifierFree, WeakBranch)
