"""The live page: both arms race over a sentence, streaming, with the trace below (Gradio)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from html import escape
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bild.config import BiLDConfig
from bild.errors import BildError
from bild.policy import RULES
from bild.show.html import race_html
from bild.show.race import Race, Racer, Runner
from bild.show.serving import import_gradio

if TYPE_CHECKING:
    import gradio

    Frame = tuple[str, str, str, str, str]  # both texts, their clocks, the trace

FRAME_SECONDS = 0.05  # between two updates of the page
LONGEST_SOURCE = 4000  # characters
LONGEST_RACE = 60.0  # seconds; whoever waits has their turn then
LONGEST_QUEUE = 16  # races that wait; whoever comes next is told to come again
HEAD = """# Big Little Decoder, live
{about} The large model alone against the pair, on the same sentence. The two take turns on this
machine, so each clock shows that arm's own time only."""
CSS = """
.gradio-container { max-width: 68rem !important; margin: 0 auto !important; }
.bild-clock { font-variant-numeric: tabular-nums; min-height: 1.5em; }
.bild-refused { font-weight: 600; }
.gradio-container .html-container { padding: 0 !important; }
#variant .wrap { flex-direction: column; align-items: stretch; }
"""
# What the page says of sets of rules.
EXPLAINED = {
    "verified": "the large model checks every drafted token before the text may end",
    "paper": "as the paper's algorithm; a drafted end of the text is believed",
    "authors": "as the published code; of a draft only the first doubtful token is looked at",
}
NOTHING: Frame = ("", "", "", "", "")
CLEAR = '() => ["", "", "", "", ""]'  # the same, in the browser


def build_page(
    racer: Racer, config: BiLDConfig, examples: Sequence[str] = (), about: str = ""
) -> gradio.Blocks:
    """The page as a Gradio app, to be launched.

    Args:
        racer: the pair.
        config: where the sliders stand at first, and what has no slider.
        examples: sentences to choose from; the first stands in the box.
        about: what the pair does, and in which languages; a sentence.

    Raises:
        BildError: Gradio is not installed, or a threshold is infinite.
    """
    gr = import_gradio()
    if math.inf in (config.fallback_threshold, config.rollback_threshold):
        raise BildError("a slider cannot stand at inf; give a finite threshold")
    with gr.Blocks(title="Big Little Decoder", analytics_enabled=False) as page:
        gr.Markdown(HEAD.format(about=about))
        inputs = _inputs(gr, config, examples)
        with gr.Row():
            start = gr.Button("Race", variant="primary", elem_id="race")
            stop = gr.Button("Stop", elem_id="stop")
        outputs = _outputs(gr)
        running = gr.on(
            [start.click, inputs[0].submit],
            racing(racer, config),
            inputs,
            outputs,
            show_progress="hidden",
            concurrency_limit=1,  # of two races at once neither would be timed alone
            trigger_mode="once",
        )
        stop.click(None, cancels=[running])
        # A result never stands below settings that it is not of.
        changed = gr.on([component.change for component in inputs], None, cancels=[running])
        changed.then(None, None, outputs, js=CLEAR, show_progress="hidden")
    page.queue(max_size=LONGEST_QUEUE)
    return page


def racing(racer: Racer, config: BiLDConfig) -> Callable[..., Iterator[Frame]]:
    """What happens when a race is asked for: a function of what stands in the page's controls."""

    def race(source: str, fallback: float, rollback: float, variant: str) -> Iterator[Frame]:
        yield NOTHING  # what stood there is of another race
        shown, ends = 0.0, time.monotonic() + LONGEST_RACE
        try:
            if len(source) > LONGEST_SOURCE:
                raise BildError(
                    f"the text has {len(source):,} characters, which is more than "
                    f"{LONGEST_SOURCE:,}; give less"
                )
            chosen = replace(
                config, fallback_threshold=fallback, rollback_threshold=rollback, variant=variant
            )
            for state in racer.run(source, chosen):
                if time.monotonic() > ends and not state.finished:
                    raise BildError(
                        f"the race was ended after {LONGEST_RACE:g} s, so that others have their "
                        "turn; give less text"
                    )
                if state.finished or time.monotonic() - shown > FRAME_SECONDS:
                    shown = time.monotonic()
                    yield _frame(state)
        except BildError as error:
            said = f'<p class="bild-refused" role="alert">{escape(str(error))}</p>'
            yield (*NOTHING[:-1], said)

    return race


# ------------------------------------------------------------------------------ what stands there


def _inputs(gr: ModuleType, config: BiLDConfig, examples: Sequence[str]) -> list[Any]:
    """The sentence, both thresholds and the variant."""
    source = gr.Textbox(
        label="Sentence",
        info=f"At most {LONGEST_SOURCE:,} characters.",
        value=examples[0] if examples else "",
        max_lines=8,
        max_length=LONGEST_SOURCE,
    )
    if len(examples) > 1:
        gr.Examples([[e] for e in examples], source, label="Examples")
    with gr.Row():
        fallback = gr.Slider(
            0,
            max(1.1, config.fallback_threshold),
            config.fallback_threshold,
            step=0.05,
            min_width=300,
            label="Fallback threshold",
            info="The small model hands over below this probability.",
        )
        rollback = gr.Slider(
            0,
            max(10, config.rollback_threshold),
            config.rollback_threshold,
            step=0.25,
            min_width=300,
            label="Rollback threshold",
            info="The large model takes back what is farther off, in nats.",
        )
    variant = gr.Radio(
        [(_explained(name), name) for name in sorted(RULES, key=[*EXPLAINED, *RULES].index)],
        value=config.variant,
        label="Variant",
        info="Which rules decide the details.",
        elem_id="variant",
    )
    return [source, fallback, rollback, variant]


def _explained(name: str) -> str:
    return f"{name}: {EXPLAINED[name]}" if name in EXPLAINED else name


def _outputs(gr: ModuleType) -> list[Any]:
    """Both texts with their clocks, and the trace: what a `Frame` fills."""
    shown: list[Any] = []
    with gr.Row(equal_height=True):
        for name, element in (("Large alone", "alone"), ("BiLD", "bild")):
            with gr.Column(min_width=300):
                shown += [
                    gr.Textbox(label=name, lines=3, interactive=False, elem_id=element),
                    gr.HTML(elem_id=f"{element}-clock"),
                ]
    return [*shown, gr.HTML(elem_id="trace")]


def _frame(race: Race) -> Frame:
    """What stands in the two texts, their clocks and the trace."""
    more = f", <b>{race.speedup:.2f}x</b> in this race" if race.finished else ""
    return (
        race.alone.text,
        _clock("Large alone", race.alone),
        race.bild.text,
        _clock("BiLD", race.bild, more),
        race_html(race, head=False) if race.finished else "",
    )


def _clock(name: str, runner: Runner, more: str = "") -> str:
    """Seconds so far; spoken once, when the arm is done."""
    live, rate = "off", ""
    if runner.stats is not None:
        live = "polite"
        rate = f", {runner.stats.generated_tokens / runner.seconds:.0f} tokens/s{more}"
    said = f"{escape(name)}: {runner.seconds:.3f} s"
    return f'<div class="bild-clock" role="status" aria-live="{live}">{said}{rate}</div>'
