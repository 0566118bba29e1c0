"""Flags that several text commands share, and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ..masked.predictor import MaskPredictor, NetworkPredictor
    from ..masked.rules import CommitRule, EarlyCommit

Base = Literal["low-confidence", "random", "threshold", "factor", "entropy-bound", "klass"]
RuleName = Literal[Base, "prophet", "sched", "stable"]


@dataclass(frozen=True)
class Text:
    """What is generated: a calibration's guarantee holds for these settings."""

    gen_length: int | None = None
    """Tokens to generate, --suffix included; 0 fills the mask tokens in the prompts and adds none. If left out 128, or what
    the prompt leaves of the model."""
    steps: int | None = None
    """In all, for rules that keep to a schedule; one a token if left out."""
    suffix: str = ""
    """Text that stands in the generation from the start, such as "The answer is"; the answer is what follows, else all."""
    answer_length: int = 8
    """Tokens behind --suffix."""
    temperature: float = 0.0
    """0 takes the most likely token."""
    guidance: float = 1.0
    """Classifier-free guidance away from the unconditional prediction; 1 is off."""
    chat: bool = False
    """Put prompts of plain text into the model's chat template; conversations always are."""

    def __post_init__(self) -> None:
        if self.gen_length is not None and self.gen_length < 0:
            raise ValueError(f"--gen-length must not be negative, got {self.gen_length}")

    def rows(
        self, items: Sequence[dict[str, Any]], network: NetworkPredictor, tokenizer: PreTrainedTokenizerBase
    ) -> list[Tensor]:
        """The canvas of each item's prompt."""
        from ..masked.prompts import canvas

        rows = []
        for number, item in enumerate(items, 1):
            prompt = item["prompt"]
            turns = [{"role": "user", "content": prompt}] if self.chat and isinstance(prompt, str) else prompt
            try:
                row = canvas(
                    turns, tokenizer, network, gen_length=self.gen_length, suffix=self.suffix,
                    answer_length=self.answer_length,
                )  # fmt: skip
            except ValueError as error:
                raise ValueError(f"prompt {number}: {error}" if len(items) > 1 else str(error)) from error
            rows.append(row)
        return rows

    def settings(self, model: str, compute: Compute) -> dict[str, Any]:
        """All that a calibration's guarantee is about."""
        return {"model": model, "mask_id": compute.mask_id, "precision": compute.precision, **asdict(self)}


@dataclass(frozen=True)
class Commit:
    """How much is decided at a step, and when decoding may stop early."""

    over: Base = "low-confidence"
    """The rule that prophet, sched and stable watch, and that decides until they commit."""
    block_length: int = 32
    """The text is decided block by block; as long as --gen-length means all at once."""
    confidence: float = 0.99
    """Of threshold and klass."""
    factor: float = 1.0
    """Of factor."""
    bound: float = 0.1
    """Of entropy-bound, nats."""
    levels: tuple[float, float, float] = (7.5, 5.0, 2.5)
    """Of prophet, logits in the first, second and last third of the steps."""
    statistic: str = "minimum"
    """Of prophet: minimum, a quantile such as 0.1, or mean, as published, which hides what is still open."""

    def rule(self, name: RuleName, *, answer_follows: bool = False) -> CommitRule:
        """The rule called `name`; prophet watches what follows the suffix where an answer does."""
        from ..masked.rules import KLASS, Blockwise, EntropyBound, Factor, StableAndConfident, Threshold, TopK, sched

        if name == "prophet":
            return self.prophet(answer_follows=answer_follows)
        if name == "sched":
            return sched(self.rule(self.over))
        if name == "stable":
            return StableAndConfident(self.rule(self.over))
        rules: dict[str, CommitRule] = {
            "low-confidence": TopK(),
            "random": TopK("chance"),
            "threshold": Threshold(self.confidence),
            "factor": Factor(self.factor),
            "entropy-bound": EntropyBound(self.bound),
            "klass": KLASS(self.confidence),
        }
        return Blockwise(rules[name], self.block_length)

    def prophet(self, *, answer_follows: bool) -> EarlyCommit:
        """Early commit over the rule `over`."""
        from ..masked.rules import EarlyCommit
        from ..masked.schedule import Stairs, Suffix

        statistic: Any = self.statistic
        if statistic not in ("mean", "minimum"):
            try:
                statistic = float(statistic)
            except ValueError:
                raise ValueError(f"--statistic is mean, minimum or a number from 0 to 1, got {statistic}") from None
        return EarlyCommit(self.rule(self.over), Stairs(self.levels), statistic, Suffix() if answer_follows else None)


@dataclass(frozen=True)
class Compute:
    """How it is computed; rows give the same text at any batch size."""

    seed: int = 0
    """Of the first prompt; prompt k has seed + k."""
    batch: int = 16
    """Prompts at once."""
    mask_id: int | None = None
    """Id of the mask token, where the model does not say it."""
    precision: Literal["no", "bf16"] = "no"
    """no (float32) or bf16."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"--batch starts at 1, got {self.batch}")

    def seeds(self, n: int) -> range:
        """Of the first n prompts."""
        return range(self.seed, self.seed + n)

    def open(self, model: str, guidance: float) -> tuple[MaskPredictor, NetworkPredictor, PreTrainedTokenizerBase]:
        """The model as it is asked, its network and its tokenizer."""
        import torch
        from transformers.utils import logging as transformers_logging

        from ..core.device import best_device
        from ..masked.load import load_text, load_tokenizer
        from ..masked.predictor import Guided

        transformers_logging.disable_progress_bar()
        tokenizer = load_tokenizer(model)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        network = load_text(model, mask_id=self.mask_id, device=str(best_device()), dtype=dtype)
        return network if guidance == 1 else Guided(network, guidance), network, tokenizer


TextFlags = Annotated[Text, OmitArgPrefixes]
CommitFlags = Annotated[Commit, OmitArgPrefixes]
ComputeFlags = Annotated[Compute, OmitArgPrefixes]
