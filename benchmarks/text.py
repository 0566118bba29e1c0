"""What early commit does to a masked diffusion language model: accuracy, steps and seconds, family by family.

    python benchmarks/text.py --out runs/text.json
    python benchmarks/text.py --prompts runs/prompts       # held-out items as .jsonl, for the command line

Every rule decodes the same held-out items. Thresholds are calibrated on other held-out items. Accuracies have exact 95 %
intervals (Clopper and Pearson), differences to full decoding on the same items Tango's. Times are ratios to full decoding,
medians over rounds in which every rule decodes the same items, so that a slow moment of the machine hits all rules.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import truediv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.intervals import share, share_difference
from fewstep.core.receipt import receipt
from fewstep.masked.calibration import boldest, exits
from fewstep.masked.decoding import decode
from fewstep.masked.early import EarlyCommit, StableAndConfident, sched
from fewstep.masked.load import load_text, load_tokenizer
from fewstep.masked.predictor import NetworkPredictor
from fewstep.masked.rules import KLASS, EntropyBound, Factor, Threshold, TopK
from fewstep.masked.settling import Same, Trace, record_each, same_answer
from fewstep.masked.step import CommitRule
from fewstep.toys.masked import canvas
from fewstep.toys.tasks import Family, Item, Sudoku, bundled_families, stated_answer
from fewstep.toys.tokens import EOS, MASK

TEST = 1_000_000  # number of the first test item; calibration items count from 0
BASES: dict[str, CommitRule] = {
    "one a step": TopK(), **{f"threshold {c}": Threshold(c) for c in (0.5, 0.7, 0.9, 0.95, 0.99)}
}  # fmt: skip
# early commit is put around these
CALIBRATED = ("one a step", "threshold 0.5", "threshold 0.9", "threshold 0.95", "threshold 0.99")
TIMED = (
    "one a step",
    "1/4 of the steps",
    "threshold 0.9",
    "threshold 0.99",
    "Prophet, minimum, over threshold 0.99, calibrated 0.01",
    "Prophet, mean, over one a step, calibrated 0.05",
    "KLASS 0.9, 0.01",
    "Prophet as published",
    "SchED",
    "stable and confident",
)


def watchers(base: CommitRule) -> tuple[dict[str, EarlyCommit], dict[str, EarlyCommit]]:
    """Early rules around `base` that keep their own thresholds, and those that are to be calibrated."""
    calibrated = {"Prophet, mean": EarlyCommit(base), "Prophet, minimum": EarlyCommit(base, statistic="minimum")}
    if base != TopK():
        return {}, calibrated
    published = {
        "Prophet as published": EarlyCommit(base, over="region"),
        "Prophet 7.5/5/2.5, mean of undecided": EarlyCommit(base),
        "Prophet 7.5/5/2.5, minimum": EarlyCommit(base, statistic="minimum"),
        "SchED": sched(base),
    }
    return published, calibrated | {"Prophet, 10 % quantile": EarlyCommit(base, statistic=0.1), "SchED": sched(base)}


@torch.no_grad()
def plain_loop(predictor: NetworkPredictor, row: Tensor) -> Tensor:
    """LLaDA's loop as one would write it on a page: one row, the whole network, the most confident mask each step."""
    ids = row.clone()
    while bool((ids == predictor.mask_id).any()):
        logits = predictor.network(ids[None]).logits[0]
        logits[:, predictor.mask_id] = -torch.inf
        confidence, proposal = logits.softmax(-1).max(-1)
        place = int(confidence.masked_fill(ids != predictor.mask_id, -1).argmax())
        ids[place] = proposal[place]
    return ids


