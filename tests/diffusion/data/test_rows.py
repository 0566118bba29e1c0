from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from functools import partial

import torch
from conftest import noise_images
from hypothesis import given
from hypothesis import strategies as st

from fewstep.diffusion.data import Images, Rows, Samples
from fewstep.diffusion.noise import LogNormal
from fewstep.diffusion.space import to_uint8

LEVELS = partial(LogNormal(), sigma_max=80.0)


def test_a_shuffled_set_is_the_same_set() -> None:
    """Whose beginning is like the whole, although classes were in order."""
    labels = torch.arange(1000) // 100
    images = Images(labels.to(torch.uint8).view(-1, 1, 1, 1), labels, tuple("abcdefghij")).shuffled()
    found = torch.stack([images.cond(k)["class_labels"] for k in range(len(images))])
    assert torch.equal(found.bincount(), torch.full((10,), 100))
    assert torch.equal(images.raw(range(1000)).flatten().long(), found)
    assert set(found[:100].tolist()) == set(range(10))
    assert (images.shape, images.label_range, images.classes) == ((1, 1, 1), (0, 9), tuple("abcdefghij"))


@given(start=st.integers(0, 100), batch=st.integers(1, 9), world=st.integers(1, 3))
def test_rows_are_the_same_however_they_are_dealt(start: int, batch: int, world: int) -> None:
    rows = Rows(noise_images(7), LEVELS, seed=1, mirror=True)
    stop = start + 2 * batch * world
    dealt = {}
    for rank in range(world):
        places = [k for first in range(start + rank * batch, stop, world * batch) for k in range(first, first + batch)]
        parts = list(rows.batches(start, stop, batch, rank=rank, world=world))
        dealt |= dict(zip(places, torch.cat([part.eps for part in parts]), strict=True))
    assert sorted(dealt) == list(range(start, stop))
    fresh = Rows(noise_images(7), LEVELS, seed=1, mirror=True)
    assert all(torch.equal(dealt[k], fresh[k][1]) for k in dealt)


def test_loader_workers_change_nothing() -> None:
    rows = Rows(noise_images(7), LEVELS, seed=1)
    alone, with_workers = (list(rows.batches(0, 24, 8, workers=workers)) for workers in (0, 2))
    for a, b in zip(alone, with_workers, strict=True):
        assert torch.equal(a.x0, b.x0) and torch.equal(a.eps, b.eps) and torch.equal(a.t, b.t)


def test_every_epoch_sees_every_image_once() -> None:
    data = Images(torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 2, 2))
    rows = Rows(data, LEVELS, seed=0)
    order = [[to_uint8(rows[epoch * 10 + k][0])[0, 0, 0].item() for k in range(10)] for epoch in range(2)]
    assert sorted(order[0]) == sorted(order[1]) == list(range(10))
    assert order[0] != order[1]


def test_a_run_over_a_billion_examples_starts_at_once_wherever_it_goes_on() -> None:
    """Neither the start nor the memory grows with the data: of this set nothing exists but what is asked for."""
    asked: list[int] = []

    class Giant(Samples):
        shape, classes, label_range = (1, 1, 1), None, (0, 1)

        def __len__(self) -> int:
            return 10**9

        def cond(self, k: int) -> dict[str, torch.Tensor]:
            return {"class_labels": torch.tensor(k % 2)}

        def raw(self, rows: Sequence[int]) -> torch.Tensor:
            asked.extend(rows)
            return torch.tensor(rows).view(-1, 1, 1, 1) % 2

    tracemalloc.start()
    (batch,) = Rows(Giant(), LEVELS, seed=0).batches(3 * 10**9 - 4, 3 * 10**9 + 4, 8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(asked)) == 8 and batch.cond.rows["class_labels"].tolist() == batch.x0.flatten().tolist() == [
        k % 2 for k in asked
    ]
    assert peak < 2**22


def test_each_sight_of_an_image_has_noise_of_its_own() -> None:
    """The noise belongs to the row: the same image comes back in every epoch with other noise at another level."""
    rows = Rows(Images(torch.zeros(1, 1, 4, 4, dtype=torch.uint8)), LEVELS, seed=0)
    _, eps, t, *_ = next(rows.batches(0, 50, 50))
    assert len(t.unique()) == 50 and len(eps.flatten(1).unique(dim=0)) == 50


def test_noise_is_standard_normal_and_seeds_differ() -> None:
    draws = [torch.stack([Rows(noise_images(size=16), LEVELS, seed=seed)[k][1] for k in range(64)]) for seed in (0, 1)]
    for eps in draws:
        assert abs(float(eps.mean())) < 0.03 and abs(float(eps.std()) - 1) < 0.03
    correlation = float((draws[0] * draws[1]).mean())
    neighbours = float((draws[0][1:] * draws[0][:-1]).mean())
    assert abs(correlation) < 0.03 and abs(neighbours) < 0.03


def test_uint8_round_trip() -> None:
    data = noise_images()
    assert torch.equal(to_uint8(torch.stack([data.x0(k) for k in range(len(data))])), data.pixels)
