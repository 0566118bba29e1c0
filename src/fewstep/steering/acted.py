"""Where proxy-tuning acted in a text, and what it was worth."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from .likelihood import Ids, read_texts
from .tuning import ProxyTuning

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Acted:
    """One text, token by token: what the base alone would have chosen, and how far its distribution was moved.

    Attributes:
        tokens: ids of the text.
        base_choice: the base's own most likely id at each place.
        choice: the most likely id after proxy-tuning.
        shift: total variation distance between both distributions, ½ Σ |p − q|, 0 to 1.
        gain: log q(token) − log p(token), in nats: how much likelier proxy-tuning made the token that stands there.
    """

    tokens: tuple[int, ...]
    base_choice: tuple[int, ...]
    choice: tuple[int, ...]
    shift: tuple[float, ...]
    gain: tuple[float, ...]

    @property
    def places(self) -> tuple[int, ...]:
        """Where the first choice changed, counted from the text's first token."""
        pairs = zip(self.base_choice, self.choice, strict=True)
        return tuple(place for place, (before, after) in enumerate(pairs) if before != after)

    @property
    def share(self) -> float:
        """The share of places where the first choice changed."""
        return len(self.places) / len(self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """Everything, in JSON's types."""
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
    """Reads finished texts once more, in one forward pass a model, and says where proxy-tuning changed what.

    Generated texts or any others: the distribution at a place depends only on what stands before it.

    Args:
        base, proxy, prompts, expert_prompts, batch: as in `loglikelihood`.
        texts: what follows the prompts, as ids, up to and with the token that ended each.
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
    """What `to_dict` gives, and words, a text for each token.

    "pieces" is what the token adds to the text, "base_pieces" what the base alone would have chosen in its place, and
    "choice_pieces" what was likeliest after proxy-tuning.
    """
    alone = {
        f"{name}_pieces": [tokenizer.decode([token]) for token in tokens]
        for name, tokens in (("base", acted.base_choice), ("choice", acted.choice))
    }
    return acted.to_dict() | {"pieces": pieces(tokenizer, acted.tokens)} | alone


def page(acted: Sequence[Acted], tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str] = ()) -> str:
    """A self-contained HTML page of texts: the deeper the colour the larger the shift, a line under changed choices.

    Args:
        acted: the texts.
        tokenizer: of the base.
        prompts: shown in grey before the texts, if given.
    """
    shown = []
    for index, text in enumerate(acted):
        spans = [f'<span class="prompt">{html.escape(prompts[index])}</span>'] if prompts else []
        for place, piece in enumerate(pieces(tokenizer, text.tokens)):
            changed = place in text.places
            before, after = (tokenizer.decode([choice[place]]) for choice in (text.base_choice, text.choice))
            told = f"base {before!r}, now {after!r}" if changed else f"{after!r} either way"
            title = html.escape(f"{told}; shift {text.shift[place]:.2f}; gain {text.gain[place]:+.2f}")
            kind = ' class="changed"' if changed else ""
            depth = f"background:rgba(230,120,0,{0.8 * text.shift[place]:.2f})"
            spans.append(f'<span{kind} style="{depth}" title="{title}">{html.escape(piece)}</span>')
        summary = f"first choice changed at {len(text.places)} of {len(text.tokens)} tokens ({text.share:.0%})"
        shown.append(f"<p class=told>{summary}</p>\n<p class=text>{''.join(spans)}</p>")
    return PAGE.format("\n".join(shown))


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Where proxy-tuning acted</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 1rem/1.6 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }}
.text {{ white-space: pre-wrap; overflow-wrap: anywhere }}
.told {{ margin-bottom: 0; font-size: .85rem; opacity: .7 }}
.prompt {{ opacity: .6 }}
.changed {{ border-bottom: 2px solid }}
</style></head><body>
<h1>Where proxy-tuning acted</h1>
<p>The deeper the colour, the further the distribution was moved; a line under a token where its first choice changed.
Point at a token for both choices.</p>
{}
</body></html>
"""


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; together they are the text. A character of several tokens comes with its last."""
    found, text = [], ""
    for end in range(1, len(ids) + 1):
        longer = tokenizer.decode(list(ids[:end]), clean_up_tokenization_spaces=False)
        whole = end == len(ids) or not longer.endswith("\N{REPLACEMENT CHARACTER}")
        found.append(longer[len(text) :] if whole else "")
        text = longer if whole else text
    return found
