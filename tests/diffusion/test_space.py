from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

from fewstep.diffusion.space import Latents, Pixels, Video, Waveform


@pytest.mark.parametrize("space", [Pixels((1, 4, 6)), Pixels((3, 4, 6)), Waveform((2, 50), 8000), Video((3, 2, 4, 6), 8.0)])
def test_what_is_decoded_is_encoded_again(space) -> None:
    x0 = torch.rand(3, *space.shape) * 2 - 1
    raw = space.decode(x0)
    assert raw.dtype in (torch.uint8, torch.int16)
    torch.testing.assert_close(space.encode(raw), x0, rtol=0, atol=1 / 127)
    assert torch.equal(space.decode(space.encode(raw)), raw)
    assert torch.equal(space.decode(x0 * 100), space.decode((x0 * 100).clamp(-1, 1)))


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_saved_to_the_last_bit(tmp_path, channels: int) -> None:
    space = Pixels((channels, 4, 6))
    raw = torch.randint(0, 256, (5, channels, 4, 6), dtype=torch.uint8)
    space.save(raw, tmp_path, list("abcde"))
    for name, picture in zip("abcde", raw, strict=True):
        assert np.array_equal(
            np.asarray(Image.open(tmp_path / f"{name}.png")), picture.permute(1, 2, 0).squeeze(-1).numpy()
        )
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[:2] == (2 * 4, 3 * 6)
    assert np.array_equal(sheet[4:8, :6], raw[3].permute(1, 2, 0).squeeze(-1).numpy())


def test_sound_is_saved_to_the_last_bit(tmp_path) -> None:
    space = Waveform((2, 50), 8000)
    raw = space.decode(torch.rand(2, 2, 50) * 2 - 1)
    space.save(raw, tmp_path, ["a", "b"])
    rate, sound = wavfile.read(tmp_path / "b.wav")
    assert rate == 8000 and np.array_equal(sound, raw[1].T.numpy())


def test_moving_pictures_are_saved_to_the_last_bit(tmp_path) -> None:
    space = Video((3, 4, 5, 6), 8.0)
    raw = torch.randint(0, 256, (1, 3, 4, 5, 6), dtype=torch.uint8)
    space.save(raw, tmp_path, ["a"])
    with Image.open(tmp_path / "a.png") as film:
        assert film.n_frames == 4
        for frame in range(4):
            film.seek(frame)
            assert np.array_equal(np.asarray(film.convert("RGB")), raw[0, :, frame].permute(1, 2, 0).numpy())


def test_latents_are_kept_as_they_are(tmp_path) -> None:
    space = Latents((4, 2, 2))
    x0 = torch.randn(3, 4, 2, 2) * 9
    assert torch.equal(space.encode(space.decode(x0)), x0) and space.encode(x0.half()).dtype == torch.float32
    space.save(space.decode(x0), tmp_path, ["a", "b", "c"])
    with np.load(tmp_path / "samples.npz") as kept:
        assert np.array_equal(kept["latents"], x0.numpy()) and kept["names"].tolist() == ["a", "b", "c"]
