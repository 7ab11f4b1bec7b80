"""The service on loopback, with tiny models: what it answers, refuses, and does under load."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from commands import ROOT, environment, run_here
from toy import PAIRS, save_model, save_tokenizer
from transformers import AutoTokenizer

from bild import BiLDConfig, BildError, BiLDModel, DecodeStats
from bild.generation.sampled_rules import sampling_rule
from bild.generation.sequences import stream_of
from bild.serve.app import make_app
from bild.serve.config import ServeConfig
from bild.serve.door import host_name
from bild.serve.drawing import for_drawing
from bild.serve.run import listen, make_server
from bild.serve.worker import Answer, Job, Piece, QueueFullError, Translator, Worker

TEXTS = [source for source, _ in PAIRS]
BILD = BiLDConfig(0.6, 2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tokenizer = save_tokenizer(folder / "tokenizer")
    for name, noise in (("large", 0.0), ("small", 0.3)):
        save_model(folder / name, tokenizer, 0, layers=1, decoder_layers=1, noise=noise)
    return folder


@pytest.fixture(scope="module")
def translator(folder):
    pair = BiLDModel.from_pretrained(str(folder / "large"), str(folder / "small"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "large")
    return Translator(pair, tokenizer, max_source_tokens=24, max_new_tokens=20)


@contextmanager
def serving(translator, **bounds):
    """A service in threads of this process; its port."""
    config = ServeConfig(port=0, **bounds)
    found = listen(config)
    server = make_server(make_app(translator, config, BILD), config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [found]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield found.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def port(translator):
    with serving(translator, workers=2) as port:
        yield port


def ask(port, method, path, body=None, **headers):
    """(status, headers, content) of one request; a body that is no text becomes JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if raw is not None:
            named.setdefault("content-type", "application/json")
        connection.request(method, path, raw, named)
        response = connection.getresponse()
        content = response.read().decode()
        is_json = "json" in response.headers.get("content-type", "")
        return response.status, response.headers, json.loads(content) if is_json else content
    finally:
        connection.close()


def expected(translator, text, config=BILD, limit=20):
    return translator.decode(Job(text, config, limit)).text


# ------------------------------------------------------------------------------ what it answers


def test_one_text_and_several_are_decoded_as_the_pair_decodes_them(port, translator):
    status, _, content = ask(port, "POST", "/generate", {"text": TEXTS[0]})
    assert status == 200
    (output,) = content["outputs"]
    assert output["text"] == expected(translator, TEXTS[0])
    assert output["pieces"] is None
    assert output["stats"]["generated_tokens"] > 0
    status, _, content = ask(port, "POST", "/generate", {"text": TEXTS[:5], "max_new_tokens": 6})
    assert [o["text"] for o in content["outputs"]] == [
        expected(translator, text, limit=6) for text in TEXTS[:5]
    ]
    asked = {"text": TEXTS[1], "fallback": 1.1, "rollback": 3}
    _, _, content = ask(port, "POST", "/generate", asked)
    assert content["outputs"][0]["stats"]["fallbacks"] > 0
    assert content["outputs"][0]["text"] == expected(translator, TEXTS[1], BiLDConfig(1.1, 3))


def test_writers_are_told(port, translator):
    writers = set()
    for text in TEXTS[:6]:
        _, _, content = ask(port, "POST", "/generate", {"text": text, "writers": True})
        (output,) = content["outputs"]
        assert "".join(p["text"] for p in output["pieces"]).strip() == output["text"].strip()
        writers |= {piece["writer"] for piece in output["pieces"]}
    assert writers == {"large", "small"}


def events_of(port, asked):
    status, headers, content = ask(port, "POST", "/stream", asked)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    blocks = [block.split("\n") for block in content.strip().split("\n\n")]
    return [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in blocks
    ]


def test_a_stream_gives_the_tokens_in_parts_with_their_writers_and_then_the_whole(port):
    most = 0
    for text in TEXTS[:6]:
        *parts, (last, done) = events_of(port, {"text": text})
        assert last == "done"
        assert {name for name, _ in parts} <= {"pieces"}
        pieces = [piece for _, new in parts for piece in new]
        _, _, content = ask(port, "POST", "/generate", {"text": text, "writers": True})
        assert pieces == content["outputs"][0]["pieces"]
        assert done["text"] == content["outputs"][0]["text"]
        most = max(most, len(parts))
    assert most > 1


