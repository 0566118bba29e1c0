"""Early commit inside other libraries' loops, on tiny random models of their own classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import BlockRefinementScheduler, LLaDA2Pipeline
from torch import Tensor, nn
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, LlamaConfig, LlamaForCausalLM
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    DiffusionGemmaGenerationConfig,
    EntropyBoundSamplerConfig,
)

from fewstep.core.nfe import count_nfe
from fewstep.masked.ecosystem import EarlyCommitScheduler, GapStopping, stopping
from fewstep.masked.schedule import Linear, Stairs

NEVER = (float("inf"),)


@pytest.fixture(scope="module")
def gemma() -> nn.Module:
    torch.manual_seed(0)
    text = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "global_head_dim": 16, "max_position_embeddings": 64,
        "sliding_window": 16, "num_experts": 2, "top_k_experts": 1, "moe_intermediate_size": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    vision = {
        "model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16,
    }  # fmt: skip
    config = DiffusionGemmaConfig(text_config=text, vision_config=vision, canvas_length=8)
    return DiffusionGemmaForBlockDiffusion(config).eval()


def denoise(model: nn.Module, criterion: GapStopping, steps: int = 6) -> tuple[Tensor, list[Tensor]]:
    """The generated canvas (two rows) and the logits of every step, as the criterion sees them."""
    logits: list[Tensor] = []

    class Recorder(GapStopping):
        def __call__(self, argmax_canvas: Tensor, logits_seen: Tensor, **kwargs: Any) -> Tensor:
            logits.append(logits_seen.clone())
            return criterion(argmax_canvas, logits_seen, **kwargs)

        def reset(self) -> None:
            criterion.reset()

    config = DiffusionGemmaGenerationConfig(
        max_new_tokens=8, max_denoising_steps=steps, sampler_config=EntropyBoundSamplerConfig(0.1), pad_token_id=0,
        t_min=0.4, t_max=0.8,
    )  # fmt: skip
    torch.manual_seed(3)
    with stopping(model, Recorder(steps)), count_nfe(model.lm_head) as nfe:
        out = model.generate(torch.tensor([[3, 4, 5], [6, 7, 8]]), generation_config=config)
    assert nfe.calls == len(logits)
    return out.sequences[:, 3:], logits


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of what generate imports
def test_gemma_stops_where_the_gaps_say(gemma: nn.Module) -> None:
    full, logits = denoise(gemma, GapStopping(6, Stairs(NEVER, ())))
    assert len(logits) == 6 and torch.equal(full, logits[-1].argmax(-1))
    top = torch.stack(logits).topk(2).values
    smallest = (top[..., 0] - top[..., 1]).mean(-1).amin(1)  # of the two rows, at each step
    level = smallest[:4].max().item()
    step = int((smallest >= level).nonzero()[0])
    assert 0 < step < 5
    reached = (top[..., 0] - top[..., 1]).mean(-1) >= level
    ends = [int(reached[:, row].nonzero()[0]) for row in range(2)]
    quick, seen = denoise(gemma, GapStopping(6, Stairs((level,), ())))
    assert len(seen) == max(ends) + 1 < 6
    assert torch.equal(quick[0], seen[ends[0]][0].argmax(-1)) and torch.equal(quick[1], seen[ends[1]][1].argmax(-1))
    assert len(denoise(gemma, GapStopping(6, Stairs((0.0,), ())))[1]) == 1
    late = denoise(gemma, GapStopping(6, Linear(1e9, -1e9), "minimum"))[1]
    assert len(late) == 4  # τ first reaches 0 at progress 3/6


def test_stopping_leaves_no_trace_and_refuses_other_models(gemma: nn.Module) -> None:
    before = gemma._prepare_diffusion_stopping_criteria
    with stopping(gemma, GapStopping(6)):
        assert gemma._prepare_diffusion_stopping_criteria != before
    assert gemma._prepare_diffusion_stopping_criteria == before
    with pytest.raises(ValueError, match="Linear does not denoise"), stopping(nn.Linear(1, 1), GapStopping(6)):
        pass


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, is_causal=False,
        max_position_embeddings=64, initializer_range=0.4,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    return model


def run(model: nn.Module, scheduler: Any, **options: Any) -> tuple[Tensor, int]:
    pipeline = LLaDA2Pipeline(model=model, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    settings = {
        "gen_length": 16, "num_inference_steps": 8, "threshold": 2.0, "editing_threshold": None, "output_type": "seq",
        "mask_token_id": 31, "eos_token_id": 30, "sampling_method": "greedy",
    }  # fmt: skip
    with count_nfe(model) as nfe:
        out = pipeline(input_ids=torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [9, 9, 9, 9, 9, 9, 9, 9]]), **settings | options)
    return out.sequences, nfe.calls


def test_llada2_commits_a_block_once_it_is_known(llama: nn.Module) -> None:
    stock, calls = run(llama, BlockRefinementScheduler(block_length=8))
    never, fewer = run(llama, EarlyCommitScheduler(block_length=8, levels=NEVER, at=()))
    assert torch.equal(stock, never) and calls == fewer == 16
    stock, calls = run(llama, BlockRefinementScheduler(block_length=8), threshold=0.4)
    never, fewer = run(llama, EarlyCommitScheduler(block_length=8, levels=NEVER, at=()), threshold=0.4)
    assert torch.equal(stock, never) and calls - 2 <= fewer < calls  # one less for a block that was full early
    at_once, calls = run(llama, EarlyCommitScheduler(block_length=8, levels=(0.0,), at=()))
    assert calls == 2 and (at_once != 31).all()
    x = torch.cat([torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [9] * 8]), torch.full((2, 8), 31)], 1)
    with torch.no_grad():
        logits = llama(x).logits[:, 8:]
    assert torch.equal(at_once[:, :8], logits.argmax(-1))


def test_llada2_rows_end_their_blocks_on_their_own() -> None:
    scheduler = EarlyCommitScheduler(block_length=4, levels=(2.0, 1.0), at=(0.5,), statistic="minimum")
    scheduler.set_timesteps(4)
    sample = torch.tensor([[9, 1, 9, 9], [9, 9, 9, 9]])
    logits = torch.zeros(2, 4, 10)
    logits[0, :, 3], logits[0, 1, 3] = 2.0, 0.0  # the second position is decided and counts no more
    logits[1, :, 4], logits[1, 0, 4], logits[1, 2, 4] = 5.0, 5.5, 1.5
    options: dict[str, Any] = {"mask_token_id": 9, "threshold": 2.0}
    first = scheduler.step(logits, 0, sample, **options)
    assert first.prev_sample.tolist() == [[3, 1, 3, 3], [4, 9, 9, 9]]
    assert first.transfer_index.tolist() == [[True, False, True, True], [True, False, False, False]]
    assert scheduler.step(logits, 2, sample, return_dict=False, **options)[0].tolist() == [[3, 1, 3, 3], [4, 4, 4, 4]]
    with pytest.raises(ValueError, match="needs a mask token"):
        scheduler.step(logits, 0, sample)


def test_the_scheduler_is_its_configuration(tmp_path: Any) -> None:
    EarlyCommitScheduler(block_length=4, levels=(3.0, 1.0), at=(0.5,), statistic=0.1).save_pretrained(tmp_path)
    again = EarlyCommitScheduler.from_pretrained(tmp_path)
    assert again.early == Stairs((3.0, 1.0), (0.5,)) and again.config.statistic == 0.1 and again.config.block_length == 4
