"""An object store in memory with two doors: Google's HTTP interface, and a backend of epath.

tensorstore (arrays) comes in by HTTP, as gcsfs does where it is installed; `mount` opens the other
door, for everything that goes through epath, without gcsfs. Objects are put whole or not at all;
there is no rename and no append, and a folder is there while something is in it.
"""

from __future__ import annotations

import email.parser
import fnmatch
import io
import json
import os
import threading
import time
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from etils.epath import backend, gpath, stat_utils

from polaris_jax.system import files


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        pass  # a client that was killed, or has read enough


class Bucket:
    """All buckets of a store, by `BUCKET/NAME`.

    Attributes:
        objects: contents with their generation, by name.
        url: of the HTTP door.
        on_change: called with "put" or "delete" and the name before each change; may raise.
    """

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.on_change: Callable[[str, str], None] = lambda change, name: None
        self._lock, self._generation = threading.RLock(), 0
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Shuts the HTTP door."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def put(self, name: str, data: bytes, *, generation: int | None = None) -> int | None:
        """Stores an object; None when it is not of the `generation` that was asked for."""
        with self._lock:
            if generation is not None and self.objects.get(name, (b"", 0))[1] != generation:
                return None
            self.on_change("put", name)
            self._generation += 1
            self.objects[name] = data, self._generation
            return self._generation

    def delete(self, name: str) -> bool:
        """Removes an object; False when there is none."""
        with self._lock:
            if name not in self.objects:
                return False
            self.on_change("delete", name)
            del self.objects[name]
            return True

    def names(self, prefix: str = "") -> list[str]:
        """Sorted names of the objects under a prefix."""
        with self._lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def read(self, name: str) -> bytes:
        """An object's content."""
        return self.objects[name][0]


def environment(bucket: Bucket) -> dict[str, str]:
    """What sends tensorstore and gcsfs to the HTTP door, without credentials."""
    return {
        "TENSORSTORE_GCS_HTTP_URL": bucket.url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "test",
        "STORAGE_EMULATOR_HOST": bucket.url,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask another server of Google's
    }


def mount(monkeypatch: pytest.MonkeyPatch, bucket: Bucket) -> None:
    """Lets epath's `gs://` and `s3://` mean `bucket` for the length of a test."""
    for scheme in ("gs", "s3"):
        monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, scheme, EpathDoor(bucket))
        monkeypatch.setitem(files._STORES, scheme, ("json", ""))  # gcsfs need not be installed


class _Upload(io.BytesIO):
    def __init__(self, done: Callable[[bytes], object]) -> None:
        super().__init__()
        self._done = done

    def close(self) -> None:
        if not self.closed:
            self._done(self.getvalue())
        super().close()


