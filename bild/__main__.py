"""`python -m bild` is `bild`; `accelerate launch -m bild` starts several processes of it."""

from bild.commands.main import main

if __name__ == "__main__":
    main()
