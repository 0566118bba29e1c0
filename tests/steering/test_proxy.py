"""Proxy-tuning against the formula: full recomputation without caches, in float64, and a model with it built in."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_lm import VOCAB, logits_of, merged, tiny_lm, with_adapter
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    MaxTimeCriteria,
    StaticCache,
    T5Config,
    T5ForConditionalGeneration,
    TopKLogitsWarper,
)

from fewstep.core.nfe import count_nfe
from fewstep.steering.reader import stack_left
from fewstep.steering.tuning import ProxyTuning, Run, generate

FAMILIES = ("llama", "qwen3", "gemma2", "gemma3", "gpt2")
PADDED = torch.tensor([[0, 0, 5, 6, 7], [4, 9, 8, 7, 6], [0, 3, 3, 3, 3]])
MASK = (PADDED != 0).long()
FULL = torch.tensor([[5, 6, 7], [9, 8, 4]])


def names(value: object) -> str:
    """Of the options of a case, whose values may be written with an address, which no other process gives them."""
    return " ".join(value) if isinstance(value, dict) else str(value)


@pytest.fixture(scope="module")
def trio():
    return tuple(tiny_lm(seed=seed) for seed in (1, 2, 3))


def same(found: object, wanted: object) -> None:
    """Same texts, and same scores up to generate's float32."""
    assert torch.equal(found.sequences, wanted.sequences)
    for ours, theirs in zip(found.scores, wanted.scores, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def told(**options: object) -> dict[str, object]:
    return {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, "output_scores": True} | options


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 3])
def test_every_family_equals_the_formula_in_the_model(family, beams) -> None:
    base, expert, antiexpert = (tiny_lm(family, seed) for seed in (1, 2, 3))
    options = told(attention_mask=MASK, num_beams=beams)
    wanted = merged(base, expert, antiexpert, alpha=0.7).generate(PADDED, **options)
    same(generate(base, ProxyTuning(expert, antiexpert, alpha=0.7), PADDED, **options), wanted)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 0.8, "top_p": 0.9},
        {"do_sample": True, "num_return_sequences": 3, "top_k": 5},
        {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 2.0},
        {"do_sample": True, "num_beams": 3, "temperature": 1.5},
        {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
        {"num_beams": 3, "repetition_penalty": 1.7, "min_new_tokens": 6, "renormalize_logits": True},
        {"num_beams": 3, "bad_words_ids": [[7], [8], [24]]},
        {"logits_processor": LogitsProcessorList([TopKLogitsWarper(3)]), "do_sample": True},
        {"generation_config": GenerationConfig(num_beams=2, eos_token_id=[2, 9, 24], pad_token_id=0)},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"use_cache": False, "num_beams": 3},
        {"prefill_chunk_size": 2},
        {"stopping_criteria": [MaxTimeCriteria(0.0)]},
    ],
    ids=names,
)
def test_every_mode_equals_the_formula_in_the_model(trio, options) -> None:
    asked = told(attention_mask=MASK, **options)
    oracle = {name: value for name, value in asked.items() if name not in ("cache_implementation", "prefill_chunk_size")}
    torch.manual_seed(5)
    wanted = merged(*trio).generate(PADDED, **(oracle | {"use_cache": False}))
    torch.manual_seed(5)
    found = generate(trio[0], ProxyTuning(*trio[1:]), PADDED, **asked)
    same(found, wanted)
    assert not torch.equal(found.sequences, trio[0].generate(PADDED, **asked).sequences) or "stopping_criteria" in options


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 4}, {"do_sample": True}, {"do_sample": True, "num_beams": 2}], ids=str
)
def test_the_plain_logits_processor_is_the_same_thing(trio, options) -> None:
    base, expert, antiexpert = trio
    proxy = ProxyTuning(expert, antiexpert)
    oracle = merged(base, expert, antiexpert)
    for ids in (FULL, FULL, FULL[:, :2], FULL[:1]):  # one object for several runs, some of them inside the last one
        torch.manual_seed(6)
        wanted = oracle.generate(ids, **told(**options))
        torch.manual_seed(6)
        found = base.generate(ids, logits_processor=[proxy], **told(**options))
        assert torch.equal(found.sequences, wanted.sequences)
        for ours, theirs in zip(found.scores, wanted.scores, strict=True):
            torch.testing.assert_close(ours.log_softmax(-1), theirs.log_softmax(-1), atol=2e-5, rtol=1e-5)


