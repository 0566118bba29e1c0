"""Pipelines that are broken, or made to run their own code: one sentence each, before any work, and no code runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from tiny_pipelines import tiny_pipeline

from fewstep.core.pretrained import load_tokenizer
from fewstep.diffusion.formats.folder import load, save
from fewstep.diffusion.formats.identity import identity_of
from fewstep.diffusion.formats.opening import files_of

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries alone
Break = Callable[[Path], object]
INDEX, NETWORK, TEXT = "model_index.json", "unet/config.json", "text_encoder/config.json"


def says(file: str, **settings: object) -> Break:
    """The JSON file with other settings."""
    return lambda folder: (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | settings))


def own_code(folder: Path) -> None:
    """A part that is a class of a file beside it."""
    (folder / "text_encoder" / "own.py").write_text("open('ran', 'w')\nclass Encoder: ...\n")
    says(INDEX, text_encoder=["own", "Encoder"])(folder)


def pickled(folder: Path) -> None:
    """A text encoder whose weights are a pickle that runs code."""

    class Attack:
        def __reduce__(self):
            return open, ("ran", "w")

    (folder / "text_encoder" / "model.safetensors").unlink()
    torch.save({"a": Attack()}, folder / "text_encoder" / "pytorch_model.bin")


CASES: list[tuple[Break, str]] = [
    (says(INDEX, transformer_2=["diffusers", "WanTransformer3DModel"]), "whose one network"),
    (says(INDEX, _class_name=["pipeline", "Own"]), "names the pipeline .* runs no code of a checkpoint"),
    (says(INDEX, _class_name="OwnPipeline"), "names the pipeline 'OwnPipeline'"),
    (says(INDEX, _class_name="AutoencoderKL"), "names the pipeline 'AutoencoderKL'"),
    (own_code, "text_encoder in .* is a own.Encoder, which neither"),
    (pickled, "diffusers cannot open the StableDiffusionPipeline"),
    (says(NETWORK, quantization_config={"quant_method": "bitsandbytes"}), "is quantised"),
    (says(TEXT, quantization_config={"quant_method": "bitsandbytes"}), "its weights are quantised"),
    (says(TEXT, attn_implementation="own/kernel"), "native code from elsewhere"),
    (says(NETWORK, _class_name="UNet2DModel"), "its pipeline says that it is a UNet2DConditionModel"),
    (says(NETWORK, layers_per_block=1 << 19), "far larger than|describes no"),
    (lambda folder: (folder / "fewstep.json").write_text('{"call": ["height"]}'), "which is no dictionary of arguments"),
    (says(NETWORK, cross_attention_dim=10**9), "cross_attention_dim = 1000000000"),
    (lambda folder: (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "there are no weights"),
    (lambda folder: shutil.rmtree(folder / "vae"), "has no folder vae"),
    (lambda folder: (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"x"), "diffusers cannot open"),
    (lambda folder: (folder / "tokenizer" / "tokenizer_config.json").write_text("["), "not valid JSON"),
    (lambda folder: (folder / "tokenizer" / "merges.txt").symlink_to("/etc/passwd"), "leads out of its folder"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return tiny_pipeline("stable_diffusion", tmp_path_factory.mktemp("sd"))


@pytest.mark.parametrize(("breakage", "sentence"), CASES)
def test_one_sentence_and_no_code(made: Path, tmp_path: Path, monkeypatch, breakage: Break, sentence: str) -> None:
    shutil.copytree(made, tmp_path / "broken")
    if "leads out" in sentence:
        (tmp_path / "broken" / "tokenizer" / "merges.txt").unlink(missing_ok=True)
    monkeypatch.chdir(tmp_path)
    breakage(tmp_path / "broken")
    with pytest.raises(ValueError, match=sentence) as refused:
        load(tmp_path / "broken")
    assert "\n" not in str(refused.value) and not (tmp_path / "ran").exists()


def test_ctrl_c_while_it_is_opened_is_no_broken_file(made: Path, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("diffusers.StableDiffusionPipeline.from_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _ = load(made).pipeline.stock
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_tokenizer(made / "tokenizer")


def test_what_names_code_is_left_out(made: Path, tmp_path: Path) -> None:
    """Entries that transformers would follow are gone before it sees them, and files of code are never there."""
    shutil.copytree(made, tmp_path / "named")
    says(TEXT, auto_map={"AutoModel": "own.Encoder"})(tmp_path / "named")
    (tmp_path / "named" / "text_encoder" / "own.py").write_text("open('ran', 'w')\n")
    assert load(tmp_path / "named").pipeline.conditions(["a"])[0].rows


def test_a_pipeline_that_needs_a_picture_says_so(made: Path, tmp_path: Path) -> None:
    """Its network is told more than a prompt."""
    shutil.copytree(made, tmp_path / "other")
    says(INDEX, _class_name="StableDiffusionInpaintPipeline")(tmp_path / "other")
    with pytest.raises(ValueError, match=r"needs|cannot be called"):
        load(tmp_path / "other")


def test_a_variant_of_the_weights_is_opened_where_it_is_alone(tmp_path) -> None:
    """As repositories are fetched by variant="fp16": what is made of it has plain names, and is the same pipeline."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        tiny_pipeline("stable_diffusion", tmp_path), torch_dtype=torch.float16
    )
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    model = load(tmp_path / "half")
    cond, _ = model.pipeline.conditions(["a red boot"])
    assert cond.rows["encoder_hidden_states"].dtype == torch.float32
    save(model, tmp_path / "saved")
    assert (tmp_path / "saved" / "text_encoder" / "model.safetensors").is_file()
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "saved", torch_dtype=torch.float32)
    assert all(p.equal(q) for p, q in zip(again.vae.parameters(), model.pipeline.stock.vae.parameters(), strict=True))
    assert identity_of(tmp_path / "saved") == identity_of(tmp_path / "half")
    pipeline.save_pretrained(tmp_path / "half")  # beside it the weights themselves
    assert files_of(tmp_path / "half", "vae")["diffusion_pytorch_model.safetensors"].name.count(".") == 1


@pytest.mark.parametrize(("names", "found"), [
    (["model.safetensors", "model.fp16.safetensors"], {"model.safetensors": "model.safetensors"}),
    (["model.safetensors.index.fp16.json"], {"model.safetensors.index.json": "model.safetensors.index.fp16.json"}),
    (["model.fp16-00001-of-00002.safetensors"], {"model.fp16-00001-of-00002.safetensors": None}),
    (["spiece.model", "tokenizer.json", "flax.msgpack"], {"spiece.model": None, "tokenizer.json": None}),
])  # fmt: skip
def test_files_by_the_names_that_they_are_opened_under(names: list[str], found: dict, tmp_path) -> None:
    (tmp_path / "part").mkdir()
    for name in names:
        (tmp_path / "part" / name).touch()
    opened = {name: file.name for name, file in files_of(tmp_path, "part").items()}
    assert opened == {name: file or name for name, file in found.items()}


def test_two_variants_and_no_weights_are_refused(tmp_path) -> None:
    (tmp_path / "part").mkdir()
    for variant in ("fp16", "bf16"):
        (tmp_path / "part" / f"model.{variant}.safetensors").touch()
    with pytest.raises(ValueError, match=r"bf16.safetensors and .*; rename the one to use to model"):
        files_of(tmp_path, "part")
