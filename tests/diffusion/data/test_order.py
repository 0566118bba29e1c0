from __future__ import annotations

from collections import Counter
from itertools import pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, kstest, spearmanr

from fewstep.diffusion.data.order import Order

BILLION = 10**9


@given(count=st.integers(1, 600), seed=st.integers(0, 2**40), epoch=st.integers(0, 2**40))
def test_an_epoch_holds_every_example_once(count: int, seed: int, epoch: int) -> None:
    order = Order(count, seed)
    assert sorted(order(row) for row in range(epoch * count, (epoch + 1) * count)) == list(range(count))


@pytest.mark.parametrize("count", [*range(1, 70), 1023, 1024, 1025, 4095, 4097])
def test_of_any_number_of_examples(count: int) -> None:
    order = Order(count, 7)
    assert sorted(map(order, range(count))) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    """With 50 examples no two of 200 orders agree, and a place holds the same example in one of fifty."""
    orders = [[Order(50, seed)(epoch * 50 + k) for k in range(50)] for seed in range(10) for epoch in range(20)]
    assert len(set(map(tuple, orders))) == 200
    same = sum(a == b for first, second in pairwise(orders) for a, b in zip(first, second, strict=True))
    assert 140 < same < 260  # 199 are expected, with a standard deviation of 14


def fits(seen: Counter, outcomes: list) -> bool:
    """Whether outcomes that should be equally likely were seen about equally often: chi-square within its 99.99 %."""
    expected = seen.total() / len(outcomes)
    assert set(seen) <= set(outcomes)
    return sum((seen[o] - expected) ** 2 for o in outcomes) / expected < chi2.isf(1e-4, len(outcomes) - 1)


@pytest.mark.parametrize(("count", "seeds"), [(2, 500), (3, 1000), (4, 2000), (5, 6000)])
def test_all_orders_of_a_handful_are_equally_likely(count: int, seeds: int) -> None:
    seen = Counter(tuple(map(Order(count, seed), range(count))) for seed in range(seeds))
    assert fits(seen, list(permutations(range(count))))


@pytest.mark.parametrize("count", [9, 16, 23, 100])
def test_any_example_may_come_first_and_any_other_second(count: int) -> None:
    orders = [Order(count, seed) for seed in range(4000)]
    assert fits(Counter(order(0) for order in orders), list(range(count)))
    steps = Counter((order(1) - order(0)) % count for order in orders)
    assert fits(steps, list(range(1, count)))


def test_a_billion_examples_take_no_time_and_no_memory() -> None:
    """Their first thousand rows lie all over them, and neighbours have nothing to do with each other."""
    for epoch in (0, 12345):
        first = [Order(BILLION, 3)(epoch * BILLION + row) for row in range(1000)]
        assert len(set(first)) == 1000
        assert kstest([place / BILLION for place in first], "uniform").pvalue > 1e-4
        assert spearmanr(first[1:], first[:-1]).pvalue > 1e-4
