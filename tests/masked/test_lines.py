"""Grades and lines of a ledger of language models, against numbers worked out by hand; false alarms, by simulation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from conftest import fewstep

from fewstep.core.ledger import Ledger
from fewstep.core.source import ASSETS
from fewstep.masked.grading import Question, Questions, is_right, read_documents, read_questions
from fewstep.masked.lines import Answer, Asked, Loss, calibration_error, of_answers, perplexity, repeated


@pytest.mark.parametrize(
    ("text", "answer", "grade", "right"),
    [
        ("12 plus 10 is 22 . the answer is 22 .", "22", "auto", True),
        ("it is 1,022.50", "1022.5", "auto", True),
        ("22 and then 23", "22", "auto", False),
        ("no number", "22", "auto", False),
        ("-7", "7", "number", False),
        (" Paris\n", "Paris", "auto", True),
        ("Paris, I think", "Paris", "auto", False),
        ("the answer is the red one .", "red one", "end", True),
        ("the answer is tired", "red", "end", False),
        ("red", "the red", "end", False),
        ("22", "22.0", "exact", False),
        ("27 . 3 more than 27 is 30 .", "27", "start", True),
        ("Paris, I think", "Paris", "start", True),
        ("27 . 3 more", "7", "start", False),
    ],
)
def test_a_text_is_right_by_its_rule(text, answer, grade, right) -> None:
    assert is_right(text, answer, grade) is right


def test_questions_and_texts_are_read(tmp_path) -> None:
    rows = [{"prompt": "a", "answer": 3, "grade": "start"}, {"messages": [{"role": "user", "content": "b"}], "answer": "x"}]
    file = tmp_path / "some.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    found = read_questions(file, tuned_for=True)
    assert (
        found.name == "some"
        and found.items[0] == Question("a", "3", (), "start")
        and found.items[1].prompt == rows[1]["messages"]
    )
    file.write_text('"one"\n\n{"text": "two"}\n"three"')
    assert read_documents(file) == ["one", "two", "three"] and read_documents(file, 2) == ["one", "two"]
    (tmp_path / "plain.txt").write_text("one\n\ntwo\n")
    assert read_documents(tmp_path / "plain.txt") == ["one", "two"]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"prompt": "a", "answer": "b"}], "holds 1 question"),
        ([{"prompt": "a"}] * 2, 'line 1 of .* has no "answer"'),
        ([{"prompt": "a", "answer": "b", "grade": "well"}] * 2, "which is none of auto, exact"),
        ([{"prompt": "a", "answer": "b", "options": ["c", "d"]}] * 2, "must have its answer 'b' among its options"),
        ([{"prompt": "a", "answer": "b", "options": "b"}] * 2, "no list of texts"),
        ([{"prompt": "a", "answer": "b"}, {"prompt": "a", "answer": "b", "options": ["b", "c"]}], "two files"),
    ],
)
def test_what_is_no_question_is_one_sentence(tmp_path, rows, sentence) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=sentence):
        read_questions(file, tuned_for=False)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("some.txt", b"\xff\xfe", "is not text in UTF-8"),
        ("some.txt", b"one\n\n", "holds 1 texts"),
        ("some.jsonl", b'"one"\nno JSON', "is not JSON"),
        ("some.jsonl", b'"one"\n{"words": "two"}', "neither a text nor an object"),
        ("some.jsonl", b'"one"\n" "', "neither a text nor an object"),
    ],
)
def test_what_is_no_text_is_one_sentence(tmp_path, name, content, sentence) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        read_documents(tmp_path / name)


def asked(before: list[Answer], after: list[Answer], *, name: str = "it", tuned_for: bool = False) -> Asked:
    items = tuple(Question(str(k), "yes") for k in range(len(before)))
    return Asked(Questions(name, tuned_for, items), tuple(before), tuple(after))


def said(right: bool, confidence: float = 0.5, tokens: int = 3, calls: float = 3.0) -> Answer:
    return Answer("yes" if right else "no", tuple(range(tokens)), confidence, calls, 10.0)


def test_lines_are_what_was_counted() -> None:
    before = [said(True)] * 9 + [said(False)] * 11
    after = [said(True, 0.9)] * 3 + [said(False, 0.9, 6, 1.5)] * 17
    found = asked(before, after)
    lines = {line.name: line for line in of_answers([found])}
    right, brier = lines["right: it"], lines["Brier: it"]
    assert (right.before, right.after, right.n, right.chance) == (0.45, 0.15, 20, pytest.approx(2 / 2**6))
    assert brier.before == pytest.approx(0.25) and brier.after == pytest.approx((3 * 0.01 + 17 * 0.81) / 20)
    assert lines["calibration: it"].before == pytest.approx((0.5 * 10 + 0.5 * 8 + 0.5 * 2) / 20, abs=0.2)
    assert (lines["tokens: it"].before, lines["tokens: it"].best) == (3, 3) and lines["tokens: it"].after > 3
    assert lines["calls an answer"].after == pytest.approx((3 * 3 + 17 * 1.5) / 20) and lines["calls an answer"].better
    assert lines["positions an answer"].difference == (0, 0, 0)
    assert found.turned() == {
        "n": 20, "right_to_wrong": 6, "wrong_to_right": 0, "p_mcnemar": pytest.approx(2 / 2**6), "changed": 6
    }  # fmt: skip
    assert found.rows()[3]["before"] == {"text": "yes", "right": True, "confidence": 0.5, "tokens": 3}
    assert found.rows()[3]["after"]["right"] is False


def test_what_it_was_tuned_for_has_no_form() -> None:
    """An answer that was taught may well be longer."""
    found = asked([said(False)] * 20, [said(True, 0.5, 9)] * 20, tuned_for=True)
    assert {line.group for line in of_answers([found])} == {"skill", "confidence", "cost"}


def test_calibration_is_measured_in_bins() -> None:
    sure = np.repeat(np.linspace(0.05, 0.95, 10), 100)
    right = np.concatenate([np.arange(100) < 100 * c for c in np.linspace(0.05, 0.95, 10)]).astype(float)
    assert calibration_error(sure, right) == pytest.approx(0, abs=1e-9)
    assert calibration_error(np.ones(1000), right) == pytest.approx(0.5)


def test_repetition_is_of_runs_of_four() -> None:
    assert repeated([1, 2, 3]) == 0 and repeated(range(30)) == 0
    assert repeated([1, 2, 3, 4] * 3) == pytest.approx(1 - 4 / 9)


def test_perplexity_is_of_tokens_and_varies_by_texts() -> None:
    before, after = [Loss(2.0, 1), Loss(4.0, 3)], [Loss(4.0, 2), Loss(8.0, 6)]
    line = perplexity("it", before, after)
    assert line.before == pytest.approx(math.exp(6 / 4)) and line.after == pytest.approx(math.exp(12 / 4))
    assert line.n == 2 and line.difference.low < line.difference.value < line.difference.high
    rng = np.random.default_rng(0)
    losses = [Loss(float(x), 10) for x in rng.gamma(20, 1, 200)]
    worse = [Loss(loss.nats * 1.05, 10) for loss in losses]
    assert perplexity("it", losses, worse).chance < 1e-9 and perplexity("it", losses, losses).difference == (0, 0, 0)


def draw(rng: np.random.Generator, n: int, skill: float, sure: float) -> list[Answer]:
    """Answers of a model that is right in a share of cases and more sure where it is."""
    right = rng.random(n) < skill
    confidence = rng.beta(sure * 8, 2, n) * np.where(right, 1, 0.8)
    tokens = rng.integers(2, 9, n)
    return [said(bool(r), float(c), int(t), float(t)) for r, c, t in zip(right, confidence, tokens, strict=True)]


def test_false_alarms_of_a_table_of_text_are_at_most_one_in_twenty() -> None:
    """The same model twice, each answer drawn anew: "gained" or "lost" is false. Binomial(100, 0.05) is above 9 in 3 %."""
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(100):
        pairs = [asked(draw(rng, 60, s, 0.7), draw(rng, 60, s, 0.7), name=str(s)) for s in (0.95, 0.6)]
        texts = [[Loss(float(x), 10) for x in rng.gamma(20, 1, 40)] for _ in range(2)]
        lines = [*of_answers(pairs), perplexity("prose", *texts)]
        assert len(lines) == 13
        wrong += bool(Ledger(tuple(lines), 1e-9).of("gained", "lost"))
    assert wrong <= 9


SMALL, BASE, TEXT = ASSETS / "trio" / "small", ASSETS / "trio" / "base", ASSETS / "text"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("bundled bundled", "give --skill, --held or --text"),
        ("bundled bundled --held q.jsonl", "the same model decoded in the same way"),
        ("bundled bundled --held q.jsonl q.jsonl", "two files have the same name"),
        ("bundled bundled --held q.jsonl --n 1", "--n starts at 2"),
        ("bundled bundled --text nothing.txt", "there is no file nothing.txt"),
        ("bundled bundled --held q.jsonl --expert bundled --antiexpert bundled --rule random", "are for masked models"),
        (f"{TEXT} {TEXT} --held q.jsonl --expert {SMALL} --antiexpert {SMALL}", "are for causal models"),
        (f"{SMALL} {BASE} --held q.jsonl --expert {SMALL} --antiexpert {SMALL}", "the same model before and after"),
        (f"{SMALL} {SMALL} --held q.jsonl", "are the same model; steer it"),
        ("bundled bundled --held q.jsonl --within 0", "--within must be above 0"),
    ],
)
def test_what_makes_no_ledger_is_one_sentence(tmp_path, monkeypatch, capsys, words, sentence) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.jsonl").write_text('{"prompt": "a", "answer": "b"}\n' * 2)
    with pytest.raises(SystemExit, match="2"):
        fewstep(monkeypatch, f"ledger-text {words} --out found")
    assert sentence in capsys.readouterr().err and not (tmp_path / "found").exists()