def drawn_by_the_pair(translator, text, place, seed, **settings):
    ids = translator.tokenizer(text, return_tensors="pt").input_ids
    output = translator.pair.generate(
        ids, bild_config=BILD, do_sample=True, max_new_tokens=20,
        generator=stream_of(seed, place), return_dict_in_generate=True, **settings,
    )  # fmt: skip
    return translator.tokenizer.decode(output.sequences[0], skip_special_tokens=True)


def test_with_a_temperature_outputs_are_drawn_by_the_seed_and_the_place(port, translator):
    settings = {"temperature": 0.9, "top_k": 0, "top_p": 0.95}
    texts = [TEXTS[0], TEXTS[1], TEXTS[1]]
    found = {}
    for seed in (5, 6):
        asked = {"text": texts, **settings, "seed": seed}
        _, _, content = ask(port, "POST", "/generate", asked)
        found[seed] = [output["text"] for output in content["outputs"]]
        assert found[seed] == [
            drawn_by_the_pair(translator, text, place, seed, **settings)
            for place, text in enumerate(texts)
        ]
    assert found[5] != found[6]
    _, done = events_of(port, {"text": texts[0], **settings, "seed": 5})[-1]
    assert done["text"] == found[5][0]
    unseeded = {"text": TEXTS[0], "temperature": 3}
    free = [ask(port, "POST", "/generate", unseeded)[2] for _ in range(5)]
    assert len({answer["outputs"][0]["text"] for answer in free}) > 1


def test_rules_of_greedy_drafts_do_not_keep_a_service_from_drawing():
    for given in (
        {"lookahead": 1}, {"variant": "authors"}, {"acceptance": "lenient"}, {"copying": "first"},
        {"drafting": "adaptive"}, {"drafting": "margin"},
    ):  # fmt: skip
        bild = for_drawing(BiLDConfig(0.4, **given))
        sampling_rule(bild)  # does not refuse
        assert bild.fallback_threshold == 0.4
    assert bild.drafting == "margin:least=0.3"


def test_health_metrics_and_the_description(port):
    ask(port, "POST", "/generate", {"text": TEXTS[0]})
    status, _, health = ask(port, "GET", "/health")
    assert (status, health["status"]) == (200, "ok")
    _, headers, text = ask(port, "GET", "/metrics")
    assert headers["content-type"].startswith("text/plain")
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["bild_texts_total"]) >= 1
    assert float(values["bild_tokens_total"]) >= float(values["bild_texts_total"])
    assert float(values['bild_requests_total{path="/generate",status="200"}']) >= 1
    assert float(values["bild_waiting_texts"]) == 0
    _, _, schema = ask(port, "GET", "/openapi.json")
    assert {"/generate", "/stream", "/health", "/metrics"} <= set(schema["paths"])
    _, _, page = ask(port, "GET", "/docs")
    assert "POST /generate" in page
    assert "http" not in re.sub(r"HTTP\w*", "", page)  # nothing is loaded from elsewhere


