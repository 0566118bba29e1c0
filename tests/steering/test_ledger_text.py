"""A ledger of language models: what is asked is what the models do, what is damaged is found in its line, and no more."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import fewstep
from tiny_lm import byte_tokenizer, merged, tiny_lm, with_adapter
from torch import nn

from fewstep.core.ledger import Ledger
from fewstep.core.source import ASSETS
from fewstep.masked.choices import Compute, Text
from fewstep.masked.committing import Rule
from fewstep.masked.decoder import open_decoder
from fewstep.masked.decoding import decode
from fewstep.masked.grading import Question, Questions
from fewstep.masked.likelihood import log_likelihood, rolling
from fewstep.masked.prompts import as_asked, encode
from fewstep.masked.speaking import speaker_of
from fewstep.steering.accounting import take_stock
from fewstep.steering.likelihood import loglikelihood
from fewstep.steering.load import load_adapter, load_causal, load_tokenizer
from fewstep.steering.speaking import CausalSpeaker
from fewstep.steering.tuning import ProxyTuning
from fewstep.toys.prose import choice, documents, problem
from fewstep.toys.tasks import bundled_families
from fewstep.toys.world import World

WORLD = World(people=500)
DOCUMENTS = documents(WORLD, seed=7)
TEXTS = {"prose": [DOCUMENTS(k) for k in range(40)]}


def facts(n: int, seed: int = 0) -> Questions:
    asked = [choice(fact) for fact in random.Random(seed).sample(WORLD.facts, n)]
    return Questions("facts", False, tuple(Question(c.prompt, c.options[c.right], c.options) for c in asked))


def sums(n: int) -> Questions:
    asked = [problem(-1 - k) for k in range(n)]
    return Questions("plus ten", True, tuple(Question(p.prompt, p.answer) for p in asked))


@pytest.fixture(scope="module")
def small() -> CausalSpeaker:
    network = load_causal("bundled", "small", dtype=torch.float32)
    return CausalSpeaker(network, load_tokenizer("bundled", "small"), tokens=24, batch=100)


def said(ledger: Ledger, name: str) -> str:
    (verdict,) = (v.said for line, v in zip(ledger.lines, ledger.verdicts, strict=True) if line.name == name)
    return verdict


def test_an_undamaged_copy_shows_no_loss_at_ten_sets_of_questions(small) -> None:
    copied = replace(small, network=copy.deepcopy(small.network))
    for seed in range(10):
        texts = {"prose": [DOCUMENTS(1000 * seed + k) for k in range(20)]}
        found = take_stock(small, copied, [facts(20, seed)], texts).ledger
        assert {verdict.said for verdict in found.verdicts} == {"kept"} and len(found.lines) == 4
        assert all(line.difference == (0, 0, 0) for line in found.lines) and max(d.change for d in found.drift) == 0
        assert found.sentences() == ["No loss was found in 4 lines."]


def test_a_layer_that_is_reset_is_missed_and_seen_to_have_moved(small) -> None:
    network = copy.deepcopy(small.network)
    nn.init.zeros_(network.get_submodule("model.layers.1.mlp.down_proj").weight)
    found = take_stock(small, replace(small, network=network), [facts(100)], TEXTS).ledger
    assert said(found, "right: facts") == said(found, "perplexity: prose") == said(found, "Brier: facts") == "lost"
    line = next(line for line in found.lines if line.name == "right: facts")
    assert line.difference.high < 0 and "fewstep proxy" in " ".join(found.sentences())
    moved = {each.layer: each.change for each in found.drift}
    assert moved.pop("model.layers.1.mlp.down_proj") == pytest.approx(1) and set(moved.values()) == {0}
    order = list(moved)
    assert order[0] == "model.embed_tokens" and order.index("model.layers.0.mlp.up_proj") < order.index(
        "model.layers.2.self_attn.q_proj"
    )


def test_a_model_tuned_on_a_skill_alone_gained_it_and_lost_ordinary_text(small) -> None:
    expert = replace(small, network=load_causal("bundled", "expert", dtype=torch.float32))
    found = take_stock(small, expert, [sums(40)], TEXTS)
    assert said(found.ledger, "right: plus ten") == "gained" and said(found.ledger, "perplexity: prose") == "lost"
    assert found.asked[0].turned()["wrong_to_right"] >= 38 and min(d.change for d in found.ledger.drift) > 0


def test_too_large_an_alpha_costs_knowledge_and_a_fair_one_does_not(small) -> None:
    base = replace(small, network=load_causal("bundled", dtype=torch.float32))
    expert = load_causal("bundled", "expert", dtype=torch.float32)
    steered = {alpha: replace(base, proxy=ProxyTuning(expert, small.network, alpha=alpha)) for alpha in (0.5, 4.0)}
    questions = [facts(60), sums(12)]
    fair, wild = (take_stock(base, each, questions, {}).ledger for each in steered.values())
    assert said(fair, "right: plus ten") == "gained" and not [line for line in fair.of("lost") if line.group != "cost"]
    assert said(wild, "right: facts") == "lost"
    told = " ".join(wild.sentences())
    assert "with a smaller --alpha" in told and "tune" not in told and "small tuned model" not in told
    assert {d.change for d in fair.drift} == {0} and len(fair.drift) > 20


def tiny(**changes: object) -> CausalSpeaker:
    given = {"network": tiny_lm(vocab=260), "tokenizer": byte_tokenizer(), "tokens": 6, "batch": 2}
    return CausalSpeaker(**given | changes)


ASKED = [Question("ab", "x", ("c", "de")), Question("hello", "x", ("fg", "h")), Question("q", "x", ("i", "jkl"))]


def test_answers_are_those_of_plain_generation() -> None:
    """Text, confidence and calls of a batch with padding, against one text at a time without any."""
    model = tiny()
    for question, answer in zip(ASKED, model.answers(ASKED), strict=True):
        ids = torch.tensor([[1, *model.tokenizer(question.prompt, add_special_tokens=False)["input_ids"]]])
        prompt = ids if model.tokenizer("a")["input_ids"][0] == 1 else ids[:, 1:]
        made = model.network.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)
        new = made[0, prompt.shape[1] :]
        logits = model.network(made).logits[0, prompt.shape[1] - 1 : -1].log_softmax(-1)
        assert list(answer.tokens) == new.tolist() and answer.calls == len(new)
        assert answer.confidence == pytest.approx(logits.gather(1, new[:, None]).mean().exp().item(), rel=1e-9)


def test_texts_are_as_likely_as_the_networks_own_loss_says() -> None:
    model = tiny()
    for text, loss in zip(["abc", "hello world"], model.losses(["abc", "hello world"]), strict=True):
        ids = torch.tensor(model.tokenizer([text])["input_ids"])
        own = model.network(input_ids=ids, labels=ids).loss.item()
        assert loss.tokens == ids.shape[1] - 1 and loss.nats == pytest.approx(own * loss.tokens, rel=1e-6)


def test_a_long_text_is_read_in_windows() -> None:
    model = tiny()
    (long,) = model.losses(["x" * 200])
    assert long.tokens == 199  # of 64 positions


@pytest.mark.parametrize("short", ["base", "expert", "antiexpert"])
def test_no_text_is_longer_than_the_positions_of_any_of_the_three(short: str) -> None:
    sizes = {short: {"max_position_embeddings": 12}}
    base, expert, antiexpert = (
        tiny_lm(seed=seed, vocab=260, **sizes.get(name, {})) for seed, name in enumerate(("base", "expert", "antiexpert"))
    )
    steered = tiny(network=base, proxy=ProxyTuning(expert, antiexpert), tokens=100)
    (answer,) = steered.answers([Question("abcdefghij", "x")])
    assert len(answer.tokens) <= 2
    with pytest.raises(ValueError, match="a prompt of 12 tokens fills the 12 positions"):
        steered.answers([Question("abcdefghijkl", "x")])


def test_a_steered_model_is_asked_as_it_is_steered() -> None:
    base, small = tiny(), tiny_lm(seed=1, vocab=260)
    tuned = with_adapter(tiny_lm(seed=1, vocab=260))
    two = replace(base, proxy=ProxyTuning(tiny_lm(seed=2, vocab=260), small))
    one = replace(base, proxy=ProxyTuning(tuned))
    whole = replace(base, network=merged(base.network, two.proxy.expert, small))
    for own, steered in zip(whole.losses(["abcd"]), two.losses(["abcd"]), strict=True):
        assert steered.nats == pytest.approx(own.nats, rel=1e-5)
    assert [a.calls / len(a.tokens) for a in two.answers(ASKED)] == [3.0] * 3
    assert [a.calls / len(a.tokens) for a in one.answers(ASKED)] == [2.0] * 3
    scores = loglikelihood(base.network, one.proxy, [[1, 100]] * 2, [[5], [6, 7]]).logprob
    assert scores.shape == (2,)


def test_the_likeliest_option_is_chosen() -> None:
    model = tiny()
    for question, found in zip(ASKED, model.chooses(ASKED), strict=True):
        prompt = model.tokenizer(question.prompt)["input_ids"]
        pairs = [model.tokenizer(f" {option}", add_special_tokens=False)["input_ids"] for option in question.options]
        alone = ProxyTuning(model.network, model.network, alpha=0.0)
        scores = loglikelihood(model.network, alone, [prompt] * 2, pairs).logprob
        assert found.text == question.options[int(scores.argmax())]
        assert found.confidence == pytest.approx(scores.softmax(0).max().item(), rel=1e-5) and found.tokens == ()


def test_a_stop_string_ends_an_answer(small) -> None:
    question = [Question("3 plus 4 is", "7")] * 2
    (stopped, _), (whole, _) = replace(small, stop=(" .",)).answers(question), small.answers(question)
    assert stopped.text == "7" and whole.text.startswith("7 .") and len(stopped.tokens) == 2 and stopped.calls == 2


@pytest.fixture(scope="module")
def words() -> list[Question]:
    items = [bundled_families()["word problems"].item(k, held_out=True) for k in range(24)]
    return [Question(" ".join(item.prompt), item.answer) for item in items]


def test_a_masked_model_is_asked_as_it_decodes(words) -> None:
    decoder = open_decoder("bundled", Text(gen_length=32), Rule(rule="threshold", confidence=0.6), compute=Compute(batch=8))
    model = speaker_of(decoder, draws=4)
    rows = decoder.rows([{"prompt": question.prompt} for question in words])
    for answer, row in zip(model.answers(words), decode(decoder.predictor, rows, decoder.rule), strict=True):
        assert list(answer.tokens) == row.tokens and answer.calls == row.nfe and 0 < answer.confidence <= 1
    sure = replace(decoder, rule=Rule(confidence=0.9999).made(decoder.tokenizer))
    assert sum(a.confidence for a in speaker_of(sure).answers(words)) > sum(a.confidence for a in model.answers(words))
    texts = [question.prompt for question in words[:2]]
    ids = [decoder.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    bounds = [rolling(decoder.network, row, window=512, draws=4, seed=k) for k, row in enumerate(ids)]
    assert [loss.nats for loss in model.losses(texts)] == pytest.approx([-bound.value for bound in bounds])


def test_a_masked_model_that_is_damaged_is_found_and_its_copy_is_not(words) -> None:
    before = open_decoder("bundled", Text(gen_length=32), compute=Compute(batch=24))
    copied, damaged = (replace(before, network=copy.deepcopy(before.network)) for _ in range(2))
    nn.init.zeros_(damaged.network.network.get_submodule("model.layers.1.attn.Wo").weight)
    copied, damaged = (replace(each, predictor=each.network, exact=each.network) for each in (copied, damaged))
    questions = [Questions("words", False, tuple(words))]
    same, worse = (take_stock(speaker_of(before), speaker_of(each), questions, {}).ledger for each in (copied, damaged))
    assert {verdict.said for verdict in same.verdicts} == {"kept"}
    assert said(worse, "right: words") == "lost" and worse.drift[0].layer.endswith("tok_embeddings")
    assert [d.layer for d in worse.drift if d.change] == ["model.layers.1.attn.Wo"]


def test_the_command_leaves_figures_and_says_what_to_do(tmp_path, monkeypatch, capsys) -> None:
    """A LoRA adapter on a causal model."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": q.prompt, "answer": q.answer, "options": q.options} for q in facts(20).items]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "ten.jsonl").write_text(
        "\n".join(json.dumps({"prompt": q.prompt, "answer": q.answer}) for q in sums(20).items)
    )
    (tmp_path / "prose.txt").write_text("\n".join(TEXTS["prose"]))
    asked = "--skill ten.jsonl --held facts.jsonl --text prose.txt --gen-length 24 --batch 50 --out found"
    fewstep(monkeypatch, f"ledger-text {ASSETS / 'trio' / 'small'} {ASSETS / 'trio' / 'adapter'} {asked}")
    out = capsys.readouterr().out
    assert "right: ten" in out and "gained" in out and "McNemar" in out
    kept = json.loads((tmp_path / "found" / "ledger.json").read_text())
    assert {"within", "level", "calls", "lines", "drift", "notes", "sentences", "answers", "before"} <= set(kept)
    assert kept["answers"]["ten"]["wrong_to_right"] >= 18 and len(kept["lines"]) == 8
    rows = [json.loads(line) for line in (tmp_path / "found" / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 40 and rows[0]["after"]["right"] and not rows[0]["before"]["right"]
    assert (tmp_path / "found" / "ledger.png").exists()
    adapted = load_adapter(load_causal("bundled", "small"), "bundled")
    layer = "model.layers.0.self_attn.q_proj"
    change = adapted.base_model.model.get_submodule(layer).get_delta_weight("default")
    length = adapted.base_model.model.get_submodule(layer).base_layer.weight.norm()
    told = {row["layer"]: row["change"] for row in kept["drift"]}
    assert told[layer] == pytest.approx((change.norm() / length).item(), rel=1e-4) and told["model.norm"] == 0


def test_the_command_compares_two_ways_to_decode(tmp_path, monkeypatch, capsys, words) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": q.prompt, "answer": q.answer} for q in words[:6]]
    (tmp_path / "words.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fewstep(monkeypatch, "ledger-text bundled bundled --rule low-confidence --held words.jsonl --gen-length 32 --out found")
    assert "calls an answer" in capsys.readouterr().out
    kept = json.loads((tmp_path / "found" / "ledger.json").read_text())
    assert kept["calls"]["after"] > kept["calls"]["before"] and {row["change"] for row in kept["drift"]} == {0}


def test_a_masked_and_a_causal_model_make_no_ledger(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.jsonl").write_text('{"prompt": "a", "answer": "b"}\n' * 2)
    with pytest.raises(SystemExit, match="2"):
        fewstep(monkeypatch, f"ledger-text {ASSETS / 'text'} {ASSETS / 'trio' / 'base'} --held q.jsonl --out found")
    assert "is a masked language model and the other is none" in capsys.readouterr().err


def test_steering_by_the_difference_to_itself_is_the_expert(tmp_path, monkeypatch) -> None:
    """small + 1·(expert − small) = expert: the answers of both ledgers are the same, at three calls a token and at one."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": q.prompt, "answer": q.answer} for q in sums(6).items]
    (tmp_path / "ten.jsonl").write_text("\n".join(map(json.dumps, rows)))
    small, expert = ASSETS / "trio" / "small", ASSETS / "trio" / "expert"
    asked = "--skill ten.jsonl --gen-length 12 --batch 6"
    fewstep(monkeypatch, f"ledger-text {small} {expert} {asked} --out plain")
    fewstep(monkeypatch, f"ledger-text {small} {small} --expert {expert} --antiexpert {small} {asked} --out steered")
    plain, steered = (
        [json.loads(line) for line in (tmp_path / out / "answers.jsonl").read_text().splitlines()]
        for out in ("plain", "steered")
    )
    assert [row["after"]["text"] for row in steered] == [row["after"]["text"] for row in plain]
    assert [row["before"] for row in steered] == [row["before"] for row in plain]
    one, three = (json.loads((tmp_path / out / "ledger.json").read_text())["calls"] for out in ("plain", "steered"))
    assert three == {"before": one["before"], "after": 3 * one["after"]}


def test_a_masked_model_chooses_the_option_of_the_highest_bound(words) -> None:
    decoder = open_decoder("bundled", Text(gen_length=32), compute=Compute(batch=4))
    model = speaker_of(decoder, draws=4)
    asked = [q._replace(options=(q.answer, other.answer)) for q, other in pairwise(words[:9])]
    for seed, (question, found) in enumerate(zip(asked, model.chooses(asked), strict=True)):
        prompt = as_asked(question.prompt, decoder.tokenizer, decoder.network.mask_id)
        begun = "" if isinstance(prompt, list) else " "
        tokens = [decoder.tokenizer(begun + option, add_special_tokens=False)["input_ids"] for option in question.options]
        ids = encode(decoder.tokenizer, prompt)
        bounds = log_likelihood(decoder.network, [(ids, option) for option in tokens], draws=4, seeds=[seed, seed])
        assert found.text == max(zip(bounds, question.options, strict=True), key=lambda pair: pair[0].value)[1]
