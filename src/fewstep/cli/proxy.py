"""The command `fewstep proxy`: a large language model steered by small tuned ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.checks import at_least

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


def proxy(
    *,
    prompt: tuple[str, ...],
    base: str | None = None,
    expert: str | None = None,
    antiexpert: str | None = None,
    adapter: str | None = None,
    alpha: tuple[float, ...] = (1.0,),
    chat: bool = False,
    tokens: int = 200,
    temperature: float = 0.0,
    top_p: float = 1.0,
    beams: int = 1,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Generate text with a large language model steered by a small tuned one (proxy-tuning); no weights are touched.

    Args:
        prompt: one text or several.
        base: the large model, a transformers folder or hub id with safetensors weights. Without any model, those that come
            with the package, each also called `bundled`, answer "question : what is 7 plus 5 ? answer :" and the like.
        expert: the small tuned model; with --adapter the small model that the adapter was trained on.
        antiexpert: the small model before tuning.
        adapter: a LoRA adapter, folder or hub id, instead of an antiexpert: half the memory, one forward pass for both.
        alpha: how far to steer; several numbers are for the first tokens in turn, the last of them for all after.
        chat: the expert reads each prompt in its chat template; the others read it as it is.
        tokens: most tokens to generate.
        temperature: of sampling; 0 takes the likeliest token.
        top_p: sample from the likeliest tokens that together have this probability.
        beams: of beam search, 1 for none.
        seed: of the sampling.
        out: folder for proxy.json, with all settings and every changed token, and proxy.html, which shows them in colour.
    """
    import torch
    from transformers import TextStreamer

    from ..core.files import atomic_file, writable
    from ..core.progress import progress
    from ..core.receipt import receipt
    from ..steering.acted import page, where_acted
    from ..steering.load import load_trio
    from ..steering.tuning import generate

    at_least(1, tokens=tokens, beams=beams)
    at_least(0, temperature=temperature, seed=seed)
    _check_texts(prompt, alpha)
    _check_sampling(top_p, temperature)
    if base is None and expert is None and antiexpert is None and adapter is None:
        base = expert = antiexpert = "bundled"
    if base is None or expert is None:
        raise ValueError("give both --base and --expert, or no model at all for the bundled ones")
    if out:
        writable(out)
    steps = alpha[0] if len(alpha) == 1 else alpha
    large, tuned, tokenizer, small_tokenizer = load_trio(base, expert, antiexpert=antiexpert, adapter=adapter, alpha=steps)
    inputs = _encode(tokenizer, prompt)
    own = _encode(small_tokenizer, prompt, chat=True) if chat else None
    live = len(prompt) == 1 and beams == 1
    options: dict[str, Any] = {"max_new_tokens": tokens, "num_beams": beams, "pad_token_id": tokenizer.pad_token_id}
    options |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature:
        options |= {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    facts = {"base": base, "expert": expert, "antiexpert": antiexpert, "adapter": adapter, "alpha": alpha, "chat": chat}
    with receipt(out / "proxy.json" if out else None, **facts, generation=options, seed=seed) as entries:
        torch.manual_seed(seed)
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if live else None
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        with nullcontext() if live else progress("writing", tokens) as done:
            made = generate(
                large, tuned, ids, attention_mask=mask, expert_inputs=own, streamer=streamer,
                stopping_criteria=[_Told(done)] if done else (), **options,
            )  # fmt: skip
        ends = large.generation_config.eos_token_id
        texts = [_up_to_end(row, ends) for row in made[:, ids.shape[1] :].tolist()]
        acted = where_acted(large, tuned, _rows(inputs), texts, expert_prompts=_rows(own) if own else None)
        words = [tokenizer.decode(text, skip_special_tokens=True) for text in texts]
        entries["texts"] = [
            {"prompt": p, "text": w, "acted": a.to_dict()} for p, w, a in zip(prompt, words, acted, strict=True)
        ]
        if out:
            with atomic_file(out / "proxy.html") as file:
                file.write(page(acted, tokenizer, prompt).encode())
    if not live:
        whole = [[*before.tolist(), *text] for before, text in zip(_rows(inputs), texts, strict=True)]
        print("\n\n".join(tokenizer.decode(row, skip_special_tokens=True) for row in whole))
    places, count = sum(len(a.places) for a in acted), sum(len(a.tokens) for a in acted)
    print(f"\nfirst choice changed at {places} of {count} tokens" + (f"; where: {out / 'proxy.html'}" if out else ""))


def _check_texts(prompt: Sequence[str], alpha: Sequence[float]) -> None:
    if not prompt or not alpha:
        raise ValueError("--prompt and --alpha each need at least one value")
    if not all(text.strip() for text in prompt):
        raise ValueError("each --prompt needs some text")
    if not all(map(math.isfinite, alpha)):
        raise ValueError(f"--alpha must be a finite number, got {' '.join(map(str, alpha))}")


def _check_sampling(top_p: float, temperature: float) -> None:
    if not 0 < top_p <= 1:
        raise ValueError(f"--top-p lies above 0 and up to 1, got {top_p:g}")
    if top_p < 1 and not temperature:
        raise ValueError("--top-p is about sampling; give a --temperature, too")


class _Told:
    """A stopping criterion that stops nothing and tells how many tokens are written."""

    def __init__(self, done: Callable[[float], None]) -> None:
        self.done = done

    def __call__(self, ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        self.done(1)
        return ids.new_zeros(len(ids)).bool()


def _encode(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, chat: bool = False) -> dict[str, Tensor]:
    """Ids and mask of the prompts, (B, L) each, padded on the left."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from ..core.device import best_device
    from ..masked.prompts import bare, encode

    if not all(bare(tokenizer, prompt) for prompt in prompts):
        raise ValueError("each --prompt needs some text")
    turns = [[{"role": "user", "content": prompt}] if chat else prompt for prompt in prompts]
    ids = [torch.tensor(encode(tokenizer, turn)) for turn in turns]
    padded = pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True, padding_side="left")
    return {"input_ids": padded.to(best_device()), "attention_mask": mask.to(best_device())}


def _rows(inputs: dict[str, Tensor]) -> list[Tensor]:
    """The texts without their padding."""
    return [ids[mask.bool()] for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]


def _up_to_end(ids: list[int], ends: int | list[int] | None) -> list[int]:
    """`ids` up to and with the first token that ends a text."""
    known = set(ends) if isinstance(ends, list) else {ends}
    return next((ids[: place + 1] for place, token in enumerate(ids) if token in known), ids)
