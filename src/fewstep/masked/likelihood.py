"""Log-likelihoods of texts by a masked diffusion model: a Monte Carlo bound, and greedy agreement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.device import at_least_float32, wide
from ..core.progress import track
from .decoding import decode
from .noise import uniform
from .predictor import MaskPredictor, pad
from .rules import TopK


class Likelihood(NamedTuple):
    """An unbiased estimate of a lower bound of a log-likelihood, in nats."""

    value: float
    error: float  # its standard error, or more, as the draws are stratified; nan for a single draw


@torch.no_grad()
def log_likelihood(
    predictor: MaskPredictor,
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    draws: int = 128,
    seeds: Sequence[int] | None = None,
    batch: int = 16,
    device: torch.device | str = "cpu",
) -> list[Likelihood]:
    """E over l ~ U{1 … L} and l masked tokens of (L/l)·Σ_masked ln p(x_i | the rest) ≤ ln p(answer | prompt).

    The mask token itself has probability 0, as in decoding. Draw k of n takes l from the k-th n-th of {1 … L}.

    Args:
        predictor: the model.
        texts: pairs (prompt, answer) of token ids; the prompt may be empty.
        draws: network calls a text. For an answer of one token one call is made, which is exact.
        seeds: one a text; text i has i by default.
        batch: rows at once, of one text or several.
        device: the predictor's.

    Returns:
        One bound a text.

    Raises:
        ValueError: an answer is empty or has the mask token, or `draws` is below 1.

    Reference: Nie et al. 2025, Large Language Diffusion Models.
    """
    if draws < 1:
        raise ValueError(f"a likelihood needs at least one draw, got {draws}")
    rows: list[tuple[int, Tensor, Tensor, float]] = []  # text, truth, hidden, weight L/l
    for number, (prompt, answer) in enumerate(texts):
        if not answer or predictor.mask_id in answer:
            raise ValueError("an answer needs at least one token, and none of them may be the mask token")
        truth = torch.tensor([*prompt, *answer])
        for hidden in _hidden(len(answer), draws, number if seeds is None else seeds[number]):
            where = torch.cat([torch.zeros(len(prompt), dtype=torch.bool), hidden])
            rows.append((number, truth, where, len(answer) / int(hidden.sum())))
    sums: list[list[float]] = [[] for _ in texts]
    for start in track(range(0, len(rows), batch), "likelihoods"):
        part = rows[start : start + batch]
        canvas = pad(
            [truth.masked_fill(where, predictor.mask_id).to(device) for _, truth, where, _ in part], predictor.mask_id
        )
        # mask tokens in a prompt stay masked and are not scored
        wanted = torch.nn.utils.rnn.pad_sequence([where for _, _, where, _ in part], batch_first=True).to(device)
        prompts = torch.tensor([len(texts[number][0]) for number, *_ in part], device=device)
        answers = canvas.valid & (torch.arange(wanted.shape[1], device=device) >= prompts[:, None])
        logits = at_least_float32(predictor(canvas._replace(open=answers), wanted))
        logits = logits.index_fill(1, torch.tensor([predictor.mask_id], device=logits.device), -torch.inf)
        target = torch.cat([truth[where] for _, truth, where, _ in part]).to(logits.device)
        scores = wide(logits.log_softmax(-1).gather(1, target[:, None]).squeeze(1))
        owner = wanted.nonzero(as_tuple=True)[0].to(scores.device)
        totals = scores.new_zeros(len(part)).index_add(0, owner, scores).tolist()
        for (number, *_, weight), total in zip(part, totals, strict=True):
            sums[number].append(weight * total)
    return [_estimate(values, len(answer)) for values, (_, answer) in zip(sums, texts, strict=True)]


def rolling(
    predictor: MaskPredictor,
    text: Sequence[int],
    *,
    window: int,
    prompt: Sequence[int] = (),
    draws: int = 128,
    seed: int = 0,
    batch: int = 16,
    device: torch.device | str = "cpu",
) -> Likelihood:
    """A lower bound for a text of any length: the sum over windows of at most `window` tokens, each after `prompt` only.

    Tokens do not see past their window, so a longer window gives a tighter bound.

    Raises:
        ValueError: the text is empty, or `window` is below 1.
    """
    if window < 1 or not text:
        raise ValueError("a rolling likelihood needs a text and windows of at least one token")
    windows = [(prompt, text[start : start + window]) for start in range(0, len(text), window)]
    seeds = [seed + number for number in range(len(windows))]
    parts = log_likelihood(predictor, windows, draws=draws, seeds=seeds, batch=batch, device=device)
    return Likelihood(sum(part.value for part in parts), sum(part.error**2 for part in parts) ** 0.5)


def is_greedy(
    predictor: MaskPredictor,
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch: int = 16,
    device: torch.device | str = "cpu",
) -> list[bool]:
    """Whether decoding with the most confident token first, one a step, gives exactly the answer."""
    rows = [torch.tensor([*prompt, *[predictor.mask_id] * len(answer)], device=device) for prompt, answer in texts]
    decoded = decode(predictor, rows, TopK(), eos=False, batch=batch)
    return [row.ids.tolist() == [*prompt, *answer] for row, (prompt, answer) in zip(decoded, texts, strict=True)]


def _hidden(length: int, draws: int, seed: int) -> list[Tensor]:
    """The tokens, of `length`, that each draw hides: l of them uniformly at random, l stratified over {1 … length}."""
    if length == 1:
        return [torch.ones(1, dtype=torch.bool)]
    u = uniform(torch.full((draws, 1), seed % 2**63), torch.arange(draws)[:, None], torch.arange(length + 1))
    place = (torch.arange(draws) + u[:, 0]) / draws  # one draw in each n-th of [0, 1)
    count = (place * length).long().clamp(max=length - 1) + 1
    return list(u[:, 1:].argsort(1) < count[:, None])


def _estimate(values: Sequence[float], length: int) -> Likelihood:
    table = torch.tensor(values, dtype=torch.float64)
    error = 0.0 if length == 1 else float(table.std() / len(table) ** 0.5) if len(table) > 1 else float("nan")
    return Likelihood(float(table.mean()), error)
