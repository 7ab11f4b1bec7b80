"""The commands: one module each, with its docstring as help; `bild.commands.main` starts them."""
