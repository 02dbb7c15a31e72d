"""Reasoning-tree records on disk: msgpack in ArrayRecord shards, each with a manifest.

A tree record is everything training needs of one question: its images (bytes), its reference
path as token ids, the sampled branches with their verdicts, and where they came from.
`check_tree` checks one record against the schema, which docs/data.md shows: data that fails it is
never trained on.

A shard is written to a temporary file, flushed to disk and renamed; its manifest comes last.
So a shard with a manifest is whole, and one without is not done and will be written again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pathlib
import threading
from collections.abc import Iterable
from typing import Any, cast

import msgpack
import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from srpo_jax.data_pipelines.images import read_image_bytes
from srpo_jax.data_pipelines.records import CATEGORIES, Record, RecordError
from srpo_jax.errors import one_line
from srpo_jax.files import file_sha256, sync, temporary_name, write_text

SUFFIX = ".array_record"
MANIFEST_SUFFIX = ".manifest.json"

FORMAT = 1
VERDICTS = ("SAFE", "UNSAFE", "ERROR")

_TREE = (
    "format",
    "id",
    "question",
    "category",
    "risky",
    "images",
    "steps",
    "reply",
    "step_texts",
    "reply_text",
    "branches",
    "provenance",
)
_BRANCH = (
    "at",
    "k",
    "tokens",
    "text",
    "finished",
    "logp",
    "reply_verdict",
    "path_verdict",
    "step_verdicts",
    "effective",
    "detail",
)
_PROVENANCE = {
    "policy_digest": str,
    "sampler": dict,
    "seed": int,
    "arbiter": str,
    "created_by": str,
}


def shard_path(folder: str | os.PathLike, index: int, count: int) -> pathlib.Path:
    """FOLDER/trees-00003-of-00016.array_record: name order is index order."""
    return pathlib.Path(folder) / f"trees-{index:05d}-of-{count:05d}{SUFFIX}"


def make_tree_record(
    record: Record,
    pieces: list[np.ndarray],
    branches: list[dict],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """The tree record of one question. `pieces` are tokenize_reference(record, processor)."""
    images = []
    for name, path in zip(record.images, record.image_paths(), strict=True):
        data = read_image_bytes(path, what=f"record {record.id!r}")
        images.append({"name": name, "sha256": hashlib.sha256(data).hexdigest(), "data": data})
    return {
        "format": FORMAT,
        "id": record.id,
        "question": record.question,
        "category": record.category,
        "risky": record.risky,
        "images": images,
        "steps": list(pieces[:-1]),
        "reply": pieces[-1],
        "step_texts": list(record.steps),
        "reply_text": record.reply,
        "branches": branches,
        "provenance": provenance,
    }


def write_shard(path: str | os.PathLike, records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Write one shard and then its manifest, which is returned:

    {"count", "bytes", "sha256" of the file, "fingerprint" of the records' contents}.

    Every record is checked in the form in which it will be read; ints may be numpy's. Several
    processes and hosts may write the same shard at once: each file appears whole, and a shard that
    is done with the same contents stays done throughout.
    Raises RecordError for one that breaks the schema, and then leaves everything as it was.
    """
    path = pathlib.Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"a shard's name ends with {SUFFIX}: {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest_path = _manifest_path(path)
    fresh = temporary_name(path)
    content, count = hashlib.sha256(), 0
    try:
        writer = array_record_module.ArrayRecordWriter(str(fresh), "group_size:1")
        try:
            for count, record in enumerate(records, 1):
                data = cast(bytes, msgpack.packb(record, use_bin_type=True, default=_plain))
                _unpack(data, path, count - 1)
                content.update(len(data).to_bytes(8, "little") + data)
                writer.write(data)
        finally:
            writer.close()
        sync(fresh)
        manifest = {
            "count": count,
            "bytes": fresh.stat().st_size,
            "sha256": file_sha256(fresh),
            "fingerprint": content.hexdigest(),
        }
        there = _manifest_there(path)
        if there and there["fingerprint"] == manifest["fingerprint"] and shard_done(path):
            return there
        if there and there["sha256"] != manifest["sha256"]:
            manifest_path.unlink(missing_ok=True)  # it would describe another file than there is
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    write_text(manifest_path, json.dumps(manifest) + "\n", flush=True)
    sync(path.parent)
    return manifest


