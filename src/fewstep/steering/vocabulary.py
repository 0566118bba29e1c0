"""Whether tokenizers mean the same tokens by the same ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_NAMED = 3


def same_tokens(base: PreTrainedTokenizerBase, *others: PreTrainedTokenizerBase) -> int | None:
    """Refuses models whose logits cannot be added, since an id means different tokens in them.

    Vocabularies may differ in size if all ids of the shorter one are the same tokens in the longer one.

    Args:
        base: tokenizer of the large model.
        others: tokenizers of the small models.

    Returns:
        The id from which on the base has tokens that not all others have; None if it has none, padding aside. Such tokens
        must not be generated and must not stand in a text, as the small models do not know them.

    Raises:
        ValueError: names the first ids that differ, and both tokens of each.
    """
    ours, common = _tokens(base), max(_tokens(base)) + 1
    for other in others:
        theirs = _tokens(other)
        end = min(max(ours), max(theirs))
        wrong = sorted(i for i in range(end + 1) if ours.get(i) != theirs.get(i))
        if wrong:
            named = "; ".join(f"{i} is {_name(ours.get(i))} and {_name(theirs.get(i))}" for i in wrong[:MAX_NAMED])
            raise ValueError(
                f"{base.name_or_path or 'the base'} and {other.name_or_path or 'a small model'} do not share a vocabulary: "
                f"{len(wrong)} ids differ, first {named}; take small models from the base's own family"
            )
        common = min(common, end + 1)
    beyond = [i for i in ours if i >= common and i != base.pad_token_id]
    return common if beyond else None


def _tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {index: token for token, index in tokenizer.get_vocab().items()}


def _name(token: str | None) -> str:
    return "nothing" if token is None else repr(token)
