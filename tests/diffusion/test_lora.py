"""LoRA students: fresh they are the checkpoint, on disk they are an adapter, and the base stays what it was."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import fewstep, fresh, tiny
from families import FAMILIES
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from fewstep import Lessons, Loss, Run, Training, tune_checkpoint
from fewstep.core.files import load_state
from fewstep.core.interrupts import Interrupted
from fewstep.diffusion.checkpoints import _choose_what_trains, _models
from fewstep.diffusion.choices import Choices
from fewstep.diffusion.cond import NOTHING
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.depth import checkpointing, freeze, hold_in_bfloat16
from fewstep.diffusion.formats.folder import load, save
from fewstep.diffusion.lora import LoRA, adapt, at_strength, factors_of, fused, layers_of, mark_of
from fewstep.diffusion.model import Model
from fewstep.diffusion.two_times import TwoTimes
from fewstep.diffusion.walk import DDIM, Heun, Segments

FILE = "pytorch_lora_weights.safetensors"
ATTENDING = [family for family in FAMILIES if family != "UNet1D"]  # whose layers have names of its own


def adapted(denoiser: Denoiser, rank: int = 2, **options) -> Denoiser:
    """A student whose adapter says something."""
    adapt(denoiser, LoRA(rank), **options)
    for layer in layers_of(denoiser.network).values():
        nn.init.normal_(layer.lora_B["fewstep"].weight, std=0.3)
    return denoiser.eval()


def tuned(out: str, *, loss: Loss = Loss(segments=2, hop="heun"), resume: bool = False, **training) -> Model:
    return tune_checkpoint(
        "teacher", Lessons("data.npz"), Run(Path(out), precision="no", resume=resume), loss=loss,
        training=Training(images=24, batch=8, **training),
    )  # fmt: skip


@pytest.mark.parametrize("family", ATTENDING)
@torch.no_grad()
def test_a_fresh_adapter_is_the_checkpoint_and_a_fused_one_is_the_student(family: str) -> None:
    denoiser, cond = FAMILIES[family]()
    x, t, cond = torch.randn(2, *denoiser.space.shape), denoiser.schedule.grid(2).float(), cond.expand(2)
    before, mark = denoiser(x, t, cond), mark_of(denoiser.network)
    adapt(denoiser, LoRA(2))
    assert torch.equal(denoiser(x, t, cond), before)
    assert {name.partition(".lora_")[2][:2] for name, p in denoiser.named_parameters() if p.requires_grad} == {"A.", "B."}
    for layer in layers_of(denoiser.network).values():
        nn.init.normal_(layer.lora_B["fewstep"].weight, std=0.3)
    after = denoiser(x, t, cond)
    assert not torch.allclose(after, before, atol=1e-3)
    plain = fused(denoiser)
    assert_close(plain(x, t, cond), after, atol=2e-5, rtol=1e-4)
    assert not [name for name in plain.state_dict() if "lora" in name or "base_layer" in name]
    assert torch.equal(denoiser(x, t, cond), after) and mark_of(denoiser.network) == mark != mark_of(plain.network)


@torch.no_grad()
def test_strength_0_is_the_base_and_1_the_student() -> None:
    before, student = tiny(), TwoTimes(tiny())
    adapted(student)
    nn.init.normal_(student.ends[0].linear_2.weight)
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 40.0])
    cond = NOTHING.until(t / 2)
    assert torch.equal(at_strength(student, 0)(x, t, cond), before(x, t))
    assert torch.equal(at_strength(student, 1)(x, t, cond), student(x, t, cond))
    half = at_strength(student, 0.5)
    for ours, whole in zip(layers_of(half.network).values(), layers_of(student.network).values(), strict=True):
        assert_close(2 * ours.get_delta_weight("fewstep"), whole.get_delta_weight("fewstep"))
    assert_close(2 * half.shifts(t)[0], student.shifts(t)[0])
    with pytest.raises(ValueError, match="only LoRA students"):
        at_strength(before, 0.5)


def test_the_strength_is_a_dial_between_the_teacher_and_the_student(place, monkeypatch) -> None:
    tuned("run", loss=Loss(segments="any"), lora=2, rate=0.01, average=(0.1,))
    fewstep(monkeypatch, "sample teacher --sampler ddim --steps 3 --n 2 --out teacher-3")
    for strength in ("0", ".5", "1"):
        fewstep(monkeypatch, f"sample run --steps 3 --n 2 --strength {strength} --out at{strength}")
    fewstep(monkeypatch, "sample run --steps 3 --n 2 --out run-3")
    sheets = {at: Path(at, "000001.png").read_bytes() for at in ("teacher-3", "at0", "at.5", "at1", "run-3")}
    assert sheets["at0"] == sheets["teacher-3"] and sheets["at1"] == sheets["run-3"]
    assert len(set(sheets.values())) == 3
    assert json.loads(Path("at.5/receipt.json").read_text())["strength"] == 0.5
    fewstep(
        monkeypatch,
        "dial run --teacher teacher --data data.npz --out dial --n 20 --steps 2 --teacher-calls 2 --strengths 0 1 "
        "--features random",
    )
    points = {p["name"]: p["frechet"] for p in json.loads(Path("dial/measure.json").read_text())["points"]}
    assert points["run at 0"] == points["teacher"] != points["run at 1"]


def test_an_export_is_fused_with_its_base_where_nobody_loads_adapters(place, monkeypatch, stock_here) -> None:
    """Stock diffusers samples what our own walk samples, at each number of calls and at half of the strength."""
    tuned("run", loss=Loss(segments="any"), lora=2, rate=0.01, average=(0.1,))
    fewstep(monkeypatch, "export run --steps 2 4 --out few")
    fewstep(monkeypatch, "export run --steps 2 --strength .5 --out half")
    bases = [load_file(f"{place}/unet/diffusion_pytorch_model.safetensors") for place in ("teacher", "few/2-step", "half")]
    base, whole, half = (weights["mid_block.resnets.0.conv1.weight"] for weights in bases)
    assert_close(2 * (half - base), whole - base, atol=1e-7, rtol=1e-3)
    assert (whole - base).abs().max() > 1e-5 and bases[0].keys() == bases[1].keys()
    with pytest.raises(SystemExit):
        fewstep(monkeypatch, "export run --steps 2 --form adapter --out other")
    assert not Path("other").exists()


@pytest.mark.parametrize("segments", [2, "any"])
def test_a_run_holds_the_adapter_alone_and_its_folder_says_the_rest(place, segments) -> None:
    before = load("teacher").denoiser
    model = tuned("run", loss=Loss(segments=segments, hop="heun"), lora=2, average=(0.5,))
    state, factors = load_state("run/state.pt"), factors_of(model.denoiser.network)
    told = {f"ends.0.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")} if segments == "any" else set()
    held = {f"network.{name.replace('.weight', '.fewstep.weight')}" for name in factors} | told
    assert state["student"].keys() == held == state["emas"][0]["weights"].keys()
    assert len(state["optimizer"]["state"]) == len(held)
    assert {path.name for path in Path("run/model").iterdir()} == {FILE, "fewstep.json"} | (
        {"second_time.safetensors"} if told else set()
    )
    with safe_open(f"run/model/{FILE}", "pt") as file:
        said = json.loads(file.metadata()["lora_adapter_metadata"])
        assert set(file.keys()) == {f"unet.{name}" for name in factors}
    assert said["unet.r"] == said["unet.lora_alpha"] == 2
    again = load("run")
    assert again.walk == model.walk and type(again.denoiser) is type(model.denoiser)
    assert torch.equal(again.sample([0, 1]), model.sample([0, 1]))
    assert any(factor.any() for name, factor in factors.items() if ".lora_B." in name)
    state = at_strength(again.denoiser, 0).network.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in before.network.state_dict().items())


def test_a_stopped_run_goes_on_bit_equal(place, monkeypatch) -> None:
    from fewstep.diffusion import runs

    tuned("whole", loss=Loss(segments="any"), lora=2)
    tune = runs.tune

    def stopped(*args, **options):
        for step in tune(*args, **options):
            if step.step == 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield step

    with monkeypatch.context() as patched:
        patched.setattr(runs, "tune", stopped)
        with pytest.raises(Interrupted):
            tuned("run", loss=Loss(segments="any"), lora=2)
    with pytest.raises(ValueError, match="lora"):
        tuned("run", loss=Loss(segments="any"), lora=2, lora_targets=("to_q",), resume=True)
    with monkeypatch.context() as patched:
        patched.setattr("fewstep.diffusion.runs.mark_of", lambda network: "of another base")
        with pytest.raises(ValueError, match="base_weights"):  # they are in no state
            tuned("run", loss=Loss(segments="any"), lora=2, resume=True)
    tuned("run", loss=Loss(segments="any"), lora=2, resume=True)
    for name in (FILE, "second_time.safetensors"):
        ours, theirs = (load_file(f"{run}/model/{name}") for run in ("run", "whole"))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_command_is_the_function_and_a_run_goes_on_from_an_adapter(place, monkeypatch) -> None:
    fewstep(
        monkeypatch,
        "tune teacher --data data.npz --out a --images 24 --batch 8 --segments 2 --hop heun --lora 2 --precision no "
        "--lora-targets to_q conv1 --midtrain 8 --paths 2",
    )
    factors = factors_of(load("a").denoiser.network)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in factors} == {"to_q", "conv1"}
    on = tune_checkpoint(
        "a", Lessons("data.npz", teacher="teacher"), Run(Path("b"), precision="no"), loss=Loss(segments=2, hop="heun"),
        training=Training(images=8, batch=8, lora=2),
    )  # fmt: skip
    assert factors_of(on.denoiser.network).keys() == factors.keys() and load("b").walk == Segments(2)
    full = tune_checkpoint(
        "a", Lessons("data.npz"), Run(Path("c"), precision="no"), loss=Loss(segments=2),
        training=Training(images=8, batch=8),
    )  # fmt: skip
    assert not factors_of(full.denoiser.network) and all(p.requires_grad for p in full.denoiser.parameters())
    with pytest.raises(ValueError, match=r"rank 2; tune it with --lora 2 alone"):
        tune_checkpoint("a", Lessons("data.npz"), Run(Path("d")), loss=Loss(segments=2), training=Training(lora=3))


def test_a_diffusion_model_with_an_adapter_is_no_teacher_that_moves_with_its_student(place) -> None:
    """The base teaches in place, but the factors that go on training are not its teacher's."""
    tuned("a", loss=Loss(gap="full"), lora=2)
    chosen = Choices(Lessons("data.npz"), Run(Path("b")), Loss(segments=2, hop="heun"), Training(lora=2))
    student, teacher = (factors_of(model.denoiser.network) for model in _models("a", chosen))
    assert student.keys() == teacher.keys() != set()
    for name, factor in student.items():
        assert torch.equal(factor, teacher[name]) and factor.data_ptr() != teacher[name].data_ptr()


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        (lambda: Training(lora=0), "--lora starts at 1"),
        (lambda: Training(lora=2, scratch=True), "--scratch replaces the weights"),
        (lambda: Training(freeze=1, scratch=True), "--scratch replaces the weights"),
        (lambda: Training(freeze=-1), "--freeze starts at 0"),
        (lambda: Training(lora_targets=("to_q",)), "needs the rank"),
        (lambda: Training(lora=2, lora_targets=("to_q", "to_nobody")), "no layer of this UNet2DModel has .* to_nobody"),
        (lambda: Training(lora=2, lora_targets=("down_blocks.0.resnets.0.conv1",), freeze=1), "outside of its frozen"),
        (lambda: Training(lora=5000), "between 1 and 4096"),
        (lambda: Training(freeze=3), "more than the 2 blocks"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(place, training, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tune_checkpoint("teacher", Lessons("data.npz"), Run(Path("run")), loss=Loss(segments=2), training=training())
    assert not Path("run").exists()


def test_an_adapter_meets_its_own_base_or_a_sentence(tmp_path) -> None:
    base, run = tmp_path / "base", tmp_path / "student"
    save(Model(tiny(), Heun()), base)
    student = load(base).denoiser
    save(Model(adapted(student, base=str(base)), DDIM(4)), run)
    assert_close(load(run).denoiser.network.state_dict(), student.network.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        other = tiny()
        other.network.conv_out.weight[0, 0, 0, 0] += 1
    save(Model(other, Heun()), base)
    with pytest.raises(ValueError, match="are not those with which the adapter"):
        load(run)
    note = json.loads((run / "fewstep.json").read_text())
    for wrong, sentence in (
        ({"source": str(run)}, "an adapter itself"), ({"source": str(tmp_path / "gone")}, "is not a folder"),
        ({"source": 3}, "does not say which base"),
    ):  # fmt: skip
        (run / "fewstep.json").write_text(json.dumps(note | {"base": note["base"] | wrong}))
        with pytest.raises(ValueError, match=sentence):
            load(run)
    (run / "fewstep.json").unlink()
    with pytest.raises(ValueError, match="which base the adapter belongs to"):
        load(run)


@pytest.mark.parametrize("family", ["UNet2D, VP", "DiT, a time embedding in each block"])
def test_frozen_blocks_do_not_train(family: str) -> None:
    denoiser, _ = FAMILIES[family]()
    freeze(denoiser.network, 1)
    block = "transformer_blocks.0." if "DiT" in family else "down_blocks.0."
    held = {name.removeprefix("network.") for name, p in denoiser.named_parameters() if not p.requires_grad}
    assert held == {name for name, _ in denoiser.network.named_parameters() if name.startswith(block)}
    adapt(denoiser, LoRA(2), frozen=1)
    assert not [name for name in layers_of(denoiser.network) if name.startswith(block)]
    assert layers_of(denoiser.network)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch of its own RMSNorm under autocast
@pytest.mark.parametrize("family", ATTENDING)
def test_a_base_held_in_bfloat16_is_what_autocast_makes_of_it(family: str) -> None:
    """Bit by bit, and so are the gradients of the factors."""
    denoiser, cond = FAMILIES[family]()
    adapted(denoiser)
    x, t = torch.randn(2, *denoiser.space.shape), denoiser.schedule.grid(2).float()
    said, gradients = [], []
    mark, size = mark_of(denoiser.network), sum(p.nbytes for p in denoiser.parameters())
    for held in (False, True):
        if held:
            hold_in_bfloat16(denoiser.network)
        with torch.autocast("cpu", torch.bfloat16):
            said.append(denoiser(x, t, cond.expand(2)))
            said[-1].square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in denoiser.parameters() if p.grad is not None]))
        denoiser.zero_grad()
    assert torch.equal(*said) and torch.equal(*gradients) and gradients[0].any()
    assert {p.dtype for p in denoiser.parameters() if p.requires_grad} == {torch.float32}
    assert mark_of(denoiser.network) == mark and sum(p.nbytes for p in denoiser.parameters()) < 0.9 * size


