"""The models of proxy-tuning as they are loaded, beside transformers' and peft's own loading."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_lm import byte_tokenizer, logits_of, tiny_lm, with_adapter
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertLMHeadModel,
    T5Config,
    T5EncoderModel,
)

from fewstep.steering.load import load_adapter, load_causal, load_trio

IDS = [5, 9, 3, 17]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma2", "gemma3"])
def test_a_model_is_what_transformers_makes_of_it(family: str, tmp_path: Path) -> None:
    tiny_lm(family).save_pretrained(tmp_path)
    ours, theirs = load_causal(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(ours) is type(theirs) and ours.dtype == theirs.dtype
    torch.testing.assert_close(logits_of(ours, IDS), logits_of(theirs, IDS), atol=0, rtol=0)
    settings = [{name: value for name, value in model.generation_config.to_dict().items() if not name.startswith("output_")}
                for model in (ours, theirs)]  # fmt: skip
    assert settings[0] == settings[1]
    assert load_causal(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_model_in_shards(tmp_path: Path) -> None:
    tiny_lm().save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    torch.testing.assert_close(logits_of(load_causal(tmp_path), IDS), logits_of(tiny_lm(), IDS), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("llama", {"use_rslora": True, "lora_alpha": 5}),
        ("llama", {"rank_pattern": {"v_proj": 3}, "alpha_pattern": {"q_proj": 7}}),
    ],
    ids=str,
)
def test_an_adapter_is_what_peft_makes_of_it(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    with_adapter(tiny_lm(family), **changes).save_pretrained(tmp_path)
    ours = load_adapter(tiny_lm(family), tmp_path / "tuned")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        theirs = PeftModel.from_pretrained(tiny_lm(family), tmp_path / "tuned").eval()
    torch.testing.assert_close(logits_of(ours, IDS), logits_of(theirs, IDS), atol=0, rtol=0)
    with ours.disable_adapter():
        assert torch.equal(logits_of(ours, IDS), logits_of(tiny_lm(family), IDS))
    assert not torch.allclose(logits_of(ours, IDS), logits_of(tiny_lm(family), IDS))


SIZES = {"vocab_size": 260, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}  # fmt: skip


def bert(**changes: Any) -> torch.nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertLMHeadModel(BertConfig(vocab_size=260, is_decoder=True, **sizes, **changes))


@pytest.mark.parametrize("role", ["base", "expert", "antiexpert"])
@pytest.mark.parametrize("kind", ["bert", "bart", "t5"])
def test_what_has_an_encoder_is_refused_before_weights_are_read(kind: str, role: str, tmp_path: Path) -> None:
    if kind == "bert":
        model = bert()
        model.config.is_decoder = False  # as every BERT is saved; transformers would only warn
    elif kind == "bart":
        model = BartForCausalLM(BartConfig(**SIZES))
        model.config.is_encoder_decoder = True
    else:
        model = T5EncoderModel(T5Config(vocab_size=260, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    models = dict.fromkeys(("base", "expert", "antiexpert"), tmp_path / "sound") | {role: tmp_path / kind}
    for folder, network in ((tmp_path / "sound", tiny_lm(vocab=260)), (tmp_path / kind, model)):
        network.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    (tmp_path / "sound" / "model.safetensors").unlink()  # it is not even looked at
    with pytest.raises(ValueError, match=f"holds a {kind}, which is or has an encoder|a t5, which is not a causal"):
        load_trio(**models)


def test_a_bert_that_was_trained_as_a_decoder_is_none(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    assert load_causal(tmp_path).config.is_decoder


def test_the_bundled_adapter_stands_on_the_small_model() -> None:
    """Without its adapter the expert is the small model before tuning, bit for bit."""
    trio = load_trio("bundled", "bundled", adapter="bundled")
    with trio.proxy.expert.disable_adapter():
        assert torch.equal(logits_of(trio.proxy.expert, IDS), logits_of(load_causal("bundled", "small"), IDS))
