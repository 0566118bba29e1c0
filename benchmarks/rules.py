"""The table of commit rules: right answers, changed answers and calls, on three bundled families and a foreign model.

    make reactions                                                # fetches the foreign model
    python benchmarks/rules.py --out runs/rules

Each rule decodes the same held-out items. Those called "calibrated" were made as bold as a guarantee lets them be, on other
items; the learned one was learned on yet others. What a rule makes of a set of items is kept in the folder, so several of
these commands may share the work: `--only NAME` decodes by the rules of that name. Intervals are exact, 95 %.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from fewstep.core.files import atomic_file
from fewstep.core.intervals import share
from fewstep.masked.boldness import Answer, answers, climb, compared, graded, places
from fewstep.masked.calibration import Decoding
from fewstep.masked.learned import Learned
from fewstep.masked.learning import gather, learn
from fewstep.masked.load import load_text, load_tokenizer
from fewstep.masked.predictor import MaskPredictor
from fewstep.masked.prompts import canvas as canvas_of
from fewstep.masked.rules import KLASS, WINO, Credit, EntropyBound, Factor, Hierarchical, Threshold, TopK
from fewstep.masked.step import CommitRule
from fewstep.masked.verifying import LeaveOneOut
from fewstep.toys.masked import canvas
from fewstep.toys.tasks import bundled_families
from fewstep.toys.tokens import EOS

FIRST = {"learning": 3_000_000, "calibration": 4_000_000, "test": 5_000_000}  # items of the bundled families
FULL = TopK()
FIXED: dict[str, CommitRule] = {
    "threshold 0.99": Threshold(0.99), "threshold 0.9": Threshold(0.9), "factor 1": Factor(1.0),
    "entropy bound 0.1": EntropyBound(0.1), "KLASS 0.9, 0.01": KLASS(), "credit 0.9": Credit(0.9),
    "hierarchical 0.9, 0.4": Hierarchical(0.9, 0.4), "WINO 0.6, 0.9": WINO(),
}  # fmt: skip


class Bench:
    """One family: its model, its items, and who is right."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name, self.args = name, args
        self.folder: Path = args.out / name.replace(" ", "_")
        self.source = str(args.reactions / "model") if name == "reactions" else "bundled"
        self.network, self.tokenizer = load_text(self.source), load_tokenizer(self.source)
        self.sets = {each: self._items(each, getattr(args, each)) for each in FIRST}

    def _items(self, kind: str, n: int) -> list[tuple[Tensor, Callable[[Tensor], bool]]]:
        if self.name == "reactions":
            lines = (self.args.reactions / f"{kind}.jsonl").read_text().splitlines()[:n]
            asked = [json.loads(line) for line in lines]

            def whole(answer: str) -> Callable[[Tensor], bool]:
                return lambda ids: self.tokenizer.decode(ids.tolist(), skip_special_tokens=True) == answer

            made = [canvas_of(item["prompt"], self.tokenizer, self.network, gen_length=0) for item in asked]
            return [(row, whole(item["answer"])) for row, item in zip(made, asked, strict=True)]
        family = bundled_families()[self.name]

        def right(k: int) -> Callable[[Tensor], bool]:
            item = family.item(FIRST[kind] + k, held_out=True)

            def judge(ids: Tensor) -> bool:
                words = self.tokenizer.convert_ids_to_tokens(ids[len(item.prompt) :].tolist())
                return bool(family.right(item, words[: words.index(EOS)] if EOS in words else words))

            return judge

        vocabulary = self.tokenizer.get_vocab()
        items = [family.item(FIRST[kind] + k, held_out=True) for k in range(n)]
        return [(canvas(item, vocabulary), right(k)) for k, item in enumerate(items)]

    def rows(self, kind: str) -> list[Tensor]:
        return [row for row, _ in self.sets[kind]]

    def decoded(self, kind: str, name: str, rule: CommitRule) -> list[Answer]:
        """What a rule makes of a set; kept in a file."""
        file = self.folder / f"{kind} {len(self.sets[kind])} {name}.json"
        if file.exists():
            return [Answer(*row) for row in json.loads(file.read_text())]
        predictor: MaskPredictor = LeaveOneOut(self.network) if rule.reopens() else self.network
        made = answers(predictor, self.rows(kind), rule, Decoding(batch=self.args.batch))
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as handle:
            handle.write(json.dumps(made).encode())
        return made

    def learned(self) -> Learned:
        """The rule that is learned on the learning items."""
        file = self.folder / f"learned {len(self.sets['learning'])}.safetensors"
        if not file.exists():
            rows = self.rows("learning")
            examples = gather(self.network, rows, lambda rule: rule, self.args.lesson, steps=None, batch=self.args.batch)
            found = learn(examples, len(rows), lesson=self.args.lesson)
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(found.weights, file)
        return Learned.read(file)

    def calibrated(self, name: str, rule: CommitRule) -> dict[str, Any]:
        """The boldest setting of a rule that keeps its answers, and what it does on the test items."""
        whole, where = (
            self.decoded("calibration", "full", FULL),
            places(self.rows("calibration"), self.network.mask_id, None),
        )
        tried = (
            compared(value, each, self.decoded("calibration", f"{name} {value:g}", each), whole, where)
            for value, each in graded(rule)[:: self.args.every]
        )
        found = climb(tried, FULL, whole, epsilon=self.args.epsilon, delta=self.args.delta)
        chosen = "full" if found.factor is None else f"{name} {found.factor:g}"
        facts = {"chosen": found.factor, "changed in calibration": found.changed, "calibration": found.n}
        return self.entry(f"{name}, calibrated", chosen, found.rule) | facts

    def entry(self, title: str, name: str, rule: CommitRule) -> dict[str, Any]:
        """A line of the table."""
        found, whole = self.decoded("test", name, rule), self.decoded("test", "full", FULL)
        right = [judge(_tensor(row)) for row, (_, judge) in zip(found, self.sets["test"], strict=True)]
        where = places(self.rows("test"), self.network.mask_id, None)
        told = compared(0.0, rule, found, whole, where)
        changed = [True] * told.changed + [False] * (len(found) - told.changed)
        return {
            "rule": title, "n": len(found), "right": sum(right), "right interval": share(right)[1:],
            "changed": told.changed, "changed interval": share(changed)[1:], "calls": told.steps,
        }  # fmt: skip

    def table(self) -> list[dict[str, Any]]:
        """All lines, or those of the rule that alone is asked for."""

        def wanted(name: str) -> bool:
            return self.args.only is None or self.args.only in name

        lines = [self.entry("one a step", "full", FULL)] if wanted("one a step") else []
        lines += [self.entry(name, name, rule) for name, rule in FIXED.items() if wanted(name)]
        for name in ("threshold", "credit", "learned"):
            if wanted(f"{name}, calibrated"):
                rule = self.learned() if name == "learned" else Threshold() if name == "threshold" else Credit()
                lines.append(self.calibrated(name, rule))
        return lines


