"""The text-to-image model that comes along: what it draws is what its prompts say, most of the time."""

import re
from pathlib import Path

import torch

from fewstep.core.source import ASSETS
from fewstep.diffusion.checkpoints import tune_checkpoint
from fewstep.diffusion.choices import Lessons, Run, Training
from fewstep.diffusion.data.clothes import CAPTIONS
from fewstep.diffusion.formats.folder import load
from fewstep.diffusion.measure.matching import ClothesMatch
from fewstep.diffusion.objective import Loss
from fewstep.diffusion.using import export_checkpoint
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


def test_the_example_on_the_card_of_its_adapter_runs(tmp_path: Path, monkeypatch, stock_apart) -> None:
    """By plain diffusers, in the folder where the adapter lies."""
    prompts = ASSETS / "text_to_image" / "prompts.txt"
    lessons = Lessons("teacher", prompts=prompts, guidance=3.0, teacher_images=4, teacher_steps=2)
    tuned = Run(tmp_path / "run", precision="no")
    tune_checkpoint("bundled-text", lessons, tuned, loss=Loss("any"), training=Training(images=8, batch=4, lora=2))
    export_checkpoint(str(tmp_path / "run"), tmp_path / "adapter", steps=(2,))
    (example,) = re.findall(r"```python\n(.*?)```", (tmp_path / "adapter" / "README.md").read_text(), re.DOTALL)
    (tmp_path / "example.py").write_text(example.rstrip() + ".images[0].save('drawn.png')")
    monkeypatch.chdir(tmp_path)
    stock_apart("example.py")
    assert (tmp_path / "drawn.png").stat().st_size > 100
