"""Latents on the disk, made by a stock pipeline: what is in the table, and what is tuned from it."""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import fewstep, tiny
from pictures import png, put
from safetensors.torch import load_file, save_file
from tiny_pipelines import CALLS, tiny_pipeline
from torch import nn

from fewstep.diffusion import runs
from fewstep.diffusion.asked import asked_of, in_turn, prompts_in
from fewstep.diffusion.captioned import captioned
from fewstep.diffusion.checkpoints import tune_checkpoint
from fewstep.diffusion.choices import Lessons, Run, Training
from fewstep.diffusion.cond import Cond
from fewstep.diffusion.data import Images, Rows, Table, load_images, save_images
from fewstep.diffusion.encoding import Encoder, encode_data, teacher_latents
from fewstep.diffusion.formats.folder import load, save
from fewstep.diffusion.formats.identity import identity_of
from fewstep.diffusion.model import Model
from fewstep.diffusion.objective import Loss
from fewstep.diffusion.pipeline import Pipeline
from fewstep.diffusion.walk import Consistency, Heun, Segments

PROMPTS = ["a red boot", "a small house beside a large tree at night", "a blue dress"]
FEW = Training(images=16, batch=8)
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries alone


@pytest.fixture(scope="module")
def sd(tmp_path_factory) -> Path:
    return tiny_pipeline("stable_diffusion", tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def dit(tmp_path_factory) -> Path:
    return tiny_pipeline("dit", tmp_path_factory.mktemp("dit"))


@pytest.fixture
def prompts(tmp_path) -> Path:
    (tmp_path / "prompts.txt").write_text("\n\n".join(PROMPTS) + "\n")
    return tmp_path / "prompts.txt"


@pytest.mark.parametrize("guidance", [None, 3.0])
def test_the_table_holds_what_the_stock_pipeline_makes_and_is_told(sd, tmp_path, guidance: float | None) -> None:
    """Row k is prompt k in turn with its own seed; the null row is what the pipeline itself guides with."""
    pipeline = load(sd).pipeline
    table = teacher_latents(
        pipeline, PROMPTS, tmp_path / "table", count=5, seed=7, steps=2, guidance=guidance, precision="no"
    )
    wanted = in_turn(PROMPTS, range(5))
    theirs = pipeline.latents(wanted, range(7, 12), steps=2, guidance=guidance)
    assert torch.allclose(table.raw(range(5)), theirs, atol=1e-6) and len(table) == 5
    cond, null = pipeline.conditions(wanted)
    for k in range(5):
        assert torch.allclose(table.cond(k)["encoder_hidden_states"], cond.rows["encoder_hidden_states"][k], atol=1e-6)
    assert torch.allclose(table.null.rows["encoder_hidden_states"], null.rows["encoder_hidden_states"], atol=1e-6)
    assert torch.equal(table.shuffled().null.rows["encoder_hidden_states"], table.null.rows["encoder_hidden_states"])
    with pytest.raises(IndexError):
        table.raw([5])
    receipt = json.loads((tmp_path / "table" / "receipt.json").read_text())
    assert receipt["notes"] == {"calls": 2, "rows": 5 * 2 * (1 if guidance is None else 2)}
    assert table.conditions.maker == identity_of(sd)


def test_rows_of_different_lengths_are_padded_to_the_longest_of_all(tmp_path) -> None:
    """Whichever part they are in."""
    model = load(tiny_pipeline("flux", tmp_path / "flux"), call=CALLS["flux"])
    table = teacher_latents(model.pipeline, PROMPTS, tmp_path / "table", count=4, seed=0, steps=1, precision="no")
    assert table.shape == model.denoiser.space.shape == (16, 16)
    assert set(table.cond(0)) == set(model.denoiser.takes) and {"img_ids", "txt_ids"} <= set(table.shared)
    batch = next(iter_batches(table))
    with torch.no_grad():
        ours = model.denoiser(batch.x0 + batch.eps, torch.ones(4), batch.cond)
    assert ours.shape == batch.x0.shape and ours.isfinite().all()


def iter_batches(table: Table):
    return Rows(table, lambda z: z.exp(), seed=0).batches(0, 4, 4)


def encoders() -> list[str]:
    """The text encoders and decoders that are in memory."""
    gc.collect()
    kinds = [type(each).__name__ for each in gc.get_objects() if isinstance(each, nn.Module)]
    return [kind for kind in kinds if "CLIPText" in kind or "Autoencoder" in kind]


@pytest.mark.parametrize(
    ("loss", "walk"),
    [
        (Loss(), Consistency()),
        (Loss(segments=2, hop="heun"), Segments(2)),
        (Loss(segments="any", hop="euler"), Segments(4)),
    ],
)
def test_a_pipeline_is_tuned_from_prompts_alone(sd, prompts, tmp_path, monkeypatch, loss: Loss, walk) -> None:
    """The student is a whole pipeline that is asked by prompts; nothing but the network is in memory while it is tuned."""
    there: list[list[str]] = []
    tune, guided = runs.tune, []

    def tuned(denoiser, data, **options):
        there.append(encoders())
        guided.append(getattr(options["hop"], "teacher", None))
        yield from tune(denoiser, data, **options)

    monkeypatch.setattr(runs, "tune", tuned)
    hops = loss.is_taught
    lessons = Lessons("teacher", prompts=prompts, guidance=3.0, teacher_images=6, teacher_steps=2)
    tune_checkpoint(str(sd), lessons, Run(tmp_path / "run", precision="no"), loss=loss, training=FEW)
    assert there == [[]]
    assert not hops or (guided[0].scale == 3.0 and torch.equal(
        guided[0].null.rows["encoder_hidden_states"], Table(tmp_path / "run" / "latents").null.rows["encoder_hidden_states"]
    ))  # fmt: skip
    student = load(tmp_path / "run")
    assert student.walk == walk and student.pipeline.prompted
    cond, _ = student.pipeline.conditions(PROMPTS[:2])
    assert student.sample([0, 1], cond).shape == (2, 3, 16, 16)
    receipt = json.loads((tmp_path / "run" / "receipt.json").read_text())
    assert receipt["network_calls"]["teacher, for latents"] == 2 and receipt["network_rows"]["teacher, for latents"] == 24


def test_a_run_from_prompts_goes_on_bit_equal_without_its_encoders(sd, prompts, tmp_path, monkeypatch) -> None:
    """The latents are made once; the text encoder is asked no more."""
    lessons = Lessons("teacher", prompts=prompts, teacher_images=6, teacher_steps=1)
    settings = {"loss": Loss(segments=2), "training": FEW}
    whole = tune_checkpoint(str(sd), lessons, Run(tmp_path / "whole", precision="no"), **settings)
    tune = runs.tune

    def killed(denoiser, data, **options):
        for step in tune(denoiser, data, **options):
            yield step
            raise KeyboardInterrupt

    monkeypatch.setattr(runs, "tune", killed)
    with pytest.raises(KeyboardInterrupt):
        tune_checkpoint(str(sd), lessons, Run(tmp_path / "run", precision="no", save_every=0), **settings)
    monkeypatch.setattr(runs, "tune", tune)
    monkeypatch.setattr("fewstep.diffusion.pipeline.Pipeline.latents", None)
    resumed = tune_checkpoint(str(sd), lessons, Run(tmp_path / "run", precision="no", resume=True), **settings)
    assert all(map(torch.equal, whole.denoiser.state_dict().values(), resumed.denoiser.state_dict().values()))
    with pytest.raises(ValueError, match=r"was made with guidance = None, not 2\.0"):
        tune_checkpoint(
            str(sd), Lessons("teacher", prompts=prompts, guidance=2.0, teacher_images=6, teacher_steps=1),
            Run(tmp_path / "run", precision="no", resume=True), **settings,
        )  # fmt: skip


def test_a_pipeline_of_classes_is_asked_for_all_of_them_or_for_those_in_a_file(dit, tmp_path) -> None:
    model = load(dit)
    assert asked_of(model.pipeline, model.denoiser, None) == list(range(1000))
    assert asked_of(model.pipeline, model.denoiser, ["7", "3"]) == [7, 3]
    (tmp_path / "classes.txt").write_text("7\n3\n")
    lessons = Lessons("teacher", prompts=tmp_path / "classes.txt", guidance=2.0, teacher_images=3, teacher_steps=1)
    tune_checkpoint(
        str(dit), lessons, Run(tmp_path / "run", precision="no"), loss=Loss(segments=2, hop="euler"), training=FEW
    )
    table = Table(tmp_path / "run" / "latents")
    assert [int(table.cond(k)["class_labels"]) for k in range(3)] == [7, 3, 7] and table.label_range == (3, 7)
    assert int(table.null.rows["class_labels"]) == 1000
    with pytest.raises(ValueError, match="takes classes, 0 to 999, not 'a boot'"):
        asked_of(model.pipeline, model.denoiser, ["a boot"])
    with pytest.raises(ValueError, match="takes classes, 0 to 999, not '1000'"):
        asked_of(model.pipeline, model.denoiser, ["1000"])


def test_prompts_are_the_lines_of_a_file(prompts, tmp_path) -> None:
    assert prompts_in(prompts) == PROMPTS
    (tmp_path / "windows.txt").write_bytes("\ufeffa boot\r\nein Stiefel für dich\r\n".encode())
    assert prompts_in(tmp_path / "windows.txt") == ["a boot", "ein Stiefel für dich"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b" \n\n", "there is no prompt in"),
        (b"\xff\xd8\xff\xe0", "is no text"),
        (b"a\0b", "zero bytes"),
        (None, "is no file"),
    ],
)
def test_a_file_without_prompts_is_one_sentence(tmp_path, content: bytes | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        prompts_in(tmp_path / "prompts.txt")
    with pytest.raises(ValueError, match="is a folder; give a text file with one prompt per line"):
        prompts_in(tmp_path)


@pytest.mark.parametrize(
    ("kind", "settings", "loss", "sentence"),
    [
        ("sd", {}, {}, "takes prompts; give a text file with one per line, with --prompts"),
        ("bundled", {"prompts": True}, {}, "--prompts is for pipelines that make latents"),
        ("bundled", {"teacher_steps": 3}, {}, "--teacher-steps is for pipelines that make latents"),
        ("sd", {"prompts": True, "null_label": 3, "guidance": 2.0}, {}, "leave --null-label out"),
        ("sd", {"prompts": True, "mirror": True}, {}, "--mirror flips pictures"),
        ("sd", {"data": "data.npz"}, {}, "takes latents; run `fewstep encode"),
        ("sd", {"data": "paths"}, {"segments": 2}, "do not take prompts yet"),
        ("clean", {"prompts": True}, {}, "predicts the clean sample"),
        ("unguided", {"prompts": True, "dropped": 0.1}, {}, "has no empty prompt or class; leave --dropped"),
        ("unguided", {"prompts": True, "guidance": 2.0}, {}, "no classifier-free guidance; leave --guidance out"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_said_before_anything_is_made(
    sd, prompts, tmp_path, monkeypatch, kind: str, settings: dict, loss: dict, sentence: str
) -> None:
    monkeypatch.setattr("fewstep.diffusion.pipeline.Pipeline.latents", None)
    if kind == "clean":
        shutil.copytree(sd, tmp_path / "clean")
        file = tmp_path / "clean" / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "sample"}))
    if kind == "unguided":
        manner = replace(load(sd).pipeline.manner, guide=None, null=None)
        monkeypatch.setattr("fewstep.diffusion.pipeline.Pipeline.manner", manner)
    checkpoint = {"bundled": "bundled", "clean": str(tmp_path / "clean")}.get(kind, str(sd))
    said = {"data": "teacher"} | settings | ({"prompts": prompts} if "prompts" in settings else {})
    with pytest.raises(ValueError, match=sentence):
        tune_checkpoint(checkpoint, Lessons(**said), Run(tmp_path / "run"), loss=Loss(**loss), training=FEW)
    assert not (tmp_path / "run").exists()


def test_a_table_of_another_pipeline_is_refused(sd, dit, tmp_path) -> None:
    """Though its latents have the same shape; a student's own is the same as its teacher's."""
    model = load(sd)
    teacher_latents(model.pipeline, PROMPTS, tmp_path / "table", count=3, seed=0, steps=1)
    with pytest.raises(ValueError, match="encoded by a pipeline with other encoders"):
        tune_checkpoint(str(dit), Lessons(str(tmp_path / "table")), Run(tmp_path / "run"), training=FEW)
    save(Model(model.denoiser, Heun(), pipeline=model.pipeline), tmp_path / "copy")
    assert identity_of(tmp_path / "copy") == identity_of(sd) != identity_of(dit)
    lessons = Lessons(str(tmp_path / "table"), dropped=0.5)
    made = tune_checkpoint(str(tmp_path / "copy"), lessons, Run(tmp_path / "run", precision="no"), training=FEW)
    assert made.pipeline is not None and tiny().takes == {}


def test_a_teacher_with_another_text_encoder_is_refused(sd, prompts, tmp_path, monkeypatch) -> None:
    """What it would tell its network for a prompt means nothing to the student's."""
    monkeypatch.setattr("fewstep.diffusion.pipeline.Pipeline.latents", None)
    shutil.copytree(sd, tmp_path / "other")
    file = tmp_path / "other" / "text_encoder" / "model.safetensors"
    save_file({name: value + 1 for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    lessons = Lessons("teacher", prompts=prompts, teacher=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"has other encoders or decoders than the checkpoint"):
        tune_checkpoint(str(sd), lessons, Run(tmp_path / "run"), training=FEW)
    assert not (tmp_path / "run").exists()


def test_what_hangs_on_the_prompts_and_is_told_for_all_rows_at_once_is_refused(sd, monkeypatch) -> None:
    """It would be that of the first prompts for all others."""
    pipeline = load(sd).pipeline
    conditions = pipeline.conditions(PROMPTS)[0]
    first = replace(conditions, shared={"lengths": (3, 4)})
    monkeypatch.setattr(pipeline, "_manner", replace(pipeline.manner, first=first))
    with pytest.raises(ValueError, match="another lengths for other prompts"):
        pipeline.conditions(PROMPTS[:1])


@pytest.mark.parametrize(
    "call", [{"guidance_scale": 7.0}, {"prompt": "a"}, {"num_inference_steps": 3, "return_dict": False}]
)
def test_what_fewstep_tells_a_pipeline_itself_is_no_argument(sd, call: dict) -> None:
    """It would be passed over in silence."""
    with pytest.raises(ValueError, match=f"fewstep itself sets {', '.join(call)}; leave that out"):
        load(sd, call=call)


COLOURS = {"a.png": (255, 0, 0), "b.png": (0, 0, 255), "c.png": (20, 200, 90)}


def pictures(folder: Path, captions: bool = True) -> Path:
    """Pictures of several sizes, one of them broken, with captions."""
    files = {name: png(colour, (16 + 4 * k, 16)) for k, (name, colour) in enumerate(COLOURS.items())}
    said = [{"file_name": name, "text": f"a {name[0]} dress"} for name in [*files, "x.png"]]
    more = {"metadata.jsonl": "\n".join(map(json.dumps, said)).encode()} if captions else {}
    put(folder, files | {"x.png": b"broken"} | more)
    return folder


@pytest.mark.parametrize("family", ["stable_diffusion", "flux"])
def test_encoded_pictures_are_what_the_pipelines_own_decoder_makes_of_its_own_encoder(tmp_path, family: str) -> None:
    """The tail on the latents in the table is the reconstruction by the VAE alone; conditions are those of the captions."""
    folder, call = tiny_pipeline(family, tmp_path / family), CALLS.get(family, {})
    table = encode_data(str(folder), str(pictures(tmp_path / "data")), tmp_path / "table", call=call)
    model = load(folder, call=call)
    vae, x0 = model.pipeline.stock.vae, table.raw(range(3))
    shown = load_images(tmp_path / "data", channels=3, size=16).raw(range(3)).float() / 127.5 - 1
    with torch.no_grad():
        theirs = vae.decode(vae.encode(shown).latent_dist.mode()).sample
    theirs = ((theirs / 2 + 0.5).clamp(0, 1) * 255).round()
    assert (model.pipeline.decode(x0).float() - theirs).abs().max() <= 1 and theirs.std() > 1
    cond, null = model.pipeline.conditions([f"a {name[0]} dress" for name in COLOURS])
    for name in cond.rows:
        ours = torch.stack([table.cond(k)[name] for k in range(3)])
        assert torch.allclose(ours[:, : cond.rows[name].shape[1]] if ours.ndim > 1 else ours, cond.rows[name], atol=1e-6)
    assert (null is None) == (table.null is None) and len(table) == 3
    assert json.loads((tmp_path / "table" / "receipt.json").read_text())["notes"] == {"skipped": 1}
    assert table.conditions.maker == identity_of(folder)


def test_encoding_goes_on_and_its_table_tunes_the_pipeline(sd, tmp_path, monkeypatch) -> None:
    """Captions are dropped at training time, guidance is tuned in, and no encoder is in memory then."""
    monkeypatch.setattr("fewstep.diffusion.encoding.PART", 1)
    data, encode, there = pictures(tmp_path / "data"), Pipeline.encode, []

    def stopped(self: Pipeline, shown: torch.Tensor) -> torch.Tensor:
        there.append(len(shown))
        if len(there) == 2:
            raise RuntimeError("out of power")
        return encode(self, shown)

    monkeypatch.setattr(Pipeline, "encode", stopped)
    with pytest.raises(RuntimeError, match="out of power"):
        encode_data(str(sd), str(data), tmp_path / "table")
    with pytest.raises(ValueError, match="is not complete; repeat the command that began it"):
        tune_checkpoint(str(sd), Lessons(str(tmp_path / "table")), Run(tmp_path / "run"), training=FEW)
    table = encode_data(str(sd), str(data), tmp_path / "table")
    assert len(there) == 4 and len(table) == 3
    tune, seen = runs.tune, []

    def tuned(*args, **options):
        seen.append((encoders(), options["dropped"]))
        yield from tune(*args, **options)

    monkeypatch.setattr(runs, "tune", tuned)
    lessons = Lessons(str(tmp_path / "table"), guidance=2.0, dropped=0.3)
    tune_checkpoint(str(sd), lessons, Run(tmp_path / "run", precision="no"), loss=Loss(hop="heun"), training=FEW)
    assert seen == [([], 0.3)] and load(tmp_path / "run").pipeline.prompted


def test_a_pipeline_of_classes_encodes_classes(dit, tmp_path) -> None:
    save_images(
        Images(torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8), torch.tensor([5, 0, 999])), tmp_path / "a.npz"
    )
    table = encode_data(str(dit), str(tmp_path / "a.npz"), tmp_path / "table")
    assert [int(table.cond(k)["class_labels"]) for k in range(3)] == [5, 0, 999]
    save_images(Images(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.tensor([1000])), tmp_path / "b.npz")
    with pytest.raises(ValueError, match="has the class 1000, and the pipeline knows 0 to 999"):
        encode_data(str(dit), str(tmp_path / "b.npz"), tmp_path / "other")
    save_images(Images(torch.zeros(1, 3, 16, 16)), tmp_path / "latents.npz")
    with pytest.raises(ValueError, match="latents"):
        encode_data(str(dit), str(tmp_path / "latents.npz"), tmp_path / "other")
    put(tmp_path / "folders", {f"{kind}/a.png": png((9, 9, 9), (16, 16)) for kind in ("7", "3")})
    assert captioned(str(tmp_path / "folders"), (3, 16, 16), load(dit)).asked == [3, 7]
    save_images(Images(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)), tmp_path / "c.npz")
    with pytest.raises(ValueError, match="has no classes, which this pipeline needs"):
        encode_data(str(dit), str(tmp_path / "c.npz"), tmp_path / "other")


def test_all_prompts_are_asked_for_where_a_pipeline_pads_to_no_length(sd, monkeypatch) -> None:
    """The longest row need not be that of the longest text: here it is one of many tokens and few letters."""
    pipeline, asked = load(sd).pipeline, ["a", "zzzzzz", "boot boot boot boot"]
    lengths = {"a": 1, "zzzzzz": 9, "boot boot boot boot": 4}

    def conditions(rows: list[str]) -> tuple[Cond, None]:
        longest = max(lengths[row] for row in rows)
        return Cond({"text": torch.ones(len(rows), longest, 2), "mask": torch.ones(len(rows), longest)}), None

    monkeypatch.setattr(pipeline, "conditions", conditions, raising=False)
    rows = Encoder(pipeline, asked)(asked[:1]).rows
    assert rows["text"].shape == (1, 9, 2) and rows["mask"].tolist() == [[1] + [0] * 8]


def test_sound_is_not_encoded(folders, tmp_path) -> None:
    with pytest.raises(ValueError, match="makes samples of 2x64"):
        encode_data(str(folders("dance_diffusion")), str(tmp_path), tmp_path / "table")


def test_what_cannot_be_encoded_is_said_before_anything_is_made(sd, tmp_path, monkeypatch) -> None:
    save_images(Images(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)), tmp_path / "a.npz")
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(Pipeline, "encode", None)
    for checkpoint, data, sentence in (
        (sd, pictures(tmp_path / "data", captions=False), "4 of 4 pictures in .* have no caption, the first is a.png"),
        (sd, tmp_path / "a.npz", "has no captions, which this pipeline needs"),
        (sd, tmp_path / "missing", "there is no image folder"),
        (sd, tmp_path / "empty", "there are no pictures in"),
        ("bundled", tmp_path / "a.npz", "takes pictures as they are; give .* to --data"),
    ):
        with pytest.raises(ValueError, match=sentence):
            encode_data(str(checkpoint), str(data), tmp_path / "table")
    put(tmp_path / "broken", {"a.png": b"no picture", "a.txt": b"a red boot"})
    with pytest.raises(
        ValueError, match="would be empty, because everything was skipped"
    ):  # and nothing is in the way of the next
        encode_data(str(sd), str(tmp_path / "broken"), tmp_path / "table")
    assert not (tmp_path / "table").exists()
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds other files; choose another"):
        encode_data(str(sd), str(pictures(tmp_path / "more")), tmp_path / "table")
    assert [path.name for path in (tmp_path / "table").glob("[!.]*")] == ["letter.txt"]


