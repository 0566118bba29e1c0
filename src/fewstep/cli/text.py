"""The commands that decode text, calibrate early stopping and learn rules."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional

from ..core.words import counted
from ..masked.choices import Compute, Text, comparable
from ..masked.committing import Early, Prophet, Rule

if TYPE_CHECKING:
    from ..masked.calibration import Calibration
    from ..masked.decoder import Decoder


def decode(
    model: Positional[str],
    /,
    *,
    prompt: str | None = None,
    file: Path | None = None,
    out: Path | None = None,
    calibration: Path | None = None,
    stop: tuple[str, ...] = (),
    compare: bool = False,
    text: Annotated[Text, OmitArgPrefixes] = Text(),
    rule: Annotated[Rule, OmitArgPrefixes] = Rule(),
    early: Annotated[Early, OmitArgPrefixes] = Early(),
    compute: Annotated[Compute, OmitArgPrefixes] = Compute(),
) -> None:
    """Decode prompts with a masked diffusion language model, and stop as soon as the model knows its answer.

    Several processes share the prompts of a file: start them with `torchrun --nproc-per-node 2 -m -- fewstep.cli decode …`,
    or with `accelerate launch` on GPUs. The file --out is the same byte for byte with any number of processes, and a
    command that was killed goes on when it is run again.

    Args:
        model: folder or hub id of a LLaDA, a Dream or any masked language model of transformers, or `bundled`.
        prompt: one prompt; its text streams to the terminal unless --out is given.
        file: a .jsonl of prompts instead: strings, or objects with a "prompt". Other entries of an object are kept in its
            result, except text, tokens, nfe, positions, batch, pieces and steps. A prompt is a text or a conversation: a
            list of {"role": …, "content": …}, which may also stand under "messages". If the last turn is the assistant's,
            the model continues it.
        out: a .jsonl for the results, with a receipt beside it; by default they go to the terminal. It also says at which
            step each token was decided, which `fewstep report` shows in colour.
        calibration: a rule with a guarantee, from fewstep calibrate; in place of --rule, --early and their options.
        stop: strings that end a text; the text is cut before the first of them.
        compare: decode without --cache as well, and count the answers that differ; the receipt holds the count, so give
            --out.
        text: what is generated.
        rule: how much is decided at a step.
        early: whether decoding may stop early.
        compute: how it is computed; a prompt gets the same text at any batch size.
    """
    from ..core.files import writable_file
    from ..masked.answering import save_answers
    from ..masked.decoder import open_decoder
    from ..masked.prompts import read_prompts

    if (prompt is None) == (file is None):
        raise ValueError("give either a --prompt or a --file of prompts")
    items = [{"prompt": str(prompt)}] if file is None else read_prompts(file)
    comparable(text, compare)
    if out:
        writable_file(out)
    elif compare:
        raise ValueError("--compare writes its counts into the receipt; give --out as well")
    decoder = open_decoder(model, text, rule, early, compute, calibration=calibration)
    if out:
        found = save_answers(decoder, items, out, stop=stop, file=file, compare=compare)
        if found:
            print(f"against --cache none: {found}")
        print(f"{counted(len(items), 'text')} in {out}")
    elif file:
        for answer in decoder.answers(items, stop=stop):
            print(json.dumps(answer, ensure_ascii=False), flush=True)
    else:
        _show(decoder, str(prompt), stop)


def calibrate(
    model: Positional[str],
    /,
    *,
    file: Path,
    out: Path,
    epsilon: float = 0.05,
    delta: float = 0.05,
    text: Annotated[Text, OmitArgPrefixes] = Text(),
    rule: Annotated[Rule, OmitArgPrefixes] = Rule(),
    prophet: Annotated[Prophet, OmitArgPrefixes] = Prophet(),
    compute: Annotated[Compute, OmitArgPrefixes] = Compute(),
    of: Literal["early", "rule"] = "early",
    write: tuple[Literal["sglang", "vllm"], Path] | None = None,
) -> None:
    """Find the boldest early commit, or the boldest rule, that keeps the answers, from prompts like those to be decoded.

    With probability 1 − delta, at most a share epsilon of prompts get another answer than by full decoding. Full decoding
    is --rule alone until all tokens are decided; answers that --rule itself changes by several tokens a step do not count.
    A --rule other than fewstep decode's default is also compared with that default on the same prompts. Full decoding is
    without --cache, so a cache is calibrated together with the rule. With --of rule full decoding is one token a step,
    and the result is how sure --rule must be (its --confidence, --factor or --bound). Use the result with fewstep decode
    --calibration and the same text options, on other prompts than these.

    Args:
        model: folder or hub id of a LLaDA, a Dream or any masked language model of transformers, or `bundled`.
        file: a .jsonl of prompts, as for fewstep decode.
        out: the .json to write.
        epsilon: allowed share of changed answers.
        delta: allowed probability that the guarantee is wrong.
        text: what is generated.
        rule: how much is decided at a step, and so what full decoding is.
        prophet: when decoding stops early; the calibration finds a common factor of --levels.
        compute: how it is computed.
        of: what to calibrate: early, how early decoding may stop; or rule, how bold --rule itself may be.
        write: sglang and a .yaml: writes the threshold for SGLang's --dllm-algorithm-config, for models that were trained
            on blocks. vLLM has no such setting.
    """
    from ..masked.fitting import calibrate_prompts, calibrate_rule_prompts

    if of == "rule" and prophet != Prophet():
        raise ValueError("--of rule calibrates --rule, without prophet; leave out prophet's options")
    if of == "early" and write:
        raise ValueError("engines have no early commit; calibrate the rule itself, with --of rule")
    options: Any = {"epsilon": epsilon, "delta": delta, "text": text, "rule": rule, "compute": compute}
    if of == "rule":
        found = calibrate_rule_prompts(model, file, out, write=write, **options)
    else:
        found = calibrate_prompts(model, file, out, prophet=prophet, **options)
    if write:
        print(f"the threshold for {write[0]}: {write[1]}")
    for line in _told(found, out, of):
        print(line)


def learn_rule(
    model: Positional[str],
    /,
    *,
    file: Path,
    out: Path,
    block_length: int | None = None,
    text: Annotated[Text, OmitArgPrefixes] = Text(),
    compute: Annotated[Compute, OmitArgPrefixes] = Compute(),
) -> None:
    """Learn which proposals of a model to decide, from prompts like those to be decoded; minutes on a CPU.

    Every prompt is decoded in full, one token a step, and twice by a threshold. A filter of some two thousand parameters
    learns which proposals full decoding ends with. Its inputs are how sure the model is of a proposal, was of it before,
    and is of its neighbours. Calibrate it with fewstep calibrate --of rule --rule learned --learned FILE on other prompts,
    or use it as fewstep decode --rule learned --learned FILE.

    Several processes share the prompts, and a command that was killed goes on, as with fewstep decode.

    Args:
        model: folder or hub id of a LLaDA, a Dream or any masked language model of transformers, or `bundled`.
        file: a .jsonl of prompts, as for fewstep decode; a few hundred are enough.
        out: the .safetensors to write, with a receipt beside it.
        block_length: as for fewstep decode.
        text: what is generated; use the rule with the same options.
        compute: how it is computed; --seed decides the rule.
    """
    from ..masked.fitting import learn_rule as learn

    found = learn(model, file, out, text=text, compute=compute, block_length=block_length)
    print(
        f"{out}: learned from {found.examples} proposals. Full decoding keeps {found.right:.1%} of {found.blind} others. "
        f"Cross entropy: {found.loss:.4f} nats by the filter, {found.plain:.4f} by the model's own probability"
    )


def _show(decoder: Decoder, prompt: str, stop: tuple[str, ...]) -> None:
    """Prints one answer as it becomes final, and what it cost."""
    start = time.perf_counter()
    for piece, whole in decoder.stream({"prompt": prompt}, stop=stop):
        print(piece, end="", flush=True)
        if whole:
            print()
            told = "%d tokens in %g network calls, %.2f seconds"
            logging.getLogger(__name__).info(told, len(whole.tokens), whole.nfe, time.perf_counter() - start)


def _told(found: Calibration, out: Path, of: str) -> Iterator[str]:
    """What a calibration found, and whether the default rule is the cheaper one."""

    def changed(changed: int, bound: float) -> str:
        sure = f"at most {bound:.1%}, with confidence {1 - found.delta:.0%}"
        return f"{changed} of {counted(found.n, 'answer')} changed ({sure})"

    if found.factor is None:
        kind = "--rule alone" if of == "early" else "one token at a step"
        alone = f"{out} holds {kind}, {found.full_steps:.1f} steps"
        kept = f"; {changed(found.changed, found.bound)}" if found.bound is not None else ""
        yield f"no threshold keeps {1 - found.epsilon:.1%} of the answers: {alone}{kept}"
    else:
        without = "by --rule alone" if of == "early" else f"at one token a step, where {found.factor:g} is sure enough"
        steps = f"{found.early_steps:.1f} steps, {found.full_steps:.1f} {without}"
        assert found.bound is not None, "a threshold that passed has its bound"
        yield f"{steps}; {changed(found.changed, found.bound)}: {out}"
    if found.beside:
        cheaper = found.beside.steps <= found.early_steps and found.beside.bound <= found.epsilon
        advice = "is the cheaper one: decode without --calibration" if cheaper else "is no cheaper way to keep the answers"
        told = f"{found.beside.steps:.1f} steps, {changed(found.beside.changed, found.beside.bound)}"
        yield f"fewstep decode's default rule on the same prompts: {told}; it {advice}"
