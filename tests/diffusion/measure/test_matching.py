"""Whether pictures show what their prompts say: the bundled judge on real pictures, the CLIP score against transformers."""

from pathlib import Path

import pytest
import torch
from tiny_lm import byte_tokenizer, tiny_lm

from fewstep.diffusion.data import load_images
from fewstep.diffusion.data.clothes import CAPTIONS, COLOURS, Clothes
from fewstep.diffusion.measure.features import extractor
from fewstep.diffusion.measure.matching import ClothesMatch, match


@pytest.fixture(scope="module")
def clothes() -> Clothes:
    return Clothes(load_images("bundled", channels=1, size=28))


def test_real_pictures_match_their_captions_and_no_other_colour_of_them(clothes: Clothes) -> None:
    rows = range(0, 600)
    pictures, captions = clothes.raw(rows), [clothes.caption(k) for k in rows]
    judge = ClothesMatch().eval()
    assert judge(pictures, captions).mean() > 0.9  # the classifier's own accuracy; every colour is found
    others = [clothes.caption(k - 1 if k % len(COLOURS) else k + 1) for k in rows]
    assert judge(pictures, others).max() == 0
    twenty = list(range(0, 120, 6))
    assert judge(clothes.raw(twenty), [CAPTIONS[0]] * 20).mean() < 0.5


def test_the_grey_picture_is_the_largest_of_a_pixels_values_but_in_green(clothes: Clothes) -> None:
    rows = [0, 7, 14, 22, 23]
    grey = clothes.raw(rows).amax(1)[:, 2:-2, 2:-2]
    assert torch.equal(grey, clothes.grey.raw([k // len(COLOURS) for k in rows])[:, 0])
    assert clothes.label_range is None and not clothes.cond(0)  # captions in their place
    assert clothes.caption(0).startswith("a white ")
    assert len(clothes) == 60_000
    assert set(CAPTIONS) == {clothes.caption(k) for k in range(600)}


def test_a_prompt_that_no_bundled_picture_has_is_refused(clothes: Clothes) -> None:
    with pytest.raises(ValueError, match="no caption 'a purple dress'"):
        ClothesMatch()(clothes.raw([0]), ["a purple dress"])


def test_the_clip_score_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    words = {"a</w>": 0, "b</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}
    tokenizer = CLIPTokenizer(vocab=words, merges=[], model_max_length=8)
    text = {"vocab_size": 4, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "max_position_embeddings": 8, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 3}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    torch.manual_seed(0)
    network = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pictures = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16)(list(pictures), return_tensors="pt")
    said = tokenizer(["a b", "b"], padding=True, return_tensors="pt")
    with torch.no_grad():
        cosines = network(**pixels, **said).logits_per_image.diag() / network.logit_scale.exp()
    torch.testing.assert_close(match(str(tmp_path))(pictures, ["a b", "b"]).cpu(), 100 * cosines.clamp(min=0))


def test_what_is_no_clip_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither clothes nor a CLIP model"):
        match(str(tmp_path / "none"))
    tiny_lm().float().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no CLIP model"):
        match(str(tmp_path))
    with pytest.raises(ValueError, match="is no vision model"):
        extractor(str(tmp_path))
