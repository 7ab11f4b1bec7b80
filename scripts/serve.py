"""`bild serve` as a script: the same arguments, the same code."""

from bild.cli import run
from bild.commands.serve import main

if __name__ == "__main__":
    run(main)
