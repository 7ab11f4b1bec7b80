"""The live page: both arms race over a sentence, streaming, with the trace below (Gradio)."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from html import escape
from types import ModuleType
from typing import TYPE_CHECKING

from bild.config import BiLDConfig
from bild.errors import BildError
from bild.policy import RULES
from bild.show.html import race_css, race_html
from bild.show.race import Race, Racer, Runner

if TYPE_CHECKING:
    import gradio

FRAME_SECONDS = 0.05  # between two updates of the page
HEAD = """# Big Little Decoder, live
The large model alone against the pair, on the same sentence. The two take turns on this machine, so
each clock shows that arm's own time only."""
CSS = """
.gradio-container { max-width: 68rem !important; margin: 0 auto !important; }
.bild-clock { font-variant-numeric: tabular-nums; min-height: 1.5em; }
.gradio-container .html-container { padding: 0 !important; }
"""


def build_page(racer: Racer, config: BiLDConfig, examples: Sequence[str] = ()) -> gradio.Blocks:
    """The page as a Gradio app, to be launched.

    Args:
        racer: the pair.
        config: where the sliders stand at first, and what has no slider.
        examples: sentences to choose from.

    Raises:
        BildError: Gradio is not installed, or a threshold is infinite.
    """
    gr = _gradio()
    if math.inf in (config.fallback_threshold, config.rollback_threshold):
        raise BildError("a slider cannot stand at inf; give a finite threshold")

    def race(
        source: str, fallback: float, rollback: float, variant: str
    ) -> Iterator[tuple[str, str, str, str, str]]:
        chosen = BiLDConfig(fallback, rollback, config.num_small_iters, variant, config.start)
        shown = 0.0
        try:
            for state in racer.run(source, chosen):
                if state.finished or time.monotonic() - shown > FRAME_SECONDS:
                    shown = time.monotonic()
                    yield _frame(state)
        except BildError as error:
            raise gr.Error(str(error), print_exception=False) from None

    with gr.Blocks(title="Big Little Decoder", analytics_enabled=False) as page:
        gr.Markdown(HEAD)
        source = gr.Textbox(label="Sentence", value=examples[0] if examples else "", max_lines=8)
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
        variant = gr.Radio(list(RULES), value=config.variant, label="Variant")
        with gr.Row():
            start = gr.Button("Race", variant="primary", elem_id="race")
            stop = gr.Button("Stop", elem_id="stop")
        with gr.Row(equal_height=True):
            with gr.Column(min_width=300):
                alone = gr.Textbox(label="Large alone", lines=3, interactive=False, elem_id="alone")
                alone_clock = gr.HTML(elem_id="alone-clock")
            with gr.Column(min_width=300):
                bild = gr.Textbox(label="BiLD", lines=3, interactive=False, elem_id="bild")
                bild_clock = gr.HTML(elem_id="bild-clock")
        trace = gr.HTML(elem_id="trace")

        outputs = [alone, alone_clock, bild, bild_clock, trace]
        running = gr.on(
            [start.click, source.submit],
            race,
            [source, fallback, rollback, variant],
            outputs,
            show_progress="hidden",
            concurrency_limit=1,  # of two races at once neither would be timed alone
            trigger_mode="once",
        )
        stop.click(None, cancels=[running])
    return page


def serve(page: gradio.Blocks, port: int | None, in_browser: bool = False) -> None:
    """Show the page to this machine alone, until interrupted.

    Args:
        page: from `build_page`.
        port: where to listen; None for the first free one from 7860 on.
        in_browser: open it there.

    Raises:
        BildError: the port is taken.
    """
    gr = _gradio()
    try:
        _, address, _ = page.launch(
            server_name="127.0.0.1",
            server_port=port,
            inbrowser=in_browser,
            share=False,
            ssr_mode=False,
            footer_links=[],
            prevent_thread_lock=True,
            quiet=True,
            theme=gr.themes.Default(
                primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]
            ).set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"),
            css=CSS + race_css(),
        )
    except OSError:
        raise BildError(f"port {port} is taken; choose another by --port") from None
    print(f"{address} (Ctrl+C ends it)", flush=True)
    page.block_thread()


def _gradio() -> ModuleType:
    # Before the import: nothing of this page is anybody else's business.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ImportError:
        raise BildError(
            "the page needs Gradio; run `make web`, or pip install -r requirements-web.txt"
        ) from None
    return gradio


def _frame(race: Race) -> tuple[str, str, str, str, str]:
    """What stands in the two texts, their clocks and the trace."""
    more = f", <b>{race.speedup:.2f}x</b>" if race.finished else ""
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
