"""The files of a checkpoint step: sealed when they are written, checked before they are trusted.

STEP/SEAL names every other file of the step with its size and SHA-256. It is written last, before
the step gets its name, so a step has a seal from the moment that it exists. It finds any change of
any file, also one that would not change what is restored. Each process hashes what it wrote, so
that no large step is read again by one of them (handlers.py). Checksums of the arrays themselves
are in meta, see manager.py: they do not depend on how arrays are cut into files.

`srpo checkpoints check WORKDIR` says of each step whether it is good.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from srpo_jax.files import file_sha256, naming, sync
from srpo_jax.places import is_moving

SEAL = "SEAL"
CLAIM = "claim.process_"  # how the files are named in which a process says what it wrote
META = "meta/metadata"  # where orbax puts the JSON of an item named meta
SPARE = 1 << 20  # bytes that a step may take besides its arrays and 2 % of them
LARGE = 1 << 20  # bytes from which on a file is read in a thread of its own
THREADS = 8  # files that are read at once; hashing lets go of Python's lock


class Damaged(Exception):
    """A checkpoint that does not hold what it says. The text names a file or an array."""


def space_needed(size: int) -> int:
    """Bytes that must be free before a step of so many bytes of arrays is written: for the files
    around them too.
    """
    return size + size // 50 + SPARE


def claim_files(item: pathlib.Path, process: int) -> None:
    """Hashes what this process has written of an item of a step and leaves the sums in the item's
    folder, for write_seal. Called by each process, once it has written all.
    """
    mine = item / f"ocdbt.process_{process}"  # where orbax puts the arrays of each
    if mine.is_dir():
        names = [f"{mine.name}/{name}" for name in _names(mine)]
        (item / f"{CLAIM}{process}").write_text(json.dumps(_facts_of(item, names)))


def write_seal(folder: str | os.PathLike) -> None:
    """Writes STEP/SEAL for the files that are in the folder now. Takes the sums of claim_files for
    those that have one, and reads the others once.

    Errors: Damaged when a file is not there in the size that its process wrote.
    """
    folder = pathlib.Path(folder)
    claimed: dict[str, list | None] = {}
    for claim in sorted(folder.glob(f"*/{CLAIM}*")):
        found = json.loads(claim.read_text())
        claimed |= {f"{claim.parent.name}/{name}": fact for name, fact in found.items()}
        claim.unlink()
    names = _names(folder)
    if lost := sorted(claimed.keys() - names):
        raise Damaged(f"{_first(lost)} was written and is missing")
    for name, fact in claimed.items():
        if fact is not None and (size := (folder / name).stat().st_size) != fact[0]:
            raise Damaged(f"{name} has {size} bytes, {fact[0]} were written")
    facts = claimed | _facts_of(folder, [name for name in names if name not in claimed])
    payload = json.dumps({"files": facts}, sort_keys=True)
    with naming(folder / SEAL):
        (folder / SEAL).write_text(_signed(payload), encoding="utf-8")
    sync(folder / SEAL)


def check_files(
    folder: str | os.PathLike,
    items: Collection[str] = (),
    *,
    part: int = 0,
    parts: int = 1,
) -> None:
    """Raises Damaged unless the files of a step are those of its seal, bit for bit.

    items: check only these subfolders, and the files beside them; default all. part, parts: read
    only this share of the files, when so many processes check a step together; names and sizes are
    compared by each of them. Errors: OSError of the file system.
    """
    folder = pathlib.Path(folder)
    sealed = _sealed(folder)
    here = set(_names(folder))
    if items:
        here, sealed = (
            {name: files[name] for name in files if "/" not in name or name.split("/")[0] in items}
            for files in (dict.fromkeys(here), sealed)
        )
    if missing := sorted(sealed.keys() - here):
        raise Damaged(f"{_first(missing)} is missing")
    if extra := sorted(here - sealed.keys()):
        raise Damaged(f"{_first(extra)} was not saved with it")
    for name, fact in sealed.items():
        size = None if fact is None else (folder / name).stat().st_size
        if fact is not None and size != fact[0]:
            raise Damaged(f"{name} has {size} bytes, it had {fact[0]}")
    mine = sorted(sealed, key=lambda name: (-(sealed[name] or [0])[0], name))[part::parts]
    now = _facts_of(folder, mine)
    if changed := sorted(name for name in mine if now[name] != sealed[name]):
        raise Damaged(f"{_first(changed)} is not what was saved")


def read_meta(folder: str | os.PathLike, step: int) -> dict[str, Any]:
    """The meta of a step. Damaged if it is not what was saved, or that of another step."""
    folder = pathlib.Path(folder)
    if not any(folder.iterdir()):
        raise Damaged("an empty folder")
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise Damaged("it has no meta") from None
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


def steps_in(directory: str | os.PathLike) -> list[int]:
    """The steps of a folder of checkpoints, by its subfolders' names alone, oldest first. One that
    is still getting its name is none.
    """
    places = (place for place in pathlib.Path(directory).iterdir() if place.is_dir())
    folders = [place.name for place in places if not is_moving(place)]
    return sorted(int(name) for name in folders if name.isdecimal() and str(int(name)) == name)


def _names(folder: pathlib.Path) -> list[str]:
    """Files of a step, but for the seal, and its folders with a slash at the end."""
    found = []
    for place, folders, files in os.walk(folder):
        base = pathlib.Path(place).relative_to(folder).as_posix() + "/"
        base = "" if base == "./" else base
        found += [base + name for name in files] + [f"{base}{name}/" for name in folders]
    return sorted(name for name in found if name != SEAL)


def _facts_of(folder: pathlib.Path, names: list[str]) -> dict[str, list | None]:
    """_facts of each of the names. Small files are not worth a thread."""
    large = [name for name in names if (folder / name).stat().st_size >= LARGE]
    with ThreadPoolExecutor(THREADS) as threads:
        found = dict(zip(large, threads.map(lambda name: _facts(folder / name), large)))
    return {name: found[name] if name in found else _facts(folder / name) for name in names}


def _facts(path: pathlib.Path) -> list | None:
    """[size, SHA-256] of a file, None for a folder: it counts that there is one."""
    if path.is_dir():
        return None
    digest = file_sha256(path)
    return [path.stat().st_size, digest]


def _signed(payload: str) -> str:
    return f"{payload}\n{hashlib.sha256(payload.encode()).hexdigest()}\n"


def _sealed(folder: pathlib.Path) -> dict[str, list | None]:
    """{name: [size, SHA-256]} of a step's seal, which must be byte for byte what was written."""
    try:
        data = (folder / SEAL).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise Damaged(f"it has no {SEAL}") from None
    payload = data.split(b"\n")[0].decode("utf-8", errors="replace")
    if data != _signed(payload).encode():
        raise Damaged(f"its {SEAL} does not match its own digest")
    return json.loads(payload)["files"]


def _first(names: list[str]) -> str:
    name = names[0].encode("unicode_escape").decode()  # a stray file may have any name
    return name + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def tell_states(root: pathlib.Path) -> int:
    """Prints one line per step; 0 only if there are steps and all are good."""
    steps = steps_in(root) if root.is_dir() else []
    bad = 0
    for step in steps:
        try:
            read_meta(root / str(step), step)
            check_files(root / str(step))
        except (Damaged, OSError) as error:
            bad += 1
            print(f"{root / str(step)}: damaged: {error}")
        else:
            print(f"{root / str(step)}: good")
    if not steps:
        print(f"{root}: no checkpoints")
    return 1 if bad or not steps else 0
