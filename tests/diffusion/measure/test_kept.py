from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import noise_images

from fewstep.diffusion.measure import kept as module
from fewstep.diffusion.measure.features import RandomFeatures, reference
from fewstep.diffusion.measure.kept import TRIED
from fewstep.diffusion.measure.scores import Reference


def same(a: Reference, b: Reference) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


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