def test_the_clients_of_the_docs_work(port, translator, capsys):
    page = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    (client,) = re.findall(r"^```py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    lively = next(text for text in TEXTS if expected(translator, text))
    client = client.replace(":8000", f":{port}").replace("Der Mond ist alt.", lively)
    exec(compile(client, "docs/serve.md", "exec"), {})
    printed = capsys.readouterr().out
    assert f"{expected(translator, 'Der Zug ist neu.')} " in printed
    assert re.search(r" by the (large|small) model\ndone \{", printed)
    curls, _ = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert curls.count("curl ") == 2
    for data, path in zip(re.findall(r"-d '(.*)'", curls), ("/generate", "/stream"), strict=True):
        assert f":8000{path} " in curls
        assert ask(port, "POST", path, data.encode())[0] == 200


# ------------------------------------------------------------------------------ what it refuses


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"text": "  "}, "a text is empty; give a sentence"),
        ({"text": []}, "there is no text; give one"),
        ({"text": ["a", ""]}, "a text is empty"),
        ({"text": "a" * 20_001}, "a text has 20001 characters, which is more than 20000"),
        ({"text": "\ud800"}, "a text is not valid Unicode"),
        ({"text": "a", "fallback": -1}, "fallback_threshold must be a number >= 0, got -1"),
        ({"text": "a", "rollback": float("nan")}, "rollback_threshold must be .* got nan"),
        ({"text": "a", "max_new_tokens": 21}, "max_new_tokens must be at most 20, got 21"),
        ({"text": "a", "max_new_tokens": 0}, "max_new_tokens: Input should be greater"),
        ({"text": "a", "beams": 1}, "beams: Extra inputs are not permitted"),
        ({"text": "a", "temperature": 0}, "temperature: Input should be greater than 0"),
        ({"text": "a", "temperature": 101}, "temperature: Input should be less than or equal"),
        ({"text": "a", "temperature": float("nan")}, "temperature: "),
        ({"text": "a", "temperature": 1, "top_k": -1}, "top_k: Input should be greater"),
        ({"text": "a", "temperature": 1, "top_p": 0}, "top_p: Input should be greater than 0"),
        ({"text": "a", "temperature": 1, "top_p": 1.5}, "top_p: Input should be less than"),
        ({"text": "a", "temperature": 1, "seed": 2**32}, "seed: Input should be less than"),
        ({"text": "a", "temperature": 1, "seed": 0.5}, "seed: "),
        ({"text": "a", "seed": 1}, "seed is for drawn outputs; give a temperature too"),
        ({"text": "a", "temperature": 1, "rollback": 2}, "rollback judges greedy drafts alone"),
        ({}, "text: Field required"),
        (b"{", "JSON decode error"),
        (b"\xff", ""),
    ],
)
@pytest.mark.parametrize("path", ["/generate", "/stream"])
def test_what_cannot_be_decoded_is_refused_in_a_sentence(port, path, asked, said):
    if path == "/stream" and isinstance(asked, dict) and isinstance(asked.get("text"), list):
        asked, said = {"text": asked["text"]}, "valid string"
    status, _, content = ask(port, "POST", path, asked)
    assert status in (400, 422)
    assert re.search(said, str(content["detail"]))


def test_too_much_is_refused(translator):
    with serving(translator, texts=3, body=500) as port:
        assert ask(port, "POST", "/generate", {"text": ["a"] * 4})[0] == 413
        assert ask(port, "POST", "/generate", b"x" * 501)[0] == 413
        # A body that does not say how large it is.
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/generate", iter([b"x" * 400] * 3), encode_chunked=True,
                           headers={"Transfer-Encoding": "chunked"})  # fmt: skip
        assert connection.getresponse().status == 413
        connection.close()
        assert ask(port, "POST", "/generate", {"text": TEXTS[0]})[0] == 200


def test_a_body_that_does_not_come_is_not_waited_for(translator):
    with serving(translator, wait=1) as port, socket.create_connection(("127.0.0.1", port)) as s:
        s.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        assert s.recv(100).startswith(b"HTTP/1.1 408")


def test_only_known_names_are_answered(port, translator):
    for host in ("evil.example", "127.0.0.1.evil.example", "", "10.0.0.1:80", "["):
        assert ask(port, "GET", "/health", host=host)[0] == 403, host
    for host in ("localhost", "127.0.0.1:99", "[::1]:8000"):
        assert ask(port, "GET", "/health", host=host)[0] == 200, host
    assert ask(port, "POST", "/generate", {"text": "a"}, origin="http://evil.example")[0] == 403
    assert ask(port, "POST", "/generate", {"text": "a"}, origin="null")[0] == 403
    assert ask(port, "GET", "/health", origin="http://localhost:3000")[0] == 200
    with serving(translator, allow_host=("translate.example",)) as other:
        assert ask(other, "GET", "/health", host="translate.example")[0] == 200
    assert host_name("[::1]:80") == "::1"


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"port": 70_000}, "--port must be 0 to 65535, got 70000"),
        ({"queue": 0}, "--queue must be 1 to 100000, got 0"),
        ({"host": "example"}, "--host must be an IP address, got 'example'"),
        ({"host": "0.0.0.0"}, "answers other machines; name what they call this one"),
    ],
)
def test_bounds_that_cannot_be_are_refused(bounds, said, monkeypatch, capsys):
    with pytest.raises(BildError, match=said):
        ServeConfig(**bounds)
    flags = [part for name, value in bounds.items() for part in (f"--{name}", value)]
    done = run_here(monkeypatch, capsys, *flags, name="serve")
    assert (done.code, len(done.complaints)) == (2, 1)


