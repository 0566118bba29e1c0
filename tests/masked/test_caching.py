"""Caches against the loop without one, against rows alone, and against the definition written plainly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from masked.test_load import CASES, DREAM, LLADA, bert, dream_weights, llada_weights, norm, rotate, write
from masked.test_reopening import Doubt
from torch import Tensor

from fewstep.masked.caching import Cached, Dual, Prefix
from fewstep.masked.decoding import decode, walk
from fewstep.masked.early import EarlyCommit
from fewstep.masked.load import load_text
from fewstep.masked.predictor import Guided, NetworkPredictor, Suppressed
from fewstep.masked.rules import KLASS, Blockwise, Threshold, TopK
from fewstep.masked.schedule import Stairs
from fewstep.masked.step import CommitRule

MASK = 38
ROWS = [
    torch.tensor([*range(1, 1 + n % 4), *[MASK] * (1 + 5 * n % 9), *([7] if n % 3 == 0 else []), *[MASK] * (n % 5)])
    for n in range(11)
]
RULES: list[CommitRule] = [
    TopK(),
    Blockwise(TopK(), 3),
    Blockwise(Threshold(0.3), 4),
    Blockwise(KLASS(0.2, 2.0, 1), 4),
    EarlyCommit(Blockwise(TopK(), 3), Stairs((2.0,), ())),
    Blockwise(Doubt(0.2, 0.9), 4),
]
CACHES = [Prefix(3), Dual(3), Dual(3, refresh=2), Dual(None), Dual(4, around=2), Prefix(4, refresh=3)]


@pytest.fixture(scope="module")
def predictors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NetworkPredictor]:
    found = {}
    for name in ("llada", "dream"):
        config, weights, _ = CASES[name]
        found[name] = load_text(write(tmp_path_factory.mktemp(name), config, weights(config)), dtype=torch.float64)
    return found


@pytest.mark.parametrize(
    ("name", "kind", "rule"),
    [
        *(("llada", Dual, rule) for rule in RULES),
        ("llada", Prefix, RULES[1]),
        *(("dream", Prefix, rule) for rule in RULES[:2]),
    ],
    ids=repr,
)
def test_refreshed_at_every_step_a_cache_changes_nothing(
    predictors: dict[str, NetworkPredictor], name: str, kind: Any, rule: CommitRule
) -> None:
    """Bit for bit, while rows of many lengths leave and enter, and at a temperature."""
    predictor = predictors[name]
    cached = Cached(predictor, kind(3, refresh=1))
    for wrap in (lambda inner: inner, lambda inner: Suppressed(Guided(inner, 2.5), [2])):
        for a, b in zip(
            walk(wrap(predictor), ROWS, rule, temperature=0.5, batch=3),
            walk(wrap(cached), ROWS, rule, temperature=0.5, batch=3),
            strict=True,
        ):
            assert torch.equal(a.step.logits, b.step.logits) and torch.equal(a.rows.ids, b.rows.ids)
            assert torch.equal(a.rows.positions, b.rows.positions) and torch.equal(a.rows.nfe, b.rows.nfe)


def test_so_it_is_in_float32(tmp_path: Path) -> None:
    predictor = load_text(write(tmp_path, LLADA, llada_weights(LLADA)))
    plain = decode(predictor, ROWS, RULES[1], batch=4)
    for cache in (Prefix(3, refresh=1), Dual(3, refresh=1)):
        for a, b in zip(plain, decode(Cached(predictor, cache), ROWS, RULES[1], batch=4), strict=True):
            assert torch.equal(a.ids, b.ids)


@pytest.mark.parametrize(
    ("name", "cache", "rule"),
    [
        *(("llada", cache, rule) for cache in CACHES[:4] for rule in RULES[1:]),
        *(("dream", cache, RULES[1]) for cache in CACHES[:3]), *(("llada", cache, RULES[1]) for cache in CACHES[4:]),
    ],
    ids=repr,
)  # fmt: skip
def test_a_row_keeps_its_cache_among_others(
    predictors: dict[str, NetworkPredictor], name: str, cache: Any, rule: CommitRule
) -> None:
    """Rows leave, enter and change places; each is decoded as it is alone."""
    predictor = predictors[name]
    cached, plain = Cached(predictor, cache), decode(predictor, ROWS, rule)
    together = decode(cached, ROWS, rule, batch=3)
    for number, (row, many) in enumerate(zip(ROWS, together, strict=True)):
        (alone,) = decode(cached, [row], rule, seeds=[number])
        assert torch.equal(alone.ids, many.ids) and alone.nfe == many.nfe
        assert torch.equal(alone.committed_at, many.committed_at)
    changed = sum(not torch.equal(a.ids, b.ids) for a, b in zip(plain, together, strict=True))
    assert changed < len(ROWS)  # an approximation, and no nonsense
    if cache == Dual(3) and rule == RULES[1]:
        assert changed  # or nothing here was approximate


class Kept:
    """Keys, values and last states of one row, written plainly: some columns are computed, all are seen."""

    def __init__(self, w: dict[str, Tensor], *, theta: float, eps: float, length: int) -> None:
        self.w, self.theta, self.eps = w, theta, eps
        self.k, self.v = ([torch.zeros(length, 2, 8, dtype=torch.float64) for _ in range(2)] for _ in "kv")
        self.out = torch.zeros(length, 32, dtype=torch.float64)

    def compute(self, ids: Tensor, columns: range) -> None:
        w, at = self.w, list(columns)
        x = w["embed"][ids[at]]

        def turned(t: Tensor) -> Tensor:  # by the place on the canvas
            return rotate(torch.cat([t.new_zeros(at[0], *t.shape[1:]), t]), self.theta)[at[0] :]

        for n in range(2):
            h = norm(x, w[f"{n}.norm1"], self.eps)
            q, k, v = ((h @ w[f"{n}.{p}"].T + w.get(f"{n}.{p}_bias", 0.0)).view(len(at), -1, 8) for p in "qkv")
            self.k[n][at], self.v[n][at] = turned(k), v
            keys, values = (t.repeat_interleave(2, 1) for t in (self.k[n], self.v[n]))
            score = torch.einsum("qhd,khd->hqk", turned(q), keys) / 8**0.5
            x = x + torch.einsum("hqk,khd->qhd", score.softmax(-1), values).flatten(1) @ w[f"{n}.o"].T
            h = norm(x, w[f"{n}.norm2"], self.eps)
            gate = h @ w[f"{n}.gate"].T
            x = x + (gate * gate.sigmoid() * (h @ w[f"{n}.up"].T)) @ w[f"{n}.down"].T
        self.out[at] = norm(x, w["norm"], self.eps)


def plain_weights(name: str) -> tuple[dict[str, Tensor], Tensor, dict[str, float]]:
    """Of a tiny checkpoint: those of its layers under short names, its head, and its constants."""
    if name == "llada":
        w = {key.removeprefix("model.transformer."): value.double() for key, value in llada_weights(LLADA).items()}
        names = {"norm1": "attn_norm", "norm2": "ff_norm", "q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "attn_out",
                 "gate": "ff_proj", "up": "up_proj", "down": "ff_out"}  # fmt: skip
        layers = {f"{n}.{a}": w[f"blocks.{n}.{b}.weight"] for n in range(2) for a, b in names.items()}
        ends, head, config = {"embed": w["wte.weight"], "norm": w["ln_f.weight"]}, w["ff_out.weight"], LLADA
    else:
        w = {key.removeprefix("model."): value.double() for key, value in dream_weights(DREAM).items()}
        names = {"norm1": "input_layernorm.weight", "norm2": "post_attention_layernorm.weight",
                 "o": "self_attn.o_proj.weight", **{p: f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")}}  # fmt: skip
        for p in "qkv":
            names |= {p: f"self_attn.{p}_proj.weight", f"{p}_bias": f"self_attn.{p}_proj.bias"}
        layers = {f"{n}.{a}": w[f"layers.{n}.{b}"] for n in range(2) for a, b in names.items()}
        ends, head, config = {"embed": w["embed_tokens.weight"], "norm": w["norm.weight"]}, w["lm_head.weight"], DREAM
    return ends | layers, head, {"theta": config["rope_theta"], "eps": config["rms_norm_eps"]}  # type: ignore[dict-item]


@pytest.mark.parametrize("cache", [Prefix(3), Dual(3), Dual(3, around=1), Dual(3, refresh=2)], ids=repr)
@pytest.mark.parametrize("name", ["llada", "dream"])
def test_what_is_computed_and_what_is_kept(name: str, cache: Any, tmp_path: Path) -> None:
    """On a prompt of four and ten masks in blocks of three, one token a step."""
    config, weights, _ = CASES[name]
    predictor = load_text(write(tmp_path, config, weights(config)), dtype=torch.float64)
    w, head, constants = plain_weights(name)
    row, length, shift = torch.tensor([1, 2, 3, 4, *[MASK] * 10]), 14, int(name == "dream")
    kept, done, positions = Kept(w, **constants, length=length), 0, 0  # type: ignore[arg-type]
    for walked in walk(Cached(predictor, cache), [row], Blockwise(TopK(), 3)):
        start = 4 + done // 3 * 3
        end = min(start + 3, length)
        columns = {
            Prefix(3): range(start - shift, length), Dual(3): range(start - shift, end),
            Dual(3, around=1): range(start - 1 - shift, min(end + 1, length)),
            Dual(3, refresh=2): range(start - shift, end),
        }[cache]  # fmt: skip
        if done % 3 == 0 or (cache.refresh == 2 and done % 3 == 2):
            columns = range(length)
        kept.compute(walked.canvas.ids[0], columns)
        logits = kept.out[walked.step.where[1] - shift] @ head.T
        logits[:, MASK] = -torch.inf
        torch.testing.assert_close(walked.step.logits, logits, atol=2e-5, rtol=2e-5)  # their norms are float32
        done, positions = done + 1, positions + len(columns)
    (decoded,) = walked.finished.values()
    assert (decoded.nfe, decoded.positions, done) == (10, positions, 10)


def test_what_has_no_cache(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a BertForMaskedLM takes no keys and values back"):
        Cached(load_text(bert(tmp_path, mask_token_id=38)), Dual())
    for wrong in ({"block": 0}, {"refresh": 0}):
        for kind in (Prefix, Dual):
            with pytest.raises(ValueError, match="at least one"):
                kind(**wrong)
    with pytest.raises(ValueError, match="around = -1"):
        Dual(around=-1)