def test_a_pipeline_is_called_as_it_is_wanted_from_the_command_line_on(tmp_path, monkeypatch, capsys) -> None:
    """What `--call` says stays with the student, and another size is another sample."""
    folder, data = tiny_pipeline("flux", tmp_path / "flux"), pictures(tmp_path / "data")
    (tmp_path / "prompts.txt").write_text("a red boot\n")
    monkeypatch.chdir(tmp_path)
    call = "--call height=8 width=16 max_sequence_length=12"
    fewstep(monkeypatch, f"encode {folder} {data} --out table {call}")
    assert "next: fewstep tune" in capsys.readouterr().out and Table("table").shape == (8, 16)
    fewstep(monkeypatch, f"tune {folder} --data table --out run --images 8 --batch 8 --precision no {call}")
    student = load("run")
    assert student.pipeline.call == {"height": 8, "width": 16, "max_sequence_length": 12}
    cond, _ = student.pipeline.conditions(["a red boot"])
    assert student.sample([0], cond).shape == (1, 3, 8, 16)
    lessons = Lessons("table", call=("height=16", "width=16", "max_sequence_length=12"))
    with pytest.raises(ValueError, match="holds samples of 8x16, the model takes 16x16; encode the pictures"):
        tune_checkpoint(str(folder), lessons, Run(tmp_path / "other"), training=FEW)
    with pytest.raises(ValueError, match="--call is for pipelines that make latents"):
        tune_checkpoint("bundled", Lessons("bundled", call=("height=16",)), Run(tmp_path / "other"), training=FEW)
