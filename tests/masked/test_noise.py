"""The generator against its definition in plain integers, and its numbers against the uniform and Gumbel distributions."""

from __future__ import annotations

import torch
from scipy import stats

from fewstep.masked.noise import GOLDEN, gumbel, mix, uniform


def plain_mix(bits: int) -> int:
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
    return bits ^ bits >> 31


def test_it_is_splitmix64() -> None:
    numbers = [0, 1, 2**63 - 1, 0x9E3779B97F4A7C15, 2**64 - 1, 1234567]
    signed = torch.tensor([n - 2**64 if n >= 2**63 else n for n in numbers])
    assert [n % 2**64 for n in mix(signed).tolist()] == [plain_mix(n) for n in numbers]
    # the first numbers of the generator with seed 1234567, as published with it
    states = [(1234567 + k * 0x9E3779B97F4A7C15) % 2**64 for k in (1, 2, 3)]
    assert [plain_mix(s) for s in states] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_numbers_are_uniform_and_independent_along_every_coordinate() -> None:
    seed, step, column, token = (
        torch.arange(n).view(*([1] * k), n, *([1] * (3 - k))) for k, n in enumerate((12, 10, 14, 16))
    )
    u = uniform(seed, step, column, token)
    assert u.shape == (12, 10, 14, 16) and u.dtype == torch.float64 and 0 < u.min() < u.max() < 1
    assert len(u.unique()) == u.numel()
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 0.01
    assert uniform(torch.tensor(0), 1) != uniform(torch.tensor(GOLDEN), 0)  # a seed is no coordinate
    for axis in range(4):
        a, b = (u.narrow(axis, start, u.shape[axis] - 1).flatten().numpy() for start in (0, 1))
        assert stats.pearsonr(a, b).pvalue > 0.01
        assert stats.kstest((b - a) % 1, "uniform").pvalue > 0.01


def test_gumbel_is_gumbel_and_a_function_of_its_place() -> None:
    noise = gumbel(3, 5, torch.arange(100), 100)
    assert stats.kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 0.01
    assert torch.equal(gumbel(3, 5, torch.tensor([7, 40]), 60), noise[[7, 40]][:, :60])
    assert not (gumbel(4, 5, torch.arange(100), 100) == noise).any()
