"""Write docs/api.md, the reference of the public names, from their docstrings.

    python scripts/make_api.py
    python scripts/make_api.py --check    # exit code 2 when docs/api.md is not what they say

The source is read, not imported. It needs griffe2md (requirements-dev.txt).
"""

from __future__ import annotations

import logging
import re
from importlib.util import find_spec
from pathlib import Path

from bild.cli import run
from bild.errors import BildError
from bild.files import write_atomically
from bild.parser import Parser

ROOT = Path(__file__).resolve().parent.parent
HEAD = """# The public names

Written by `python scripts/make_api.py` from the docstrings; `from bild import` gives all of them.

"""
LAYOUT = {
    "heading_level": 2,
    "show_root_full_path": False,
    "show_root_members_full_path": True,
    "show_signature_annotations": True,
    "separate_signature": True,
    "signature_crossrefs": False,
    "docstring_section_style": "list",
    "summary": False,
    "group_by_category": False,
    "show_if_no_docstring": False,
    "members_order": "source",
    "line_length": 100,
}
LINK_WITHIN = re.compile(r"\[([^][]*)\]\(#[^)]*\)")  # to names that have no heading of their own


def api_page() -> str:
    """The page; without the links of a type to its definition, which stands elsewhere."""
    if find_spec("griffe2md") is None:
        raise BildError("griffe2md not installed; pip install -r requirements-dev.txt brings it")
    import griffe
    from griffe2md import render_object_docs

    logging.getLogger("griffe").setLevel(logging.ERROR)  # "large, small:" documents two at once
    package = griffe.load("bild", search_paths=[ROOT], docstring_parser="google")
    names = [str(name) for name in package.exports or () if not str(name).startswith("_")]
    parts = (render_object_docs(package[name], LAYOUT) for name in names)
    return HEAD + "\n\n".join(LINK_WITHIN.sub(r"\1", part).strip() for part in parts) + "\n"


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/api.md", help="the page")
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    a = parser.parse_args()
    page = api_page()
    if not a.check:
        write_atomically(a.output, page)
        print(a.output)
    elif not a.output.is_file() or a.output.read_text(encoding="utf-8") != page:
        raise BildError(f"{a.output} is not what the docstrings say; run scripts/make_api.py")


if __name__ == "__main__":
    run(main)
