from __future__ import annotations

import pytest
import torch
from conftest import tiny
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    LCMScheduler,
)

from fewstep.core.nfe import count_nfe
from fewstep.core.seeds import generators
from fewstep.diffusion.cond import Cond, labelled
from fewstep.diffusion.denoiser import Denoiser, edm, flow
from fewstep.diffusion.formats import schedulers
from fewstep.diffusion.prediction import unit_score
from fewstep.diffusion.schedule import Exploding
from fewstep.diffusion.walk import DDIM, Consistency, Heun, Segments, sample

WALKS = [Consistency(3), Segments(3), DDIM(3), Heun(3)]


@pytest.mark.parametrize("walk", WALKS, ids=repr)
def test_an_image_does_not_know_its_batch(walk) -> None:
    denoiser = tiny().double()
    together = sample(denoiser, range(10), walk)
    split = sample(denoiser, range(10), walk, batch=3)
    alone = sample(denoiser, [7], walk)
    torch.testing.assert_close(together, split)
    torch.testing.assert_close(together[7:8], alone)


@pytest.mark.parametrize(("walk", "nfe"), [(Consistency(4), 4), (Segments(4), 4), (DDIM(4), 4), (Heun(4), 7)], ids=repr)
def test_nfe_is_counted_at_the_network(walk, nfe: int) -> None:
    denoiser = tiny()
    with count_nfe(denoiser.network) as counted:
        sample(denoiser, range(6), walk, batch=2)
    assert (counted.calls, counted.rows) == (3 * nfe, 6 * nfe)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_levels_start_at_sigma_max_and_fall(steps: int) -> None:
    flows, exploding = (
        (flow(tiny().network), flow(tiny().network, shift=3.0)),
        Denoiser(tiny().network, Exploding(), unit_score),
    )
    for denoiser in (tiny("vp"), tiny("edm"), tiny("vp", classes=3), *flows, exploding):
        for walk in (Consistency(steps), Segments(steps), DDIM(steps), Heun(steps)):
            levels = walk.levels(denoiser)
            assert len(levels) == steps and float(levels[0]) == pytest.approx(denoiser.schedule.sigma_max)
            assert (levels[1:] < levels[:-1]).all() and (levels > 0).all()


def test_ddim_is_the_stock_pipeline(vp) -> None:
    """Deterministic sampling on the trailing timesteps gives the images of diffusers' own pipeline."""
    scheduler = DDIMScheduler.from_config(
        schedulers.write(vp).config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
    )
    pipeline = DDIMPipeline(vp.network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(batch_size=3, generator=generators(range(3)), num_inference_steps=4, output_type="np").images
    images = (sample(vp, range(3), Segments(4)) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert abs(images - theirs).max() < 1e-5


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_consistency_levels_are_those_of_the_stock_schedulers(steps: int) -> None:
    vp, edm_denoiser = tiny(), tiny("edm")
    lcm = LCMScheduler.from_config(
        schedulers.write(vp).config, original_inference_steps=1000, timestep_spacing="leading", clip_sample=False
    )
    lcm.set_timesteps(steps)
    alphas = lcm.alphas_cumprod[lcm.timesteps].double()
    torch.testing.assert_close(Consistency(steps).levels(vp), ((1 - alphas) / alphas).sqrt(), rtol=1e-12, atol=0)
    stock = CMStochasticIterativeScheduler.from_config(schedulers.write(edm_denoiser).config)
    stock.set_timesteps(steps)
    torch.testing.assert_close(Consistency(steps).levels(edm_denoiser), stock.sigmas[:steps].double())


def test_published_rho() -> None:
    """ρ = 16.21 puts the second of two steps at .821 with sigma_min .002 and sigma_max 80."""
    published = edm(tiny("edm").network, offset=0.002)
    settings = published.schedule.consistency_settings(0.821, published.identity)
    assert settings["rho"] == pytest.approx(16.21, abs=0.005)
    assert float(Consistency(2, middle=1.5).levels(tiny("edm"))[1]) == pytest.approx(1.5, rel=1e-5)


def test_heun_does_not_dwell_where_all_is_noise() -> None:
    """On a schedule that ends in (nearly) pure noise one step leads down to where a sample begins to show."""
    for settings in ({"beta_schedule": "squaredcos_cap_v2"}, {"rescale_betas_zero_snr": True}):
        from fewstep.diffusion.denoiser import vp

        denoiser = vp(tiny().network, DDPMScheduler(prediction_type="v_prediction", **settings))
        levels = Heun(8).levels(denoiser)
        assert float(levels[0]) == denoiser.schedule.sigma_max > 1e4
        assert float(levels[1]) < 100


def test_conditions_are_checked_before_the_first_call() -> None:
    conditional, plain = tiny(classes=3), tiny()
    with count_nfe(conditional.network) as counted:
        with pytest.raises(ValueError, match="needs class_labels"):
            sample(conditional, range(2), Consistency())
        with pytest.raises(ValueError, match="labels 0 to 2, not 3"):
            sample(conditional, range(2), Consistency(), labelled(torch.tensor([0, 3])))
        with pytest.raises(ValueError, match="takes no style"):
            sample(conditional, range(2), Consistency(), Cond({"class_labels": torch.zeros(2), "style": torch.zeros(2)}))
    assert counted.calls == 0
    with pytest.raises(ValueError, match="takes no class_labels"):
        sample(plain, range(2), Consistency(), labelled(torch.tensor([0, 1])))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Consistency(0), "must be between 1 and 100,000"),
        (lambda: Segments(-2), "must be between 1 and 100,000, got -2"),
        (lambda: Consistency(2, 0.8).levels(tiny()), "middle timestep"),
        (lambda: Consistency(2, 0.8).levels(flow(tiny().network)), "even in u"),
        (lambda: Consistency(2, 79.0).levels(tiny("edm")), "between"),
        (lambda: DDIM(1001).levels(tiny()), "too few for 1001"),
        (lambda: Consistency(1001).levels(tiny()), "too few for 1001"),
        (lambda: sample(tiny(), [], DDIM(2)), "at least one seed"),
        (lambda: sample(tiny(), [0], DDIM(2), batch=0), "batch >= 1, got"),
    ],
)
def test_impossible_walks_say_what_is_wrong(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
