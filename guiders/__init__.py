"""How predictions are combined: guidance rules, and the run that composes them."""

from .adaptive_projected import AdaptiveProjectedGuidance
from .angle_cap import AngleCap
from .beta import BetaCFG
from .classifier import CleanClassifierGuidance, NoisyClassifierGuidance
from .classifier_free import ClassifierFreeGuidance
from .dynamic_thresholding import DynamicThresholding
from .epsilon_scaling import EpsilonScaling
from .frequency_decoupled import FrequencyDecoupled
from .history import HistoryGuidance
from .independent_condition import IndependentConditionGuidance
from .magnitude_aware import MagnitudeAware
from .mahiro import Mahiro
from .momentum import MomentumGuidance
from .norm_cap import NormCap
from .perp_neg import PerpNeg
from .perturbation import PerturbationGuidance
from .previous_step import PreviousStepGuidance
from .rescale import GuidanceRescale
from .self_attention import SelfAttentionGuidance
from .sliding_mode import SlidingModeGuidance
from .sliding_window import SlidingWindowGuidance
from .tangential import TangentialCFG
from .temporal_score import TemporalScoreRescaling
from .tonemap import Tonemap
from .weak_model import WeakModelGuidance
from .worse_negative import WorseNegative
from .zero_star import ZeroStar

RULES = (
    ClassifierFreeGuidance,
    PerturbationGuidance,
    GuidanceRescale,
    AdaptiveProjectedGuidance,
    WeakModelGuidance,
    IndependentConditionGuidance,
    SelfAttentionGuidance,
    NoisyClassifierGuidance,
    CleanClassifierGuidance,
    ZeroStar,
    WorseNegative,
    PerpNeg,
    TangentialCFG,
    MagnitudeAware,
    FrequencyDecoupled,
    Mahiro,
    BetaCFG,
    NormCap,
    AngleCap,
    DynamicThresholding,
    EpsilonScaling,
    TemporalScoreRescaling,
    Tonemap,
    HistoryGuidance,
    MomentumGuidance,
    SlidingModeGuidance,
    PreviousStepGuidance,
    SlidingWindowGuidance,
)
