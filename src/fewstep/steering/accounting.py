"""Makes a ledger of two language models: all that `fewstep ledger-text` does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from ..core import pretrained
from ..core.checks import positive
from ..core.configuration import read_config
from ..core.device import on_device
from ..core.drift import Drift, moved
from ..core.files import atomic_file, writable
from ..core.ledger import Ledger
from ..core.parts import Works, hidden
from ..core.private import builds
from ..core.processes import together
from ..core.receipt import receipt
from ..core.showing import show_drift
from ..core.source import folder_of
from ..core.weights import mark
from ..masked.choices import Compute, Grade, Text
from ..masked.committing import Early, Rule
from ..masked.decoder import Decoder, open_decoder
from ..masked.grading import Questions, read_documents, read_questions
from ..masked.layouts import layout_of
from ..masked.lines import ADVICE, STEERED, Answer, Asked, of_answers, perplexity
from ..masked.prompts import token_ids
from ..masked.speaking import MaskedSpeaker, Speaker, speaker_of
from .choices import Questioning, Steered
from .load import MODEL, is_adapter, load_adapter, load_causal, load_tokenizer, load_trio
from .speaking import CausalSpeaker

BOUNDS = "A masked model's likelihoods are lower bounds, so its perplexities are upper ones."


class Balanced(NamedTuple):
    """A ledger of two language models, and the answers that it comes from."""

    ledger: Ledger
    asked: tuple[Asked, ...]


def take_stock(
    before: Speaker,
    after: Speaker,
    questions: Sequence[Questions],
    documents: Mapping[str, Sequence[str]],
    *,
    within: float = 0.02,
    grade: Grade = "auto",
    notes: Sequence[str] = (),
) -> Balanced:
    """Gains and losses of the change from one language model to another.

    Args:
        before, after: the models, which get the same questions and texts.
        questions: those that the change was made for, and others.
        documents: name -> held-out texts.
        within: see `Ledger`; in points for accuracies, Brier scores and calibration errors, a share of the value before for
            perplexity, length and cost.
        grade: see `is_right`.
        notes: further notes for the ledger.
    """
    asked = tuple(Asked(each, _answered(before, each), _answered(after, each), grade) for each in questions)
    lines, same = of_answers(asked), before.reads is after.reads
    for name, texts in documents.items():
        was = before.losses(texts)
        lines.append(perplexity(name, was, was if same else after.losses(texts)))
    said = [*notes, *(_turned(each) for each in asked)]
    drift = _drift(before, after, said)
    calls = {line.name: (line.before, line.after) for line in lines if line.group == "cost"}
    spent = calls.get("calls an answer", (float("nan"),) * 2)
    advice = STEERED if isinstance(after, CausalSpeaker) and after.proxy is not None else ADVICE
    return Balanced(Ledger(tuple(lines), within, tuple(drift), spent, tuple(said), advice), asked)


def ledger_models(
    before: str,
    after: str,
    out: Path,
    questioning: Questioning,
    *,
    steered: Steered = Steered(),
    text: Text = Text(),
    rule: Rule = Rule(),
    early: Early = Early(),
    compute: Compute = Compute(),
    within: float = 0.02,
) -> Balanced:
    """Gains and losses of a change to a language model; writes ledger.json, answers.jsonl and ledger.png into the folder.

    All processes of the command share the questions, and the result is the same with any number of processes. Finished
    parts stay in the folder until the result is written, so the same call goes on where it was stopped.

    Args:
        before: a causal or a masked language model.
        after: the model after the change: another folder; a LoRA adapter on a causal model; or the same name, if the model
            is steered, or decoded by another rule or with a cache.
        out: the folder.
        questioning: what both are asked.
        steered: how a causal model is steered after the change.
        text: what is generated. If both masked models are the same, a cache is the change.
        rule, early: of both masked models. If these are the same and there is no cache, rule and early are the change, and
            `before` is decoded by the defaults.
        compute: how it is computed.
        within: a difference up to this counts as kept; see `take_stock`.

    Raises:
        ValueError: nothing has changed, a model cannot be loaded, or the files hold no questions or texts.
    """
    positive(within=within)
    writable(out)
    questions = [read_questions(file, tuned_for=True, most=questioning.n) for file in questioning.skill]
    questions += [read_questions(file, tuned_for=False, most=questioning.n) for file in questioning.held]
    documents = {file.stem: read_documents(file, questioning.n) for file in questioning.text}
    masked = _masked(before, after, steered)
    sides: tuple[MaskedSpeaker, MaskedSpeaker] | tuple[CausalSpeaker, CausalSpeaker]
    if masked:
        sides = _masked_sides(before, after, questioning, text, rule, early, compute)
    else:
        _refuse_masked(text, rule, early, compute)
        sides = _causal_sides(before, after, questioning, steered, text, compute.batch)
    facts: dict[str, Any] = {"before": before, "after": after, "questioning": questioning, "steered": steered, "text": text}
    facts |= {"rule": rule, "early": early, "seed": compute.seed, "batch": compute.batch}
    weights = [mark(network.state_dict()) for side in sides for network in side.networks]
    decided_by = facts | {"mask_id": compute.mask_id, "precision": compute.precision, "weights": weights}
    works = Works(hidden(out / "ledger.json"), decided_by)
    first, second = (replace(side, works=works) for side in sides)
    with together() as here:
        with receipt(out / "ledger.json" if here.is_main else None, **facts) as entries:
            notes = [BOUNDS] if masked and documents else []
            found = take_stock(first, second, questions, documents, within=within, grade=questioning.grade, notes=notes)
            entries.update(found.ledger.summary(), answers={each.name: each.turned() for each in found.asked})
            if here.is_main:
                _write(found, out)
        here.meet()  # nobody reads a part any more
        if here.is_main:
            works.end()
    return found


def _answered(speaker: Speaker, questions: Questions) -> tuple[Answer, ...]:
    return tuple((speaker.chooses if questions.options else speaker.answers)(questions.items))


def _turned(asked: Asked) -> str:
    found = asked.turned()
    return (
        f"{asked.name}: {found['right_to_wrong']} of {found['n']} answers were right and are wrong, "
        f"{found['wrong_to_right']} were wrong and are right (McNemar's p = {found['p_mcnemar']:.2g}); "
        f"{found['changed']} texts differ."
    )


def _drift(before: Speaker, after: Speaker, notes: list[str]) -> list[Drift]:
    names = before.layers()
    ours, theirs = (
        {name: weight for name, weight in side.network.named_parameters() if weight.is_floating_point()}
        for side in (before, after)
    )
    if before.network is after.network:
        own = {name.rpartition(".")[0] for name in ours}
        return [Drift(name, 0.0) for name in names if name in own]
    try:
        return moved(ours, theirs, names)
    except ValueError as error:
        notes.append(f"No drift of weights is given: {error}.")
        return []


def _masked(before: str, after: str, steered: Steered) -> bool:
    """Whether the models are masked ones. "bundled" is of the other model's kind, or masked unless it is steered."""
    kinds = {name: _is_masked(name) for name in (before, after) if name != "bundled"}
    if len(set(kinds.values())) > 1:
        one = next(name for name, masked in kinds.items() if masked)
        raise ValueError(f"{one} is a masked language model and the other is none; give two models of one kind")
    masked = next(iter(kinds.values()), steered.expert is None)
    if masked and steered != Steered():
        raise ValueError("--expert and its options are for causal models, and these are masked ones; leave them out")
    return masked


