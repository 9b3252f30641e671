# SPDX-License-Identifier: Apache-2.0
"""Completions for bash, zsh and fish, made from the parsers into completions/, by `make completions`."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad import explain
from nvidiad import options as daemon
from nvidiad.image import cli as image
from tools import words

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from tools.words import Verb, Word

CHECKOUT = Path(__file__).parents[1]
DIRECTORY = CHECKOUT / "completions"
_SAID = "Written by tools/completions.py from the parser of {name}: make completions."

_BASH = """\
# bash completion for {name}                                         -*- shell-script -*-
# SPDX-License-Identifier: Apache-2.0
# {said}

{function}() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}}
  local verb='{default}' option='' front='' takes='' i
  # bash cuts words at '=': --json=s is three of them, or one where COMP_WORDBREAKS was changed.
  if [[ $cur == '=' ]]; then
    option=$before cur=''
  elif [[ $before == '=' ]]; then
    option=${{COMP_WORDS[COMP_CWORD - 2]}}
  elif [[ $cur == --*=* ]]; then
    option=${{cur%%=*}} front=${{cur%%=*}}= cur=${{cur#*=}}
  elif [[ $before == --* ]]; then
    option=$before
  fi
  for ((i = 1; i < COMP_CWORD; i++)); do
    if [[ ${{COMP_WORDS[i]}} != [-=]* && ${{COMP_WORDS[i - 1]}} != '=' ]]; then
      verb=${{COMP_WORDS[i]}}
      break
    fi
  done
  case $verb:$option in
{values}
  *) option='' ;;
  esac
  if [[ -z $option ]]; then
    if [[ $cur == -* ]]; then
      case $verb in
{options}
      esac
    elif ((i >= COMP_CWORD)); then
      takes='{verbs}'
    else
      case $verb in
{arguments}
      esac
    fi
  fi
  COMPREPLY=()
  case $takes in
  '') ;;
  @file | @directory)
    compopt -o filenames 2>/dev/null
    local kind=-f
    [[ $takes == @directory ]] && kind=-d
    mapfile -t COMPREPLY < <(compgen "$kind" -- "$cur")
    ;;
  *)
    mapfile -t COMPREPLY < <(compgen -P "$front" -W "$takes" -- "$cur")
    [[ ${{#COMPREPLY[@]}} == 1 && ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace 2>/dev/null
    ;;
  esac
  return 0
}}
complete -F {function} {name}
"""


def _grouped(rows: Iterator[tuple[str, str]], indent: str) -> str:
    """The branches of a case: what has the same answer stands together."""
    same: dict[str, list[str]] = {}
    for key, answer in rows:
        same.setdefault(answer, []).append(key)
    return "\n".join(f"{indent}{_any(keys, indent)}) takes='{answer}' ;;" for answer, keys in same.items())


def _any(patterns: Sequence[str], indent: str) -> str:
    lines = textwrap.wrap(" | ".join(patterns), 100, break_long_words=False, break_on_hyphens=False)
    return f" \\\n{indent}  ".join(lines)


def _values(verbs: Sequence[Verb]) -> Iterator[tuple[str, str]]:
    """What follows an option; its verb is named where the same option takes something else elsewhere."""
    answers: dict[str, dict[str, str]] = {}
    for verb in verbs:
        for word in verb.options:
            if word.takes:
                answers.setdefault(word.name, {})[verb.name] = _answer(word)
    for name, by_verb in answers.items():
        if len(set(by_verb.values())) == 1:
            yield f"*:{name}", next(iter(by_verb.values()))
        else:
            yield from ((f"{verb}:{name}", answer) for verb, answer in by_verb.items())


def _answer(word: Word) -> str:
    if word.choices:
        return " ".join(word.choices)
    return f"@{word.takes}" if word.takes in ("file", "directory") else ""


def _written(word: Word) -> str:
    return f"{word.name}=" if word.takes else word.name


def bash(name: str, verbs: Sequence[Verb], top: Sequence[Word], default: str) -> str:
    """For bash, which needs nothing of the package bash-completion."""
    options = [(v.name, " ".join(map(_written, v.options))) for v in verbs]
    if not default:
        options.append(("''", " ".join(map(_written, top))))
    arguments = ((v.name, _answer(a)) for v in verbs for a in v.arguments if _answer(a))
    return _BASH.format(
        name=name,
        said=_SAID.format(name=name),
        function="_" + name.replace("-", "_"),
        default=default,
        values=_grouped(_values(verbs), "  "),
        options=_grouped(iter(options), "      "),
        verbs=" ".join(verb.name for verb in verbs),
        arguments=_grouped(arguments, "      "),
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _zsh_action(word: Word) -> str:
    if word.choices:
        return f"({' '.join(word.choices)})"
    return {"file": "_files", "directory": "_files -/"}.get(word.takes, "")


def _zsh_option(word: Word) -> str:
    said = word.help.replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
    made = (
        ("*" if word.several else "")
        + word.name
        + ("=" if word.takes else "")
        + (f"[{said}]" if said else "")
    )
    if not word.takes:
        return _quoted(made)
    return _quoted(f"{made}:{word.name.lstrip('-')}:{_zsh_action(word)}")


def zsh(name: str, verbs: Sequence[Verb], top: Sequence[Word], default: str) -> str:
    """For zsh's own completion system."""
    lines = [f"#compdef {name}", "# SPDX-License-Identifier: Apache-2.0", f"# {_SAID.format(name=name)}", ""]
    lines += ["local curcontext=$curcontext state line", "local -a verbs", "verbs=("]
    lines += [f"  {_quoted(verb.name + ':' + verb.help.replace(':', chr(92) + ':'))}" for verb in verbs]
    lines += [")", ""]
    first = {word.name: word for word in top}
    for verb in verbs:
        if verb.name == default:
            first |= {word.name: word for word in verb.options}
    lines += ["_arguments -C \\"]
    lines += [f"  {_zsh_option(word)} \\" for word in first.values()]
    lines += ["  '1: :->verb' \\", "  '*:: :->rest'", ""]
    lines += ["case $state in", "verb) _describe -t verbs verb verbs ;;", "rest)", "  case $words[1] in"]
    for verb in verbs:
        lines += [f"  {verb.name})", "    _arguments \\"]
        told = [_zsh_option(word) for word in verb.options]
        for at, word in enumerate(verb.arguments, 1):
            place = "*" if word.several else str(at)
            told.append(_quoted(f"{place}:{word.name}:{_zsh_action(word)}"))
        lines += [f"      {each} \\" for each in told[:-1]] + [f"      {told[-1]}", "    ;;"]
    return "\n".join([*lines, "  esac", "  ;;", "esac", ""])


def _fish_takes(word: Word) -> str:
    if word.choices:
        return f" -x -a {_quoted(' '.join(word.choices))}"
    return {"": "", "file": " -r -F", "directory": " -x -a '(__fish_complete_directories)'"}.get(
        word.takes, " -x"
    )


def fish(name: str, verbs: Sequence[Verb], top: Sequence[Word], default: str) -> str:
    """For fish."""
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        f"# {_SAID.format(name=name)}",
        f"complete -c {name} -f",
    ]
    start = f"complete -c {name} -n __fish_use_subcommand"
    for verb in verbs:
        lines.append(f"{start} -a {verb.name} -d {_quoted(verb.help)}")
    first = {word.name: word for word in top}
    for verb in verbs:
        if verb.name == default:
            first |= {word.name: word for word in verb.options}
    lines += [f"{start} -l {w.name[2:]} -d {_quoted(w.help)}{_fish_takes(w)}" for w in first.values()]
    for verb in verbs:
        seen = f"complete -c {name} -n '__fish_seen_subcommand_from {verb.name}'"
        for word in verb.options:
            lines.append(f"{seen} -l {word.name[2:]} -d {_quoted(word.help)}{_fish_takes(word)}")
        for word in verb.arguments:
            if word.choices:
                lines.append(f"{seen} -a {_quoted(' '.join(word.choices))} -d {_quoted(word.help)}")
            elif word.takes == "file":
                lines.append(f"{seen} -F")
            elif word.takes == "directory":
                lines.append(f"{seen} -a '(__fish_complete_directories)'")
    return "\n".join(lines) + "\n"


def _codes(verbs: Sequence[Verb]) -> Iterator[Verb]:
    """What may follow `explain` is in no parser: an unknown code is answered by what was meant."""
    for verb in verbs:
        if verb.name != "explain":
            yield verb
            continue
        [asked] = verb.arguments
        known = tuple(each.code for each in explain.explanations())
        yield words.Verb(
            verb.name,
            verb.help,
            verb.options,
            (words.Word(asked.name, asked.help, asked.takes, known, asked.several),),
        )


def made() -> dict[str, str]:
    """Every file by its name in completions/."""
    found: dict[str, str] = {}
    programs: tuple[tuple[str, argparse.ArgumentParser, str], ...] = (
        ("nvidiad", daemon.parser(), "status"),
        ("nvidiad-image", image.parser(), ""),
    )
    shells: tuple[tuple[str, Callable[..., str]], ...] = (("{}.bash", bash), ("_{}", zsh), ("{}.fish", fish))
    for name, parser, default in programs:
        verbs = tuple(_codes(words.verbs(parser)))
        for pattern, write in shells:
            found[pattern.format(name)] = write(name, verbs, words.options(parser), default)
    return found


def main() -> int:
    for name, text in made().items():
        (DIRECTORY / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
