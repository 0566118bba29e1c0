"""What one chooses for text, by names and numbers: frozen dataclasses that refuse what cannot be.

They are the flags that the text commands share, and their errors name those flags.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.checks import at_least

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from .early import EarlyCommit
    from .infill import Template
    from .predictor import MaskPredictor, NetworkPredictor
    from .step import CommitRule

Base = Literal[
    "low-confidence", "margin", "entropy", "random", "threshold", "factor", "entropy-bound", "klass", "credit",
    "hierarchical", "learned", "wino",
]  # fmt: skip
EarlyName = Literal["prophet", "sched", "stable"]
CacheName = Literal["none", "prefix", "dual"]
Grade = Literal["auto", "exact", "start", "end", "number"]  # when an answer is right; see `is_right` of grading.py


@dataclass(frozen=True)
class Asked:
    """How a masked model is asked."""

    steps: int | None = None
    """Number of steps in all, for rules that keep to a schedule. If left out, one step a token."""
    guidance: float = 1.0
    """Classifier-free guidance away from the unconditional prediction; 1 is off."""
    suppress: tuple[str, ...] = ()
    """Tokens that are never written, by their names, such as '<|endoftext|>'. LLaDA's published figures of some tasks
    need it."""
    cache: CacheName = "none"
    """Compute less at a step, at the price that some answers change. prefix keeps the keys and values of what stands
    before the current block, dual also of what stands behind it. Everything is computed when a block begins."""
    refresh: int | None = None
    """Of prefix and dual: after so many steps everything is computed again. If left out, only when a block begins."""
    around: int = 0
    """Of dual: how many neighbours on each side are computed with the block."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps starts at 1, got {self.steps}")
        if not math.isfinite(self.guidance):
            raise ValueError(f"--guidance is a finite number, got {self.guidance}")
        at_least(1, refresh=self.refresh)
        at_least(0, around=self.around)
        if self.refresh is not None and self.cache == "none":
            raise ValueError("--refresh is of --cache prefix and dual; say one of them, or leave it out")
        if self.around and self.cache != "dual":
            raise ValueError("--around is of --cache dual; say that too, or leave it out")

    def without_cache(self) -> Self:
        """The same, computed in full at every step."""
        return replace(self, cache="none", refresh=None, around=0)

    def around_network(self, network: NetworkPredictor, never: Sequence[int], rule: CommitRule) -> MaskPredictor:
        """The network as it is asked, which never says some tokens; its cache has the blocks of `rule`.

        Raises:
            ValueError: a rule that takes decided tokens back, with a cache or a network that cannot verify them.
        """
        from .caching import Cached, Dual, Prefix
        from .predictor import Guided, Suppressed
        from .verifying import LeaveOneOut

        if rule.reopens() and self.cache != "none":
            raise ValueError(
                "--rule wino asks the whole text what it thinks of a token, and a cache would not; leave one out"
            )
        predictor: MaskPredictor = LeaveOneOut(network) if rule.reopens() else network
        if self.cache != "none":
            block, refresh = rule.block(), self.refresh
            kept = Prefix(block, refresh) if self.cache == "prefix" else Dual(block, refresh, self.around)
            predictor = Cached(network, kept)
        if self.guidance != 1:
            predictor = Guided(predictor, self.guidance)
        return Suppressed(predictor, never) if never else predictor


