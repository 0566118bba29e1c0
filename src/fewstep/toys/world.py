"""An invented world: people and facts about them, a function of a seed. Only a model trained on the facts knows them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "kl", "st")
VOWELS = ("a", "e", "i", "o", "u")


@dataclass(frozen=True)
class Relation:
    """A kind of fact: texts with a placeholder for the person and, in `statements`, one for the value."""

    name: str
    statements: tuple[str, ...]
    question: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """`relation` of `person` is `value`."""

    person: str
    relation: Relation
    value: str


@dataclass(frozen=True)
class World:
    """`people` invented names, each with one value of every relation, drawn uniformly at random.

    All text consists of words and punctuation marks with a space between any two.
    """

    people: int = 64
    seed: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The people, in an order that the seed chooses."""
        return _invented(self.seed)[: self.people]

    @property
    def relations(self) -> tuple[Relation, ...]:
        """The kinds of facts; the towns are invented as well."""
        towns = _invented(self.seed)[self.people : self.people + 12]
        return (
            Relation("town", ("{person} lives in {value} .", "the home of {person} is {value} ."),
                     "where does {person} live ?", towns),
            Relation("trade", ("{person} works as a {value} .", "the trade of {person} is {value} ."),
                     "what does {person} work as ?",
                     ("baker", "carpenter", "tailor", "smith", "miller", "potter", "sailor", "weaver", "painter", "clerk")),
            Relation("animal", ("{person} keeps a {value} .", "the animal of {person} is a {value} ."),
                     "which animal does {person} keep ?",
                     ("horse", "goat", "cat", "dog", "hen", "duck", "rabbit", "parrot", "donkey", "sheep")),
            Relation("colour", ("{person} likes {value} .", "the colour that {person} likes is {value} ."),
                     "which colour does {person} like ?",
                     ("red", "blue", "green", "yellow", "white", "black", "brown", "grey")),
        )  # fmt: skip

    @property
    def facts(self) -> tuple[Fact, ...]:
        """All facts, person by person."""
        rng = random.Random(f"facts {self.seed}")
        relations = self.relations
        return tuple(Fact(person, relation, rng.choice(relation.values)) for person in self.names for relation in relations)


@lru_cache(maxsize=8)
def _invented(seed: int) -> tuple[str, ...]:
    """All names that the syllables can form, shuffled."""
    names = ["".join(part) for part in product(ONSETS, VOWELS, ONSETS[:14], VOWELS)]
    random.Random(f"names {seed}").shuffle(names)
    return tuple(names)
