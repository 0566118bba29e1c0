"""Settings of the text commands: frozen dataclasses, which refuse wrong values.

Their fields are the flags that the commands share, and their errors name those flags.
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
Grade = Literal["auto", "exact", "start", "end", "number"]  # how an answer is graded; see `is_right` of grading.py


@dataclass(frozen=True)
class Asked:
    """How a masked model predicts: steps, guidance, suppressed tokens and cache."""

    steps: int | None = None
    """Number of steps in all, for rules that keep to a schedule. By default one step a token."""
    guidance: float = 1.0
    """Classifier-free guidance away from the unconditional prediction; 1 is off."""
    suppress: tuple[str, ...] = ()
    """Names of tokens that are never generated, such as '<|endoftext|>'. LLaDA's published figures of some tasks need
    this."""
    cache: CacheName = "none"
    """Compute less at a step; some answers then change. prefix keeps the keys and values before the current block, dual
    also those after it. All are computed again when a block begins."""
    refresh: int | None = None
    """For prefix and dual: all is computed again after this many steps. By default only when a block begins."""
    around: int = 0
    """For dual: number of neighbours on each side that are computed with the block."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps starts at 1, got {self.steps}")
        if not math.isfinite(self.guidance):
            raise ValueError(f"--guidance must be a finite number, got {self.guidance}")
        at_least(1, refresh=self.refresh)
        at_least(0, around=self.around)
        if self.refresh is not None and self.cache == "none":
            raise ValueError("--refresh needs --cache prefix or dual; give one of them, or leave --refresh out")
        if self.around and self.cache != "dual":
            raise ValueError("--around needs --cache dual; give it too, or leave --around out")

    def without_cache(self) -> Self:
        """The same settings without a cache."""
        return replace(self, cache="none", refresh=None, around=0)

    def around_network(self, network: NetworkPredictor, never: Sequence[int], rule: CommitRule) -> MaskPredictor:
        """The predictor of the network with these settings, without the tokens `never`; its cache has the blocks of `rule`.

        Raises:
            ValueError: the rule reopens decided tokens, and there is a cache or the network cannot verify them.
        """
        from .caching import Cached, Dual, Prefix
        from .predictor import Guided, Suppressed
        from .verifying import LeaveOneOut

        if rule.reopens() and self.cache != "none":
            raise ValueError(
                "--rule wino verifies tokens by the whole text, which a cache does not compute; leave one of them out"
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
    """What is generated. A calibration's guarantee holds for these settings."""

    gen_length: int | None = None
    """Tokens to generate, --suffix included. 0 only fills masks in prompts. By default 128, or the model's room if that is
    less."""
    infill: str = ""
    """A text with holes to fill in. <<8>> is any 8 tokens. <<8:string>>, <<3:integer>>, <<4:number>> and <<2:boolean>> are
    values of JSON in at most that many tokens. <<4:[a-z]+>> is a text that matches a regular expression."""
    suffix: str = ""
    """Text that is given inside the generation, such as "The answer is". The answer is the text after it; without a
    suffix the whole text."""
    answer_length: int = 8
    """Tokens after --suffix."""
    temperature: float = 0.0
    """Temperature of sampling; 0 takes the most likely token."""
    raw: bool = False
    """Leave prompts of plain text as they are. By default they are put into the model's chat template, if it has one.
    Prompts with mask tokens are always left as they are, and conversations always get the template."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature >= 0:
            raise ValueError(f"--temperature must not be negative, got {self.temperature}")
        if self.gen_length is not None and self.gen_length < 0:
            raise ValueError(f"--gen-length must not be negative, got {self.gen_length}")
        if self.infill and (self.suffix or self.gen_length is not None):
            raise ValueError("--infill gives the whole generated text; leave --suffix and --gen-length out")

    def template(
        self, network: NetworkPredictor, tokenizer: PreTrainedTokenizerBase, never: Sequence[int] = ()
    ) -> Template | None:
        """The template of --infill, in tokens; None without --infill."""
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
        """The canvas of each item's prompt, followed by `template` if there is one."""
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
        """All settings on which a calibration's guarantee depends."""
        return {"model": model, "mask_id": compute.mask_id, "precision": compute.precision, **asdict(self)}


@dataclass(frozen=True)
class Masked:
    """Settings of masked models in an evaluation."""

    draws: int = 128
    """Network calls for a log-likelihood."""
    compare: bool = False
    """Generate each text without --cache as well, and count those that differ."""
    asked: Asked = Asked()
    rule: Rule = Rule()
    early: Early = Early()

    def __post_init__(self) -> None:
        comparable(self.asked, self.compare)


def comparable(asked: Asked, compare: bool) -> None:
    """Raises ValueError for a comparison without a cache."""
    if compare and asked.cache == "none":
        raise ValueError("--compare counts the changes by a cache; choose one with --cache, or leave --compare out")


@dataclass(frozen=True)
class Exam:
    """The tasks of the LM Evaluation Harness for a model."""

    tasks: tuple[str, ...]
    """names of tasks."""
    include: Path | None = None
    """a folder of your own tasks; the harness's own are then left out."""
    fewshot: int | None = None
    """examples before each question, if the task does not fix their number."""
    limit: int | None = None
    """only this many questions a task."""
    gen_length: int = 128
    """tokens to generate if the task does not say; fewer if the model has less room."""
    chat: bool = False
    """put questions into the model's chat template."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("name at least one task with --tasks")


@dataclass(frozen=True)
class Compute:
    """How it is computed; rows give the same text at any batch size."""

    seed: int = 0
    """Seed of the first prompt; prompt k has seed + k."""
    batch: int = 16
    """Prompts at once."""
    mask_id: int | None = None
    """Id of the mask token, if the model's files do not name it."""
    precision: Literal["no", "bf16", "8bit"] = "no"
    """no (float32), bf16 or 8bit. With 8bit, bitsandbytes rounds the weights of linear layers, and the rest is float16."""

    def __post_init__(self) -> None:
        at_least(0, seed=self.seed)
        at_least(1, batch=self.batch)

    def seeds(self, n: int) -> range:
        """The seeds of the first n prompts."""
        return range(self.seed, self.seed + n)

    def tokenizer(self, model: str) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        from .load import load_tokenizer

        return load_tokenizer(model)

    def open(self, model: str, tokenizer: PreTrainedTokenizerBase) -> NetworkPredictor:
        """Loads the model on the best device, and checks that the tokenizer fits."""
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
