"""Reasoning-tree records on disk: msgpack in ArrayRecord shards, each with a manifest.

Every record is checked against its schema (tree_schema.py) when it is written and when it is read:
data that fails it is never trained on.

A shard is written to a temporary file, flushed to disk and renamed; its manifest comes last.
So a shard with a manifest is whole, and one without is not done and will be written again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import msgpack
import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from srpo_jax.data_pipelines.json_parts import (
    MANIFEST_SUFFIX,
    MAX_MANIFEST,
    manifest_path,
)
from srpo_jax.data_pipelines.records import RecordError
from srpo_jax.data_pipelines.tree_parts import missing_first, newest
from srpo_jax.data_pipelines.tree_schema import OldFormat, OtherFormat, check_tree
from srpo_jax.errors import RunFailure, UserError, one_line
from srpo_jax.files import (
    file_sha256,
    parse_json,
    read_file,
    sync,
    temporary_file,
    write_text,
)
from srpo_jax.keepers import give_name, remove

RELEASE = "release.json"  # in a folder that `srpo data release` wrote
SUFFIX = ".array_record"
MAX_SHARD = 2**50  # bytes; what says more is no manifest


def shard_path(
    folder: str | os.PathLike, index: int, count: int, stem: str = "trees"
) -> pathlib.Path:
    """FOLDER/trees-00003-of-00016.array_record: name order is index order."""
    return pathlib.Path(folder) / f"{stem}-{index:05d}-of-{count:05d}{SUFFIX}"


def write_shard(path: str | os.PathLike, records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Write one shard and then its manifest, which is returned:

    {"count", "bytes", "sha256" of the file, "fingerprint" of the records' contents}.

    Every record is checked in the form in which it will be read; ints may be numpy's. Several
    processes and hosts may write the same shard at once: each file appears whole, and a shard that
    is done with the same contents stays done throughout.
    Raises RecordError for one that breaks the schema and RunFailure for a disk that is full, and
    then leaves everything as it was.
    """
    path = pathlib.Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"a shard's name ends with {SUFFIX}: {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    sealed_by = manifest_path(path)
    content, count = hashlib.sha256(), 0
    with temporary_file(path) as fresh:
        with _writer(fresh, path) as write:
            for count, record in enumerate(records, 1):
                data = cast(bytes, msgpack.packb(record, use_bin_type=True, default=_plain))
                _unpack(data, path, count - 1)
                content.update(len(data).to_bytes(8, "little") + data)
                write(data)
        sync(fresh)
        manifest = {
            "count": count,
            "bytes": fresh.stat().st_size,
            "sha256": file_sha256(fresh),
            "fingerprint": content.hexdigest(),
        }
        there = _manifest_there(path)
        if (
            there
            and there["fingerprint"] == manifest["fingerprint"]
            and shard_done(path, verify=True)
        ):
            return there
        if there and there["sha256"] != manifest["sha256"]:
            remove(sealed_by)  # it would describe another file than there is
        give_name(fresh, path)
    write_text(sealed_by, json.dumps(manifest) + "\n", flush=True)
    sync(path.parent)
    return manifest


@contextlib.contextmanager
def _writer(fresh: pathlib.Path, path: pathlib.Path) -> Iterator[Callable[[bytes], None]]:
    """Gives what writes a record to the new file `fresh`. RunFailure, which names `path`, when the
    disk does not take it: array_record has a RuntimeError of its own for that.
    """

    def checked(call: Callable[[], Any]) -> None:
        try:
            call()
        except (RuntimeError, ValueError) as error:
            why = one_line(str(error).partition("; writing")[0], 160)
            raise RunFailure(f"{path} cannot be written: {why}") from None

    writer = array_record_module.ArrayRecordWriter(str(fresh), "group_size:1")
    try:
        yield lambda data: checked(lambda: writer.write(data))
    except BaseException:
        with contextlib.suppress(Exception):  # what went wrong before says more
            writer.close()
        raise
    checked(writer.close)


