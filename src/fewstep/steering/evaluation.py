"""Scores of a steered model on tasks of the LM Evaluation Harness: all that `fewstep evaluate --expert` does."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..core.parts import Works, hidden
from ..core.weights import mark
from ..masked.choices import Exam
from ..masked.evaluation import Scores, open_tasks, scored
from .choices import Steered
from .load import load_trio


def evaluate_steered(model: str, exam: Exam, out: Path, steered: Steered, *, seed: int = 0, batch: int = 16) -> Scores:
    """Scores a causal language model that small ones steer; writes the scores as a receipt.

    Args:
        model: folder or hub id of the large model, with safetensors weights, or `bundled`.
        exam: what the model is asked.
        out: the .json to write.
        steered: the small models, with an expert among them.
        seed: of the choice of few-shot examples.
        batch: questions at once.

    Raises:
        ModuleNotFoundError: the harness is not installed.
        ValueError: a task does not exist, or a model cannot be loaded or has no chat template.
    """
    manager = open_tasks(exam, out)
    from .harness import ProxiedLM

    models = load_trio(
        model, str(steered.expert), antiexpert=steered.antiexpert, adapter=steered.adapter, alpha=steered.alpha
    )
    facts: dict[str, Any] = {"model": model, **asdict(steered)}
    decided_by = facts | {"gen_length": exam.gen_length, "chat": exam.chat, "seed": seed, "batch": batch}
    networks = [each for each in (models.base, models.proxy.expert, models.proxy.antiexpert) if each is not None]
    decided_by["weights"] = [mark(each.state_dict()) for each in networks]
    lm = ProxiedLM(
        models.base, models.proxy, models.tokenizer, gen_length=exam.gen_length, batch=batch,
        works=Works(hidden(out), decided_by),
    )  # fmt: skip
    return scored(lm, exam, manager, out, seed, **facts)
