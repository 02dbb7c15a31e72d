"""A Cloud Storage of one process, on the loopback address: what is asked of its JSON API by those
who read a bucket, with generations, preconditions and ranges. Nothing of it is written to.

    with serving({"bucket-a/model/config.json": b"{}"}) as bucket:
        ...  # gs://bucket-a/model is there, for tensorstore in this process and its children
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

OBJECTS = re.compile(r"/storage/v1/b/([^/]+)/o")
OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/(.+)")
PAGE = 100  # names in an answer; the real one gives 1000


class Bucket:
    """Objects by "BUCKET/NAME". refuse: the HTTP status that every request gets instead, if not
    0.
    """

    def __init__(self, objects: Mapping[str, bytes]):
        self._objects: dict[str, tuple[int, bytes]] = {}
        self._generation = 1_700_000_000_000_000
        self.read: list[str] = []  # the names of which contents were asked for and given
        self.refuse = 0
        self.lists, self.unlisted = 0, set()  # so many were asked for; numbers of those with a 401
        for name, data in objects.items():
            self.put(name, data)

    def put(self, name: str, data: bytes) -> None:
        """Writes an object, or another generation of it."""
        self._generation += 1
        self._objects[name] = (self._generation, data)

    def remove(self, name: str) -> None:
        """Removes an object."""
        del self._objects[name]

    def get(self, name: str) -> tuple[int, bytes] | None:
        """(generation, contents)."""
        return self._objects.get(name)

    def names(self, bucket: str, query: Mapping[str, str]) -> dict[str, Any]:
        """The answer to a listing."""
        prefix, start = query.get("prefix", ""), query.get("startOffset", "")
        start = max(start, query.get("pageToken", ""))
        end = query.get("endOffset", "\U0010ffff")
        own = (name.removeprefix(f"{bucket}/") for name in sorted(self._objects))
        there = (name for name in own if f"{bucket}/{name}" in self._objects)
        found = [name for name in there if name.startswith(prefix) and start <= name < end]
        items = [{"name": name, "bucket": bucket} for name in found[:PAGE]]
        more = {"nextPageToken": found[PAGE]} if len(found) > PAGE else {}
        return {"kind": "storage#objects", "items": items, **more}


@contextlib.contextmanager
def serving(objects: Mapping[str, bytes]) -> Iterator[Bucket]:
    """In a `with`: a bucket with these objects, at the address that tensorstore is told of."""
    bucket = Bucket(objects)
    handler = type("Handler", (_Handler,), {"bucket": bucket})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    told = {
        "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
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
    bucket: Bucket

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if self.bucket.refuse:
            self._answer(self.bucket.refuse, json.dumps({"error": {"message": "no"}}).encode())
        elif listed := OBJECTS.fullmatch(url.path):
            self.bucket.lists += 1
            if self.bucket.lists in self.bucket.unlisted:
                self._answer(401, json.dumps({"error": {"message": "no"}}).encode())
                return
            self._answer(200, json.dumps(self.bucket.names(listed[1], query)).encode())
        elif named := OBJECT.fullmatch(url.path):
            self._object(f"{named[1]}/{urllib.parse.unquote(named[2])}", query)
        else:
            self._answer(404)

    def _object(self, name: str, query: Mapping[str, str]) -> None:
        found = self.bucket.get(name)
        if found is None:
            self._answer(404)
            return
        generation, data = found
        told = {"X-Goog-Generation": str(generation)}
        if query.get("ifGenerationNotMatch") == str(generation):
            self._answer(304, headers=told)
            return
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            self._answer(412)
            return
        self.bucket.read.append(name)
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            self._answer(200, data, told)
            return
        first, last = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
        if first >= len(data):
            self._answer(416)
            return
        told["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._answer(206, data[first : last + 1], told)

    def _answer(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
