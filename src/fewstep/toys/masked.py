"""Masked diffusion on generated tasks: a share t of each region is hidden, and the network predicts the hidden tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .tasks import Family, Item
from .tokens import EOS, MASK, PAD

if TYPE_CHECKING:
    from transformers import ModernBertForMaskedLM, PreTrainedTokenizerFast

GOLDEN = 0.6180339887498949  # its multiples modulo 1 fill the unit interval evenly, from any start
IGNORED = -100  # label that transformers' losses ignore


@dataclass(frozen=True)
class Hidden:
    """Training items with a share of their region hidden: number -> (ids, labels), (L,) long each.

    `run` consecutive items belong to one family, as those have nearly the same length; families take turns. Each token of
    the region that is not given is hidden with probability t, and at least one is hidden. The t of consecutive items fill
    (0, 1) evenly. Labels are the hidden tokens.

    Args:
        stages: pairs of a run and the families that take turns from that run on; a family named twice gets twice the items.
        vocabulary: word -> id.
        run: number of consecutive items of a family; the batch size.
        seed: of the hidden places.

    Reference: Sahoo et al. 2024, Simple and Effective Masked Diffusion Language Models.
    """

    stages: tuple[tuple[int, tuple[Family, ...]], ...]
    vocabulary: dict[str, int]
    run: int
    seed: int = 0

    def __call__(self, number: int) -> tuple[Tensor, Tensor]:
        run = number // self.run
        families = [families for begin, families in self.stages if begin <= run][-1]
        item = families[run % len(families)].item(number)
        rng = np.random.default_rng((self.seed, number))
        offset = np.random.default_rng(self.seed).random()
        t = (offset + number * GOLDEN) % 1
        open = np.setdiff1d(np.arange(len(item.target)), item.given)
        hide = rng.random(len(open)) < t
        hide[rng.integers(len(open))] |= not hide.any()
        places = torch.from_numpy(len(item.prompt) + open[hide])
        ids = torch.tensor([self.vocabulary[word] for word in (*item.prompt, *item.target)])
        labels = torch.full_like(ids, IGNORED)
        labels[places] = ids[places]
        ids[places] = self.vocabulary[MASK]
        return ids, labels

    def collate(self, items: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """One batch, padded on the right: input_ids, attention_mask and labels, (B, L) each."""
        ids, labels = [ids for ids, _ in items], [labels for _, labels in items]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self.vocabulary[PAD])
        return {
            "input_ids": padded,
            "attention_mask": (padded != self.vocabulary[PAD]).long(),
            "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }


def canvas(item: Item, vocabulary: dict[str, int]) -> Tensor:
    """The canvas (L,) of an item for a decoder: prompt and given words, masks elsewhere."""
    region = [word if place in item.given else MASK for place, word in enumerate(item.target)]
    return torch.tensor([vocabulary[word] for word in (*item.prompt, *region)])


def new_masked_lm(
    tokenizer: PreTrainedTokenizerFast, *, hidden: int = 128, layers: int = 6, heads: int = 4, intermediate: int = 192,
    longest: int = 128,
) -> ModernBertForMaskedLM:  # fmt: skip
    """An untrained ModernBERT with full attention in every layer, without dropout, with tied embeddings."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    pad, eos = tokenizer.convert_tokens_to_ids([PAD, EOS])
    config = ModernBertConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=intermediate, max_position_embeddings=longest, layer_types=["full_attention"] * layers,
        # wavelengths from 6 to 500 positions: rows here are some 60 long
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 100.0}},
        pad_token_id=pad, eos_token_id=eos, bos_token_id=None, cls_token_id=None, sep_token_id=eos,
    )  # fmt: skip
    return ModernBertForMaskedLM(config)