def test_a_run_may_go_on_where_the_last_one_stopped(trio) -> None:
    base, expert, antiexpert = trio
    proxy = ProxyTuning(expert, antiexpert)
    half = base.generate(FULL, logits_processor=[proxy], max_new_tokens=4, do_sample=False)
    with count_nfe(expert) as nfe:
        whole = base.generate(half, logits_processor=[proxy], max_new_tokens=4, do_sample=False)
    assert nfe.calls == 4
    assert torch.equal(whole, merged(*trio).generate(FULL, max_new_tokens=8, do_sample=False))
    proxy.reset()
    again = base.generate(half, logits_processor=[proxy], max_new_tokens=4, do_sample=False)
    assert torch.equal(again, whole)


def given_cache(base, kind: str):
    return StaticCache(base.config, max_cache_len=20) if kind == "static" else DynamicCache(config=base.config)


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_the_base_may_bring_its_own_cache(trio, kind) -> None:
    base, expert, antiexpert = trio
    wanted = merged(*trio).generate(FULL, **told())
    found = base.generate(
        FULL, logits_processor=[ProxyTuning(expert, antiexpert)], past_key_values=given_cache(base, kind), **told()
    )
    assert torch.equal(found.sequences, wanted.sequences)
    same(generate(base, ProxyTuning(expert, antiexpert), FULL, past_key_values=given_cache(base, kind), **told()), wanted)


def untuned(expert, ids: list[int]) -> Tensor:
    with expert.disable_adapter():
        return logits_of(expert, ids)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("adapter", [False, True])
def test_any_shuffle_of_beams_is_followed_in_float64(trio, data, adapter) -> None:
    """Prompts 0 and 1 look the same to the base, but the expert has other ones; beams share or swap histories at will."""
    base, expert, antiexpert = (trio[0], with_adapter(tiny_lm(seed=3), seed=4), None) if adapter else trio
    plain = [[5, 6], [5, 6], [5, 6], [5, 6], [0, 7], [0, 7]]
    own = [[0, 3, 4], [0, 3, 4], [9, 3, 4], [9, 3, 4], [0, 0, 8], [0, 0, 8]]
    mask, own_mask = ((torch.tensor(rows) != 0).long() for rows in (plain, own))
    proxy = ProxyTuning(expert, antiexpert, alpha=0.7)
    run = Run(proxy, mask=mask, own=(torch.tensor(own), own_mask), each=2, normalise=False)
    ids, texts, own_texts = torch.tensor(plain), *([[i for i in row if i] for row in rows] for rows in (plain, own))
    for _ in range(4):
        scores = torch.stack([logits_of(base, text) for text in texts])
        up = torch.stack([logits_of(expert, text) for text in own_texts])
        down = torch.stack([untuned(expert, text) if adapter else logits_of(antiexpert, text) for text in texts])
        torch.testing.assert_close(run(ids, scores), scores + 0.7 * (up - down), atol=1e-10, rtol=1e-10)
        source = [2 * (i // 2) + data.draw(st.integers(0, 1)) for i in range(6)]
        tokens = [data.draw(st.sampled_from([10, 11])) for _ in range(6)]
        ids = torch.cat([ids[source], torch.tensor(tokens)[:, None]], 1)
        texts, own_texts = ([t[s] + [k] for s, k in zip(source, tokens, strict=True)] for t in (texts, own_texts))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 2])
