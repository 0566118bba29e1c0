"""What proxy-tuning gains and keeps on the bundled trio, beside the base tuned directly.

    python scripts/train_trio.py tune base --name tuned                # into runs/trio
    python scripts/train_trio.py tune base --name tuned_lora --lora
    python benchmarks/bundled_trio.py --tuned runs/trio/tuned runs/trio/tuned_lora

Three tasks. The tuned skill: 10 more than the sum that is asked for, in written steps, on problems that no tuning saw, by
greedy generation; to the letter if the text is also worded and ends as taught. Facts of the world, which tuning never
mentions, by the likelihood of a sentence's last word among all that could stand there. Sums in plain prose, greedy as well.
Accuracies are with exact (Clopper-Pearson) 95 % intervals, shares of the gap with paired ones (Fieller, see
fewstep.core.intervals.gap_closed).
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fewstep.core.intervals import gap_closed, mean_difference, share
from fewstep.core.receipt import receipt
from fewstep.core.source import ASSETS
from fewstep.steering.acted import where_acted
from fewstep.steering.likelihood import loglikelihood
from fewstep.steering.load import load_adapter, load_causal, load_tokenizer
from fewstep.steering.tuning import ProxyTuning, generate
from fewstep.toys.prose import answered, choice, problem
from fewstep.toys.world import World

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
TASKS = ("skill", "to the letter", "facts", "sums")


class System(NamedTuple):
    """A large model and what steers it; with α = 0 it is the large model alone."""

    large: PreTrainedModel
    proxy: ProxyTuning


def lone(model: PreTrainedModel) -> ProxyTuning:
    return ProxyTuning(model, model, alpha=0.0)


def load(folder: Path) -> PreTrainedModel:
    """A model, or an adapter merged into the model called base beside it."""
    if not (folder / "adapter_config.json").is_file():
        return load_causal(folder, dtype=torch.float32)
    return load_adapter(load(folder.parent / "base"), folder).merge_and_unload().eval()


def continuations(
    system: System, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], tokens: int
) -> list[list[int]]:
    """What greedy decoding writes after each prompt, up to and with the end of the text."""
    texts = []
    for start in range(0, len(prompts), 100):
        inputs = tokenizer(list(prompts[start : start + 100]), return_tensors="pt", padding=True)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        options = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
        made = generate(system.large, system.proxy, ids, attention_mask=mask, **options)
        for row in made[:, ids.shape[1] :].tolist():
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
            texts.append(row[:end])
    return texts


def skill(system: System, tokenizer: PreTrainedTokenizerBase, n: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The last `n` problems: right or wrong, (n,); whether the whole text is as taught and ends there, (n,); and the share
    of tokens where proxy-tuning changed the choice."""
    asked = [problem(-1 - k) for k in range(n)]
    prompts = [item.prompt for item in asked]
    ids = continuations(system, tokenizer, prompts, 24)
    texts = [tokenizer.decode(text, skip_special_tokens=True) for text in ids]
    right = [answered(text) == item.answer for text, item in zip(texts, asked, strict=True)]
    whole = [text == item.worked for text, item in zip(texts, asked, strict=True)]
    acted = where_acted(system.large, system.proxy, tokenizer(prompts)["input_ids"], ids, batch=50)
    changed = sum(len(a.places) for a in acted) / sum(len(a.tokens) for a in acted)
    return np.array(right, float), np.array(whole, float), changed


def knowledge(system: System, tokenizer: PreTrainedTokenizerBase, n: int, world: World) -> np.ndarray:
    """Whether the true value is the likeliest of its relation's, for `n` facts, (n,)."""
    asked = [choice(fact) for fact in random.Random(0).sample(world.facts, n)]
    pairs = [(item.prompt, option) for item in asked for option in item.options]
    prompts, options = (tokenizer([pair[side] for pair in pairs])["input_ids"] for side in (0, 1))
    found = loglikelihood(system.large, system.proxy, prompts, options, batch=200).logprob.tolist()
    right, place = [], 0
    for item in asked:
        scores = found[place : place + len(item.options)]
        right.append(scores.index(max(scores)) == item.right)
        place += len(item.options)
    return np.array(right, float)


def sums(system: System, tokenizer: PreTrainedTokenizerBase, n: int) -> np.ndarray:
    """Right or wrong on the sums of the last `n` problems, as plain prose, (n,)."""
    first = [problem(-1 - k).worked.split()[:5] for k in range(n)]  # a plus b is c
    texts = continuations(system, tokenizer, [" ".join(words[:4]) for words in first], 1)
    return np.array([tokenizer.decode(text) == words[4] for text, words in zip(texts, first, strict=True)], float)


