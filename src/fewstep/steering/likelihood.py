"""Log-likelihoods of given texts under the combined distribution: for multiple choice, perplexity and harnesses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..core.device import at_least_float32
from .reader import Pair, Reader
from .tuning import ProxyTuning

Ids = Sequence[int] | Tensor  # one text, (L,)


class Scored(NamedTuple):
    """Scores of continuations under the combined distribution."""

    logprob: Tensor  # (N,), in nats, summed over the continuation's tokens
    greedy: Tensor  # (N,) bool: each of its tokens is the most likely one


class Chunk(NamedTuple):
    """Some texts, read at once."""

    tokens: Tensor  # (B, T), the continuations, padded on the right
    real: Tensor  # (B, T) bool, False at padding
    base: Tensor  # (B, T, V), log-probabilities of the base alone
    combined: Tensor  # (B, T, V), log-probabilities of softmax(base + α·(expert − antiexpert))


def loglikelihood(
    base: nn.Module,
    proxy: ProxyTuning,
    prompts: Sequence[Ids],
    continuations: Sequence[Ids],
    *,
    expert_prompts: Sequence[Ids] | None = None,
    batch: int = 8,
) -> Scored:
    """log p(continuation | prompt) = Σ log softmax(base + α·(expert − antiexpert))[token], with one forward pass a model.

    Args:
        base: the large model.
        proxy: the small models and α; its step counts from a continuation's first token.
        prompts: N texts of at least one token each, as ids.
        continuations: N texts of at least one token each, as ids.
        expert_prompts: prompts for the expert instead of `prompts`.
        batch: texts at once.

    Returns:
        Scores of the N continuations, on the CPU; each is the same in any batch.

    Raises:
        ValueError: the counts differ, a text is empty, or the base is in training mode.
    """
    logprobs, greedy = [], []
    for chunk in read_texts(base, proxy, prompts, continuations, expert_prompts=expert_prompts, batch=batch):
        chosen = chunk.combined.gather(2, chunk.tokens[..., None]).squeeze(2)  # (B, T)
        logprobs.append(chosen.masked_fill(~chunk.real, 0.0).sum(1).cpu())
        greedy.append(((chunk.combined.argmax(2) == chunk.tokens) | ~chunk.real).all(1).cpu())
    return Scored(torch.cat(logprobs), torch.cat(greedy))


@torch.no_grad()
def read_texts(
    base: nn.Module,
    proxy: ProxyTuning | None,
    prompts: Sequence[Ids],
    continuations: Sequence[Ids],
    *,
    expert_prompts: Sequence[Ids] | None = None,
    batch: int = 8,
) -> Iterator[Chunk]:
    """Log-probabilities of all next tokens along given continuations, `batch` texts at a time; see `loglikelihood`.

    Without `proxy` only the base reads, and "combined" is the base.
    """
    owns = prompts if expert_prompts is None else expert_prompts
    if not len(prompts) == len(continuations) == len(owns) > 0:
        counts = f"{len(prompts)}, {len(continuations)} and {len(owns)}"
        raise ValueError(f"each prompt needs one continuation and, if any are given, one expert prompt; got {counts}")
    if not all(len(text) for texts in (prompts, continuations, owns) for text in texts):
        raise ValueError("each prompt and continuation needs at least one token; start an empty prompt with the bos token")
    if base.training:
        raise ValueError("the base is in training mode, where dropout changes its logits; call base.eval() first")
    for start in range(0, len(prompts), batch):
        rows = slice(start, start + batch)
        tokens, real = _pad(continuations[rows], left=False)
        plain, own = (_after(_pad(texts[rows], left=True), tokens, real) for texts in (prompts, owns))
        keep = tokens.shape[1] + 1  # from the prompt's last token on
        wide = at_least_float32(Reader(base).read(*plain, keep=keep, more=False)[:, :-1])  # (B, T, V)
        alone, known = wide.log_softmax(-1), (tokens.to(wide.device), real.bool().to(wide.device))
        if proxy is None:
            yield Chunk(*known, alone, alone)
            continue
        small = Pair(proxy.expert, proxy.antiexpert, proxy.common).read(*own, *plain, keep=keep, more=False)
        expert, antiexpert = (logits[:, :-1] for logits in small)
        steps = [proxy.combine(k, wide[:, k], expert[:, k], antiexpert[:, k]) for k in range(tokens.shape[1])]
        combined = torch.stack(steps, 1).log_softmax(-1)
        yield Chunk(*known, alone, combined)


def _pad(texts: Sequence[Ids], *, left: bool) -> tuple[Tensor, Tensor]:
    """The texts as rows of ids (B, L), and their mask (B, L)."""
    width = max(len(text) for text in texts)
    ids, mask = torch.zeros(len(texts), width, dtype=torch.long), torch.zeros(len(texts), width, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(width - len(text), None) if left else slice(len(text))
        ids[row, place] = torch.as_tensor(text, dtype=torch.long).cpu()
        mask[row, place] = 1
    return ids, mask


def _after(prompt: tuple[Tensor, Tensor], tokens: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([prompt[0], tokens], 1), torch.cat([prompt[1], real], 1)
