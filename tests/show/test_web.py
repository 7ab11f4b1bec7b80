"""The live page in a real browser: type, press, watch, read; on a phone, and by keyboard."""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest
from commands import ROOT, environment

from bild import BiLDConfig, BildError
from bild.show.web import build_page, serve

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
MISSING = [n for n in ("gradio", "playwright") if importlib.util.find_spec(n) is None]

SENTENCE = "Mein Wecker blieb heute früh stumm. Der Bus war natürlich schon weg."
EVIL = "<script>document.title = 'evil'</script> ${document.title = 'evil'} Schnee."
PHONE, DESKTOP = (390, 844), (1280, 900)

# Notes every text that stands in the two outputs.
WATCH = """() => {
    window.seen = {alone: new Set(), bild: new Set()};
    setInterval(() => { for (const arm of ['alone', 'bild'])
        window.seen[arm].add(document.querySelector(`#${arm} textarea`).value); }, 10);
}"""


@pytest.fixture(scope="module")
def browser():
    if MISSING:
        pytest.skip(f"not installed: {', '.join(MISSING)}")
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(browser, tmp_path_factory):
    """scripts/web.py as a user starts it, with the shipped pair."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("web")
    # On the slower engine there is time to watch a race, and to stop it, on any machine.
    flags = ["--port", str(port), "--rollback", "0.5", "--engine", "transformers"]
    flags += ["--max-new-tokens", "600"]  # a long race is there to be stopped
    process = subprocess.Popen(
        [sys.executable, ROOT / "scripts" / "web.py", *flags],
        cwd=home,
        env=environment(home, {"PYTHONPATH": str(ROOT)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if "Ctrl+C" in line:
                break
        else:
            pytest.fail("".join(said))
        assert line == f"http://127.0.0.1:{port}/ (Ctrl+C ends it)\n"
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture
def visit(browser, address):
    """Opens the page in a window; at the end nothing outside it was asked for, nothing failed."""
    contexts, outside, errors = [], [], []

    def visit(size, scheme="light"):
        width, height = size
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(90_000)
        page.on("request", lambda r: r.url.startswith(("http", "ws")) and outside.append(r.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.get_by_role("button", name="Race").wait_for()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert [url for url in outside if not url.startswith(address)] == []
    assert errors == []


def result(page):
    """The trace, once it is there."""
    page.locator("#trace article").wait_for()
    return page.locator("#trace article")


def test_type_press_watch_and_read(visit, tmp_path):
    page = visit(DESKTOP)
    page.evaluate(WATCH)
    page.get_by_label("Sentence").fill(SENTENCE)
    page.get_by_role("button", name="Race").click()
    trace = result(page)

    texts = {arm: page.locator(f"#{arm} textarea").input_value() for arm in ("alone", "bild")}
    seen = page.evaluate("() => ({alone: [...window.seen.alone], bild: [...window.seen.bild]})")
    for arm, text in texts.items():
        assert len(text.split()) > 3
        assert any(text.startswith(part) for part in seen[arm] if 0 < len(part) < len(text))
    clocks = [page.locator(f"#{arm}-clock").inner_text() for arm in ("alone", "bild")]
    assert re.fullmatch(r"Large alone: \d\.\d{3} s, \d+ tokens/s", clocks[0])
    assert re.fullmatch(r"BiLD: \d\.\d{3} s, \d+ tokens/s, \d+\.\d\dx", clocks[1])
    assert "fallback 0.6, rollback 0.5" in trace.inner_text()
    kinds = {
        c.split()[1]
        for c in trace.locator("ol .token").evaluate_all("e => e.map(x => x.className)")
    }
    assert kinds == {"small", "large", "unsure", "rolled-back"}
    chosen = "".join(trace.locator("ol .token.large, ol .token.small").evaluate_all(
        "e => e.map(x => x.firstChild.textContent.trim())"
    ))  # fmt: skip
    assert chosen == texts["bild"].replace(" ", "") + "</s>"
    picture = tmp_path / "page.png"
    page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 20_000


def test_by_keyboard_on_a_phone_in_the_dark(visit):
    page = visit(PHONE, "dark")
    box = page.get_by_label("Sentence")
    box.fill(EVIL)
    slider = page.get_by_role("slider", name="Fallback threshold")
    slider.focus()
    page.keyboard.press("End")
    box.focus()
    page.keyboard.press("Enter")
    trace = result(page)
    assert "fallback 1.1" in trace.inner_text()  # the slider stood at its end
    assert trace.locator("ol .token.small").count() == 0  # so the large model wrote everything
    assert trace.locator("ol .token.unsure").count() > 0
    assert page.title() != "evil"
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]

    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('token')"):
            break
    said = page.evaluate("getComputedStyle(document.activeElement, '::after').content")
    assert re.search(r"large model, [\d.]+ % sure; kept", said)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    ink, paper = (
        trace.evaluate(f"e => getComputedStyle(e).{name}.match(/\\d+/g).map(Number)")
        for name in ("color", "backgroundColor")
    )
    assert min(ink) > 200
    assert max(paper) < 60


def test_an_empty_sentence_is_refused_in_words_and_a_race_can_be_stopped(visit):
    page = visit(DESKTOP)
    page.get_by_label("Sentence").fill("  ")
    page.get_by_role("button", name="Race").click()
    page.get_by_text("the source is empty; give a sentence").wait_for()

    page.get_by_label("Sentence").fill(f"{SENTENCE} " * 40)
    page.get_by_role("button", name="Race").click()
    page.wait_for_function("document.querySelector('#alone textarea').value.length > 10")
    page.get_by_role("button", name="Stop").click()
    time.sleep(0.3)
    before = page.locator("#alone textarea").input_value()
    time.sleep(0.5)
    assert page.locator("#alone textarea").input_value() == before
    over = page.locator("#trace article").count()
    page.get_by_label("Sentence").fill("Heute Morgen lag überall Schnee.")
    page.get_by_role("button", name="Race").click()
    result(page)
    if over:  # a busy machine's browser may be slower than both models
        pytest.skip("the race was over before Stop was pressed")


# ------------------------------------------------------------------------------ refusals


def test_without_gradio_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(BildError, match=r"make web.*requirements-web\.txt"):
        build_page(None, BiLDConfig())


@pytest.mark.skipif("gradio" in MISSING, reason="not installed: gradio")
def test_what_no_slider_can_show_and_a_port_in_use_are_refused():
    with pytest.raises(BildError, match="a slider cannot stand at inf"):
        build_page(None, BiLDConfig(0.4, math.inf))
    page = build_page(None, BiLDConfig())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BildError, match=f"port {port} is taken"):
            serve(page, port)
