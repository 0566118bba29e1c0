"""The lines of a ledger of language models: the same questions and the same texts before and after a change."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.intervals import jackknife
from ..core.ledger import GROUPS, Array, Flags, Line, paired, scored, shares
from .choices import Grade
from .grading import Question, Questions, is_right

BINS = 10  # of the calibration error, each of as many answers
RUN = 4  # tokens that count as repeated if they stand in an answer twice

ADVICE = {
    "skill": "The model is worse at what it was tuned for: tune longer.",
    "knowledge": "The model lost knowledge: tune less, with a lower rate or LoRA; mix in texts like those of its training; "
    "or keep its weights and steer it with a small tuned model (fewstep proxy), where a smaller --alpha keeps more.",
    "text": "Ordinary text is less likely for the model: tune less or with a lower rate.",
    "confidence": "The model's confidence says less about whether it is right: calibrate before you rely on it. Thresholds "
    "from fewstep calibrate are for the model before.",
    "form": "Answers have another length, or repeat themselves: read some side by side in answers.jsonl.",
    "cost": "An answer costs more than before: compare the cost with what was gained.",
}
STEERED = ADVICE | {
    "skill": "The model is worse at what it was steered for: give another --alpha, or a small model that knows it better.",
    "knowledge": "The model lost knowledge: steer it with a smaller --alpha, which keeps more.",
    "text": "Ordinary text is less likely for the model: steer with a smaller --alpha.",
}


class Answer(NamedTuple):
    """A model's answer to a question.

    Attributes:
        text: of the answer, or the chosen option.
        tokens: generated ids; none for an option.
        confidence: 0 to 1: for a generated answer the geometric mean of its tokens' probabilities when each was chosen;
            for an option its probability among the options.
        calls, positions: network calls in which the answer took part, and token ids that they computed for it; nan for an
            option.

    Reference: Malinin and Gales 2021, Uncertainty Estimation in Autoregressive Structured Prediction (the mean).
    """

    text: str
    tokens: tuple[int, ...]
    confidence: float
    calls: float = math.nan
    positions: float = math.nan


class Loss(NamedTuple):
    """The negative log-likelihood of a text in nats, and its number of tokens."""

    nats: float
    tokens: int


@dataclass(frozen=True)
class Asked:
    """The questions of one file with the answers before and after."""

    questions: Questions
    before: tuple[Answer, ...]
    after: tuple[Answer, ...]
    grade: Grade = "auto"

    @property
    def name(self) -> str:
        return self.questions.name

    def right(self, answers: Sequence[Answer]) -> Flags:
        """Which of these answers are right, (n,)."""
        pairs = zip(answers, self.questions.items, strict=True)
        return np.array([self._is_right(answer.text, question) for answer, question in pairs], bool)

    def _is_right(self, text: str, question: Question) -> bool:
        return (
            text == question.answer if question.options else is_right(text, question.answer, question.grade or self.grade)
        )

    def turned(self) -> dict[str, Any]:
        """Counts of answers that turned from right to wrong and back, McNemar's p, and the count of texts that differ."""
        was, now = self.right(self.before), self.right(self.after)
        line = shares("", "", was, now, unit=1.0, best=math.inf)
        others = sum(a.text != b.text for a, b in zip(self.before, self.after, strict=True))
        counts = {"right_to_wrong": int((was & ~now).sum()), "wrong_to_right": int((now & ~was).sum())}
        return {"n": len(was), **counts, "p_mcnemar": line.chance, "changed": others}

    def rows(self) -> list[dict[str, Any]]:
        """An entry a question, for JSON."""
        sides = {"before": self.before, "after": self.after}
        right = {when: self.right(answers) for when, answers in sides.items()}
        return [
            {"questions": self.name, "prompt": question.prompt, "answer": question.answer}
            | {when: _entry(answers[k], bool(right[when][k])) for when, answers in sides.items()}
            for k, question in enumerate(self.questions.items)
        ]


def _entry(answer: Answer, right: bool) -> dict[str, Any]:
    return {"text": answer.text, "right": right, "confidence": answer.confidence, "tokens": len(answer.tokens)}


