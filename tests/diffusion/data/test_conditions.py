"""Conditions in tables: what comes back is what was written, and a training sees it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import datasets
import pytest
import torch
from accelerate import Accelerator
from conftest import tiny
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from fewstep.core.seeds import derive, generators, normal
from fewstep.diffusion.cond import Cond, labelled
from fewstep.diffusion.data import Rows, Table
from fewstep.diffusion.data.conditions import COLUMN, Conditions, kept, kept_as
from fewstep.diffusion.data.order import Order
from fewstep.diffusion.data.table import arrays_of, write_table
from fewstep.diffusion.denoiser import Denoiser, vp
from fewstep.diffusion.loss import PseudoHuber, consistency_loss
from fewstep.diffusion.noise import ECTGap, LogNormal
from fewstep.diffusion.optim import Constant
from fewstep.diffusion.tuning import tune

LEVELS = partial(LogNormal(), sigma_max=80.0)
N = 7
SHARED = {
    "img_ids": torch.arange(6).reshape(3, 2),
    "shapes": [(1, 4, 4), [0.5]],
    "added.none": None,
    "ids": torch.ones(2).half(),
}


def rows_of(count: int = N) -> Cond:
    rng = torch.Generator().manual_seed(5)
    text = torch.randn(count, 3, 8, generator=rng)
    rows = {
        "encoder_hidden_states": text,
        "added.small": text[:, 0].bfloat16(),
        "mask": text[:, :, 0] > 0,
        "guidance": text[:, 0, 0],
    }
    return Cond(rows | {"ids": torch.arange(count * 2).view(count, 2)}, SHARED)


NULL = rows_of(1)


def table_of(folder: Path, cond: Cond, null: Cond | None, *, labels: bool = False, samples: Tensor | None = None) -> Table:
    """A table of some latents with these conditions."""
    count = len(next(iter(cond.rows.values())))
    latents = torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(6)) if samples is None else samples
    features = {"latents": arrays_of(latents.shape[1:], "float32")}
    columns: dict[str, object] = {"latents": latents.numpy()}
    for name, value in cond.rows.items():
        features[COLUMN + name] = arrays_of(value.shape[1:], kept_as(value.dtype))
        columns[COLUMN + name] = kept(value)
    if labels:
        features["label"], columns["label"] = datasets.Value("int64"), list(range(count))
    folder.mkdir()
    half = {name: values[:3] for name, values in columns.items()}, {name: values[3:] for name, values in columns.items()}
    write_table(folder, features, half, Conditions.of(cond, null, "a pipeline"))
    return Table(folder)


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("labels", [False, True])
def test_conditions_come_back_as_they_were(tmp_path, labels: bool) -> None:
    """In their dtypes, which Arrow does not all have; and what is shared, down to a tuple in a list."""
    cond = rows_of()
    table = table_of(tmp_path / "table", cond, NULL, labels=labels)
    for k in range(N):
        found = dict(table.cond(k))
        assert labels == ("class_labels" in found) and int(found.pop("class_labels", k)) == k
        assert found.keys() == cond.rows.keys() and all(same(found[name], cond.rows[name][k]) for name in found)
    assert table.shared.keys() == SHARED.keys() and all(same(table.shared[name], SHARED[name]) for name in SHARED)
    assert table.null is not None and table.null.rows.keys() == NULL.rows.keys()
    assert all(same(table.null.rows[name], NULL.rows[name]) for name in NULL.rows)
    assert table.conditions.maker == "a pipeline"
    assert len(datasets.load_from_disk(tmp_path / "table")) == N
    assert Table(tmp_path / "table").fingerprint == table.fingerprint
    assert table_of(tmp_path / "other", cond, None).fingerprint != table.fingerprint
    assert Table(tmp_path / "other").null is None


def test_small_numbers_stay_small(tmp_path) -> None:
    """bfloat16 takes two bytes a number on the disk."""
    rows = {"text": torch.randn(50, 64, 64).bfloat16()}
    table_of(tmp_path / "table", Cond(rows), None, samples=torch.zeros(50, 1, 1, 1))
    size = sum(file.stat().st_size for file in (tmp_path / "table").iterdir())
    assert 2 * 50 * 64 * 64 < size < 2.1 * 50 * 64 * 64


def test_a_row_is_a_function_of_seed_and_number_whatever_its_conditions(tmp_path) -> None:
    """The draws of a row with conditions, one after another; where they are dropped the null row stands, and else nothing
    is another."""
    cond = rows_of()
    table = table_of(tmp_path / "table", cond, NULL)
    plain, dropping = Rows(table, LEVELS, seed=4), Rows(table, LEVELS, seed=4, dropped=(0.4, NULL))
    order, dropped = Order(N, 4), 0
    for k in range(40):
        rngs = generators([derive(4, 1, k)])
        t, eps = LEVELS(normal(rngs, ()))[0], normal(rngs, table.shape)[0]
        before = torch.rand((), generator=rngs[0])  # u, or whether the row is dropped
        for row in (plain[k], dropping[k]):
            assert torch.equal(row[0], table.x0(order(k))) and torch.equal(row[1], eps) and torch.equal(row[2], t)
        assert torch.equal(plain[k][4], before) and torch.equal(dropping[k][4], torch.rand((), generator=rngs[0]))
        expected = NULL.part(slice(0, 1)) if before < 0.4 else cond.part(slice(order(k), order(k) + 1))
        dropped += bool(before < 0.4)
        assert all(same(dropping[k][3][name], value[0]) for name, value in expected.rows.items())
    assert 0 < dropped < 40
    (batch,) = dropping.batches(0, 40, 40)
    assert batch.cond.rows["added.small"].dtype == torch.bfloat16 and batch.cond.shared["shapes"] == SHARED["shapes"]
    (few,) = Rows(table, LEVELS, seed=4, takes=["mask"]).batches(0, 5, 5)
    assert few.cond.rows.keys() == {"mask"}


class AnyRow:
    """A condition of any shape."""

    def check(self, rows: Tensor) -> None:
        assert len(rows)


def prompted() -> Denoiser:
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4,
    )  # fmt: skip
    denoiser = vp(network, DDPMScheduler())
    denoiser.takes = {"encoder_hidden_states": AnyRow()}
    return denoiser.eval()


def test_training_sees_the_conditions_of_its_rows(tmp_path) -> None:
    """The first step's loss is that of the denoiser on these conditions, and on the null row where they are dropped."""
    torch.manual_seed(1)
    text, null = 30 * torch.randn(16, 3, 8).bfloat16(), Cond({"encoder_hidden_states": torch.zeros(1, 3, 8).bfloat16()})
    table = table_of(tmp_path / "table", Cond({"encoder_hidden_states": text}), null)
    losses = []
    for share in (None, 0.5):
        denoiser = prompted()
        settings = {"images": 8, "batch": 8, "rate": Constant(0.0), "accelerator": Accelerator(mixed_precision="no")}
        (step,) = tune(denoiser, table, dropped=share, **settings)
        rows = Rows(table, partial(LogNormal(), sigma_max=denoiser.schedule.highest), seed=0, dropped=(share or 0.0, null))
        x0, eps, t, cond, _ = next(rows.batches(0, 8, 8))
        own = consistency_loss(denoiser, x0, eps, t, ECTGap()(t, 0.0), t * 0, cond=cond, distance=PseudoHuber())
        assert step.loss == pytest.approx(own.mean().item(), rel=1e-5)
        losses.append(step.loss)
    assert abs(losses[0] / losses[1] - 1) > 1e-3


