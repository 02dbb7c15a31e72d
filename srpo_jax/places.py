"""What a run needs of the place where its folder lies: a local disk, NFS, a bucket that is mounted.

check_place tries it before the first expensive second, and names the promise that is broken. What
not every place can do, nothing here relies on: a folder gets its name by move_folder, beside which
a mark lies until all of it is there, as the rename of a folder is one step on a disk, many steps on
some mounted buckets, and refused on others. docs/places.md says what each place promises.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Callable, Collection

from srpo_jax.errors import UserError, one_line
from srpo_jax.files import check_folder, naming, temporary_file, temporary_name
from srpo_jax.keepers import TEMPORARY, Keeper, keeper_of, remove, remove_folder

MOVING = ".moving"  # how the mark beside a folder ends that is not all there
# A folder may not be renamed here, but its files may. gcsfuse: EMFILE, of a bucket without
# hierarchical namespace; EXDEV: a layer of a container's file system.
REFUSED = {
    errno.EMFILE,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EXDEV,
}


def move_folder(source: pathlib.Path, target: pathlib.Path, *, last: Collection[str] = ()) -> None:
    """Gives a folder another name, also where that takes many steps. `target` is new, or empty.

    While is_moving(target), it is not all there. Where folders cannot be renamed their files are,
    one by one, those of the names in `last` behind all others. Errors: OSError; what was moved by
    then stays, and is_moving(target) says so.
    """
    mark = _mark(target)
    keeper = keeper_of(target)
    if keeper:
        _keep_folder(keeper, source, target, last)
    with naming(target):
        mark.write_bytes(b"")
        try:
            os.rename(source, target)
        except OSError as error:
            if error.errno not in REFUSED:
                if not target.exists():
                    mark.unlink(missing_ok=True)
                raise
            _move_files(source, target, last)
        mark.unlink()


def _keep_folder(
    keeper: Keeper, source: pathlib.Path, target: pathlib.Path, last: Collection[str]
) -> None:
    """The same in the bucket of a folder that is kept there: no object has another name, so all are
    written again, and the mark is one, too."""
    with temporary_file(_mark(target)) as empty:
        empty.write_bytes(b"")
        keeper.put(_mark(target), empty)
    files = [path for path in source.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: (path.name in last, path)):
        keeper.put(target / path.relative_to(source), path)
    if keeper_of(source):
        for path in keeper.names(source):
            keeper.remove(path)
    keeper.remove(_mark(target))


def is_moving(target: pathlib.Path) -> bool:
    """Whether a move to this name has not come to its end: what is there is not to be used."""
    return _mark(target).exists()


def clear_moving(folder: pathlib.Path, fits: Callable[[str], bool] = lambda _: True) -> None:
    """Removes what moves that were killed have left in `folder`, of names that fit. To be called by
    the only process that moves anything there. Errors: OSError.
    """
    for mark in folder.glob(f".*{MOVING}"):
        name = mark.name[1:].removesuffix(MOVING)
        if fits(name):
            if (folder / name).exists():
                remove_folder(folder / name)
            remove(mark)


def _mark(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(f".{target.name}{MOVING}")


def _move_files(source: pathlib.Path, target: pathlib.Path, last: Collection[str]) -> None:
    """Folders first, then files, then what is left of the source goes."""
    target.mkdir(exist_ok=True)
    files = []
    for here, folders, names in os.walk(source):
        place = pathlib.Path(here).relative_to(source)
        for name in sorted(folders):
            (target / place / name).mkdir()
        files += [place / name for name in names]
    for name in sorted(files, key=lambda name: (name.name in last, name)):
        os.replace(source / name, target / name)
    shutil.rmtree(source)


def check_place(folder: pathlib.Path) -> None:
    """Makes the folder, and tries there what a run relies on, with files of a few bytes that are
    gone afterwards.

    Errors: UserError that names the promise that the place does not keep, or the file that stands
    in the folder's place; OSError of a place that cannot be written to.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    probe = temporary_name(folder / "probe")
    with naming(folder):
        probe.mkdir()
        _clear_old(folder, probe)
        try:
            for promise, kept in PROMISES.items():
                try:
                    broken = not kept(probe)
                    why = ""
                except (FileNotFoundError, FileExistsError) as error:  # not of a full disk
                    broken, why = True, f" ({one_line(error.strerror)})"
                if broken:
                    raise UserError(
                        f"{folder}: this place does not keep what a run relies on: {promise}{why}; "
                        "docs/places.md says which places and mount options do"
                    )
        finally:
            with contextlib.suppress(OSError):  # what went wrong before says more
                shutil.rmtree(probe)


