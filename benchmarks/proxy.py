"""Proxy-tuning's cost per token against the base alone and the plain loop of three forward passes.

    python benchmarks/proxy.py

Random weights: the time does not depend on them. One process, greedy decoding with caches, rounds interleaved so that a
slow moment of the machine hits all loops. What counts are the ratios to the base within a round, and their spread.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from fewstep.steering.tuning import ProxyTuning, generate

Loop = Callable[[Tensor, int], Tensor]  # (prompts (B, L), new tokens n) -> (B, L + n)
SIZES = {  # hidden, intermediate, layers, heads, vocabulary
    "base": (1024, 2816, 18, 16, 32000),
    "small": (512, 1408, 6, 8, 32000),
    "tiny base": (64, 128, 4, 4, 100),
    "tiny small": (32, 64, 2, 2, 100),
}


def model(size: str) -> PreTrainedModel:
    hidden, intermediate, layers, heads, vocabulary = SIZES[size]
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        vocab_size=vocabulary, tie_word_embeddings="small" in size, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def plain(models: Sequence[nn.Module]) -> Loop:
    """base + (expert − antiexpert), three forward passes one after the other, as one would write it on a page."""

    @torch.no_grad()
    def loop(ids: Tensor, tokens: int) -> Tensor:
        caches, new = [None, None, None], ids
        for _ in range(tokens):
            outputs = [
                network(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
                for network, cache in zip(models, caches, strict=True)
            ]
            caches = [output.past_key_values for output in outputs]
            base, expert, antiexpert = (output.logits[:, -1].float() for output in outputs)
            new = (base + (expert - antiexpert)).argmax(-1, keepdim=True)
            ids = torch.cat([ids, new], 1)
        return ids

    return loop


def loops(prefix: str = "") -> tuple[dict[str, Loop], dict[str, list[nn.Module]]]:
    """The loops to time, and the small models that each of ours holds; all proxy-tuned loops say the same."""
    torch.manual_seed(0)
    base, antiexpert = model(f"{prefix}base"), model(f"{prefix}small")
    copies = [model(f"{prefix}small") for _ in range(2)]
    for copy in copies:
        copy.load_state_dict(antiexpert.state_dict())
    lora = LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], init_lora_weights=False)
    adapted = []
    for copy in copies:
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            adapted.append(get_peft_model(copy, lora).eval())
    expert = adapted[0].merge_and_unload()
    two, one = ProxyTuning(expert, antiexpert), ProxyTuning(adapted[1])
    options = {"do_sample": False}
    found: dict[str, Loop] = {
        "base alone": lambda ids, n: base.generate(ids, max_new_tokens=n, **options),
        "plain loop": plain([base, expert, antiexpert]),
        "ours, two models": lambda ids, n: generate(base, two, ids, max_new_tokens=n, **options),
        "ours, adapter": lambda ids, n: generate(base, one, ids, max_new_tokens=n, **options),
    }
    held = {"base alone": [base], "ours, two models": [expert, antiexpert], "ours, adapter": [adapted[1]]}
    return found, held


def megabytes(models: Sequence[nn.Module]) -> float:
    """Memory of the weights, shared ones once."""
    return sum(p.numel() * p.element_size() for model in models for p in model.parameters()) / 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tiny", action="store_true", help="tiny models, to see that it runs")
    args = parser.parse_args(arguments)
    timed, held = loops("tiny " if args.tiny else "")
    for batch in args.batch:
        ids = torch.randint(1, 100, (batch, 16), generator=torch.Generator().manual_seed(0))
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        for loop in timed.values():
            loop(ids, 2)
        for _ in range(args.rounds):
            for name, loop in timed.items():
                start = time.perf_counter()
                loop(ids, args.tokens)
                seconds[name].append((time.perf_counter() - start) / args.tokens)
        for name, times in seconds.items():
            ratios = sorted(t / b for t, b in zip(times, seconds["base alone"], strict=True))
            print(
                f"batch {batch}  {name:17} {1e3 * statistics.median(times):7.1f} ms a token, "
                f"{statistics.median(ratios):.2f} x base ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )
    weights = {name: megabytes(models) for name, models in held.items()}
    two, one = weights["ours, two models"], weights["ours, adapter"]
    print(
        f"weights: base {weights['base alone']:.1f} MB; small models {two:.1f} MB as two, {one:.1f} MB with an adapter, "
        f"{one / two:.2f} x"
    )


if __name__ == "__main__":
    main()