def test_one_model_with_an_adapter_is_two_models(family, beams) -> None:
    base, small = tiny_lm(family, 1), tiny_lm(family, 2)
    expert = with_adapter(tiny_lm(family, 2))
    tuned = with_adapter(tiny_lm(family, 2)).merge_and_unload()
    options = told(attention_mask=MASK, num_beams=beams)
    wanted = generate(base, ProxyTuning(tuned, small), PADDED, **options)
    with count_nfe(expert) as nfe:
        same(generate(base, ProxyTuning(expert), PADDED, **options), wanted)
    assert nfe.calls == len(wanted.scores)
    assert nfe.rows == nfe.calls * 2 * beams * len(PADDED)
    without = base.generate(PADDED, **options).scores[0]
    assert not torch.allclose(without.log_softmax(-1), wanted.scores[0].log_softmax(-1), atol=0.1)


@pytest.mark.parametrize("each", [1, 2])
def test_the_expert_may_read_its_own_prompt(trio, each) -> None:
    """A chat template around the prompt, of another length in each row; samples of one prompt stand together."""
    base, expert, antiexpert = trio
    own = torch.tensor([[0, 10, 11, 5, 6, 7, 12], [10, 11, 9, 8, 4, 12, 12]])
    inputs = {"input_ids": own, "attention_mask": (own != 0).long()}
    options = told(min_new_tokens=8, do_sample=each > 1, num_return_sequences=each, top_k=0)
    found = generate(base, ProxyTuning(expert, antiexpert), FULL, expert_inputs=inputs, **options)
    assert len(found.sequences) == 2 * each
    for row in range(2 * each):
        text, own_text = FULL[row // each].tolist(), [i for i in own[row // each].tolist() if i]
        for step, token in enumerate(found.sequences[row, 3:].tolist()):
            wanted = logits_of(base, text) + logits_of(expert, own_text) - logits_of(antiexpert, text)
            wanted[2] = -torch.inf  # min_new_tokens
            torch.testing.assert_close(found.scores[step][row].double(), wanted, atol=2e-5, rtol=1e-5)
            text.append(token)
            own_text.append(token)


def test_alpha_is_a_number_a_schedule_or_a_rule(trio) -> None:
    base, expert, antiexpert = trio
    seen = []

    def rule(step: int, log_probs: Tensor, shift: Tensor) -> Tensor:
        seen.append(step)
        torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2))
        assert shift.shape == (2, VOCAB)
        return torch.tensor([0.5, 2.0]) * (step < 2)

    def scores(alpha: object, row: int) -> list[Tensor]:
        proxy = ProxyTuning(expert, antiexpert, alpha=alpha)
        return [s[row] for s in generate(base, proxy, FULL, **told(min_new_tokens=4, max_new_tokens=4)).scores]

    for row, number in enumerate([0.5, 2.0]):
        torch.testing.assert_close(scores(rule, row), scores([number, number, 0.0], row))
    assert seen == [0, 1, 2, 3] * 2
    torch.testing.assert_close(scores([0.6], 0), scores(0.6, 0))
    text = FULL[0].tolist()
    first = logits_of(base, text) + 0.6 * (logits_of(expert, text) - logits_of(antiexpert, text))
    torch.testing.assert_close(scores([0.6, 0.1], 0)[0][3:].double(), first[3:], atol=2e-5, rtol=1e-5)


def test_no_shift_leaves_the_base_alone(trio) -> None:
    base, expert, _ = trio
    wanted = base.generate(PADDED, attention_mask=MASK, **told())
    same(generate(base, ProxyTuning(expert, trio[2], alpha=0.0), PADDED, attention_mask=MASK, **told()), wanted)
    same(generate(base, ProxyTuning(expert, expert, alpha=3.0), PADDED, attention_mask=MASK, **told()), wanted)


