"""The bound against its exact value by enumeration, and against the likelihood that it bounds."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import pytest
import torch
from masked.toy import MASK, Toy
from torch import Tensor

from fewstep.masked.likelihood import _hidden, is_greedy, log_likelihood, rolling
from fewstep.masked.predictor import Canvas, Guided, pad

TOY = Toy(scale=0.7)
PROMPT, ANSWER = [4, 2], [1, 3, 0, 5]


def log_p(row: list[int], place: int, token: int) -> float:
    """ln p(token at place | row), the mask token impossible; from the predictor, one row at a time."""
    canvas = pad([torch.tensor(row)], MASK)
    wanted = torch.zeros_like(canvas.valid)
    wanted[0, place] = True
    logits = TOY(canvas, wanted)[0]
    logits[MASK] = -torch.inf
    return float(logits.log_softmax(-1)[token])


def hide(prompt: list[int], answer: list[int], hidden: tuple[int, ...]) -> list[int]:
    return prompt + [MASK if i in hidden else token for i, token in enumerate(answer)]


def exact_bound(prompt: list[int], answer: list[int]) -> float:
    n, total = len(answer), 0.0
    for count in range(1, n + 1):
        for hidden in combinations(range(n), count):
            row = hide(prompt, answer, hidden)
            score = sum(log_p(row, len(prompt) + i, answer[i]) for i in hidden)
            total += n / count * score / math.comb(n, count) / n
    return total


def log_mixture(prompt: list[int], answer: list[int]) -> float:
    """The likelihood that the bound is about: a random order of the tokens, each predicted from those before it."""
    logs = []
    for order in permutations(range(len(answer))):
        logs.append(sum(log_p(hide(prompt, answer, order[k:]), len(prompt) + i, answer[i]) for k, i in enumerate(order)))
    return float(torch.tensor(logs).logsumexp(0)) - math.log(len(logs))


@pytest.mark.parametrize(("prompt", "answer"), [(PROMPT, ANSWER), ([], ANSWER[:3]), ([1, MASK, 3], [2, 6])])
def test_the_estimate_is_the_exact_bound(prompt: list[int], answer: list[int]) -> None:
    exact = exact_bound(prompt, answer)
    found = log_likelihood(TOY, [(prompt, answer)], draws=4000, batch=500)[0]
    assert 0 < found.error < 0.1
    assert abs(found.value - exact) < 4 * found.error
    assert exact < log_mixture(prompt, answer)


def test_one_token_is_exact_in_one_call() -> None:
    calls: list[int] = []
    handle = TOY.register_forward_hook(lambda _, args, out: calls.append(len(args[0].ids)))
    found = log_likelihood(TOY, [(PROMPT, [3])], draws=128)[0]
    handle.remove()
    assert calls == [1]
    assert found == pytest.approx((log_p([*PROMPT, MASK], 2, 3), 0.0))


def test_a_text_does_not_know_its_batch() -> None:
    texts = [(PROMPT, ANSWER), ([], [3, 3]), ([1, 2, 3, 4, 5], [1])]
    together = log_likelihood(TOY, texts, draws=10, seeds=[5, 6, 7], batch=7)
    for text, seed, found in zip(texts, (5, 6, 7), together, strict=True):
        assert log_likelihood(TOY, [text], draws=10, seeds=[seed])[0].value == pytest.approx(found.value, abs=1e-12)


def test_draws_are_stratified_and_every_set_is_alike() -> None:
    hidden = torch.stack(_hidden(4, 8000, seed=1))
    counts = hidden.sum(1)
    assert counts.bincount(minlength=5).tolist() == [0, 2000, 2000, 2000, 2000]
    assert torch.equal(counts, counts.sort().values)  # the k-th draw from the k-th part
    pairs = hidden[counts == 2]
    share = (pairs.long() @ torch.tensor([8, 4, 2, 1])).bincount(minlength=16) / len(pairs)
    for pair in (0b1100, 0b1010, 0b1001, 0b0110, 0b0101, 0b0011):
        assert abs(share[pair] - 1 / 6) < 4 * (5 / 36 / len(pairs)) ** 0.5
    three = [int(torch.stack(_hidden(10, 3, seed=s)).sum()) for s in range(2000)]  # 3 draws: without bias all the same
    mean, spread = torch.tensor(three, dtype=torch.float64).mean() / 3, torch.tensor(three, dtype=torch.float64).std() / 3
    assert abs(mean - 5.5) < 4 * spread / 2000**0.5


def test_rolling_is_the_sum_of_its_windows() -> None:
    text = [1, 3, 0, 5, 2, 2, 7]
    exact = exact_bound([], text[:3]) + exact_bound([], text[3:6]) + exact_bound([], text[6:])
    found = rolling(TOY, text, window=3, draws=2000, batch=500)
    assert abs(found.value - exact) < 4 * found.error


def test_greedy_is_what_decoding_says() -> None:
    row: list[int] = [*PROMPT, MASK, MASK, MASK]
    while MASK in row:
        options: list[tuple[float, int, int]] = [
            (log_p(row, i, token), i, token) for i, t in enumerate(row) if t == MASK for token in range(MASK)
        ]
        _, place, token = max(options)
        row[place] = token
    assert is_greedy(TOY, [(PROMPT, row[2:]), (PROMPT, [*row[2:4], (row[4] + 1) % 9])]) == [True, False]


@pytest.mark.parametrize(
    ("answer", "draws", "sentence"), [([], 1, "at least one token"), ([MASK], 1, "mask token"), ([1], 0, "one draw")]
)
def test_what_has_no_likelihood(answer: list[int], draws: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        log_likelihood(TOY, [(PROMPT, answer)], draws=draws)
    with pytest.raises(ValueError, match="needs a text"):
        rolling(TOY, answer, window=0)


def test_the_error_is_the_spread_over_seeds() -> None:
    found = [log_likelihood(TOY, [(PROMPT, ANSWER)], draws=16, seeds=[s], batch=16)[0] for s in range(150)]
    values: Tensor = torch.tensor([f.value for f in found], dtype=torch.float64)
    said = sum(f.error for f in found) / 150
    assert values.std() < 1.2 * said
    assert abs(values.mean() - exact_bound(PROMPT, ANSWER)) < 4 * values.std() / 150**0.5


def test_guidance_hides_the_prompt_and_no_more() -> None:
    rows: list[list[int]] = []

    class Watched(Toy):
        def forward(self, canvas: Canvas, wanted: Tensor) -> Tensor:
            rows.extend(ids[valid].tolist() for ids, valid in zip(canvas.ids, canvas.valid, strict=True))
            return super().forward(canvas, wanted)

    log_likelihood(Guided(Watched(), 2.0), [(PROMPT, ANSWER)], draws=16, batch=1)
    for seen, blind in zip(rows[::2], rows[1::2], strict=True):
        assert seen[: len(PROMPT)] == PROMPT and blind == [MASK] * len(PROMPT) + seen[len(PROMPT) :]
    assert any(row[2] != MASK for row in rows)
