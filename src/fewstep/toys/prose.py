"""Plain prose about an invented world and about sums, to learn from; and a skill that such prose never shows.

Everything is words with a space between any two, and a function of a seed and a number.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from .world import Fact, World

PLUS, MINUS = "plus", "minus"
SUMS = {
    PLUS: ("{a} plus {b} is {c} .", "{b} more than {a} is {c} ."),
    MINUS: ("{a} minus {b} is {c} .", "{b} less than {a} is {c} ."),
}
ASK = "question : {question} answer :"
LARGEST = 50  # of all numbers
MORE = 10  # what the skill adds
ANSWER = "the answer is {} ."


@dataclass(frozen=True)
class Problem:
    """A question for a sum, and the answer that the skill gives: 10 more than the sum, in two written steps.

    Attributes:
        prompt: ends where the answer starts, as questions in the prose do.
        worked: the sum, as the prose would answer; then 10 more; then "the answer is".
        answer: a number as a word.
    """

    prompt: str
    worked: str
    answer: str


@dataclass(frozen=True)
class Choice:
    """A fact to complete: `options[right]` is true after `prompt`."""

    prompt: str
    options: tuple[str, ...]
    right: int


def documents(world: World, *, largest: int = LARGEST, seed: int = 0) -> Callable[[int], str]:
    """Text number k of an endless supply: facts, sums, or a question about one of either with its answer.

    A text of facts or sums makes two to four statements, each in any of its phrasings; some sums end with "the answer is".
    Questions are asked about the first half of the people only. Their answer is one sentence, behind which some go on with
    other sums, but never with "the answer is".

    Args:
        world: gives the facts.
        largest: no number is larger; none is below 0.
        seed: of the choice of texts.
    """
    facts, each = world.facts, len(world.relations)
    asked = facts[: len(facts) // 2]

    def person(rng: random.Random) -> list[Fact]:
        start = rng.randrange(len(facts) // each) * each
        return rng.sample(facts[start : start + each], min(each, rng.randint(2, 4)))

    def document(number: int) -> str:
        rng = random.Random(f"documents {seed} {number}")
        kind = rng.random()
        if kind < 0.35:
            return " ".join(state(rng, fact) for fact in person(rng))
        if kind < 0.5:
            fact = rng.choice(asked)
            return f"{ASK.format(question=fact.relation.question.format(person=fact.person))} {state(rng, fact)}"
        if kind < 0.85:
            return " ".join(_reckon(rng, largest))
        a, op, b, c = _sum(rng, largest)
        said = [ASK.format(question=f"what is {a} {op} {b} ?"), SUMS[op][0].format(a=a, b=b, c=c)]
        return " ".join([*said, *_sums(rng, largest, c, rng.choice((0, 0, 1, 2)))])

    return document


def state(rng: random.Random, fact: Fact) -> str:
    """The fact as a sentence, in any of its phrasings."""
    return rng.choice(fact.relation.statements).format(person=fact.person, value=fact.value)


def problem(number: int, *, largest: int = LARGEST, seed: int = 0) -> Problem:
    """Problem number k of all there are, in an order that `seed` chooses; −1 is the last, as in a list.

    Different numbers are different problems: tune on those from the front and test on those from the back.
    """
    a, op, b, c = _problems(largest, seed)[number]
    steps = (SUMS[op][0].format(a=a, b=b, c=c), SUMS[PLUS][0].format(a=c, b=MORE, c=c + MORE))
    return Problem(
        ASK.format(question=f"what is {a} {op} {b} ?"), f"{' '.join(steps)} {ANSWER.format(c + MORE)}", str(c + MORE)
    )


def answered(text: str) -> str | None:
    """The number that a text gives as its answer: what follows "the answer is", else the last number of its first sentence
    that holds one; None without any."""
    words = text.split()
    for place in range(len(words) - 3):
        if words[place : place + 3] == ["the", "answer", "is"]:
            return words[place + 3]
    for sentence in " ".join(words).split(" ."):
        numbers = [word for word in sentence.split() if word.isdecimal()]
        if numbers:
            return numbers[-1]
    return None


def choice(fact: Fact) -> Choice:
    """The fact in its first phrasing, cut off before its value, with all values of its relation to choose from."""
    before, _, _ = fact.relation.statements[0].format(person=fact.person, value="\0").partition(" \0")
    return Choice(before, fact.relation.values, fact.relation.values.index(fact.value))


def vocabulary(world: World, *, largest: int = LARGEST) -> tuple[str, ...]:
    """All words of the prose and the problems: the language's first, then the numbers, the values and the people."""
    sentences = [ASK, "what is ? the answer is", *(sentence for kind in SUMS.values() for sentence in kind)]
    for relation in world.relations:
        sentences += [*relation.statements, relation.question]
    words = [word for sentence in sentences for word in sentence.split() if "{" not in word]
    values = [value for relation in world.relations for value in relation.values]
    return tuple(dict.fromkeys([*words, *map(str, range(largest + 1)), *values, *world.names]))


def blocks(
    document: Callable[[int], str], encode: Callable[[str], list[int]], end: int, length: int
) -> Callable[[int], list[int]]:
    """Block number k: ids of whole texts one after the other, each with `end` behind it, cut off at `length`.

    No text is in two blocks.
    """

    def block(number: int) -> list[int]:
        ids: list[int] = []
        place = number * length  # a text has at least one token, so a block never needs more texts than this
        while len(ids) < length:
            ids += [*encode(document(place)), end]
            place += 1
        return ids[:length]

    return block


def _sum(rng: random.Random, largest: int, a: int | None = None) -> tuple[int, str, int, int]:
    """a op b = c with 1 ≤ b and 0 ≤ a, c ≤ largest, evenly over what is possible for a uniform a."""
    a = rng.randint(0, largest) if a is None else a
    c = rng.choice([n for n in range(largest + 1) if n != a])
    op = PLUS if c > a else MINUS
    return a, op, abs(c - a), c


def _sums(rng: random.Random, largest: int, here: int | None, n: int) -> Iterator[str]:
    """`n` sums, each from where the last one ended, the first from `here`, or from anywhere."""
    for _ in range(n):
        a, op, b, c = _sum(rng, largest, here if rng.random() < 0.5 else None)
        yield rng.choice(SUMS[op]).format(a=a, b=b, c=c)
        here = c


def _reckon(rng: random.Random, largest: int) -> Iterator[str]:
    """Two to four sums, and sometimes what the last one came to."""
    yield from (said := list(_sums(rng, largest, None, rng.randint(2, 4))))
    if rng.random() < 0.3:
        yield ANSWER.format(said[-1].split()[-2])


@lru_cache(maxsize=4)
def _problems(largest: int, seed: int) -> list[tuple[int, str, int, int]]:
    """All of a ± b = c with 1 ≤ b and 0 ≤ a, c, and c + 10 ≤ largest."""
    pairs = product(range(largest + 1), range(largest - MORE + 1))
    found = [(a, PLUS if c > a else MINUS, abs(c - a), c) for a, c in pairs if a != c]
    random.Random(f"problems {seed}").shuffle(found)
    return found
