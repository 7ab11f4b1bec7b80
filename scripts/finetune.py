"""`bild finetune` as a script: the same arguments, the same code."""

from bild.cli import run
from bild.commands.finetune import main

if __name__ == "__main__":
    run(main, resumes=True)
