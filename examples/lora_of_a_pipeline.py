"""Tunes a LoRA of a text-to-image pipeline for two to four calls, from prompts alone, with its guidance tuned in.

python examples/lora_of_a_pipeline.py runs/lora        # needs fewstep[pipelines]
"""

import sys
from pathlib import Path

from fewstep import Lessons, Loss, Run, Training, export_checkpoint, sample_checkpoint, tune_checkpoint

PROMPTS = [f"a {colour} {thing}" for colour in ("red", "green", "blue") for thing in ("shirt", "bag", "ankle boot")]


def main(out: Path, images: int = 16_000, latents: int = 4_000) -> None:
    """`bundled-text` is a stock StableDiffusionPipeline; put your own, its prompts and its guidance in its place."""
    out.mkdir(parents=True, exist_ok=True)
    prompts = out / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")
    lessons = Lessons("teacher", prompts=prompts, guidance=3, teacher_images=latents)
    training = Training(images=images, lora=16, rate=0.01)
    tune_checkpoint("bundled-text", lessons, Run(out / "lora"), loss=Loss(segments="any"), training=training)
    sample_checkpoint(str(out / "lora"), out / "samples", prompt=PROMPTS[0], steps=4, n=4)
    export_checkpoint(str(out / "lora"), out / "few-step", steps=[4])  # a file for load_lora_weights


if __name__ == "__main__":
    main(Path(sys.argv[1]))
