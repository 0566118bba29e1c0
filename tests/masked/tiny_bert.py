"""A tiny BERT of random weights in a folder, and what the tests of the text commands do with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

# w28 begins what a user says, w29 what the assistant says
CHAT = (
    "{% for turn in messages %}{% if turn.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ 'w29 ' if turn.role == 'assistant' else 'w28 ' }}{{ turn.content }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}w29 {% endif %}"
)
WORDS = ["[PAD]", "[MASK]", "[CLS]", "[SEP]", "[UNK]", *(f"w{n}" for n in range(30)), "answer", "is"]


def save_bert(folder: Path, *, special: bool = False) -> Path:
    """With `special` its tokenizer writes [CLS] before and [SEP] behind a text, and has a chat template."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=40, initializer_range=0.5,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    word_tokenizer(special=special).save_pretrained(folder)
    return folder


def word_tokenizer(*, special: bool) -> PreTrainedTokenizerFast:
    vocabulary = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"mask_token": "[MASK]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    if special:
        ends = [(word, WORDS.index(word)) for word in ("[CLS]", "[SEP]")]
        vocabulary.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, **names)
    tokenizer.chat_template = CHAT if special else None
    return tokenizer


def call(command: Callable[..., None], model: Path | str, **options: Any) -> None:
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