@cache
def _is_masked(source: str) -> bool:
    from transformers import AutoModelForMaskedLM

    if is_adapter(source):
        return False
    folder = folder_of(source, MODEL, bundled="text", pickles=True)
    content = read_config(folder, MODEL)
    if layout_of(str(content["model_type"]).lower(), content):
        return True
    config = pretrained.load_config(folder, content)
    return builds(AutoModelForMaskedLM, config) and not getattr(config, "is_decoder", False)


def _refuse_masked(text: Text, rule: Rule, early: Early, compute: Compute) -> None:
    plain = Text(gen_length=text.gen_length, raw=text.raw), Rule(), Early(), Compute(compute.seed, compute.batch)
    if (text, rule, early, compute) != plain:
        raise ValueError(
            "--rule, --early and their options, --cache, --steps, --guidance, --suppress, --suffix, --temperature, "
            "--mask-id and --precision are for masked models; leave them out"
        )


def _masked_sides(
    before: str, after: str, questioning: Questioning, text: Text, rule: Rule, early: Early, compute: Compute
) -> tuple[MaskedSpeaker, MaskedSpeaker]:
    if before == after and (text.without_cache(), rule, early) == (text, Rule(), Early()):
        raise ValueError(
            f"{before} and {after} are the same model decoded in the same way; change --rule, --early or --cache, or give "
            "another folder"
        )
    second = open_decoder(after, text, rule, early, compute)
    first = _as_it_was(second) if before == after else open_decoder(before, text, rule, early, compute)
    stop, draws = questioning.stop, questioning.draws
    return speaker_of(first, stop=stop, draws=draws), speaker_of(second, stop=stop, draws=draws)


