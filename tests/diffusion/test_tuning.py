"""tune() against the plainest loop, against itself interrupted, killed and distributed."""

from __future__ import annotations

import copy
import math
import os
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import killed_worker
import pytest
import spread_worker
import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from conftest import launch, noise_images, tiny
from diffusers import DDIMScheduler, DiTTransformer2DModel
from diffusers.models.embeddings import LabelEmbedding
from forked import Forked

from fewstep.core.device import fast_precision
from fewstep.core.files import load_state, save_state
from fewstep.core.nfe import count_nfe
from fewstep.diffusion.average import Exponential, PowerFunction
from fewstep.diffusion.data import Images, Paths, Rows
from fewstep.diffusion.denoiser import Denoiser, discrete_vp
from fewstep.diffusion.formats import schedulers
from fewstep.diffusion.hop import Euler, Heun
from fewstep.diffusion.loss import OutputScale, consistency_loss
from fewstep.diffusion.noise import ECTGap, FullGap, Levels, LogNormal, like
from fewstep.diffusion.optim import Adam, Constant, Dropout, RAdam
from fewstep.diffusion.prediction import epsilon
from fewstep.diffusion.recipes import diffusion, ect_one_hour
from fewstep.diffusion.step import averages_in, changing
from fewstep.diffusion.tuning import tune

SETTINGS = {"images": 48, "batch": 8, "gap": ECTGap(q=4, stages=2), "rate": Constant(1e-3), "optimizer": Adam()}


def steps_of(denoiser, data, **settings):
    """In float32, in which an identity can be seen."""
    return tune(denoiser, data, **({"accelerator": Accelerator(cpu=True)} | SETTINGS | settings))


def run(denoiser, data, **settings):
    return list(steps_of(denoiser, data, **settings))