def test_a_port_in_use_is_said_before_models_are_loaded(monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_here(monkeypatch, capsys, "--port", port, "--large", "none", name="serve")
    assert done.code == 2
    assert f"cannot listen on 127.0.0.1, port {port}" in done.err


# ------------------------------------------------------------------------------ under load


def test_of_two_hundred_at_once_none_is_lost_and_none_mixed_up(port, translator):
    wanted = {
        (text, limit): expected(translator, text, limit=limit)
        for text in TEXTS
        for limit in (4, 8, 12, 16, 20)
    }
    assert len(wanted) == 200
    assert len(set(wanted.values())) > 40
    gate = threading.Barrier(200)

    def one(key):
        text, limit = key
        gate.wait()
        return ask(port, "POST", "/generate", {"text": text, "max_new_tokens": limit})

    with ThreadPoolExecutor(200) as pool:
        results = dict(zip(wanted, pool.map(one, wanted), strict=True))
    assert {status for status, *_ in results.values()} == {200}
    assert {k: c["outputs"][0]["text"] for k, (_, _, c) in results.items()} == wanted


def test_a_full_queue_says_when_to_come_again(translator):
    with serving(translator, queue=2) as port:

        def until_answered(text):
            refusals = 0
            while True:
                status, headers, content = ask(port, "POST", "/generate", {"text": text})
                if status == 200:
                    return refusals, content["outputs"][0]["text"]
                assert status == 503
                assert int(headers["retry-after"]) >= 1
                assert "there is room for 2" in content["detail"]
                refusals += 1
                time.sleep(0.05)

        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(until_answered, TEXTS))
        assert [text for _, text in results] == [expected(translator, t) for t in TEXTS]
        assert sum(refusals for refusals, _ in results) > 0
        # Several texts go in together or not at all.
        assert ask(port, "POST", "/generate", {"text": TEXTS[:3]})[0] == 503


class Slow:
    """Stands for a translator; decodes when it is told to."""

    max_new_tokens = 20

    def __init__(self):
        self.go = threading.Event()
        self.decoded = []

    def decode(self, job):
        self.go.wait(30)
        self.decoded.append(job.text)
        return Answer(job.text, STATS, None, 1, False, 0.1)

    def decode_joining(self, jobs, size):
        raise RuntimeError("nothing is shared here")


STATS = DecodeStats()


class Letters(Slow):
    """A text of n letters takes n forwards; `beats` has whose they were, in their order."""

    decode_joining = Translator.decode_joining
    decoder = SimpleNamespace(name="large", company=None)
    pair = SimpleNamespace(steering=object)

    def __init__(self):
        super().__init__()
        self.beats = []
        self.on_beat = lambda text: None

    def _row(self, job, *, together):
        assert together
        for _ in job.text:
            yield Beat(self, job)
        if job.text == "bad":
            raise BildError("this is the bad one")
        return self.answer(job)

    def answer(self, job):
        return Answer(job.text, STATS, None, 1, False, 0.1)


class Beat:
    """What a row of `Letters` asks for."""

    def __init__(self, letters, job):
        self.letters, self.job, self.decoder = letters, job, letters.decoder

    def alone(self):
        self.letters.beats.append(self.job.text)
        self.letters.on_beat(self.job.text)


def letters_at_work(letters, batch):
    """A worker that is held up by a first text, so that what comes next waits."""
    worker = Worker(letters, room=20, batch=batch)
    worker.put([Job("first", BILD, 4)])
    while worker.waiting:
        time.sleep(0.01)
    return worker


