"""Image checkpoints that are broken, or made to break things: one sentence each, little memory, no traceback."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import fewstep, tiny
from safetensors.torch import load_file, save_file

from fewstep.diffusion.formats.folder import load, save
from fewstep.diffusion.model import Model
from fewstep.diffusion.walk import Heun

INDEX, CONFIG, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
MEGABYTES, SECONDS = 300, 30
Break = Callable[[Path], object]


def text(file: str, content: str | bytes) -> Break:
    return lambda model: (model / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def says(file: str, **settings: object) -> Break:
    """The JSON file with other settings."""
    return lambda model: (model / file).write_text(json.dumps(json.loads((model / file).read_text()) | settings))


def instead(file: str, make: Break) -> Break:
    """Something else in the place of a file."""
    return lambda model: ((model / file).unlink(), make(model / file))


def header(entries: object, data: bytes = b"") -> bytes:
    """A safetensors file: the length of its header, the header, the data."""
    said = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(said)) + said + data


def tensor(start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - start) // 4], "data_offsets": [start, end]}


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Break:
    """The weights after a change in place."""

    def breakage(model: Path) -> None:
        tensors = load_file(model / WEIGHTS)
        change(tensors)
        save_file(tensors, model / WEIGHTS)

    return breakage


def in_bin(content: Callable[[dict[str, torch.Tensor]], object]) -> Break:
    """A .bin file that holds something made of the weights."""

    def breakage(model: Path) -> None:
        tensors = load_file(model / WEIGHTS)
        (model / WEIGHTS).unlink()
        torch.save(content(tensors), (model / WEIGHTS).with_suffix(".bin"))

    return breakage


def in_shards(index: object, files: tuple[str, ...] = ()) -> Break:
    def breakage(model: Path) -> None:
        for name in files:
            save_file(load_file(model / WEIGHTS), model / "unet" / name)
        (model / WEIGHTS).rename(model / "elsewhere.safetensors")
        (model / f"{WEIGHTS}.index.json").write_text(json.dumps(index))

    return breakage


def bomb(model: Path) -> None:
    """An archive of torch's kind, packed: two megabytes become five hundred."""
    file = (model / WEIGHTS).with_suffix(".bin")
    torch.save(load_file(model / WEIGHTS), file)
    (model / WEIGHTS).unlink()
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    large = next(name for name in entries if "/data/" in name)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in entries.items():
            with archive.open(name, "w") as entry:
                for part in [bytes(1 << 24)] * 30 if name == large else [content]:
                    entry.write(part)


