"""The command line's text side: every command is a typed function; its parameters are the flags."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ..text.commit import CommitRule
    from ..text.decode import Decoded
    from ..text.predictor import MaskPredictor, NetworkPredictor

Base = Literal["low-confidence", "random", "threshold", "factor", "entropy-bound", "klass"]
RuleName = Literal[Base, "prophet", "sched", "stable"]
Precision = Literal["no", "bf16"]


def decode(
    model: Positional[str],
    /,
    *,
    prompt: str | None = None,
    file: Path | None = None,
    out: Path | None = None,
    rule: RuleName = "threshold",
    over: Base = "low-confidence",
    calibration: Path | None = None,
    confidence: float = 0.99,
    factor: float = 1.0,
    bound: float = 0.1,
    levels: tuple[float, float, float] = (7.5, 5.0, 2.5),
    statistic: str = "minimum",
    gen_length: int = 128,
    block_length: int = 32,
    steps: int | None = None,
    suffix: str = "",
    answer_length: int = 8,
    stop: tuple[str, ...] = (),
    temperature: float = 0.0,
    guidance: float = 1.0,
    chat: bool = False,
    seed: int = 0,
    batch: int = 16,
    mask_id: int | None = None,
    precision: Precision = "no",
) -> None:
    """Decode prompts with a masked diffusion language model, and stop each as soon as it knows.

    Args:
        model: folder or hub id of a LLaDA, a Dream or any masked language model of transformers, or `bundled`.
        prompt: one prompt; its text streams to the terminal.
        file: or a .jsonl of prompts: strings, or objects with a "prompt", whose other entries are kept.
        out: a .jsonl for the results; without it they go to the terminal.
        rule: what is committed when; prophet, sched and stable commit early over another rule, and want calibration.
        over: that other rule.
        calibration: a rule with a guarantee, from fewstep calibrate; in place of --rule.
        confidence: of threshold and klass.
        factor: of factor.
        bound: of entropy-bound, nats.
        levels: of prophet, logits in the first, second and last third of the steps.
        statistic: of prophet: minimum, a quantile such as 0.1, or mean, as published, which hides what is still open.
        gen_length: tokens to generate, --suffix included; 0 fills the mask tokens in the prompts and adds none.
        block_length: the text is decided block by block; as long as --gen-length means all at once.
        steps: in all, for rules that keep to a schedule; one a token if left out.
        suffix: text that stands in the generation from the start, such as "The answer is"; prophet watches what follows.
        answer_length: tokens behind --suffix.
        stop: strings that end a text.
        temperature: 0 takes the most likely token.
        guidance: classifier-free guidance away from the unconditional prediction; 1 is off.
        chat: put the prompt into the model's chat template.
        seed: of the first prompt; prompt k has seed + k and gives the same text at any batch size.
        batch: prompts at once.
        mask_id: id of the mask token, where the model does not say it.
        precision: no (float32) or bf16.
    """
    if (prompt is None) == (file is None):
        raise ValueError("give a --prompt or a --file of prompts, one of the two")
    items = [{"prompt": str(prompt)}] if file is None else _read_prompts(file)
    predictor, network, tokenizer = _open(model, mask_id, precision, guidance)
    settings = _settings(
        gen_length=gen_length, steps=steps, suffix=suffix, answer_length=answer_length, temperature=temperature,
        guidance=guidance, chat=chat,
    )  # fmt: skip
    commit: CommitRule
    if calibration is None:
        made = _rule(over if rule in ("prophet", "sched", "stable") else rule, confidence, factor, bound, block_length)
        commit = _early(rule, made, levels, statistic, bool(suffix))
    else:
        commit = _calibrated(calibration, settings)
    rows = [_canvas(item["prompt"], network, tokenizer, settings) for item in items]
    seeds = range(seed, seed + len(rows))
    if file is None:
        _stream(predictor, tokenizer, rows[0], commit, seed, stop=stop, steps=steps, temperature=temperature)
        return
    results = _results(
        predictor, tokenizer, items, rows, commit, seeds, batch, stop=stop, steps=steps, temperature=temperature
    )
    if out is None:
        for result in results:
            print(json.dumps(result, ensure_ascii=False), flush=True)
    else:
        from ..checkpoints.atomic import atomic_file, writable

        writable(out.parent)
        with atomic_file(out) as handle:
            for result in results:
                handle.write((json.dumps(result, ensure_ascii=False) + "\n").encode())
        print(f"{len(items)} texts in {out}")


def calibrate(
    model: Positional[str],
    /,
    *,
    file: Path,
    out: Path,
    epsilon: float = 0.05,
    delta: float = 0.05,
    over: Base = "low-confidence",
    confidence: float = 0.99,
    factor: float = 1.0,
    bound: float = 0.1,
    levels: tuple[float, float, float] = (7.5, 5.0, 2.5),
    statistic: str = "minimum",
    gen_length: int = 128,
    block_length: int = 32,
    steps: int | None = None,
    suffix: str = "",
    answer_length: int = 8,
    temperature: float = 0.0,
    guidance: float = 1.0,
    chat: bool = False,
    seed: int = 0,
    batch: int = 16,
    mask_id: int | None = None,
    precision: Precision = "no",
) -> None:
    """Find the boldest early commit that keeps its answers, from prompts like those that will be decoded.

    With probability 1 − delta, at most a share epsilon of prompts get another answer than full decoding gives them. Use
    the result with fewstep decode --calibration and the same options, on other prompts than these.

    Args:
        model: folder or hub id of a LLaDA, a Dream or any masked language model of transformers, or `bundled`.
        file: a .jsonl of prompts: strings, or objects with a "prompt".
        out: the .json to write.
        epsilon: allowed share of changed answers.
        delta: allowed probability that the guarantee is wrong.
        over: the rule that decides until the commit, and whose full decoding is the measure.
        confidence: of threshold and klass.
        factor: of factor.
        bound: of entropy-bound, nats.
        levels: thresholds in the first, second and last third of the steps; their common factor is calibrated.
        statistic: of the gaps between the two largest logits: minimum, a quantile such as 0.1, or mean.
        gen_length: tokens to generate, --suffix included; 0 fills the mask tokens in the prompts and adds none.
        block_length: the text is decided block by block.
        steps: in all, for rules that keep to a schedule; one a token if left out.
        suffix: text that stands in the generation from the start; the answer is what follows, else the whole text.
        answer_length: tokens behind --suffix.
        temperature: 0 takes the most likely token.
        guidance: classifier-free guidance; 1 is off.
        chat: put the prompt into the model's chat template.
        seed: of the first prompt.
        batch: prompts at once.
        mask_id: id of the mask token, where the model does not say it.
        precision: no (float32) or bf16.
    """
    from ..checkpoints.atomic import writable
    from ..text import calibrate as calibration
    from ..text.commit import EarlyCommit

    writable(out.parent)
    items = _read_prompts(file)
    predictor, network, tokenizer = _open(model, mask_id, precision, guidance)
    settings = _settings(
        gen_length=gen_length, steps=steps, suffix=suffix, answer_length=answer_length, temperature=temperature,
        guidance=guidance, chat=chat,
    )  # fmt: skip
    made = _rule(over, confidence, factor, bound, block_length)
    early = _early("prophet", made, levels, statistic, bool(suffix))
    assert isinstance(early, EarlyCommit)
    found = calibration.calibrate(
        predictor, [_canvas(item["prompt"], network, tokenizer, settings) for item in items], early,
        epsilon=epsilon, delta=delta, steps=steps, temperature=temperature, seeds=range(seed, seed + len(items)),
        batch=batch,
    )  # fmt: skip
    replace(found, settings={"model": model} | settings).save(out)
    if found.factor is None:
        print(f"no threshold keeps {1 - epsilon:.1%} of the answers; {out} holds full decoding")
    else:
        print(
            f"{found.early_steps:.1f} of {found.full_steps:.1f} steps, {found.changed} of {found.n} answers changed "
            f"(at most {found.bound:.1%}, with confidence {1 - delta:.0%}): {out}"
        )


def _open(
    model: str, mask_id: int | None, precision: Precision, guidance: float
) -> tuple[MaskPredictor, NetworkPredictor, PreTrainedTokenizerBase]:
    import torch
    from transformers.utils import logging as transformers_logging

    from ..device import best_device
    from ..text.load import load_text, load_tokenizer
    from ..text.predictor import Guided

    transformers_logging.disable_progress_bar()
    tokenizer = load_tokenizer(model)
    network = load_text(
        model, mask_id=mask_id, device=str(best_device()), dtype=torch.bfloat16 if precision == "bf16" else torch.float32
    )
    return network if guidance == 1 else Guided(network, guidance), network, tokenizer


def _rule(name: str, confidence: float, factor: float, bound: float, block_length: int) -> CommitRule:
    from ..text.commit import KLASS, Blockwise, EntropyBound, Factor, Threshold, TopK

    rules: dict[str, CommitRule] = {
        "low-confidence": TopK(),
        "random": TopK("chance"),
        "threshold": Threshold(confidence),
        "factor": Factor(factor),
        "entropy-bound": EntropyBound(bound),
        "klass": KLASS(confidence),
    }
    return Blockwise(rules[name], block_length)


def _early(
    name: str, rule: CommitRule, levels: tuple[float, float, float], statistic: str, answer_follows: bool
) -> CommitRule:
    from ..text.commit import EarlyCommit, StableAndConfident, sched
    from ..text.schedule import Stairs, Suffix

    if name == "sched":
        return sched(rule)
    if name == "stable":
        return StableAndConfident(rule)
    if name != "prophet":
        return rule
    kind: Any = statistic
    if statistic not in ("mean", "minimum"):
        try:
            kind = float(statistic)
        except ValueError:
            raise ValueError(f"--statistic is mean, minimum or a number from 0 to 1, got {statistic}") from None
    return EarlyCommit(rule, Stairs(levels), kind, Suffix() if answer_follows else None)


def _settings(**settings: Any) -> dict[str, Any]:
    if settings["gen_length"] < 0:
        raise ValueError(f"--gen-length must not be negative, got {settings['gen_length']}")
    return settings


def _calibrated(path: Path, settings: dict[str, Any]) -> CommitRule:
    from ..text.calibrate import Calibration

    found = Calibration.load(path)
    for name, value in settings.items():
        made = found.settings.get(name, value)
        if made != value:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{path} was made with {flag} {made!r} and its guarantee holds for that, got {value!r}")
    return found.rule


def _read_prompts(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        raise ValueError(f"there is no file {file}")
    items = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} of {file} is not JSON: {error}") from error
        item = {"prompt": item} if isinstance(item, str) else item
        if not isinstance(item, dict) or not isinstance(item.get("prompt"), str):
            raise ValueError(f'line {number} of {file} is neither a string nor an object with a "prompt"')  # noqa: TRY004
        items.append(item)
    if not items:
        raise ValueError(f"there is no prompt in {file}")
    return items


def _canvas(prompt: str, network: NetworkPredictor, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Tensor:
    """The prompt, the masks and the suffix as token ids, on the network's device."""
    from ..text.predictor import canvas_row

    if settings["chat"]:
        if not tokenizer.chat_template:
            raise ValueError("this model's tokenizer has no chat template; leave --chat out")
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
    bare = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = bare if settings["chat"] else tokenizer(prompt)["input_ids"]
    ids = whole[: next((n + len(bare) for n in range(len(whole)) if whole[n : n + len(bare)] == bare), None)]
    gen_length, answer = settings["gen_length"], settings["answer_length"]
    if network.max_length is not None and len(ids) + gen_length > network.max_length:
        raise ValueError(
            f"a prompt of {len(ids)} tokens and {gen_length} to generate are more than the {network.max_length} that this "
            "model takes; shorten the prompt or --gen-length"
        )
    text = tokenizer(settings["suffix"], add_special_tokens=False)["input_ids"] if settings["suffix"] else []
    if text and not 0 < answer <= gen_length - len(text):
        raise ValueError(f"{len(text)} tokens of --suffix and {answer} of --answer-length do not fit into {gen_length}")
    fixed = {gen_length - answer - len(text): text} if text else {}
    return canvas_row(ids, gen_length, network.mask_id, fixed=fixed).to(network.device)