@dataclass
class Entry:
    """One row of the table: a rule, which items came out right, and how many network calls each took."""

    name: str
    kind: str  # "full", "fewer", "threshold", "parallel", "early" or "calibrated"
    rule: CommitRule
    right: list[bool]
    nfe: list[float]
    steps: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def plain(self, full: Entry) -> dict[str, Any]:
        """For JSON, next to full decoding of the same items."""
        gained = sum(a and not b for a, b in zip(self.right, full.right, strict=True))
        lost = sum(b and not a for a, b in zip(self.right, full.right, strict=True))
        n = len(self.right)
        return {
            "name": self.name, "kind": self.kind, "rule": self.rule, "n": n, "right": sum(self.right),
            "interval": share(self.right)[1:], "gained": gained, "lost": lost,
            "difference": share_difference(gained, lost, n)[1:], "nfe": statistics.fmean(self.nfe), **self.facts,
        }  # fmt: skip


class Bench:
    """One family's items, as a predictor and a judge see them."""

    def __init__(self, family: Family, source: str, batch: int) -> None:
        self.family, self.batch = family, batch
        self.predictor, tokenizer = load_text(source), load_tokenizer(source)
        self.vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.word = {place: word for word, place in self.vocabulary.items()}

    def items(self, first: int, n: int) -> list[Item]:
        return [self.family.item(first + k, held_out=True) for k in range(n)]

    def rows(self, items: Sequence[Item]) -> list[Tensor]:
        return [canvas(item, self.vocabulary) for item in items]

    def words(self, ids: Tensor) -> list[str]:
        return [self.word[token] for token in ids.tolist()]

    def right(self, item: Item, ids: Tensor) -> bool:
        """Whether a row answers its item; what follows the end of text does not count."""
        region = self.words(ids)[len(item.prompt) :]
        return self.family.right(item, region[: region.index(EOS)] if EOS in region else region)

    @property
    def same(self) -> Same:
        """Two rows agree where they state the same answer; two sudokus where they are the same grid."""
        if isinstance(self.family, Sudoku):
            return lambda shown, final: bool((shown == final).all())
        return same_answer(lambda ids: stated_answer(self.words(ids)))

    def decoded(self, name: str, kind: str, rule: CommitRule, items: Sequence[Item], steps: int | None = None) -> Entry:
        done = decode(self.predictor, self.rows(items), rule, steps=steps, batch=self.batch)
        right = [self.right(item, row.ids) for item, row in zip(items, done, strict=True)]
        return Entry(name, kind, rule, right, [row.nfe for row in done], steps)

    def replayed(self, name: str, kind: str, rule: EarlyCommit, items: Sequence[Item], traces: Sequence[Trace]) -> Entry:
        """What decoding with `rule` gives, from full decodings that it has watched: up to its commit they are the same."""
        steps = [int(exits(trace, rule, (1.0,))) for trace in traces]
        right = [self.right(item, t.shown[step]) for item, t, step in zip(items, traces, steps, strict=True)]
        return Entry(name, kind, rule, right, [step + 1.0 for step in steps])

    def seconds(self, entries: Sequence[Entry], rows: Sequence[Tensor], batch: int, rounds: int) -> dict[str, list[float]]:
        """Seconds an item, a value a round; every round times every rule."""
        times: dict[str, list[float]] = {entry.name: [] for entry in entries}
        for _ in range(rounds):
            for entry in entries:
                start = time.perf_counter()
                decode(self.predictor, rows, entry.rule, steps=entry.steps, batch=batch)
                times[entry.name].append((time.perf_counter() - start) / len(rows))
        return times


