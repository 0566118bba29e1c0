"""Settings of a steered model: frozen dataclasses, each of which refuses wrong values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.checks import at_least
from ..masked.choices import Grade


@dataclass(frozen=True)
class Steered:
    """What steers a causal model."""

    expert: str | None = None
    """The small tuned model of proxy-tuning; with --adapter the small model that the adapter was trained on."""
    antiexpert: str | None = None
    """The small model before tuning."""
    adapter: str | None = None
    """A LoRA adapter, folder or hub id, instead of an antiexpert."""
    alpha: float = 1.0
    """How far to steer; 0 scores the causal model alone."""

    def __post_init__(self) -> None:
        if self.expert is None and (self.antiexpert, self.adapter, self.alpha) != (None, None, 1.0):
            raise ValueError("--antiexpert, --adapter and --alpha need --expert, the small model that steers")


@dataclass(frozen=True)
class Writing:
    """How a text is written."""

    tokens: int = 200
    """maximum number of tokens to generate."""
    temperature: float = 0.0
    """of sampling; 0 takes the likeliest token."""
    top_p: float = 1.0
    """sample from the likeliest tokens that together have this probability."""
    beams: int = 1
    """of beam search, 1 for none."""
    seed: int = 0
    """of the sampling."""

    def __post_init__(self) -> None:
        at_least(1, tokens=self.tokens, beams=self.beams)
        at_least(0, temperature=self.temperature, seed=self.seed)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top-p must be above 0 and at most 1, got {self.top_p:g}")
        if self.top_p < 1 and not self.temperature:
            raise ValueError("--top-p needs sampling; give a --temperature, too")

    def options(self, pad: int) -> dict[str, Any]:
        """Keyword arguments of transformers' generate; `pad` fills a text that has ended."""
        options: dict[str, Any] = {"max_new_tokens": self.tokens, "num_beams": self.beams, "pad_token_id": pad}
        if not self.temperature:
            return options | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return options | {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}


@dataclass(frozen=True)
class Questioning:
    """What both models are asked."""

    skill: tuple[Path, ...] = ()
    """Questions that the change was made for: a .jsonl of {"prompt": …, "answer": …}, "options" for multiple choice."""
    held: tuple[Path, ...] = ()
    """Questions whose answers should stay right, in the same form."""
    text: tuple[Path, ...] = ()
    """Ordinary texts that were never trained on, for the perplexity: a .jsonl of texts, or one text a line."""
    grade: Grade = "auto"
    """What must match for a generated answer to be right: exact, the whole text; start or end, its first or last words;
    number, its last number; auto, number for answers that are numbers, else exact. A question's own "grade" comes first."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer; the answer is cut before the first of them."""
    n: int | None = None
    """Only this many questions and texts of each file."""
    draws: int = 32
    """Network calls for a likelihood of a masked model."""

    def __post_init__(self) -> None:
        at_least(1, draws=self.draws)
        at_least(2, n=self.n)
        if not (self.skill or self.held or self.text):
            raise ValueError("give --skill, --held or --text: without questions or texts there is nothing to compare")
        names = [file.stem for file in (*self.skill, *self.held)]
        if len(set(names)) < len(names) or len({file.stem for file in self.text}) < len(self.text):
            raise ValueError("two files have the same name, which names their lines; rename one of them")
