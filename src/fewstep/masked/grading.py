"""Questions with known answers, and whether a text answers one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from .choices import Grade
from .prompts import Turns, prompt_of, read_prompts

CLOSING = " \t\n.,!?\"'"  # what may follow an answer
NUMBER = re.compile(r"[-−]?\d[\d,]*(?:\.\d+)?")


class Question(NamedTuple):
    """A prompt, its right answer, the options of a multiple choice, and the question's own grade, if it has one."""

    prompt: str | Turns
    answer: str
    options: tuple[str, ...] = ()
    grade: Grade | None = None


class Questions(NamedTuple):
    """Questions of one file."""

    name: str
    tuned_for: bool
    items: tuple[Question, ...]

    @property
    def options(self) -> bool:
        """Whether the questions are multiple choice."""
        return bool(self.items[0].options)


def read_questions(file: Path, *, tuned_for: bool, most: int | None = None) -> Questions:
    """The questions in a .jsonl: objects with a "prompt" or "messages" and an "answer", perhaps "options" and a "grade".

    Args:
        file: all of its lines have options, or none.
        tuned_for: whether the model was tuned for them.
        most: take only the first ones, this many.

    Raises:
        ValueError: the file does not exist, has a line that is no question, or fewer than two questions.
    """
    items = read_prompts(file)
    found = tuple(_question(item, f"line {number} of {file}") for number, item in enumerate(items, 1))[:most]
    if len(found) < 2:
        raise ValueError(f"{file} holds {len(found)} question; a comparison needs at least two")
    if len({bool(question.options) for question in found}) > 1:
        raise ValueError(f'some questions in {file} have "options" and some have none; put them into two files')
    return Questions(file.stem, tuned_for, found)


def _question(item: dict[str, Any], where: str) -> Question:
    answer, options = item.get("answer"), item.get("options") or []
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float)) or not str(answer).strip():
        raise ValueError(f'{where} has no "answer", which is a text or a number')
    if not isinstance(options, list) or not all(isinstance(option, str) and option.strip() for option in options):
        raise ValueError(f'{where} has "options" that are no list of texts')
    if options and (options.count(str(answer)) != 1 or len(options) < 2):
        raise ValueError(f"{where} must have its answer {str(answer)!r} among its options once, and another option")
    grade = item.get("grade")
    if grade is not None and grade not in get_args(Grade):
        raise ValueError(f'{where} has the "grade" {grade!r}, which is none of {", ".join(get_args(Grade))}')
    return Question(prompt_of(item), str(answer), tuple(options), grade)


def read_documents(file: Path, most: int | None = None) -> list[str]:
    """The texts in a .jsonl, strings or objects with a "text"; or the lines of any other text file, without empty ones.

    Raises:
        ValueError: the file does not exist, has a line that is no text, or fewer than two texts.
    """
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    try:
        lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8: {error}") from error
    found = [_document(line, file) for line in lines] if file.suffix == ".jsonl" else lines
    if len(found) < 2:
        raise ValueError(f"{file} holds {len(found)} texts; a comparison needs at least two, one a line")
    return found[:most]


def _document(line: str, file: Path) -> str:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"a line of {file} is not JSON: {error}") from error
    text = found.get("text") if isinstance(found, dict) else found
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'a line of {file} is neither a text nor an object with a "text"')
    return text


def is_right(text: str, answer: str, grade: Grade) -> bool:
    """Whether a text gives the answer.

    "number" compares the last number in the text with the last one in the answer; 1,000 is 1000. "exact" compares the
    whole texts without the white space around them. "start" and "end" look for the answer in the first or last words,
    without a full stop. "auto" is "number" if the answer is a number, and otherwise "exact".
    """
    number = NUMBER.fullmatch(answer.strip()) if grade == "auto" else grade == "number"
    if number:
        return _last(text) == _last(answer) is not None
    words, wanted = text.rstrip(CLOSING).split(), answer.rstrip(CLOSING).split()
    if grade == "start":
        return [word.rstrip(CLOSING) for word in words[: len(wanted)]] == [word.rstrip(CLOSING) for word in wanted]
    if grade == "end":
        return words[len(words) - len(wanted) :] == wanted
    return text.strip() == answer.strip()


def _last(text: str) -> float | None:
    found: Sequence[str] = NUMBER.findall(text)
    return float(found[-1].replace(",", "").replace("−", "-")) if found else None
