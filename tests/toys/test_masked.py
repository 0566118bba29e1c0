"""What is hidden in training, and the command that trains."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import Trainer, TrainerState

from fewstep.cli.language import train_text
from fewstep.core.interrupts import Interrupted
from fewstep.masked.decoding import decode
from fewstep.masked.load import load_text, load_tokenizer
from fewstep.masked.rules import TopK
from fewstep.toys import training
from fewstep.toys.masked import IGNORED, Hidden, canvas
from fewstep.toys.tasks import Facts, Sudoku, WordProblems, bundled_families
from fewstep.toys.tokens import EOS, MASK, PAD, word_tokenizer

FAMILIES = bundled_families() | {"word problems": WordProblems(suffix=0.25), "facts": Facts(statements=0.25)}
VOCABULARY = word_tokenizer(word for family in FAMILIES.values() for word in family.words).get_vocab()


@pytest.mark.parametrize("name", list(FAMILIES))
def test_only_the_open_region_is_hidden(name: str) -> None:
    hidden, shares = Hidden(((0, (FAMILIES[name],)),), VOCABULARY, run=64), []
    for number in range(256):
        item = FAMILIES[name].item(number)
        ids, labels = hidden(number)
        truth = torch.tensor([VOCABULARY[word] for word in (*item.prompt, *item.target)])
        masked = ids == VOCABULARY[MASK]
        assert torch.equal(ids[~masked], truth[~masked]) and torch.equal(labels[masked], truth[masked])
        assert (labels[~masked] == IGNORED).all() and masked.any()
        seen = [*range(len(item.prompt)), *(len(item.prompt) + place for place in item.given)]
        assert not masked[seen].any()
        shares.append(float(masked.sum()) / (len(truth) - len(seen)))
    quarters = torch.tensor(shares).quantile(torch.tensor([0.25, 0.5, 0.75]))
    assert torch.allclose(quarters, torch.tensor([0.25, 0.5, 0.75]), atol=1 / 12)  # a fact has 12 places
    assert torch.equal(
        hidden(5)[0], Hidden(((0, (FAMILIES[name],)),), VOCABULARY, run=32)(5)[0]
    )  # a function of the number


def test_every_batch_has_all_amounts_of_noise() -> None:
    """32 items in a row, wherever: some 32·(b − a) have a ≤ t < b, which chance alone would not give."""
    hidden = Hidden(((0, (Sudoku(givens=0),)),), VOCABULARY, run=32)
    for first in (0, 1000, 12_345):
        share = torch.tensor([float((hidden(first + k)[1] != IGNORED).sum()) / 36 for k in range(32)])
        assert abs(float(share.mean()) - 0.5) < 0.04


def test_families_take_turns() -> None:
    sudoku, facts = FAMILIES["sudoku"], FAMILIES["facts"]
    hidden = Hidden(((0, (sudoku,)), (3, (sudoku, facts)), (6, (facts,))), VOCABULARY, run=3)
    of_sudoku = [VOCABULARY["r1"] in hidden(number)[0] for number in range(24)]
    assert of_sudoku[::3] == of_sudoku[1::3] == of_sudoku[2::3] == [True, True, True, False, True, False, False, False]


def test_a_batch_is_padded_on_the_right() -> None:
    hidden = Hidden(((0, (FAMILIES["word problems"],)),), VOCABULARY, run=8)
    items = [hidden(number) for number in range(8)]
    batch = hidden.collate(items)
    for (ids, labels), row, mask, label in zip(
        items, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
    ):
        n = len(ids)
        assert (
            torch.equal(row[:n], ids)
            and (row[n:] == VOCABULARY[PAD]).all()
            and mask.tolist() == [1] * n + [0] * (len(row) - n)
        )
        assert torch.equal(label[:n], labels) and (label[n:] == IGNORED).all()


def test_the_canvas_of_an_item() -> None:
    item = WordProblems(suffix=1.0).item(0)
    ids = canvas(item, VOCABULARY)
    words = [word for i in ids.tolist() for word, place in VOCABULARY.items() if place == i]
    assert words == [*item.prompt, *[MASK] * 28, "the", "answer", "is", MASK]


TINY = {"items": 64, "batch": 8, "hidden": 16, "layers": 1, "heads": 2, "intermediate": 16, "save_every": 1e9}


def test_training_goes_on_where_it_stopped_and_can_be_decoded(tmp_path: Path) -> None:
    train_text(out=tmp_path / "whole", **TINY)
    whole = load_file(tmp_path / "whole" / "model" / "model.safetensors")
    receipt = json.loads((tmp_path / "whole" / "receipt.json").read_text())
    assert receipt["items"] == 64 and receipt["stages"][0] == [0, [{"name": "Sudoku", "seed": 0, "givens": 12}]]

    kept = tmp_path / "kept"
    with pytest.MonkeyPatch.context() as patch:
        save = Trainer._save_checkpoint

        def save_and_keep(self: Trainer, *args: object) -> None:
            save(self, *args)
            if self.state.global_step == 5:
                shutil.copytree(tmp_path / "cut" / "checkpoint-5", kept)

        patch.setattr(Trainer, "_save_checkpoint", save_and_keep)
        train_text(out=tmp_path / "cut", **TINY | {"save_every": 0})
    for other in (tmp_path / "cut").iterdir():
        if other.name != "settings.json":
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    shutil.copytree(kept, tmp_path / "cut" / "checkpoint-5")
    for changed in ({"seed": 1}, {"rate": 1e-4}, {"items": 128}, {"intermediate": 32}):
        with pytest.raises(ValueError, match="would go on with"):
            train_text(out=tmp_path / "cut", **TINY | changed, resume=True)
    killed = tmp_path / "cut" / "checkpoint-7"  # while it saved: the state, which comes last, is not there
    killed.mkdir()
    shutil.copy(kept / "model.safetensors", killed)
    train_text(out=tmp_path / "cut", **TINY, resume=True)
    resumed = load_file(tmp_path / "cut" / "model" / "model.safetensors")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)

    predictor, vocabulary = (
        load_text(tmp_path / "whole" / "model"),
        load_tokenizer(tmp_path / "whole" / "model").get_vocab(),
    )
    assert (predictor.mask_id, predictor.eos_ids) == (vocabulary[MASK], (vocabulary[EOS],)) and vocabulary == VOCABULARY
    row = decode(predictor, [canvas(Sudoku().item(0), vocabulary)], TopK())[0]
    assert row.nfe == 24 and predictor.mask_id not in row.tokens


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGINT) -> None:
    """Whoever trains is told to stop in that step."""
    on_step_end = training._Saves.on_step_end

    def told(self: training._Saves, args: object, state: TrainerState, control: object, **parts: object) -> object:
        if state.global_step == step:
            os.kill(os.getpid(), number)
        return on_step_end(self, args, state, control, **parts)

    monkeypatch.setattr(training._Saves, "on_step_end", told)


def trained(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_training_saves_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """And so does what was told to go on though nothing was saved yet."""
    train_text(out=tmp_path / "whole", **TINY, resume=True)
    with monkeypatch.context() as told:
        stop_at(told, 3, number)
        with pytest.raises(Interrupted, match=r"24 of 64 items.*--resume") as stopped:
            train_text(out=tmp_path / "run", **TINY)
    assert stopped.value.signal == number
    assert sorted(os.listdir(tmp_path / "run")) == ["checkpoint-3", "settings.json"]
    with pytest.raises(ValueError, match="there already is a run"):
        train_text(out=tmp_path / "run", **TINY)
    train_text(out=tmp_path / "run", **TINY, resume=True)
    whole, resumed = trained(tmp_path / "whole"), trained(tmp_path / "run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_model_that_could_not_be_written_comes_by_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without room: the last state is there, and with it the model."""
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "model":
            raise OSError(28, "No space left on device", str(source))
        replace(source, target)

    with monkeypatch.context() as disk:
        disk.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            train_text(out=tmp_path, **TINY)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-8", "settings.json"]
    kept = load_file(tmp_path / "checkpoint-8" / "model.safetensors")
    train_text(out=tmp_path, **TINY, resume=True)
    assert all(torch.equal(kept[name], tensor) for name, tensor in trained(tmp_path).items())
    assert (tmp_path / "receipt.json").exists()


