"""What an export consists of: a list of its files with their SHA-256, and `srpo export --check`.

A bit that a disk or a copy turned over loads without a word, in a tensor as well as in a tokenizer.
The list lies in the export and goes wherever it goes. It is no signature: who can change a file can
change the list.
"""

from __future__ import annotations

import pathlib

from srpo_jax.errors import UserError, one_line
from srpo_jax.files import file_sha256, sync, write_json
from srpo_jax.models.blocks.hf_folder import parsed_object

DIGESTS = "srpo_digests.json"  # transformers reads no file of this name
# What tools put into a folder that they copy, and never read as part of a model.
NOT_LISTED = (".git", ".cache", ".gitattributes", ".gitignore")


def write_digests(folder: pathlib.Path) -> None:
    """Writes DIGESTS: {"files": {path in the folder: {"bytes", "sha256"}}}, sorted, of all others.
    The same files have the same list."""
    files = {
        name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for name, path in _files(folder).items()
    }
    write_json(folder / DIGESTS, {"files": files})
    sync(folder / DIGESTS)


def check_digests(folder: pathlib.Path) -> tuple[int, list[str]]:
    """(number of files that are what was exported, what is wrong, a line each).

    Errors: UserError if the folder has no list, or one that cannot be read.
    """
    if not (folder / DIGESTS).is_file():
        raise UserError(f"{folder}: no {DIGESTS}, so it is no export of this version of srpo_jax")
    listed = parsed_object(folder / DIGESTS).get("files")
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{folder / DIGESTS}: lists no files; export again")
    found = _files(folder)
    faults = [f"{one_line(name, 200)}: is not there" for name in sorted(listed.keys() - found)]
    faults += [f"{one_line(name, 200)}: was not exported" for name in sorted(found.keys() - listed)]
    good = 0
    for name in sorted(listed.keys() & found):
        if not found[name].is_file():
            faults.append(f"{one_line(name, 200)}: is no file")
            continue
        size = found[name].stat().st_size
        wanted = listed[name] if isinstance(listed[name], dict) else {}
        if wanted.get("bytes") != size:
            faults.append(
                f"{one_line(name, 200)}: has {size} bytes, not {wanted.get('bytes')!r:.40}"
            )
        elif wanted.get("sha256") != file_sha256(found[name]):
            faults.append(f"{one_line(name, 200)}: has other contents")
        else:
            good += 1
    return good, faults


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Path in the folder, with slashes -> file, sorted, of all that an export consists of.

    Links that lead nowhere or to a folder, and pipes, are among them: no export has one.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if (path.is_symlink() or not path.is_dir()) and inside.parts[0] not in (
            *NOT_LISTED,
            DIGESTS,
        ):
            found[inside.as_posix()] = path
    return found
