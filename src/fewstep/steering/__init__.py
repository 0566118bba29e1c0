"""Proxy-tuning: small models steer a large one at decoding time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.lazy import lazily

if TYPE_CHECKING:
    from .accounting import Balanced as Balanced
    from .accounting import ledger_models as ledger_models
    from .accounting import take_stock as take_stock
    from .acted import Acted as Acted
    from .acted import where_acted as where_acted
    from .choices import Questioning as Questioning
    from .choices import Steered as Steered
    from .choices import Writing as Writing
    from .evaluation import evaluate_steered as evaluate_steered
    from .likelihood import loglikelihood as loglikelihood
    from .load import load_trio as load_trio
    from .masked import Proxied as Proxied
    from .speaking import CausalSpeaker as CausalSpeaker
    from .tuning import ProxyTuning as ProxyTuning
    from .tuning import generate as generate
    from .vocabulary import same_tokens as same_tokens
    from .writing import Written as Written
    from .writing import write as write

_NAMES = {
    "accounting": ["Balanced", "ledger_models", "take_stock"],
    "acted": ["Acted", "where_acted"],
    "choices": ["Questioning", "Steered", "Writing"],
    "evaluation": ["evaluate_steered"],
    "likelihood": ["loglikelihood"],
    "load": ["load_trio"],
    "masked": ["Proxied"],
    "speaking": ["CausalSpeaker"],
    "tuning": ["ProxyTuning", "generate"],
    "vocabulary": ["same_tokens"],
    "writing": ["Written", "write"],
}
__all__ = [name for names in _NAMES.values() for name in names]

__getattr__, __dir__ = lazily(__name__, _NAMES)
