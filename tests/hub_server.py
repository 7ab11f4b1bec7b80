"""A hub on the loopback interface: the part of its file API that the clients read from.

    with HubServer() as hub:
        commit = hub.add("models", "owner/name", folder)
        ...  # HF_ENDPOINT=hub.url

Written after what huggingface_hub 2.4, transformers 5.23 and datasets 5.2 ask for. As on the hub,
weights and parquet files are redirected to another address, and an unknown id is answered with 401.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
import urllib.parse
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LARGE_FILES = (".bin", ".safetensors", ".parquet", ".model")
PARQUET_BRANCH = "refs/convert/parquet"


@dataclass(frozen=True)
class Snapshot:
    """A folder as one commit of one repository."""

    kind: str  # "models" or "datasets"
    name: str
    commit: str
    folder: Path

    def files(self) -> dict[str, Path]:
        found = (p for p in sorted(self.folder.rglob("*")) if p.is_file())
        return {p.relative_to(self.folder).as_posix(): p for p in found}


class HubServer:
    """Serves folders as repositories while the `with` block lasts.

    Attributes:
        url: of the server, for HF_ENDPOINT.
        requests: "METHOD path -> status" of each answer so far.
        delays: seconds to wait before the next answers, one each.
        failing: a file that is answered with 403; None for none.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.delays: list[float] = []
        self.failing: str | None = None
        self._snapshots: dict[tuple[str, str], dict[str, Snapshot]] = {}
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Another host, as on the hub: its clients treat redirects within one host differently.
        self.files_url = f"http://localhost:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port, for good; twice does no harm."""
        self._server.shutdown()
        self._server.server_close()

    def add(self, kind: str, name: str, folder: Path, revision: str = "main") -> str:
        """Serve a folder and return the commit it is served as."""
        commit = hashlib.sha1(f"{kind}/{name}@{revision}".encode()).hexdigest()
        snapshot = Snapshot(kind, name, commit, folder)
        self._snapshots.setdefault((kind, name), {}).update({revision: snapshot, commit: snapshot})
        return commit

    def find(self, kind: str, name: str, revision: str) -> Snapshot:
        if (kind, name) not in self._snapshots:
            raise _RefusedError(401, "RepoNotFound")
        revisions = self._snapshots[kind, name]
        if revision not in revisions:
            raise _RefusedError(404, "RevisionNotFound")
        return revisions[revision]

    def blob(self, digest: str) -> Path:
        for revisions in self._snapshots.values():
            for snapshot in revisions.values():
                for path in snapshot.files().values():
                    if _digest(path) == digest:
                        return path
        raise _RefusedError(404, "EntryNotFound")


class _RefusedError(Exception):
    def __init__(self, status: int, code: str) -> None:
        self.status, self.code = status, code


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _entry(name: str, path: Path) -> dict[str, object]:
    """A file as the tree and paths-info answers describe it."""
    digest, size = _digest(path), path.stat().st_size
    entry: dict[str, object] = {"type": "file", "path": name, "size": size, "oid": digest[:40]}
    if path.suffix in LARGE_FILES:
        entry["lfs"] = {"oid": digest, "size": size, "pointerSize": 130}
    return entry


def _tree(snapshot: Snapshot, below: str, recursive: bool) -> list[dict[str, object]]:
    """The entries under a folder of a repository."""
    prefix = f"{below}/" if below else ""
    files = {n: p for n, p in snapshot.files().items() if n.startswith(prefix)}
    if not files:
        raise _RefusedError(404, "EntryNotFound")
    folders: dict[str, None] = {}
    entries = []
    for name, path in files.items():
        parts = name.removeprefix(prefix).split("/")
        if recursive or len(parts) == 1:
            entries.append(_entry(name, path))
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            folders[prefix + "/".join(parts[:depth])] = None
    return [
        {"type": "directory", "path": f, "size": 0, "oid": hashlib.sha1(f.encode()).hexdigest()}
        for f in folders
    ] + entries


