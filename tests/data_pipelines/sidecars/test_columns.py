"""Files of arrays: damage, other contents and other names are as good as no file."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from srpo_jax.data_pipelines.sidecars.columns import column_file, read_columns, write_columns

COLUMNS = {"a": np.arange(40, dtype=np.int32), "b": np.asarray([b"xy", b"z"], "S16")}


def anything(found) -> bool:
    return True


@pytest.fixture
def path(tmp_path):
    path = column_file(tmp_path, "shard", "kind", [1, "about"])
    write_columns(path, COLUMNS)
    return path


def test_arrays_come_back_and_bytes_are_the_same(path, tmp_path):
    """Equal arrays, of the same types; two writers write equal bytes."""
    found = read_columns(path, anything)
    assert found is not None and found.keys() == COLUMNS.keys()
    for name, array in COLUMNS.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    before = path.read_bytes()
    write_columns(path, COLUMNS)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_every_damaged_byte_is_seen_or_says_nothing(path):
    """With any byte turned over, and cut anywhere, the arrays are the same ones or none at all."""
    whole = path.read_bytes()
    seen = 0
    for at in range(0, len(whole), 3):
        for broken in (
            whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :],
            whole[:at],
        ):
            path.write_bytes(broken)
            found = read_columns(path, anything)
            seen += found is None
            for name, array in COLUMNS.items() if found else ():
                assert np.array_equal(found[name], array), at
    assert seen > len(whole) // 3


def test_what_is_of_something_else_is_not_read(path, tmp_path):
    """A file that was renamed, one that the caller finds wrong, one with an object in it, one that
    would become large in memory, and a folder."""
    other = column_file(tmp_path, "shard", "kind", [2, "about"])
    assert other != path
    path.rename(other)
    assert read_columns(other, anything) is None and read_columns(path, anything) is None
    other.rename(path)
    assert read_columns(path, lambda found: len(found["a"]) == 41) is None
    assert read_columns(path, lambda found: found["no such"] is None) is None
    digest = np.frombuffer(path.stem.rpartition("-")[2].encode(), np.uint8)
    np.savez(path, digest=digest, a=np.asarray([{}], object))
    assert read_columns(path, anything) is None
    packed, plain = io.BytesIO(), io.BytesIO()
    np.save(plain, np.zeros(10**6))
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", plain.getvalue())
    path.write_bytes(packed.getvalue())
    assert read_columns(path, anything) is None
    path.unlink()
    path.mkdir()
    assert read_columns(path, anything) is None


def test_where_nothing_can_be_written_nothing_is(path, tmp_path, monkeypatch):
    """A folder that takes no file, or a full disk, is no error: the arrays are made again."""
    path.unlink()
    monkeypatch.setattr(np, "savez", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full")))
    write_columns(path, COLUMNS)
    assert list(tmp_path.iterdir()) == []
    write_columns(tmp_path / "file" / "x.kind-0.npz", COLUMNS)
