"""Scores on tasks of the LM Evaluation Harness (the extra `evaluate`): all that `fewstep evaluate` does."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..core.extras import needs
from ..core.files import writable_file
from ..core.parts import Works, hidden
from ..core.processes import together
from ..core.receipt import receipt
from ..core.weights import mark
from .choices import Compute, Exam, Masked
from .prompts import demand_template, token_ids

logger = logging.getLogger(__name__)

Scores = dict[str, dict[str, Any]]  # task -> name of a score -> its value


def evaluate_masked(
    model: str, exam: Exam, out: Path, *, masked: Masked = Masked(), compute: Compute = Compute()
) -> Scores:
    """Scores a masked diffusion language model; writes the scores as a receipt.

    Args:
        model: folder or hub id of a LLaDA, a Dream or any masked language model of transformers, or `bundled`.
        exam: what the model is asked.
        out: the .json to write.
        masked, compute: how the model answers.

    Raises:
        ModuleNotFoundError: the harness is not installed.
        ValueError: a task does not exist, or the model cannot be loaded or has no chat template.
    """
    manager = open_tasks(exam, out)
    from .harness import HarnessLM

    tokenizer, asked = compute.tokenizer(model), masked.asked
    masked.rule.made(tokenizer)  # its errors come before anything large is read
    never = token_ids(tokenizer, asked.suppress)  # in generation only
    network = compute.open(model, tokenizer)
    rule = masked.early.around(masked.rule.made(tokenizer, network.block), answer_follows=False)
    predictor = asked.around_network(network, (), rule)
    exact = asked.without_cache().around_network(network, (), rule) if masked.compare else None
    facts = {
        "model": model,
        "mask_id": compute.mask_id,
        "precision": compute.precision,
        "rule": rule,
        "draws": masked.draws,
        **asdict(asked),
    }
    decided_by = {**facts, "gen_length": exam.gen_length, "chat": exam.chat, "seed": compute.seed, "batch": compute.batch}
    decided_by |= {"compare": masked.compare, "weights": mark(network.network.state_dict())}
    lm = HarnessLM(
        predictor, tokenizer, rule=rule, gen_length=exam.gen_length, steps=asked.steps, draws=masked.draws, suppress=never,
        max_length=network.max_length or 1024, batch=compute.batch, seed=compute.seed, chat=exam.chat, exact=exact,
        works=Works(hidden(out), decided_by),
    )  # fmt: skip
    return scored(lm, exam, manager, out, compute.seed, **facts)


def open_tasks(exam: Exam, out: Path) -> Any:
    """The harness's manager of tasks, after a check that `out` can be written.

    Raises:
        ModuleNotFoundError: the harness is not installed.
        ValueError: a task does not exist, or `out` cannot be written.
    """
    needs("evaluate")
    from lm_eval import tasks

    writable_file(out)
    include = exam.include
    manager = tasks.TaskManager(include_path=str(include) if include else None, include_defaults=include is None)
    unknown = set(exam.tasks) - set(manager.all_tasks)
    if unknown:
        raise ValueError(
            f"the harness has no task {', '.join(sorted(unknown))}; name --tasks that it has, or --include yours"
        )
    return manager


def scored(lm: Any, exam: Exam, manager: Any, out: Path, seed: int, **facts: Any) -> Scores:
    """The harness's scores of a model; writes a receipt with them and these facts to `out`.

    Each process of the command computes its share of the answers and gets all of them; the main process writes.
    """
    from lm_eval import simple_evaluate

    if exam.chat:
        demand_template(lm.tokenizer)
    facts |= asdict(exam) | {"seed": seed}
    with together() as here, receipt(out if here.is_main else None, **facts) as entries, _without_git():
        found = simple_evaluate(
            model=lm, tasks=list(exam.tasks), task_manager=manager, num_fewshot=exam.fewshot, limit=exam.limit,
            apply_chat_template=exam.chat, log_samples=False, random_seed=seed, numpy_random_seed=seed,
            torch_random_seed=seed, fewshot_random_seed=seed,
        )  # fmt: skip
        # the harness gives scores to the main process only
        scores: Scores = here.meet(found["results"] if here.is_main else None)
        entries["results"] = scores
        for cost in ("nfe", "positions"):
            if each := getattr(lm, cost, None):
                entries[f"{cost}_per_text"] = sum(each) / len(each)
        if changed := getattr(lm, "changed", None):
            entries["changed"] = changed.as_dict()
            logger.info("against --cache none: %s", changed)
        here.meet()  # no process reads a part any more
        if here.is_main:
            lm.works.end()
    return scores


@contextmanager
def _without_git() -> Iterator[None]:
    """Stops the harness from asking git for a commit, which prints an error outside a repository; our receipt has it."""
    from lm_eval import evaluator

    asks = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = asks
