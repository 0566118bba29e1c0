"""The command `fewstep proxy`: a large language model steered by small tuned ones."""

from __future__ import annotations

from pathlib import Path

from ..steering.choices import Writing
from .after import say_next


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
        base: the large model, a transformers folder or hub id with safetensors weights, or `bundled`. If no model is given,
            the bundled ones answer "question : what is 7 plus 5 ? answer :" and the like.
        expert: the small tuned model; with --adapter the small model that the adapter was trained on.
        antiexpert: the small model before tuning.
        adapter: a LoRA adapter, folder or hub id, instead of an antiexpert: half the memory, one forward pass for both.
        alpha: how far to steer; several numbers are for the first tokens in turn, and the last one for all others.
        chat: the expert reads each prompt in its chat template; the others read it as it is.
        tokens: maximum number of tokens to generate.
        temperature: of sampling; 0 takes the likeliest token.
        top_p: sample from the likeliest tokens that together have this probability.
        beams: of beam search, 1 for none.
        seed: of the sampling.
        out: folder for proxy.json, with all settings and every changed token; fewstep report shows it in colour.
    """
    from transformers import TextStreamer

    from ..core.files import writable
    from ..steering.load import load_trio
    from ..steering.writing import check_texts, write

    writing = Writing(tokens, temperature, top_p, beams, seed)
    check_texts(prompt, alpha)
    if base is None and expert is None and antiexpert is None and adapter is None:
        base = expert = antiexpert = "bundled"
    if base is None or expert is None:
        raise ValueError("give both --base and --expert, or no model at all for the bundled ones")
    if out:
        writable(out)
    steps = alpha[0] if len(alpha) == 1 else alpha
    models = load_trio(base, expert, antiexpert=antiexpert, adapter=adapter, alpha=steps)
    live = len(prompt) == 1 and beams == 1
    streamer = TextStreamer(models.tokenizer, skip_prompt=True, skip_special_tokens=True) if live else None
    written = write(
        models, prompt, writing, chat=chat, streamer=streamer, out=out,
        base=base, expert=expert, antiexpert=antiexpert, adapter=adapter, alpha=alpha,
    )  # fmt: skip
    if not live:
        print("\n\n".join(each.whole for each in written))
    places = sum(len(each.acted.places) for each in written)
    count = sum(len(each.acted.tokens) for each in written)
    print(f"\nfirst choice changed at {places} of {count} tokens" + (f"; where: {out / 'proxy.json'}" if out else ""))
    if out:
        say_next("report", out, "-o", out / "report.html")
