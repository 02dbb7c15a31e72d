"""What lies in a bucket, gs://BUCKET/PATH, and is only read: the policy, records with their
pictures, trees with their verdicts. It is fetched into this host's cache, and read from there.

A file is fetched once: afterwards every start asks for each of them whether the bucket has another
generation of it. Within a process nothing is asked twice, so a run sees one state of the bucket.
tensorstore, which comes with orbax, speaks to the bucket, with the credentials that are Google's
default on the machine. docs/places.md says what takes such addresses.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import pathlib
import posixpath
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from srpo_jax.console import say
from srpo_jax.errors import RunFailure, UserError, one_line
from srpo_jax.files import parse_json, read_json, temporary_file, user_cache, write_json

# Alone, or one of several: "a,gs://b/c", "NAME=gs://b/c". What has white space is a text.
ADDRESS = re.compile(r"(?:\S*[,=])?([A-Za-z][A-Za-z0-9+.-]*://[^\s,]*)\S*")
URL = re.compile(r"gs://([a-z0-9][-_.a-z0-9]{1,220}[a-z0-9])/([^\x00-\x1f\x7f?#*\[\]]+)")
# Weights in formats that are never read: not worth the way.
OTHER_WEIGHTS = tuple(".bin .pt .pth .gguf .msgpack .h5 .onnx .ckpt .tflite".split())
LARGE, PIECE = (".safetensors", ".array_record"), 2**26  # names and bytes: read in pieces
THREADS = 16  # files that are asked for at once
RETRIES = 8  # of a request, each after twice the time
IMPORT = "import.json"  # beside imported data: whose it is
LOCK = ".lock"  # a file of the cache
STATES = ".generations"  # folder of the cache, beside those of the buckets


def is_url(spec: str) -> bool:
    """Whether it is meant for the address of something in a bucket."""
    return spec.startswith("gs://")


def address_in(value: str) -> str:
    """What in a setting is no file or folder but an address (gs://, https://); "" for none."""
    found = ADDRESS.fullmatch(value)
    return found[1] if found else ""


def mirror(url: str) -> pathlib.Path:
    """Where the cache has what the address names, whether or not it was fetched. Errors: UserError
    for one that is none.
    """
    bucket, name = bucket_and_name(url)
    return _cache() / bucket / name


def local_folder(spec: str, *, weights: bool = True) -> str:
    """The folder that a setting names, as it is, or fetched: see fetch_folder."""
    return str(fetch_folder(spec, weights=weights)) if is_url(spec) else spec


@functools.cache
def fetch_folder(url: str, *, weights: bool = True) -> pathlib.Path:
    """The folder of the cache with all objects behind gs://BUCKET/PATH/. weights: also those of a
    model. What the bucket has no more is removed from it.

    Errors: UserError when there is nothing, or it may not be read; RunFailure when it changes
    meanwhile, or the bucket does not answer.
    """
    bucket, name = bucket_and_name(url)
    names = _names_under(bucket, f"{name}/")
    _tell(url)
    if not names:
        raise UserError(f"{url}: there is no object below it, or it may not be listed from here")
    if not weights:
        names = [each for each in names if not each.endswith(LARGE)]
    _fetch(bucket, [each for each in names if not each.endswith(OTHER_WEIGHTS)])
    folder = mirror(url)
    if weights:
        _remove_others(bucket, name, set(names))
    return folder


@functools.cache
def fetch_records(url: str) -> pathlib.Path:
    """The JSONL of records in the cache, with the pictures that it names beside it. What is wrong
    with it whoever reads it will say. Errors: as fetch_folder.
    """
    bucket, name = bucket_and_name(url)
    _tell(url)
    if not _fetch(bucket, [name]):
        raise UserError(f"{url}: there is no such object, or it may not be read from here")
    above = name[: name.rfind("/") + 1]
    _fetch(bucket, sorted({above + own for own in (IMPORT, *_pictures(mirror(url)))}))
    return mirror(url)


@functools.cache
def fetch_trees(url: str) -> pathlib.Path:
    """The folder of trees in the cache, with the verdicts that lie beside it in the bucket. Errors:
    as fetch_folder.
    """
    folder = fetch_folder(url)
    bucket, name = bucket_and_name(url)
    above = name[: name.rfind("/") + 1]
    verdicts = _names_under(bucket, f"{above}verdicts/")
    _fetch(bucket, [*verdicts, f"{above}{IMPORT}"])
    _remove_others(bucket, f"{above}verdicts", set(verdicts))
    return folder


def bucket_and_name(url: str) -> tuple[str, str]:
    """The two parts of an address. Errors: UserError for one that is none."""
    found = URL.fullmatch(url)
    name = found[2].rstrip("/") if found else ""
    if not found or not _is_safe(name):
        raise UserError(f"{one_line(url, 200)}: no address of a bucket; write gs://BUCKET/PATH")
    return found[1], name


def _is_safe(name: str) -> bool:
    """Whether an object's name is one that a file may have, below the cache's folder."""
    parts = name.split("/")
    plain = all(part and part not in (".", "..") and len(part) <= 255 for part in parts)
    return plain and name.isprintable() and "\\" not in name


def _open(bucket: str) -> Any:
    import tensorstore as ts  # slow to import, and needed for buckets alone

    context = ts.Context({"gcs_request_retries": {"max_retries": RETRIES}})
    return ts.KvStore.open({"driver": "gcs", "bucket": bucket}, context=context).result()


def _told(bucket: str, name: str, error: Exception) -> Exception:
    """A failure of tensorstore in one line. What is forbidden is the user's to mend."""
    text = one_line(str(error).partition("[")[0] or type(error).__name__, 160)
    kind = UserError if "PERMISSION_DENIED" in text or "UNAUTHENTICATED" in text else RunFailure
    return kind(f"gs://{bucket}/{name} cannot be read: {text}")


def _names_under(bucket: str, prefix: str) -> list[str]:
    """Names of objects, sorted, without those that stand for a folder. Errors: UserError for a name
    that no file can have.

    tensorstore (0.1.86) gives what it has by then when a page of the list is refused. So it is
    asked for what is behind the last one, until that is nothing twice; and all that is listed is
    read afterwards, which a refusal that lasts fails.
    """
    import tensorstore as ts

    store, found, rest = _open(bucket), [], prefix.encode()
    behind, nothing = prefix[:-1].encode() + b"0", 0  # "0" follows "/"
    try:
        while nothing < 2:
            more = sorted(store.list(ts.KvStore.KeyRange(rest, behind)).result())
            nothing = 0 if more else nothing + 1
            found += more
            rest = more[-1] + b"\0" if more else rest
        names = [name for name in map(bytes.decode, found) if not name.endswith("/")]
    except ValueError as error:
        raise _told(bucket, prefix, error) from None
    for name in names:
        if not _is_safe(name):
            raise UserError(f"gs://{bucket}/{one_line(name, 120)}: no file can have this name")
    return names


def _fetch(bucket: str, names: Iterable[str]) -> int:
    """Brings files of the cache up to date; returns how many of the names the bucket has. A file of
    one that it has not is removed.
    """
    store = _open(bucket)
    with _alone(), ThreadPoolExecutor(THREADS, "fetch") as threads:
        return sum(threads.map(lambda name: _fetch_one(store, bucket, name), names))


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Of several processes of this host one fetches, and the others find it done. Where the cache
    lies on a system without locks each fetches for itself.
    """
    path = _cache() / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _tell(url: str) -> None:
    """What takes minutes is said."""
    if not mirror(url).exists():
        say(f"fetching {url} into {mirror(url)}", to=sys.stderr)


def _fetch_one(store: Any, bucket: str, name: str) -> bool:
    path, state = _cache() / bucket / name, _state(bucket, name)
    try:
        said, facts = read_json(state), path.stat()
        known = bytes.fromhex(said["generation"])
        if [facts.st_size, facts.st_mtime_ns] != said["file"]:
            known = None
    except (OSError, UserError, ValueError, TypeError, KeyError):
        known = None
    found, tries = None, 3
    try:
        while found is None and tries:
            found, tries = _read(store, name, path, state, known), tries - 1
    except ValueError as error:
        raise _told(bucket, name, error) from None
    if found is None:
        raise RunFailure(f"gs://{bucket}/{name} was written again while it was read: start again")
    return found


def _read(
    store: Any, name: str, path: pathlib.Path, state: pathlib.Path, known: bytes | None
) -> bool | None:
    """Writes an object to `path` unless its generation is `known`, and to `state` which it is, and
    of which file. Returns whether there is one; None when it was written meanwhile.
    """
    parts = _parts_of(store, name, known)
    first = next(parts)
    if first.state == "unspecified":
        return True
    if first.state == "missing":
        for each in (state, path):
            each.unlink(missing_ok=True)
        return False
    generation = first.stamp.generation
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_file(path) as fresh:
        with open(fresh, "wb") as file:
            file.write(first.value)
            for part in parts:
                if part.state != "value" or part.stamp.generation != generation:
                    return None
                file.write(part.value)
        facts = fresh.stat()  # another process may put its own in place before the next line
        os.replace(fresh, path)
    file = [facts.st_size, facts.st_mtime_ns]
    write_json(state, {"generation": generation.hex(), "file": file})
    return True


def _parts_of(store: Any, name: str, known: bytes | None) -> Iterator[Any]:
    """The object in tensorstore's results of reading it; the sizes of objects it does not tell."""
    if not name.endswith(LARGE):
        yield store.read(name, if_not_equal=known).result()
        return
    start, state = 0, "value"
    while state == "value":
        of = {"if_not_equal": None if start else known}
        try:
            part = store.read(name, byte_range=slice(start, start + PIECE), **of).result()
        except ValueError as error:  # less than a piece is left
            if "OUT_OF_RANGE" not in str(error):
                raise
            try:
                yield store.read(name, byte_range=slice(start, None), **of).result()
            except ValueError as error:  # nothing is
                if "OUT_OF_RANGE" not in str(error):
                    raise
            return
        yield part
        start, state = start + PIECE, part.state


def _remove_others(bucket: str, folder: str, names: Collection[str]) -> None:
    """Removes from the cache what was fetched from this folder and is none of the names."""
    states = _cache() / STATES / bucket
    for state in sorted((states / folder).rglob("*.json")):
        name = state.relative_to(states).as_posix().removesuffix(".json")
        if name not in names:
            for path in (state, _cache() / bucket / name):
                path.unlink(missing_ok=True)


def _state(bucket: str, name: str) -> pathlib.Path:
    """Where it stands which generation of an object was fetched."""
    return _cache() / STATES / bucket / f"{name}.json"


def _cache() -> pathlib.Path:
    try:
        return user_cache("buckets")
    except RuntimeError:
        raise UserError(
            "what lies in a bucket is fetched into the user's cache, and this user has no home: "
            "name a folder in the environment variable XDG_CACHE_HOME"
        ) from None


def _pictures(path: pathlib.Path) -> Iterator[str]:
    """The names of pictures in a JSONL of records, as far as they can be those of objects."""
    with open(path, "rb") as file:
        for line in file:
            try:
                row = parse_json(line)
            except ValueError:
                continue
            names = row.get("images") if isinstance(row, dict) else None
            for name in names if isinstance(names, list) else ():
                if isinstance(name, str) and _is_safe(plain := posixpath.normpath(name)):
                    yield plain
