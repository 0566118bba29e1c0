"""Calibrates early commit: the boldest threshold that keeps the answers, with a guarantee."""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.intervals import upper_bound
from ..core.receipt import plain, write_json
from ..core.source import read_json
from .decoding import Decoded, decode
from .early import EarlyCommit, StableAndConfident
from .learned import Learned
from .predictor import MaskPredictor
from .rules import KLASS, WINO, Blockwise, Credit, EntropyBound, Factor, Hierarchical, Last, Threshold, TopK
from .schedule import Cosine, Exponential, Linear, Scaled, Span, Stairs, Suffix
from .settling import Same, Trace, record
from .step import CommitRule

logger = logging.getLogger(__name__)

FACTORS = tuple(2.0 ** (k / 4) for k in range(20, -21, -1))  # 32 … 1/32


@dataclass(frozen=True)
class Decoding:
    """How the rows of a calibration are decoded, and when two answers are the same.

    Attributes:
        steps, temperature, seeds, eos, batch: as for `decode`.
        same: whether two rows have the same answer; by default whether every token of the rule's region agrees.
        exact: the predictor without its cache, if it has one. Full decoding uses it, so that rule and cache are calibrated
            together.
    """

    steps: int | None = None
    temperature: float = 0.0
    seeds: Sequence[int] | None = None
    eos: bool = True
    batch: int = 16
    same: Same | None = None
    exact: MaskPredictor | None = None

    def decode(self, predictor: MaskPredictor, rows: Sequence[Tensor], rule: CommitRule) -> list[Decoded]:
        """The rows, decoded by the rule."""
        return decode(predictor, rows, rule, **self._options())

    def record(self, predictor: MaskPredictor, rows: Sequence[Tensor], rule: CommitRule) -> list[Trace]:
        """The rows, decoded and watched; see `record`."""
        return record(predictor, rows, rule, **self._options())

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("steps", "temperature", "seeds", "eos", "batch")}


@dataclass(frozen=True)
class Beside:
    """The cost of another rule on the same rows, and its changes against the same full decoding.

    Attributes:
        rule: the other rule.
        steps: mean number of steps.
        changed: number of rows that get another answer.
        bound: upper confidence limit of their share, for this comparison alone.
    """

    rule: CommitRule
    steps: float
    changed: int
    bound: float


WRITTEN = {
    kind.__name__: kind
    for kind in (TopK, Threshold, Factor, EntropyBound, KLASS, Credit, Learned, Hierarchical, WINO, Blockwise, Last,
                 EarlyCommit, StableAndConfident, Stairs, Linear, Cosine, Exponential, Scaled, Span, Suffix, Beside)
}  # fmt: skip


@dataclass(frozen=True)
class Calibration:
    """With probability ≥ 1 − delta over the calibration rows, `rule` changes at most a share epsilon of answers.

    The guarantee holds for rows like the calibration rows, the same model and the same number of steps. Full decoding is
    the inner rule alone until all is decided. An inner rule that decides several positions a step, such as `Threshold`, has
    itself changed answers against one position a step; these do not count. Full decoding is without a cache, so changes by
    a cache do count.

    If the rule's own boldness was calibrated (`calibrate_rule`), full decoding is one token a step, and changes by the rule
    do count.

    Attributes:
        rule: the early rule with its threshold scaled; the inner rule if no threshold passed.
        factor: the factor of the threshold, or the chosen confidence, factor or bound of the rule; None if none passed, so
            that `rule` is full decoding.
        epsilon, delta: of the guarantee.
        n: number of calibration rows.
        changed: number of rows that `rule` changes.
        bound: upper confidence limit of their share at 1 − delta, ≤ epsilon; None if `rule` is full decoding itself.
        full_steps: mean number of steps of full decoding.
        early_steps: mean number of steps of `rule`.
        beside: another rule on the same rows, if one was given.
        settings: further settings that must be the same when the rule is used.
    """

    rule: CommitRule
    factor: float | None
    epsilon: float
    delta: float
    n: int
    changed: int
    bound: float | None
    full_steps: float
    early_steps: float
    beside: Beside | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Writes the calibration as JSON, atomically."""
        write_json(path, self)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Reads what `save` wrote.

        Raises:
            ValueError: the file does not exist, or is no calibration.
        """
        if not Path(path).is_file():
            raise ValueError(f"there is no file {path}; make a calibration with fewstep calibrate")
        try:
            content = read_json(Path(path), "make one with fewstep calibrate")
            if content.pop("name", None) != cls.__name__:
                raise ValueError("it is about something else")
            made = cls(**content | {name: read_rule(content[name]) for name in ("rule", "beside")})
            if not callable(made.rule) or not isinstance(made.beside, Beside | None):
                raise ValueError("it holds no rule")
            return made
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is not a calibration: {error}") from error


