"""Masked diffusion language models: decode them, and stop as soon as the answer is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.lazy import lazily

if TYPE_CHECKING:
    from .answering import save_answers as save_answers
    from .boldness import calibrate_rule as calibrate_rule
    from .boldness import graded as graded
    from .caching import Cached as Cached
    from .caching import Dual as Dual
    from .caching import Prefix as Prefix
    from .calibration import Calibration as Calibration
    from .calibration import Decoding as Decoding
    from .calibration import calibrate as calibrate
    from .changes import Changes as Changes
    from .changes import count_changes as count_changes
    from .choices import Compute as Compute
    from .choices import Exam as Exam
    from .choices import Masked as Masked
    from .choices import Text as Text
    from .committing import Early as Early
    from .committing import Prophet as Prophet
    from .committing import Rule as Rule
    from .decoder import Decoder as Decoder
    from .decoder import open_decoder as open_decoder
    from .decoding import Decoded as Decoded
    from .decoding import decode as decode
    from .decoding import stream as stream
    from .decoding import walk as walk
    from .early import EarlyCommit as EarlyCommit
    from .early import StableAndConfident as StableAndConfident
    from .early import sched as sched
    from .emerging import settle_prompts as settle_prompts
    from .evaluation import evaluate_masked as evaluate_masked
    from .fitting import calibrate_prompts as calibrate_prompts
    from .fitting import calibrate_rule_prompts as calibrate_rule_prompts
    from .fitting import learn_rule as learn_rule
    from .infill import Kept as Kept
    from .infill import Template as Template
    from .infill import Together as Together
    from .learned import Learned as Learned
    from .likelihood import log_likelihood as log_likelihood
    from .load import load_text as load_text
    from .load import load_tokenizer as load_tokenizer
    from .predictor import Canvas as Canvas
    from .predictor import Guided as Guided
    from .predictor import MaskPredictor as MaskPredictor
    from .predictor import Suppressed as Suppressed
    from .prompts import StopStrings as StopStrings
    from .prompts import canvas as canvas
    from .prompts import canvas_row as canvas_row
    from .prompts import encode as encode
    from .prompts import read_prompts as read_prompts
    from .prompts import text_of as text_of
    from .rules import DEFAULT as DEFAULT
    from .rules import KLASS as KLASS
    from .rules import WINO as WINO
    from .rules import Blockwise as Blockwise
    from .rules import Credit as Credit
    from .rules import EntropyBound as EntropyBound
    from .rules import Factor as Factor
    from .rules import Hierarchical as Hierarchical
    from .rules import Last as Last
    from .rules import Threshold as Threshold
    from .rules import TopK as TopK
    from .schedule import Cosine as Cosine
    from .schedule import Exponential as Exponential
    from .schedule import Linear as Linear
    from .schedule import Span as Span
    from .schedule import Stairs as Stairs
    from .schedule import Suffix as Suffix
    from .settling import emergence as emergence
    from .settling import record as record
    from .settling import settle as settle
    from .step import Change as Change
    from .step import CommitRule as CommitRule
    from .step import Step as Step
    from .verifying import LeaveOneOut as LeaveOneOut

_NAMES = {
    "answering": ["save_answers"],
    "caching": ["Cached", "Dual", "Prefix"],
    "calibration": ["Calibration", "Decoding", "calibrate"],
    "changes": ["Changes", "count_changes"],
    "choices": ["Compute", "Exam", "Masked", "Text"],
    "committing": ["Early", "Prophet", "Rule"],
    "decoder": ["Decoder", "open_decoder"],
    "decoding": ["Decoded", "decode", "stream", "walk"],
    "early": ["EarlyCommit", "StableAndConfident", "sched"],
    "emerging": ["settle_prompts"],
    "evaluation": ["evaluate_masked"],
    "fitting": ["calibrate_prompts", "calibrate_rule_prompts", "learn_rule"],
    "boldness": ["calibrate_rule", "graded"],
    "infill": ["Kept", "Template", "Together"],
    "learned": ["Learned"],
    "likelihood": ["log_likelihood"],
    "load": ["load_text", "load_tokenizer"],
    "predictor": ["Canvas", "Guided", "MaskPredictor", "Suppressed"],
    "prompts": ["StopStrings", "canvas", "canvas_row", "encode", "read_prompts", "text_of"],
    "rules": [
        "Blockwise", "Credit", "DEFAULT", "EntropyBound", "Factor", "Hierarchical", "KLASS", "Last", "Threshold", "TopK",
        "WINO",
    ],
    "schedule": ["Cosine", "Exponential", "Linear", "Span", "Stairs", "Suffix"],
    "settling": ["emergence", "record", "settle"],
    "step": ["Change", "CommitRule", "Step"],
    "verifying": ["LeaveOneOut"],
}  # fmt: skip
__all__ = [name for names in _NAMES.values() for name in names]

__getattr__, __dir__ = lazily(__name__, _NAMES)