@dataclass(frozen=True)
class Text(Asked):
    """What is generated: a calibration's guarantee holds for these settings."""

    gen_length: int | None = None
    """Tokens to generate, --suffix included. 0 only fills masks in prompts. If left out, 128 or as many as the model has
    room for."""
    infill: str = ""
    """A text with holes to fill in. <<8>> is any 8 tokens. <<8:string>>, <<3:integer>>, <<4:number>> and <<2:boolean>>
    are values of JSON in at most so many tokens. <<4:[a-z]+>> is what matches a regular expression."""
    suffix: str = ""
    """Text that stands in the generation from the start, such as "The answer is". The answer is what follows it; without
    a suffix the whole text."""
    answer_length: int = 8
    """Tokens behind --suffix."""
    temperature: float = 0.0
    """0 takes the most likely token."""
    raw: bool = False
    """Leave prompts of plain text as they are. Otherwise they are put into the model's chat template, if it has one.
    Prompts with mask tokens to fill in are always left as they are, and conversations always get the template."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature >= 0:
            raise ValueError(f"--temperature must not be negative, got {self.temperature}")
        if self.gen_length is not None and self.gen_length < 0:
            raise ValueError(f"--gen-length must not be negative, got {self.gen_length}")
        if self.infill and (self.suffix or self.gen_length is not None):
            raise ValueError("--infill is all of what is generated; leave --suffix and --gen-length out")

    def template(
        self, network: NetworkPredictor, tokenizer: PreTrainedTokenizerBase, never: Sequence[int] = ()
    ) -> Template | None:
        """What --infill says, in tokens."""
        from .infill import Template

        if not self.infill:
            return None
        return Template.of(self.infill, tokenizer, network.mask_id, never=never, ends=network.eos_ids)

    def rows(
        self,
        items: Sequence[dict[str, Any]],
        network: NetworkPredictor,
        tokenizer: PreTrainedTokenizerBase,
        template: Template | None = None,
    ) -> list[Tensor]:
        """The canvas of each item's prompt, `template` behind it if there is one."""
        from .prompts import as_asked, canvas, prompt_of

        rows = []
        for number, item in enumerate(items, 1):
            prompt = prompt_of(item)
            turns = prompt if self.raw else as_asked(prompt, tokenizer, network.mask_id)
            try:
                row = canvas(
                    turns, tokenizer, network, gen_length=self.gen_length, suffix=self.suffix,
                    answer_length=self.answer_length, template=template,
                )  # fmt: skip
            except ValueError as error:
                raise ValueError(f"prompt {number}: {error}" if len(items) > 1 else str(error)) from error
            rows.append(row)
        return rows

    def settings(self, model: str, compute: Compute) -> dict[str, Any]:
        """All that a calibration's guarantee is about."""
        return {"model": model, "mask_id": compute.mask_id, "precision": compute.precision, **asdict(self)}


@dataclass(frozen=True)
class Rule:
    """How much is decided at a step; the defaults are those of everything that decodes."""

    rule: Base = "threshold"
    """What is decided at a step: all that is sure enough (threshold, factor, entropy-bound, klass, credit, hierarchical,
    learned), or as many tokens as --schedule says (low-confidence, margin, entropy, random). wino decides more, and takes
    back what the rest of the text does not support."""
    block_length: int | None = None
    """The text is decided block by block. A block as long as --gen-length means all at once. If left out, 32, or the
    length of the blocks that the model was trained on. Those may be divided."""
    confidence: float | None = None
    """Of threshold, klass, credit, hierarchical and learned; 0.99 if left out."""
    draft: float | None = None
    """Of wino, how sure a token must be at first; 0.6 if left out."""
    verify: float | None = None
    """Of wino, how sure it must stay; 0.9 if left out."""
    low: float | None = None
    """Of hierarchical, for the surest of each run of neighbours; 0.4 if left out."""
    factor: float | None = None
    """Of factor; 1.0 if left out."""
    learned: Path | None = None
    """Of learned: the file that fewstep learn-rule wrote for this model."""
    bound: float | None = None
    """Of entropy-bound, nats; 0.1 if left out."""
    schedule: Literal["even", "dream"] | None = None
    """Of low-confidence, margin, entropy and random: even decides as many at each step, as LLaDA does, dream follows
    Dream's own schedule. even if left out."""
    last: tuple[str, ...] = ()
    """Tokens that are decided last, by their names. LLaDA's published figures of some tasks have '<|endoftext|>'
    '<|eot_id|>'."""

    def made(self, tokenizer: PreTrainedTokenizerBase, block: int | None = None) -> CommitRule:
        """The rule itself, for a model that was trained on blocks of so many tokens, or on none."""
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
                    f"--{option} is of --rule {', '.join(takes)} and not of {self.rule}; leave one of them out"
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
    """Of prophet, logits in the first, second and last third of the steps."""
    statistic: str = "minimum"
    """Which of prophet's gaps counts: the minimum, a quantile such as 0.1, or the mean. The mean is as published, and
    hides what is still open."""
    gaps: Literal["undecided", "region"] = "undecided"
    """Of prophet: the gaps of undecided positions, or of the whole region of the answer, as published."""
    first: Literal[0, 1] = 0
    """Of prophet: the number of the first step, for the share of steps that are done. Its published code counts from 1."""

    def around(self, rule: CommitRule, *, answer_follows: bool) -> EarlyCommit:
        """Early commit over `rule`; it watches what follows the suffix where an answer does."""
        from .early import EarlyCommit
        from .schedule import Stairs, Suffix

        statistic: Any = self.statistic
        if statistic not in ("mean", "minimum"):
            try:
                statistic = float(statistic)
            except ValueError:
                raise ValueError(f"--statistic is mean, minimum or a number from 0 to 1, got {statistic}") from None
        region = Suffix() if answer_follows else None
        return EarlyCommit(rule, Stairs(self.levels), statistic, region, self.gaps, self.first)


