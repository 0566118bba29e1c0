"""A command line that cannot be read: one sentence names what was meant, for every flag of every command."""

from __future__ import annotations

import argparse
import re
import warnings
from functools import cache

import pytest
import tyro
from conftest import fewstep

from fewstep.cli import COMMANDS, misread
from fewstep.core.private import Misread


@cache
def arguments(name: str) -> list[argparse.Action]:
    """All that a command takes, as tyro tells argparse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return [action for action in tyro.extras.get_parser(COMMANDS[name])._actions if action.dest != "help"]


def least(name: str) -> str:
    """A command with nothing but what it must be given."""
    needed = [action for action in arguments(name) if action.required]
    words = [" ".join([*action.option_strings[:1], next(iter(action.choices or ["x"]))]) for action in needed]
    return " ".join([name, *(word for word in words if not word.startswith("-")), *(w for w in words if w.startswith("-"))])


@pytest.fixture
def said(monkeypatch, capsys):
    """What a command line ends with, which must be short, plain and on stderr."""

    def say(line: str) -> str:
        with pytest.raises(SystemExit) as stop:
            fewstep(monkeypatch, line)
        out, err = capsys.readouterr()
        assert stop.value.code == 2 and out == "" and err.startswith("fewstep: "), err
        assert err.count("\n") == 1 and not re.search("[\u2500-\u257f]", err), err
        return err.removeprefix("fewstep: ").strip()

    return say


@pytest.mark.parametrize("name", COMMANDS)
def test_a_flag_that_lacks_a_letter_is_recognised(name: str, monkeypatch) -> None:
    known = [flag for action in arguments(name) for flag in action.option_strings]
    assert sorted(misread.flags(COMMANDS[name])) == sorted(known)
    monkeypatch.setattr(misread, "flags", lambda _: known)
    for k, flag in enumerate(flag for flag in known if len(flag) > 3):
        place = 2 + k % (len(flag) - 2)
        word = flag[:place] + flag[place + 1 :]
        answer = misread.sentence(Misread(unknown=(word, "3")), [name, word, "3"], COMMANDS)
        assert answer.startswith(f"{name} has no {word}; did you mean {flag}") or word in known


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_wrong_with_any_command(name: str, said) -> None:
    assert said(f"{name[:-1]}").startswith(f"there is no command {name[:-1]}; did you mean {name}")
    flag = max(arguments(name)[-1].option_strings, key=len)
    assert said(f"{least(name)} {flag}x=3").startswith(f"{name} has no {flag}x; did you mean {flag}")
    assert said(f"{least(name)} --zzzzzz 3") == f"{name} has no --zzzzzz; `fewstep {name} --help` says what it takes"
    needed = [
        action.option_strings[0] if action.option_strings else action.dest for action in arguments(name) if action.required
    ]
    if needed:
        answer = said(name)
        assert answer.startswith(f"{name} needs ") and all(need in answer.lower() for need in needed), answer


CHOICES = [
    (name, action) for name in COMMANDS for action in arguments(name) if "{" in str(action.metavar).replace("{None}", "")
]


@pytest.mark.parametrize(
    ("name", "action"), CHOICES, ids=[f"{name} {action.option_strings[0]}" for name, action in CHOICES]
)
def test_a_choice_that_is_none_is_answered_with_all_there_are(name: str, action: argparse.Action, said) -> None:
    answer = said(f"{least(name)} {action.option_strings[0]} klee")
    choices = {word for braced in re.findall(r"{([^{} ]*)}", action.metavar) for word in braced.split(",")} - {"None"}
    assert set(re.findall("`(.*?)`", answer)) == choices or action.metavar == "{None}|{INT INT}"
    assert answer.startswith(f"{action.option_strings[0]} of {name} takes ") and answer.endswith(", not 'klee'")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("tune x --data d --out o --images five", "--images of tune takes a whole number, not 'five'"),
        ("tune x --data d --out o --images=five", "--images of tune takes a whole number, not 'five'"),
        ("tune x --data d --out o --save_every 1,5", "--save-every of tune takes a number, not '1,5'"),
        ("tune x --data d --out o --segments foo", "--segments of tune takes a whole number or `any`, not 'foo'"),
        ("tune x --data d --out o --grid 8", "--grid of tune takes 2 whole numbers, not '8'"),
        ("tune x --data d --out o --average .9 x", "--average of tune takes numbers, not '.9 x'"),
        (
            "tune x --data d --out o --track sun",
            "--track of tune takes any of `tensorboard`, `wandb` or `trackio`, not 'sun'",
        ),
        ("tune x --out o --data --mirror", "--data of tune takes a text, and no value was given"),
        ("decode x --levels 1 2", "--levels of decode takes 3 numbers, not '1 2'"),
        (
            "calibrate x --file f --out o --write vllm",
            "--write of calibrate takes `sglang` or `vllm`, then a path, not 'vllm'",
        ),
        ("tune x --data d --out o 7", "tune does not take '7' here; `fewstep tune --help` says what it takes"),
        ("tune", "tune needs CHECKPOINT, --data and --out; `fewstep tune --help` says what it takes"),
        ("report --out o --depht 3", "report has no --depht; `fewstep report --help` says what it takes"),
    ],
)
def test_sentences(line: str, sentence: str, said) -> None:
    assert said(line) == sentence


def test_all_that_arguments_take_is_put_in_words() -> None:
    for takes in {str(action.metavar) for name in COMMANDS for action in arguments(name) if action.metavar}:
        assert re.fullmatch("[a-z0-9 ,]*", re.sub("`[^`]*`", "", misread.readable(takes))), takes


@pytest.mark.parametrize("line", ["", "-v", "--data x tune"])
def test_a_command_comes_first(line: str, said) -> None:
    assert said(line) == f"a command comes first; give one of {', '.join([*COMMANDS][:-1])} or {[*COMMANDS][-1]}"


def test_help_is_tyros_own(monkeypatch, capsys) -> None:
    for line in (" --help", " tune --help"):
        with pytest.raises(SystemExit) as stop:
            fewstep(monkeypatch, line)
        out, err = capsys.readouterr()
        assert stop.value.code == 0 and err == "" and out.startswith(f"usage: fewstep{line[:-7]} [-h] ")


def test_the_list_of_commands_has_a_sentence_each_and_a_command_says_all(monkeypatch, capsys) -> None:
    shown = {}
    for line in ("--help", "sample --help"):
        with pytest.raises(SystemExit):
            fewstep(monkeypatch, line)
        shown[line] = " ".join(re.sub(r"[│╭╰─╯]", " ", capsys.readouterr().out).split())
    listed = re.split(r" • ", shown["--help"])[1:]
    assert [each.split()[0] for each in listed] == list(COMMANDS)
    assert all(each.endswith(".") and ". " not in each for each in listed), listed
    first = "Sample images, one PNG a seed, and a sheet of them; latents go to samples.npz."
    assert f"sample {first}" in listed
    assert first in shown["sample --help"] and "Several processes share the samples" in shown["sample --help"]