@pytest.mark.parametrize(("large", "small"), [(VOCAB + 5, VOCAB), (VOCAB, VOCAB + 3)])
def test_padded_vocabularies_combine_where_they_overlap(large, small) -> None:
    base, expert, antiexpert = tiny_lm(seed=1, vocab=large), tiny_lm(seed=2, vocab=small), tiny_lm(seed=3, vocab=VOCAB)
    scores = torch.stack([logits_of(base, row) for row in FULL.tolist()])
    found = ProxyTuning(expert, antiexpert)(FULL, scores)
    up, down = (torch.stack([logits_of(m, row) for row in FULL.tolist()]) for m in (expert, antiexpert))
    wanted = (scores[:, :VOCAB] + up[:, :VOCAB] - down).log_softmax(-1)
    torch.testing.assert_close(found[:, :VOCAB], wanted, atol=1e-10, rtol=0)
    assert found.shape == scores.shape
    assert (found[:, VOCAB:] == -torch.inf).all()


class Heard:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.heard: list[Tensor] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.heard.append(value.reshape(1, -1))

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("plain", [False, True])
def test_tokens_stream_as_they_come(trio, plain) -> None:
    base, proxy, streamer = trio[0], ProxyTuning(*trio[1:]), Heard()
    if plain:
        found = base.generate(FULL[:1], logits_processor=[proxy], streamer=streamer, **told())
    else:
        found = generate(base, proxy, FULL[:1], streamer=streamer, **told())
    assert torch.equal(torch.cat(streamer.heard, 1), found.sequences)
    assert len(streamer.heard) == 1 + len(found.scores)
    assert streamer.ended


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompt_lookup_num_tokens": 3}, "assisted generation cannot be proxy-tuned"),
        ({"assistant_model": "expert"}, "leave assistant_model out"),
        ({"penalty_alpha": 0.5, "top_k": 3}, "contrastive search cannot be proxy-tuned"),
        ({"guidance_scale": 1.5}, "leave guidance_scale out"),
        ({"num_beams": 2, "streamer": Heard()}, "leave the streamer out"),
        ({"stop_strings": "."}, "pass tokenizer"),
        ({"custom_generate": print}, "leave it out"),
        ({"cache_implementation": "paged"}, "continuous batching takes no"),
        ({"expert_inputs": {"input_ids": FULL[:1]}}, "a prompt for each of the 2 rows"),
        ({"expert_inputs": {"input_ids": FULL, "attention_mask": FULL - FULL}}, "padded on the left"),
    ],
    ids=names,
)
def test_what_generate_refuses(trio, options, sentence) -> None:
    base, expert, antiexpert = trio
    ids = FULL[:1] if "prompt_lookup_num_tokens" in options else FULL
    options = {name: expert if value == "expert" else value for name, value in options.items()}
    with pytest.raises(ValueError, match=sentence):
        generate(base, ProxyTuning(expert, antiexpert), ids, max_new_tokens=4, **options)


@pytest.mark.parametrize("assistant", [False, True])
def test_the_plain_processor_notices_speculation(trio, assistant) -> None:
    base, expert, antiexpert = trio
    proxy = ProxyTuning(expert, antiexpert)
    options = {"assistant_model": antiexpert} if assistant else {"prompt_lookup_num_tokens": 3}
    with pytest.raises(ValueError, match="assisted and speculative decoding cannot be proxy-tuned"):
        base.generate(torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]]), logits_processor=[proxy], max_new_tokens=12, **options)


@pytest.mark.parametrize(
    "rows", [[[0, 0, 5]], [[2, 5, 6], [7, 8, 9]], [[1, 5, 6], [7, 8, 9]], [[2, 2, 3], [2, 2, 4]]], ids=str
)
def test_the_plain_processor_refuses_what_may_be_padding(rows) -> None:
    base, expert = tiny_lm(seed=1), tiny_lm(seed=2, bos_token_id=1, eos_token_id=[1, 2])
    with pytest.raises(ValueError, match="looks like padding"):
        base.generate(torch.tensor(rows), logits_processor=[ProxyTuning(expert, expert)], max_new_tokens=2)
    texts = torch.tensor([[1, 5, 6], [1, 7, 8]])  # a first token that all rows share is what the tokenizer put there
    assert len(base.generate(texts, logits_processor=[ProxyTuning(expert, expert)], max_new_tokens=2)) == 2


