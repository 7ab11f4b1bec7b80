"""`bild agreement` as a script: the same arguments, the same code."""

from bild.cli import run
from bild.commands.agreement import main

if __name__ == "__main__":
    run(main, resumes=True)
