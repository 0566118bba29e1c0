"""What teaching a skill costs the bundled language model: in full, by LoRA, and by steering; a ledger each.

    python scripts/train_trio.py tune base --name tuned                # into runs/trio, as for bundled_trio.py
    python scripts/train_trio.py tune base --name tuned_lora --lora
    python benchmarks/bundled_ledger.py --tuned runs/trio/tuned runs/trio/tuned_lora

All have seen the same problems. Asked are the skill (10 more than a sum, on problems that no tuning saw), facts of the
world by likelihood among all values of their relation, sums in plain prose among near numbers, and the perplexity of prose
of facts and of sums, but for its questions for sums, which the skill answers in another way. Then where the knowledge went:
the weights of one part of a tuned model are put back, and both are asked again.
"""

from __future__ import annotations

import argparse
import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from bundled_trio import load
from torch import nn

from fewstep.core.receipt import receipt
from fewstep.core.source import ASSETS
from fewstep.masked.grading import Question, Questions
from fewstep.masked.lines import Answer, Loss
from fewstep.steering.accounting import Balanced, take_stock
from fewstep.steering.load import load_adapter, load_tokenizer
from fewstep.steering.speaking import CausalSpeaker
from fewstep.steering.tuning import ProxyTuning
from fewstep.toys.prose import LARGEST, choice, documents, problem
from fewstep.toys.world import World

WORLD = World(people=500)
SHOWN = ("right: skill", "right: facts", "right: sums", "Brier: facts", "perplexity: facts", "perplexity: sums")
HALVES = {  # what is put back
    "embeddings": ("model.embed_tokens",),
    "lower half": ("model.layers.0.", "model.layers.1."),
    "upper half": ("model.layers.2.", "model.layers.3."),
}


@dataclass(frozen=True)
class Once(CausalSpeaker):
    """A model that is asked the same several times."""

    said: dict[Any, Any] = field(default_factory=dict)

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        return self._once("answers", questions)

    def chooses(self, questions: Sequence[Question]) -> list[Answer]:
        return self._once("chooses", questions)

    def losses(self, documents: Sequence[str]) -> list[Loss]:
        return self._once("losses", documents)

    def _once(self, how: str, what: Sequence[Any]) -> Any:
        if (how, id(what)) not in self.said:
            self.said[how, id(what)] = getattr(CausalSpeaker, how)(self, what)
        return self.said[how, id(what)]


def questions(problems: int, facts: int) -> list[Questions]:
    asked = [problem(-1 - k) for k in range(problems)]
    plain = [item.worked.split()[:5] for item in asked]  # a plus b is c
    options = [choice(fact) for fact in random.Random(0).sample(WORLD.facts, facts)]
    return [
        Questions("skill", True, tuple(Question(item.prompt, item.answer) for item in asked)),
        Questions("facts", False, tuple(Question(o.prompt, o.options[o.right], o.options) for o in options)),
        Questions("sums", False, tuple(Question(" ".join(words[:4]), words[4], _near(int(words[4]))) for words in plain)),
    ]


def _near(number: int) -> tuple[str, ...]:
    """A sum, its neighbours, and what the skill would make of it, which is the error to expect."""
    return tuple(str(number + away) for away in (-10, -1, 0, 1, 10) if 0 <= number + away <= LARGEST)


def put_back(tuned: nn.Module, base: nn.Module, part: Sequence[str]) -> nn.Module:
    """A copy of `tuned` with those weights of the base."""
    mixed, own = copy.deepcopy(tuned), dict(base.named_parameters())
    with torch.no_grad():
        for name, weight in mixed.named_parameters():
            if any(piece in name for piece in part):
                weight.copy_(own[name])
    return mixed