def test_what_comes_while_others_run_joins_them_when_one_has_left():
    letters = Letters()
    worker = letters_at_work(letters, batch=2)
    late = [Job("cc", BiLDConfig(0.9, 1.0), 9), Job("d", BILD, 4, on_pieces=lambda _: None)]

    def on_beat(text):
        if letters.beats == ["aaaa"]:
            worker.put(late)

    letters.on_beat = on_beat
    early = [Job("aaaa", BILD, 4), Job("bb", BILD, 8, writers=True)]
    worker.put(early)
    letters.go.set()
    assert late[1].future.result(30).text == "d"  # it takes none once it is told to close
    worker.close()
    assert letters.decoded == ["first"]
    assert letters.beats == [
        *("aaaa", "bb", "aaaa", "bb"),  # of two there is room for no more
        *("aaaa", "cc", "aaaa", "cc"),  # one has left, and the next is there at once
        "d",
    ]
    assert [job.future.result(0).text for job in (*early, *late)] == ["aaaa", "bb", "cc", "d"]
    assert (worker.running, worker.waiting) == (0, 0)


def test_the_error_of_one_is_its_own_and_one_that_all_share_is_looked_into():
    letters = Letters()
    worker = letters_at_work(letters, batch=4)
    jobs = [Job("aaaa", BILD, 4), Job("bad", BILD, 4), Job("bb", BILD, 4)]
    worker.put(jobs)
    letters.go.set()
    worker.close()
    assert letters.decoded == ["first"]
    with pytest.raises(BildError, match="this is the bad one"):
        jobs[1].future.result(0)
    assert [jobs[i].future.result(0).text for i in (0, 2)] == ["aaaa", "bb"]

    def on_beat(text):
        if len(letters.beats) == 4:
            raise RuntimeError("a forward fails")

    letters = Letters()
    letters.on_beat = on_beat
    worker = letters_at_work(letters, batch=4)
    jobs = [Job("aaaa", BILD, 4), Job("b", BILD, 4), Job("stream", BILD, 4)]
    jobs[2].on_pieces = lambda _: None
    worker.put(jobs)
    letters.go.set()
    worker.close()
    assert letters.decoded == ["first", "aaaa"]  # "b" had ended, and a stream is not begun again
    assert [jobs[i].future.result(0).text for i in (0, 1)] == ["aaaa", "b"]
    with pytest.raises(RuntimeError, match="a forward fails"):
        jobs[2].future.result(0)


def test_texts_of_any_settings_become_together_what_each_becomes_alone(translator):
    told = []
    settings = [(BILD, 20), (BiLDConfig(1.1, 3.0), 12), (BiLDConfig(0.2, 5.0, lookahead=2), 8)]
    jobs = [Job(text, *settings[i % 3]) for i, text in enumerate(TEXTS[:9])]
    jobs[3].writers = jobs[4].writers = True
    jobs[5].on_pieces = told.extend
    waits = iter([*jobs[:2], None, *jobs[2:], None, None])
    found = dict(translator.decode_joining(waits, 3))
    assert len(found) == len(jobs)
    for job in jobs:
        twin = Job(job.text, job.config, job.max_new_tokens, job.writers)
        twin.on_pieces = None if job.on_pieces is None else (lambda _: None)
        alone = translator.decode(twin)
        assert (found[job].text, found[job].pieces) == (alone.text, alone.pieces)
        assert found[job].source_tokens == alone.source_tokens
    assert "".join(piece.text for piece in told)
    assert tuple(told) == found[jobs[5]].pieces
    assert len({answer.text for answer in found.values()}) > 3


def test_a_stream_that_has_begun_is_finished_when_the_service_ends():
    class Halves(Slow):
        def decode(self, job):
            job.on_pieces([Piece("first", "small")])
            self.go.wait(30)
            job.on_pieces([Piece(" second", "large")])
            return Answer("first second", STATS, None, 1, False, 0.1)

    halves, events = Halves(), []
    ending = threading.Timer(0.5, halves.go.set)  # after the service was told to end
    with serving(halves) as port:
        reading = threading.Thread(target=lambda: events.extend(events_of(port, {"text": "x"})))
        reading.start()
        while ask(port, "GET", "/health")[2]["running"] == 0:
            time.sleep(0.01)
        ending.start()
    reading.join(30)
    ending.join()
    assert [name for name, _ in events] == ["pieces", "pieces", "done"]
    assert events[1][1] == [{"text": " second", "writer": "large"}]
    assert events[2][1]["text"] == "first second"


