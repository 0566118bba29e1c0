"""Runs of a student that FSDP2 spreads over two processes, which are resumed and asked for all that is in them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from conftest import noise_images
from diffusers import DDPMScheduler, UNet2DModel
from torch.distributed.fsdp import MixedPrecisionPolicy

from fewstep.core.files import load_state, save_state
from fewstep.core.spread import is_spread
from fewstep.diffusion import runs
from fewstep.diffusion.average import Exponential
from fewstep.diffusion.cond import NOTHING
from fewstep.diffusion.denoiser import Denoiser, vp
from fewstep.diffusion.lora import LoRA, adapt
from fewstep.diffusion.noise import ECTGap
from fewstep.diffusion.optim import Constant, RAdam
from fewstep.diffusion.step import Step
from fewstep.diffusion.tuning import tune
from fewstep.diffusion.two_times import TwoTimes


def accelerator() -> Accelerator:
    """accelerate spreads over GPUs alone, and has to be told that these are some."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="TRANSFORMER_BASED_WRAP",
        transformer_cls_names_to_wrap=["ResnetBlock2D", "TimestepEmbedding"],
        mixed_precision_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.bfloat16),
    )  # fmt: skip
    made = Accelerator(cpu=True, fsdp_plugin=plugin)
    made.state.distributed_type, made.state.fsdp_plugin = DistributedType.FSDP, plugin
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    return made


def small() -> Denoiser:
    """A stock network of few tensors: to spread them takes as long as they are many."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=8,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    return vp(network, DDPMScheduler(prediction_type="v_prediction")).eval()


def half_frozen() -> Denoiser:
    denoiser = small()
    denoiser.network.down_blocks.requires_grad_(False)
    return denoiser


def low_rank() -> Denoiser:
    denoiser = TwoTimes(small())
    adapt(denoiser, LoRA(2))
    return denoiser


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Of gradients that are zero Adam would blow up the rounding."""
    return torch.optim.SGD(parameters, momentum=0.9)


SETTINGS: dict[str, Any] = {
    "images": 32, "batch": 8, "gap": ECTGap(q=4, stages=2), "max_grad_norm": 1.0,
    "average": (Exponential(0.5), Exponential(0.9)),
}  # fmt: skip
RUNS: dict[str, tuple[Callable[[], Denoiser], dict[str, Any]]] = {
    "frozen": (half_frozen, {"optimizer": sgd, "rate": Constant(1e-2)}),
    "lora": (low_rank, {"optimizer": sgd, "rate": Constant(1e-2), "segments": (1, 2, 4)}),
    "two": (lambda: TwoTimes(small()), {"optimizer": RAdam(), "rate": Constant(1e-4), "segments": (1, 2, 4)}),
}


def result(steps: Sequence[Step]) -> dict[str, Any]:
    """The last losses of a run, its last state, and what its averages say of one sample."""
    x, level, cond = torch.ones(1, 1, 8, 8), torch.ones(1), NOTHING.until(torch.zeros(1))
    said = [ema(x, level, cond).detach() for ema in steps[-1].emas]
    return {"losses": [step.loss for step in steps[-2:]], "state": steps[-1].state(), "said": said}


def main(folder: Path) -> None:
    made = accelerator()
    for name, (student, more) in RUNS.items():
        kept, steps, denoiser, settings = folder / f"{name}-2.pt", [], student(), SETTINGS | more
        for step in tune(denoiser, noise_images(), accelerator=made, **settings):
            steps.append(step)
            if step.step == 2:
                state = step.state()
                if made.is_main_process:
                    save_state(kept, state)
        assert all(map(is_spread, denoiser.parameters())) and not any(map(is_spread, steps[-1].ema.parameters()))
        whole = result(steps)
        made.wait_for_everyone()
        rest = result([*tune(student(), noise_images(), accelerator=made, state=load_state(kept), **settings)])
        if made.is_main_process:
            save_state(folder / f"{name}.pt", {"whole": whole, "rest": rest})
    # no row of the second process needs a second answer
    gap = ECTGap(q=256, stages=1) if made.is_main_process else lambda t, progress: torch.zeros_like(t)
    steps = [*tune(small(), noise_images(), accelerator=made, images=16, batch=8, gap=gap)]
    torch.save([p.detach() for p in steps[-1].ema.parameters()], folder / f"uneven-{made.process_index}.pt")
    in_a_folder(folder / "run", made)


def in_a_folder(out: Path, made: Accelerator) -> None:
    """A run, which is then asked for the one result that is missing, and for none."""
    runs.default_accelerator = lambda *given: made  # type: ignore[assignment]
    recipe = SETTINGS | {"images": 16}
    first, *again = [_weights(out, recipe, made, resume=number > 0) for number in range(3)]
    assert all(torch.equal(first, each) for each in again)


def _weights(out: Path, recipe: dict[str, Any], made: Accelerator, *, resume: bool) -> torch.Tensor:
    model = runs.run(small(), noise_images(), out, recipe, resume=resume)
    made.wait_for_everyone()
    if made.is_main_process and not resume:
        shutil.rmtree(out / "model-0.9")
    made.wait_for_everyone()
    return torch.cat([p.detach().flatten() for p in model.denoiser.parameters()])