def test_a_run_in_bfloat16_holds_its_base_so_and_gives_it_back_whole(place, monkeypatch) -> None:
    from fewstep.diffusion import checkpoints

    chosen = Run(Path("held"), precision="bf16"), Run(Path("whole"), precision="bf16")
    models = []
    for run in chosen:
        fresh()
        training = Training(images=16, batch=8, lora=2)
        models.append(tune_checkpoint("teacher", Lessons("data.npz"), run, loss=Loss(segments="any"), training=training))
        monkeypatch.setattr(checkpoints, "_autocasts", lambda run: False)
    ours, theirs = (factors_of(model.denoiser.network) for model in models)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {p.dtype for p in models[0].denoiser.parameters()} == {torch.float32}
    assert torch.equal(models[0].sample([0]), models[1].sample([0]))


@pytest.mark.parametrize("lora", [None, 2])
def test_checkpointing_changes_no_weight(place, lora: int | None) -> None:
    for out in ("kept", "again"):
        run = Run(Path(out), precision="no", checkpointing=out == "again")
        tune_checkpoint(
            "teacher", Lessons("data.npz"), run, loss=Loss(segments="any"),
            training=Training(images=24, batch=8, lora=lora, dropout=0.2),
        )  # fmt: skip
    kept, again = (load_state(f"{out}/state.pt")["student"] for out in ("kept", "again"))
    assert kept.keys() == again.keys() and all(torch.equal(kept[name], again[name]) for name in kept)


def test_checkpointing_is_refused_where_it_would_be_wrong(tmp_path) -> None:
    denoiser = FAMILIES["DiT, a time embedding in each block"]()[0]
    for segments in (2, "any"):
        student = TwoTimes(denoiser) if segments == "any" else denoiser
        chosen = Choices(
            Lessons("missing.npz"), Run(tmp_path, checkpointing=True), Loss(segments=segments), Training(images=8)
        )
        if segments == "any":
            with pytest.raises(ValueError, match="does not work with --segments any"):
                _choose_what_trains("it", student, chosen)
        else:
            _choose_what_trains("it", student, chosen)
            assert denoiser.network.is_gradient_checkpointing
    with pytest.raises(ValueError, match="leave --checkpointing out"):
        checkpointing(nn.Linear(1, 1))
