"""A tiny BERT of random weights in a folder, and what the tests of the text commands do with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

WORDS = ["[PAD]", "[MASK]", "[CLS]", "[SEP]", "[UNK]", *(f"w{n}" for n in range(30)), "answer", "is"]


def save_bert(folder: Path) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=40, initializer_range=0.5,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    vocabulary = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, mask_token="[MASK]", pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    return folder


def call(command: Callable[..., None], model: Path, **options: Any) -> None:
    """The command with these options as flags."""
    flags = [str(model)]
    for name, value in options.items():
        words = [] if value is True else map(str, value if isinstance(value, tuple) else (value,))
        flags += ["--" + name.replace("_", "-"), *words]
    tyro.cli(command, args=flags)


def write_prompts(path: Path, n: int = 5) -> Path:
    lines = [json.dumps({"prompt": " ".join(f"w{(7 * i + j) % 30}" for j in range(1 + i % 4)), "id": i}) for i in range(n)]
    path.write_text("\n".join(lines) + '\n\n"w1 w2"\n')
    return path
