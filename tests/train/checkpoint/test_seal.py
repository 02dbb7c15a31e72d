"""srpo_jax/train/checkpoint/seal.py: any change of any file, on a folder that orbax never saw."""

from __future__ import annotations

import json
import pathlib

import pytest

from srpo_jax.train.checkpoint import local_folder, seal
from srpo_jax.train.checkpoint.seal import (
    Damaged,
    check_files,
    digest_of_meta,
    read_meta,
    space_needed,
    steps_in,
    tell_states,
    write_seal,
)

FILES = ("params/d/1", "params/d/2", "optimizer/3", "done")


@pytest.fixture
def step(tmp_path, monkeypatch) -> pathlib.Path:
    """A sealed step 7 of which some files count as large."""
    monkeypatch.setattr(local_folder, "LARGE", 40)
    folder = tmp_path / "checkpoints" / "7"
    for size, name in enumerate(FILES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(20 * (1 + size)))
    (folder / "empty").mkdir()
    meta = {"step": 7, "arrays": {}}
    (folder / "meta").mkdir()
    (folder / seal.META).write_text(json.dumps({**meta, "digest": digest_of_meta(meta)}))
    write_seal(folder)
    return folder


def damaged(folder: pathlib.Path, *args, **switches) -> str:
    """What is said of a step; "" when it is good."""
    try:
        check_files(folder, *args, **switches)
    except Damaged as error:
        return str(error)
    return ""


@pytest.fixture
def written(step) -> pathlib.Path:
    """A step that two processes have written and one is about to seal."""
    for number in (0, 1):
        for name in ("d/1", "manifest"):
            file = step / "params" / f"ocdbt.process_{number}" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bytes([number]) * 50)
    (step / "SEAL").unlink()
    return step


def test_every_process_hashes_what_it_wrote(written, monkeypatch):
    """The one that seals reads no file of theirs again, and its seal is the one that it would have
    written alone. A process that wrote nothing of an item leaves nothing there.
    """
    write_seal(written)
    alone = (written / "SEAL").read_bytes()
    read, real = [], local_folder.file_sha256

    def hashed(path: pathlib.Path) -> str:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(local_folder, "file_sha256", hashed)
    for number in (0, 1):
        seal.claim_files(written / "params", number)
        seal.claim_files(written / "optimizer", number)
    assert sorted(read) == ["1", "1", "manifest", "manifest"]
    read.clear()
    write_seal(written)
    assert sorted(read) == ["1", "2", "3", "done", "metadata"]
    assert (written / "SEAL").read_bytes() == alone
    assert not list(written.rglob("claim*")) and damaged(written) == ""


def test_what_was_written_must_be_there_when_it_is_sealed(written):
    """A file that got lost or shorter on its way to where process 0 looks is never sealed."""
    file = written / "params" / "ocdbt.process_1" / "d" / "1"
    name = "params/ocdbt.process_1/d/1"
    for damage, said in (
        (lambda: file.write_bytes(b"short"), f"{name} has 5 bytes, 50 were written"),
        (file.unlink, f"{name} was written and is missing"),
    ):
        file.write_bytes(bytes(50))
        seal.claim_files(written / "params", 1)
        damage()
        with pytest.raises(Damaged, match=f"^{said}$"):
            write_seal(written)
        assert not (written / "SEAL").exists()


def test_a_share_of_the_files_for_each_process(step):
    """A flipped bit is found by one of three processes, whichever file it is in; a size by all."""
    for name in FILES:
        data = (step / name).read_bytes()
        (step / name).write_bytes(data[:-1] + b"x")
        said = [damaged(step, part=part, parts=3) for part in range(3)]
        assert sorted(said) == ["", "", f"{name} is not what was saved"]
        (step / name).write_bytes(data + b"x")
        for part in range(3):
            wrong = f"{name} has {len(data) + 1} bytes, it had {len(data)}"
            assert damaged(step, part=part, parts=3) == wrong
        (step / name).write_bytes(data)
    assert damaged(step) == ""


def test_the_items_that_are_read_and_the_files_beside_them(step):
    """Damage of another item does not keep anyone from reading this one."""
    (step / "optimizer" / "3").write_bytes(bytes(60)[:-1] + b"x")
    (step / "optimizer" / "stray").touch()
    assert damaged(step, ("meta", "params")) == ""
    assert damaged(step, ("optimizer",)) == "optimizer/stray was not saved with it"
    (step / "done").unlink()
    assert damaged(step, ("meta", "params")) == "done is missing"


def test_how_many_files_are_concerned_is_said(step):
    """Of several the first one, and how many more; a folder is a thing too."""
    (step / "empty").rmdir()
    assert damaged(step) == "empty/ is missing"
    for count, name in enumerate(FILES[:2], 1):
        (step / name).unlink()
        assert damaged(step) == f"empty/ (and {count} more) is missing"


def test_a_seal_is_what_was_written(step):
    """None, or one with a change that keeps its meaning, is no seal."""
    text = (step / "SEAL").read_text()
    for changed in (text.replace(", ", ","), text + "\n", text[:-1], "", "\n\n"):
        (step / "SEAL").write_text(changed)
        assert damaged(step) == "its SEAL does not match its own digest"
    (step / "SEAL").unlink()
    assert damaged(step) == "it has no SEAL"


def test_a_meta_is_what_was_written(step):
    """JSON of this step with its own digest."""
    meta = read_meta(step, 7)
    (step / seal.META).write_text(json.dumps(dict(reversed(meta.items()))))  # the same
    assert read_meta(step, 7) == meta
    with pytest.raises(Damaged, match="^it holds step 7$"):
        read_meta(step, 8)
    for text, said in (("{", "is no JSON"), ("[]", "own digest"), ('{"step": 7}', "own digest")):
        (step / seal.META).write_text(text)
        with pytest.raises(Damaged, match=said):
            read_meta(step, 7)
    (step / seal.META).unlink()
    with pytest.raises(Damaged, match="it has no meta"):
        read_meta(step, 7)
    (step.parent / "8").mkdir()
    with pytest.raises(Damaged, match="an empty folder"):
        read_meta(step.parent / "8", 8)


def test_the_room_that_a_step_needs():
    """Its arrays, 2 % more and 1 MiB."""
    assert [space_needed(size) for size in (0, 100 << 20)] == [1 << 20, 103 << 20]


def test_every_step_is_told(step, capsys):
    """A line each, in order; only folders with a number's own name are steps. No step is no good
    state either.
    """
    folder = step.parent
    assert tell_states(folder) == 0
    assert capsys.readouterr().out == f"{step}: good\n"
    for name in ("10", "007", "x", "8.tmp"):
        (folder / name).mkdir()
    (folder / "9").touch()
    assert steps_in(folder) == [7, 10]
    assert tell_states(folder) == 1
    assert capsys.readouterr().out == f"{step}: good\n{folder / '10'}: damaged: an empty folder\n"
    for place in (folder / "x", folder / "nowhere"):
        assert tell_states(place) == 1
        assert capsys.readouterr().out == f"{place}: no checkpoints\n"
