"""The command line's text side: what a model knows when, and scores on tasks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from .text import read_prompts
from .text_options import Commit, CommitFlags, Compute, ComputeFlags, RuleName, Text, TextFlags

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


# what evaluate's flags for masked models are unless given: rule, commit, draws, steps, guidance, mask id, precision
MASKED = ("low-confidence", Commit(), 128, None, 1.0, None, "no")


def settle_text(
    model: Positional[str],
    /,
    *,
    file: Path,
    out: Path,
    order: Literal["low-confidence", "random"] = "low-confidence",
    block_length: int = 32,
    at: tuple[float, ...] = (0.25, 0.5),
    text: TextFlags = Text(),
    compute: ComputeFlags = Compute(),
) -> None:
    """Measure when full decoding first shows its final answer, and from when on it never changes again.

    The answer is what follows --suffix. Without one it is the prompt's "answer" where the finished text holds it (so its
    place is known from the final output only), else the whole text.

    Args:
        model: folder or hub id of a LLaDA, a Dream or any masked language model of transformers, or `bundled`.
        file: a .jsonl of prompts, as for fewstep decode, and in their objects an "answer" to tell right from wrong.
        out: the .json to write.
        order: in which positions are decided, the most confident first or by chance.
        block_length: the text is decided block by block.
        at: shares of the steps to report.
        text: what is generated.
        compute: how.
    """
    from ..core.files import writable_file
    from ..core.receipt import receipt
    from ..masked.rules import EarlyCommit
    from ..masked.schedule import Suffix
    from ..masked.settling import emergence, record, same_place
    from ..masked.settling import settle as hit

    if not at or not all(0 < share <= 1 for share in at):
        raise ValueError(f"--at takes shares of the steps, above 0 and up to 1, got {at}")
    writable_file(out)
    items = read_prompts(file)
    predictor, network, tokenizer = compute.open(model, text.guidance)
    rule = EarlyCommit(Commit(block_length=block_length).rule(order), region=Suffix() if text.suffix else None)
    facts = {"order": order, "block_length": block_length, "seed": compute.seed, **asdict(text)}
    with receipt(out, model=model, **facts) as entries:
        traces = record(
            predictor, text.rows(items, network, tokenizer), rule, steps=text.steps,
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
    expert: str | None = None,
    antiexpert: str | None = None,
    adapter: str | None = None,
    alpha: float = 1.0,
    draws: int = 128,
    rule: RuleName = "low-confidence",
    gen_length: int = 128,
    steps: int | None = None,
    guidance: float = 1.0,
    chat: bool = False,
    commit: CommitFlags = Commit(),
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
        expert: the small tuned model of proxy-tuning; with --adapter the small model that the adapter was trained on.
        antiexpert: the small model before tuning.
        adapter: a LoRA adapter, folder or hub id, instead of an antiexpert.
        alpha: how far to steer; 0 scores the causal model alone.
        draws: network calls for a log-likelihood.
        rule: what is committed when, in generation; prophet, sched and stable commit early over another rule.
        gen_length: tokens to generate where the task does not say.
        steps: in all, for rules that keep to a schedule; one a token if left out.
        guidance: classifier-free guidance; 1 is off.
        chat: put questions into the model's chat template.
        commit: how much is decided at a step, and when decoding may stop early.
        compute: how.

    --draws, --rule and its options, --steps, --guidance, --mask-id and --precision are for masked models; a causal one
    and those that steer it compute in the precision that they are saved in.
    """
    from ..core.files import writable_file
    from ..core.receipt import receipt

    if not tasks:
        raise ValueError("name at least one task with --tasks")
    try:
        from lm_eval import simple_evaluate  # type: ignore[import-not-found, unused-ignore]
        from lm_eval.tasks import TaskManager  # type: ignore[import-not-found, unused-ignore]

        from ..masked.harness import HarnessLM
        from ..masked.prompts import demand_template
        from ..steering.harness import ProxiedLM
        from ..steering.load import load_trio
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
    facts: dict[str, Any]
    if expert is None:
        if antiexpert or adapter or alpha != 1:
            raise ValueError("--antiexpert, --adapter and --alpha need --expert, the small model that steers")
        predictor, network, tokenizer = compute.open(model, guidance)
        lm = HarnessLM(
            predictor, tokenizer, rule=commit.rule(rule), gen_length=gen_length, steps=steps, draws=draws,
            max_length=network.max_length or 1024, batch=compute.batch, seed=compute.seed, chat=chat,
        )  # fmt: skip
        facts = {"rule": lm.rule, "draws": draws, "steps": steps, "guidance": guidance}
    else:
        if (rule, commit, draws, steps, guidance, compute.mask_id, compute.precision) != MASKED:
            raise ValueError(
                "--rule and its options, --draws, --steps, --guidance, --mask-id and --precision are for masked models; "
                "leave them out"
            )
        models = load_trio(model, expert, antiexpert=antiexpert, adapter=adapter, alpha=alpha)
        lm = ProxiedLM(models.base, models.proxy, models.tokenizer, gen_length=gen_length, batch=compute.batch)
        facts = {"expert": expert, "antiexpert": antiexpert, "adapter": adapter, "alpha": alpha}
    if chat:
        demand_template(lm.tokenizer)
    seed = compute.seed
    with receipt(out, model=model, **facts, seed=seed) as entries, _without_git():
        found = simple_evaluate(
            model=lm, tasks=list(tasks), task_manager=manager, num_fewshot=fewshot, limit=limit, apply_chat_template=chat,
            log_samples=False, random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
        )  # fmt: skip
        entries["results"] = found["results"]
        if expert is None:
            entries["nfe_per_text"] = sum(lm.nfe) / len(lm.nfe) if lm.nfe else None
    for task, scores in found["results"].items():
        numbers = {name: value for name, value in scores.items() if isinstance(value, float)}
        print(task, ", ".join(f"{name} {value:.4g}" for name, value in numbers.items()))


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