def compare(bench: Bench, calibration: Sequence[Item], items: Sequence[Item], epsilons: Sequence[float]) -> list[Entry]:
    """Every rule on `items`, full decoding first."""
    entries: list[Entry] = []
    for over, base in BASES.items():
        if over not in CALIBRATED:
            entries.append(bench.decoded(over, "threshold", base, items))
            continue
        published, open_rules = watchers(base)
        rules = [*published.values(), *open_rules.values()]
        calibrating = record_each(bench.predictor, bench.rows(calibration), list(open_rules.values()), batch=bench.batch)
        watched = record_each(bench.predictor, bench.rows(items), rules, batch=bench.batch)
        finals = [trace.final for trace in watched[0]]
        right = [bench.right(item, final.ids) for item, final in zip(items, finals, strict=True)]
        entries.append(Entry(over, "threshold" if entries else "full", base, right, [final.nfe for final in finals]))
        for (name, rule), traces in zip(published.items(), watched, strict=False):
            entries.append(bench.replayed(name, "early", rule, items, traces))
        for (name, rule), learnt, traces in zip(open_rules.items(), calibrating, watched[len(published) :], strict=True):
            for epsilon in epsilons:
                made = boldest(learnt, rule, epsilon=epsilon, same=bench.same)
                title = f"{name}, over {over}, calibrated {epsilon:g}"
                if made.factor is None:
                    entries.append(replace(entries[-1], name=title, kind="calibrated", rule=base, right=right,
                                           nfe=[final.nfe for final in finals]))  # fmt: skip
                else:
                    assert isinstance(made.rule, EarlyCommit)
                    entries.append(bench.replayed(title, "calibrated", made.rule, items, traces))
                entries[-1].facts = {"over": over, "epsilon": epsilon, "factor": made.factor, "changed": made.changed,
                                     "calibration": made.n}  # fmt: skip
    length = len(items[0].target) - len(items[0].given)
    entries += [bench.decoded(f"1/{k} of the steps", "fewer", TopK(), items, -(-length // k)) for k in (2, 4)]
    entries += [
        bench.decoded("factor 1", "parallel", Factor(1.0), items),
        bench.decoded("entropy bound 0.1", "parallel", EntropyBound(0.1), items),
        bench.decoded("KLASS 0.9, 0.01", "parallel", KLASS(), items),
        bench.decoded("stable and confident", "early", StableAndConfident(TopK()), items),
    ]
    return entries


def best(table: Sequence[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    """The fewest network calls of its kind at a change of accuracy that is surely above −1 point."""
    kept = [entry for entry in table if entry["kind"] == kind and entry["difference"][0] > -0.01]
    return min(kept, key=lambda entry: entry["nfe"], default=None)


def measure(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Everything about one family."""
    items = bench.items(TEST, args.n)
    entries = compare(bench, bench.items(0, args.calibration), items, args.epsilon)
    table = [entry.plain(entries[0]) for entry in entries]
    for row in table:
        print(_line(row, table[0]), flush=True)
    kept = {kind: best(table, kind) for kind in ("threshold", "parallel", "calibrated")}
    names = {row["name"] for row in kept.values() if row} | set(TIMED)
    timed = [entry for entry in entries if entry.name in names]
    some = items[: args.timed]
    for entry in timed:  # what was replayed should be what decoding does
        again = bench.decoded(entry.name, entry.kind, entry.rule, some, entry.steps)
        pairs = zip(again.right, again.nfe, entry.right, entry.nfe, strict=False)
        table[entries.index(entry)]["decoded_again"] = sum(a == b and c == d for a, c, b, d in pairs) / len(some)
    for batch in (1, 16):
        times = bench.seconds(timed, bench.rows(some), batch, args.rounds)
        for entry in timed:
            share = statistics.median(map(truediv, times[entry.name], times[entries[0].name]))
            calls = statistics.fmean(entry.nfe[: len(some)]) / statistics.fmean(entries[0].nfe[: len(some)])
            row = table[entries.index(entry)]
            seconds = statistics.median(times[entry.name])
            row[f"batch {batch}"] = {"seconds": seconds, "of_full": share, "share_of_gain": calls / share}
            print(
                f"{entry.name:56} batch {batch:2}: {1e3 * seconds:7.1f} ms an item, 1/{1 / share:.2f}, "
                f"{calls / share:.0%} of the gain in calls"
            )
    found = plain(bench, bench.rows(some), args.rounds)
    print(f"the plain loop of single rows: {found}")
    return {"rules": table, "best": {kind: row and row["name"] for kind, row in kept.items()}, "plain": found}


def plain(bench: Bench, rows: Sequence[Tensor], rounds: int) -> dict[str, Any]:
    """Our decoder at batch 16 against the plain loop: items a second, and the share of rows with the same ids."""
    found: dict[str, list[float]] = {"plain": [], "ours": [], "ours, up to the end of text": []}
    for _ in range(rounds):
        start = time.perf_counter()
        alone = [plain_loop(bench.predictor, row) for row in rows]
        found["plain"].append(time.perf_counter() - start)
        for name, eos in (("ours", False), ("ours, up to the end of text", True)):
            start = time.perf_counter()
            together = decode(bench.predictor, rows, TopK(), eos=eos, batch=16)
            found[name].append(time.perf_counter() - start)
            same = [bool((a[: len(b.ids)] == b.ids).all()) for a, b in zip(alone, together, strict=True)]
            found.setdefault("same", []).append(sum(same) / len(same))
    return {
        "seconds": {name: statistics.median(found[name]) / len(rows) for name in ("plain", "ours")},
        "speedup": statistics.median(map(truediv, found["plain"], found["ours"])),
        "speedup_to_end_of_text": statistics.median(map(truediv, found["plain"], found["ours, up to the end of text"])),
        "rows_with_the_same_ids": min(found["same"]),
    }


def _line(entry: dict[str, Any], full: dict[str, Any]) -> str:
    (low, high), (worst, best) = entry["interval"], entry["difference"]
    share = entry["right"] / entry["n"]
    change = (entry["gained"] - entry["lost"]) / entry["n"]
    return (
        f"{entry['name']:56} {share:6.1%} [{low:.1%}, {high:.1%}]  {change:+.2%} [{worst:+.2%}, {best:+.2%}]  "
        f"{entry['nfe']:5.2f} calls, 1/{full['nfe'] / entry['nfe']:.2f}"
    )


def write_prompts(families: dict[str, Family], out: Path, first: int, n: int) -> None:
    """Held-out items as `fewstep decode` reads them; a sudoku is a prompt with masks (--gen-length 0)."""
    out.mkdir(parents=True, exist_ok=True)
    for name, family in families.items():
        lines = []
        for item in (family.item(first + k, held_out=True) for k in range(n)):
            asked = {"prompt": " ".join(item.prompt), "answer": item.answer}
            if item.given:
                seen = [word if place in item.given else MASK for place, word in enumerate(item.target)]
                asked = {"prompt": " ".join([*item.prompt, *seen])}
            lines.append(json.dumps(asked) + "\n")
        (out / f"{name.replace(' ', '_')}.jsonl").write_text("".join(lines))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled", help="a folder, or the model that comes with the package")
    parser.add_argument("--families", nargs="+", default=list(bundled_families()))
    parser.add_argument("--n", type=int, default=1000, help="test items a family")
    parser.add_argument("--calibration", type=int, default=1000, help="calibration items a family")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.01, 0.02, 0.05])
    parser.add_argument("--timed", type=int, default=64, help="items that are timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64, help="rows at once where no time is taken")
    parser.add_argument("--prompts", type=Path, help="only write the items to this folder")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    families = bundled_families()
    if args.prompts:
        write_prompts(families, args.prompts, TEST, args.n)
        write_prompts(families, args.prompts / "calibration", 0, args.calibration)
        return
    facts = {"model": args.model, "calibration": args.calibration, "threads": torch.get_num_threads()}
    with receipt(args.out, **facts) as entries:
        entries["families"] = {}
        for name in args.families:
            print(f"\n{name}, {args.n} held-out items")
            entries["families"][name] = measure(Bench(families[name], args.model, args.batch), args)


if __name__ == "__main__":
    main()