def curve(points: Sequence[dict], lines: dict[str, float], path: Path) -> None:
    """Accuracies over α; `lines` are the directly tuned base's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for task, colour in (("skill", "tab:orange"), ("to the letter", "tab:red"), ("facts", "tab:blue")):
        rows = [point[task] for point in points]
        value = np.array([row.value for row in rows])
        reach = np.abs([[row.low for row in rows], [row.high for row in rows]] - value)
        axes.errorbar([point["alpha"] for point in points], value, reach, marker="o", capsize=3, color=colour, label=task)
        if task in lines:
            axes.axhline(lines[task], color=colour, linestyle=":", label=f"{task}, directly tuned")
    axes.set(xlabel="α", ylabel="accuracy, with exact 95 % intervals", ylim=(-0.03, 1.03))
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trio", type=Path, default=ASSETS / "trio", help="folder of base, small, expert and adapter")
    parser.add_argument("--tuned", type=Path, nargs="*", default=[], help="the base tuned directly, in one way or several")
    parser.add_argument("--problems", type=int, default=600)
    parser.add_argument("--facts", type=int, default=1000)
    parser.add_argument("--alphas", type=float, nargs="*", default=ALPHAS)
    parser.add_argument("--out", type=Path, default=Path("runs/trio/measured"))
    args = parser.parse_args(arguments)
    tokenizer = load_tokenizer(args.trio / "base")
    told = json.loads((args.trio / "base" / "receipt.json").read_text())
    world = World(people=told["world"]["people"], seed=told["world"]["seed"])
    base, small, expert = (load(args.trio / name) for name in ("base", "small", "expert"))
    adapter = load_adapter(load(args.trio / "small"), args.trio / "adapter")
    systems = {
        "small": System(small, lone(small)),
        "small, tuned": System(expert, lone(small)),
        "base": System(base, lone(small)),
        "proxy-tuned": System(base, ProxyTuning(expert, small)),
        "proxy-tuned, adapter": System(base, ProxyTuning(adapter)),
        **{f"base, {folder.name}": System(load(folder), lone(small)) for folder in args.tuned},
    }
    with receipt(args.out / "trio.json", problems=args.problems, facts=args.facts) as entries:
        scores: dict[str, dict[str, np.ndarray]] = {}
        entries["changed"] = {}
        for name, system in systems.items():
            right, whole, entries["changed"][name] = skill(system, tokenizer, args.problems)
            known, reckoned = knowledge(system, tokenizer, args.facts, world), sums(system, tokenizer, args.problems)
            scores[name] = dict(zip(TASKS, (right, whole, known, reckoned), strict=True))
        entries["accuracy"] = {name: {task: share(row[task]) for task in TASKS} for name, row in scores.items()}
        print(f"\n| | {' | '.join(TASKS)} | first choice changed |\n|{'---|' * (len(TASKS) + 2)}")
        for name, row in entries["accuracy"].items():
            print(f"| {name} | {' | '.join(str(row[task]) for task in TASKS)} | {entries['changed'][name]:.1%} |")
        entries["against"] = {}
        for name in ("proxy-tuned", "proxy-tuned, adapter"):
            for folder in args.tuned:
                ours, full, alone = scores[name], scores[f"base, {folder.name}"], scores["base"]
                row = {f"{task}, difference": mean_difference(ours[task], full[task]) for task in TASKS}
                for task in TASKS:
                    if full[task].mean() != alone[task].mean():
                        row[f"{task}, gap closed"] = gap_closed(alone[task], ours[task], full[task])
                entries["against"][f"{name}, against {folder.name}"] = row
                print(f"\n{name}, against {folder.name}:")
                print("\n".join(f"    {what} {value}" for what, value in row.items()))
        entries["alpha"] = []
        print(f"\n| α | {' | '.join(TASKS[:3])} | first choice changed |\n|---|---|---|---|---|")
        for alpha in args.alphas:
            system = System(base, ProxyTuning(expert, small, alpha=alpha))
            right, whole, changed = skill(system, tokenizer, args.problems)
            found = (right, whole, knowledge(system, tokenizer, args.facts, world))
            point = {task: share(row) for task, row in zip(TASKS[:3], found, strict=True)}
            entries["alpha"].append({"alpha": alpha, **point, "changed": changed})
            print(f"| {alpha:g} | {' | '.join(str(point[task]) for task in TASKS[:3])} | {changed:.1%} |")
        args.out.mkdir(parents=True, exist_ok=True)
        lines = {} if not args.tuned else {t: scores[f"base, {args.tuned[0].name}"][t].mean() for t in TASKS[:3]}
        curve(entries["alpha"], lines, args.out / "alpha.png")


if __name__ == "__main__":
    main()
