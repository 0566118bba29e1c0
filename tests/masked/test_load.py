"""Checkpoints in the published layout, against the published architecture written plainly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fewstep.core.nfe import count_nfe
from fewstep.masked.load import load_text, load_tokenizer
from fewstep.masked.predictor import Canvas, Guided, NetworkPredictor, pad
from fewstep.masked.prompts import canvas_row

LLADA = {
    "activation_type": "silu", "alibi": False, "alibi_bias_max": 8.0, "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0, "attention_layer_norm": False, "attention_layer_norm_with_affine": True,
    "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM"},
    "bias_for_layer_norm": False, "block_group_size": 1, "block_type": "llama", "d_model": 32, "embedding_dropout": 0.0,
    "embedding_size": 40, "eos_token_id": 37, "flash_attention": False, "include_bias": False,
    "include_qkv_bias": False, "init_device": "meta", "input_emb_norm": False, "layer_norm_type": "rms",
    "layer_norm_with_affine": True, "mask_token_id": 38, "max_sequence_length": 24, "mlp_hidden_size": 48,
    "mlp_ratio": 4, "model_type": "llada", "multi_query_attention": None, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2,
    "pad_token_id": 37, "precision": "amp_bf16", "residual_dropout": 0.0, "rms_norm_eps": 1e-5, "rope": True,
    "rope_full_precision": True, "rope_theta": 500000.0, "scale_logits": False, "use_cache": False, "vocab_size": 40,
    "weight_tying": False,
}  # fmt: skip
DREAM = {
    "architectures": ["DreamModel"], "attention_dropout": 0.0, "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
    "bos_token_id": 36, "eos_token_id": 36, "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 48,
    "mask_token_id": 38, "max_position_embeddings": 24, "max_window_layers": 2, "model_type": "Dream",
    "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "pad_token_id": 36,
    "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": None,
    "tie_word_embeddings": False, "use_cache": True, "use_mrope": False, "use_sliding_window": False, "vocab_size": 40,
}  # fmt: skip


def write(folder: Path, config: dict[str, Any], weights: dict[str, Tensor], shards: int = 3) -> Path:
    """A checkpoint as on the hub: config.json, sharded safetensors, index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    where = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {key: weights[key] for key in sorted(weights)[shard::shards]}
        save_file(part, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: 0.4 * torch.randn(shape) + (1 if len(shape) == 1 else 0) for name, shape in shapes.items()}


def llada_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    d, m, kv, v = config["d_model"], config["mlp_hidden_size"], config["n_kv_heads"] * 8, config["embedding_size"]
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (v, d), "ln_f.weight": (d,)}
    if not config["weight_tying"]:
        shapes["ff_out.weight"] = (v, d)
    for n in range(config["n_layers"]):
        block = {"attn_norm": (d,), "ff_norm": (d,), "q_proj": (d, d), "k_proj": (kv, d), "v_proj": (kv, d),
                 "attn_out": (d, d), "ff_proj": (m, d), "up_proj": (m, d), "ff_out": (d, m)}  # fmt: skip
        shapes |= {f"blocks.{n}.{name}.weight": shape for name, shape in block.items()}
    return random_weights({f"model.transformer.{name}": shape for name, shape in shapes.items()})


def dream_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    d, m, v, kv = config["hidden_size"], config["intermediate_size"], config["vocab_size"], 16
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (v, d), "model.norm.weight": (d,), "lm_head.weight": (v, d)
    }  # fmt: skip
    for n in range(config["num_hidden_layers"]):
        layer = {"self_attn.q_proj.weight": (d, d), "self_attn.q_proj.bias": (d,), "self_attn.k_proj.weight": (kv, d),
                 "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.weight": (kv, d), "self_attn.v_proj.bias": (kv,),
                 "self_attn.o_proj.weight": (d, d), "mlp.gate_proj.weight": (m, d), "mlp.up_proj.weight": (m, d),
                 "mlp.down_proj.weight": (d, m), "input_layernorm.weight": (d,),
                 "post_attention_layernorm.weight": (d,)}  # fmt: skip
        shapes |= {f"model.layers.{n}.{name}": shape for name, shape in layer.items()}
    return random_weights(shapes)


def norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    return scale * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def rotate(x: Tensor, theta: float) -> Tensor:
    """x (L, H, D): the pair (x_j, x_{j+D/2}) at position p turns by p·theta^(−2j/D)."""
    half = x.shape[-1] // 2
    angle = torch.arange(len(x))[:, None] * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    a, b, cos, sin = x[..., :half], x[..., half:], angle.cos()[:, None], angle.sin()[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def transformer(ids: Tensor, w: dict[str, Tensor], *, layers: int, theta: float, eps: float) -> Tensor:
    """Hidden states (L, D) of one row: pre-norm, rotary, grouped heads, everybody sees everybody, gated MLP; float64."""
    x = w["embed"][ids]
    for n in range(layers):
        h = norm(x, w[f"{n}.norm1"], eps)
        q, k, v = (h @ w[f"{n}.{p}"].T + w.get(f"{n}.{p}_bias", 0.0) for p in "qkv")
        q, k, v = (t.view(len(ids), -1, 8) for t in (q, k, v))
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
        score = torch.einsum("qhd,khd->hqk", rotate(q, theta), rotate(k, theta)) / 8**0.5
        x = x + torch.einsum("hqk,khd->qhd", score.softmax(-1), v).flatten(1) @ w[f"{n}.o"].T
        h = norm(x, w[f"{n}.norm2"], eps)
        gate = h @ w[f"{n}.gate"].T
        x = x + (gate * gate.sigmoid() * (h @ w[f"{n}.up"].T)) @ w[f"{n}.down"].T
    return norm(x, w["norm"], eps)


def plain_llada(ids: Tensor, weights: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    w = {name.removeprefix("model.transformer."): value.double() for name, value in weights.items()}
    names = {"norm1": "attn_norm", "norm2": "ff_norm", "q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "attn_out",
             "gate": "ff_proj", "up": "up_proj", "down": "ff_out"}  # fmt: skip
    blocks = {
        f"{n}.{ours}": w[f"blocks.{n}.{theirs}.weight"] for n in range(2) for ours, theirs in names.items()
    }  # fmt: skip
    x = transformer(
        ids, {"embed": w["wte.weight"], "norm": w["ln_f.weight"]} | blocks, layers=2,
        theta=config["rope_theta"], eps=config["rms_norm_eps"],
    )  # fmt: skip
    return x @ w.get("ff_out.weight", w["wte.weight"]).T


def plain_dream(ids: Tensor, weights: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    w = {name.removeprefix("model."): value.double() for name, value in weights.items()}
    names = {"norm1": "input_layernorm.weight", "norm2": "post_attention_layernorm.weight", "o": "self_attn.o_proj.weight",
             "gate": "mlp.gate_proj.weight", "up": "mlp.up_proj.weight", "down": "mlp.down_proj.weight"}  # fmt: skip
    for p in "qkv":
        names |= {p: f"self_attn.{p}_proj.weight", f"{p}_bias": f"self_attn.{p}_proj.bias"}
    layers = {f"{n}.{ours}": w[f"layers.{n}.{theirs}"] for n in range(2) for ours, theirs in names.items()}
    x = transformer(
        ids, {"embed": w["embed_tokens.weight"], "norm": w["norm.weight"]} | layers, layers=2,
        theta=config["rope_theta"], eps=config["rms_norm_eps"],
    )  # fmt: skip
    logits = x @ w["lm_head.weight"].T
    return torch.cat([logits[:1], logits[:-1]])  # Dream's shift


ROWS = [torch.tensor([1, 2, 38, 4, 38, 38, 7]), torch.tensor([38, 9, 38]), torch.tensor([5, 6, 7, 8, 38])]
CASES = {
    "llada": (LLADA, llada_weights, plain_llada),
    "llada, tied": (LLADA | {"weight_tying": True}, llada_weights, plain_llada),
    "llada 1.5": (LLADA | {"n_kv_heads": 4, "mlp_hidden_size": 64}, llada_weights, plain_llada),
    "dream": (DREAM, dream_weights, plain_dream),
    "dream-coder": (DREAM | {"rope_theta": 10000.0, "sliding_window": 24}, dream_weights, plain_dream),
    "diffucoder": (
        DREAM
        | {
            "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
            "mask_token_id": 38,
            "eos_token_id": 35,
            "pad_token_id": 35,
            "rope_theta": 500000.0,
        },
        dream_weights,
        plain_dream,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_loaded_checkpoint_is_the_published_architecture_at_every_row_length(name: str, tmp_path: Path) -> None:
    config, weights, plain = CASES[name][0], CASES[name][1](CASES[name][0]), CASES[name][2]
    predictor = load_text(write(tmp_path, config, weights), dtype=torch.float64)
    canvas = pad(ROWS, 38)
    expected = [plain(row, weights, config) for row in ROWS]
    with torch.no_grad(), count_nfe(predictor.network) as nfe:
        everything = predictor(canvas, canvas.valid)
        some = predictor(canvas, canvas.open)
        alone = [predictor(pad([row], 38), torch.ones(1, len(row), dtype=torch.bool)) for row in ROWS]
    torch.testing.assert_close(everything, torch.cat(expected), atol=2e-5, rtol=2e-5)  # their norms are float32
    torch.testing.assert_close(
        some, torch.cat([e[r == 38] for e, r in zip(expected, ROWS, strict=True)]), atol=2e-5, rtol=2e-5
    )
    torch.testing.assert_close(torch.cat(alone), everything, atol=1e-6, rtol=1e-6)
    assert (nfe.calls, nfe.rows) == (5, 9)
    assert predictor.mask_id == 38 and predictor.max_length == 24 and predictor.eos_ids == (config["eos_token_id"],)
    with pytest.raises(ValueError, match="25 positions and this model takes 24"):
        predictor(pad([torch.full((25,), 38)], 38), torch.ones(1, 25, dtype=torch.bool))


def test_the_head_sees_the_wanted_positions_only(tmp_path: Path) -> None:
    predictor = load_text(write(tmp_path, LLADA, llada_weights(LLADA)))
    seen: list[torch.Size] = []
    predictor.network.lm_head.register_forward_hook(lambda _, args, out: seen.append(out.shape))
    canvas = pad(ROWS, 38)
    predictor(canvas, canvas.open)
    assert seen == [torch.Size([6, 40])]


def bert(folder: Path, **changes: Any) -> Path:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=24, **changes,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def test_any_masked_language_model_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    bert(tmp_path, mask_token_id=38)
    predictor, stock = load_text(tmp_path), AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    canvas = pad(ROWS, 38)
    with torch.no_grad():
        expected = torch.cat([stock(row[None]).logits[0][row == 38] for row in ROWS])
        torch.testing.assert_close(predictor(canvas, canvas.open), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["roberta", "modernbert", "distilbert"])
def test_other_heads_and_position_ids(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForMaskedLM

    sizes = {"n_layers": 2, "dim": 32, "n_heads": 4, "hidden_dim": 48} if kind == "distilbert" else {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    }  # fmt: skip
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 10)
    torch.manual_seed(0)
    stock = AutoModelForMaskedLM.from_config(
        AutoConfig.for_model(kind, vocab_size=40, max_position_embeddings=40, pad_token_id=20, **special, **sizes)
    ).eval()
    predictor, canvas = NetworkPredictor(stock, mask_id=38, pad_id=20), pad(ROWS, 38)
    with torch.no_grad():
        expected = torch.cat([stock(row[None]).logits[0][row == 38] for row in ROWS])
        torch.testing.assert_close(predictor(canvas, canvas.open), expected, atol=1e-5, rtol=1e-5)


def test_guidance_is_the_formula_and_a_predictor(tmp_path: Path) -> None:
    predictor = load_text(bert(tmp_path, mask_token_id=38))
    canvas = pad(ROWS, 38)
    with torch.no_grad():
        cond = predictor(canvas, canvas.open)
        blind = [
            torch.cat([torch.full_like(r[: (r == 38).nonzero()[0, 0]], 38), r[(r == 38).nonzero()[0, 0] :]]) for r in ROWS
        ]
        uncond = torch.cat([predictor(pad([b], 38), (r == 38)[None]) for b, r in zip(blind, ROWS, strict=True)])
        with count_nfe(predictor.network) as nfe:
            guided = Guided(predictor, 2.5)(canvas, canvas.open)
            assert nfe.rows == 6
            torch.testing.assert_close(guided, uncond + 2.5 * (cond - uncond), atol=1e-5, rtol=1e-5)
            assert torch.equal(Guided(predictor, 1)(canvas, canvas.open), cond)
            assert nfe.rows == 9


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (LLADA | {"block_type": "sequential"}, "block_type = 'sequential'; only 'llama'"),
        (LLADA | {"activation_type": "gelu"}, "activation_type = 'gelu'"),
        (LLADA | {"attention_layer_norm": True}, "attention_layer_norm = True"),
        ({k: v for k, v in LLADA.items() if k != "d_model"}, "does not say its d_model"),
        (DREAM | {"use_sliding_window": True}, "use_sliding_window = True"),
        ({"model_type": "gpt2"}, "a gpt2, which is not a masked language model"),
        ({"model_type": "nonsense"}, "does not know nonsense"),
        (LLADA | {"num_experts": 64}, "this LLaDA-MoE's config.json does not say its hidden_size"),
        ({"model_type": "diffusion_gemma"}, "no mask token.*generate with transformers' DiffusionGemmaForBlockDiffusion"),
        ({"model_type": "llada2_moe"}, "this LLaDA2's config.json does not say its vocab_size"),
        (LLADA | {"n_layers": "two"}, "n_layers = 'two', which is no number"),
        (LLADA | {"eos_token_id": "end"}, "eos_token_id = 'end', which is no token id"),
        (DREAM | {"hidden_size": 32.5}, "makes no network"),
    ],
)
def test_what_cannot_be_loaded_is_refused_by_name(config: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_text(write(tmp_path, config, llada_weights(LLADA) if "d_model" in config else {"x": torch.zeros(1)}, shards=1))


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_text(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        load_text(tmp_path / "missing")
    weights = llada_weights(LLADA)
    del weights["model.transformer.blocks.1.up_proj.weight"]
    with pytest.raises(ValueError, match=r"do not fit its config\.json, for example model\.layers\.1\.mlp\.up_proj"):
        load_text(write(tmp_path, LLADA, weights))
    bert(tmp_path / "bert")
    with pytest.raises(ValueError, match="names the mask token"):
        load_text(tmp_path / "bert")
    with pytest.raises(ValueError, match="not in the model's vocabulary"):
        load_text(tmp_path / "bert", mask_id=40)
    with pytest.raises(ValueError, match="no tokenizer"):
        load_tokenizer(tmp_path / "bert")


WORDS = ["a", "b", "ab", "\u0120a"]


def test_dreams_tokenizer_loads_without_its_code(tmp_path: Path) -> None:
    """Published as vocab.json, merges.txt and a class in tokenization_dream.py that adds nothing to Qwen2's."""
    (tmp_path / "config.json").write_text(json.dumps(DREAM))
    (tmp_path / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(WORDS)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "tokenization_dream.py").write_text("raise RuntimeError('code of the checkpoint ran')")
    special = {"4": "<|endoftext|>", "5": "<|beginoftext|>", "6": "<|mask|>"}
    added = {
        n: {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        for n, t in special.items()
    }
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "DreamTokenizer", "added_tokens_decoder": added, "mask_token": "<|mask|>",
                "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}, "bos_token": "<|beginoftext|>",
                "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": None,
            }
        )
    )  # fmt: skip
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("abb<|mask|>a")["input_ids"] == [2, 1, 6, 0]
    assert (tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (6, 4, 5)
    assert tokenizer.decode([2, 1]) == "abb"


def test_lladas_tokenizer_and_the_mask_it_names(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    config = {key: value for key, value in LLADA.items() if key != "mask_token_id"}
    write(tmp_path, config, llada_weights(LLADA))
    Tokenizer(models.WordLevel({"a": 0, "<|mdm_mask|>": 38}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "<|mdm_mask|>"})
    )
    assert load_tokenizer(tmp_path).mask_token_id == 38
    assert load_text(tmp_path).mask_id == 38


def test_canvas_rows() -> None:
    assert canvas_row([1, 2], 5, 9, fixed={-3: [7, 8]}).tolist() == [1, 2, 9, 9, 7, 8, 9]
    assert canvas_row([], 3, 9, fixed={0: [5]}).tolist() == [5, 9, 9]
    for fixed in ({3: [5, 5]}, {4: [5]}, {-5: [5]}):
        with pytest.raises(ValueError, match="do not fit into 4"):
            canvas_row([1], 4, 9, fixed=fixed)
    with pytest.raises(ValueError, match="nothing is left"):
        canvas_row([1], 2, 9, fixed={0: [5, 5]})
    canvas = pad([torch.tensor([1, 9, 2, 9]), torch.tensor([3, 9])], 9)
    assert isinstance(canvas, Canvas)
    assert canvas.prompt.tolist() == [[True, False, False, False], [True, False, False, False]]
    assert canvas.open.tolist() == [[False, True, False, True], [False, True, False, False]]


def test_what_the_libraries_report_is_up_to_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("set_verbosity", "disable_progress_bar", "enable_progress_bar"):
        monkeypatch.setattr(f"transformers.utils.logging.{name}", lambda *_: pytest.fail("nobody asked for that"))
    load_text(bert(tmp_path, mask_token_id=38))


def test_how_a_network_is_called_is_not_up_to_its_configuration(tmp_path: Path) -> None:
    canvas = pad(ROWS, 38)
    expected = load_text(bert(tmp_path, mask_token_id=38))(canvas, canvas.open)
    config = json.loads((tmp_path / "config.json").read_text())
    asked = {"return_dict": False, "output_hidden_states": True, "output_attentions": True}
    (tmp_path / "config.json").write_text(json.dumps(config | asked))
    assert torch.equal(load_text(tmp_path)(canvas, canvas.open), expected)


def test_the_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """One whose texts have tokens that the network has not; added tokens may lie beyond, as nobody meets them."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from fewstep.core.pretrained import check_vocabulary

    network = load_text(bert(tmp_path, mask_token_id=38)).network
    for last, fits in ((39, True), (40, False)):
        words = Tokenizer(models.WordLevel({"a": 0, "b": last}, unk_token="a"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a", pad_token="[added]")
        if fits:
            assert len(tokenizer) == 3
            check_vocabulary(tokenizer, network)
        else:
            with pytest.raises(ValueError, match="has the token 'b' beyond the 40"):
                check_vocabulary(tokenizer, network)


def test_eight_bits(tmp_path: Path) -> None:
    """Each weight of a linear layer is one of 255 multiples of its row's largest; the answers are nearly the same."""
    pytest.importorskip("bitsandbytes")
    weights = llada_weights(LLADA)
    folder, canvas = write(tmp_path, LLADA, weights), pad(ROWS, 38)
    rounded, whole = load_text(folder, eight_bit=True), load_text(folder)
    layer = rounded.network.model.layers[1].mlp.up_proj.weight
    assert layer.dtype == torch.int8 and rounded.network.lm_head.weight.dtype == torch.float16
    original = weights["model.transformer.blocks.1.up_proj.weight"]
    unit = original.abs().amax(1, keepdim=True) / 127
    torch.testing.assert_close(layer.float() * unit, original, atol=0.51 * float(unit.max()), rtol=0)
    with torch.no_grad():
        found, expected = rounded(canvas, canvas.open).float(), whole(canvas, canvas.open)
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.15


def test_eight_bits_of_experts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from masked.test_families import SDAR_MOE, moe_weights

    pytest.importorskip("bitsandbytes")
    folder = write(tmp_path, SDAR_MOE, moe_weights(SDAR_MOE))
    with pytest.raises(ValueError, match="mixture of experts, which bitsandbytes leaves in 16 bits"):
        load_text(folder, eight_bit=True)
    monkeypatch.setattr("fewstep.core.extras.find_spec", lambda name: None if name == "bitsandbytes" else name)
    with pytest.raises(ModuleNotFoundError, match=r"needs bitsandbytes.*fewstep\[quantize\]"):
        load_text(folder, eight_bit=True)
