from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import published
import pytest
import torch
from conftest import fewstep as run
from conftest import noise_images
from hostile import Canary
from persisted import EasyDict, Persistent, module, onehot, write
from PIL import Image
from published import Weights
from safetensors.torch import save_file

import fewstep
from fewstep.diffusion.cond import Cond, Tokens, labelled
from fewstep.diffusion.data import save_images
from fewstep.diffusion.formats.pipelines import stock_pipeline
from fewstep.diffusion.schedule import Karras

CLASSES = 5
LEVELS = torch.tensor([0.01, 1.0, 60.0])
NCSN = {"fourier": True, "encoder": "residual", "taps": (1, 3, 3, 1)}
SKIPS = {"encoder": "skip", "decoder": "skip", "taps": (1, 3, 3, 1)}
# a published network in small: what it computes, its settings, and what its file says of it
CASES = {
    "DDPM++": (published.song, {"channels": 16, "mult": (1, 2), "blocks": 1, "attn": (8,)}, {"model_type": "SongUNet"}),
    "NCSN++": (
        published.song,
        {"channels": 16, "mult": (2, 2), "blocks": 2, "attn": (8,), **NCSN},
        {"encoder_type": "residual"},
    ),
    "skips": (published.song, {"channels": 8, "mult": (1, 2, 2), "blocks": 1, "attn": (), **SKIPS}, {"dropout": 0.13}),
    "ADM": (published.adm, {"channels": 128, "mult": (1, 2), "blocks": 1, "attn": (8,)}, {"model_type": "DhariwalUNet"}),
    "EDM2": (published.edm2, {"channels": 64, "mult": (1, 2), "blocks": 1, "attn": (8,)}, {"use_fp16": True}),
}