def of_answers(asked: Sequence[Asked]) -> list[Line]:
    """Lines of accuracy, calibration of confidence, form and cost for all questions, sorted by group."""
    lines = [line for each in asked for line in (_accuracy(each), *_confidence(each), *_form(each))]
    lines += _cost(asked)
    groups = ("skill", "knowledge", "confidence", "form", "cost")
    return sorted(lines, key=lambda line: groups.index(line.group))


def _accuracy(asked: Asked) -> Line:
    group = "skill" if asked.questions.tuned_for else "knowledge"
    right = asked.right(asked.before), asked.right(asked.after)
    return shares(group, f"right: {asked.name}", *right, unit=1.0, best=math.inf)


def _confidence(asked: Asked) -> list[Line]:
    """The Brier score, paired; and the calibration error, which all answers have together."""
    right = [asked.right(answers).astype(float) for answers in (asked.before, asked.after)]
    sure = [np.array([answer.confidence for answer in answers]) for answers in (asked.before, asked.after)]
    brier = [(c - r) ** 2 for c, r in zip(sure, right, strict=True)]
    lines = [paired("confidence", f"Brier: {asked.name}", *brier, unit=1.0)]
    n = len(right[0])
    if n >= GROUPS:
        a, b = (calibration_error(c, r) for c, r in zip(sure, right, strict=True))

        def change(rows: NDArray[np.intp]) -> float:
            before, after = (calibration_error(c[rows], r[rows]) for c, r in zip(sure, right, strict=True))
            return after - before

        found = jackknife(change, n, GROUPS)
        lines.append(scored("confidence", f"calibration: {asked.name}", a, b, found, n, unit=1.0))
    return lines


def calibration_error(confidence: Array, right: Array) -> float:
    """The mean difference between confidence and accuracy, over bins with equal numbers of answers.

    Reference: Naeini et al. 2015, Obtaining Well Calibrated Probabilities Using Bayesian Binning (ECE; ours by quantiles).
    """
    order = np.argsort(confidence, kind="stable")
    bins = np.array_split(order, min(BINS, len(order)))
    return float(sum(len(part) * abs(confidence[part].mean() - right[part].mean()) for part in bins) / len(order))


def _form(asked: Asked) -> list[Line]:
    """For generated answers to held-out questions: their length, best unchanged, and the share that is repeated."""
    if asked.questions.options or asked.questions.tuned_for:
        return []
    long = [np.array([len(answer.tokens) for answer in answers], float) for answers in (asked.before, asked.after)]
    again = [np.array([repeated(answer.tokens) for answer in answers]) for answers in (asked.before, asked.after)]
    was = float(long[0].mean())
    return [
        paired("form", f"tokens: {asked.name}", *long, unit=max(was, 1.0), best=was),
        paired("form", f"repeated: {asked.name}", *again, unit=1.0),
    ]


def repeated(tokens: Sequence[int]) -> float:
    """The share of an answer's runs of four tokens that occurred in it before."""
    runs = Counter(tuple(tokens[k : k + RUN]) for k in range(len(tokens) - RUN + 1))
    return 1 - len(runs) / runs.total() if runs else 0.0


def _cost(asked: Sequence[Asked]) -> list[Line]:
    lines = []
    for what in ("calls", "positions"):
        sides = [
            np.array([getattr(answer, what) for each in asked for answer in getattr(each, when)])
            for when in ("before", "after")
        ]
        kept = np.isfinite(sides[0]) & np.isfinite(sides[1])
        if kept.sum() > 1:
            before, after = (side[kept] for side in sides)
            lines.append(paired("cost", f"{what} an answer", before, after, unit=float(before.mean())))
    return lines


def perplexity(name: str, before: Sequence[Loss], after: Sequence[Loss]) -> Line:
    """Perplexity of the same texts; the jackknife leaves out groups of whole texts.

    Both sides are divided by the number of tokens before, so that another tokenizer after changes nothing.
    """
    tokens = np.array([loss.tokens for loss in before], float)
    nats = [np.array([loss.nats for loss in losses]) for losses in (before, after)]

    def value(side: Array, rows: NDArray[np.intp]) -> float:
        return float(np.exp(side[rows].sum() / tokens[rows].sum()))

    n, every = len(tokens), np.arange(len(tokens))
    a, b = (value(side, every) for side in nats)
    found = jackknife(lambda rows: value(nats[1], rows) - value(nats[0], rows), n, min(GROUPS, n))
    return scored("text", f"perplexity: {name}", a, b, found, n, unit=a)
