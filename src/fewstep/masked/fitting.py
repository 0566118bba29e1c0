"""Learns and calibrates commit rules from prompts: all that `fewstep learn-rule` and `fewstep calibrate` do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from ..core.files import atomic_file, writable_file
from ..core.parts import Form, Works, hidden, in_parts, of_texts
from ..core.processes import together
from ..core.receipt import receipt
from .answering import check_apart, receipt_of
from .boldness import Answer, Tried, answers, climb, compared, graded, places
from .calibration import Calibration, Decoding, Watched, check_calibration, chosen, watch
from .choices import Compute, Text
from .committing import Early, Prophet, Rule
from .decoder import Decoder, Prompt, as_slice, check_open, open_decoder
from .early import EarlyCommit
from .learned import PROMPTS, Learned
from .learning import Examples, Learnt, Lesson, as_facts, gather, joined, learn
from .predictor import MaskPredictor
from .prompts import prompt_of, read_prompts
from .rules import Blockwise, TopK
from .schedule import Suffix
from .serving import Engine, check_engine, write_engine
from .step import CommitRule


def learn_rule(
    model: str,
    file: Path,
    out: Path,
    *,
    text: Text = Text(),
    compute: Compute = Compute(),
    block_length: int | None = None,
    lesson: Lesson = Lesson(),
) -> Learnt:
    """Learns a commit rule from the prompts in a .jsonl; writes its weights, and a receipt beside them.

    Several processes share the prompts. Finished parts lie beside the file until it is complete, so the same call goes on
    where it was stopped.

    Args:
        model, text, compute: as for `open_decoder`; the same prompts and seed give the same file.
        file: the prompts, like those that will be decoded.
        out: the .safetensors to write.
        block_length: as in `Rule`.
        lesson: how the filter is trained.

    Raises:
        ValueError: the file holds no prompts, there is a temperature, or as for `open_decoder` and `learn`.
    """
    if text.temperature:
        raise ValueError("a rule is learned from full decoding with the most likely tokens; leave --temperature out")
    if out.suffix != ".safetensors":
        raise ValueError(f"a learned rule is a .safetensors file, got --out {out}")
    writable_file(out)
    check_open(text)
    items = read_prompts(file)
    decoder = open_decoder(model, text, Rule(block_length=block_length), compute=compute)
    blocks = decoder.rule
    assert isinstance(blocks, Blockwise), "what the command line makes is in blocks"
    rows = decoder.rows(items)
    facts = text.settings(model, compute) | {"file": file, "seed": compute.seed, "block_length": blocks.length}
    ranges = of_texts(len(rows), compute.batch)

    def make(k: int) -> Examples:
        part = ranges[k]
        return gather(
            decoder.exact, rows[as_slice(part)], lambda rule: Blockwise(rule, blocks.length, blocks.aligned), lesson,
            steps=text.steps, batch=compute.batch, first=part.start,
        )  # fmt: skip

    decided_by = facts | {"drafts": lesson.drafts} | decoder.decided_by(items)
    made = in_parts(hidden(out), decided_by, list(map(len, ranges)), make, AS_EXAMPLES, title="watching")
    with together() as here, receipt(receipt_of(out) if here.is_main else None, **facts) as entries, made as parts:
        learnt = learn(joined(parts), len(rows), seed=compute.seed, lesson=lesson) if here.is_main else None
        found: Learnt = here.meet(learnt)
        entries.update(as_facts(lesson, found))
        if here.is_main:
            with atomic_file(out) as handle:
                handle.write(save(found.weights, {PROMPTS: json.dumps([known_as(item) for item in items])}))
    return found


def _write_examples(file: Path, part: Examples) -> None:
    with atomic_file(file) as handle:
        handle.write(save(part._asdict()))


AS_EXAMPLES: Form[Examples] = Form(".safetensors", _write_examples, lambda file: Examples(**load(file.read_bytes())))


def calibrate_prompts(
    model: str,
    file: Path,
    out: Path,
    *,
    epsilon: float = 0.05,
    delta: float = 0.05,
    text: Text = Text(),
    rule: Rule = Rule(),
    prophet: Prophet = Prophet(),
    compute: Compute = Compute(),
) -> Calibration:
    """`calibrate` on the prompts in a .jsonl; writes the calibration, and a receipt beside it.

    If `rule` is not the default rule, the cost of the default is measured as well. Full decoding is without a cache.

    Args:
        model, text, rule, compute: as for `open_decoder`.
        file: the prompts, like those that will be decoded.
        out: the .json to write.
        epsilon: allowed share of changed answers.
        delta: allowed probability that the guarantee is wrong.
        prophet: when decoding stops early; the calibration finds a common factor of its levels.

    Raises:
        ValueError: the file holds no prompts, the rule was learned from some of them, or as for `open_decoder`.
    """
    check_apart(file, out)
    check_open(text)
    items = read_prompts(file)
    decoder = open_decoder(model, text, rule, Early("prophet", prophet), compute)
    early, settings = decoder.rule, text.settings(model, compute)
    assert isinstance(early, EarlyCommit)  # prophet is one
    check_unseen(early.rule, items)
    default = Rule().made(decoder.tokenizer, decoder.network.block)
    check_calibration(len(items), epsilon, delta)
    beside = None if early.rule == default else default
    rows, ranges = decoder.rows(items), of_texts(len(items), compute.batch)

    def make(k: int) -> list[Watched]:
        part = ranges[k]
        return watch(decoder.predictor, rows[as_slice(part)], early, _decoding(decoder, part), beside=beside)

    facts = settings | {"file": file, "seed": compute.seed}
    decided_by = facts | {"rule": early, "beside": beside} | decoder.decided_by(items)
    with (
        together() as here,
        receipt(receipt_of(out) if here.is_main else None, **facts),
        in_parts(hidden(out), decided_by, list(map(len, ranges)), make, title="calibrating") as parts,
    ):
        watched = [Watched(*row) for part in parts for row in part]
        found = chosen(watched, early, epsilon=epsilon, delta=delta, beside=beside)
        found = replace(found, settings=settings)
        if here.is_main:
            found.save(out)
    return found


def calibrate_rule_prompts(
    model: str,
    file: Path,
    out: Path,
    *,
    epsilon: float = 0.05,
    delta: float = 0.05,
    text: Text = Text(),
    rule: Rule = Rule(),
    compute: Compute = Compute(),
    write: tuple[Engine, Path] | None = None,
) -> Calibration:
    """`calibrate_rule` on the prompts in a .jsonl; writes the calibration, and a receipt beside it.

    Full decoding is one token a step, in the blocks of `rule` and without a cache. Several processes share the prompts.

    Args:
        model, text, rule, compute: as for `open_decoder`.
        file: the prompts, like those that will be decoded.
        out: the .json to write.
        epsilon: allowed share of changed answers.
        delta: allowed probability that the guarantee is wrong.
        write: an engine, and the file for its settings.

    Raises:
        ValueError: the file holds no prompts, the rule was learned from some of them, has nothing to calibrate or does not
            fit the engine, or as for `open_decoder`.
    """
    check_apart(file, out)
    check_open(text)
    items = read_prompts(file)
    decoder = open_decoder(model, text, rule, compute=compute)
    assert isinstance(decoder.rule, Blockwise), "what the command line makes is in blocks"
    rules, full = graded(decoder.rule), replace(decoder.rule, rule=TopK())
    check_unseen(decoder.rule, items)
    check_calibration(len(items), epsilon, delta)
    if write:
        check_engine(write[0], rule, text, decoder.network.block)
        writable_file(write[1])
    settings = text.settings(model, compute)
    facts = settings | {"file": file, "seed": compute.seed}
    decided_by = facts | {"rules": [full, *(each for _, each in rules)]} | decoder.decided_by(items)
    works, rows = Works(hidden(out), decided_by), decoder.rows(items)
    with together() as here, receipt(receipt_of(out) if here.is_main else None, **facts):
        whole = _answers(decoder, rows, decoder.exact, full, works)
        where = places(rows, decoder.predictor.mask_id, Suffix() if text.suffix else None)

        def tried() -> Iterator[Tried]:
            for value, each in rules:
                yield compared(value, each, _answers(decoder, rows, decoder.predictor, each, works), whole, where)

        found = replace(climb(tried(), full, whole, epsilon=epsilon, delta=delta), settings=settings)
        here.meet()  # no process reads a part any more
        if here.is_main:
            found.save(out)
            if write:
                write_engine(found, write[1])
            works.end()
    return found


def _answers(
    decoder: Decoder, rows: Sequence[Tensor], predictor: MaskPredictor, rule: CommitRule, works: Works
) -> list[Answer]:
    """The answers of a rule for all rows, which the processes share; works with the same number belong to the same rule."""
    compute = decoder.compute

    def answer(part: range) -> list[Answer]:
        return answers(predictor, rows[as_slice(part)], rule, _decoding(decoder, part))

    return [Answer(*row) for row in works.answers("calibrating", compute.seeds(len(rows)), compute.batch, answer)]


def _decoding(decoder: Decoder, part: range) -> Decoding:
    """The decoding of a part of the prompts; each prompt keeps its seed."""
    text, compute = decoder.text, decoder.compute
    exact = None if text.cache == "none" else decoder.exact
    seeds = compute.seeds(part.stop)[as_slice(part)]
    return Decoding(steps=text.steps, temperature=text.temperature, seeds=seeds, batch=compute.batch, exact=exact)


def known_as(item: Prompt) -> str:
    """The hash of a prompt in the file of a rule that was learned from it."""
    return hashlib.sha256(json.dumps(prompt_of(item), sort_keys=True).encode()).hexdigest()[:16]


def check_unseen(rule: CommitRule, items: Sequence[Prompt]) -> None:
    """Raises ValueError if a learned rule was learned from some of the prompts, as these then guarantee nothing."""
    while (inner := getattr(rule, "rule", None)) is not None:
        rule = inner
    if isinstance(rule, Learned) and (again := sum(known_as(item) in rule.prompts for item in items)):
        raise ValueError(
            f"{rule.file} was learned from {again} of these {len(items)} prompts, so they guarantee nothing; leave them out"
        )