def made(case: str, *, classes: bool, colours: int = 3) -> tuple[Weights, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights of a network, noisy samples, their classes, and what EDM's preconditioning makes of the network's output."""
    compute, settings, _ = CASES[case]
    weights, x = Weights(), torch.randn(3, colours, 16, 16, generator=torch.Generator().manual_seed(1)) * 2
    labels = torch.tensor([0, 3, 4])
    s = LEVELS[:, None, None, None]
    given = onehot(labels, CLASSES) if classes else None
    output = compute(weights, x / (s**2 + 0.25).sqrt(), LEVELS.log() / 4, given, **settings)
    x0 = 0.25 / (s**2 + 0.25) * x + 0.5 * s / (s**2 + 0.25).sqrt() * output
    if "taps" in settings:  # the filters are in the file beside the weights
        taps = torch.tensor(settings["taps"], dtype=torch.float32)
        kernel = (taps[:, None] * taps / taps.sum() ** 2)[None, None]
        weights |= {f"{name[:-6]}resample_filter": kernel for name in [*weights] if "_down.conv0.weight" in name}
    return weights, x, labels, x0


def edm_file(path: Path, case: str, weights: dict[str, torch.Tensor], *, protocol: int = 4, alone: bool = False) -> Path:
    kind, inner = ("Precond", "unet") if case == "EDM2" else ("EDMPrecond", "model")
    said = {"img_resolution": 16, "img_channels": 3, **CASES[case][2]}
    beside = {"map_augment.weight": torch.ones(16, 9)} if case == "DDPM++" else {}
    net = module(
        {f"{inner}.{name}": weight for name, weight in (weights | beside).items()}, kind, path.parent / "canary",
        _init_args=(), _init_kwargs=said,
    )  # fmt: skip
    loss = Persistent("EDM2Loss" if case == "EDM2" else "EDMLoss", {"P_mean": -1.2}, path.parent / "canary")
    held = {"ema": net, "loss_fn": loss, "augment_pipe": None, "dataset_kwargs": EasyDict(path="x.zip", use_labels=True)}
    return write(path, net if alone else held, protocol)


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_published_network_computes_what_its_paper_says(case: str, classes: bool, tmp_path: Path) -> None:
    weights, x, labels, x0 = made(case, classes=classes)
    written = fewstep.import_checkpoint(edm_file(tmp_path / "a.pkl", case, weights), tmp_path / "out")
    model = fewstep.load(tmp_path / "out")
    assert model.walk == written.walk == fewstep.Heun() and model.denoiser.schedule == Karras(time_scale=0.25)
    with torch.no_grad():
        found = model.denoiser(x, LEVELS, labelled(labels if classes else None))
    torch.testing.assert_close(found, x0, atol=2e-5 * float(x0.abs().max()), rtol=0)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("protocol", [2, 3, 5])
def test_both_layouts_of_a_pickle_are_the_same_network(protocol: int, tmp_path: Path) -> None:
    weights, *_ = made("DDPM++", classes=True)
    first = fewstep.import_checkpoint(edm_file(tmp_path / "a.pkl", "DDPM++", weights), tmp_path / "a")
    file = edm_file(tmp_path / "b.pkl", "DDPM++", weights, protocol=protocol, alone=True)
    second = fewstep.import_checkpoint(file, tmp_path / "b")
    both = (model.denoiser.network.state_dict() for model in (first, second))
    assert all(a.equal(b) for a, b in zip(*(each.values() for each in both), strict=True))


def test_an_ect_checkpoint_is_a_consistency_model(tmp_path: Path) -> None:
    """Its network is trained with f(x, 0) = x, so this is where it is the identity here, too."""
    weights, *_ = made("DDPM++", classes=False)
    said = {"_init_kwargs": {"img_resolution": 16, "sigma_data": 0.4}}
    net = module({f"model.{name}": each for name, each in weights.items()}, "ECMPrecond", tmp_path / "canary", **said)
    model = fewstep.import_checkpoint(write(tmp_path / "network-snapshot.pkl", {"ema": net}), tmp_path / "out")
    assert model.is_student and model.denoiser.identity == 0 and model.denoiser.schedule.sigma_data == 0.4
    loaded = fewstep.load(tmp_path / "out")
    assert loaded.walk == fewstep.Consistency()
    assert loaded.sample(range(2)).equal(model.sample(range(2)))


OPENAI = {
    "scale and shift": ({"channels": 32, "mult": (1, 2, 3, 4), "blocks": 1, "attn": (2, 3), "head": 32}, 64),
    "LSUN": ({"channels": 32, "mult": (1, 1, 2, 2, 4, 4), "blocks": 1, "attn": (4, 5), "shift": False, "head": 64}, 256),
}


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 3])], ids=["unconditional", "classes"])
@pytest.mark.parametrize("case", OPENAI)
def test_openais_networks_are_diffusers_own(case: str, labels: torch.Tensor | None, tmp_path: Path) -> None:
    settings, size = OPENAI[case]
    weights, x, time = Weights(), torch.randn(2, 3, 64, 64), torch.tensor([250 * 0.3, -900.0])
    classes = 0 if labels is None else CLASSES
    output = published.openai(weights, x, time, labels, classes=classes, **settings)
    torch.save(dict(weights), tmp_path / "cd_lsun.pt")
    fewstep.import_checkpoint(tmp_path / "cd_lsun.pt", tmp_path / "out", head=settings["head"])
    model = fewstep.load(tmp_path / "out")
    assert type(model.denoiser.network).__name__ == "UNet2DModel" and model.denoiser.space.shape == (3, size, size)
    assert model.walk == fewstep.Consistency() and model.denoiser.identity == pytest.approx(0.002)
    with torch.no_grad():
        given = {} if labels is None else {"class_labels": labels}
        found = model.denoiser.network(x, time, **given).sample
    torch.testing.assert_close(found, output, atol=2e-5 * float(output.abs().max()), rtol=0)
    teacher = fewstep.import_checkpoint(tmp_path / "cd_lsun.pt", tmp_path / "edm", head=settings["head"], kind="diffusion")
    assert teacher.walk == fewstep.Heun() and teacher.denoiser.identity == 0


@pytest.mark.parametrize("case", CASES)
def test_fastgens_files_are_read_like_the_pickles_that_they_came_from(case: str, tmp_path: Path) -> None:
    weights, *_ = made(case, classes=True)
    inner = "unet" if case == "EDM2" else "model"
    named = {f"{inner}.{name}": each[None] if each.ndim == 0 else each for name, each in weights.items()}
    named |= {f"{inner}.logvar_linear.weight": torch.ones(1, 16)}
    torch.save(named, tmp_path / "edm-teacher.pth")
    zeros = {name: torch.zeros_like(each) for name, each in named.items()}
    torch.save({"model": {"net": zeros, "ema": named}, "iteration": 7, "optimizer": None}, tmp_path / "0007.pth")
    save_file({name: each.clone() for name, each in named.items()}, tmp_path / "edm.safetensors")
    wanted = fewstep.import_checkpoint(edm_file(tmp_path / "a.pkl", case, weights), tmp_path / "a").denoiser.network
    for file in ("edm-teacher.pth", "0007.pth", "edm.safetensors"):
        model = fewstep.import_checkpoint(tmp_path / file, tmp_path / f"of {file}", kind="diffusion")
        found = model.denoiser.network.state_dict()
        assert all(found[name].equal(each) for name, each in wanted.state_dict().items())


def test_edms_time_becomes_that_of_stock_pipelines(tmp_path: Path) -> None:
    weights, x, labels, x0 = made("ADM", classes=True)
    file = edm_file(tmp_path / "a.pkl", "ADM", weights)
    fewstep.import_checkpoint(file, tmp_path / "out", consistency_time=True)
    model = fewstep.load(tmp_path / "out")
    assert model.denoiser.schedule == Karras(time_scale=250)
    with torch.no_grad():
        torch.testing.assert_close(
            model.denoiser(x, LEVELS, labelled(labels)), x0, atol=4e-5 * float(x0.abs().max()), rtol=0
        )
    stock_pipeline(model.denoiser, fewstep.Consistency())  # which takes no other time


def wrong(case: str, folder: Path) -> Path:
    weights, *_ = made("DDPM++", classes=False)

    def cut() -> Path:
        whole = edm_file(folder / "whole.pkl", "DDPM++", weights).read_bytes()
        (folder / "cut.pkl").write_bytes(whole[:-100])
        return folder / "cut.pkl"

    def onnx() -> Path:
        (folder / "net.onnx").write_bytes(b"")
        return folder / "net.onnx"

    def narrow() -> dict[str, torch.Tensor]:
        return {name: weight[:64] for name, weight in made("ADM", classes=False)[0].items()}

    def pickled(kind: str, **kept: object) -> Path:
        return write(folder / "net.pkl", {"ema": module(weights, kind, folder / "canary", **kept)})

    def pt(held: object) -> Path:
        return saved(folder / ("net.pt" if held is weights else "ect.pt"), held)

    same = dict.fromkeys(map(str, range(20_000)), torch.ones(64))
    first = {"enc.16x16_conv.weight": torch.ones(1 << 20, 1, 1, 1)}
    files: dict[str, Callable[[], Path]] = {
        "there is no file": lambda: folder / "none.pkl",
        "is no .pkl": onnx,
        "is cut off or no pickle": cut,
        "holds no network, neither alone nor as ema": lambda: write(folder / "other.pkl", {"net": 3}),
        "has the preconditioning of VP": lambda: pickled("VPPrecond", _init_kwargs={}),
        "does not hold the settings of its network": lambda: pickled("EDMPrecond"),
        "has the setting hypernetwork": lambda: said(folder, weights, hypernetwork=True),
        "invalid setting dropout = 'x'": lambda: said(folder, weights, dropout="x"),
        "says sigma_data = -1": lambda: said(folder, weights, sigma_data=-1),
        "does not say whether it is a diffusion model": lambda: pt(weights),
        "holds no network of EDM": lambda: pt({"a.weight": torch.ones(2)}),
        "holds several networks (one, two)": lambda: pt({"one": dict(weights), "two": dict(weights)}),
        "is damaged, or holds more than plain tensors": lambda: pt({"a": Canary(folder / "canary")}),
        "so it is no published": lambda: pt(weights | {"enc.strange.weight": torch.ones(2)}),
        "has no emb_noise.weight": lambda: pt({"emb_fourier.freqs": torch.ones(4)} | only(weights)),
        "has no first layer": lambda: pt({"map_layer0.weight": torch.ones(4, 4)}),
        "holds values that are not finite": lambda: pt(spoilt(weights)),
        "which UNet2DModel would normalise in other groups": lambda: pt(narrow()),
        "larger in total than the file": lambda: pt(same),
        "more parts than any network": lambda: pt(wide()),
        "has two times": lambda: pt(weights | {"map_layer0.weight": torch.ones(64, 32)}),
        "another shape of": lambda: pt(giant(made("EDM2", classes=False)[0])),
        "no multiples of 1048576": lambda: pt(weights | first),
        "leave --consistency-time out": lambda: pt(dict(weights)),
    }
    return files[case]()


def said(folder: Path, weights: dict[str, torch.Tensor], **kwargs: object) -> Path:
    net = module({f"model.{n}": w for n, w in weights.items()}, "EDMPrecond", folder / "canary", _init_kwargs=kwargs)
    return write(folder / f"{min(kwargs)}.pkl", {"ema": net})


def saved(path: Path, held: object) -> Path:
    torch.save(dict(held), path)
    return path


def only(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in weights.items() if name.startswith("enc.")}


def wide() -> dict[str, object]:
    """A thousand of a thousand of a thousand, in a small file."""
    inner: dict[str, object] = {"a": torch.ones(1)}
    for _ in range(3):
        inner = {str(k): inner for k in range(1000)}
    return inner


def giant(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A network of a million channels, of which the file holds a row."""
    names = [name for name in weights if name.startswith("enc.") and name.endswith(("conv.weight", "conv_res0.weight"))]
    return weights | {name: torch.ones(1 << 20, 1, 1, 1) for name in names}


def spoilt(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return weights | {"map_layer0.bias": torch.full_like(weights["map_layer0.bias"], torch.nan)}


WRONG = (
    "there is no file", "is no .pkl", "is cut off or no pickle", "holds no network, neither alone nor as ema",
    "has the preconditioning of VP", "does not hold the settings of its network", "has the setting hypernetwork",
    "invalid setting dropout = 'x'", "says sigma_data = -1", "does not say whether it is a diffusion model",
    "holds no network of EDM", "holds several networks (one, two)", "is damaged, or holds more than plain tensors",
    "so it is no published", "has no emb_noise.weight", "has no first layer", "holds values that are not finite",
    "leave --consistency-time out", "larger in total than the file", "more parts than any network", "another shape of",
    "no multiples of 1048576", "has two times",
)  # fmt: skip


@pytest.mark.parametrize("sentence", WRONG)
def test_what_is_wrong_is_said_in_one_sentence(sentence: str, tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "in").mkdir()
    file = wrong(sentence, tmp_path / "in")
    flags = " --consistency-time" if "--consistency-time" in sentence else ""
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, f"import {file} --out {tmp_path / 'out'}{flags}")
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("fewstep: ") and said.count("\n") == 1 and sentence in said
    assert not (tmp_path / "out").exists() and not (tmp_path / "in" / "canary").exists()


@pytest.fixture(scope="module")
def openai() -> Weights:
    weights = Weights()
    settings, _ = OPENAI["scale and shift"]
    published.openai(weights, torch.randn(1, 3, 64, 64), torch.tensor([75.0]), None, classes=0, **settings)
    return weights


BLOCK, ATTENTION = "input_blocks.1.0", "middle_block.1.qkv"


@pytest.mark.parametrize(("change", "sentence"), [
    ({"input_blocks.2.0.op.weight": 1}, "other blocks than openai's published networks"),
    ({"input_blocks.0.0.weight": (16, 3, 3, 3)}, r"has 4 sizes of \[32, 64, 96, 128\] channels, .*; give --size"),
    ({"input_blocks.1.1.in_layers.0.weight": 32}, r"has input_blocks\.1\.[01]\.in_layers\.0\.weight twice"),
    ({f"{BLOCK}.out_layers.3.weight": None}, "which every network of openai has"),
    ({"middle_block.0.strange.weight": 1}, r"has middle_block\.0\.strange\.weight, which no published network of openai"),
    ({"time_embed.0.weight": (128, 64)}, "a time embedding of another width"),
    ({f"{BLOCK}.in_layers.2.weight": (40, 32, 3, 3), f"{BLOCK}.out_layers.3.weight": (40, 40, 3, 3),
      "time_embed.0.weight": (160, 40)}, "describes no UNet2DModel"),
    ({f"{ATTENTION}.weight": (3 * 80, 128, 1)}, "attention channels that are no multiple of 32"),
    ({f"{ATTENTION}.bias": 5}, "not made of queries, keys and values"),
])  # fmt: skip
def test_what_is_no_published_network_of_openai_is_refused(openai, tmp_path: Path, change: dict, sentence: str) -> None:
    changed = dict(openai) | {name: torch.ones(shape or 0) for name, shape in change.items()}
    for name in [name for name, shape in change.items() if shape is None]:
        del changed[name]
    with pytest.raises(ValueError, match=sentence):
        fewstep.import_checkpoint(saved(tmp_path / "ct.pt", changed), tmp_path / "out", kind="consistency", head=32)


@pytest.mark.parametrize(("change", "sentence"), [
    ({"enc.16x16_block0.conv0.weight": None}, "other blocks than a network for pictures of that size"),
    ({"enc.16x16_block0.strange.weight": torch.ones(1)}, "which no published network of EDM has"),
])  # fmt: skip
def test_what_is_no_published_network_of_edm_is_refused(tmp_path: Path, change: dict, sentence: str) -> None:
    changed = {name: weight for name, weight in (made("ADM", classes=False)[0] | change).items() if weight is not None}
    with pytest.raises(ValueError, match=sentence):
        fewstep.import_checkpoint(edm_file(tmp_path / "a.pkl", "ADM", changed), tmp_path / "out")


def test_a_configuration_of_no_such_network_is_refused(tmp_path: Path) -> None:
    weights, *_ = made("DDPM++", classes=False)
    fewstep.import_checkpoint(edm_file(tmp_path / "a.pkl", "DDPM++", weights), tmp_path / "out")
    config = tmp_path / "out" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"encoder_type": "cubic"}))
    with pytest.raises(ValueError, match="the embedding, encoder and decoder positional, cubic, standard"):
        fewstep.load(tmp_path / "out")


