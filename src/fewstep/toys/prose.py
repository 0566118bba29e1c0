"""Training texts about an invented world and about sums, and problems that need a skill which no text shows.

A text consists of words with a space between any two, and is a function of a seed and a number.
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
LARGEST = 50  # number in a text
MORE = 10  # added by the skill
ANSWER = "the answer is {} ."


@dataclass(frozen=True)
class Problem:
    """A question for a sum, and the answer of the skill: 10 more than the sum, in two written steps.

    Attributes:
        prompt: the question, up to where the answer starts.
        worked: the answer: the sum as in the prose; then the sum plus 10; then "the answer is" and the number.
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
    """A function that gives text number k: facts, sums, or a question about a fact or a sum with its answer.

    A text of facts or sums has two to four statements, each in any of its phrasings; some sums end with "the answer is".
    Questions about facts are about the first half of the people only. An answer is one sentence. Further sums may follow
    an answer, but never "the answer is".

    Args:
        world: gives the facts.
        largest: numbers are 0 to this.
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
    """The fact as a sentence, in a random phrasing."""
    return rng.choice(fact.relation.statements).format(person=fact.person, value=fact.value)


def problem(number: int, *, largest: int = LARGEST, seed: int = 0) -> Problem:
    """Problem `number` of all problems, in an order that `seed` decides; −1 is the last, as in a list.

    Different numbers are different problems: tune on the first ones and test on the last ones.
    """
    a, op, b, c = _problems(largest, seed)[number]
    steps = (SUMS[op][0].format(a=a, b=b, c=c), SUMS[PLUS][0].format(a=c, b=MORE, c=c + MORE))
    return Problem(
        ASK.format(question=f"what is {a} {op} {b} ?"), f"{' '.join(steps)} {ANSWER.format(c + MORE)}", str(c + MORE)
    )


def answered(text: str) -> str | None:
    """The number that a text gives as its answer: the word after "the answer is", else the last number in the first
    sentence with a number; None without a number."""
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
    """The fact in its first phrasing up to its value, with all values of its relation as options."""
    before, _, _ = fact.relation.statements[0].format(person=fact.person, value="\0").partition(" \0")
    return Choice(before, fact.relation.values, fact.relation.values.index(fact.value))


def vocabulary(world: World, *, largest: int = LARGEST) -> tuple[str, ...]:
    """All words of the prose and the problems: those of the phrasings, then numbers, values and names."""
    sentences = [ASK, "what is ? the answer is", *(sentence for kind in SUMS.values() for sentence in kind)]
    for relation in world.relations:
        sentences += [*relation.statements, relation.question]
    words = [word for sentence in sentences for word in sentence.split() if "{" not in word]
    values = [value for relation in world.relations for value in relation.values]
    return tuple(dict.fromkeys([*words, *map(str, range(largest + 1)), *values, *world.names]))


def blocks(
    document: Callable[[int], str], encode: Callable[[str], list[int]], end: int, length: int
) -> Callable[[int], list[int]]:
    """A function that gives block number k: ids of texts one after the other, each followed by `end`, cut off at `length`.

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
    """a op b = c with 1 ≤ b and 0 ≤ a, c ≤ largest: a uniform unless given, and c uniform over the numbers other than a."""
    a = rng.randint(0, largest) if a is None else a
    c = rng.choice([n for n in range(largest + 1) if n != a])
    op = PLUS if c > a else MINUS
    return a, op, abs(c - a), c


def _sums(rng: random.Random, largest: int, here: int | None, n: int) -> Iterator[str]:
    """`n` sums. Each starts with the last result, the first with `here`, in half of the cases, else with any number."""
    for _ in range(n):
        a, op, b, c = _sum(rng, largest, here if rng.random() < 0.5 else None)
        yield rng.choice(SUMS[op]).format(a=a, b=b, c=c)
        here = c


def _reckon(rng: random.Random, largest: int) -> Iterator[str]:
    """Two to four sums, and sometimes the last result again after "the answer is"."""
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
