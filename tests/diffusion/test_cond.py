from __future__ import annotations

import pytest
import torch
from conftest import tiny
from torch import nn

from fewstep.diffusion.cond import NOTHING, Classes, Cond, Tokens, labelled, padded
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.prediction import velocity
from fewstep.diffusion.schedule import Rectified

COND = Cond(
    {"text": torch.arange(12.0).view(3, 4), "added.time_ids": torch.arange(3), "added.embeds": torch.ones(3, 2)},
    {"img_ids": torch.zeros(5, 3), "added.mask": None},
)


def test_rows_are_cut_and_joined_and_what_is_shared_stays() -> None:
    cut = COND.part(slice(1, 3))
    assert torch.equal(cut.rows["text"], COND.rows["text"][1:3]) and cut.shared is COND.shared
    both = Cond.stack(COND.part(slice(0, 1)), cut)
    assert all(torch.equal(both.rows[name], COND.rows[name]) for name in COND.rows)
    assert COND.part(torch.tensor([2, 0])).rows["added.time_ids"].tolist() == [2, 0]
    one = COND.part(slice(0, 1)).expand(4)
    assert {name: value.shape for name, value in one.rows.items()} == {"text": (4, 4), "added.time_ids": (4,),
                                                                      "added.embeds": (4, 2)}  # fmt: skip


def test_dotted_names_become_nested_arguments() -> None:
    found = COND.arguments(torch.float64, 2)
    assert found.keys() == {"text", "added", "img_ids"} and found["added"].keys() == {"time_ids", "embeds", "mask"}
    assert found["text"].dtype == torch.float64 and found["added"]["time_ids"].dtype == torch.int64
    assert NOTHING.arguments(torch.float32, 2) == {}


def test_every_condition_has_a_row_for_each_sample() -> None:
    with pytest.raises(ValueError, match="one row per sample"):
        Cond({"a": torch.zeros(2), "b": torch.zeros(3)})


def test_a_network_is_called_by_the_names_of_its_parameters() -> None:
    """The first is the sample, the time is found by its name, a condition in front of it does not take its place."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, hidden_states, encoder_hidden_states=None, timestep=None, added=None):
            return (
                hidden_states + encoder_hidden_states[:, :1, None] + timestep[:, None, None] + added["bias"][:, None, None]
            )

    denoiser = Denoiser(Odd(), Rectified(), velocity, takes={})
    x, sigma = torch.randn(2, 1, 3), torch.tensor([0.5, 2.0])
    cond = Cond({"encoder_hidden_states": torch.tensor([[3.0], [4.0]]), "added.bias": torch.tensor([7.0, 8.0])})
    u = (sigma / (1 + sigma))[:, None, None]
    z = x * (1 - u)
    v = z + torch.tensor([3.0, 4.0])[:, None, None] + 1000 * u + torch.tensor([7.0, 8.0])[:, None, None]
    torch.testing.assert_close(denoiser(x, sigma, cond), z - u * v, rtol=1e-5, atol=1e-4)


def test_tokens_differ_in_number_and_not_in_width() -> None:
    Tokens((4, 8)).check(torch.zeros(2, 7, 8))
    Tokens(()).check(torch.zeros(2))
    for kind, rows, said in (
        (Tokens((4, 8)), torch.zeros(2, 4, 9), "rows of 4x8, not 4x9"),
        (Tokens((4, 8)), torch.zeros(2, 8), "rows of 4x8, not 8"),
        (Tokens(()), torch.zeros(2, 3), "rows of one number, not 3"),
    ):
        with pytest.raises(ValueError, match=said):
            kind.check(rows)


def test_rows_of_several_lengths_are_padded_where_the_network_can_tell() -> None:
    short, long = torch.ones(1, 2, 3), torch.ones(1, 4, 3)
    first, second = padded([Cond({"text": short, "mask": short[..., 0]}), Cond({"text": long, "mask": long[..., 0]})])
    assert torch.equal(second.rows["text"], long) and first.rows["mask"].tolist() == [[1, 1, 0, 0]]
    with pytest.raises(ValueError, match=r"text has 2 and 4 tokens .* no mask"):
        padded([Cond({"text": short}), Cond({"text": long})])


def test_what_is_shared_goes_to_the_device_with_all_that_is_in_it() -> None:
    moved = Cond({}, {"shapes": (torch.zeros(2), (torch.ones(1), 3)), "size": 4}).to("meta").shared
    first, (second, third) = moved["shapes"]
    assert (first.device.type, second.device.type, third, moved["size"]) == ("meta", "meta", 3, 4)


def test_labels_that_a_network_does_not_know() -> None:
    Classes(10).check(torch.tensor([0, 9]))
    Classes(10, null=10).check(torch.tensor([10]))
    for kind, label in ((Classes(10), 10), (Classes(10, null=10), 11), (Classes(10), -1)):
        with pytest.raises(ValueError, match=f"not {label}"):
            kind.check(torch.tensor([0, label]))
    assert tiny(classes=3).takes == {"class_labels": Classes(3)} and tiny().takes == {}
    assert labelled(None) is NOTHING
