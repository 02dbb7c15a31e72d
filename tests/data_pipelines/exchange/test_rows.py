"""Rows of foreign files: whatever their layout they come in order, and say where they stand."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_jax.data_pipelines.exchange import rows as rows_module
from srpo_jax.data_pipelines.exchange.rows import files_of, read_rows
from srpo_jax.errors import UserError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(TEXTS | st.integers(-9, 9) | st.none(), lambda v: st.lists(v, max_size=3))
OBJECTS = st.lists(st.dictionaries(TEXTS, VALUES, max_size=3), max_size=5)


@settings(max_examples=150, deadline=None)
@given(
    data=OBJECTS, indent=st.sampled_from([None, 1]), chunk=st.integers(1, 9), ascii=st.booleans()
)
def test_a_list_is_read_like_json_in_any_pieces(tmp_path_factory, data, indent, chunk, ascii):
    """The rows of a JSON list are what json.loads says, on the lines where they begin, however the
    file falls into the pieces that are read at once: also inside a sign of several bytes.
    """
    path = tmp_path_factory.mktemp("list") / "a.json"
    text = json.dumps(data, indent=indent, ensure_ascii=ascii)
    path.write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "CHUNK", chunk)
        found = list(read_rows(path))
    assert [row.data for row in found] == data and not any(row.error for row in found)
    if indent and data:
        starts = [i for i, line in enumerate(text.split("\n"), 1) if line.startswith(" {")]
        assert [int(row.where.rpartition(":")[2]) for row in found] == starts


BROKEN = [
    ('[{"a": 1}, {"a": }]', 1, "not JSON: Expecting value"),
    ('[{"a": 1} {"a": 2}]', 1, "'{' where a comma or the end of the list was to come"),
    ('[{"a": 1},', 1, "the list has no end"),
    ('[{"a": 1}', 1, "the list has no end"),
    ('[{"a": 1}] more', 1, "something stands behind the end of the list"),
    ('[{"a": 1},]', 1, "Expecting value"),
    ('[{"a": 1, "a": 2}]', 0, "field 'a' is given twice"),
    ('[{"a": NaN}]', 0, "NaN is not a JSON number"),
    ('{"a": 1}\n{"a": \n{"a": 3}', 2, "not JSON"),
    ('{"a": 1}\n[2]\n{"a": 3}', 2, "must be a JSON object"),
]


@pytest.mark.parametrize("text, good, said", BROKEN, ids=[said for _, _, said in BROKEN])
def test_what_is_broken_is_a_row_that_says_so(tmp_path, text, good, said):
    """One bad line does not hide the others; a list that breaks off ends with what is wrong."""
    (tmp_path / "a.json").write_text(text)
    found = list(read_rows(tmp_path / "a.json"))
    assert sum(not row.error for row in found) == good
    (bad,) = [row for row in found if row.error]
    assert said in bad.error and bad.where.startswith(f"{tmp_path / 'a.json'}:")


def test_a_row_that_is_too_long_is_passed(tmp_path, monkeypatch):
    """It is not read into memory, and the next one is."""
    monkeypatch.setattr(rows_module, "MAX_ROW", 64)
    (tmp_path / "a.jsonl").write_text(json.dumps({"a": "x" * 1000}) + '\n{"b": 1}\n')
    found = list(read_rows(tmp_path / "a.jsonl"))
    assert found[0].error == "the row is longer than 64 bytes" and found[1].data == {"b": 1}
    assert found[1].where.endswith(":2")


def test_files_of_a_folder(tmp_path):
    """A folder stands for its files of one kind, in name order, as a data set of the Hub; what
    lies beside data is none, and of two kinds one has to be named.
    """
    (tmp_path / "data").mkdir()
    for name in ("data/b.jsonl", "data/a.jsonl", "data/state.json", "README.md"):
        (tmp_path / name).write_text("{}\n")
    assert [path.name for path in files_of(tmp_path)] == ["a.jsonl", "b.jsonl"]
    (tmp_path / "data/c.json").write_text("[]")
    for place, said in (
        (tmp_path, "several kinds of files"),
        (tmp_path / "none", "no such file or folder"),
        (tmp_path / "README.md", "a file of one of these is read"),
    ):
        with pytest.raises(UserError, match=said):
            files_of(place)


def test_parquet_and_arrow_hold_pictures_themselves(tmp_path):
    """Cells of Hugging Face's datasets ({bytes, path}), in Parquet, in an Arrow file and in an
    Arrow stream: rows come with their row group and number, and null is no value.
    """
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"image": {"bytes": b"x%d" % i, "path": None}, "n": i} for i in range(70)]
    made = arrow.Table.from_pylist(rows)
    parquet.write_table(made, tmp_path / "a.parquet", row_group_size=40)
    with arrow.ipc.new_file(tmp_path / "b.arrow", made.schema) as sink:
        sink.write_table(made)
    with arrow.ipc.new_stream(tmp_path / "c.arrow", made.schema) as sink:
        sink.write_table(made)
    for name in ("a.parquet", "b.arrow", "c.arrow"):
        found = list(read_rows(tmp_path / name))
        assert [row.data for row in found] == rows
    found = list(read_rows(tmp_path / "a.parquet"))
    assert found[69].where == f"{tmp_path / 'a.parquet'}: row group 1: row 29"
    (tmp_path / "d.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"d\.parquet: cannot be read"):
        list(read_rows(tmp_path / "d.parquet"))
