"""Tiny random pipelines of diffusers in their published layout: tokenizers and text encoders included, nothing fetched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AudioLDMPipeline,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    DanceDiffusionPipeline,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    IPNDMScheduler,
    LDMPipeline,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet1DModel,
    UNet2DConditionModel,
    UNet2DModel,
    UniPCMultistepScheduler,
    VQModel,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    ClapTextConfig,
    ClapTextModelWithProjection,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    RobertaTokenizer,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

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


def t5_text(width: int = 16) -> T5EncoderModel:
    config = T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def bytes_of(*special: str) -> dict[str, int]:
    """A vocabulary of some special tokens and of all bytes, as byte-level tokenizers write them."""
    from tokenizers import pre_tokenizers

    return {token: k for k, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}


def qwen_tokenizer() -> Qwen2Tokenizer:
    tokenizer = Qwen2Tokenizer(
        vocab=bytes_of("<|endoftext|>", "<|im_start|>", "<|im_end|>"), merges=[], model_max_length=512,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}{{ m.content }}<|im_end|>{% endfor %}"
    return tokenizer


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


def stable_diffusion_xl(folder: Path) -> StableDiffusionXLPipeline:
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=(2, 2), transformer_layers_per_block=(1, 2), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=64,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
    )
    return StableDiffusionXLPipeline(
        vae(), clip_text(), clip_text(CLIPTextModelWithProjection, projection_dim=16), clip_tokenizer(folder / "clip"),
        clip_tokenizer(folder / "clip"), unet, scheduler, add_watermarker=False,
    )  # fmt: skip


def pixart(folder: Path) -> PixArtAlphaPipeline:
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, cross_attention_dim=16,
        sample_size=8, patch_size=2, caption_channels=16, use_additional_conditions=False, norm_num_groups=4,
    )  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.0001, beta_end=0.02, timestep_spacing="trailing", solver_order=1, final_sigmas_type="zero"
    )
    return PixArtAlphaPipeline(t5_tokenizer(), t5_text(), vae(), transformer, scheduler)


def stable_diffusion_3(folder: Path) -> StableDiffusion3Pipeline:
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32,
        pos_embed_max_size=8,
    )  # fmt: skip
    encoder = CLIPTextModelWithProjection
    return StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), vae(shift_factor=0.06),
        clip_text(encoder, projection_dim=16), clip_tokenizer(folder / "clip"),
        clip_text(encoder, projection_dim=16), clip_tokenizer(folder / "clip"), t5_text(32), t5_tokenizer(),
    )  # fmt: skip


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


def sana(folder: Path) -> SanaPipeline:
    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16,
        sample_size=32, patch_size=1, timestep_scale=0.5,
    )  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=1, final_sigmas_type="zero"
    )
    decoder = AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=4, encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_block_types=("ResBlock",) * 2, decoder_block_types=("ResBlock",) * 2,
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()), downsample_block_type="conv", upsample_block_type="interpolate",
        decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41,
    )  # fmt: skip
    text = Gemma2Config(
        vocab_size=400, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    special = {token: k for k, token in enumerate(("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁"))}
    letters = {letter: len(special) + k for k, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    tokenizer = GemmaTokenizer(vocab=special | letters, merges=[])
    return SanaPipeline(tokenizer, Gemma2Model(text).eval(), decoder, transformer, scheduler)


def qwen_image(folder: Path) -> QwenImagePipeline:
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=1.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, base_image_seq_len=256,
        max_image_seq_len=8192, shift_terminal=0.02,
    )  # fmt: skip
    decoder = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.7, 1.0, 2.0],
    )  # fmt: skip
    text = {
        "vocab_size": 300, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    vision["fullatt_block_indexes"] = [0]
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()
    return QwenImagePipeline(scheduler, decoder, encoder, qwen_tokenizer(), transformer)


def z_image(folder: Path) -> ZImagePipeline:
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    text = Qwen3Config(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return ZImagePipeline(scheduler, vae(shift_factor=0.1), Qwen3Model(text).eval(), qwen_tokenizer(), transformer)


def wan(folder: Path) -> WanPipeline:
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=16, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    decoder = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[True, True], scale_factor_spatial=4,
        scale_factor_temporal=4, latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.7, 1.0, 2.0],
    )  # fmt: skip
    text = UMT5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=1, final_sigmas_type="zero",
        disable_corrector=list(range(4)),
    )  # fmt: skip
    return WanPipeline(t5_tokenizer(), UMT5EncoderModel(text).eval(), decoder, scheduler, transformer)


def ldm(folder: Path) -> LDMPipeline:
    unet = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    decoder = VQModel(
        block_out_channels=(8, 8), in_channels=3, out_channels=3, latent_channels=3, norm_num_groups=4,
        num_vq_embeddings=32, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False, timestep_spacing="trailing",
        set_alpha_to_one=True,
    )  # fmt: skip
    return LDMPipeline(decoder.eval(), unet, scheduler)


def audio_ldm(folder: Path) -> AudioLDMPipeline:
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=(8, 16), attention_head_dim=2, class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=16, class_embeddings_concat=True,
    )  # fmt: skip
    text = ClapTextConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=16, max_position_embeddings=40,
    )  # fmt: skip
    tokenizer = RobertaTokenizer(vocab=bytes_of("<s>", "<pad>", "</s>", "<unk>", "<mask>"), merges=[], model_max_length=24)
    vocoder = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=8, sampling_rate=16000, upsample_initial_channel=8, upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]], normalize_before=False,
        )
    ).eval()  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False, timestep_spacing="trailing",
        set_alpha_to_one=True,
    )  # fmt: skip
    decoder = AutoencoderKL(
        block_out_channels=(8, 8), in_channels=1, out_channels=1, latent_channels=4, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    encoder = ClapTextModelWithProjection(text).eval()
    return AudioLDMPipeline(decoder.eval(), encoder, tokenizer, unet, scheduler, vocoder)


def dance_diffusion(folder: Path) -> DanceDiffusionPipeline:
    unet = UNet1DModel(
        sample_size=64, sample_rate=1600, in_channels=2, out_channels=2, extra_in_channels=16, time_embedding_dim=16,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D"), up_block_types=("UpBlock1D", "UpBlock1DNoSkip"),
        use_timestep_embedding=False, flip_sin_to_cos=True,
    )  # fmt: skip
    return DanceDiffusionPipeline(unet, IPNDMScheduler())


FAMILIES: dict[str, Callable[[Path], Any]] = {
    made.__name__: made
    for made in (
        stable_diffusion, stable_diffusion_xl, pixart, dit, stable_diffusion_3, flux, sana, qwen_image, z_image, wan, ldm,
        audio_ldm, dance_diffusion,
    )
}  # fmt: skip
CALLS: dict[str, dict[str, object]] = {  # where the defaults are too large for a test
    "flux": {"height": 16, "width": 16, "max_sequence_length": 12},
    "pixart": {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 12},
    "stable_diffusion_3": {"max_sequence_length": 12},
    "sana": {"use_resolution_binning": False, "height": 32, "width": 32, "max_sequence_length": 12, "clean_caption": False,
             "complex_human_instruction": None},
    "qwen_image": {"height": 16, "width": 16},
    "z_image": {"height": 16, "width": 16, "max_sequence_length": 48},
    "wan": {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 12},
    "audio_ldm": {"audio_length_in_s": 0.004},
}  # fmt: skip


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
