"""The text-to-image model that comes along: what it draws is what its prompts say, most of the time."""

import torch

from fewstep.core.source import ASSETS
from fewstep.diffusion.data.clothes import CAPTIONS
from fewstep.diffusion.formats.folder import load
from fewstep.diffusion.measure.matching import ClothesMatch
from fewstep.diffusion.walk import DDIM, sample


def test_guidance_draws_what_the_prompt_says() -> None:
    model = load("bundled-text")
    assert model.pipeline is not None
    prompts = list(CAPTIONS)
    cond, null = model.pipeline.conditions(prompts)
    assert null is not None
    guided = model.pipeline.guided(model.denoiser, 3.0, null)
    pictures = model.decode(sample(guided, range(60), DDIM(4), cond))
    assert pictures.shape == (60, 3, 32, 32) and pictures.dtype == torch.uint8
    others = prompts[6:] + prompts[:6]  # the same colours, other garments
    judge = ClothesMatch().eval()
    assert judge(pictures, prompts).mean() > 0.8 > 0.2 > judge(pictures, others).mean()


def test_its_prompts_lie_beside_it() -> None:
    assert tuple((ASSETS / "text_to_image" / "prompts.txt").read_text().splitlines()) == CAPTIONS
