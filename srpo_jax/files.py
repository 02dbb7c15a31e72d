"""Small files: written whole or not at all, and read with errors that name them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

from srpo_jax.errors import UserError, one_line
from srpo_jax.keepers import TEMPORARY, give_name

MAX_NAME = 200  # bytes of a name; most systems take 255, and some need room for an ending
MAX_JSON = 64 * 2**20  # bytes of a JSON file that is read whole
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # pathlib makes one slash of two


def temporary_name(path: pathlib.Path) -> pathlib.Path:
    """A new name beside `path`, for a file that will be renamed to it when it is whole."""
    # Not the process id alone: in containers on two hosts it may be the same.
    return path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}")


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Lets an OSError of the system name `path`: one of writing to an open file names none, and one
    of a temporary file a name that nobody knows.
    """
    try:
        yield
    except OSError as error:
        named = error.filename
        if error.errno and (named is None or TEMPORARY in os.path.basename(str(named))):
            error.filename = str(path)
            if error.filename2 is not None:  # of a file that could not be renamed
                del error.filename2
        raise


@contextlib.contextmanager
def temporary_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary_name of `path`; whatever happens, no file of that name is left, and an OSError
    names `path`.
    """
    fresh = temporary_name(path)
    with naming(path):
        try:
            yield fresh
        finally:
            with contextlib.suppress(OSError):  # what went wrong before says more
                fresh.unlink(missing_ok=True)


@contextlib.contextmanager
def written_whole(path: pathlib.Path, *, flush: bool = False) -> Iterator[pathlib.Path]:
    """A name to write a file to, which gets the name `path` when the `with` ends, so that no reader
    sees half of it. Its folder is made. After an error `path` is what it was, and nothing is left.

    flush: wait until the contents are on the disk before the file gets its name. Errors: UserError
    when `path` is a folder or a device, which must not be replaced.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is there and is no file, so it is not written: give another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_file(path) as fresh:
        yield fresh
        if flush:
            sync(fresh)
        give_name(fresh, path)


def write_text(path: pathlib.Path, text: str, *, flush: bool = False) -> None:
    """Writes the file whole or not at all; see written_whole."""
    with written_whole(path, flush=flush) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def sync(path: pathlib.Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: pathlib.Path) -> str:
    """The SHA-256 of a file's contents, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_plain_name(name: str, option: str) -> None:
    """Errors: UserError when `name`, given as `option`, cannot be that of one folder."""
    plain = name.strip() and name.isprintable() and pathlib.PurePath(name).name == name
    if not plain or name == ".." or len(os.fsencode(name)) > MAX_NAME:
        shown = one_line(name, 60)
        raise UserError(
            f"{option}={shown}: must be a plain folder name of at most {MAX_NAME} bytes"
        )


def check_writable(folder: pathlib.Path) -> None:
    """Makes the folder, and sees that files can be written there, before hours are spent on what
    belongs into them. Errors: OSError, and UserError when a file stands in its place.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with naming(folder):
        fresh = temporary_name(folder / "probe")
        try:
            fresh.write_bytes(b"x")
        finally:
            fresh.unlink(missing_ok=True)


def check_folder(folder: pathlib.Path) -> None:
    """Errors: UserError when there can be no folder of that name, as a file stands in its place, or
    it is an address (gs://). Writes nothing.
    """
    if ADDRESS.match(str(folder)):
        raise UserError(
            f"{folder} is the address of no folder, and what is written needs one: open a workdir "
            "in a bucket by srpo_jax.open_workdir, or mount the bucket: docs/places.md"
        )
    place = existing_parent(folder)
    if not place.is_dir():
        raise UserError(f"{folder} cannot be made: {place} is a file")


def existing_parent(path: str | os.PathLike) -> pathlib.Path:
    """The nearest place above `path` (or it) that is there."""
    path = pathlib.Path(path).absolute()
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def user_cache(name: str) -> pathlib.Path:
    """This user's folder for what can be made again; nothing is made here. Errors: RuntimeError
    for a user without a home.
    """
    above = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(above, "srpo_jax", name)


def open_file(path: str | os.PathLike) -> BinaryIO:
    """A file opened for reading. Errors: OSError; UserError for what is no regular file: a pipe
    would be waited for without end, and a device read without end.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError(f"{path} is no regular file (but a pipe or a device)")
    return file


def read_file(path: str | os.PathLike, limit: int = sys.maxsize) -> bytes:
    """The contents of a regular file of at most `limit` bytes. Errors: as open_file, and UserError
    for a larger one.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise UserError(f"{path} has {size} bytes, more than the {limit} that are read")
        return file.read()


def parse_json(text: str | bytes) -> Any:
    """What JSON says. Errors: ValueError for anything that is none, also for one nested so deeply
    that it cannot be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object of at most MAX_JSON bytes. Errors: UserError for anything else."""
    try:
        found = parse_json(read_file(path, MAX_JSON).decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {one_line(error, 160)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object")
    return found


def read_lines(path: pathlib.Path) -> list[dict]:
    """Lines of a JSONL file; [] without one. A half-written last line is left out."""
    if not path.is_file():
        return []
    rows = []
    # Not splitlines: a text may hold U+2028, which is a line end for that but not for JSONL.
    try:
        lines = read_file(path).decode("utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}") from None
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line)
        except ValueError:
            if number == len(lines):
                break
            raise UserError(f"{path}:{number} is not JSON") from None
        if isinstance(row, dict):
            rows.append(row)
    return rows


def rows_of(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, row) of the lines of a JSONL file that a person may have written: empty
    lines are passed over. Errors: UserError that names the line that is no JSON object.
    """
    try:
        text = read_file(path).decode("utf-8-sig")  # some editors begin a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not JSON: {one_line(error, 100)}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: not a JSON object")
        yield f"{path}:{number}", row