def _clear_old(folder: pathlib.Path, probe: pathlib.Path) -> None:
    """Removes what checks that were killed have left: a check takes no hour, by the place's own
    clock."""
    for old in folder.glob(f".probe{TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if probe.stat().st_mtime - old.stat().st_mtime > 3600:
                shutil.rmtree(old)


def _closed_is_there(probe: pathlib.Path) -> bool:
    path = probe / "closed"
    path.write_bytes(b"one")
    path.write_bytes(b"two, longer")
    listed = [each.name for each in os.scandir(probe)]
    return path.read_bytes() == b"two, longer" and path.stat().st_size == 11 and "closed" in listed


def _appended_is_there(probe: pathlib.Path) -> bool:
    path = probe / "appended"
    for part in (b"a\n", b"b\n"):
        with open(path, "ab", buffering=0) as file:
            file.write(part)
    return path.read_bytes() == b"a\nb\n"


def _one_creates(probe: pathlib.Path) -> bool:
    path = probe / "claim"
    with open(path, "x", encoding="ascii") as file:
        file.write("first")
    with contextlib.suppress(FileExistsError):
        with open(path, "x", encoding="ascii") as file:
            file.write("second")
        return False
    return path.read_text(encoding="ascii") == "first"


def _file_replaces(probe: pathlib.Path) -> bool:
    old, new = probe / "old", probe / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    os.replace(new, old)
    return old.read_bytes() == b"new" and not new.exists()


def _folder_moves(probe: pathlib.Path) -> bool:
    source, target = probe / "source", probe / "target"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "file").write_bytes(b"x")
    move_folder(source, target)
    whole = (target / "inner" / "file").read_bytes() == b"x"
    return whole and not source.exists() and not is_moving(target)


def _touch_is_seen(probe: pathlib.Path) -> bool:
    path = probe / "touched"
    path.touch()
    for then in (1_600_000_000, 1_700_000_000):
        os.utime(path, (then, then))
        with open(path, "rb") as file:
            seen = (path.stat().st_mtime, os.fstat(file.fileno()).st_mtime)
        if any(abs(each - then) > 2 for each in seen):  # some keep every other second
            return False
    return True


def _later_is_newer(probe: pathlib.Path) -> bool:
    times = []
    for name in ("earlier", "later"):
        (probe / name).write_bytes(b"x")
        times.append((probe / name).stat().st_mtime_ns)
    return times[0] <= times[1]


def _removed_is_gone(probe: pathlib.Path) -> bool:
    path = probe / "removed"
    path.write_bytes(b"x")
    path.unlink()
    return not path.exists() and "removed" not in os.listdir(probe)


PROMISES: dict[str, Callable[[pathlib.Path], bool]] = {
    "a file that was closed is there, whole, and in the list of its folder": _closed_is_there,
    "a line appended to a file is behind the others once it is closed": _appended_is_there,
    "of two that make a file only the first one does": _one_creates,
    "a file takes the name and the place of another one": _file_replaces,
    "the time that a file is touched with is seen": _touch_is_seen,
    "a file written later is no older": _later_is_newer,
    "a file that was removed is gone": _removed_is_gone,
    "a folder can be moved, at once or file by file": _folder_moves,
}