@dataclass(frozen=True)
class Early:
    """Whether decoding may stop early."""

    early: EarlyName | None = None
    """Decide all that is left at once when the text is known. Until then --rule decides. Calibrate prophet and sched
    first."""
    prophet: Prophet = Prophet()

    def __post_init__(self) -> None:
        own = [f"--{option.name}" for option in fields(Prophet) if getattr(self.prophet, option.name) != option.default]
        if own and self.early != "prophet":
            raise ValueError(f"{', '.join(own)}: of --early prophet alone; say that too, or leave it out")

    def around(self, rule: CommitRule, *, answer_follows: bool) -> CommitRule:
        """`rule`, or early commit over it."""
        from .early import StableAndConfident, sched

        if self.early == "prophet":
            return self.prophet.around(rule, answer_follows=answer_follows)
        if self.early == "sched":
            return sched(rule)
        return rule if self.early is None else StableAndConfident(rule)


@dataclass(frozen=True)
class Masked:
    """What masked models have and causal ones do not."""

    draws: int = 128
    """Network calls for a log-likelihood."""
    compare: bool = False
    """Generate each text without --cache as well, and say how many are others."""
    asked: Asked = Asked()
    rule: Rule = Rule()
    early: Early = Early()

    def __post_init__(self) -> None:
        comparable(self.asked, self.compare)


def comparable(asked: Asked, compare: bool) -> None:
    """Raises ValueError where a comparison is wanted and there is no cache."""
    if compare and asked.cache == "none":
        raise ValueError("--compare tells what a cache changes; choose one with --cache, or leave --compare out")


@dataclass(frozen=True)
class Exam:
    """What a model is asked by the LM Evaluation Harness."""

    tasks: tuple[str, ...]
    """names of tasks."""
    include: Path | None = None
    """a folder of tasks of your own; the harness's own are then left out."""
    fewshot: int | None = None
    """examples before each question, where the task does not fix it."""
    limit: int | None = None
    """only so many questions a task."""
    gen_length: int = 128
    """tokens to generate where the task does not say; fewer where the model has less room."""
    chat: bool = False
    """put questions into the model's chat template."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("name at least one task with --tasks")


@dataclass(frozen=True)
class Compute:
    """How it is computed; rows give the same text at any batch size."""

    seed: int = 0
    """Of the first prompt; prompt k has seed + k."""
    batch: int = 16
    """Prompts at once."""
    mask_id: int | None = None
    """Id of the mask token, where the model does not say it."""
    precision: Literal["no", "bf16", "8bit"] = "no"
    """no (float32), bf16 or 8bit. For 8bit, bitsandbytes rounds the weights of linear layers, and the rest is float16."""

    def __post_init__(self) -> None:
        at_least(0, seed=self.seed)
        at_least(1, batch=self.batch)

    def seeds(self, n: int) -> range:
        """Of the first n prompts."""
        return range(self.seed, self.seed + n)

    def tokenizer(self, model: str) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        from .load import load_tokenizer

        return load_tokenizer(model)

    def open(self, model: str, tokenizer: PreTrainedTokenizerBase) -> NetworkPredictor:
        """The model itself."""
        import torch

        from ..core.device import best_device
        from ..core.pretrained import check_vocabulary
        from .load import load_text

        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        network = load_text(
            model, mask_id=self.mask_id, device=str(best_device()), dtype=dtype, eight_bit=self.precision == "8bit"
        )
        check_vocabulary(tokenizer, network.network)
        return network
