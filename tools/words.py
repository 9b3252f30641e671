# SPDX-License-Identifier: Apache-2.0
"""The words of a command line, read off its parser: verbs, their options and what these take."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

FILES = ("FILE", "PEM", "SOCKET", "RECIPE")
DIRECTORIES = ("DIRECTORY", "PATH")


@dataclass(frozen=True)
class Word:
    """An option or an argument: how it is written, what it is for, what may follow."""

    name: str
    help: str
    takes: str = ""
    """`file`, `directory`, `value`, or nothing."""
    choices: tuple[str, ...] = ()
    several: bool = False


@dataclass(frozen=True)
class Verb:
    """A verb with its options and arguments."""

    name: str
    help: str
    options: tuple[Word, ...]
    arguments: tuple[Word, ...]


def _word(action: argparse.Action, name: str) -> Word:
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    choices = tuple(str(choice) for choice in action.choices or ())
    # Where a type checks the value, the choices stand in its name for people: open|proprietary.
    if not choices and re.fullmatch(r"[a-z0-9]+(\|[a-z0-9]+)+", metavar):
        choices = tuple(metavar.split("|"))
    places = metavar.split("|")
    takes = "value"
    if action.nargs == 0:
        takes = ""
    elif any(place in FILES for place in places):
        takes = "file"
    elif any(place in DIRECTORIES for place in places):
        takes = "directory"
    several = isinstance(action, argparse._AppendAction) or action.nargs == "*"
    return Word(name, action.help or "", takes, choices, several)


def verbs(parser: argparse.ArgumentParser) -> tuple[Verb, ...]:
    """All verbs, in the order in which the parser has them; hidden options are left out."""
    [choice] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    helps = {action.dest: action.help or "" for action in choice._choices_actions}
    made = []
    for name, sub in choice.choices.items():
        shown = [action for action in sub._actions if action.help != argparse.SUPPRESS]
        options = [_word(action, action.option_strings[-1]) for action in shown if action.option_strings]
        arguments = [_word(action, action.dest) for action in shown if not action.option_strings]
        made.append(Verb(name, helps[name], tuple(options), tuple(arguments)))
    return tuple(made)


def options(parser: argparse.ArgumentParser) -> tuple[Word, ...]:
    """The options in front of the verb."""
    return tuple(
        _word(action, action.option_strings[-1]) for action in parser._actions if action.option_strings
    )
