"""Where proxy-tuning acted in a text, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from ..masked.prompts import pieces
from .likelihood import Ids, read_texts
from .tuning import ProxyTuning

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Acted:
    """One text, token by token: the choice of the base alone, and how far its distribution was moved.

    Attributes:
        tokens: ids of the text.
        base_choice: the base's own most likely id at each place.
        choice: the most likely id after proxy-tuning.
        shift: total variation distance between both distributions, ½ Σ |p − q|, 0 to 1.
        gain: log q(token) − log p(token), in nats: how much likelier proxy-tuning made the text's token.
    """

    tokens: tuple[int, ...]
    base_choice: tuple[int, ...]
    choice: tuple[int, ...]
    shift: tuple[float, ...]
    gain: tuple[float, ...]

    @property
    def places(self) -> tuple[int, ...]:
        """The places where the first choice changed, counted from the text's first token."""
        pairs = zip(self.base_choice, self.choice, strict=True)
        return tuple(place for place, (before, after) in enumerate(pairs) if before != after)

    @property
    def share(self) -> float:
        """The share of places where the first choice changed."""
        return len(self.places) / len(self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """All attributes and a summary, in JSON's types."""
        summary = {"share": self.share, "places": self.places, "mean_shift": float(np.mean(self.shift))}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in (summary | asdict(self)).items()}


def where_acted(
    base: nn.Module,
    proxy: ProxyTuning,
    prompts: Sequence[Ids],
    texts: Sequence[Ids],
    *,
    expert_prompts: Sequence[Ids] | None = None,
    batch: int = 8,
) -> list[Acted]:
    """Reads finished texts in one forward pass a model, and says where proxy-tuning changed the distribution and how far.

    The texts may be generated or others: the distribution at a place depends only on the tokens before it.

    Args:
        base, proxy, prompts, expert_prompts, batch: as in `loglikelihood`.
        texts: the texts after the prompts, as ids, each with the token that ended it.
    """
    found = []
    for chunk in read_texts(base, proxy, prompts, texts, expert_prompts=expert_prompts, batch=batch):
        shift = (chunk.combined.exp() - chunk.base.exp()).abs().sum(2) / 2
        moved = chunk.combined - chunk.base
        gain = moved.gather(2, chunk.tokens[..., None]).squeeze(2)
        columns = (chunk.tokens, chunk.base.argmax(2), chunk.combined.argmax(2), shift, gain)
        for row, length in enumerate(chunk.real.sum(1).tolist()):
            found.append(Acted(*(tuple(column[row, :length].tolist()) for column in columns)))
    return found


def spelled(acted: Acted, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """`to_dict` and a text for each token.

    "pieces" holds what each token adds to the text, "base_pieces" the choice of the base alone, and "choice_pieces" the
    choice after proxy-tuning.
    """
    alone = {
        f"{name}_pieces": [tokenizer.decode([token]) for token in tokens]
        for name, tokens in (("base", acted.base_choice), ("choice", acted.choice))
    }
    return acted.to_dict() | {"pieces": pieces(tokenizer, acted.tokens)} | alone
