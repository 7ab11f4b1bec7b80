"""Print the completion script of a shell: commands, flags, their values and files.

    bild completion bash > ~/.local/share/bash-completion/completions/bild
    bild completion zsh > ~/.zfunc/_bild       # ~/.zfunc in $fpath, before compinit
    bild completion tcsh | sudo tee /etc/profile.d/bild.csh

It is made of the commands' own parsers; those whose extra is not installed come without flags.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bild.errors import BildError, require
from bild.parser import Parser

SHELLS = ("bash", "zsh", "tcsh")


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("shell", choices=SHELLS, help="whose script")
    return parser


def main() -> None:
    a = make_parser().parse_args()
    require("shell", "shtab")
    import shtab

    print(shtab.complete(whole_parser(), a.shell))


def whole_parser() -> argparse.ArgumentParser:
    """`bild` as one parser with a sub-parser for each command."""
    import shtab

    from bild.commands.main import COMMANDS, module_of

    whole = argparse.ArgumentParser("bild", description="Big Little Decoder")
    whole.add_argument("--version", action="store_true", help="print the version")
    commands: Any = whole.add_subparsers(dest="command", parser_class=argparse.ArgumentParser)
    for name, command in COMMANDS.items():
        own: list[argparse.ArgumentParser] = []
        with suppress(BildError):
            own = [make_parser() if name == "completion" else module_of(name).make_parser()]
        part = commands.add_parser(
            name, help=command.summary, parents=own, add_help=not own, prog=f"bild {name}"
        )
        for action in part._actions:
            if action.type is Path:
                action.complete = shtab.FILE
            if isinstance(action.choices, Mapping):  # in which shtab would see sub-commands
                action.choices = tuple(action.choices)
    return whole
