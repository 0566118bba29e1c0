"""Trains the bundled text-to-image model: Fashion-MNIST in colours, as latents, from captions such as "a red ankle boot".

    python scripts/train_text_to_image.py vae runs/text-to-image
    python scripts/train_text_to_image.py latents runs/text-to-image
    python scripts/train_text_to_image.py unet runs/text-to-image
    python scripts/train_text_to_image.py assets runs/text-to-image

Each stage goes on from what the one before wrote. The last one leaves a stock StableDiffusionPipeline in half precision.
The text encoder is random and frozen: sixteen words stay apart.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import mse_loss
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fewstep.core.files import atomic_folder
from fewstep.core.progress import progress
from fewstep.core.source import ASSETS
from fewstep.diffusion.data import Samples, load_images
from fewstep.diffusion.data.clothes import CAPTIONS, COLOURS, coloured

DROPPED = 0.1  # of the captions, for guidance


def draw(count: int, rng: torch.Generator, pictures: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which pictures, in which colours, and which of them mirrored."""
    which = torch.randint(pictures, (count,), generator=rng)
    colours = torch.randint(len(COLOURS), (count,), generator=rng)
    return which, colours, torch.rand(count, generator=rng) < 0.5


def batches(count: int, batch: int, rng: torch.Generator, grey: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Coloured pictures, which they are, and their colours, until `count` were seen."""
    for _ in range(count // batch):
        which, colours, mirrored = draw(batch, rng, len(grey))
        pixels = coloured(grey[which], colours).float() / 127.5 - 1
        yield torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels), which, colours


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=32, layers_per_block=1, norm_num_groups=8,
        block_out_channels=(16, 32, 64), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, mid_block_add_attention=False,
    )  # fmt: skip


def new_unet(width: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(width, 2 * width),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=64, attention_head_dim=4,
        norm_num_groups=16,
    )  # fmt: skip


def new_text() -> tuple[CLIPTokenizer, CLIPTextModel]:
    """A tokenizer that knows the words of the captions, each a token, and letters for all others; a random encoder."""
    words = sorted({word for caption in CAPTIONS for word in caption.replace("-", " - ").split()})
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789-'.,!?"]
    merges: list[tuple[str, str]] = []
    pieces = dict.fromkeys([*letters, *(letter + "</w>" for letter in letters)])
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            first, second, *rest = parts
            if (first, second) not in merges:
                merges.append((first, second))
            pieces[first + second] = None
            parts = [first + second, *rest]
    vocabulary = {piece: k for k, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=12)
    torch.manual_seed(0)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=12, projection_dim=64, initializer_factor=4.0,
            bos_token_id=vocabulary["<|startoftext|>"], eos_token_id=vocabulary["<|endoftext|>"],
            pad_token_id=vocabulary["<|endoftext|>"],
        )
    )  # fmt: skip
    return tokenizer, encoder.eval().requires_grad_(False)


def train_vae(out: Path, *, images: int, batch: int = 64) -> None:
    """Mean square error, and a divergence that only keeps the latents near zero."""
    grey = all_grey()
    torch.manual_seed(0)
    vae, rng, start = new_vae(), torch.Generator().manual_seed(0), time.time()
    optimizer = torch.optim.AdamW(vae.parameters(), 1e-3, betas=(0.9, 0.99), weight_decay=0)
    steps, errors = images // batch, []
    average = EMAModel(vae.parameters(), decay=0.998)
    with progress("the autoencoder", images) as done:
        for step, (x, _, _) in enumerate(batches(images, batch, rng, grey)):
            optimizer.param_groups[0]["lr"] = (
                2e-3 * min(1, (step + 1) / 100) * (0.02 + 0.98 * math.cos(math.pi / 2 * step / steps) ** 2)
            )
            with torch.autocast("cpu", torch.bfloat16):
                posterior = vae.encode(x).latent_dist
                made = vae.decode(posterior.sample()).sample
            error = mse_loss(made.float(), x)
            (error + 1e-5 * posterior.kl().float().mean() / 256).backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.step(vae.parameters())
            errors.append(float(error.detach()))
            done(batch)
            if step % 200 == 0:
                print(step, sum(errors[-200:]) / len(errors[-200:]), round(time.time() - start), flush=True)
    average.copy_to(vae.parameters())
    vae.eval().save_pretrained(out / "vae")
    note(
        out,
        vae={
            "images": images,
            "batch": batch,
            "mean square error": sum(errors[-200:]) / 200,
            "seconds": round(time.time() - start),
        },
    )


@torch.no_grad()
def encode(out: Path, *, count: int) -> None:
    """The latents of pictures in colours, once; the factor makes them of unit variance."""
    vae, grey = AutoencoderKL.from_pretrained(out / "vae").eval(), all_grey()
    pictures = source()
    labels = torch.tensor([int(pictures.cond(k)["class_labels"]) for k in range(len(grey))])
    latents, captions, errors = [], [], []
    with progress("encoding", count) as done:
        for x, which, colours in batches(count, 64, torch.Generator().manual_seed(1), grey):
            with torch.autocast("cpu", torch.bfloat16):
                z = vae.encode(x).latent_dist.mean.float()
                if len(latents) < 8:
                    errors.append(float(mse_loss(vae.decode(z).sample.float().clamp(-1, 1), x)))
            latents.append(z)
            captions.append(labels[which] * len(COLOURS) + colours)
            done(len(x))
    all_latents = torch.cat(latents)
    factor = float(1 / all_latents.std())
    vae.register_to_config(scaling_factor=factor)
    vae.save_pretrained(out / "vae")
    save_file({"latents": (all_latents * factor).half(), "captions": torch.cat(captions)}, out / "latents.safetensors")
    note(
        out,
        latents={
            "count": count,
            "scaling_factor": factor,
            "mean square error of reconstruction": sum(errors) / len(errors),
        },
    )


def train_unet(out: Path, *, images: int, batch: int = 64, width: int = 48, rate: float = 1e-3) -> None:
    """The noise, by mean square error; a tenth of the captions is left out. Goes on from what is there."""
    tokenizer, encoder = new_text()
    known = load_file(out / "latents.safetensors")
    latents, captions = known["latents"], known["captions"]
    said = tokenizer([*CAPTIONS, ""], padding="max_length", max_length=12, return_tensors="pt").input_ids
    with torch.no_grad():
        texts = encoder(said)[0]
    scheduler = new_scheduler()
    torch.manual_seed(0)
    unet, rng, start = new_unet(width), torch.Generator().manual_seed(2), time.time()
    optimizer = torch.optim.AdamW(unet.parameters(), rate, betas=(0.9, 0.99), weight_decay=0)
    average, steps, errors = EMAModel(unet.parameters(), decay=0.9995, use_ema_warmup=True, power=0.75), images // batch, []
    print("parameters", sum(p.numel() for p in unet.parameters()), flush=True)
    with progress("the network", images) as done:
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = (
                rate * min(1, (step + 1) / 200) * (0.01 + 0.99 * math.cos(math.pi / 2 * step / steps) ** 2)
            )
            rows = torch.randint(len(latents), (batch,), generator=rng)
            dropped = torch.rand(batch, generator=rng) < DROPPED
            about = torch.where(dropped, len(CAPTIONS), captions[rows])
            x0, t = latents[rows].float(), torch.randint(1000, (batch,), generator=rng)
            eps = torch.randn(x0.shape, generator=rng)
            error = mse_loss(unet(scheduler.add_noise(x0, eps, t), t, texts[about]).sample, eps)
            error.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.step(unet.parameters())
            errors.append(float(error.detach()))
            done(batch)
            if step % 250 == 0:
                print(step, sum(errors[-250:]) / len(errors[-250:]), round(time.time() - start), flush=True)
            if step % 2000 == 1999 or step == steps - 1:
                average.store(unet.parameters())
                average.copy_to(unet.parameters())
                unet.save_pretrained(out / "unet")
                average.restore(unet.parameters())
    note(
        out,
        unet={
            "images": step * batch,
            "batch": batch,
            "width": width,
            "loss": sum(errors[-1000:]) / 1000,
            "seconds": round(time.time() - start),
        },
    )


def new_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, timestep_spacing="trailing",
    )  # fmt: skip


def pipeline(out: Path) -> StableDiffusionPipeline:
    tokenizer, encoder = new_text()
    return StableDiffusionPipeline(
        AutoencoderKL.from_pretrained(out / "vae"), encoder, tokenizer, UNet2DConditionModel.from_pretrained(out / "unet"),
        new_scheduler(), None, None, requires_safety_checker=False,
    )  # fmt: skip


def assets(out: Path) -> None:
    """The stock folder in half precision but for the text encoder, with the receipt."""
    target = ASSETS / "text_to_image"
    shutil.rmtree(target, ignore_errors=True)
    with atomic_folder(target) as folder:
        made = pipeline(out).to(dtype=torch.float16)
        for part in (made.unet, made.vae):
            part.register_to_config(_name_or_path="")  # else the folder of the run
        made.text_encoder.float()  # transformers reads weights as they were saved, diffusers in float32
        made.save_pretrained(folder)
        (folder / "prompts.txt").write_text("\n".join(CAPTIONS) + "\n")
        shutil.copy(out / "receipt.json", folder / "receipt.json")


def source() -> Samples:
    return load_images("bundled", channels=1, size=28)


def all_grey() -> Tensor:
    samples = source()
    return samples.raw(range(len(samples)))


def note(out: Path, **facts: object) -> None:
    """Adds to the receipt what a stage did."""
    file = out / "receipt.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    known |= {"versions": {"torch": torch.__version__, "diffusers": diffusers.__version__}} | facts
    file.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("vae", "latents", "unet", "assets"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int)
    parser.add_argument("--width", type=int, default=48)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.stage == "vae":
        train_vae(args.out, images=args.images or 80_000)
    elif args.stage == "latents":
        encode(args.out, count=args.images or 40_000)
    elif args.stage == "unet":
        train_unet(args.out, images=args.images or 330_000, width=args.width)
    else:
        assets(args.out)
