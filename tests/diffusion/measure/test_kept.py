from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise_images

from fewstep.diffusion.measure import kept as module
from fewstep.diffusion.measure.features import RandomFeatures, reference
from fewstep.diffusion.measure.kept import TRIED
from fewstep.diffusion.measure.scores import Reference


def same(a: Reference, b: Reference) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(astuple(a), astuple(b), strict=True))


def test_a_reference_is_computed_once_and_is_the_same_to_the_last_digit(tmp_path, monkeypatch) -> None:
    images, network = noise_images(40), RandomFeatures()
    plain = reference(network, images)
    monkeypatch.setattr(module, "WORTH", 40)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    assert same(reference(network, images), plain)
    (file,) = (tmp_path / "references").iterdir()
    forward = RandomFeatures.forward
    monkeypatch.setattr(
        RandomFeatures, "forward", lambda *a: forward(*a) if len(a[1]) == TRIED else pytest.fail("it was computed again")
    )
    assert same(reference(RandomFeatures(), noise_images(40)), plain)
    monkeypatch.setattr(RandomFeatures, "forward", lambda *a: forward(*a) + 1)  # another version
    assert not same(reference(RandomFeatures(), noise_images(40)), plain)
    monkeypatch.undo()
    monkeypatch.setattr(module, "WORTH", 40)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    other = noise_images(40)
    other.pixels[-1, 0, 0, 0] += 1
    assert not same(reference(network, other), plain) and not same(reference(RandomFeatures(seed=1), images), plain)
    assert len(list((tmp_path / "references").iterdir())) == 4
    for damage in (b"", b"PK", file.read_bytes()[:-40], b"\x80\x04K\x01."):  # the last is a pickle
        file.write_bytes(damage)
        assert same(reference(network, images), plain) and same(reference(network, images), plain)
    monkeypatch.setenv("FEWSTEP_CACHE", str(file))  # no folder can be made there
    assert same(reference(network, images), plain)
    assert torch.equal(images.pixels, noise_images(40).pixels)
    monkeypatch.delenv("FEWSTEP_CACHE")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # a user without a home
    assert same(reference(network, images), plain)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where all references are kept, of however few images."""
    monkeypatch.setattr(module, "WORTH", 0)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    return tmp_path / "references"


def test_what_was_not_used_for_longest_goes_first(folder, monkeypatch) -> None:
    images, used = noise_images(40), {}

    def use(seed: int) -> None:
        reference(RandomFeatures(seed=seed), images)
        new = set(folder.iterdir()) - set(used.values())
        used[seed] = new.pop() if new else used[seed]
        os.utime(used[seed], ns=(now := next(clock), now))

    clock = iter(range(10**18, 10**19, 10**9))  # far enough apart for any file system
    for seed in (0, 1, 2):
        use(seed)
    old = os.stat(used[0]).st_mtime_ns
    reference(RandomFeatures(seed=0), images)
    assert os.stat(used[0]).st_mtime_ns > old  # which is what tells
    (left := folder / f".{used[0].name}.killed.fewstep").mkdir()
    (left / "locked").touch()
    (left / "new").write_bytes(b"half")
    sizes = sum(file.stat().st_size for file in folder.glob("*.npz"))
    monkeypatch.setattr(module, "LIMIT", sizes)
    use(3)
    assert set(folder.iterdir()) == {used[0], used[2], used[3]}
    monkeypatch.setattr(module, "LIMIT", 1)
    use(4)
    assert set(folder.iterdir()) == {used[4]}


def test_who_reads_does_not_mind_who_removes(folder, monkeypatch) -> None:
    """As several commands at once would: each gets what it asks for, whatever the others throw away meanwhile."""
    images, networks = noise_images(40), [RandomFeatures(seed=seed) for seed in range(3)]
    monkeypatch.setenv("FEWSTEP_CACHE", "")
    plain = [reference(network, images) for network in networks]
    monkeypatch.setenv("FEWSTEP_CACHE", str(folder.parent))
    monkeypatch.setattr(module, "LIMIT", 1)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: same(reference(networks[k % 3], images), plain[k % 3]), range(24)))
    assert all(found)