def test_conditions_that_do_not_fit_are_refused_before_the_first_step(tmp_path) -> None:
    text = Cond({"encoder_hidden_states": torch.randn(4, 3, 8)})
    table = table_of(tmp_path / "text", text, None, samples=torch.zeros(4, 1, 8, 8))
    bare = table_of(tmp_path / "bare", Cond({"guidance": torch.ones(4)}), None)
    with pytest.raises(ValueError, match="this checkpoint takes no encoder_hidden_states; leave it out"):
        next(tune(tiny(), table, images=8, batch=8))
    with pytest.raises(ValueError, match="needs encoder_hidden_states; give one per sample"):
        next(tune(prompted(), bare, images=8, batch=8))
    with pytest.raises(ValueError, match="conditional on classes, but the data has no labels"):
        next(tune(tiny(classes=3), table, images=8, batch=8))
    with pytest.raises(ValueError, match="have a null condition"):
        next(tune(prompted(), table_of(tmp_path / "again", text, None), images=8, batch=8, dropped=0.1))
    with pytest.raises(ValueError, match=r"below 1, got 1\.5"):
        next(tune(prompted(), table_of(tmp_path / "more", text, text.part(slice(0, 1))), images=8, batch=8, dropped=1.5))


@pytest.mark.parametrize(
    "said",
    [
        "{",
        "[]",
        "{}",
        '{"dtypes": {"a": "nn"}, "shared": {}, "null": false, "maker": null}',
        '{"dtypes": {}, "shared": {"a": {"tensor": "b"}}, "null": false, "maker": null}',
    ],
)
def test_damaged_conditions_are_one_sentence(tmp_path, said: str) -> None:
    table_of(tmp_path / "table", rows_of(), None)
    (tmp_path / "table" / "conditions.json").write_text(said)
    with pytest.raises(ValueError, match=r"conditions\.json (is not valid|holds a list|does not describe)") as caught:
        Table(tmp_path / "table")
    assert "\n" not in str(caught.value)


def test_conditions_that_hold_anything_else_are_not_written(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"cannot keep the condition shared\.a, which is a dict"):
        Conditions({}, {"a": {}}).write(tmp_path)
    assert labelled(torch.tensor([1])).rows.keys() == {"class_labels"}


def test_conditions_that_are_no_numbers_are_named(tmp_path) -> None:
    text = torch.ones(4, 3, 8).bfloat16()
    text[2, 1, 1] = float("nan")
    table = table_of(tmp_path / "table", Cond({"text": text}), None)
    assert torch.equal(table.cond(1)["text"], text[1])
    with pytest.raises(ValueError, match=r"text in row 2 of .*table holds numbers that are not finite"):
        table.cond(2)
    with pytest.raises(ValueError, match=r"null\.text in .* not finite"):
        table_of(tmp_path / "other", Cond({"text": text[:2]}), Cond({"text": text[2:3]}))