def _info(snapshot: Snapshot, with_sizes: bool) -> dict[str, object]:
    return {
        "_id": "0" * 24,
        "id": snapshot.name,
        "modelId": snapshot.name,
        "sha": snapshot.commit,
        "private": False,
        "gated": False,
        "disabled": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "lastModified": "2023-11-22T00:00:00.000Z",
        "siblings": [
            {"rfilename": name} | ({"size": path.stat().st_size} if with_sizes else {})
            for name, path in snapshot.files().items()
        ],
    }


class _Server(ThreadingHTTPServer):
    """A client that hangs up before its answer is no fault of this side: nothing on stderr."""

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            time.sleep(hub.delays.pop(0) if hub.delays else 0)
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urllib.parse.urlsplit(self.path)
            try:
                self._route(url.path.strip("/").split("/"), urllib.parse.parse_qs(url.query))
            except _RefusedError as no:
                headers = {"X-Error-Code": no.code, "X-Error-Message": no.code}
                self._send(no.status, json.dumps({"error": no.code}).encode(), headers)

        def _route(self, parts: list[str], query: dict[str, list[str]]) -> None:
            parts = [urllib.parse.unquote(part) for part in parts]
            if parts[0] == "blobs" and len(parts) == 2:
                return self._send(200, hub.blob(parts[1]).read_bytes(), {})
            if parts[0] == "api" and parts[1:2] in (["models"], ["datasets"]) and len(parts) > 3:
                return self._api(parts[1], "/".join(parts[2:4]), parts[4:], query)
            kind = "datasets" if parts[0] == "datasets" else "models"
            parts = parts[1:] if kind == "datasets" else parts
            if len(parts) > 4 and parts[2] == "resolve":
                snapshot = hub.find(kind, "/".join(parts[:2]), parts[3])
                return self._file(snapshot, "/".join(parts[4:]))
            raise _RefusedError(404, "NotFound")

        def _api(self, kind: str, name: str, rest: list[str], query: dict[str, list[str]]) -> None:
            what = rest[0] if rest else "revision"
            revision = rest[1] if len(rest) > 1 else "main"
            if what not in ("revision", "tree", "paths-info"):
                raise _RefusedError(404, "NotFound")
            snapshot = hub.find(kind, name, revision)
            if what == "revision":
                return self._json(_info(snapshot, "blobs" in query))
            if what == "tree":
                recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
                return self._json(_tree(snapshot, "/".join(rest[2:]), recursive))
            form = urllib.parse.parse_qs(self.body.decode())
            asked = form.get("paths", [])
            if self.headers.get("Content-Type", "").startswith("application/json"):
                asked = json.loads(self.body)["paths"]
            files = snapshot.files()
            return self._json([_entry(n, files[n]) for n in asked if n in files])

        def _file(self, snapshot: Snapshot, name: str) -> None:
            if name == hub.failing:
                return self._send(403, b"not for you", {})
            path = snapshot.files().get(name)
            if path is None:
                headers = {"X-Repo-Commit": snapshot.commit, "X-Error-Code": "EntryNotFound"}
                return self._send(404, b"Entry not found", headers)
            digest = _digest(path)
            headers = {"X-Repo-Commit": snapshot.commit, "ETag": f'"{digest[:40]}"'}
            if path.suffix not in LARGE_FILES:
                return self._send(200, path.read_bytes(), headers)
            headers |= {
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(path.stat().st_size),
                "Location": f"{hub.files_url}/blobs/{digest}",
            }
            return self._send(302, b"", headers)

        def _json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            hub.requests.append(f"{self.command} {self.path} -> {status}")
            asked = self.headers.get("Range")
            if status == 200 and asked:  # "bytes=3-", "bytes=3-7"
                start, _, end = asked.removeprefix("bytes=").partition("-")
                total = len(body)
                last = min(int(end or total), total - 1)
                body, status = body[int(start) : last + 1], 206
                headers = headers | {"Content-Range": f"bytes {start}-{last}/{total}"}
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    return Handler
