"""Tiny random pipelines of diffusers in their published layout: tokenizers and text encoders included, nothing fetched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

WORDS = ("a", "picture", "of", "small", "large", "house", "tree", "boot", "dress", "red", "blue", "at", "night", "beside")
CLIP = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer whose words are single characters and those of WORDS that merges make."""
    letters = sorted(set("".join(WORDS)))
    merges, vocabulary = [], ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair, made = (parts[0], parts[1]), parts[0] + parts[1]
            if made not in vocabulary:
                merges.append(" ".join(pair))
                vocabulary.append(made)
            parts = [made, *parts[2:]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def clip_text(kind: Any = CLIPTextModel, vocabulary: int = 200, **settings: Any) -> Any:
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, **(CLIP | settings),
    )  # fmt: skip
    return kind(config).eval()


def t5_tokenizer() -> T5TokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *(("▁" + word, -3.0) for word in WORDS)]
    pieces += [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(tokenizer_object=tokenizer, model_max_length=16, extra_ids=0)


def t5_text() -> T5EncoderModel:
    config = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def vae(channels: int = 4, **settings: Any) -> AutoencoderKL:
    """A decoder of factor 2."""
    return AutoencoderKL(
        block_out_channels=(8, 8), in_channels=3, out_channels=3, latent_channels=channels, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16,
        **settings,
    ).eval()  # fmt: skip


def stable_diffusion(folder: Path) -> StableDiffusionPipeline:
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=2,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, timestep_spacing="trailing",
        set_alpha_to_one=True,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae(), clip_text(), clip_tokenizer(folder / "clip"), unet, scheduler, None, None, requires_safety_checker=False
    )


def flux(folder: Path) -> FluxPipeline:
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return FluxPipeline(
        scheduler, vae(scaling_factor=0.36, shift_factor=0.11), clip_text(), clip_tokenizer(folder / "clip"), t5_text(),
        t5_tokenizer(), transformer,
    )  # fmt: skip


def dit(folder: Path) -> DiTPipeline:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        patch_size=2, num_embeds_ada_norm=1000, norm_type="ada_norm_zero", norm_elementwise_affine=False,
    )  # fmt: skip
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True)
    return DiTPipeline(transformer, vae(), scheduler, id2label={"0": "tench", "1": "goldfish, carp"})


FAMILIES: dict[str, Callable[[Path], Any]] = {"stable_diffusion": stable_diffusion, "flux": flux, "dit": dit}
CALLS: dict[str, dict[str, object]] = {
    "flux": {"height": 16, "width": 16, "max_sequence_length": 12},
}  # where the defaults are too large for a test


def tiny_pipeline(family: str, folder: Path) -> Path:
    """The folder of a pipeline of that family, with random weights that are the same every time."""
    torch.manual_seed(0)
    pipeline = FAMILIES[family](folder)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            for _, weight in part.named_parameters():
                if not weight.any():  # what is zero at the start of a training would make any mistake invisible
                    torch.nn.init.normal_(weight, std=0.1)
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"
