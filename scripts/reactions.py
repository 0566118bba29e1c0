"""A masked language model of chemical reactions from PyPI, as fewstep reads one, and prompts for it.

Usage: python scripts/reactions.py WHEEL FOLDER, where fewstep is installed; see `make reactions`.

The wheel holds an AlbertForMaskedLM of transformers, its vocabulary, and a tokenizer that is code. That code is one regular
expression, which becomes a tokenizer.json here. No code of the wheel runs. A prompt is a reaction of tests/reactions.txt of
which two in three tokens of the product are masked; its answer is the whole reaction.
"""

from __future__ import annotations

import json
import random
import re
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fewstep.core.weights import read_weights

INSIDE = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/"
REACTIONS = Path(__file__).parent.parent / "tests" / "reactions.txt"
# atoms in brackets, atoms, bonds, branches, numbers of rings, and the arrow
TOKEN = r"\[[^\]]+\]|Br?|Cl?|[NOSPFIbcnosp]|>>?|%[0-9]{2}|[().=#\-+\\/:~@?*$0-9]"
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
SETS = {"learning": (0, 180), "calibration": (180, 330), "test": (330, 480)}  # which reactions
MASKED = 0.65  # of the product's tokens
SEED = 0


def tokenizer_of(words: list[str]) -> PreTrainedTokenizerFast:
    """The tokenizer: every token that the expression finds is a word of the vocabulary."""
    number = {word: place for place, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(number, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN), "isolated")
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(word, number[word]) for word in ("[CLS]", "[SEP]")]
    )
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL)


def masked(reaction: str, rng: random.Random) -> str:
    """The reaction as a prompt, at least one token of its product masked, behind it the token that ends it."""
    before, product = reaction.split(">>")
    tokens = re.findall(TOKEN, product)
    assert "".join(tokens) == product, reaction
    for place in rng.sample(range(len(tokens)), max(1, round(MASKED * len(tokens)))):
        tokens[place] = "[MASK]"
    return f"{before}>>{''.join(tokens)}[SEP]"


def main(wheel: Path, folder: Path) -> None:
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive, TemporaryDirectory() as place:
        for name in ("config.json", "vocab.txt", "pytorch_model.bin"):
            Path(place, name).write_bytes(archive.read(INSIDE + name))
        weights = read_weights(Path(place), ["pytorch_model.bin"])
        save_file({name: value.clone() for name, value in weights.items()}, model / "model.safetensors")
        (model / "config.json").write_bytes(Path(place, "config.json").read_bytes())
        tokenizer_of(Path(place, "vocab.txt").read_text().split()).save_pretrained(model)
    reactions = [line for line in REACTIONS.read_text().splitlines() if not line.startswith("#")]
    for name, (begin, end) in SETS.items():
        lines = [
            json.dumps({"prompt": masked(reaction, random.Random(f"{SEED} {number}")), "answer": reaction}) + "\n"
            for number, reaction in enumerate(reactions[begin:end], begin)
        ]
        (folder / f"{name}.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