def shard_done(path: str | os.PathLike, *, verify: bool = False) -> bool:
    """True when the shard has a manifest and is what it says.

    A file that has the manifest's size, and that nobody wrote to since the manifest was written, is
    taken for what it was then; any other one is read in full, with `verify` every one.
    """
    path = pathlib.Path(path)
    try:
        manifest, facts = read_manifest(path), path.stat()
        if facts.st_size != manifest["bytes"]:
            return False
        if not verify and facts.st_mtime_ns <= manifest_path(path).stat().st_mtime_ns:
            return True
        return manifest["sha256"] == file_sha256(path)
    except (OSError, RecordError):
        return False


def verify_shards(source: TreeSource, index: int = 0, count: int = 1) -> None:
    """Reads the shards of `source` in full, of `count` processes each its own. Errors: RecordError
    that names one which is not what its manifest says.
    """
    for path, _ in source.shards[index::count]:
        if not shard_done(path, verify=True):
            raise RecordError(
                f"{path}: damaged shard: its contents do not match its manifest; run 'srpo "
                "explore --verify' to make it again"
            )


def read_shards(folder: str | os.PathLike) -> TreeSource:
    """All shards of a folder, in name order. Opens no shard yet, but checks every manifest."""
    return TreeSource(folder)


def shards_of(folder: str | os.PathLike) -> list[pathlib.Path]:
    """The shards of a folder that are done, in name order; [] when there are none."""
    found = sorted(pathlib.Path(folder).glob(f"*{SUFFIX}"))
    return [path for path in found if _manifest_there(path)]


def read_shard(path: str | os.PathLike) -> TreeSource:
    """One shard alone, as read_shards gives all."""
    return TreeSource(pathlib.Path(path).parent, [pathlib.Path(path)])


def fingerprint(folder: str | os.PathLike) -> str:
    """Hex sha256 over the manifests' content fingerprints, in name order."""
    total = hashlib.sha256()
    for path in _shards(folder):
        manifest = read_manifest(path)
        total.update(f"{path.name} {manifest['count']} {manifest['fingerprint']}\n".encode())
    return total.hexdigest()


