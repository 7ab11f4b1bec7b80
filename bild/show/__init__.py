"""What people look at: tables, plots, traces, pages."""

from bild.errors import require

require("show", "jinja2", "matplotlib", "rich", "tabulate")
