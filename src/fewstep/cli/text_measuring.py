"""The command line's text side: what a model knows when, and scores on tasks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from .text import read_prompts
from .text_options import (
    Compute,
    ComputeFlags,
    Masked,
    MaskedFlags,
    Rule,
    RuleFlags,
    Steered,
    SteeredFlags,
    Text,
    TextFlags,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ..masked.harness import HarnessLM
    from ..steering.harness import ProxiedLM


def settle_text(
    model: Positional[str],
    /,
    *,
    file: Path,
    out: Path,
    at: tuple[float, ...] = (0.25, 0.5),
    text: TextFlags = Text(),
    rule: RuleFlags = Rule(),
    compute: ComputeFlags = Compute(),
) -> None:
    """Measure when full decoding first shows its final answer, and from when on it never changes again.

    Full decoding is --rule until all is decided. Published figures are shares of one step a token: --rule low-confidence
    or random. The answer is what follows --suffix. Without one it is the prompt's "answer" where the finished text holds it
    (so its place is known from the final output only), else the whole text.

    Args:
        model: folder or hub id of a LLaDA, a Dream or any masked language model of transformers, or `bundled`.
        file: a .jsonl of prompts, as for fewstep decode, and in their objects an "answer" to tell right from wrong.
        out: the .json to write.
        at: shares of the steps to report.
        text: what is generated.
        rule: how much is decided at a step.
        compute: how.
    """
    from ..core.files import writable_file
    from ..core.receipt import receipt
    from ..masked.early import EarlyCommit
    from ..masked.schedule import Suffix
    from ..masked.settling import emergence, record, same_place
    from ..masked.settling import settle as hit

    if not at or not all(0 < share <= 1 for share in at):
        raise ValueError(f"--at takes shares of the steps, above 0 and up to 1, got {at}")
    writable_file(out)
    items = read_prompts(file)
    tokenizer = compute.tokenizer(model)
    watched = EarlyCommit(rule.made(tokenizer), region=Suffix() if text.suffix else None)
    predictor, network = compute.open(model, text, tokenizer)
    facts = {"rule": watched.rule, "seed": compute.seed, **asdict(text)}
    with receipt(out, model=model, **facts) as entries:
        traces = record(
            predictor, text.rows(items, network, tokenizer), watched, steps=text.steps,
            temperature=text.temperature, seeds=compute.seeds(len(items)), batch=compute.batch,
        )  # fmt: skip
        groups: dict[str, list[Any]] = {"all": [], "right": [], "wrong": []}
        for trace, item in zip(traces, items, strict=True):
            place, same = None, None
            if "answer" in item:
                place = _place(trace.final.ids.tolist(), trace.region.tolist(), str(item["answer"]), tokenizer)
                if place and not text.suffix:
                    same = same_place(partial(_constant, place))
                groups["right" if place else "wrong"].append(hit(trace, same))
            groups["all"].append(hit(trace, same))
        entries["emergence"] = {
            name: {"n": len(rows), "by": {f"{share:g}": row._asdict() for share, row in emergence(rows, at)}}
            for name, rows in groups.items()
            if rows
        }
    for name, found in entries["emergence"].items():
        for share, row in found["by"].items():
            print(
                f"{name} ({found['n']}): by {float(share):.0%} of the steps {row['first']:.1%} had shown their answer, "
                f"{row['stable']:.1%} for good"
            )


def evaluate(
    model: Positional[str],
    /,
    *,
    tasks: tuple[str, ...],
    out: Path,
    include: Path | None = None,
    fewshot: int | None = None,
    limit: int | None = None,
    gen_length: int = 128,
    chat: bool = False,
    steered: SteeredFlags = Steered(),
    masked: MaskedFlags = Masked(),
    compute: ComputeFlags = Compute(),
) -> None:
    """Score a model on tasks of the LM Evaluation Harness (pip install lm_eval).

    A masked diffusion language model as it is, or with --expert a causal language model that small ones steer.

    Args:
        model: folder or hub id of a LLaDA, a Dream or any masked language model of transformers, or `bundled`; with
            --expert of a causal language model with safetensors weights.
        tasks: names of tasks.
        out: the .json to write.
        include: a folder of tasks of your own; the harness's own are then left out.
        fewshot: examples before each question, where the task does not fix it.
        limit: only so many questions a task.
        gen_length: tokens to generate where the task does not say; fewer where the model has less room.
        chat: put questions into the model's chat template.
        steered: of a causal model that small ones steer.
        masked: of masked models alone, as are --mask-id and --precision; a causal one and those that steer it compute in
            the precision that they are saved in.
        compute: how.
    """
    from ..core.files import writable_file
    from ..core.receipt import receipt

    if not tasks:
        raise ValueError("name at least one task with --tasks")
    try:
        from lm_eval import simple_evaluate  # type: ignore[import-not-found, unused-ignore]
        from lm_eval.tasks import TaskManager  # type: ignore[import-not-found, unused-ignore]

        from ..masked.prompts import demand_template
    except ImportError as error:
        raise ValueError(f"evaluation needs the LM Evaluation Harness: pip install lm_eval ({error})") from error

    writable_file(out)
    manager = TaskManager(include_path=str(include) if include else None, include_defaults=include is None)
    unknown = set(tasks) - set(manager.all_tasks)
    if unknown:
        raise ValueError(
            f"the harness has no task {', '.join(sorted(unknown))}; name --tasks that it has, or --include yours"
        )
    lm: HarnessLM | ProxiedLM
    if steered.expert is None:
        if steered != Steered():
            raise ValueError("--antiexpert, --adapter and --alpha need --expert, the small model that steers")
        lm, facts = _masked_lm(model, masked, compute, gen_length=gen_length, chat=chat)
    else:
        if (masked, compute) != (Masked(), Compute(seed=compute.seed, batch=compute.batch)):
            raise ValueError(
                "--rule, --early and their options, --draws, --steps, --guidance, --suppress, --mask-id and --precision "
                "are for masked models; leave them out"
            )
        lm, facts = _steered_lm(model, steered, gen_length, compute.batch), asdict(steered)
    if chat:
        demand_template(lm.tokenizer)
    seed = compute.seed
    facts |= {"gen_length": gen_length, "chat": chat, "seed": seed}
    with receipt(out, model=model, **facts) as entries, _without_git():
        found = simple_evaluate(
            model=lm, tasks=list(tasks), task_manager=manager, num_fewshot=fewshot, limit=limit, apply_chat_template=chat,
            log_samples=False, random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
        )  # fmt: skip
        entries["results"] = found["results"]
        for cost in ("nfe", "positions"):
            if each := getattr(lm, cost, None):
                entries[f"{cost}_per_text"] = sum(each) / len(each)
    for task, scores in found["results"].items():
        numbers = {name: value for name, value in scores.items() if isinstance(value, float)}
        print(task, ", ".join(f"{name} {value:.4g}" for name, value in numbers.items()))


def _masked_lm(
    model: str, masked: Masked, compute: Compute, *, gen_length: int, chat: bool
) -> tuple[HarnessLM, dict[str, Any]]:
    """A masked model as the harness's, and what a receipt says of it."""
    from ..masked.harness import HarnessLM
    from ..masked.prompts import token_ids

    tokenizer, asked = compute.tokenizer(model), masked.asked
    rule = masked.early.around(masked.rule.made(tokenizer), answer_follows=False)
    never = token_ids(tokenizer, asked.suppress)  # in generation only
    predictor, network = compute.open(model, replace(asked, suppress=()), tokenizer)
    lm = HarnessLM(
        predictor, tokenizer, rule=rule, gen_length=gen_length, steps=asked.steps, draws=masked.draws, suppress=never,
        max_length=network.max_length or 1024, batch=compute.batch, seed=compute.seed, chat=chat,
    )  # fmt: skip
    return lm, {"rule": rule, "draws": masked.draws, **asdict(asked)}


def _steered_lm(model: str, steered: Steered, gen_length: int, batch: int) -> ProxiedLM:
    """A causal model and those that steer it as the harness's."""
    from ..steering.harness import ProxiedLM
    from ..steering.load import load_trio

    models = load_trio(
        model, str(steered.expert), antiexpert=steered.antiexpert, adapter=steered.adapter, alpha=steered.alpha
    )
    return ProxiedLM(models.base, models.proxy, models.tokenizer, gen_length=gen_length, batch=batch)


@contextmanager
def _without_git() -> Iterator[None]:
    """The harness asks git for a commit, which is told on the terminal where there is none; our receipt has its own."""
    from lm_eval import evaluator  # type: ignore[import-not-found, unused-ignore]

    asks = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = asks


def _constant(place: slice, _: Tensor) -> slice:
    return place


def _place(ids: list[int], region: list[bool], answer: str, tokenizer: PreTrainedTokenizerBase) -> slice | None:
    """Where the answer stands in a finished row: its last place inside the region, with or without a space before."""
    for text in (answer, " " + answer):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(len(ids) - len(tokens), -1, -1):
            part = slice(start, start + len(tokens))
            if tokens and ids[part] == tokens and all(region[part]):
                return part
    return None
