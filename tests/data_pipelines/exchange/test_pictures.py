"""Pictures of strangers: kept by their contents, and only what is one."""

from __future__ import annotations

import hashlib

import pytest

from srpo_jax.data_pipelines.exchange import pictures
from srpo_jax.data_pipelines.exchange.pictures import PictureStore
from tests.support.foreign import data_uri, draw


@pytest.fixture
def store(tmp_path):
    draw(tmp_path)
    return PictureStore(tmp_path / "out", tmp_path)


def test_every_kind_of_cell_gives_the_same_file(tmp_path, store):
    """A name, an absolute name inside the folder, bytes, bytes beside a name that is only a name, a
    path in a cell, and base64.
    """
    data = (tmp_path / "pics/0.png").read_bytes()
    cells = (
        "pics/0.png",
        str(tmp_path / "pics/0.png"),
        data,
        {"bytes": data, "path": "/elsewhere/x.png"},
        {"bytes": None, "path": "pics/0.png"},
        data_uri(tmp_path, "pics/0.png"),
    )
    names = {store.keep(cell) for cell in cells}
    assert names == {f"images/{hashlib.sha256(data).hexdigest()}.png"}
    assert (tmp_path / "out" / names.pop()).read_bytes() == data
    assert (store.new, store.known) == (1, len(cells) - 1)


WRONG = [
    ("../a.png", "is outside"),
    ("/etc/hostname", "name the folder of the pictures with --images"),
    ("https://x.org/a.png", "not a URL"),
    ("pics/none.png", "does not exist"),
    ("", "a picture has no name"),
    ({"bytes": None, "path": None}, "neither bytes nor a path"),
    ({"bytes": None, "path": "https://x.org/a.png"}, "not a URL"),
    (b"GIF89a", "not a JPEG, PNG, WEBP image"),
    ("data:image/png;base64,####", "base64 is damaged"),
    ("data:text/html;base64,aaaa", "no picture in base64"),
]


@pytest.mark.parametrize("cell, said", WRONG, ids=[said for _, said in WRONG])
def test_what_is_no_picture_of_the_folder_is_refused(tmp_path, store, cell, said):
    """With a reason, and nothing is written."""
    with pytest.raises(ValueError, match=said):
        store.keep(cell)
    assert not (tmp_path / "out").exists()


def test_base64_has_a_limit(tmp_path, store, monkeypatch):
    """It is looked at before anything is decoded."""
    monkeypatch.setattr(pictures, "MAX_BYTES", 30)
    with pytest.raises(ValueError, match="larger than 30 bytes"):
        store.keep("data:image/png;base64," + "A" * 48)


def test_a_dry_run_writes_nothing(tmp_path):
    """But looks at every picture."""
    draw(tmp_path)
    store = PictureStore(tmp_path / "out", tmp_path, dry_run=True)
    assert store.keep("pics/0.png").startswith("images/") and store.new == 1
    assert not (tmp_path / "out").exists()
