"""The files of a checkpoint step: sealed when they are written, checked before they are trusted.

STEP/SEAL names every other file of the step with its size and checksum. It is written last, before
the step gets its name, so a step has a seal from the moment that it exists. It finds any change of
any file, also one that would not change what is restored. On a file system each process hashes what
it wrote, so that no large step is read again by one of them (handlers.py); a bucket knows the
checksums of its objects. Checksums of the arrays themselves are in meta, see manager.py: they do
not depend on how arrays are cut into files.

`srpo checkpoints check WORKDIR` says of each step whether it is good.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from typing import Any

from srpo_jax.train.checkpoint.file_sums import is_crc32c
from srpo_jax.train.checkpoint.folder import Fact, Folder, open_folder

SEAL = "SEAL"
CLAIM = "claim.process_"  # how the files are named in which a process says what it wrote
META = "meta/metadata"  # where orbax puts the JSON of an item named meta
SPARE = 1 << 20  # bytes that a step may take besides its arrays and 2 % of them


class Damaged(Exception):
    """A checkpoint that does not hold what it says. The text names a file or an array."""


def space_needed(size: int) -> int:
    """Bytes that must be free before a step of so many bytes of arrays is written: for the files
    around them too.
    """
    return size + size // 50 + SPARE


def claim_files(item: str | os.PathLike, process: int) -> None:
    """Hashes what this process has written of an item of a step and leaves the sums in the item's
    folder, for write_seal. Called by each process, once it has written all.
    """
    folder, mine = open_folder(item), f"ocdbt.process_{process}"  # orbax puts the arrays of each so
    if folder.crc32c:  # the bucket knows
        return
    inner = folder / mine
    if facts := inner.with_sums(inner.facts(), crc32c=False):
        named = {f"{mine}/{name}": fact for name, fact in facts.items()}
        folder.write(f"{CLAIM}{process}", json.dumps(named).encode())


def write_seal(address: str | os.PathLike, coming: Mapping[str, bytes] | None = None) -> None:
    """Writes STEP/SEAL for the files that are in the folder now. Takes the sums of claim_files for
    those that have one, and reads the others once, unless the place tells them.

    coming: contents by name of files that will be written after the seal. Errors: Damaged when a
    file is not there in the size that its process wrote.
    """
    folder = open_folder(address)
    facts = _facts(folder)
    claimed: dict[str, Fact] = {}
    for claim in sorted(facts):
        item, _, name = claim.rpartition("/")
        if name.startswith(CLAIM):
            found = json.loads(folder.read(claim))
            claimed |= {f"{item}/{inner}": fact for inner, fact in found.items()}
            folder.delete(claim)
            del facts[claim]
    if lost := sorted(claimed.keys() - facts.keys()):
        raise Damaged(f"{_first(lost)} was written and is missing")
    for name, fact in claimed.items():
        if fact is not None and (size := _size(facts[name])) != fact[0]:
            raise Damaged(f"{name} has {size} bytes, {fact[0]} were written")
    rest = {name: fact for name, fact in facts.items() if name not in claimed}
    rest = folder.with_sums(rest, crc32c=folder.crc32c)
    last = {name: folder.fact_of(data) for name, data in (coming or {}).items()}
    payload = json.dumps({"files": claimed | rest | last}, sort_keys=True)
    folder.write(SEAL, _signed(payload).encode())


def check_files(
    address: str | os.PathLike,
    items: Collection[str] = (),
    *,
    part: int = 0,
    parts: int = 1,
) -> None:
    """Raises Damaged unless the files of a step are those of its seal, bit for bit.

    items: check only these subfolders, and the files beside them; default all. part, parts: read
    only this share of the files, when so many processes check a step together; names and sizes are
    compared by each of them. Errors: OSError of the file system; of a bucket see folder.py.
    """
    folder = open_folder(address)
    sealed = _sealed(folder)
    here = _facts(folder)
    crc32c = any(fact is not None and is_crc32c(fact[1]) for fact in sealed.values())
    if crc32c != folder.crc32c:  # copied from a place that has folders, or to one
        here, sealed = ({k: fact for k, fact in all_.items() if fact} for all_ in (here, sealed))
    if items:
        here, sealed = (
            {name: files[name] for name in files if "/" not in name or name.split("/")[0] in items}
            for files in (here, sealed)
        )
    if missing := sorted(sealed.keys() - here.keys()):
        raise Damaged(f"{_first(missing)} is missing")
    if extra := sorted(here.keys() - sealed.keys()):
        raise Damaged(f"{_first(extra)} was not saved with it")
    for name, fact in sealed.items():
        if fact is not None and (size := _size(here[name])) != fact[0]:
            raise Damaged(f"{name} has {size} bytes, it had {fact[0]}")
    mine = sorted(sealed, key=lambda name: (-(sealed[name] or [0])[0], name))[part::parts]
    now = folder.with_sums({name: here[name] for name in mine}, crc32c=crc32c)
    if changed := sorted(name for name in mine if now[name] != sealed[name]):
        raise Damaged(f"{_first(changed)} is not what was saved")


def read_meta(address: str | os.PathLike, step: int) -> dict[str, Any]:
    """The meta of a step. Damaged if it is not what was saved, or that of another step."""
    folder = open_folder(address)
    try:
        meta = json.loads(folder.read(META).decode())
    except FileNotFoundError:
        raise Damaged("an empty folder" if folder.is_empty() else "it has no meta") from None
    except ValueError:
        raise Damaged("its meta is no JSON") from None
    if not isinstance(meta, dict) or meta.get("digest") != digest_of_meta(meta):
        raise Damaged("its meta does not match its own digest")
    if meta["step"] != step:
        raise Damaged(f"it holds step {meta['step']}")
    return meta


def digest_of_meta(meta: dict[str, Any]) -> str:
    """Hex SHA-256 over everything in meta but its digest."""
    rest = {key: value for key, value in meta.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def steps_in(address: str | os.PathLike) -> list[int]:
    """The steps in a folder of checkpoints that are all there, oldest first; see folder.py."""
    return open_folder(address).steps()


def _facts(folder: Folder) -> dict[str, Fact]:
    """Of all that is in a step, but for its seal."""
    return {name: fact for name, fact in folder.facts().items() if name != SEAL}


def _size(fact: Fact) -> int | None:
    return None if fact is None else fact[0]


def _signed(payload: str) -> str:
    return f"{payload}\n{hashlib.sha256(payload.encode()).hexdigest()}\n"


def _sealed(folder: Folder) -> dict[str, Fact]:
    """The facts by name in a step's seal, which must be byte for byte what was written."""
    try:
        data = folder.read(SEAL)
    except FileNotFoundError:
        raise Damaged(f"it has no {SEAL}") from None
    payload = data.split(b"\n")[0].decode("utf-8", errors="replace")
    if data != _signed(payload).encode():
        raise Damaged(f"its {SEAL} does not match its own digest")
    return json.loads(payload)["files"]


def _first(names: list[str]) -> str:
    name = names[0].encode("unicode_escape").decode()  # a stray file may have any name
    return name + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def tell_states(address: str | os.PathLike) -> int:
    """Prints one line per step; 0 only if there are steps and all are good."""
    steps = steps_in(address)
    bad = 0
    for step in steps:
        place = f"{os.fspath(address)}/{step}"
        try:
            read_meta(place, step)
            check_files(place)
        except (Damaged, OSError) as error:
            bad += 1
            print(f"{place}: damaged: {error}")
        else:
            print(f"{place}: good")
    if not steps:
        print(f"{os.fspath(address)}: no checkpoints")
    return 1 if bad or not steps else 0
