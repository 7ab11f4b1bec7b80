"""The live page in a real browser: type, press, watch, read; on a phone, and by keyboard."""

from __future__ import annotations

import http.client
import importlib.util
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import ROOT, environment, run_here

from bild import BiLDConfig, BildError
from bild.cli import add_pair_flags, pair_config
from bild.config import EvalConfig
from bild.parser import Parser
from bild.show.race import Racer
from bild.show.serving import API, LARGEST_BODY, check_port, launch, refusal
from bild.show.views import token_views
from bild.show.web import LONGEST_QUEUE, LONGEST_SOURCE, build_page, racing

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
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        program = BROWSER or playwright.chromium.executable_path
        if not Path(program).exists():
            pytest.skip("no Chromium here; apt install chromium, or playwright install chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
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
    assert re.fullmatch(r"BiLD: \d\.\d{3} s, \d+ tokens/s, \d+\.\d\dx in this race", clocks[1])
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
    for _ in range(3):  # a busy machine's browser may be slower than both models
        page.get_by_role("button", name="Race").click()
        page.wait_for_function("document.querySelector('#alone textarea').value.length > 10")
        page.get_by_role("button", name="Stop").click()
        time.sleep(0.3)
        before = page.locator("#alone textarea").input_value()
        time.sleep(0.5)
        assert page.locator("#alone textarea").input_value() == before
        if not page.locator("#trace article").count():
            break
    else:
        pytest.fail("three races were over before Stop was pressed")
    page.get_by_label("Sentence").fill("Heute Morgen lag überall Schnee.")
    page.get_by_role("button", name="Race").click()
    result(page)


def test_no_result_stands_below_settings_that_it_is_not_of(visit):
    page = visit(DESKTOP)
    assert page.get_by_text("from German to English").count() == 1
    box, trace = page.get_by_label("Sentence"), page.locator("#trace article")

    def race():
        page.get_by_role("button", name="Race").click()
        result(page)
        assert page.locator("#bild textarea").input_value()

    def expect_cleared():
        trace.wait_for(state="detached")
        page.wait_for_function("document.querySelector('#bild textarea').value === ''")
        assert page.locator("#bild-clock").inner_text() == ""

    box.fill("Wo ist der Bahnhof?")
    race()
    box.press("End")
    box.press("Backspace")
    expect_cleared()
    race()
    page.get_by_role("slider", name="Rollback threshold").focus()
    page.keyboard.press("ArrowRight")
    expect_cleared()
    race()
    page.get_by_role("radio", name="paper: ").check()
    expect_cleared()
    race()
    box.fill(" ")
    page.get_by_role("button", name="Race").click()
    page.get_by_role("alert").get_by_text("the source is empty").wait_for()
    expect_cleared()
    page.get_by_role("button", name="Tom hat vergessen").click()
    race()
    assert "door" in page.locator("#bild textarea").input_value()
    assert page.get_by_role("alert").count() == 0
    assert box.get_attribute("maxlength") == str(LONGEST_SOURCE)


# ------------------------------------------------------------------------------ without a browser


@pytest.fixture(scope="module")
def racer():
    return Racer.load(EvalConfig("demo", "unaligned", BiLDConfig(0.4, 3)))


def test_the_first_example_shows_the_method_at_work(racer, monkeypatch, tmp_path):
    """With what the page starts with: drafts that are kept, and some that are not; a good text."""
    module = importlib.import_module("bild.commands.web")
    monkeypatch.setattr(sys, "argv", ["web.py"])
    parser = Parser("")
    add_pair_flags(parser)
    _, config = pair_config(parser.parse_args())
    *_, race = racer.run(module.EXAMPLES[0], config)
    assert race.bild.text == race.alone.text
    assert len(race.bild.text.split()) > 5
    kinds = [view.kind for view in token_views(race.bild)]
    assert kinds.count("small") > 4
    assert {"large", "unsure", "rolled-back"} <= set(kinds)


@pytest.mark.parametrize(
    ("source", "fallback", "rollback", "said"),
    [
        ("", 0.4, 3, "the source is empty"),
        ("a" * (LONGEST_SOURCE + 1), 0.4, 3, "the text has 4,001 characters"),
        ("Schnee <b>.", math.nan, 3, "fallback_threshold must be a number &gt;= 0, got nan"),
        ("Schnee.", 0.4, None, "rollback_threshold must be a number &gt;= 0, got None"),
        ("Schnee.", 0.4, -1, "rollback_threshold must be a number &gt;= 0, got -1"),
        ("\ud800", 0.4, 3, "not valid Unicode"),
    ],
)
def test_what_cannot_be_raced_is_said_and_clears_the_page(racer, source, fallback, rollback, said):
    frames = list(racing(racer, BiLDConfig())(source, fallback, rollback, "authors"))
    assert frames[0] == ("",) * 5
    *texts, trace = frames[-1]
    assert texts == [""] * 4
    assert said in trace
    assert 'role="alert"' in trace


def test_a_race_ends_when_its_time_is_over(racer, monkeypatch):
    monkeypatch.setattr("bild.show.web.LONGEST_RACE", 0.0)
    *_, (*texts, trace) = racing(racer, BiLDConfig())(SENTENCE, 0.4, 3, "authors")
    assert texts == [""] * 4
    assert "the race was ended after 0 s" in trace


@pytest.mark.parametrize("port", [0, -1, 65_536, 80_000])
def test_a_number_that_is_no_port_is_refused_at_once(port, monkeypatch, capsys):
    with pytest.raises(BildError, match=f"--port must be 1 to 65535, got {port}"):
        check_port(port)
    done = run_here(monkeypatch, capsys, "--port", port, name="web")
    assert (done.code, len(done.complaints)) == (2, 1)


def test_only_this_machine_and_only_the_page_is_answered():
    here = {"host": "127.0.0.1:7860"}
    assert refusal("GET", "/", here) is None
    assert refusal("GET", "/", {"host": "localhost"}) is None
    assert refusal("GET", "/", {"host": "[::1]:80"}) is None
    assert refusal("POST", f"{API}queue/join", {**here, "content-length": "200"}) is None
    same = {**here, "origin": "http://127.0.0.1:7860", "content-length": "2"}
    assert refusal("POST", f"{API}queue/join", same) is None
    for host in ("evil.example", "127.0.0.1.evil.example:7860", "", "[", "10.0.0.1"):
        assert refusal("GET", "/", {"host": host})[0] == 403, host
    for origin in ("http://evil.example", "null", "", "http://["):
        assert refusal("POST", f"{API}queue/join", {**same, "origin": origin})[0] == 403, origin
    for path in ("upload", "file=/etc/passwd", "proxy=http://evil.example", "stream/1", ""):
        assert refusal("GET", f"{API}{path}", here)[0] == 404, path
    assert refusal("GET", "/monitoring", here)[0] == 404
    for length in ("", "-1", str(LARGEST_BODY + 1)):
        headers = {**here, "content-length": length}
        assert refusal("POST", f"{API}queue/join", headers)[0] == 413, length


needs_gradio = pytest.mark.skipif("gradio" in MISSING, reason="not installed: gradio")


@needs_gradio
def test_the_server_refuses_what_it_should_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", "/etc")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.setenv("GRADIO_ROOT_PATH", "/elsewhere")
    page = build_page(None, BiLDConfig())
    assert "GRADIO_ALLOWED_PATHS" not in os.environ
    address = launch(page, None, "")
    host = address.removeprefix("http://").rstrip("/")

    def status(method, path, **headers):
        connection = http.client.HTTPConnection(host, timeout=30)
        body = b"x" if method == "POST" else None
        connection.request(method, path, body, {n.title(): v for n, v in headers.items()})
        return connection.getresponse().status

    try:
        assert address.startswith("http://127.0.0.1:")
        assert status("GET", "/") == 200
        assert status("GET", "/config") == 200
        assert status("GET", "/", host="evil.example") == 403
        assert status("GET", f"{API}file=/etc/passwd") == 404
        assert status("POST", f"{API}upload") == 404
        assert status("POST", f"{API}queue/join", origin="http://evil.example") == 403
    finally:
        page.close()


def test_without_gradio_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(BildError, match=r"make web.*requirements-web\.txt"):
        build_page(None, BiLDConfig())


@needs_gradio
def test_only_so_many_may_wait():
    page = build_page(None, BiLDConfig())
    assert page._queue.max_size == LONGEST_QUEUE
    assert {f.concurrency_limit for f in page.fns.values() if f.fn is not None} == {1}


@needs_gradio
def test_what_no_slider_can_show_and_a_port_in_use_are_refused():
    with pytest.raises(BildError, match="a slider cannot stand at inf"):
        build_page(None, BiLDConfig(0.4, math.inf))
    page = build_page(None, BiLDConfig())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BildError, match=rf"cannot listen on port {port} \(.*; choose another"):
            launch(page, port, "")
