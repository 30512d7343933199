"""The arguments of commands that compose no configuration, and how a command ends at bad input."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from qohort.config.messages import nearest

BAD_INPUT = 2
"""The exit code."""


def arguments_of(usage: str) -> list[str]:
    """Return the arguments of a command that composes no configuration. If they ask for help, print it and exit."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & {*arguments}:
        print(usage)
        sys.exit(0)
    return arguments


def path_of(argument: str) -> Path:
    """Return the path that an argument names. An empty one, as of a variable that is not set, ends the command."""
    if not argument:
        fail("'' is an empty path: is a variable of the shell not set?")
    return Path(argument).expanduser()


def check_options(arguments: Sequence[str], known: Sequence[str]) -> None:
    """Check the options of a command that composes no configuration. An unknown one ends the command.

    Args:
        arguments: The arguments.
        known: The options that the command has besides --help.
    """
    for argument in arguments:
        if argument.startswith("-") and argument not in known:
            fail(f"{argument} is not an option: {nearest(argument, [*known, '--help'])}")


def fail(message: str) -> NoReturn:
    """Print a message on stderr in one line and exit with code 2."""
    print(f"qohort: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(BAD_INPUT)
