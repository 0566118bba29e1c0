"""The commands that measure language models: when answers settle, ledgers, and scores on tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional

from ..masked.choices import Compute, Exam, Masked, Text
from ..masked.committing import Early, Rule
from ..steering.choices import Questioning, Steered
from .after import say_next
from .measuring import read_share


def settle_text(
    model: Positional[str],
    /,
    *,
    file: Path,
    out: Path,
    at: tuple[float, ...] = (0.25, 0.5),
    text: Annotated[Text, OmitArgPrefixes] = Text(),
    rule: Annotated[Rule, OmitArgPrefixes] = Rule(),
    compute: Annotated[Compute, OmitArgPrefixes] = Compute(),
) -> None:
    """Measure at which step full decoding first shows its final answer, and from which step on the answer stays.

    Full decoding is --rule until all tokens are decided. Published figures are for one token a step: --rule low-confidence
    or random. The answer is the text after --suffix. Without a suffix it is the prompt's "answer" where the finished text
    holds it (so its place is known only from the finished text), else the whole text.

    Args:
        model: folder or hub id of a LLaDA, a Dream or any masked language model of transformers, or `bundled`.
        file: a .jsonl of prompts, as for fewstep decode; an "answer" in their objects tells right from wrong.
        out: the .json to write.
        at: shares of the steps to report.
        text: what is generated.
        rule: how much is decided at a step.
        compute: how it is computed.
    """
    from ..masked.emerging import settle_prompts

    for name, found in settle_prompts(model, file, out, at=at, text=text, rule=rule, compute=compute).items():
        for share, row in found["by"].items():
            print(
                f"{name} ({found['n']}): by {float(share):.0%} of the steps {row['first']:.1%} had shown their answer, "
                f"{row['stable']:.1%} for good"
            )


def ledger_text(
    before: Positional[str],
    after: Positional[str],
    /,
    *,
    out: Path,
    questioning: Annotated[Questioning, OmitArgPrefixes],
    within: str = "2%",
    steered: Annotated[Steered, OmitArgPrefixes] = Steered(),
    text: Annotated[Text, OmitArgPrefixes] = Text(),
    rule: Annotated[Rule, OmitArgPrefixes] = Rule(),
    early: Annotated[Early, OmitArgPrefixes] = Early(),
    compute: Annotated[Compute, OmitArgPrefixes] = Compute(),
) -> None:
    """Say what a change to a language model gained and lost, how sure that is, and what to do.

    The change may be in the weights: AFTER is another folder, or a LoRA adapter. Or it may be in how the model is used:
    AFTER is BEFORE again, and a causal model is steered by --expert, or a masked model gets a --cache, or without a cache
    another --rule or --early than the default.

    Several processes share the questions, and a command that was killed goes on, as with fewstep decode.

    Args:
        before: folder or hub id of a causal or a masked language model, or `bundled`.
        after: the model after the change.
        out: folder for ledger.json, answers.jsonl with all answers, and ledger.png with the drift of the weights by layer.
        questioning: what both are asked.
        within: a difference up to this counts as kept: 2% or .02. It means points for accuracies and calibration, and
            a share of the value before for perplexity, length and cost.
        steered: how a causal model is steered after the change.
        text: what is generated.
        rule: how much a masked model decides at a step.
        early: whether a masked model may stop early.
        compute: how it is computed.
    """
    from rich.console import Console

    from ..core.showing import ledger_table
    from ..steering.accounting import ledger_models

    found = ledger_models(
        before, after, out, questioning, steered=steered, text=text, rule=rule, early=early, compute=compute,
        within=read_share(within),
    ).ledger  # fmt: skip
    console = Console(highlight=False)
    console.print(ledger_table(found))
    for sentence in (*found.sentences(), *found.notes):
        console.print(sentence, markup=False)
    print(f"all figures, answers and the drift by layer: {out / 'ledger.json'}, {out / 'answers.jsonl'}")
    say_next("report", out)


def evaluate(
    model: Positional[str],
    /,
    *,
    out: Path,
    exam: Annotated[Exam, OmitArgPrefixes],
    steered: Annotated[Steered, OmitArgPrefixes] = Steered(),
    masked: Annotated[Masked, OmitArgPrefixes] = Masked(),
    compute: Annotated[Compute, OmitArgPrefixes] = Compute(),
) -> None:
    """Score a model on tasks of the LM Evaluation Harness (pip install 'fewstep[evaluate]').

    The model is a masked diffusion language model, or with --expert a causal language model that small ones steer.

    Args:
        model: folder or hub id of a LLaDA, a Dream or any masked language model of transformers, or `bundled`; with
            --expert of a causal language model with safetensors weights.
        out: the .json to write.
        exam: what the model is asked.
        steered: how a causal model is steered.
        masked: for masked models only, as are --mask-id and --precision; causal models compute in the precision that they
            are saved in.
        compute: how it is computed.
    """
    from ..masked.evaluation import evaluate_masked
    from ..steering.evaluation import evaluate_steered

    if steered.expert is None:
        scores = evaluate_masked(model, exam, out, masked=masked, compute=compute)
    elif (masked, compute) != (Masked(), Compute(seed=compute.seed, batch=compute.batch)):
        raise ValueError(
            "--rule, --early and their options, --draws, --steps, --guidance, --suppress, --mask-id and --precision "
            "are for masked models; leave them out"
        )
    else:
        scores = evaluate_steered(model, exam, out, steered, seed=compute.seed, batch=compute.batch)
    for task, found in scores.items():
        numbers = {name: value for name, value in found.items() if isinstance(value, float)}
        print(task, ", ".join(f"{name} {value:.4g}" for name, value in numbers.items()))
