"""Trains the bundled trio for proxy-tuning, and the directly tuned base that it is compared with.

    python scripts/train_trio.py pretrain base small --runs runs/first     # the same text for both
    python scripts/train_trio.py pretrain base small --start runs/first --items 24000 --rate 1e-3
    python scripts/train_trio.py tune small --name expert
    python scripts/train_trio.py tune small --name adapter --lora
    python scripts/train_trio.py tune base --name tuned
    python scripts/train_trio.py tune base --name tuned_lora --lora
    python scripts/train_trio.py bundle base small expert adapter --start runs/first

The prose holds the facts of an invented world and sums; the skill is to answer a question for a sum with 10 more than it,
in written steps. The bundled models read their first 80,000 blocks when no sum went on behind an answer yet and no text
said "the answer is" (documents() as first committed), and the rest as it is now.

Each folder of --runs holds a model in half precision with its tokenizer and receipt.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from fewstep.core.receipt import receipt
from fewstep.core.source import ASSETS
from fewstep.steering.load import load_causal, load_tokenizer
from fewstep.toys.prose import blocks, documents, problem, vocabulary
from fewstep.toys.tokens import word_tokenizer
from fewstep.toys.training import Numbered, fit
from fewstep.toys.world import World

SIZES = {  # hidden, intermediate, layers, heads
    "base": (192, 512, 4, 6),
    "small": (96, 256, 3, 3),
    "tiny": (16, 32, 1, 2),
}
LENGTH = 64  # tokens of a block of prose
DIFFERENT = 1200  # problems to tune on; the last 600 of 2050 are to test on, those between to choose settings by
LORA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def new(size: str, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    hidden, intermediate, layers, heads = SIZES[size]
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        vocab_size=len(tokenizer), tie_word_embeddings=True, max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def pretrain(
    size: str, out: Path, runs: Path, *, people: int, n: int, batch: int, rate: float, resume: bool,
    start: Path | None = None,
) -> None:  # fmt: skip
    world = World(people=people)
    tokenizer = word_tokenizer(vocabulary(world))
    model = load_causal(start, dtype=torch.float32) if start else new(size, tokenizer)
    items = Numbered(blocks(documents(world, seed=1 if start else 0), tokenizer.encode, tokenizer.eos_token_id, LENGTH), n)

    def collate(rows: Sequence[list[int]]) -> dict[str, Tensor]:
        ids = torch.tensor(rows)
        return {"input_ids": ids, "labels": ids}

    first = json.loads((start / "receipt.json").read_text()) if start else None
    settings = {"start": first, "world": world, "blocks": n, "length": LENGTH, "batch": batch, "rate": rate}
    with receipt(out / "receipt.json", size=SIZES[size], parameters=model.num_parameters(), **settings):
        fit(model, items, collate, runs / "training" / out.name, batch=batch, rate=rate, bf16=True, resume=resume)
        save(model, tokenizer, out)


def tune(source: Path, out: Path, runs: Path, *, lora: bool, n: int, batch: int, rate: float, resume: bool) -> None:
    """Teaches the skill with `n` problems, the first DIFFERENT over and over; only the worked answer counts in the loss."""
    tokenizer, model = load_tokenizer(source), load_causal(source, dtype=torch.float32)
    if lora:
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=list(LORA), task_type="CAUSAL_LM"))

    def item(number: int) -> tuple[list[int], list[int]]:
        made = problem(number % DIFFERENT)
        return tokenizer(made.prompt)["input_ids"], [*tokenizer(made.worked)["input_ids"], tokenizer.eos_token_id]

    def collate(rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        width = max(len(prompt) + len(text) for prompt, text in rows)
        ids = torch.full((len(rows), width), tokenizer.pad_token_id)
        labels = torch.full((len(rows), width), -100)
        for row, (prompt, text) in enumerate(rows):
            ids[row, : len(prompt) + len(text)] = torch.tensor(prompt + text)
            labels[row, len(prompt) : len(prompt) + len(text)] = torch.tensor(text)
        return {"input_ids": ids, "labels": labels, "attention_mask": (ids != tokenizer.pad_token_id).long()}

    settings = {"source": source.name, "lora": lora, "problems": n, "different": DIFFERENT, "batch": batch, "rate": rate}
    with receipt(out / "receipt.json", trained=model.num_parameters(only_trainable=True), **settings):
        folder = runs / "training" / out.name
        fit(model, Numbered(item, n), collate, folder, batch=batch, rate=rate, warmup=20, resume=resume)
        save(model, tokenizer, out, source.name)


def save(model: Any, tokenizer: PreTrainedTokenizerBase, out: Path, source: str = "") -> None:
    """Weights in half precision, to be loaded and computed with in single precision, which is what the config says."""
    if hasattr(model, "peft_config"):
        model.peft_config["default"].base_model_name_or_path = source  # else a path of this machine
        model.half().save_pretrained(out, save_embedding_layers=False)
        (out / "README.md").unlink()  # a model card with nothing filled in
    else:
        model.half().save_pretrained(out)
        model.config.update({"dtype": "float32", "use_cache": True})  # training turned the cache off
        model.config.save_pretrained(out)
        tokenizer.save_pretrained(out)


def bundle(folder: Path, start: Path) -> None:
    """Copies a model, and its receipt with the runs where this file's first lines have them."""
    out = ASSETS / "trio" / folder.name
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder, out, copy_function=shutil.copyfile)
    told = (folder / "receipt.json").read_text()
    (out / "receipt.json").write_text(told.replace(str(start), "runs/first").replace(str(folder.parent), "runs/trio"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("pretrain", "tune", "bundle"))
    parser.add_argument("models", nargs="+", help="sizes to pretrain, the folder to tune, or the folders to bundle")
    parser.add_argument("--name", help="folder of the tuned model")
    parser.add_argument("--start", type=Path, help="folder of models to go on from, with other texts")
    parser.add_argument("--runs", type=Path, default=Path("runs/trio"))
    parser.add_argument("--people", type=int, default=500)
    parser.add_argument("--items", type=int, help="blocks of prose, or problems")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, help="peak learning rate")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    options = {"batch": args.batch, "resume": args.resume}
    for name in args.models:
        if args.stage == "pretrain":
            n, rate = args.items or 80_000, args.rate or 2.5e-3
            start = args.start / name if args.start else None
            pretrain(name, args.runs / name, args.runs, people=args.people, n=n, rate=rate, start=start, **options)
        elif args.stage == "tune":
            n, rate = args.items or 4_000, args.rate or (1e-3 if args.lora else 3e-4)
            tune(args.runs / name, args.runs / args.name, args.runs, lora=args.lora, n=n, rate=rate, **options)
        else:
            bundle(args.runs / name, args.start or args.runs)


if __name__ == "__main__":
    main()
