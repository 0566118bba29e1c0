"""Settings of commit rules: how much is decided at a step, and when decoding stops early.

Their fields are flags that the text commands share, and their errors name those flags.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .early import EarlyCommit
    from .step import CommitRule

Base = Literal[
    "low-confidence", "margin", "entropy", "random", "threshold", "factor", "entropy-bound", "klass", "credit",
    "hierarchical", "learned", "wino",
]  # fmt: skip
EarlyName = Literal["prophet", "sched", "stable"]


@dataclass(frozen=True)
class Rule:
    """How much is decided at a step; all commands that decode have these defaults."""

    rule: Base = "threshold"
    """The tokens that a step decides: all that are sure enough (threshold, factor, entropy-bound, klass, credit,
    hierarchical, learned), or as many as --schedule says (low-confidence, margin, entropy, random). wino decides more, and
    takes back tokens that the rest of the text does not support."""
    block_length: int | None = None
    """The text is decided in blocks of this length, one after another. A length of --gen-length makes a single block. By
    default 32, or the length of the blocks that the model was trained on, which this length must then divide."""
    confidence: float | None = None
    """For threshold, klass, credit, hierarchical and learned; by default 0.99."""
    draft: float | None = None
    """For wino: how sure a token must be at first; by default 0.6."""
    verify: float | None = None
    """For wino: how sure a token must stay; by default 0.9."""
    low: float | None = None
    """For hierarchical: how sure the surest token of each run of neighbours must be; by default 0.4."""
    factor: float | None = None
    """For factor; by default 1.0."""
    learned: Path | None = None
    """For learned: the file that fewstep learn-rule wrote for this model."""
    bound: float | None = None
    """For entropy-bound, in nats; by default 0.1."""
    schedule: Literal["even", "dream"] | None = None
    """For low-confidence, margin, entropy and random: even, the default, decides equally many tokens at each step, as LLaDA
    does; dream follows Dream's own schedule."""
    last: tuple[str, ...] = ()
    """Names of tokens that are decided last. LLaDA's published figures of some tasks have '<|endoftext|>' '<|eot_id|>'."""

    def made(self, tokenizer: PreTrainedTokenizerBase, block: int | None = None) -> CommitRule:
        """The rule itself, for a model that was trained on blocks of `block` tokens, or without blocks (None)."""
        from .learned import Learned
        from .prompts import token_ids
        from .rules import DEFAULT, KLASS, SURE, WINO, Blockwise, Credit, EntropyBound, Factor, Hierarchical, Last, TopK

        rules: dict[str, Any] = {
            "low-confidence": TopK("confidence"), "margin": TopK("margin"), "entropy": TopK("entropy"),
            "random": TopK("chance"), "threshold": DEFAULT.rule, "factor": Factor(), "entropy-bound": EntropyBound(),
            "klass": KLASS(SURE), "credit": Credit(SURE), "hierarchical": Hierarchical(SURE), "wino": WINO(),
        }  # fmt: skip
        if (self.learned is None) == (self.rule == "learned"):
            raise ValueError("--rule learned and --learned FILE belong together; give both of them or neither")
        if self.learned:
            rules["learned"] = Learned.read(self.learned, SURE)
        elsewhere = ("block_length", "learned")
        options = [option.name for option in fields(self) if option.default is None and option.name not in elsewhere]
        given = {name: value for name in options if (value := getattr(self, name)) is not None}
        for option in given:
            takes = [name for name, rule in rules.items() if option in {part.name for part in fields(rule)}]
            if self.rule not in takes:
                raise ValueError(
                    f"--{option} belongs to --rule {', '.join(takes)}, not to {self.rule}; leave one of them out"
                )
        rule: CommitRule = replace(rules[self.rule], **given)
        rule = Last(rule, token_ids(tokenizer, self.last)) if self.last else rule
        if block is None:
            return Blockwise(rule, 32 if self.block_length is None else self.block_length)
        length = self.block_length or block
        if block % length:
            raise ValueError(
                f"this model was trained on blocks of {block}, which --block-length {length} does not divide; leave it out"
            )
        return Blockwise(rule, length, aligned=True)


@dataclass(frozen=True)
class Prophet:
    """When prophet stops early."""

    levels: tuple[float, float, float] = (7.5, 5.0, 2.5)
    """For prophet: thresholds in logits for the first, second and last third of the steps."""
    statistic: str = "minimum"
    """For prophet: which statistic of the gaps counts: the minimum, a quantile such as 0.1, or the mean. The mean is as
    published, and can hide a position that is not sure."""
    gaps: Literal["undecided", "region"] = "undecided"
    """For prophet: the gaps of undecided positions, or of the whole region of the answer, as published."""
    first: Literal[0, 1] = 0
    """For prophet: the number of the first step, for the share of steps done. Its published code counts from 1."""

    def around(self, rule: CommitRule, *, answer_follows: bool) -> EarlyCommit:
        """Early commit around `rule`. If the answer follows a suffix, only positions after the suffix are watched."""
        from .early import EarlyCommit
        from .schedule import Stairs, Suffix

        statistic: Any = self.statistic
        if statistic not in ("mean", "minimum"):
            try:
                statistic = float(statistic)
            except ValueError:
                raise ValueError(f"--statistic must be mean, minimum or a number from 0 to 1, got {statistic}") from None
        region = Suffix() if answer_follows else None
        return EarlyCommit(rule, Stairs(self.levels), statistic, region, self.gaps, self.first)


@dataclass(frozen=True)
class Early:
    """Whether decoding may stop early."""

    early: EarlyName | None = None
    """Decide all remaining tokens at once when the answer is known; until then --rule decides. Calibrate prophet and
    sched first."""
    prophet: Prophet = Prophet()

    def __post_init__(self) -> None:
        own = [f"--{option.name}" for option in fields(Prophet) if getattr(self.prophet, option.name) != option.default]
        if own and self.early != "prophet":
            raise ValueError(f"{', '.join(own)}: only for --early prophet; give that too, or leave the option out")

    def around(self, rule: CommitRule, *, answer_follows: bool) -> CommitRule:
        """`rule`, or early commit around it."""
        from .early import StableAndConfident, sched

        if self.early == "prophet":
            return self.prophet.around(rule, answer_follows=answer_follows)
        if self.early == "sched":
            return sched(rule)
        return rule if self.early is None else StableAndConfident(rule)
