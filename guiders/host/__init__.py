"""The one door from guidance rules to the host's sampling.

A term (rule, window, name) sits on a MODEL. When a run begins, an OUTER_SAMPLE wrapper puts the run's innermost
PREDICT_NOISE wrapper on the guider's own copy of model_options, and takes it off when the run ends: nothing stays on
the guider or the model. For each model call that wrapper asks which terms act at its σ. If none does, the call goes
through untouched. Otherwise

    conditionings   the branches' conditionings join the guider's own in one calc_cond_batch, under uuids of their own;
    roles           what other packs see of them are the places of the guider's own, positive 0 and negative 1;
    fold            the terms are applied to what the host made of its own predictions, before any post-CFG function of
                    other packs.

A guider with a predict_noise of its own keeps it: the conditionings are added to the call that carries its positive, and
the terms are applied to its result.
"""

from ...patches.host import KEY
from .attach import add_term, check_cfg, make_guider, with_options, with_recorder, with_reuse, with_stop
from .condition_pools import one_prompt, prompts, random_tokens
from .recorder import Recorder, check_prefix
from .run import sample_with_terms
from .term import Term
from .trace import ForwardRecord, trace
from .weak_models import with_weak_model

__all__ = [
    "KEY",
    "ForwardRecord",
    "Recorder",
    "Term",
    "add_term",
    "check_cfg",
    "check_prefix",
    "make_guider",
    "one_prompt",
    "prompts",
    "random_tokens",
]
__all__ += ["sample_with_terms", "trace", "with_options", "with_recorder", "with_reuse", "with_stop", "with_weak_model"]
