"""Finished races as HTML that needs nothing else: no script, no address, one style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bild.show.race import Race
from bild.show.views import lanes, limits, milliseconds, rates, summaries, token_views
from bild.visible import visible


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("bild.show"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )


def race_css() -> str:
    """The style sheet of `race_html`; every rule is confined to the class bild-race."""
    return _templates().get_template("race.css").render()


def race_html(race: Race, head: bool = True) -> str:
    """A finished race as an `<article>`, to be put into a page that has `race_css`.

    Args:
        race: the race.
        head: begin with the source and both outputs.
    """
    fields: dict[str, Any] = {
        "race": race,
        "source": visible(race.source),
        "alone": visible(race.alone.text),
        "bild": visible(race.bild.text),
        "head": head,
        "tokens": token_views(race.bild),
        "lanes": lanes(race),
        "summaries": summaries(race),
        "limits": limits(race),
        "rates": rates(race),
        "ms": milliseconds,
    }
    return _templates().get_template("race.html").render(**fields)


def page_html(races: Sequence[Race]) -> str:
    """Finished races as one page without any external resource."""
    return (
        _templates()
        .get_template("page.html")
        .render(
            css=Markup(race_css()),  # ours
            fragments=[Markup(race_html(race)) for race in races],  # escaped by its own template
        )
    )
