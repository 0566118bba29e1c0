"""Scores of texts, where proxy-tuning acted in them, the gap it closed, and whose vocabularies agree."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_lm import byte_tokenizer, logits_of, merged, tiny_lm, with_adapter

from fewstep.core.nfe import count_nfe
from fewstep.masked.prompts import pieces
from fewstep.steering.acted import Acted, spelled, where_acted
from fewstep.steering.likelihood import loglikelihood
from fewstep.steering.tuning import ProxyTuning, generate
from fewstep.steering.vocabulary import same_tokens

PROMPTS = [[5, 6, 7], [9], [3, 3, 3, 3], [5, 6, 7]]
TEXTS = [[8, 9], [4, 4, 4, 4, 4], [7], [8, 10]]


def by_hand(base, expert, antiexpert, prompt, own, text, alpha) -> list[torch.Tensor]:
    """Log-probabilities at each place of `text`, each read from nothing."""
    found = []
    for place in range(len(text)):
        up = logits_of(expert, own + text[:place])
        before = prompt + text[:place]
        shift = up - logits_of(antiexpert, before)
        found.append((logits_of(base, before) + alpha(place) * shift).log_softmax(-1))
    return found


@pytest.fixture(scope="module")
def trio():
    return tuple(tiny_lm(seed=seed) for seed in (1, 2, 3))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt2"])
@pytest.mark.parametrize("batch", [1, 3])
def test_scores_are_the_formula(family, batch) -> None:
    models = [tiny_lm(family, seed) for seed in (1, 2, 3)]
    proxy = ProxyTuning(*models[1:], alpha=[1.0, 0.3])
    owns = [[11, *prompt, 12] for prompt in PROMPTS]
    with count_nfe(models[0]) as nfe:
        found = loglikelihood(models[0], proxy, PROMPTS, TEXTS, expert_prompts=owns, batch=batch)
    assert nfe.calls == -(-len(TEXTS) // batch)
    for row, (prompt, own, text) in enumerate(zip(PROMPTS, owns, TEXTS, strict=True)):
        steps = by_hand(*models, prompt, own, text, lambda place: 1.0 if place == 0 else 0.3)
        wanted = sum(float(step[token]) for step, token in zip(steps, text, strict=True))
        assert float(found.logprob[row]) == pytest.approx(wanted, abs=1e-9)
        assert bool(found.greedy[row]) == all(int(s.argmax()) == t for s, t in zip(steps, text, strict=True))


def test_what_was_generated_greedily_is_greedy_and_beams_know_their_scores(trio) -> None:
    base, proxy = trio[0], ProxyTuning(*trio[1:])
    ids = torch.tensor([[5, 6, 7], [9, 8, 4]])
    texts = generate(base, proxy, ids, max_new_tokens=6, min_new_tokens=6, eos_token_id=-1, do_sample=False)[:, 3:]
    assert loglikelihood(base, proxy, ids, texts).greedy.all()
    other = texts.clone()
    other[1, 2] = (other[1, 2] + 1) % 31
    assert loglikelihood(base, proxy, ids, other).greedy.tolist() == [True, False]
    beams = generate(
        base, proxy, ids, max_new_tokens=5, eos_token_id=-1, num_beams=3, do_sample=False, length_penalty=0.0,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    scores = loglikelihood(base, proxy, ids, beams.sequences[:, 3:]).logprob
    torch.testing.assert_close(scores.float(), beams.sequences_scores, atol=1e-4, rtol=0)


def test_an_adapter_scores_as_two_models(trio) -> None:
    expert, tuned = with_adapter(tiny_lm(seed=2)), with_adapter(tiny_lm(seed=2)).merge_and_unload()
    found = loglikelihood(trio[0], ProxyTuning(expert), PROMPTS, TEXTS, expert_prompts=[[1, 2], [3], [4], [5, 6]])
    wanted = loglikelihood(trio[0], ProxyTuning(tuned, trio[1]), PROMPTS, TEXTS, expert_prompts=[[1, 2], [3], [4], [5, 6]])
    torch.testing.assert_close(found.logprob, wanted.logprob, atol=1e-9, rtol=0)


def test_what_cannot_be_scored(trio) -> None:
    base, proxy = trio[0], ProxyTuning(*trio[1:])
    with pytest.raises(ValueError, match="got 2, 1 and 2"):
        loglikelihood(base, proxy, [[1], [2]], [[3]])
    with pytest.raises(ValueError, match="bos token"):
        loglikelihood(base, proxy, [[]], [[3]])
    with pytest.raises(ValueError, match="base is in training mode"):
        loglikelihood(tiny_lm(seed=1).train(), proxy, [[1]], [[3]])


def test_where_it_acted_is_where_the_choices_differ(trio) -> None:
    base, proxy = trio[0], ProxyTuning(*trio[1:], alpha=0.5)
    acted = where_acted(base, proxy, PROMPTS, TEXTS, batch=3)
    for found, prompt, text in zip(acted, PROMPTS, TEXTS, strict=True):
        q = by_hand(*trio, prompt, prompt, text, lambda _: 0.5)
        p = by_hand(*trio, prompt, prompt, text, lambda _: 0.0)
        assert found.tokens == tuple(text)
        assert found.choice == tuple(int(step.argmax()) for step in q)
        assert found.base_choice == tuple(int(step.argmax()) for step in p)
        assert found.shift == pytest.approx(
            [float((a.exp() - b.exp()).clamp(min=0).sum()) for a, b in zip(q, p, strict=True)]
        )
        assert found.gain == pytest.approx([float(a[t] - b[t]) for a, b, t in zip(q, p, text, strict=True)])
        assert found.share == np.mean([a != b for a, b in zip(found.choice, found.base_choice, strict=True)])
    assert 0 < sum(len(found.places) for found in acted) < sum(map(len, TEXTS))  # so that both cases were seen
    idle = where_acted(base, ProxyTuning(trio[1], trio[1]), PROMPTS, TEXTS)
    assert all(found.share == 0 and max(found.shift) == 0 for found in idle)


def test_what_people_read_is_what_the_json_says() -> None:
    tokenizer = byte_tokenizer()
    text = "a<b>&\n é"
    ids = tuple(tokenizer(text)["input_ids"])
    before = (ids[0] + 1, *ids[1:-1], ids[-1] - 1)
    acted = Acted(ids, before, ids, tuple(i / 10 for i in range(len(ids))), tuple(-1.0 for _ in ids))
    told = json.loads(json.dumps(spelled(acted, tokenizer)))
    assert told["places"] == [0, len(ids) - 1]
    assert told["share"] == 2 / len(ids)
    assert tuple(told["tokens"]) == ids
    assert "".join(told["pieces"]) == text
    assert told["base_pieces"] == [tokenizer.decode([choice]) for choice in before]


def test_pieces_are_the_text() -> None:
    tokenizer = byte_tokenizer()
    text = "żółw 🐢!"
    found = pieces(tokenizer, tokenizer(text)["input_ids"])
    assert "".join(found) == text
    assert found[:2] == ["", "ż"]
    assert found[-5:] == ["", "", "", "🐢", "!"]
    broken = tokenizer("🐢")["input_ids"][:2]
    assert "".join(pieces(tokenizer, broken)) == tokenizer.decode(broken)


def test_vocabularies_that_agree_and_that_do_not() -> None:
    base = byte_tokenizer()
    assert same_tokens(base, byte_tokenizer(), byte_tokenizer()) is None
    padded = byte_tokenizer("[PAD]")
    padded.pad_token = "[PAD]"
    assert same_tokens(base, padded) is same_tokens(padded, base) is None
    assert same_tokens(base, byte_tokenizer(), byte_tokenizer("<tool>")) is None  # the base knows them all
    assert same_tokens(byte_tokenizer("<tool>", "<call>"), byte_tokenizer("<tool>"), base) == 259
    with pytest.raises(ValueError, match=r"1 ids differ, first 259 is '<tool>' and '<call>'"):
        same_tokens(byte_tokenizer("<tool>"), byte_tokenizer("<call>"))
    with pytest.raises(ValueError, match="4 ids differ, first 3 is '!' and 'b'; 4 is '\"' and 'a'; 67 is"):
        same_tokens(base, byte_tokenizer(**{"!": "b", '"': "a", "a": '"', "b": "!"}))


def test_the_merged_oracle_agrees(trio) -> None:
    """The scores and the generation tests check against the same thing."""
    ids = torch.tensor([PROMPTS[0] + TEXTS[0]])
    logits = merged(*trio)(ids).logits[0, 2:4].log_softmax(-1)
    wanted = logits.gather(1, torch.tensor(TEXTS[0])[:, None]).sum()
    found = loglikelihood(trio[0], ProxyTuning(*trio[1:]), PROMPTS[:1], TEXTS[:1]).logprob[0]
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)
