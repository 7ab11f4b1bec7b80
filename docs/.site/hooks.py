"""What makes pages that are read in the repository into pages of a site (mkdocs.yml)."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)")


def on_config(config: Any) -> Any:
    """Put pages that the navigation does not name under "More"."""
    pages = {path.name for path in Path(config.docs_dir).glob("*.md")}
    more = sorted(pages - set(_named(config.nav)))
    if more:
        config.nav.append({"More": more})
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Files outside docs/ are not on the site: their links become the names of the files."""

    def named(link: re.Match[str]) -> str:
        words, path = link[1], link[2].removeprefix("../")
        return words if words.strip("`") == path else f"{words} (`{path}` in the repository)"

    return OUTSIDE.sub(named, markdown)


def _named(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from _named(part)