def _tensor(row: Answer) -> Tensor:
    import torch

    return torch.tensor(row.ids)


def markdown(name: str, lines: Sequence[dict[str, Any]]) -> str:
    """The table of one family."""

    def percent(line: dict[str, Any], key: str) -> str:
        low, high = line[f"{key} interval"]
        return f"{line[key] / line['n']:.1%} [{low:.1%}, {high:.1%}]"

    def title(line: dict[str, Any]) -> str:
        chosen = line.get("chosen")
        return str(line["rule"]) if chosen is None else f"{line['rule']} ({chosen:g})"

    rows = [
        f"| {title(line)} | {percent(line, 'right')} | {percent(line, 'changed')} | {line['calls']:.2f} |" for line in lines
    ]
    head = f"| {name} | right | changed | calls |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    from fewstep.masked.learning import Lesson

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=[*bundled_families(), "reactions"])
    parser.add_argument("--reactions", type=Path, default=Path(".cache/reactions"), help="what `make reactions` fetched")
    parser.add_argument("--learning", type=int, default=120, help="items to learn from")
    parser.add_argument("--calibration", type=int, default=150)
    parser.add_argument("--test", type=int, default=150)
    parser.add_argument("--epsilon", type=float, default=0.1)
    parser.add_argument("--delta", type=float, default=0.05)
    parser.add_argument("--every", type=int, default=1, help="of the settings that are tried, every so many")
    parser.add_argument("--only", help="rules whose title has this in it")
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    args.lesson = Lesson()
    for name in args.families:
        lines = Bench(name, args).table()
        print(markdown(name, lines), flush=True)
        if args.only is None:
            (args.out / f"{name.replace(' ', '_')}.json").write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
