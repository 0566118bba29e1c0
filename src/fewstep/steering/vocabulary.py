"""Whether tokenizers mean the same tokens by the same ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_NAMED = 3


def same_tokens(base: PreTrainedTokenizerBase, *others: PreTrainedTokenizerBase) -> None:
    """Refuses models whose logits cannot be added, since an id is one token here and another there.

    Sizes do not count: one vocabulary may end earlier, if what the longer one has beyond is nothing or its padding token.

    Args:
        base: tokenizer of the large model.
        others: tokenizers of the small models.

    Raises:
        ValueError: names the first ids that differ, and both tokens of each.
    """
    ours = _tokens(base)
    for other in others:
        theirs = _tokens(other)
        end = min(max(ours), max(theirs))
        tails = {i for tokens, tokenizer in ((ours, base), (theirs, other)) for i in tokens if _pads(tokenizer, i, end)}
        wrong = sorted(i for i in (ours.keys() | theirs.keys()) - tails if ours.get(i) != theirs.get(i))
        if wrong:
            named = "; ".join(f"{i} is {_name(ours.get(i))} and {_name(theirs.get(i))}" for i in wrong[:MAX_NAMED])
            raise ValueError(
                f"{base.name_or_path or 'the base'} and {other.name_or_path or 'a small model'} do not share a vocabulary: "
                f"{len(wrong)} ids differ, first {named}; take small models from the base's own family"
            )


def _tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {index: token for token, index in tokenizer.get_vocab().items()}


def _pads(tokenizer: PreTrainedTokenizerBase, index: int, end: int) -> bool:
    return index > end and index == tokenizer.pad_token_id


def _name(token: str | None) -> str:
    return "nothing" if token is None else repr(token)
