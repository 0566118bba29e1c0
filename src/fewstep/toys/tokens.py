"""A vocabulary of whole words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS, MASK, UNKNOWN = "<pad>", "<eos>", "<mask>", "<unk>"


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer for words separated by spaces: ids 0 to 3 are padding, end of text, mask and unknown, then the words.

    AutoTokenizer loads it again. It adds no token before or after a text.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: place for place, word in enumerate(dict.fromkeys((PAD, EOS, MASK, UNKNOWN, *words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, mask_token=MASK, unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
