"""What one asks for and how it is computed, by names and numbers: frozen dataclasses that refuse what cannot be.

They are the flags that the text commands share, and their errors name those flags.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.checks import at_least
from .committing import Early, Rule

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from .infill import Template
    from .predictor import MaskPredictor, NetworkPredictor
    from .step import CommitRule

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
