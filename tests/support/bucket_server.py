"""A Cloud Storage of one process, on the loopback address: what tensorstore and gcsfs ask of its
JSON API, with generations, preconditions, ranges, checksums and a quota.

    with serving({"bucket-a/model/config.json": b"{}"}) as bucket:
        ...  # gs://bucket-a/model is there, for this process and its children
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import google_crc32c

BUCKET = re.compile(r"/storage/v1/b/([^/]+)(?:/storageLayout)?/?")
OBJECTS = re.compile(r"/storage/v1/b/([^/]+)/o/?")
OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/(.+)")
UPLOAD = re.compile(r"/(?:resumable/)?upload/storage/v1/b/([^/]+)/o/?")
COPY = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)")
PAGE = 100  # names in an answer; the real one gives 1000
TIME = "2026-01-01T00:00:00.000000Z"


class Change(NamedTuple):
    """One that a client made: "put" or "remove", of "BUCKET/NAME"."""

    kind: str
    name: str


class Bucket:
    """Objects by "BUCKET/NAME". refuse: the HTTP status that every request gets instead, if not
    0. quota: bytes of all objects together, beyond which nothing is written. before: is called with
    every change that a client asks for, before it is made, and may raise Lost: then the client gets
    no answer, as one that was cut off.
    """

    def __init__(self, objects: Mapping[str, bytes]):
        self._objects: dict[str, tuple[int, bytes]] = {}
        self._generation = 1_700_000_000_000_000
        self._lock = threading.RLock()
        self.read: list[str] = []  # the names of which contents were asked for and given
        self.changes: list[Change] = []  # that clients made
        self.refuse = 0
        self.asked = 0  # requests of all kinds, answered or not
        self.lists, self.unlisted = 0, set()  # so many were asked for; numbers of those with a 401
        self.quota: int | None = None
        self.before: Callable[[Change], None] = lambda _: None
        for name, data in objects.items():
            self.put(name, data)

    def put(self, name: str, data: bytes) -> int:
        """Writes an object, or another generation of it, whatever there is; returns which."""
        with self._lock:
            self._generation += 1
            self._objects[name] = (self._generation, data)
            return self._generation

    def remove(self, name: str) -> None:
        """Removes an object."""
        del self._objects[name]

    def get(self, name: str) -> tuple[int, bytes] | None:
        """(generation, contents)."""
        return self._objects.get(name)

    def all(self, under: str = "") -> dict[str, bytes]:
        """{"BUCKET/NAME": contents} of those whose names begin so."""
        with self._lock:
            there = sorted(self._objects.items())
            return {name: data for name, (_, data) in there if name.startswith(under)}

    def names_now(self, under: str = "") -> list[str]:
        """The "BUCKET/NAME" of all objects whose names begin so."""
        with self._lock:
            return sorted(name for name in self._objects if name.startswith(under))

    def change(self, name: str, data: bytes | None, only_if: str | None) -> tuple[int, int]:
        """(HTTP status, generation) of what a client asks for: to write, or with None to remove.
        only_if: the generation that must be there, "0" for none.
        """
        change = Change("remove" if data is None else "put", name)
        self.before(change)
        with self._lock:
            there = self._objects.get(name)
            if only_if is not None and int(only_if) != (there[0] if there else 0):
                return 412, 0
            if data is None:
                if there is None:
                    return 404, 0
                self.changes.append(change)
                self.remove(name)
                return 204, 0
            used = sum(len(d) for n, (_, d) in self._objects.items() if n != name)
            if self.quota is not None and used + len(data) > self.quota:
                return 403, 0
            self.changes.append(change)
            return 200, self.put(name, data)

    def names(self, bucket: str, query: Mapping[str, str]) -> dict[str, Any]:
        """The answer to a listing."""
        prefix, start = query.get("prefix", ""), query.get("startOffset", "")
        start = max(start, query.get("pageToken", ""))
        end = query.get("endOffset") or "\U0010ffff"
        behind = query.get("delimiter")
        with self._lock:
            own = [name.removeprefix(f"{bucket}/") for name in sorted(self._objects)]
            there = [name for name in own if f"{bucket}/{name}" in self._objects]
        found = [name for name in there if name.startswith(prefix) and start <= name < end]
        folders = []
        if behind:
            inner = [name for name in found if behind in name[len(prefix) :]]
            found = [name for name in found if behind not in name[len(prefix) :]]
            cut = (prefix + name[len(prefix) :].split(behind)[0] + behind for name in inner)
            folders = sorted(set(cut))
        size = min(PAGE, int(query.get("maxResults") or PAGE))
        items = [self.facts(bucket, name) for name in found[:size]]
        more = {"nextPageToken": found[size]} if len(found) > size else {}
        return {"kind": "storage#objects", "items": items, "prefixes": folders, **more}

    def facts(self, bucket: str, name: str) -> dict[str, Any]:
        """What the API tells of an object."""
        generation, data = self._objects.get(f"{bucket}/{name}") or (0, b"")
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{generation}",
            "name": name,
            "bucket": bucket,
            "size": str(len(data)),
            "generation": str(generation),
            "metageneration": "1",
            "crc32c": checksum(data),
            "updated": TIME,
            "timeCreated": TIME,
            "contentType": "application/octet-stream",
        }


class Lost(Exception):
    """The client is cut off: it gets no answer."""


def checksum(data: bytes) -> str:
    """CRC32C as the API writes it: big-endian, in base 64."""
    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


@contextlib.contextmanager
def serving(objects: Mapping[str, bytes]) -> Iterator[Bucket]:
    """In a `with`: a bucket with these objects, at the address that tensorstore and gcsfs are told
    of."""
    bucket = Bucket(objects)
    handler = type("Handler", (_Handler,), {"bucket": bucket, "uploads": {}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    told = {
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "STORAGE_EMULATOR_HOST": address,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else it asks another API first, for minutes
    }
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield bucket
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer takes 40 ms
    bucket: Bucket
    uploads: dict[str, list[Any]]  # those in several requests: [name, query, contents so far]

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client is gone
            super().handle()

    def _handle(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        data = self._body()
        self.bucket.asked += 1
        try:
            if self.bucket.refuse:
                self._fail(self.bucket.refuse, "no")
            elif uploaded := UPLOAD.fullmatch(url.path):
                self._upload(uploaded[1], query, data)
            elif listed := OBJECTS.fullmatch(url.path):
                self._list(listed[1], query)
            elif BUCKET.fullmatch(url.path):
                self._tell({"kind": "storage#bucket", "location": "US"})
            elif copied := COPY.fullmatch(url.path):
                self._copy(*map(urllib.parse.unquote, copied.groups()), query)
            elif named := OBJECT.fullmatch(url.path):
                self._object(named[1], urllib.parse.unquote(named[2]), query)
            else:
                self._fail(404, "notFound")
        except Lost:
            self.close_connection = True
        except BrokenPipeError:  # the client was killed
            pass

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _handle

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _list(self, bucket: str, query: Mapping[str, str]) -> None:
        self.bucket.lists += 1
        if self.bucket.lists in self.bucket.unlisted:
            self._fail(401, "no")
        else:
            self._tell(self.bucket.names(bucket, query))

    def _upload(self, bucket: str, query: dict[str, str], data: bytes) -> None:
        """In one request: plain, or with a part before it that names it; or in several."""
        number = query.get("upload_id")
        if query.get("uploadType") == "resumable" and number is None:
            name = query.get("name") or json.loads(data)["name"]
            number = str(len(self.uploads))
            self.uploads[number] = [name, query, b""]
            host = self.headers["Host"]
            self._answer(200, headers={"Location": f"http://{host}{self.path}&upload_id={number}"})
            return
        if number is not None:
            upload = self.uploads[number]
            part = re.match(r"bytes (\d+)-", self.headers.get("Content-Range", ""))
            upload[2] = upload[2][: int(part[1]) if part else None] + data  # it may come again
            if self.headers.get("Content-Range", "").endswith("/*"):
                self._answer(308, headers={"Range": f"bytes=0-{len(upload[2]) - 1}"})
                return
            name, query, data = upload
        elif query.get("uploadType") == "multipart":
            mark = re.search(r"boundary=[\"']?([^\"';]+)", self.headers["Content-Type"])
            assert mark is not None
            parts = data.split(b"--" + mark[1].encode())[1:3]
            about, data = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in parts)
            data = data[:-2] if data.endswith(b"\r\n") else data.removesuffix(b"\n")
            name = query.get("name") or json.loads(about)["name"]
        else:
            name = query["name"]
        self._put(bucket, name, data, query)

    def _put(self, bucket: str, name: str, data: bytes, query: Mapping[str, str]) -> None:
        only_if = query.get("ifGenerationMatch")
        status, _ = self.bucket.change(f"{bucket}/{name}", data, only_if)
        if status == 200:
            self._tell(self.bucket.facts(bucket, name))
        else:
            self._fail(status, "quotaExceeded" if status == 403 else "conditionNotMet")

    def _copy(self, bucket: str, name: str, to: str, new: str, query: Mapping[str, str]) -> None:
        found = self.bucket.get(f"{bucket}/{name}")
        if found is None:
            self._fail(404, "notFound")
            return
        status, _ = self.bucket.change(f"{to}/{new}", found[1], query.get("ifGenerationMatch"))
        facts = self.bucket.facts(to, new)
        if status == 200:
            size = {"totalBytesRewritten": facts["size"], "objectSize": facts["size"]}
            self._tell({"done": True, **size, "resource": facts, **facts})
        else:
            self._fail(status, "conditionNotMet")

    def _object(self, bucket: str, key: str, query: Mapping[str, str]) -> None:
        name = f"{bucket}/{key}"
        if self.command == "DELETE":
            status, _ = self.bucket.change(name, None, query.get("ifGenerationMatch"))
            self._answer(204) if status == 204 else self._fail(status, "notFound")
            return
        found = self.bucket.get(name)
        if found is None:
            self._fail(404, "notFound")
            return
        generation, data = found
        told = {"X-Goog-Generation": str(generation), "X-Goog-Hash": f"crc32c={checksum(data)}"}
        if query.get("ifGenerationNotMatch") == str(generation):
            self._answer(304, headers=told)
            return
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            self._fail(412, "conditionNotMet")
            return
        if query.get("alt") != "media" and "/download/" not in self.path:
            self._tell(self.bucket.facts(bucket, key))
            return
        self.bucket.read.append(name)
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            self._answer(200, data, told)
            return
        first, last = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
        if first >= len(data):
            self._fail(416, "requestedRangeNotSatisfiable")
            return
        told["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._answer(206, data[first : last + 1], told)

    def _tell(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, why: str) -> None:
        said = {"code": status, "message": why, "errors": [{"reason": why, "message": why}]}
        self._answer(status, json.dumps({"error": said}).encode())

    def _answer(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
