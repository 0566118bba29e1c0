"""Prompts in, a commit rule out: what `fewstep learn-rule` and `fewstep calibrate --of rule` do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save

from ..core.files import atomic_file, writable_file
from ..core.parts import hidden, in_parts, of_texts
from ..core.processes import together
from ..core.receipt import receipt
from .answering import Decoder, Prompt, check_apart, check_open, open_decoder, receipt_of
from .boldness import Answer, Tried, answers, climb, compared, graded, places
from .calibration import Calibration, check_calibration
from .choices import Compute, Rule, Text
from .learning import Learnt, Lesson, as_facts, gather, learn
from .predictor import MaskPredictor
from .prompts import read_prompts
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
    """A learned commit rule from the prompts in a .jsonl; writes its weights, and a receipt beside them.

    Args:
        model, text, compute: as for `open_decoder`; the same prompts and seed give the same file.
        file: the prompts, like those that will be decoded.
        out: the .safetensors to write.
        block_length: as in `Rule`.
        lesson: how the filter is trained.

    Raises:
        ValueError: no such prompts, a temperature, or what `open_decoder` and `learn` raise.
    """
    if text.temperature:
        raise ValueError("what full decoding ends with is the most likely text; leave --temperature out")
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
    with receipt(receipt_of(out), **facts) as entries:
        examples = gather(
            decoder.exact, rows, lambda rule: Blockwise(rule, blocks.length, blocks.aligned), lesson, steps=text.steps,
            batch=compute.batch,
        )  # fmt: skip
        found = learn(examples, len(rows), seed=compute.seed, lesson=lesson)
        entries.update(as_facts(lesson, found))
        with atomic_file(out) as handle:
            handle.write(save(found.weights))
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

    Full decoding is one token at a step, in the blocks of `rule` and without a cache. Several processes share the prompts.

    Args:
        model, text, rule, compute: as for `open_decoder`.
        file: the prompts, like those that will be decoded.
        out: the .json to write.
        epsilon: allowed share of changed answers.
        delta: allowed probability that the guarantee is wrong.
        write: an engine, and a file for the threshold in its words.

    Raises:
        ValueError: no such prompts, a rule that is not graded, an engine that does not, or what `open_decoder` raises.
    """
    check_apart(file, out)
    check_open(text)
    items = read_prompts(file)
    decoder = open_decoder(model, text, rule, compute=compute)
    assert isinstance(decoder.rule, Blockwise), "what the command line makes is in blocks"
    rules, full = graded(decoder.rule), replace(decoder.rule, rule=TopK())
    check_calibration(len(items), epsilon, delta)
    if write:
        check_engine(write[0], rule, text, decoder.network.block)
        writable_file(write[1])
    settings = text.settings(model, compute)
    facts = settings | {"file": file, "seed": compute.seed}
    with together() as here, receipt(receipt_of(out) if here.is_main else None, **facts):
        whole = _answers(decoder, items, decoder.exact, full, out)
        where = places(decoder.rows(items), decoder.predictor.mask_id, Suffix() if text.suffix else None)

        def tried() -> Iterator[Tried]:
            for value, each in rules:
                found = _answers(decoder, items, decoder.predictor, each, out)
                yield compared(value, each, found, whole, where)

        found = replace(climb(tried(), full, whole, epsilon=epsilon, delta=delta), settings=settings)
        if here.is_main:
            found.save(out)
            if write:
                write_engine(found, write[1])
    return found


def _answers(decoder: Decoder, items: list[Prompt], predictor: MaskPredictor, rule: CommitRule, out: Path) -> list[Answer]:
    """What a rule makes of all prompts, which the processes share."""
    text, compute = decoder.text, decoder.compute
    rows, seeds, ranges = decoder.rows(items), compute.seeds(len(items)), of_texts(len(items), compute.batch)

    def make(k: int) -> list[Answer]:
        some = slice(ranges[k].start, ranges[k].stop)
        return answers(
            predictor, rows[some], rule, steps=text.steps, temperature=text.temperature, seeds=seeds[some],
            batch=compute.batch,
        )  # fmt: skip

    decided_by = {"rule": rule, "exact": predictor is decoder.exact} | decoder.decided_by(items)
    with in_parts(hidden(out), decided_by, list(map(len, ranges)), make, title="calibrating") as parts:
        return [Answer(*row) for part in parts for row in part]
