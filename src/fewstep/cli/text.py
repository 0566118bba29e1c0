"""The command line's text side: decoding, early and with a guarantee."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from .text_options import (
    Compute,
    ComputeFlags,
    Early,
    EarlyFlags,
    Prophet,
    ProphetFlags,
    Rule,
    RuleFlags,
    Text,
    TextFlags,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ..masked.calibration import Calibration
    from ..masked.decoding import Decoded
    from ..masked.predictor import MaskPredictor
    from ..masked.step import CommitRule


def decode(
    model: Positional[str],
    /,
    *,
    prompt: str | None = None,
    file: Path | None = None,
    out: Path | None = None,
    calibration: Path | None = None,
    stop: tuple[str, ...] = (),
    text: TextFlags = Text(),
    rule: RuleFlags = Rule(),
    early: EarlyFlags = Early(),
    compute: ComputeFlags = Compute(),
) -> None:
    """Decode prompts with a masked diffusion language model, and stop each as soon as it knows.

    Args:
        model: folder or hub id of a LLaDA, a Dream or any masked language model of transformers, or `bundled`.
        prompt: one prompt; its text streams to the terminal unless --out is given.
        file: or a .jsonl of prompts: strings, or objects with a "prompt", whose other entries are kept (but for those that
            are called as the result's own: text, tokens, nfe, positions, seconds, batch). A prompt is a text or a
            conversation, a list of {"role": …, "content": …}; if its last turn is the assistant's, the text goes on
            with that.
        out: a .jsonl for the results, with a receipt beside it; without it they go to the terminal.
        calibration: a rule with a guarantee, from fewstep calibrate; in place of --rule, --early and their options.
        stop: strings that end a text.
        text: what is generated.
        rule: how much is decided at a step.
        early: whether decoding may stop early.
        compute: how; a prompt gets the same text at any batch size.
    """
    from ..core.files import atomic_file, writable_file
    from ..core.nfe import count_nfe
    from ..core.receipt import receipt

    if (prompt is None) == (file is None):
        raise ValueError("give a --prompt or a --file of prompts, one of the two")
    items = [{"prompt": str(prompt)}] if file is None else read_prompts(file)
    if calibration and (rule, early) != (Rule(), Early()):
        raise ValueError("a --calibration brings its own rule; leave --rule, --early and their options out")
    if out:
        writable_file(out)
    settings = text.settings(model, compute)
    found = calibrated(calibration, settings) if calibration else None
    tokenizer = compute.tokenizer(model)
    made = found or early.around(rule.made(tokenizer), answer_follows=bool(text.suffix))
    predictor, network = compute.open(model, text, tokenizer)
    rows = text.rows(items, network, tokenizer)
    options: dict[str, Any] = {"stop": stop, "steps": text.steps, "temperature": text.temperature}
    if file is None and out is None:
        _stream(predictor, tokenizer, rows[0], made, compute.seed, **options)
        return
    results = _results(predictor, tokenizer, items, rows, made, compute, **options)
    if out is None:
        for result in results:
            print(json.dumps(result, ensure_ascii=False), flush=True)
    else:
        facts = {**settings, "rule": made, "stop": stop, "file": file, "seed": compute.seed}
        with receipt(_receipt_of(out), **facts) as entries, atomic_file(out) as handle, count_nfe(network.network) as cost:
            for result in results:
                handle.write((json.dumps(result, ensure_ascii=False) + "\n").encode())
                entries |= {"calls": cost.calls, "nfe": cost.rows, "positions": cost.positions}
        print(f"{len(items)} texts in {out}")


def calibrate(
    model: Positional[str],
    /,
    *,
    file: Path,
    out: Path,
    epsilon: float = 0.05,
    delta: float = 0.05,
    text: TextFlags = Text(),
    rule: RuleFlags = Rule(),
    prophet: ProphetFlags = Prophet(),
    compute: ComputeFlags = Compute(),
) -> None:
    """Find the boldest early commit that keeps its answers, from prompts like those that will be decoded.

    With probability 1 − delta, at most a share epsilon of prompts get another answer than full decoding gives them. Full
    decoding is --rule alone, until all is decided: by default the rule that fewstep decode has, and what several tokens at
    a step have changed already does not count. Another --rule is compared with that default on the same prompts. Use the
    result with fewstep decode --calibration and the same text options, on other prompts than these.

    Args:
        model: folder or hub id of a LLaDA, a Dream or any masked language model of transformers, or `bundled`.
        file: a .jsonl of prompts, as for fewstep decode.
        out: the .json to write.
        epsilon: allowed share of changed answers.
        delta: allowed probability that the guarantee is wrong.
        text: what is generated.
        rule: how much is decided at a step until then, and what full decoding is.
        prophet: when decoding stops early; the common factor of --levels is found.
        compute: how.
    """
    from ..core.files import writable_file
    from ..core.receipt import receipt
    from ..masked import calibration
    from ..masked.rules import DEFAULT

    writable_file(out)
    items = read_prompts(file)
    tokenizer = compute.tokenizer(model)
    early = prophet.around(rule.made(tokenizer), answer_follows=bool(text.suffix))
    predictor, network = compute.open(model, text, tokenizer)
    settings = text.settings(model, compute)
    with receipt(_receipt_of(out), **settings, file=file, seed=compute.seed):
        found = calibration.calibrate(
            predictor, text.rows(items, network, tokenizer), early, epsilon=epsilon, delta=delta, steps=text.steps,
            temperature=text.temperature, seeds=compute.seeds(len(items)), batch=compute.batch,
            beside=None if early.rule == DEFAULT else DEFAULT,
        )  # fmt: skip
        replace(found, settings=settings).save(out)
    for line in _told(found, out):
        print(line)


def _told(found: Calibration, out: Path) -> Iterator[str]:
    """What a calibration found, and whether the default rule is the cheaper one."""

    def changed(changed: int, bound: float) -> str:
        sure = f"at most {bound:.1%}, with confidence {1 - found.delta:.0%}"
        return f"{changed} of {found.n} answers changed ({sure})"

    if found.bound is None:
        alone = f"{out} holds --rule alone, {found.full_steps:.1f} steps"
        yield f"no threshold keeps {1 - found.epsilon:.1%} of the answers: {alone}"
    else:
        steps = f"{found.early_steps:.1f} steps, {found.full_steps:.1f} by --rule alone"
        yield f"{steps}; {changed(found.changed, found.bound)}: {out}"
    if found.beside:
        cheaper = found.beside.steps <= found.early_steps and found.beside.bound <= found.epsilon
        advice = "is the cheaper one: decode without --calibration" if cheaper else "is no cheaper way to keep the answers"
        told = f"{found.beside.steps:.1f} steps, {changed(found.beside.changed, found.beside.bound)}"
        yield f"fewstep decode's default rule on the same prompts: {told}; it {advice}"


def read_prompts(file: Path) -> list[dict[str, Any]]:
    """The prompts in a .jsonl, as objects."""
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    try:
        content = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8: {error}") from error
    items = []
    for number, line in enumerate(content.split("\n"), 1):  # splitlines would cut at characters that JSON allows
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} of {file} is not JSON: {error}") from error
        item = {"prompt": item} if isinstance(item, str) else item
        if not isinstance(item, dict) or not _is_prompt(item.get("prompt")):
            raise ValueError(
                f'line {number} of {file} is neither a string nor an object with a "prompt", which is a text or a list of '
                '{"role": …, "content": …}'
            )
        items.append(item)
    if not items:
        raise ValueError(f"there is no prompt in {file}")
    return items


def _is_prompt(found: Any) -> bool:
    """A text, or a conversation of at least one turn."""
    turns = found if isinstance(found, list) and found else [None]
    return isinstance(found, str) or all(
        isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content")) for turn in turns
    )


def calibrated(path: Path, settings: dict[str, Any]) -> CommitRule:
    """The rule that was calibrated for these settings; a model of another name is told, as it may have moved."""
    from ..core.receipt import plain
    from ..masked.calibration import Calibration

    found = Calibration.load(path)
    for name, value in plain(settings).items():
        made = found.settings.get(name, value)
        if made != value and name == "model":
            logging.getLogger(__name__).warning("%s was made with %s; its guarantee holds for that model", path, made)
        elif made != value:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{path} was made with {flag} {made!r} and its guarantee holds for that, got {value!r}")
    return found.rule


def _receipt_of(out: Path) -> Path:
    return out.with_name(out.name + ".receipt.json")


def _stream(
    predictor: MaskPredictor, tokenizer: PreTrainedTokenizerBase, row: Tensor, rule: CommitRule, seed: int, *,
    stop: tuple[str, ...], **options: Any,
) -> None:  # fmt: skip
    """Prints one row as it becomes final; holds back what may turn out to belong to a stop string or half a letter."""
    from ..masked.decoding import stream, walk
    from ..masked.prompts import StopStrings, text_of

    start, tokens, printed = time.perf_counter(), [], 0
    found = StopStrings(tokenizer, stop) if stop else None
    held = max((len(string) - 1 for string in stop), default=0)
    for _, new, end in stream(walk(predictor, [row], rule, seeds=[seed], stop=found, **options)):
        tokens += new
        text = text_of(tokenizer, tokens, end.given, stop) if end else text_of(tokenizer, tokens)
        until = len(text) if end else len(text.rstrip("\ufffd")) - held
        if until > printed:
            print(text[printed:until], end="", flush=True)
            printed = until
        if end:
            seconds = time.perf_counter() - start
            print()
            logging.getLogger(__name__).info("%d tokens in %g network calls, %.2f seconds", len(tokens), end.nfe, seconds)


def _results(
    predictor: MaskPredictor, tokenizer: PreTrainedTokenizerBase, items: list[dict[str, Any]], rows: list[Tensor],
    rule: CommitRule, compute: Compute, *, stop: tuple[str, ...], **options: Any,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """One entry a prompt, in order; `seconds` runs from when it entered the batch to the step that finished it."""
    from ..masked.decoding import tell, walk
    from ..masked.prompts import StopStrings, text_of

    found = StopStrings(tokenizer, stop) if stop else None
    begin = now = time.perf_counter()
    batch, generated, told = min(compute.batch, len(rows)), 0, 0
    entered: dict[int, float] = {}
    done: dict[int, tuple[Decoded, float]] = {}
    walks = walk(predictor, rows, rule, seeds=compute.seeds(len(rows)), stop=found, batch=batch, **options)
    for walked in tell(walks, rows, predictor.mask_id):
        for progress in walked.progress:
            entered.setdefault(progress.number, now)
        now = time.perf_counter()
        done |= {number: (row, now - entered[number]) for number, row in walked.finished.items()}
        while told in done:
            row, seconds = done.pop(told)
            generated += len(row.tokens)
            yield items[told] | {
                "text": text_of(tokenizer, row.tokens, row.given, stop), "tokens": len(row.tokens), "nfe": row.nfe,
                "positions": round(row.positions, 2), "seconds": round(seconds, 4), "batch": batch,
            }  # fmt: skip
            told += 1
    seconds = time.perf_counter() - begin
    logging.getLogger(__name__).info(
        "%.2f texts and %.1f generated tokens a second", len(rows) / seconds, generated / seconds
    )