class TreeSource:
    """A list of tree records over shards: len() and [i], opened when first read. Thread-safe.

    Each question is there once, in the order of the first exploration, as its newest part has it
    (tree_parts.py).
    """

    def __init__(self, folder: str | os.PathLike, paths: Sequence[pathlib.Path] = ()):
        self.folder = pathlib.Path(folder)
        self._paths = list(paths) or _shards(folder)
        self._manifests = [read_manifest(p) for p in self._paths]
        counts = [m["count"] for m in self._manifests]
        stems = [path.name.removesuffix(SUFFIX) for path in self._paths]
        self._places = newest(self.folder, stems, counts)
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()
        for shard, manifest in enumerate(self._manifests):
            if not manifest["count"]:  # it would never be opened, whatever is in it
                self._opened(shard)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def shards(self) -> list[tuple[pathlib.Path, int]]:
        """(path, number of records) of each shard, in order."""
        return [(path, m["count"]) for path, m in zip(self._paths, self._manifests)]

    @property
    def numbers(self) -> list[np.ndarray]:
        """Of each shard int64 [records]: as which tree of this list each record is there; -1 for
        one that a later part has again.
        """
        found = [np.full(m["count"], -1, np.int64) for m in self._manifests]
        order = np.argsort(self._places[:, 0], kind="stable")
        edges = np.searchsorted(self._places[order, 0], np.arange(len(found) + 1))
        for numbers, start, end in zip(found, edges, edges[1:]):
            numbers[self._places[order[start:end], 1]] = order[start:end]
        return found

    def place(self, index: int) -> pathlib.Path:
        """The shard in which tree `index` stands."""
        return self._paths[int(self._places[index, 0])]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`, checked. Raises RecordError naming file, index, id and reason."""
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends a for loop
        shard, inside = map(int, self._places[index])
        path = self._paths[shard]
        reader = self._opened(shard, f"[{inside}]")
        try:
            data = reader.read([inside])[0]
        except (RuntimeError, ValueError, OSError) as e:
            raise _damaged(f"{path}[{inside}]", e) from None
        return _unpack(data, path, inside)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def _opened(self, shard: int, place: str = "") -> Any:
        """The reader of a shard. RecordError, which names it and `place`, if it is not whole."""
        try:
            return self._reader(shard)
        except (RuntimeError, ValueError, OSError) as e:
            raise _damaged(f"{self._paths[shard]}{place}", e) from None

    def _reader(self, shard: int) -> Any:
        with self._lock:
            if shard not in self._readers:
                path, manifest = self._paths[shard], self._manifests[shard]
                # A truncated ArrayRecord file opens as an empty one: compare with the manifest.
                size = path.stat().st_size
                if size != manifest["bytes"]:
                    raise ValueError(f"{size} bytes, its manifest says {manifest['bytes']}")
                reader = array_record_module.ArrayRecordReader(
                    str(path), "readahead_buffer_size:0,max_parallelism:0"
                )
                if reader.num_records() != manifest["count"]:
                    raise ValueError(
                        f"{reader.num_records()} records, its manifest says {manifest['count']}"
                    )
                self._readers[shard] = reader
            return self._readers[shard]


def _unpack(data: bytes, path: pathlib.Path, index: int) -> dict[str, Any]:
    where = f"{path}[{index}]"
    try:
        tree = msgpack.unpackb(data, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as e:
        raise RecordError(f"{where}: not msgpack: {_in_short(e)}") from None
    try:
        check_tree(tree)
    except ValueError as e:
        rid = tree.get("id") if isinstance(tree, dict) else None
        name = f"tree {rid!r}" if isinstance(rid, str) else "tree"
        kind = OldFormat if isinstance(e, OtherFormat) else RecordError
        raise kind(f"{where}: {name}: {e}") from None
    return tree


def _shards(folder: str | os.PathLike) -> list[pathlib.Path]:
    folder = pathlib.Path(folder)
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    lost = set(folder.glob(f"*{SUFFIX}{MANIFEST_SUFFIX}")) - {manifest_path(p) for p in paths}
    if lost:
        raise RecordError(f"{min(lost)}: its shard is missing; run 'srpo explore' again")
    if stem := missing_first([path.name.removesuffix(SUFFIX) for path in paths]):
        raise RecordError(
            f"{folder / stem}{SUFFIX}: the shard that it adds to is missing; run 'srpo explore' "
            "again"
        )
    if not paths and (about := _release(folder)):
        raise RecordError(
            f"{about.parent} is a release ({about.name}): the texts of its branches are not in it, "
            "so nothing can be trained on them; explore anew on its records.jsonl"
        )
    if not paths:
        raise RecordError(f"{folder}: no tree shards (*{SUFFIX}); run 'srpo explore' first")
    return paths


def _release(folder: pathlib.Path) -> pathlib.Path | None:
    """The file that says that a folder of trees would lie in a release; None elsewhere."""
    return next((p for at in (folder, folder.parent) if (p := at / RELEASE).is_file()), None)


def _manifest_there(path: pathlib.Path) -> dict[str, Any] | None:
    """The shard's manifest, None when there is none that can be read."""
    try:
        return read_manifest(path)
    except RecordError:
        return None


def read_manifest(path: pathlib.Path) -> dict[str, Any]:
    """What write_shard says of a shard. Errors: RecordError when it is not done, or no manifest."""
    where = manifest_path(path)
    try:
        manifest = parse_json(read_file(where, MAX_MANIFEST))
        kinds = {name: type(manifest[name]) for name in ("count", "bytes", "sha256", "fingerprint")}
    except FileNotFoundError:
        raise RecordError(
            f"{path}: no manifest, so it is not finished; run 'srpo explore' again"
        ) from None
    except (OSError, UserError, ValueError, TypeError, KeyError) as e:
        raise RecordError(f"{where}: not a manifest: {_in_short(e)}") from None
    if kinds != {"count": int, "bytes": int, "sha256": str, "fingerprint": str}:
        raise RecordError(f"{where}: not a manifest: a field has the wrong type")
    if not 0 <= manifest["count"] <= manifest["bytes"] <= MAX_SHARD:
        raise RecordError(
            f"{where}: not a manifest: {manifest['count']} records in {manifest['bytes']} bytes"
        )
    return manifest


def _plain(value: Any) -> Any:
    """What msgpack cannot pack itself: numpy integers, floats and arrays."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"a tree record cannot hold a {type(value).__name__}")


def _damaged(where: str, error: Exception) -> RecordError:
    return RecordError(f"{where}: damaged shard: {_in_short(error)}")


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error, 160)}"