def test_what_nobody_waits_for_is_not_decoded():
    slow = Slow()
    worker = Worker(slow, room=8, longest_wait=0.2)
    jobs = [Job(name, BILD, 4) for name in ("first", "abandoned", "late")]
    jobs[1].abandoned = True
    worker.put(jobs)
    time.sleep(0.4)
    slow.go.set()
    assert jobs[0].future.result(10).text == "first"
    with pytest.raises(QueueFullError, match="has waited for"):
        jobs[2].future.result(10)
    worker.close()
    assert slow.decoded == ["first"]
    with pytest.raises(QueueFullError, match="about to end"):
        worker.put([Job("more", BILD, 4)])


def test_a_client_that_leaves_frees_the_queue():
    slow = Slow()
    with serving(slow) as port:
        first = threading.Thread(target=ask, args=(port, "POST", "/generate", {"text": "first"}))
        first.start()
        time.sleep(0.2)
        body = json.dumps({"text": "left"}).encode()
        with socket.create_connection(("127.0.0.1", port)) as gone:
            head = f"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            gone.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
            time.sleep(0.3)
            assert ask(port, "GET", "/health")[2]["waiting"] == 1
        time.sleep(0.3)
        slow.go.set()
        first.join(30)
        assert ask(port, "POST", "/generate", {"text": "last"})[0] == 200
    assert slow.decoded == ["first", "last"]


def test_an_error_of_the_models_ends_no_service():
    class Broken(Slow):
        def decode(self, job):
            raise RuntimeError("out of luck") if job.text == "bad" else BildError("no such thing")

    with serving(Broken()) as port:
        assert ask(port, "POST", "/generate", {"text": "bad"})[0] == 500
        assert ask(port, "POST", "/generate", {"text": "x"})[2] == {"detail": "no such thing"}
        assert events_of(port, {"text": "x"}) == [("error", {"detail": "no such thing"})]
        assert ask(port, "GET", "/health")[0] == 200


def test_where_memory_is_short_one_text_is_refused_and_the_others_are_served():
    class Short(Slow):
        def decode(self, job):
            if job.text == "long":
                raise torch.OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"
                )
            return super().decode(job)

    said = (
        "give a shorter text: no memory is left (CUDA out of memory. Tried to allocate 2.00 GiB.)"
    )
    short = Short()
    short.go.set()
    with serving(short) as port:
        for _ in range(2):
            status, _, answer = ask(port, "POST", "/generate", {"text": "long"})
            assert (status, answer["detail"][: len(said)]) == (422, said)
            assert ask(port, "POST", "/generate", {"text": "first"})[0] == 200
        (event,) = events_of(port, {"text": "long"})
        assert event[0] == "error"
        assert event[1]["detail"].startswith(said)


# ------------------------------------------------------------------------------ the script


def test_the_script_serves_until_it_is_told_to_end_and_finishes_what_it_has_begun(tmp_path, folder):
    flags = ["--port", "0", "--large", folder / "large", "--small", folder / "small"]
    process = subprocess.Popen(
        [sys.executable, ROOT / "scripts" / "serve.py", *map(str, flags)],
        cwd=tmp_path, env=environment(tmp_path, {}), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/ \(Ctrl\+C ends it\)\n", line)[1])
        texts = TEXTS * 1
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(ask, port, "POST", "/generate", {"text": texts})
            while ask(port, "GET", "/health")[2]["running"] == 0 and not running.done():
                pass
            os.kill(process.pid, signal.SIGTERM)
            status, _, content = running.result(60)
        assert status == 200
        assert len(content["outputs"]) == len(texts)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (143, -signal.SIGTERM)
        assert "Traceback" not in err
    finally:
        process.kill()
        process.wait()