CASES: list[tuple[Break, str]] = [
    *(
        (text(INDEX, content), sentence)
        for content, sentence in (
            ("", "not valid JSON"), ("[]", "holds a list"), ("null", "holds a NoneType"), ('"text"', "holds a str"),
            ("[" * 200_000, "nested without end"), ('{"a":' * 200_000, "nested without end"),
            ('{"a":' * 100 + "1" + "}" * 100, "nested more than"), ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
            (b"\xff\xfe\x00", "not valid JSON"), (" " * (17 << 20), "larger than 16 MiB"),
        )
    ),
    *((text(file, '{"a":' * 200_000), "nested without end") for file in (CONFIG, SCHEDULER)),  # the same reader
    *((instead(INDEX, make), "there is no") for make in (Path.mkdir, lambda path: path.symlink_to("nowhere"))),
    *((instead(file, os.mkfifo), "there is no") for file in (INDEX, CONFIG, SCHEDULER)),
    (says(INDEX, unet=["diffusers", 3]), "not a library and a class"),
    (says(INDEX, unet=[None, "UNet2DModel"]), "not a library and a class"),
    (says(INDEX, unet="UNet2DModel"), "fewstep tunes pipelines"),
    (says(INDEX, unet=["its_own_code", "UNet2DModel"]), r"its_own_code\.UNet2DModel"),
    (says(INDEX, **{"../unet": ["diffusers", "UNet2DModel"]}), "not a library and a class"),
    (says(INDEX, second=["diffusers", "UNet2DModel"]), "one network"),
    (says(INDEX, _class_name=3, unet=["diffusers", "UNet2DConditionModel"]), "UNet2DConditionModel"),
    (says(INDEX, text_encoder=["transformers", "CLIPTextModel"]), "has no folder text_encoder"),
    (says(INDEX, text_encoder=["its_own_code", "Encoder"]), r"a its_own_code\.Encoder, which neither diffusers nor"),
    (says(INDEX, _class_name=["pipeline", "Own"], vae=["diffusers", "AutoencoderKL"]), "fewstep runs no code"),
    (says(INDEX, _class_name="DiffusionPipeline", vae=["diffusers", "AutoencoderKL"]), "fewstep runs no code"),
    (says(CONFIG, _class_name="UNet2DConditionModel"), "describes a 'UNet2DConditionModel'"),
    (says(CONFIG, _class_name="Transformer2DModel", norm_type="layer_norm"), "describes a 'Transformer2DModel'"),
    (says(CONFIG, _class_name=["UNet2DModel"]), "describes a "),
    (says(CONFIG, quantization_config={"quant_method": "bitsandbytes"}), "quantised"),
    (says(CONFIG, quantization_config="yes"), "quantised"),
    (says(CONFIG, in_channels="three"), "in_channels = 'three'"),
    (says(CONFIG, in_channels=-1), "in_channels = -1"),
    (says(CONFIG, in_channels=10**400), "in_channels = 1000"),
    (says(CONFIG, in_channels=0), "cannot be called|describes no|of another shape"),
    (says(CONFIG, in_channels={"a": 1}), "in_channels = {"),
    (says(CONFIG, in_channels=3), "makes 1x8x8 of 3x8x8"),
    (says(CONFIG, in_channels=3, out_channels=3), "of another shape, such as conv_in.weight"),
    (says(CONFIG, out_channels=5), "makes 5x8x8 of 1x8x8"),
    (says(CONFIG, block_out_channels=8), "block_out_channels = 8"),
    (says(CONFIG, block_out_channels=[]), "describes no"),
    (says(CONFIG, block_out_channels=[[8], [16]]), r"block_out_channels = \[\[8"),
    (says(CONFIG, block_out_channels=[10**9, 10**9]), "block_out_channels = "),
    (says(CONFIG, block_out_channels=[1 << 20, 1 << 20]), "of another shape"),
    (says(CONFIG, block_out_channels=["8", "16"]), "describes no"),
    (says(CONFIG, layers_per_block=1 << 20), "more layers than"),
    (says(CONFIG, layers_per_block=0), "cannot be called"),
    (says(CONFIG, layers_per_block=2), r"missing, such as down_blocks\.0\.resnets\.1"),
    (says(CONFIG, down_block_types=["DownBlock2D"] * 100_000), "more layers than"),
    (says(CONFIG, down_block_types=["NoBlock", "NoBlock"]), "describes no"),
    (says(CONFIG, down_block_types=["DownBlock2D"]), "describes no"),
    (says(CONFIG, norm_num_groups=0), "describes no|cannot be called"),
    (says(CONFIG, norm_num_groups=7), "describes no"),
    (says(CONFIG, norm_eps=float("nan")), "norm_eps = nan"),
    (says(CONFIG, norm_eps="1e-5"), "norm_eps = '1e-5'"),
    (says(CONFIG, act_fn="no_such_function"), "describes no"),
    (says(CONFIG, attention_head_dim=0), "describes no|cannot be called"),
    (says(CONFIG, dropout=2.0), "describes no"),
    (says(CONFIG, center_input_sample="no"), "center_input_sample = 'no'"),
    (says(CONFIG, class_embed_type="timestep"), "cannot be called"),
    (says(CONFIG, num_class_embeds=3), r"missing, such as class_embedding\.weight"),
    (says(CONFIG, time_embedding_type="learned", num_train_timesteps=1000), "cannot be called|missing"),
    *((says(CONFIG, sample_size=size), "sample_size = ")
      for size in (0, -8, 16_385, "8", [8], 7.5, True)),
    (says(CONFIG, sample_size=7), "cannot be called"),
    (text(CONFIG, '{"_class_name": "UNet2DModel"}'), "describes more layers|missing"),
    (says(SCHEDULER, _class_name="ScoreSdeVeScheduler", sigma_min=0), "sigma_min"),
    (says(SCHEDULER, _class_name="KarrasVeScheduler"), "KarrasVeScheduler, which fewstep does not read"),
    (says(SCHEDULER, _class_name=5), "_class_name = 5"),
    (says(SCHEDULER, _class_name="VQDiffusionScheduler", beta_schedule=None), "does not say how the network was trained"),
    *((says(SCHEDULER, num_train_timesteps=steps), "num_train_timesteps = ")
      for steps in ("1000", 1, 10**12, 1000.5, float("nan"))),
    (says(SCHEDULER, beta_start="a"), "beta_start = 'a'"),
    (says(SCHEDULER, beta_end=float("nan")), "beta_end = nan"),
    (says(SCHEDULER, beta_end=5), "beta_end = 5"),
    (says(SCHEDULER, beta_schedule="cubic"), "beta_schedule = 'cubic'"),
    (says(SCHEDULER, beta_schedule=["linear"]), "beta_schedule = "),
    *((says(SCHEDULER, trained_betas=betas), "trained_betas = ")
      for betas in ("x", [], [[0.1]], [0.1, "b"], [0.5] * 200_000)),
    (says(SCHEDULER, prediction_type=3), "prediction_type = 3"),
    (says(SCHEDULER, prediction_type="everything"), "everything"),
    (says(SCHEDULER, rescale_betas_zero_snr="yes"), "rescale_betas_zero_snr = 'yes'"),
    (says(SCHEDULER, _class_name="CMStochasticIterativeScheduler", sigma_data=0), "sigma_data = 0"),
    (says(SCHEDULER, _class_name="CMStochasticIterativeScheduler", sigma_min=90.0), "sigma_max = 80"),
    (says(SCHEDULER, _class_name="EDMEulerScheduler", prediction_type="v_prediction"), "not known, only epsilon"),
    (says(SCHEDULER, _class_name="EDMEulerScheduler", sigma_max=-1), "sigma_max = -1"),
    (says(SCHEDULER, _class_name="EDMEulerScheduler", sigma_max="80"), "sigma_max = '80'"),
    (says(SCHEDULER, _class_name="FlowMatchEulerDiscreteScheduler", shift=float("inf")), "shift = inf"),
    (text(WEIGHTS, b""), "cut off or no safetensors"),
    (text(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"), "cut off or no safetensors"),
    (lambda model: os.truncate(model / WEIGHTS, 5000), "cut off or no safetensors"),
    (lambda model: os.truncate(model / WEIGHTS, os.path.getsize(model / WEIGHTS) - 1), "cut off or no safetensors"),
    (text(WEIGHTS, struct.pack("<Q", 1 << 60) + b"{}"), "cut off or no safetensors"),
    (text(WEIGHTS, header(b"[" * 200_000)), "cut off or no safetensors"),
    (text(WEIGHTS, header({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12))), "cut off or no safetensors"),
    (text(WEIGHTS, header({"a": tensor(0, 1 << 50)}, bytes(8))), "cut off or no safetensors"),
    (text(WEIGHTS, header({"a": tensor(0, 8, "F7")}, bytes(8))), "cut off or no safetensors"),
    (text(WEIGHTS, header({})), "more layers than it has weights \\(0\\)"),
    (text(WEIGHTS, header({str(k): tensor(0, 0) for k in range(99)})), "missing, such as conv_in.bias, 99 unknown"),
    (instead(WEIGHTS, Path.mkdir), "there are no weights"),
    (instead(WEIGHTS, os.mkfifo), "there are no weights"),
    (weights(lambda tensors: tensors["conv_in.bias"].fill_(float("nan"))), r"conv_in\.bias in .* not finite"),
    (weights(lambda tensors: tensors.update({"conv_in.bias": tensors["conv_in.bias"].char()})), "1 quantised"),
    (weights(lambda tensors: tensors.pop("conv_out.weight")), r"1 missing, such as conv_out\.weight"),
    (in_bin(lambda tensors: list(tensors.values())), "tensors by their names"),
    (in_bin(lambda tensors: {"state_dict": tensors}), "tensors by their names"),
    (in_bin(lambda tensors: tensors | {3: torch.ones(1)}), "tensors by their names"),
    (in_bin(lambda tensors: tensors | {"conv_in.bias": torch.ones(8).to_sparse()}), "tensors by their names"),
    (in_bin(lambda tensors: tensors | {"conv_in.bias": torch.ones(1).expand(1 << 40)}), "larger than the file"),
    (in_bin(lambda tensors: tensors | {"conv_in.bias": Path("x")}), "more than plain tensors"),
    (in_bin(lambda tensors: tiny().network), "more than plain tensors"),
    (lambda model: ((model / WEIGHTS).unlink(), (model / WEIGHTS).with_suffix(".bin").write_bytes(b"\x80")), "damaged"),
    (bomb, "compressed archive"),
    (in_shards({}), "no weight_map"),
    (in_shards({"weight_map": ["a"]}), "no weight_map"),
    (in_shards({"weight_map": {"conv_in.bias": 3}}), "no weight_map"),
    (in_shards({"weight_map": {"conv_in.bias": "../elsewhere.safetensors"}}), "no weight file beside it"),
    (in_shards({"weight_map": {"conv_in.bias": "code.py"}}), "no weight file beside it"),
    (in_shards({"weight_map": {"conv_in.bias": "a.safetensors"}}), "is missing in"),
    (in_shards({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}, ("a.safetensors", "b.safetensors")),
     "stands in two"),
]  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "model"
    save(Model(tiny(), Heun()), folder)
    return folder


@pytest.fixture
def model(sound, tmp_path) -> Path:
    return shutil.copytree(sound, tmp_path / "model")


@pytest.mark.parametrize(("breakage", "sentence"), CASES)
def test_one_sentence_and_little_memory(model, breakage: Break, sentence: str) -> None:
    breakage(model)
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=sentence) as refused:
        load(model)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    said = str(refused.value)
    assert "\n" not in said and len(said) < 500 and "weights_only" not in said
    assert grown < MEGABYTES and time.process_time() - began < SECONDS


@pytest.mark.parametrize(
    "walk",
    [
        None, 3, "Segments", [], {}, {"name": "Segments"}, {"name": ["Segments"], "steps": 2}, {"name": "Heun", "steps": 2},
        *({"name": "Segments", "steps": steps} for steps in (None, 0, True, 2.5, float("inf"), "4", 10**9)),
        {"name": "Consistency", "steps": 2, "middle": "0.8"}, {"name": "Segments", "steps": 2, "more": 1},
    ],
)  # fmt: skip
def test_a_note_says_how_a_student_is_sampled(model, walk: object) -> None:
    (model / "fewstep.json").write_text(json.dumps({"format": 1, "walk": walk}))
    with pytest.raises(ValueError, match=r"fewstep\.json does not say how the student is sampled"):
        load(model)


@pytest.mark.parametrize(
    ("command", "breakage"),
    [
        ("sample model --out out", text(INDEX, "[" * 200_000)),
        ("tune model --data data.npz --out out", text(WEIGHTS, b"")),
        ("export model --out out", weights(lambda tensors: tensors["conv_in.bias"].fill_(float("inf")))),
        ("settle model --out out", bomb),
        ("sample model --out out", says(CONFIG, sample_size=None)),
        ("measure model --data data.npz --out out", text("fewstep.json", "[]")),
    ],
)
def test_the_command_line_says_it_too(place, monkeypatch, capsys, command: str, breakage: Break) -> None:
    (place / "teacher").rename(place / "model")
    breakage(place / "model")
    with pytest.raises(SystemExit) as stop:
        fewstep(monkeypatch, command)
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and said.startswith("fewstep: ") and "\n" not in said