def test_what_the_models_must_be(trio) -> None:
    base, expert, antiexpert = trio
    with pytest.raises(ValueError, match="must be a peft model"):
        ProxyTuning(expert)
    with pytest.raises(ValueError, match="at least one value"):
        ProxyTuning(expert, antiexpert, alpha=[])
    with pytest.raises(ValueError, match="finite number, got nan"):
        ProxyTuning(expert, antiexpert, alpha=math.nan)
    config = T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    other = T5ForConditionalGeneration(config).eval()
    with pytest.raises(ValueError, match="T5ForConditionalGeneration has an encoder; experts"):
        ProxyTuning(other, antiexpert)
    with pytest.raises(ValueError, match="T5ForConditionalGeneration has an encoder; only"):
        generate(other, ProxyTuning(expert, antiexpert), FULL, max_new_tokens=2)
    embeds = torch.zeros(1, 2, 16, dtype=torch.float64)
    with pytest.raises(ValueError, match="instead of inputs_embeds"):
        base.generate(inputs_embeds=embeds, logits_processor=[ProxyTuning(expert, antiexpert)], max_new_tokens=2)
    learning = tiny_lm(seed=2).train()
    with pytest.raises(ValueError, match=r"call antiexpert\.eval\(\)"):
        generate(base, ProxyTuning(expert, learning), FULL, max_new_tokens=2)
    dora = with_adapter(tiny_lm(seed=2), use_dora=True)
    with pytest.raises(ValueError, match="merge it"):
        ProxyTuning(dora)


def test_rows_of_two_lengths_stack_with_padding_on_the_left() -> None:
    ids, mask = stack_left(torch.tensor([[5, 6]]), None, torch.tensor([[7, 8, 9]]), torch.tensor([[0, 1, 1]]))
    assert ids.tolist() == [[0, 5, 6], [7, 8, 9]]
    assert mask.tolist() == [[0, 1, 1], [0, 1, 1]]


def test_tokens_that_the_small_models_have_not_are_neither_said_nor_read(trio) -> None:
    """The base has more of them, and the small models' tables are padded as far: what stands there means nothing."""
    base, expert, antiexpert = trio
    common = VOCAB - 6
    prompt = torch.tensor([[3, 4, 5, common - 1]])
    found = generate(base, ProxyTuning(expert, antiexpert, common=common), prompt, max_new_tokens=12, do_sample=False)
    text = prompt[0].tolist()
    while len(text) < found.shape[1]:
        sums = logits_of(base, text) + logits_of(expert, text) - logits_of(antiexpert, text)
        text.append(int(sums[:common].argmax()))
    assert found[0].tolist() == text
    with pytest.raises(ValueError, match=f"the text holds token {common}, which is none of the small models' {common}"):
        generate(base, ProxyTuning(expert, antiexpert, common=common), torch.tensor([[3, common]]), max_new_tokens=2)


def test_learned_positions_run_out_with_a_sentence() -> None:
    small, base = tiny_lm("gpt2", seed=1), tiny_lm()
    proxy, prompt = ProxyTuning(small, small), torch.full((1, 60), 5)
    assert generate(base, proxy, prompt, max_new_tokens=5, do_sample=False, eos_token_id=None).shape == (1, 65)
    with pytest.raises(ValueError, match="60 tokens and 6 new ones need more than the 64 positions of this GPT2LMHead"):
        generate(base, proxy, prompt, max_new_tokens=6)
    with pytest.raises(ValueError, match="has learned 64 positions, and the text has more tokens"):
        generate(base, proxy, prompt, max_length=66, do_sample=False, eos_token_id=None)