def test_one_of_several_networks_is_the_part_that_is_named(tmp_path: Path) -> None:
    weights, *_ = made("DDPM++", classes=False)
    both = {"one": {name: torch.zeros_like(weight) for name, weight in weights.items()}, "two": dict(weights)}
    file = saved(tmp_path / "ect.pt", both)
    found = fewstep.import_checkpoint(file, tmp_path / "out", part="two", kind="diffusion").denoiser.network
    alone = saved(tmp_path / "alone.pt", weights)
    wanted = fewstep.import_checkpoint(alone, tmp_path / "alone", kind="diffusion").denoiser.network
    assert all(a.equal(b) for a, b in zip(found.state_dict().values(), wanted.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match=r"several networks \(one, two\); say which one with --part"):
        fewstep.import_checkpoint(file, tmp_path / "other", part="three", kind="diffusion")


def test_an_imported_folder_is_sampled_and_tuned_like_any(tmp_path: Path, capsys, monkeypatch) -> None:
    weights, *_ = made("DDPM++", classes=True)
    edm_file(tmp_path / "a.pkl", "DDPM++", weights)
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "import a.pkl --out teacher")
    assert "next: fewstep sample teacher --out samples --label 0" in capsys.readouterr().out
    run(monkeypatch, "sample teacher --out samples --label 0 --n 2 --steps 2")
    assert (tmp_path / "samples" / "sheet.png").exists()
    save_images(noise_images(16, size=16, channels=3, labels=True), tmp_path / "images.npz")
    run(monkeypatch, "tune teacher --data images.npz --out run --images 16 --batch 8")
    assert fewstep.load("run").is_student
    with pytest.raises(ValueError, match="exists; choose another"):
        fewstep.import_checkpoint("a.pkl", "run")