def test_a_complete_run_is_left_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is read, and checked as any other that goes on."""
    caplog.set_level(logging.INFO)
    train_text(out=tmp_path, **TINY)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    assert "is complete" not in caplog.text
    train_text(out=tmp_path, **TINY, resume=True)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
    assert f"the run in {tmp_path} is complete: it has seen all its 64 items" in caplog.text
    with pytest.raises(ValueError, match="would go on with"):
        train_text(out=tmp_path, **TINY | {"rate": 1e-4}, resume=True)


def no_room(*args: object, **options: object) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_checkpoint_without_room_costs_nothing_but_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as disk:
        disk.setattr(Trainer, "_save_checkpoint", no_room)
        train_text(out=tmp_path / "run", **TINY)
        assert "checkpoint-8 could not be written (No space left on device): make room" in caplog.text
        stop_at(disk, 3)
        with pytest.raises(OSError, match=r"24 of 64 items; .*No space left.*--resume"):
            train_text(out=tmp_path / "stopped", **TINY)
    assert (tmp_path / "run" / "model").exists() and os.listdir(tmp_path / "stopped") == ["settings.json"]


def test_weights_that_are_not_finite_stop_the_training(tmp_path: Path) -> None:
    """Also those after the last step, which no further loss would show; the first has rate 0."""
    with pytest.raises(FloatingPointError, match=r"after step 2 .* lower --rate"):
        train_text(out=tmp_path, **TINY | {"items": 16, "rate": 1e30, "save_every": 0})
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-1", "settings.json"]


def test_what_a_user_does_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiple of twice"):
        train_text(out=tmp_path, **TINY | {"heads": 3})
    with pytest.raises(ValueError, match="--items starts at 1"):
        train_text(out=tmp_path, **TINY | {"items": 0})