def shard_done(path: str | os.PathLike) -> bool:
    """True when the shard has a manifest and the file's contents match it (read in full)."""
    path = pathlib.Path(path)
    try:
        return _read_manifest(path)["sha256"] == file_sha256(path)
    except (OSError, RecordError):
        return False


def read_shards(folder: str | os.PathLike) -> TreeSource:
    """All shards of a folder, in name order. Opens no shard yet, but checks every manifest."""
    return TreeSource(folder)


def fingerprint(folder: str | os.PathLike) -> str:
    """Hex sha256 over the manifests' content fingerprints, in name order."""
    total = hashlib.sha256()
    for path in _shards(folder):
        manifest = _read_manifest(path)
        total.update(f"{path.name} {manifest['count']} {manifest['fingerprint']}\n".encode())
    return total.hexdigest()


class TreeSource:
    """A list of tree records over shards: len() and [i], opened when first read. Thread-safe."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(folder)
        self._paths = _shards(folder)
        self._manifests = [_read_manifest(p) for p in self._paths]
        self._ends = np.cumsum([m["count"] for m in self._manifests])
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`, checked. Raises RecordError naming file, index, id and reason."""
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends a for loop
        shard = int(np.searchsorted(self._ends, index, side="right"))
        path = self._paths[shard]
        inside = index - (int(self._ends[shard - 1]) if shard else 0)
        try:
            data = self._reader(shard).read([inside])[0]
        except (RuntimeError, ValueError, OSError) as e:
            raise RecordError(f"{path}[{inside}]: damaged shard: {_in_short(e)}") from None
        return _unpack(data, path, inside)

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


def branch_label(
    branch: dict[str, Any],
    *,
    scope: str = "reply",
    require_effective: bool = False,
) -> bool | None:
    """True: safe (can be chosen). False: unsafe (can be rejected). None: left out.

    scope "reply" looks at the reply's verdict alone (RPO's F looks at the final answer);
    "path" also wants the steps safe. An ERROR verdict leaves the branch out. With
    require_effective a safe branch judged not effective (a needless refusal) counts as unsafe;
    one that was not judged for effectiveness (None) keeps its safety label.
    """
    if scope not in ("reply", "path"):
        raise ValueError(f"scope must be 'reply' or 'path', not {scope!r}")
    verdicts = [branch["reply_verdict"]]
    if scope == "path":
        verdicts.append(branch["path_verdict"])
    if "ERROR" in verdicts:
        return None
    if "UNSAFE" in verdicts:
        return False
    return not (require_effective and branch["effective"] is False)


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
        raise RecordError(f"{where}: {name}: {e}") from None
    return tree


def _shards(folder: str | os.PathLike) -> list[pathlib.Path]:
    folder = pathlib.Path(folder)
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    lost = set(folder.glob(f"*{SUFFIX}{MANIFEST_SUFFIX}")) - {_manifest_path(p) for p in paths}
    if lost:
        raise RecordError(f"{min(lost)}: its shard is missing; run 'srpo explore' again")
    if not paths:
        raise RecordError(f"{folder}: no tree shards (*{SUFFIX}); run 'srpo explore' first")
    return paths


def _manifest_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + MANIFEST_SUFFIX)


def _manifest_there(path: pathlib.Path) -> dict[str, Any] | None:
    """The shard's manifest, None when there is none that can be read."""
    try:
        return _read_manifest(path)
    except RecordError:
        return None