def test_a_network_that_is_told_a_number_is_asked_for_it(tmp_path: Path, capsys, monkeypatch) -> None:
    """What openai's layout looks like with two layers in the place of its table of classes."""
    settings, _ = OPENAI["scale and shift"]
    weights, x, time = Weights(), torch.randn(2, 3, 64, 64), torch.tensor([75.0, -900.0])
    published.openai(weights, x, time, torch.tensor([0, 3]), classes=CLASSES, **settings)
    table = weights.pop("label_emb.weight")
    for layer, inputs in ((0, 1), (2, 128)):
        weights(f"label_emb.{layer}.weight", 128, inputs)
        weights(f"label_emb.{layer}.bias", 128)
    number = torch.tensor([0.2, 0.7])
    hidden = torch.nn.functional.silu(number[:, None] @ weights["label_emb.0.weight"].T + weights["label_emb.0.bias"])
    table[:2] = hidden @ weights["label_emb.2.weight"].T + weights["label_emb.2.bias"]
    known = Weights()
    known |= {"label_emb.weight": table} | weights
    output = published.openai(known, x, time, torch.tensor([0, 1]), classes=CLASSES, **settings)
    torch.save(dict(weights), tmp_path / "ct.pt")
    run(monkeypatch, f"import {tmp_path / 'ct.pt'} --out {tmp_path / 'out'} --kind consistency --head 32")
    assert f"next: fewstep sample {tmp_path / 'out'} --out samples --number 0\n" in capsys.readouterr().out
    model = fewstep.load(tmp_path / "out")
    assert model.denoiser.takes == {"number": Tokens(())}
    with torch.no_grad():
        found = model.denoiser.network(x, time, number).sample
    torch.testing.assert_close(found, output, atol=2e-5 * float(output.abs().max()), rtol=0)
    with pytest.raises(ValueError, match="needs number"):
        model.sample(range(1))
    for flags, sentence in {
        "": "needs a --number", " --number 1 --label 1": "takes no --label", " --number nan": "must be a number",
    }.items():  # fmt: skip
        with pytest.raises(SystemExit):
            run(monkeypatch, f"sample {tmp_path / 'out'} --out {tmp_path / 'samples'} --n 1 --steps 1{flags}")
        assert sentence in capsys.readouterr().err
    run(monkeypatch, f"sample {tmp_path / 'out'} --out {tmp_path / 'samples'} --n 1 --steps 1 --number 0.5")
    asked = model.sample([0], Cond({"number": torch.tensor([0.5])}), walk=fewstep.Consistency(1))
    made = torch.from_numpy(np.array(Image.open(tmp_path / "samples" / "000000.png"))).permute(2, 0, 1)
    assert made.equal(asked[0])