def _cut(text: str, stop: Sequence[str]) -> str:
    return text[: min([text.index(string) for string in stop if string in text], default=len(text))]


def _stream(
    predictor: MaskPredictor, tokenizer: PreTrainedTokenizerBase, row: Tensor, rule: CommitRule, seed: int, *,
    stop: tuple[str, ...], **options: Any,
) -> None:  # fmt: skip
    """Prints one row as it becomes final; holds back what may turn out to belong to a stop string or half a letter."""
    from ..text.decode import StopStrings, stream, walk

    start, tokens, printed = time.perf_counter(), [], 0
    found = StopStrings(tokenizer, stop) if stop else None
    held = max((len(string) - 1 for string in stop), default=0)
    for _, new, end in stream(walk(predictor, [row], rule, seeds=[seed], stop=found, **options)):
        tokens += new
        text = _cut(tokenizer.decode(tokens, skip_special_tokens=True), stop)
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
    rule: CommitRule, seeds: Sequence[int], batch: int, *, stop: tuple[str, ...], **options: Any,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """One entry a prompt, in order; `seconds` runs from the start of its batch to the step that finished it."""
    from ..text.decode import StopStrings, walk

    found = StopStrings(tokenizer, stop) if stop else None
    begin, generated = time.perf_counter(), 0
    for first in range(0, len(rows), batch):
        done: dict[int, tuple[Decoded, float]] = {}
        start = time.perf_counter()
        part = rows[first : first + batch]
        for walked in walk(predictor, part, rule, seeds=seeds[first : first + batch], stop=found, **options):
            done |= {number: (row, time.perf_counter() - start) for number, row in walked.finished.items()}
        for number in range(len(part)):
            row, seconds = done[number]
            generated += len(row.tokens)
            text = _cut(tokenizer.decode(row.tokens, skip_special_tokens=True), stop)
            yield items[first + number] | {
                "text": text, "tokens": len(row.tokens), "nfe": row.nfe, "seconds": round(seconds, 4), "batch": len(part)
            }  # fmt: skip
    seconds = time.perf_counter() - begin
    logging.getLogger(__name__).info(
        "%.2f texts and %.1f generated tokens a second", len(rows) / seconds, generated / seconds
    )