def _read_manifest(path: pathlib.Path) -> dict[str, Any]:
    manifest_path = _manifest_path(path)
    try:
        manifest = json.loads(manifest_path.read_bytes())
        kinds = {name: type(manifest[name]) for name in ("count", "bytes", "sha256", "fingerprint")}
    except FileNotFoundError:
        raise RecordError(
            f"{path}: no manifest, so it is not finished; run 'srpo explore' again"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise RecordError(f"{manifest_path}: not a manifest: {_in_short(e)}") from None
    if kinds != {"count": int, "bytes": int, "sha256": str, "fingerprint": str}:
        raise RecordError(f"{manifest_path}: not a manifest: a field has the wrong type")
    return manifest


def _plain(value: Any) -> Any:
    """What msgpack cannot pack itself: numpy integers, floats and arrays."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"a tree record cannot hold a {type(value).__name__}")


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error, 160)}"


def check_tree(tree: Any) -> None:
    """Raise ValueError with a short reason unless `tree` (as unpacked) follows the schema."""
    if not isinstance(tree, dict):
        raise ValueError("a tree record must be a map")
    if tree.get("format") != FORMAT:
        raise ValueError(f"format is {tree.get('format')!r}, this version reads {FORMAT}")
    _keys(tree, _TREE, "the tree")
    for name in ("id", "question", "reply_text"):
        _is(tree[name], str, name)
        if not tree[name].strip():
            raise ValueError(f"{name} is empty")
    if tree["category"] is not None and tree["category"] not in CATEGORIES:
        raise ValueError(f"category {tree['category']!r} is not one of the nine")
    if tree["risky"] is not None:
        _is(tree["risky"], bool, "risky")
    for i, image in enumerate(_is(tree["images"], list, "images")):
        _check_image(image, f"images[{i}]")
    steps = _is(tree["steps"], list, "steps")
    if not steps:
        raise ValueError("steps is empty: a path needs at least one step")
    for i, step in enumerate(steps):
        _tokens(step, f"steps[{i}]")
    _tokens(tree["reply"], "reply")
    texts = _is(tree["step_texts"], list, "step_texts")
    if len(texts) != len(steps):
        raise ValueError(f"{len(texts)} step_texts for {len(steps)} steps")
    for i, text in enumerate(texts):
        _is(text, str, f"step_texts[{i}]")
    seen = set()
    for i, branch in enumerate(_is(tree["branches"], list, "branches")):
        _check_branch(branch, f"branches[{i}]", len(steps))
        if (key := (branch["at"], branch["k"])) in seen:
            raise ValueError(f"branches[{i}]: at {key[0]}, k {key[1]} is there twice")
        seen.add(key)
    provenance = _is(tree["provenance"], dict, "provenance")
    for name, kind in _PROVENANCE.items():
        if name not in provenance:
            raise ValueError(f"provenance.{name} is missing")
        _is(provenance[name], kind, f"provenance.{name}")


def _check_image(image: Any, name: str) -> None:
    _keys(_is(image, dict, name), ("name", "sha256", "data"), name)
    _is(image["name"], str, f"{name}.name")
    if hashlib.sha256(_is(image["data"], bytes, f"{name}.data")).hexdigest() != image["sha256"]:
        raise ValueError(f"{name}: the bytes do not match their sha256")


def _check_branch(branch: Any, name: str, num_steps: int) -> None:
    _keys(_is(branch, dict, name), _BRANCH, name)
    at, k = _is(branch["at"], int, f"{name}.at"), _is(branch["k"], int, f"{name}.k")
    if not 0 <= at < num_steps:
        raise ValueError(f"{name}.at is {at}, a path of {num_steps} steps has 0..{num_steps - 1}")
    if k < 0:
        raise ValueError(f"{name}.k is negative")
    _tokens(branch["tokens"], f"{name}.tokens")
    _is(branch["text"], str, f"{name}.text")
    _is(branch["detail"], str, f"{name}.detail")
    _is(branch["finished"], bool, f"{name}.finished")
    if not math.isfinite(_is(branch["logp"], float, f"{name}.logp")):
        raise ValueError(f"{name}.logp is not finite")
    if branch["effective"] is not None:
        _is(branch["effective"], bool, f"{name}.effective")
    steps = _is(branch["step_verdicts"], list, f"{name}.step_verdicts")
    for verdict in [branch["reply_verdict"], branch["path_verdict"], *steps]:
        if verdict not in VERDICTS:
            raise ValueError(f"{name}: verdict {verdict!r} is not one of {', '.join(VERDICTS)}")


def _tokens(value: Any, name: str) -> None:
    if not _is(value, list, name):
        raise ValueError(f"{name} is empty")
    for token in value:
        if type(token) is not int or not 0 <= token < 2**31:
            raise ValueError(f"{name} holds {token!r}, which is no token id")


def _is(value: Any, kind: type, name: str) -> Any:
    if type(value) is not kind:  # not isinstance: True is no integer here
        raise ValueError(f"{name} must be {kind.__name__}, not {type(value).__name__}")
    return value


def _keys(value: dict, keys: tuple[str, ...], name: str) -> None:
    for key in keys:
        if key not in value:
            raise ValueError(f"{name}: field {key!r} is missing")
    unknown = sorted(str(key) for key in set(value) - set(keys))
    if unknown:
        raise ValueError(f"{name}: unknown field {unknown[0]!r}")
