"""Completion of the whole command in a shell: commands, options, recipes, values.

    metalearn --print-completion bash > ~/.local/share/bash-completion/completions/metalearn
    metalearn --print-completion zsh > ~/.zfunc/_metalearn   # a folder of $fpath
    metalearn --print-completion fish > ~/.config/fish/completions/metalearn.fish

The scripts hold the words, so completing starts no Python. Options of `train` are those of
all recipes and learners of this version.
"""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any, Literal, get_args, get_origin

from metalearn import apps
from metalearn.algorithms import registry
from metalearn.apps import learners
from metalearn.apps.records import hints, members
from metalearn.cli import options as cli_options

SHELLS = ("bash", "zsh", "fish")

# Words of a command by the options; the value is what may follow, none for any file.
Words = dict[str, tuple[str, ...]]


def script(shell: str) -> str:
    """The script that makes a shell complete the command.

    Raises:
      ValueError: the shell is unknown.
    """
    if shell not in SHELLS:
        raise ValueError(
            f"completion for {shell!r} was asked for; expected one of {', '.join(SHELLS)}: "
            "metalearn --print-completion bash"
        )
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]()


def commands() -> dict[str, tuple[tuple[str, ...], Words]]:
    """For each command the words that it takes, and its options with their values."""
    return {
        "list": ((), _options(cli_options.ListOptions)),
        "train": (tuple(apps.RECIPES), _train_options()),
        "evaluate": ((), _options(cli_options.EvaluateOptions, without=("run",))),
        "compare": ((), _options(cli_options.CompareOptions, without=("runs",))),
        "predict": ((), _options(cli_options.PredictOptions, without=("run",))),
        "data": (
            ("list", "prepare"),
            _options(cli_options.PrepareOptions, without=("name",)) | {"--json": ()},
        ),
    }


def _options(
    record: Any, prefix: str = "", without: tuple[str, ...] = ()
) -> dict[str, tuple[str, ...]]:
    """Options of a record of settings, and the words that each may be set to."""
    found: Words = {} if prefix else {"--help": (), "--traceback": ()}
    for name, kind in hints(record).items():
        if name in without or not any(f.name == name for f in dataclasses.fields(record)):
            continue
        word = f"{prefix}{name}".replace("_", "-")
        inner = [k for k in members(kind) if dataclasses.is_dataclass(k)]
        if inner:
            found |= _options(inner[0], f"{word}.")
            continue
        choices = [k for k in members(kind) if get_origin(k) is Literal]
        found[f"--{word}"] = tuple(str(c) for k in choices for c in get_args(k))
        if kind is bool and prefix:
            found[f"--{prefix}no-{name}".replace("_", "-")] = ()
    return found


def _train_options() -> Words:
    found = _options(cli_options.TrainOptions)
    found["--learner"] = tuple(registry.LEARNERS)
    found |= _options(apps.Recipe, without=("app", "learner", "outer"))
    for kind in apps.KINDS.values():
        found |= _options(kind, "app.")
    found |= _options(apps.Outer, "outer.")
    for record in registry.RECORDS:
        found |= _options(learners.settings_of(record.name), "learner.")
        if (outer := learners.own_outer(record)) is not None:
            found |= _options(outer, "outer.")
    return found


_TOP = ("--help", "--version", "--print-completion")


def _bash() -> str:
    lines = [
        "# Completion of metalearn for bash.",
        "_metalearn() {",
        '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"',
        "  COMPREPLY=()",
        "  if [ $COMP_CWORD -eq 1 ]; then",
        f'    COMPREPLY=($(compgen -W {_quoted((*commands(), *_TOP))} -- "$word"))',
        "    return",
        "  fi",
        '  case "${COMP_WORDS[1]} $before" in',
        f"    '--print-completion --print-completion') COMPREPLY=($(compgen -W "
        f'{_quoted(SHELLS)} -- "$word")); return ;;',
    ]
    for command, (_, options) in commands().items():
        for option, values in options.items():
            if values:
                lines.append(
                    f"    '{command} {option}') COMPREPLY=($(compgen -W {_quoted(values)} "
                    '-- "$word")); return ;;'
                )
    lines += ["  esac", '  case "${COMP_WORDS[1]}" in']
    for command, (words, options) in commands().items():
        lines.append(
            f"    {command}) COMPREPLY=($(compgen -W {_quoted((*words, *options))} -- "
            '"$word")) ;;'
        )
    lines += [
        "  esac",
        "}",
        "# Where no word fits, names of files are completed.",
        "complete -o default -F _metalearn metalearn",
    ]
    return "\n".join(lines) + "\n"


def _zsh() -> str:
    lines = [
        "#compdef metalearn",
        "_metalearn() {",
        "  local command=${words[2]} before=${words[CURRENT-1]}",
        "  if (( CURRENT == 2 )); then",
        f"    compadd -- {_joined((*commands(), *_TOP))}",
        "    return",
        "  fi",
        '  case "$command $before" in',
        f"    '--print-completion --print-completion') compadd -- {_joined(SHELLS)}",
        "      return ;;",
    ]
    for command, (_, options) in commands().items():
        for option, values in options.items():
            if values:
                lines.append(
                    f"    '{command} {option}') compadd -- {_joined(values)}; return ;;"
                )
    lines += ["  esac", "  _files", "  case $command in"]
    for command, (words, options) in commands().items():
        lines.append(f"    {command}) compadd -- {_joined((*words, *options))} ;;")
    lines += [
        "  esac",
        "}",
        'if [ "$funcstack[1]" = _metalearn ]; then',
        '  _metalearn "$@"',
        "else",
        "  compdef _metalearn metalearn",
        "fi",
    ]
    return "\n".join(lines) + "\n"


def _fish() -> str:
    lines = ["# Completion of metalearn for fish."]
    first = "__fish_use_subcommand"
    for command in commands():
        lines.append(f"complete -c metalearn -n {first} -f -a {command}")
    lines.append(f"complete -c metalearn -n {first} -f -l version")
    lines.append(
        f"complete -c metalearn -n {first} -x -l print-completion -a {_quoted(SHELLS)}"
    )
    for command, (words, options) in commands().items():
        inside = shlex.quote(f"__fish_seen_subcommand_from {command}")
        if words:
            lines.append(f"complete -c metalearn -n {inside} -a {_quoted(words)}")
        for option, values in options.items():
            line = f"complete -c metalearn -n {inside} -l {option.removeprefix('--')}"
            lines.append(f"{line} -x -a {_quoted(values)}" if values else line)
    return "\n".join(lines) + "\n"


def _quoted(words: tuple[str, ...]) -> str:
    return shlex.quote(" ".join(words))


def _joined(words: tuple[str, ...]) -> str:
    return " ".join(shlex.quote(word) for word in words)
