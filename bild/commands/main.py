"""Big Little Decoder: a small model drafts, a large one checks.

    bild generate sentences.txt -o translations.txt
    bild eval demo                           # the shipped pair on the shipped sentences
    bild trace "Heute Morgen lag überall Schnee."
    bild search demo --max-loss 1
    bild eval --help                         # what a command takes, with examples

In a checkout, scripts/*.py and run_<task>.sh start the same code. Every command takes --config
FILE, YAML with its flags as keys. A mistake in what was given ends with one sentence and exit
code 2; Ctrl+C with 130.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from dataclasses import dataclass
from typing import Any

from bild._version import __version__
from bild.cli import run
from bild.errors import BildError
from bild.visible import show_any_text


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        summary: a line for people.
        resumes: the same command, given again after it was stopped, goes on where it was.
    """

    summary: str
    resumes: bool = False


# A name is that of its module here, which has `make_parser` and `main`.
COMMANDS = {
    "generate": Command("decode a file of texts with a pair", True),
    "eval": Command("decode a task with the pair and with each model alone, and score it", True),
    "search": Command("find the fastest thresholds for the loss that is allowed", True),
    "compare": Command("compare small models beside one large model", True),
    "benchmark": Command("time engines and decoding methods side by side", True),
    "trace": Command("show which model wrote which token"),
    "web": Command("the live page: both decoders side by side in the browser"),
    "serve": Command("the pair as an HTTP service"),
    "align": Command("align a small model with a large one", True),
    "finetune": Command("train one model of a pair", True),
    "label": Command("label a training set with the large model", True),
    "agreement": Command("measure how often small models agree with the large one", resumes=True),
    "tokenizer": Command("train a tokenizer for a pair from nothing"),
    "plot": Command("draw quality against speed from records"),
    "download": Command("fetch what a task needs, so that all else runs without a network", True),
    "doctor": Command("look at this machine, and say what to do about what is found"),
    "completion": Command("print the completion script of a shell"),
}


def module_of(name: str) -> Any:
    """The module of a command; it imports neither torch nor transformers."""
    return importlib.import_module(f"bild.commands.{name}")


def main() -> None:
    """The console command `bild`."""
    show_any_text()
    match sys.argv[1:]:
        case [] | ["-h" | "--help", *_]:
            print(help_text())
        case ["--version" | "-V", *_]:
            print(f"bild {__version__}")
        case [name, *rest]:
            run(lambda: start(name, rest), resumes=name in COMMANDS and COMMANDS[name].resumes)


def start(name: str, arguments: list[str]) -> None:
    """Run a command.

    Raises:
        BildError: there is none of that name.
    """
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
        raise BildError(f"there is no command {name!r:.60}; {meant} (see bild --help)")
    sys.argv = [f"bild {name}", *arguments]
    module_of(name).main()


def help_text() -> str:
    """What `bild --help` prints."""
    width = max(map(len, COMMANDS))
    rows = (f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
    usage = "usage: bild COMMAND ...\n       bild COMMAND --help\n       bild --version"
    return "\n".join([usage, "", (__doc__ or "").strip(), "", "commands:", *rows])
