"""The HTTP service: its paths, what they take and what they give (FastAPI)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from html import escape
from typing import Annotated, Any, TypeAlias

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from bild._version import __version__
from bild.config import BiLDConfig
from bild.errors import BildError
from bild.serve.config import ServeConfig
from bild.serve.door import Door
from bild.serve.drawing import for_drawing, read_drawing
from bild.serve.metrics import Metrics
from bild.serve.worker import Answer, Job, Piece, QueueFullError, Translator, Worker

Pieces: TypeAlias = asyncio.Queue[list[Piece] | None]  # None at the end

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"


class Settings(BaseModel):
    """How a text is decoded; what is left out is as the service was started with."""

    model_config = ConfigDict(extra="forbid")

    fallback: Annotated[
        float | None, Field(description="the small model hands over below this probability")
    ] = None
    rollback: Annotated[
        float | None, Field(description="the large model takes back what is farther off, in nats")
    ] = None
    max_new_tokens: Annotated[int | None, Field(ge=1, description="limit of an output")] = None
    temperature: Annotated[
        float | None, Field(gt=0, le=100, description="tokens are drawn; without it, greedy")
    ] = None
    top_k: Annotated[
        int | None, Field(ge=0, le=10**6, description="of so many likeliest; 0 for all")
    ] = None
    top_p: Annotated[
        float | None, Field(gt=0, le=1, description="of the likeliest with this probability")
    ] = None
    seed: Annotated[
        int | None, Field(ge=0, lt=2**32, description="of what is drawn; without it, any")
    ] = None


class GenerateRequest(Settings):
    """One text or several."""

    text: Annotated[str | list[str], Field(description="one text, or several")]
    writers: Annotated[bool, Field(description="say who wrote each token")] = False


class StreamRequest(Settings):
    """One text."""

    text: str


class PieceOut(BaseModel):
    """The text of a token, with the space before it, and the model that wrote it."""

    text: str
    writer: str


class Output(BaseModel):
    """What came of a text.

    Attributes: `stats` counts as `bild.DecodeStats`; `truncated` says that the text was longer than
    what the models read; `pieces` are there where `writers` was asked for.
    """

    text: str
    source_tokens: int
    truncated: bool
    seconds: float
    stats: dict[str, int]
    pieces: list[PieceOut] | None = None


class GenerateResponse(BaseModel):
    """The outputs, in the order of the texts."""

    outputs: list[Output]


class Health(BaseModel):
    """Whether texts are taken, and how many wait."""

    status: str
    version: str
    waiting: int
    running: int


def make_app(translator: Translator, config: ServeConfig, bild: BiLDConfig) -> FastAPI:
    """The service as an ASGI application.

    Args:
        translator: the loaded pair.
        config: the bounds.
        bild: thresholds and rules of requests that name none.
    """
    worker = Worker(translator, config.queue, config.workers, config.wait, config.batch)
    metrics = Metrics(worker)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(worker.close)

    app = FastAPI(
        title="Big Little Decoder",
        version=__version__,
        summary="Texts in, texts out, by a small model that drafts and a large one that checks.",
        docs_url=None,  # FastAPI's own pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.worker = worker
    _refuse_in_sentences(app)
    service = _Service(translator, config, bild, worker, metrics)
    _decode(app, service)
    _tell(app, service)
    app.add_middleware(Door, config=config, answered=metrics.answered)
    return app


class _Service:
    """What the paths share."""

    def __init__(
        self,
        translator: Translator,
        config: ServeConfig,
        bild: BiLDConfig,
        worker: Worker,
        metrics: Metrics,
    ) -> None:
        self.translator, self.config, self.bild = translator, config, bild
        self.worker, self.metrics = worker, metrics

    def job(self, text: str, settings: Settings, **more: Any) -> Job:
        """A text with its settings, checked.

        Raises:
            BildError: by name and value.
        """
        limit = self.translator.max_new_tokens
        asked = limit if settings.max_new_tokens is None else settings.max_new_tokens
        if asked > limit:
            raise BildError(f"max_new_tokens must be at most {limit}, got {asked}")
        if not text.strip():
            raise BildError("a text is empty; give a sentence")
        if len(text) > self.config.characters:
            raise BildError(
                f"a text has {len(text)} characters, which is more than {self.config.characters}"
            )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BildError(f"a text is not valid Unicode ({error.reason})") from None
        given = {
            f"{name}_threshold": value
            for name in ("fallback", "rollback")
            if (value := getattr(settings, name)) is not None
        }
        bild = replace(self.bild, **given)
        drawing = read_drawing(settings.model_dump())
        if drawing is not None:
            bild = for_drawing(bild)
        return Job(text, bild, asked, drawing=drawing, **more)

    async def answers(self, jobs: Sequence[Job], request: Request) -> list[Answer]:
        """What comes of jobs, in their order; they are abandoned where nobody waits.

        Args:
            jobs: to be put into the queue.
            request: that asked for them, and has been read.
        """
        self.worker.put(jobs)
        work = asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs))
        gone = asyncio.ensure_future(request.receive())  # the next message is the end
        try:
            both: set[asyncio.Future[Any]] = {work, gone}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise BildError("nobody waits for this output")
            answers = await work
        finally:
            gone.cancel()
            work.cancel()
            for job in jobs:
                job.abandoned = True
        for answer in answers:
            self.metrics.count(answer)
        return answers

    async def events(self, job: Job, queue: Pieces) -> AsyncIterator[str]:
        """The server-sent events of a job that is in the queue."""
        job.future.add_done_callback(_into(queue, asyncio.get_running_loop()))
        try:
            while (pieces := await queue.get()) is not None:
                yield _event("pieces", [asdict(piece) for piece in pieces])
            answer = await asyncio.wrap_future(job.future)
            self.metrics.count(answer)
            yield _event("done", _output(answer).model_dump(exclude={"pieces"}))
        except BildError as error:
            yield _event("error", {"detail": str(error)})
        finally:
            job.abandoned = True


def _into(queue: Pieces, loop: asyncio.AbstractEventLoop) -> Callable[[object], None]:
    """Puts the end into a queue of the loop, from a thread of the service."""

    def end(_: object) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, None)

    return end


def _decode(app: FastAPI, service: _Service) -> None:
    """The paths that decode texts."""
    refused: dict[int | str, dict[str, Any]] = {
        413: {"description": "too many texts, or too many bytes"},
        422: {"description": "a value that cannot be used, by name"},
        503: {"description": "the queue is full; Retry-After says when to come again"},
    }

    @app.post("/generate", responses=refused)
    async def generate(asked: GenerateRequest, request: Request) -> GenerateResponse:
        """Decode one text or several."""
        texts = [asked.text] if isinstance(asked.text, str) else asked.text
        if not texts:
            raise BildError("there is no text; give one")
        if len(texts) > service.config.texts:
            return JSONResponse(  # type: ignore[return-value]
                {"detail": f"a request may have {service.config.texts} texts, got {len(texts)}"},
                413,
            )
        told = {"writers": asked.writers}
        jobs = [service.job(text, asked, place=i, **told) for i, text in enumerate(texts)]
        answers = await service.answers(jobs, request)
        return GenerateResponse(outputs=[_output(answer) for answer in answers])

    @app.post("/stream", response_class=StreamingResponse, responses=refused)
    async def stream(asked: StreamRequest) -> StreamingResponse:
        """Decode a text and send its tokens as they are settled, as server-sent events.

        `pieces` events hold a list of {text, writer}; `done` what /generate gives; `error` a
        sentence.
        """
        queue: Pieces = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def on_pieces(new: list[Piece]) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, new)

        job = service.job(asked.text, asked, on_pieces=on_pieces)
        service.worker.put([job])
        return StreamingResponse(
            service.events(job, queue),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store"},
        )


def _tell(app: FastAPI, service: _Service) -> None:
    """The paths that tell of the service."""

    @app.get("/health", responses={503: {"description": "the service is about to end"}})
    async def health(response: Response) -> Health:
        """Whether texts are taken."""
        closed = service.worker.closed
        response.status_code = 503 if closed else 200
        return Health(
            status="ending" if closed else "ok",
            version=__version__,
            waiting=service.worker.waiting,
            running=service.worker.running,
        )

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters, in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=TEXT_FORMAT)

    @app.get("/docs", response_class=HTMLResponse)
    async def docs() -> HTMLResponse:
        """This description, for people; nothing of it is loaded from elsewhere."""
        return HTMLResponse(_page(app.openapi()))

    @app.get("/", include_in_schema=False)
    async def root() -> HTMLResponse:
        return HTMLResponse(_page(app.openapi()))


def _refuse_in_sentences(app: FastAPI) -> None:
    """Every refusal is JSON with a `detail` that is one sentence."""

    @app.exception_handler(QueueFullError)
    async def full(_: Request, error: QueueFullError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503, {"Retry-After": str(error.seconds)})

    @app.exception_handler(BildError)
    async def refused(_: Request, error: BildError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
        return JSONResponse({"detail": f"{where}: {first['msg']}"}, 422)


def _output(answer: Answer) -> Output:
    pieces = None if answer.pieces is None else [PieceOut(**asdict(p)) for p in answer.pieces]
    return Output(
        text=answer.text,
        source_tokens=answer.source_tokens,
        truncated=answer.truncated,
        seconds=answer.seconds,
        stats=asdict(answer.stats),
        pieces=pieces,
    )


def _event(name: str, data: Any) -> str:
    """One server-sent event; JSON has no line breaks, so that one line holds it."""
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def _page(schema: dict[str, Any]) -> str:
    """The OpenAPI description as a page."""
    paths = "".join(
        f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>"
        f"<p>{escape(said.get('description', said.get('summary', '')))}</p>"
        for path, methods in schema["paths"].items()
        for method, said in methods.items()
    )
    kinds = "".join(
        f"<h3>{escape(name)}</h3><p>{escape(kind.get('description', ''))}</p>"
        f"<pre>{escape(json.dumps(kind.get('properties', {}), indent=2))}</pre>"
        for name, kind in schema.get("components", {}).get("schemas", {}).items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Big Little Decoder'
        '</title><meta name="viewport" content="width=device-width">'
        "<style>:root{color-scheme:light dark}body{font:1rem/1.5 system-ui,sans-serif;"
        "max-width:48rem;margin:2rem auto;padding:0 1rem}pre{overflow-x:auto}</style></head><body>"
        f"<h1>{escape(schema['info']['title'])}</h1><p>{escape(schema['info']['summary'])} "
        f'The same for programs: <a href="openapi.json">openapi.json</a>.</p>{paths}'
        f"<h2>What goes in and out</h2>{kinds}</body></html>"
    )
