"""What caches gain for a masked diffusion language model of LLaDA's layout and vocabulary, with random weights.

    OMP_NUM_THREADS=1 nice -n 5 python benchmarks/cache.py --out runs/cache.json
    … --caches blocks-none blocks    the same network as if it had been trained on blocks, where finished ones are kept

Every cache decodes the same items; they take turns step by step, and this process's processor seconds are counted, so that
a slow moment of the machine hits all of them. What is reported are ratios within a round. The weights are random: only the
cost means something, and not the text.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from fewstep.core.receipt import receipt
from fewstep.masked.caching import Cached, Dual, Prefix
from fewstep.masked.decoding import walk
from fewstep.masked.predictor import Canvas, MaskPredictor, NetworkPredictor
from fewstep.masked.reading import Plain
from fewstep.masked.rules import Blockwise, Threshold, TopK
from fewstep.masked.step import CommitRule

VOCABULARY, MASK = 126_464, 126_336  # LLaDA's


def network(width: int, layers: int, dtype: torch.dtype) -> NetworkPredictor:
    """Of LLaDA's layout, with random weights; its embedding and its head are two tables, as LLaDA's are."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=8 * width // 3 // 64 * 64, num_hidden_layers=layers,
        num_attention_heads=width // 64, max_position_embeddings=4096, is_causal=False, use_cache=False,
    )  # fmt: skip
    made = LlamaForCausalLM(config)
    for module in made.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    return NetworkPredictor(made.to(dtype).eval(), mask_id=MASK, decoder=True)


class Forgetful:
    """A predictor without its memory: everything is computed at every step."""

    def __init__(self, predictor: NetworkPredictor) -> None:
        self.predictor, self.mask_id, self.eos_ids = predictor, predictor.mask_id, predictor.eos_ids
        self.networks = predictor.networks

    def __call__(self, canvas: Canvas, wanted: Tensor) -> Tensor:
        logits: Tensor = self.predictor(canvas, wanted)
        return logits

    def reading(self, canvas: Canvas) -> Plain:
        return Plain(self)


def predictors(plain: NetworkPredictor, block: int) -> dict[str, MaskPredictor]:
    """All ways to decode with a network; `blocks` reads it as if it had been trained on blocks."""
    blocks = NetworkPredictor(plain.network, mask_id=MASK, decoder=True, block=block)
    return {
        "none": plain, "prefix": Cached(plain, Prefix(block)), "dual": Cached(plain, Dual(block)),
        "dual, refreshed every 8": Cached(plain, Dual(block, refresh=8)), "blocks-none": Forgetful(blocks),
        "blocks": blocks,
    }  # fmt: skip


def items(n: int, prompt: int, length: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    prompts = torch.randint(VOCABULARY - 200, (n, prompt), generator=rng)
    return [torch.cat([ids, torch.full((length,), MASK)]) for ids in prompts]


def measured(
    predictors: dict[str, MaskPredictor], rows: Sequence[Tensor], rule: CommitRule, steps: int | None
) -> dict[str, tuple[float, float]]:
    """Processor seconds and positions of each, for the first `steps` of decoding or all; they take turns step by step."""
    walks = {name: walk(predictor, rows, rule, batch=len(rows)) for name, predictor in predictors.items()}
    spent, positions = dict.fromkeys(walks, 0.0), dict.fromkeys(walks, 0.0)
    made = 0
    while walks and made != steps:
        for name, each in list(walks.items()):
            start = time.process_time()
            walked = next(each, None)
            spent[name] += time.process_time() - start
            if walked is None:
                del walks[name]
            else:
                positions[name] = float(walked.rows.positions.sum())
        made += 1
    return {name: (spent[name], positions[name]) for name in spent}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=448)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1, help="items at once")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="only the first so many; whole blocks of steps cost what all of them do")
    parser.add_argument("--threshold", type=float, help="decide what is so sure at once, in place of one token a step")
    parser.add_argument("--precision", choices=["no", "bf16"], default="no")
    parser.add_argument("--caches", nargs="+", default=["none", "prefix", "dual"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    plain = network(args.width, args.layers, torch.bfloat16 if args.precision == "bf16" else torch.float32)
    caches = predictors(plain, args.block)
    rule = Blockwise(TopK() if args.threshold is None else Threshold(args.threshold), args.block)
    rows = items(args.batch, args.prompt, args.length)
    size = sum(p.numel() for p in plain.network.parameters())
    facts = {"parameters": size, "threads": torch.get_num_threads(), **vars(args)}
    with receipt(args.out, **facts) as entries:
        measured(caches, items(1, 8, 2), rule, None)  # what is made at the first call
        entries["rounds"] = []
        for _ in range(args.rounds):
            found = measured({name: caches[name] for name in args.caches}, rows, rule, args.steps)
            entries["rounds"].append(found)
            base = found[args.caches[0]][0]
            for name, (spent, positions) in found.items():
                told = f"{base / spent:.2f} x {args.caches[0]}"
                print(f"{name:24} {positions:9.0f} positions, {spent:8.2f} processor seconds; {told}", flush=True)


if __name__ == "__main__":
    main()