def by_depth(found: Balanced) -> dict[str, float]:
    """Root mean square of the change over the weight matrices of each depth, from the input to the output."""
    depths: dict[str, list[float]] = {}
    for layer in found.ledger.drift:
        if not layer.layer.endswith("norm"):
            words = layer.layer.split(".")
            depths.setdefault(words[2] if words[1] == "layers" else "embeddings", []).append(layer.change**2)
    return {depth: (sum(squares) / len(squares)) ** 0.5 for depth, squares in depths.items()}


def told(name: str, found: Balanced) -> str:
    """A row: the value of each line, its paired difference, and what is said of it."""
    cells = [name]
    pairs = {line.name: (line, v) for line, v in zip(found.ledger.lines, found.ledger.verdicts, strict=True)}
    for shown in SHOWN:
        if shown in pairs:
            line, verdict = pairs[shown]
            d = line.difference
            cells.append(f"{line.after:.3g} ({d.value:+.3f} [{d.low:.3f}, {d.high:.3f}], {verdict.said})")
        else:
            cells.append("")
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trio", type=Path, default=ASSETS / "trio", help="folder of base, small, expert and adapter")
    parser.add_argument("--tuned", type=Path, nargs="*", default=[], help="the base tuned directly, in one way or several")
    parser.add_argument("--probed", nargs="*", help="of which parts are put back, by their folders' names; all if left out")
    parser.add_argument("--alphas", type=float, nargs="*", default=(0.5, 1.0))
    parser.add_argument("--problems", type=int, default=600)
    parser.add_argument("--facts", type=int, default=1000)
    parser.add_argument("--texts", type=int, default=200, help="of facts, and as many of sums")
    parser.add_argument("--out", type=Path, default=Path("runs/trio/ledger"))
    args = parser.parse_args(arguments)
    tokenizer = load_tokenizer(args.trio / "base")
    base, small, expert = (load(args.trio / name) for name in ("base", "small", "expert"))
    adapter = load_adapter(load(args.trio / "small"), args.trio / "adapter")
    before = Once(base, tokenizer, tokens=24, batch=200)
    tuned = {folder.name: load(folder) for folder in args.tuned}
    sides = {name: replace(before, network=network, said={}) for name, network in tuned.items()}
    for alpha in args.alphas:
        sides[f"proxy, α = {alpha:g}"] = replace(before, proxy=ProxyTuning(expert, small, alpha=alpha), said={})
        sides[f"proxy by the adapter, α = {alpha:g}"] = replace(before, proxy=ProxyTuning(adapter, alpha=alpha), said={})
    asked, prose = questions(args.problems, args.facts), documents(WORLD, seed=7)
    plain = (text for k in count() if "what is" not in (text := prose(k)))
    texts: dict[str, list[str]] = {"facts": [], "sums": []}
    while min(map(len, texts.values())) < args.texts:
        text = next(plain)
        texts["sums" if set(text.split()) & {"plus", "minus", "more", "less"} else "facts"].append(text)
    texts = {name: found[: args.texts] for name, found in texts.items()}
    with receipt(args.out / "ledgers.json", problems=args.problems, facts=args.facts, texts=args.texts) as entries:
        print(f"| | {' | '.join(SHOWN)} |\n|{'---|' * (len(SHOWN) + 1)}")
        for name, side in sides.items():
            found = take_stock(before, side, asked, texts)
            entries[name] = found.ledger.summary() | {"depths": by_depth(found)}
            print(told(name, found), flush=True)
        print("\nDrift by depth:")
        for name in tuned:
            print(name, {depth: round(change, 4) for depth, change in entries[name]["depths"].items()})
        print("\nParts put back, against the tuned model itself:")
        for name, network in [(name, tuned[name]) for name in tuned if args.probed is None or name in args.probed]:
            for what, part in HALVES.items():
                side = replace(before, network=put_back(network, base, part), said={})
                found = take_stock(sides[name], side, asked[:2], texts)
                entries[f"{name}, {what} put back"] = found.ledger.summary()
                print(told(f"{name}, {what} put back", found), flush=True)


if __name__ == "__main__":
    main()
