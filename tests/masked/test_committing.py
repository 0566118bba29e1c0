"""Names of rules become rules."""

from __future__ import annotations

from typing import get_args

import pytest
from masked.tiny_bert import word_tokenizer

from fewstep.core import receipt
from fewstep.masked.calibration import read_rule
from fewstep.masked.committing import Base, Early, Prophet, Rule
from fewstep.masked.early import EarlyCommit, StableAndConfident
from fewstep.masked.rules import (
    DEFAULT,
    KLASS,
    Blockwise,
    Credit,
    EntropyBound,
    Factor,
    Hierarchical,
    Last,
    Threshold,
    TopK,
)
from fewstep.masked.schedule import Stairs, Suffix


def test_rule_names() -> None:
    words, inner = word_tokenizer(special=False), Blockwise(TopK(), 7)
    prophet = Prophet(levels=(3, 2, 1), statistic="0.1", gaps="region", first=1)
    made = Early(early="prophet", prophet=prophet).around(inner, answer_follows=True)
    assert made == EarlyCommit(inner, Stairs((3, 2, 1)), 0.1, Suffix(), "region", 1)
    assert Early(early="stable").around(inner, answer_follows=False) == StableAndConfident(inner)
    sched = Early(early="sched").around(inner, answer_follows=False)
    assert isinstance(sched, EarlyCommit) and sched.over == "region"
    assert Early().around(inner, answer_follows=True) is inner
    assert Rule(rule="entropy-bound", bound=0.3, block_length=7).made(words) == Blockwise(EntropyBound(0.3), 7)
    assert Rule(rule="random", last=("w1", "is")).made(words) == Blockwise(Last(TopK("chance"), (6, 36)))
    assert Rule().made(words) == DEFAULT
    for name, base in (("threshold", Threshold(0.99)), ("klass", KLASS(0.99)), ("factor", Factor(1.0)),
                       ("hierarchical", Hierarchical(0.99, 0.4)), ("credit", Credit(0.99)),
                       ("entropy-bound", EntropyBound(0.1)), ("margin", TopK("margin", "even"))):  # fmt: skip
        assert Rule(rule=name).made(words) == Blockwise(base)  # type: ignore[arg-type] # what the help says of each
    for name in set(get_args(Base)) - {"learned"}:  # its file is a test of its own
        rule = Rule(rule=name).made(words)
        assert read_rule(receipt.plain(rule)) == rule  # else what is calibrated over it could not be read
    with pytest.raises(ValueError, match="--statistic must be mean, minimum or a number"):
        Prophet(statistic="median").around(inner, answer_follows=False)
    with pytest.raises(ValueError, match="no token nobody"):
        Rule(last=("nobody",)).made(words)
