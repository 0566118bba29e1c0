"""Recipes: the constants that were published, and a step of each."""

from __future__ import annotations

import math

import pytest
from conftest import noise_images, tiny

from fewstep.diffusion.noise import LogNormal
from fewstep.diffusion.recipes import RECIPES, ect_cifar10, ect_imagenet64
from fewstep.diffusion.tuning import tune
from fewstep.diffusion.two_times import TwoTimes


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_tunes(name: str) -> None:
    recipe = RECIPES[name](16) | {"batch": 8}
    denoiser = TwoTimes(tiny()) if name == "any_step" else tiny("edm")
    steps = list(tune(denoiser, noise_images(16), **recipe))
    assert len(steps) == 2 and all(math.isfinite(step.loss) for step in steps)


def test_levels_are_drawn_as_published() -> None:
    """P_mean and P_std of the paper's tables for CIFAR-10 and for ImageNet 64×64."""
    assert ect_cifar10()["noise"] == LogNormal(P_mean=-1.1, P_std=2.0)
    assert ect_imagenet64()["noise"] == LogNormal(P_mean=-0.8, P_std=1.6)