def calibrated(path: Path, settings: dict[str, Any]) -> CommitRule:
    """The rule that was calibrated for these settings. Another name of the model is only logged, as folders may move.

    Settings that the file does not name may have any value, except the cache: a calibration that names none was made
    without a cache.

    Raises:
        ValueError: the rule was calibrated for other settings, or `path` holds no calibration.
    """
    found = Calibration.load(path)
    for name, value in plain(settings).items():
        made = found.settings.get(name, "none" if name == "cache" else value)
        if made != value and name == "model":
            logger.warning("%s was made with %s; its guarantee holds for that model", path, made)
        elif made != value:
            raise ValueError(f"{path} was made {_as_made(name, made)}, for its guarantee holds for that alone")
    return found.rule


def _as_made(name: str, made: Any) -> str:
    """How a flag was given to the calibration, and that it must be given so: "with --steps 8; give --steps 8"."""
    flag = "--" + name.replace("_", "-")
    if made is False or made in (None, "", []):
        return f"without {flag}; leave it out"
    values = [] if made is True else made if isinstance(made, list) else [made]
    given = " ".join([flag, *(shlex.quote(str(value)) for value in values)])
    return f"with {given}; give {given}"


def calibrate(
    predictor: MaskPredictor,
    rows: Sequence[Tensor],
    rule: EarlyCommit,
    decoding: Decoding = Decoding(),
    *,
    epsilon: float = 0.05,
    delta: float = 0.05,
    factors: Sequence[float] = FACTORS,
    beside: CommitRule | None = None,
) -> Calibration:
    """Learn-then-Test with a fixed sequence: thresholds factor·τ(p) are tested from safe to bold until one fails.

    A threshold passes if P(Binomial(n, epsilon) ≤ changed rows) ≤ delta. Every row is decoded once, in full, as early and
    full decoding are the same up to the step where a threshold would commit.

    Args:
        predictor: as for `decode`.
        rows: canvases like those that will be decoded, at least ln delta / ln(1 − epsilon) of them.
        rule: the early rule; its threshold is scaled.
        decoding: how the rows are decoded.
        epsilon: allowed share of rows whose answer differs from full decoding's.
        delta: allowed probability that the guarantee is wrong.
        factors: factors to try, falling; they must be chosen without looking at `rows`.
        beside: another rule for the same rows; the result holds its cost, which may be lower.

    Raises:
        ValueError: there are too few rows for any guarantee, the factors do not fall, or the cache alone changes too many
            answers.

    Reference: Angelopoulos et al. 2021, Learn then Test.
    """
    check_calibration(len(rows), epsilon, delta, factors)
    watched = watch(predictor, rows, rule, decoding, factors=factors, beside=beside)
    return chosen(watched, rule, epsilon=epsilon, delta=delta, factors=factors, beside=beside)


class Watched(NamedTuple):
    """A row that was decoded in full, as calibration needs it; plain numbers, as JSON holds them.

    Attributes:
        ends: for each factor the step after which factor times the threshold would have ended the row, from 0.
        changed: for each factor whether the answer would then have been another.
        alone: whether the inner rule alone, with a predictor that is not exact, gives another answer.
        steps: number of steps of full decoding.
        beside: whether the other rule gives another answer, and its steps; None if there is no other rule.
    """

    ends: list[int]
    changed: list[bool]
    alone: bool
    steps: int
    beside: tuple[bool, int] | None = None


def watch(
    predictor: MaskPredictor,
    rows: Sequence[Tensor],
    rule: EarlyCommit,
    decoding: Decoding = Decoding(),
    *,
    factors: Sequence[float] = FACTORS,
    beside: CommitRule | None = None,
) -> list[Watched]:
    """Decodes rows in full and returns what `chosen` needs of each; arguments as for `calibrate`."""
    traces = decoding.record(predictor, rows, rule)
    if decoding.exact is not None:
        full = decoding.decode(decoding.exact, rows, rule.rule)
        finals = [row._replace(ids=row.ids.cpu(), committed_at=row.committed_at.cpu()) for row in full]
        traces = [trace.against(final) for trace, final in zip(traces, finals, strict=True)]
    watched = [_watched(trace, rule, factors, decoding.same) for trace in traces]
    if beside is None:
        return watched
    others = decoding.record(predictor, rows, beside)
    return [
        row._replace(beside=(not bool(trace.agree(other.shown[-1:], decoding.same)), len(other.shown)))
        for row, trace, other in zip(watched, traces, others, strict=True)
    ]


def _watched(trace: Trace, rule: EarlyCommit, factors: Sequence[float], same: Same | None) -> Watched:
    ends, hits = exits(trace, rule, factors), trace.hits(same)
    return Watched(ends.tolist(), (~hits[ends]).tolist(), not hits[-1], len(hits))