def sgd(parameters):
    """Adam would blow up the rounding of gradients that are zero; gradient descent shows them as they are."""
    return torch.optim.SGD(parameters, momentum=0.9)


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_equals_the_plainest_loop(vp, images) -> None:
    plain, average = copy.deepcopy(vp), weights(vp)
    steps = run(vp, images, average=Exponential(0.5), seed=3, optimizer=sgd)
    rows, losses = Rows(images, partial(LogNormal(), sigma_max=plain.schedule.sigma_max), seed=3), []
    optimizer = torch.optim.SGD(plain.parameters(), lr=1e-3, momentum=0.9)
    for step in range(6):
        x0, eps, t, *_ = next(rows.batches(step * 8, step * 8 + 8, 8))
        r = ECTGap(q=4, stages=2)(t, step / 6)
        with torch.no_grad():
            target = plain(x0 + like(r, x0) * eps, r)
        norm = (plain(x0 + like(t, x0) * eps, t) - target).flatten(1).square().sum(1)
        loss = (((norm + 0.03**2).sqrt() - 0.03) / (t - r)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        average = 0.5 * average + 0.5 * weights(plain)
    assert [step.loss for step in steps] == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(weights(vp), weights(plain), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(weights(steps[-1].ema), average, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("average", [Exponential(0.9993), Exponential(0.999, warmup=True)])
def test_averages_begin_with_the_checkpoint(average, images) -> None:
    """Eight steps of RAdam beside the plain sum. What the average has moved is compared, as where it is shows nothing; a
    copy made after the first step, which follows the bare gradient, would have moved with all of it."""
    denoiser = tiny().double()
    expected = start = weights(denoiser)
    for step in steps_of(denoiser, images, images=64, average=average, rate=Constant(1e-4), optimizer=RAdam()):
        decay = average(step.step)
        expected = decay * expected + (1 - decay) * weights(step.student)
    assert step.step == 8
    moved = weights(step.ema) - start
    assert float((moved - (expected - start)).norm() / moved.norm()) < 1e-9
    assert float(moved.norm() / (weights(denoiser) - start).norm()) < (1 if average.warmup else 0.006)


def test_the_published_recipe_is_the_published_loss(edm) -> None:
    """‖f(x_t, t) − f(x_r, r)‖/(t − r) with t = e^(−1.1 + 2z), of which nothing is cut off."""
    data = noise_images(size=8)
    (step,) = run(edm, data, **(ect_one_hour(128) | {"dropout": None, "rate": Constant(0.0)}))
    rows = Rows(data, lambda z: z, seed=0)
    x0, eps, z, *_ = next(rows.batches(0, 128, 128))
    t = (-1.1 + 2.0 * z).exp()
    r = t * (1 - (1 + 8 / (1 + t.exp())) / 256)
    with torch.no_grad():
        difference = edm(x0 + like(t, x0) * eps, t) - edm(x0 + like(r, x0) * eps, r)
    assert step.loss == pytest.approx(float((difference.flatten(1).norm(dim=1) / (t - r)).mean()), rel=2e-4)


@pytest.mark.parametrize("parametrisation", ["vp", "edm"])
def test_levels_end_where_a_schedule_does(parametrisation: str, images) -> None:
    """A VP network has no time for more noise; an EDM network has, and the published code does not cut it off at 80."""
    seen = []
    denoiser = tiny(parametrisation)

    def gap(t: torch.Tensor, progress: float) -> torch.Tensor:
        seen.append(t)
        return t / 2

    run(denoiser, images, noise=LogNormal(P_mean=6.0), gap=gap)
    assert (float(torch.cat(seen).max()) > 1.5 * denoiser.schedule.sigma_max) == (parametrisation == "edm")


def test_the_default_is_the_fast_precision(images) -> None:
    """In Python as on the command line: bfloat16 where the hardware computes it."""
    by_default, fast = (
        list(tune(tiny(), images, **SETTINGS, **given))[-1]
        for given in ({}, {"accelerator": Accelerator(cpu=True, mixed_precision=fast_precision())})
    )
    assert torch.equal(weights(by_default.ema), weights(fast.ema))


@pytest.mark.parametrize("segments", [1, 3])
def test_each_row_stays_in_its_segment(segments: int, images) -> None:
    """The loss is that of rows whose lower edge is the next level of the stock DDIM grid below t, and whose r is above."""
    denoiser = tiny()
    (step,) = run(denoiser, images, images=32, batch=32, segments=segments, rate=Constant(0.0))
    rows = Rows(images, partial(LogNormal(), sigma_max=denoiser.schedule.sigma_max), seed=0)
    x0, eps, t, *_ = next(rows.batches(0, 32, 32))
    scheduler = DDIMScheduler.from_config(schedulers.write(denoiser).config, timestep_spacing="trailing")
    scheduler.set_timesteps(segments)
    edges = [0.0, *denoiser.schedule.ln_sigmas[scheduler.timesteps].exp().tolist()[:0:-1]]
    assert len(edges) == segments
    lo = torch.tensor([max(edge for edge in edges if edge < float(level)) for level in t])
    assert len(lo.unique()) == segments
    loss = consistency_loss(denoiser, x0, eps, t, ECTGap(q=4, stages=2)(t, 0.0), lo)
    assert step.loss == pytest.approx(loss.mean().item(), rel=1e-4)


def test_full_gap_is_denoising_in_any_segment(images) -> None:
    """r = lo for every row: however many segments, the target is x0 and the student is called once."""
    losses = []
    for segments in (1, 4):
        denoiser = tiny()
        with count_nfe(denoiser.network) as nfe:
            (step,) = run(
                denoiser, images, images=8, gap=FullGap(), segments=segments, weight=OutputScale(), rate=Constant(0.0)
            )
        assert nfe.calls == 1
        losses.append(step.loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_several_averages_are_those_of_runs_with_one(images) -> None:
    """And they go on bit-equal from a saved state."""
    averages = (Exponential(0.5), Exponential(0.9))
    alone = [weights(run(tiny(), images, average=average)[-1].ema) for average in averages]
    together = run(tiny(), images, average=averages)[-1]
    first = run(tiny(), images, images=24, average=averages, gap=ECTGap(q=4, stages=1))[-1].state()
    settings = {"average": averages, "gap": ECTGap(q=4, stages=1)}
    whole, rest = run(tiny(), images, **settings)[-1], run(tiny(), images, state=first, **settings)[-1]
    assert not torch.equal(alone[0], alone[1])
    for k in range(2):
        assert torch.equal(weights(together.emas[k]), alone[k])
        assert torch.equal(weights(rest.emas[k]), weights(whole.emas[k]))


def test_a_teacher_resumes_with_its_student(images) -> None:
    """Distillation, too, goes on bit-equal; the teacher itself never changes."""
    teacher = tiny().requires_grad_(False)
    settings = {"hop": Heun(teacher), "segments": 2}
    before = weights(teacher).clone()
    whole = run(tiny(), images, **settings)
    state = next(s for s in steps_of(tiny(), images, **settings) if s.step == 3).state()
    rest = run(tiny(), images, state=copy.deepcopy(state), **settings)
    assert torch.equal(weights(rest[-1].ema), weights(whole[-1].ema))
    assert torch.equal(weights(teacher), before)


def test_full_gap_trains_a_diffusion_model(vp) -> None:
    """Of one picture, which it knows by heart after eighty steps."""
    recipe = diffusion(640, batch=8) | {"rate": Constant(3e-3)}  # without the warm-up of a hundred
    losses = [step.loss for step in run(vp, noise_images(1), **recipe)]
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


def test_resume_is_bit_equal(images, tmp_path) -> None:
    """Stopped after any step and resumed, dropout and a growing average included, as if it had never been stopped."""
    settings = {"dropout": Dropout(0.3), "average": PowerFunction(0.1)}
    whole = run(tiny(), images, **settings)
    save_state(tmp_path / "state.pt", next(s for s in steps_of(tiny(), images, **settings) if s.step == 4).state())
    torch.manual_seed(99)  # nothing may depend on it
    rest = run(tiny(), images, state=load_state(tmp_path / "state.pt"), **settings)
    assert [s.step for s in rest] == [5, 6]
    assert torch.equal(weights(rest[-1].student), weights(whole[-1].student))
    assert torch.equal(weights(rest[-1].ema), weights(whole[-1].ema))


def test_training_leaves_the_callers_generator_alone(images) -> None:
    """Dropout included: what the caller draws between two steps neither depends on them nor changes them."""
    settings = {"dropout": Dropout(0.3), "images": 24}
    expected = weights(run(tiny(), images, **settings)[-1].student).clone()
    torch.manual_seed(5)
    alone = torch.rand(3)
    steps = steps_of(tiny(), images, **settings)
    next(steps)  # a loader draws when it starts
    torch.manual_seed(5)
    drawn = [(step, torch.rand(1)) for step in steps]
    assert len(drawn) == 2 and torch.equal(torch.cat([each for _, each in drawn]), alone[:2])
    assert torch.equal(weights(drawn[-1][0].student), expected)


def half_frozen() -> torch.nn.Module:
    """Its first half does not train."""
    denoiser = tiny()
    denoiser.network.down_blocks.requires_grad_(False)
    denoiser.network.mid_block.requires_grad_(False)
    return denoiser


def test_a_state_that_has_seen_more_than_is_asked_for_is_refused(images) -> None:
    state = run(tiny(), images, images=16)[-1].state()
    with pytest.raises(ValueError, match="already seen more than 8 images"):
        run(tiny(), images, images=8, state=state)


def test_what_is_frozen_is_neither_saved_nor_averaged_and_the_run_resumes(images) -> None:
    whole = run(half_frozen(), images)[-1]
    state = next(s for s in steps_of(half_frozen(), images) if s.step == 3).state()
    names = {name for name, p in half_frozen().named_parameters() if p.requires_grad}
    assert len(names) < 0.6 * len(list(half_frozen().parameters()))
    assert state["student"].keys() == state["emas"][0]["weights"].keys() == names
    assert len(state["optimizer"]["state"]) == len(names)
    rest = run(half_frozen(), images, state=copy.deepcopy(state))[-1]
    assert torch.equal(weights(rest.student), weights(whole.student)) and torch.equal(weights(rest.ema), weights(whole.ema))
    for name, p in rest.ema.named_parameters():
        assert (p is rest.student.get_parameter(name)) == (name not in names)
    again = averages_in(state, half_frozen())[0]
    frozen = half_frozen().network.mid_block.state_dict()
    assert all(torch.equal(p, frozen[name]) for name, p in again.network.mid_block.named_parameters())


def test_buffers_are_saved_as_training_changes_them() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2).requires_grad_(False), torch.nn.BatchNorm1d(2))
    names = {"1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert changing(network).keys() == names


def test_a_state_that_is_not_this_runs_is_refused(images) -> None:
    """One of another format, and one of a network of which more was trained."""
    state = run(tiny(), images, images=8)[-1].state()
    old = {name: value for name, value in state.items() if name != "format"}
    with pytest.raises(ValueError, match="format 0, and this fewstep reads format 2"):
        run(tiny(), images, state=old)
    with pytest.raises(ValueError, match="with the same parts frozen"):
        run(half_frozen(), images, state=state)
    with pytest.raises(ValueError, match="with the same parts frozen"):
        averages_in(state, half_frozen())


def test_the_host_asks_once_a_step(images, monkeypatch) -> None:
    """For the loss and whether all is finite: three numbers at once. Besides, it asks what it has itself: the gap, and
    whether a row is inside its segment."""
    asked = []
    for name in ("item", "tolist", "__float__", "__int__", "__bool__", "__index__", "numpy"):

        def counting(self: torch.Tensor, *args, was=getattr(torch.Tensor, name)):
            asked.append((Path(sys._getframe(1).f_code.co_filename).name, self.numel()))
            return was(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counting)
    steps = steps_of(tiny(), images, optimizer=sgd, max_grad_norm=1.0, segments=2)
    next(steps)
    asked.clear()
    next(steps)
    assert sorted(asked) == [("loss.py", 1), ("tuning.py", 1), ("tuning.py", 3)]


def test_killed_and_resumed_is_bit_equal(tmp_path) -> None:
    """SIGKILL at arbitrary moments, also while a state is written."""
    with Forked(killed_worker.main, tmp_path) as process:
        assert process.wait() == 0
    ours, theirs = (torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_two_processes_are_one(tmp_path) -> None:
    """The same global batch over two processes (gloo) gives the losses of one process."""
    launch("tune_worker", tmp_path, 2)
    losses, world = torch.load(tmp_path / "losses.pt", weights_only=True)
    assert (len(losses), world) == (6, 2)
    assert losses == pytest.approx([step.loss for step in run(tiny(), noise_images())], rel=1e-5)


def test_processes_may_differ_in_how_often_they_ask_a_network_with_buffers(tmp_path) -> None:
    """DDP copies the first process's buffers to all others in each call with gradient, and waits for all to make it."""
    launch("buffered_worker", tmp_path, 2)
    (losses, twice), (same, once) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert losses == same and len(losses) == 6
    assert (twice, once) == (12, 11)  # its own last call; what the other counted before came with the buffers


def test_a_student_spread_over_two_processes_is_one(tmp_path) -> None:
    """FSDP2: losses, averages and state are those of one process, and a resumed run goes on bit-equal.

    Processes of which only one needs a second answer do not wait for each other.
    """
    launch("spread_worker", tmp_path, 2)
    for name, (student, more) in spread_worker.RUNS.items():
        two = load_state(tmp_path / f"{name}.pt")
        torch.testing.assert_close(two["rest"], two["whole"], rtol=0, atol=0)
        one = spread_worker.result(run(student(), noise_images(), **(spread_worker.SETTINGS | more)))
        torch.testing.assert_close(two["whole"], one, rtol=1e-5, atol=3e-6)
        state = load_state(tmp_path / f"{name}-2.pt")
        rest = run(student(), noise_images(), state=state, **(spread_worker.SETTINGS | more))
        torch.testing.assert_close(spread_worker.result(rest)["said"], one["said"], rtol=1e-5, atol=3e-6)
    ours, theirs = (torch.load(tmp_path / f"uneven-{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert {"model", "model-0.9", "receipt.json", "state.pt"} <= set(os.listdir(tmp_path / "run"))


def test_a_student_is_spread_by_fsdp2_alone(images) -> None:
    accelerator = Accelerator(cpu=True)
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=1)
    with pytest.raises(ValueError, match="fsdp_version 2"):
        run(tiny(), images, accelerator=accelerator)


def test_accumulated_micro_batches_are_one_batch(images) -> None:
    whole = run(tiny(), images, optimizer=sgd)
    split = run(tiny(), images, optimizer=sgd, accelerator=Accelerator(cpu=True, gradient_accumulation_steps=4))
    assert [s.loss for s in split] == pytest.approx([s.loss for s in whole], rel=1e-4)
    torch.testing.assert_close(weights(split[-1].student), weights(whole[-1].student), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("bad", "said", "ruined"),
    [
        (lambda difference: difference.flatten(1).sum(1) + math.inf, "the loss is inf", False),
        (lambda difference: (difference.flatten(1).square().sum(1) * 0).sqrt(), "the loss is 0 .* norm nan", True),
    ],
    ids=["loss", "gradient"],
)
def test_what_is_not_finite_is_no_step_and_stays_out_of_the_average(images, bad, said: str, ruined: bool) -> None:
    """The loss with a finite gradient, or the other way round. Where the weights are ruined no state can be had of them."""
    calls, seen = [], []

    def distance(difference: torch.Tensor) -> torch.Tensor:
        calls.append(difference)
        return bad(difference) if len(calls) == 3 else difference.flatten(1).square().sum(1)

    def watch() -> None:
        for step in steps_of(tiny(), images, distance=distance, average=Exponential(0.5)):
            step.state()
            seen.append((weights(step.ema).clone(), step))

    with pytest.raises(FloatingPointError, match=f"step 3: {said}"):
        watch()
    ema, step = seen[-1]
    assert step.step == 2 and torch.equal(weights(step.ema), ema) and ema.isfinite().all()
    with pytest.raises(FloatingPointError, match="so there is no state to save") if ruined else nullcontext():
        step.state()


def test_an_update_that_is_not_finite_is_no_step_and_stays_out_of_the_average(images) -> None:
    """Also the last one, which no further loss would show."""
    denoiser, seen = tiny(), []

    def watch() -> None:
        wild = {"rate": lambda step, progress: 1e-3 if step < 2 else 1e30}
        for step in steps_of(denoiser, images, images=24, average=Exponential(0.5), **wild):
            seen.append((step.step, weights(step.ema).clone(), step))

    with pytest.raises(FloatingPointError, match="step 3: the weights after it are not finite"):
        watch()
    last, ema, step = seen[-1]
    assert last == 2 and torch.equal(weights(step.ema), ema) and ema.isfinite().all()


def test_a_level_at_an_edge_ends_the_segment_below_it(images) -> None:
    """Where one segment ends the next call of the sampler begins, so there the student must reach the next edge."""
    denoiser = tiny()
    top, upper, lower = denoiser.schedule.grid(3).float().tolist()
    gap = ECTGap(q=256, stages=1)
    (step,) = run(denoiser, images, images=32, batch=32, segments=3, gap=gap, noise=Levels((lower, upper, top)),
                  rate=Constant(0.0))  # fmt: skip
    rows = Rows(images, partial(Levels((lower, upper, top)), sigma_max=denoiser.schedule.sigma_max), seed=0)
    x0, eps, t, *_ = next(rows.batches(0, 32, 32))
    below = dict(zip(torch.tensor([top, upper, lower]).tolist(), (upper, lower, 0.0), strict=True))
    lo = torch.tensor([below[float(level)] for level in t])
    assert len(lo.unique()) == 3
    assert step.loss == pytest.approx(consistency_loss(denoiser, x0, eps, t, gap(t, 0.0), lo).mean().item(), rel=1e-4)


def test_clipping_bounds_the_step(images) -> None:
    """With plain gradient descent the weights move by the clipped norm times the rate."""
    denoiser = tiny()
    before = weights(denoiser)
    next(steps_of(denoiser, images, optimizer=torch.optim.SGD, max_grad_norm=0.01, rate=Constant(1.0)))
    assert float((weights(denoiser) - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_conditional_models_see_their_labels() -> None:
    """With labels the loss is that of the conditional denoiser."""
    data = noise_images(labels=True)
    denoiser = tiny(classes=3)
    (step,) = run(denoiser, data, images=8, rate=Constant(0.0))
    rows = Rows(data, partial(LogNormal(), sigma_max=denoiser.schedule.sigma_max), seed=0)
    x0, eps, t, cond, _ = next(rows.batches(0, 8, 8))
    loss = consistency_loss(denoiser, x0, eps, t, ECTGap(q=4, stages=2)(t, 0.0), t * 0, cond=cond)
    assert step.loss == pytest.approx(loss.mean().item(), rel=1e-5)


def dit() -> Denoiser:
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=3, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10, norm_type="ada_norm_zero", norm_elementwise_affine=False,
    )  # fmt: skip
    for layer in network.modules():
        if isinstance(layer, LabelEmbedding):
            layer.dropout_prob = 0.5
    return Denoiser(network, discrete_vp({"beta_schedule": "linear"}), epsilon)


def test_a_row_has_one_label_throughout_the_network() -> None:
    """Each block of a DiT would drop its own: one draw a row for all of them, for both passes and for the teacher."""
    data, denoiser, teacher, seen = Images(torch.randn(32, 4, 8, 8), torch.arange(32) % 10), dit(), dit(), []
    for network in (denoiser.network, teacher.train().network):
        for layer in network.modules():
            if isinstance(layer, LabelEmbedding):
                layer.embedding_table.register_forward_hook(lambda layer, args, out: seen.append(args[0].tolist()))
    halved = {"gap": lambda t, progress: t / 2}  # no row at an edge, so the second pass asks all
    for step in steps_of(denoiser, data, images=64, batch=32, hop=Euler(teacher), **halved):
        step.student.eval()  # as a caller does who samples it between two steps
        assert len(seen) == 3 * 4  # three passes of three blocks and the output layer
        assert all(labels == seen[0] for labels in seen)
        dropped = seen[0].count(10)
        assert 6 <= dropped <= 26  # half of 32; outside are 3 in 10,000
        rows = Rows(data, LogNormal(), seed=0)
        given = [int(rows[row][3]["class_labels"]) for row in range(32 * step.step - 32, 32 * step.step)]
        assert dropped + sum(ours == theirs for ours, theirs in zip(seen[0], given, strict=True)) == 32
        seen.clear()
    assert step.step == 2


def test_a_student_that_was_sampled_between_two_steps_still_trains(images) -> None:
    """Its dropout, too."""
    settings = {"dropout": Dropout(0.3), "images": 24}
    whole, sampled = run(tiny(), images, **settings)[-1], None
    for sampled in steps_of(tiny(), images, **settings):
        sampled.student.eval()
    assert torch.equal(weights(sampled.student), weights(whole.student))


PATHS = Paths(torch.zeros(8, 3, 1, 8, 8).half(), torch.tensor([2.0, 1.0, 0.0]), torch.zeros(1))


@pytest.mark.parametrize(
    ("settings", "data", "message"),
    [
        ({"images": 0}, noise_images(), "at least 1"),
        ({"segments": 0}, noise_images(), "segments must be at least 1"),
        ({"batch": 0}, noise_images(), "must be at least 1"),
        ({"max_grad_norm": 0.0}, noise_images(), "above 0"),
        ({"seed": -1}, noise_images(), "seed"),
        ({"margin": 0.1}, noise_images(), "margin must be at least 0, and 0 with one segment"),
        ({"segments": (1, 2)}, PATHS, "paths"),
        ({"accelerator": "fp16"}, noise_images(), "float16"),
        ({"accelerator": "accumulate"}, noise_images(), "multiple of 3"),
    ],
)
def test_impossible_arguments_are_refused(settings, data, message) -> None:
    from types import SimpleNamespace

    if "accelerator" in settings:
        fake = SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=1, mixed_precision="no",
                               gradient_accumulation_steps=1)  # fmt: skip
        fake.mixed_precision = "fp16" if settings["accelerator"] == "fp16" else "no"
        fake.gradient_accumulation_steps = 3 if settings["accelerator"] == "accumulate" else 1
        settings = {"accelerator": fake}
    with pytest.raises(ValueError, match=message):
        run(tiny(), data, **settings)


def test_unconditional_models_ignore_labels(images) -> None:
    labelled = Images(images.pixels, torch.zeros(len(images), dtype=torch.long))
    assert [s.loss for s in run(tiny(), labelled)] == [s.loss for s in run(tiny(), images)]


def test_conditional_model_needs_labels(images) -> None:
    with pytest.raises(ValueError, match="no labels"):
        run(tiny(classes=3), images)