def _as_it_was(decoder: Decoder) -> Decoder:
    """The same model without its cache or, if it has none, decoded by the default rule."""
    if decoder.text.cache != "none":
        return replace(decoder, predictor=decoder.exact, text=decoder.text.without_cache())
    made = Rule().made(decoder.tokenizer, decoder.network.block)
    never = token_ids(decoder.tokenizer, decoder.text.suppress)
    predictor = decoder.text.around_network(decoder.network, never, made)
    return replace(decoder, predictor=predictor, exact=predictor, rule=made)


def _causal_sides(
    before: str, after: str, questioning: Questioning, steered: Steered, text: Text, batch: int
) -> tuple[CausalSpeaker, CausalSpeaker]:
    tokenizer = load_tokenizer(before)
    tokens = 128 if text.gen_length is None else text.gen_length
    own: dict[str, Any] = {"tokens": tokens, "stop": questioning.stop, "raw": text.raw, "batch": batch}
    if steered.expert is not None:
        if before != after:
            raise ValueError("--expert steers an unchanged model; give the same model before and after")
        trio = load_trio(
            before, steered.expert, antiexpert=steered.antiexpert, adapter=steered.adapter, alpha=steered.alpha
        )
        first = CausalSpeaker(trio.base, trio.tokenizer, **own)
        return first, replace(first, proxy=trio.proxy, small_tokenizer=trio.small_tokenizer)
    if before == after:
        raise ValueError(f"{before} and {after} are the same model; steer it with --expert, or give another folder")
    first = CausalSpeaker(on_device(load_causal(before)), tokenizer, **own)
    pretrained.check_vocabulary(tokenizer, first.network)
    if is_adapter(after):
        adapted = load_adapter(load_causal(before), after)
        return first, replace(first, network=on_device(adapted.merge_and_unload().eval()))
    other = load_tokenizer(after)
    network = on_device(load_causal(after))
    pretrained.check_vocabulary(other, network)
    return first, replace(first, network=network, tokenizer=other)


def _write(found: Balanced, out: Path) -> None:
    """Writes the answers, a line a question, and a plot of the drift, which says so where no weight moved."""
    with atomic_file(out / "answers.jsonl") as file:
        for asked in found.asked:
            for row in asked.rows():
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    if found.ledger.drift:
        figure = Figure(figsize=(8, 4), layout="constrained")
        show_drift(figure.subplots(), found.ledger.drift, last=True)
        with atomic_file(out / "ledger.png") as file:
            figure.savefig(file, format="png", dpi=150)