def boldest(
    traces: Sequence[Trace],
    rule: EarlyCommit,
    *,
    epsilon: float = 0.05,
    delta: float = 0.05,
    factors: Sequence[float] = FACTORS,
    same: Same | None = None,
) -> Calibration:
    """`calibrate` from the traces of `record` with `rule`, so that several epsilons need only one decoding.

    Choosing among the results after looking at them is a further test, which the guarantees do not cover.

    Raises:
        ValueError: as for `calibrate`.
    """
    return chosen(
        [_watched(trace, rule, factors, same) for trace in traces], rule, epsilon=epsilon, delta=delta, factors=factors
    )


def chosen(
    watched: Sequence[Watched],
    rule: EarlyCommit,
    *,
    epsilon: float,
    delta: float,
    factors: Sequence[float] = FACTORS,
    beside: CommitRule | None = None,
) -> Calibration:
    """The calibration from watched rows; see `calibrate`."""
    n = len(watched)
    check_calibration(n, epsilon, delta, factors)
    changed = torch.tensor([row.changed for row in watched]).sum(0)  # (F,)
    alone = sum(row.alone for row in watched)
    passed = fixed_sequence([alone, *changed.tolist()], n, epsilon, delta)
    full = sum(row.steps for row in watched) / n
    if passed is None:
        raise ValueError(
            f"no threshold keeps {1 - epsilon:.1%} of the answers: the cache alone changes {alone} of {n}; "
            "refresh it more often, or calibrate without"
        )
    if passed == 0:
        bound = upper_bound(alone, n, delta) if alone else None
        found = Calibration(rule.rule, None, epsilon, delta, n, alone, bound, full, full)
    else:
        scaled, k = replace(rule, threshold=Scaled(rule.threshold, factors[passed - 1])), int(changed[passed - 1])
        early = sum(row.ends[passed - 1] + 1 for row in watched) / n
        found = Calibration(
            scaled, factors[passed - 1], epsilon, delta, n, k, upper_bound(k, n, delta), full, early
        )  # fmt: skip
    others = [row.beside for row in watched if row.beside is not None]
    if beside is None or not others:
        return found
    differ = sum(other for other, _ in others)
    steps_made = sum(steps for _, steps in others) / n
    return replace(found, beside=Beside(beside, steps_made, differ, upper_bound(differ, n, delta)))


def check_calibration(n: int, epsilon: float, delta: float, factors: Sequence[float] = FACTORS) -> None:
    """Raises ValueError if `n` rows can guarantee nothing, or the factors do not fall."""
    if not (0 < epsilon < 1 and 0 < delta < 1):
        raise ValueError(f"epsilon and delta lie between 0 and 1, got {epsilon} and {delta}")
    if not factors or any(a <= b for a, b in zip(factors, [*factors[1:], 0.0], strict=True)):
        raise ValueError("the factors must be positive and fall, from safe to bold")
    least = math.ceil(math.log(delta) / math.log(1 - epsilon))
    if n < least:
        raise ValueError(f"{n} rows guarantee nothing at epsilon {epsilon}, delta {delta}: give at least {least}")


def exits(trace: Trace, rule: EarlyCommit, factors: Sequence[float]) -> Tensor:
    """For each of `factors` the step after which factor times the rule's threshold would have ended the row, (F,) long."""
    threshold = rule.threshold(trace.progress)
    enough = trace.known >= torch.tensor(factors, dtype=torch.float64)[:, None] * threshold  # (F, T)
    enough[:, -1] = True
    return enough.to(torch.uint8).argmax(1)


def fixed_sequence(changed: Sequence[int], n: int, epsilon: float, delta: float) -> int | None:
    """The place of the last hypothesis "risk > epsilon" that is rejected at level delta before the first that is not.

    None if the first is not rejected. Testing in a fixed order up to the first failure keeps the probability of any false
    rejection ≤ delta.
    """
    from scipy.stats import binom

    passed = None
    for place, k in enumerate(changed):
        if binom.cdf(k, n, epsilon) > delta:
            break
        passed = place
    return passed


def read_rule(content: Any) -> Any:
    """The rule, schedule or region from its JSON by `receipt.plain`.

    Raises:
        ValueError: its class is not known.
    """
    if isinstance(content, list):
        return tuple(read_rule(part) for part in content)
    if not isinstance(content, dict):
        return content
    fields = dict(content)
    kind = WRITTEN.get(fields.pop("name", ""))
    if kind is None:
        raise ValueError(f"no rule is called {content.get('name')!r}; known are {', '.join(WRITTEN)}")
    return kind(**{name: read_rule(value) for name, value in fields.items()})