class EpathDoor(backend._OsPathBackend):
    """A backend of epath over a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def open(self, path, mode):
        name = _name(path)
        if mode == "rb":
            if name not in self._bucket.objects:
                raise FileNotFoundError(2, "no such object", str(path))
            return io.BytesIO(self._bucket.read(name))
        if mode == "r":
            return io.TextIOWrapper(self.open(path, "rb"), encoding="utf-8")
        if mode == "wb":
            return _Upload(lambda data: self._bucket.put(name, data))
        if mode == "w":
            return io.TextIOWrapper(self.open(path, "wb"), encoding="utf-8")
        return pytest.fail(f"{path} is opened with mode {mode}")

    def exists(self, path):
        return _name(path) in self._bucket.objects or self.isdir(path)

    def isdir(self, path):
        return bool(self._bucket.names(f"{_name(path)}/"))

    def listdir(self, path):
        if names := self._inside(path):
            return names
        raise FileNotFoundError(2, "no such folder", str(path))  # as gcsfs: none is empty

    def _inside(self, path):
        prefix = f"{_name(path)}/"
        return sorted({n.removeprefix(prefix).split("/")[0] for n in self._bucket.names(prefix)})

    def glob(self, path):
        folder, _, pattern = os.fspath(path).rpartition("/")
        return [f"{folder}/{n}" for n in self._inside(folder) if fnmatch.fnmatchcase(n, pattern)]

    def walk(self, top, *, top_down=True, on_error=None):
        return pytest.fail(f"{top} is walked: gcsfs gives paths without their scheme")

    def makedirs(self, path, *, exist_ok=False, mode=None):
        return None

    mkdir = makedirs

    def rmtree(self, path):
        names = self._bucket.names(f"{_name(path)}/")
        if not names:
            raise FileNotFoundError(2, "no such folder", str(path))
        for name in names:
            self._bucket.delete(name)

    def remove(self, path):
        if not self._bucket.delete(_name(path)):
            raise FileNotFoundError(2, "no such object", str(path))

    def stat(self, path):
        is_folder = _name(path) not in self._bucket.objects
        length = 0 if is_folder else len(self._bucket.read(_name(path)))
        return stat_utils.StatResult(is_directory=is_folder, length=length, mtime=int(time.time()))

    def rename(self, path, dst):
        pytest.fail(f"{path} is renamed")

    replace = rename


def _name(path) -> str:
    return os.fspath(path).partition("://")[2].rstrip("/")


def _handler(bucket: Bucket) -> type[BaseHTTPRequestHandler]:
    uploads: dict[str, tuple[str, bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format, *args):
            pass

        def _parts(self) -> tuple[list[str], dict[str, str]]:
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
            return [urllib.parse.unquote(part) for part in url.path.split("/")[1:]], query

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            if len(body) < length:  # its sender was killed: a store keeps no part of an object
                raise ConnectionError("the sender is gone")
            return body

        def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _send_json(self, value: object, status: int = 200, **headers: str) -> None:
            kind = "application/json; charset=UTF-8"
            self._send(status, json.dumps(value).encode(), Content_Type=kind, **headers)

        def _send_missing(self) -> None:
            self._send_json({"error": {"code": 404, "message": "Not Found"}}, 404)

        def do_GET(self) -> None:
            self._body()
            parts, query = self._parts()
            parts = parts[1:] if parts[0] == "download" else parts
            if parts[:3] != ["storage", "v1", "b"]:
                self._send_missing()
            elif len(parts) == 4:
                self._send_json({"kind": "storage#bucket", "name": parts[3], "id": parts[3]})
            elif len(parts) == 5:
                self._send_json(_listing(bucket, parts[3], query))
            else:
                self._object(f"{parts[3]}/{'/'.join(parts[5:])}", query)

        def _object(self, name: str, query: dict[str, str]) -> None:
            if name not in bucket.objects:
                self._send_missing()
                return
            data, generation = bucket.objects[name]
            if query.get("ifGenerationNotMatch") == str(generation):
                self._send(304)
            elif query.get("ifGenerationMatch", str(generation)) != str(generation):
                self._send(412)
            elif query.get("alt") != "media":
                self._send_json(_metadata(bucket, name))
            else:
                self._content(data, generation)

        def _content(self, data: bytes, generation: int) -> None:
            facts = {"x_goog_generation": str(generation), "ETag": f'"{generation}"'}
            wanted = self.headers.get("Range")
            if not wanted:
                self._send(200, data, **facts)
                return
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start = int(first) if first else len(data) - int(last)
            stop = min(int(last) + 1, len(data)) if first and last else len(data)
            if start >= len(data):
                self._send(416, Content_Range=f"bytes */{len(data)}", **facts)
                return
            span = f"bytes {start}-{stop - 1}/{len(data)}"
            self._send(206, data[start:stop], Content_Range=span, **facts)

        def do_POST(self) -> None:
            parts, query = self._parts()
            body = self._body()
            if parts[0] == "batch":
                self._batch(body)
                return
            kind = query.get("uploadType")
            if parts[:3] != ["upload", "storage", "v1"] or kind is None:
                self._send_missing()
            elif kind == "media":
                self._put(f"{parts[4]}/{query['name']}", body, query)
            elif kind == "multipart":
                facts, content = _multipart(self.headers["Content-Type"], body)
                self._put(f"{parts[4]}/{json.loads(facts)['name']}", content, query)
            elif "upload_id" in query:
                self._chunk(query["upload_id"], body)
            else:
                name = query.get("name") or json.loads(body)["name"]
                token = str(len(uploads))
                uploads[token] = f"{parts[4]}/{name}", b""
                where = f"{bucket.url}{urllib.parse.urlsplit(self.path).path}"
                where += f"?uploadType=resumable&upload_id={token}"
                self._send(200, Location=where)

        def do_PUT(self) -> None:
            self._chunk(self._parts()[1]["upload_id"], self._body())

        def _chunk(self, token: str, body: bytes) -> None:
            name, so_far = uploads[token]
            uploads[token] = name, so_far + body
            if self.headers.get("Content-Range", "/0").endswith("*"):
                self._send(308, Range=f"bytes=0-{len(so_far + body) - 1}")
            else:
                self._put(name, so_far + body, {})

        def _put(self, name: str, data: bytes, query: dict[str, str]) -> None:
            wanted = query.get("ifGenerationMatch")
            try:
                stored = bucket.put(name, data, generation=int(wanted) if wanted else None)
            except OSError as error:
                self._send_json({"error": {"code": 403, "message": str(error)}}, 403)
                return
            if stored is None:
                self._send_json({"error": {"code": 412, "message": "conditionNotMet"}}, 412)
            else:
                self._send_json(_metadata(bucket, name))

        def do_DELETE(self) -> None:
            self._body()
            parts, _ = self._parts()
            if bucket.delete(f"{parts[3]}/{'/'.join(parts[5:])}"):
                self._send(204)
            else:
                self._send_missing()

        def _batch(self, body: bytes) -> None:
            kind, answers = self.headers["Content-Type"], []
            for part in _message(kind, body).get_payload():
                method, path, _ = part.get_payload().split("\n")[0].split(" ")
                assert method == "DELETE"
                pieces = [urllib.parse.unquote(p) for p in path.split("/")[1:]]
                there = bucket.delete(f"{pieces[3]}/{'/'.join(pieces[5:])}")
                status = "204 No Content" if there else "404 Not Found"
                answers.append(
                    "--answer\r\nContent-Type: application/http\r\n"
                    f"Content-ID: <response-{part['Content-ID'].strip('<>')}>\r\n\r\n"
                    f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n\r\n"
                )
            text = "".join(answers) + "--answer--\r\n"
            self._send(200, text.encode(), Content_Type="multipart/mixed; boundary=answer")

    return Handler


def _message(content_type: str, body: bytes):
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    return email.parser.BytesParser().parsebytes(head + body)


def _multipart(content_type: str, body: bytes) -> tuple[bytes, bytes]:
    """The two parts of an upload; by hand, since e-mail's parser takes liberties with line ends."""
    mark = b"--" + content_type.partition("boundary=")[2].strip("\"'").encode()
    _, facts, content = body.split(mark)[:3]
    parts = [
        part.lstrip(b"\r\n").split(b"\n\n" if b"\r\n\r\n" not in part else b"\r\n\r\n", 1)[1]
        for part in (facts, content)
    ]
    trimmed = [part[:-2] if part.endswith(b"\r\n") else part[:-1] for part in parts]
    return trimmed[0], trimmed[1]


def _metadata(bucket: Bucket, name: str) -> dict[str, str]:
    data, generation = bucket.objects[name]
    owner, _, rest = name.partition("/")
    stamp = "2026-01-01T00:00:00.000Z"
    return {
        "kind": "storage#object",
        "id": f"{name}/{generation}",
        "name": rest,
        "bucket": owner,
        "generation": str(generation),
        "metageneration": "1",
        "size": str(len(data)),
        "contentType": "application/octet-stream",
        "timeCreated": stamp,
        "updated": stamp,
        "mediaLink": f"{bucket.url}/download/storage/v1/b/{owner}/o/"
        f"{urllib.parse.quote(rest, safe='')}?alt=media",
    }


def _listing(bucket: Bucket, owner: str, query: dict[str, str]) -> dict[str, object]:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    start, end = query.get("startOffset", ""), query.get("endOffset", "")
    items, folders = [], set()
    for full in bucket.names(f"{owner}/{prefix}"):
        name = full.partition("/")[2]
        if name < start or (end and name >= end):
            continue
        rest = name.removeprefix(prefix)
        if delimiter and delimiter in rest:
            folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
        else:
            items.append(_metadata(bucket, full))
    if limit := query.get("maxResults"):
        items = items[: int(limit)]
    return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}
