"""The record format: what is accepted, and one message for every way to get it wrong."""

from __future__ import annotations

import json
import os
import pathlib
import time
import tracemalloc
from dataclasses import asdict

import pytest
from PIL import Image

from srpo_jax.data_pipelines.records import (
    CATEGORIES,
    MAX_LINE,
    Record,
    RecordError,
    read_records,
    write_records,
)
from srpo_jax.data_pipelines.tree_store import read_shards
from srpo_jax.errors import UserError
from tests.support import ROOT, judged

DOCS = ROOT / "docs" / "data.md"
GOOD = {
    "id": "r1",
    "images": ["a.png"],
    "question": "What is this?",
    "reference": {"steps": ["It is red.", "Say so."], "reply": "A red square."},
}


def without(name: str) -> dict:
    return {key: value for key, value in GOOD.items() if key != name}


def nested(depth: int) -> dict:
    """A value of so many levels."""
    value: dict = {}
    for _ in range(depth):
        value = {"x": value}
    return value


# What is wrong, and what docs/data.md says about it. FOLDER is the folder of the JSONL file.
BAD = [
    (b'{"id": "r1"', "not JSON: Expecting ',' delimiter at column 12"),
    (b'["a"]', "a record must be a JSON object"),
    (b'{"id": "\xff"}', "not UTF-8 at byte 8"),
    (b'{"id": "r1", "id": "r2"}', "field 'id' is given twice"),
    (b'{"id": NaN}', "NaN is not a JSON number"),
    (b"[" * 200_000, "not JSON: nested too deeply"),
    (without("question"), "field 'question' is missing"),
    (
        GOOD | {"imgs": []},
        "unknown field 'imgs' (known: id, images, question, reference, category, "
        "risky, unsafe_reply, source, license, meta)",
    ),
    (GOOD | {"id": 7}, "id must be a string, not int"),
    (GOOD | {"id": " "}, "id is empty"),
    (GOOD | {"id": "a\nb"}, "id must be printable, on one line"),
    (GOOD | {"question": ""}, "question is empty"),
    (GOOD | {"question": "\ud800"}, "question holds half a surrogate pair"),
    (GOOD | {"images": "a.png"}, "images must be a list, not str"),
    (GOOD | {"images": [1]}, "images[0] must be a string, not int"),
    (GOOD | {"question": "<image> or <image>?"}, "question has 2 <image> markers for 1 images"),
    (GOOD | {"images": ["b.png"]}, "image 'b.png' does not exist under FOLDER"),
    (GOOD | {"images": ["../a.png"]}, "image '../a.png' is outside FOLDER"),
    (GOOD | {"images": ["out.png"]}, "image 'out.png' is outside FOLDER"),
    (
        GOOD | {"images": ["/etc/hostname"]},
        "image '/etc/hostname' must be a relative file name, not a URL or absolute path",
    ),
    (
        GOOD | {"images": ["https://x.org/a.png"]},
        "image 'https://x.org/a.png' must be a relative file name, not a URL or absolute path",
    ),
    (GOOD | {"images": ["loop"]}, "does not exist under FOLDER"),
    (GOOD | {"images": ["x" * 300]}, "does not exist under FOLDER"),
    (GOOD | {"reference": "text"}, "reference must be an object with exactly 'steps' and 'reply'"),
    (
        GOOD | {"reference": {"steps": ["a"]}},
        "reference must be an object with exactly 'steps' and 'reply'",
    ),
    (
        GOOD | {"reference": {"steps": [], "reply": "b"}},
        "reference.steps is empty: a path needs at least one step",
    ),
    (GOOD | {"reference": {"steps": ["a", ""], "reply": "b"}}, "reference.steps[1] is empty"),
    (GOOD | {"reference": {"steps": ["a"], "reply": ""}}, "reference.reply is empty"),
    (GOOD | {"category": "theft"}, "category 'theft' is not one of dangerous_behavior, violence, "),
    (GOOD | {"risky": "yes"}, "risky must be true, false or null"),
    (GOOD | {"unsafe_reply": ""}, "unsafe_reply is empty"),
    (GOOD | {"meta": []}, "meta must be an object"),
    (GOOD | {"images": ["a.png"] * 100_000}, "images has 100000 names, the limit is 512"),
    (b'{"meta": {"x": 1e999}}', "1e999 is too large a number"),
    (b'{"meta": [-1%s]}' % (b"0" * 400 + b".0"), "-1000000000000000000... is too large a number"),
    (b'{"meta": 18446744073709551616}', "18446744073709551616 is too large a number: 64 bits"),
    (b'{"meta": -9223372036854775809}', "is too large a number: 64 bits"),
    (b'{"meta": 1%s}' % (b"0" * 9999), "10000000000000000000... is too large a number: 64 bits"),
    (GOOD | {"meta": nested(65)}, "meta is nested more than 64 deep"),
    (GOOD | {"meta": nested(600)}, "meta is nested more than 64 deep"),
    (GOOD | {"meta": {"x": ["\ud800"]}}, "meta holds half a surrogate pair"),
    (GOOD | {"meta": {"\ud800": 1}}, "meta holds half a surrogate pair"),
    (b" " * 9 + b"x" * (10 * 2**20), "the line is longer than 10485760 bytes"),
    (GOOD | {"source": None}, "source must be a string, not NoneType"),
]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    for name in (root / "a.png", tmp_path / "a.png"):
        Image.new("RGB", (8, 8), "red").save(name)
    (root / "out.png").symlink_to(tmp_path / "a.png")
    (root / "loop").symlink_to(root / "loop")
    return root


def write(folder, *lines) -> pathlib.Path:
    path = folder / "records.jsonl"
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


@pytest.mark.parametrize("line, why", BAD, ids=[why[:40] for _, why in BAD])
def test_bad_record_is_named(folder, line, why):
    """One line with file, line number, id and reason; the reason stands in docs/data.md."""
    path = write(folder, GOOD | {"id": "r0"}, line)
    with pytest.raises(RecordError) as caught:
        read_records(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:2: record") and "\n" not in message
    assert why in message.replace(str(folder), "FOLDER")
    assert message.endswith("(1 of 2 records are bad)")
    if isinstance(line, dict) and line.get("id") == "r1":
        assert "record 'r1': " in message
    assert why in DOCS.read_text(encoding="utf-8")


def test_bad_file_is_named(folder):
    """Duplicate ids name both lines; an empty or missing file is refused too."""
    with pytest.raises(RecordError, match=r":3: record 'r1': duplicate id, first used on line 1"):
        read_records(write(folder, GOOD, GOOD | {"id": "r2"}, GOOD))
    with pytest.raises(RecordError, match="holds no record"):
        read_records(write(folder, b""))
    with pytest.raises(RecordError, match="cannot open the records: No such file"):
        read_records(folder / "nope.jsonl")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_does_not_end_is_no_file_of_records(folder, kind):
    """A pipe is not waited for and a device not read to its end, which never comes."""
    path = folder / "records.jsonl"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="records.jsonl is no regular file"):
        read_records(path)


def test_a_line_that_is_too_long_costs_no_memory_and_no_other_line(folder):
    """It is one bad record, whatever its length; the lines around it are read."""
    path = write(folder, GOOD, b"x" * (100 * 2**20), GOOD | {"id": "r3"})
    tracemalloc.start()
    records = read_records(path, max_bad_fraction=0.5)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [record.id for record in records] == ["r1", "r3"]
    assert most < 50 * 2**20
    exact = json.dumps(GOOD).encode()
    assert len(read_records(write(folder, exact + b" " * (MAX_LINE - len(exact) - 1)))) == 1


def test_a_field_that_is_repeated_late_is_found_at_once(folder):
    """Not by looking for every one of a million fields in all of them."""
    fields = "".join(f'"{i}":0,' for i in range(300_000))
    start = time.process_time()
    with pytest.raises(RecordError, match="field '299999' is given twice"):
        read_records(write(folder, f'{{{fields}"299999":0}}'.encode()))
    assert time.process_time() - start < 5


def test_what_a_record_may_hold_a_tree_record_holds(folder):
    """The largest numbers and the deepest `meta` that are read survive the way through a shard:
    what cannot be kept is told before anything is sampled for it."""
    meta = {"a": 2**64 - 1, "b": -(2**63), "c": 1.7e308, "d": nested(62), "e": "é\u2028"}
    (record,) = read_records(write(folder, GOOD | {"meta": meta}))
    tree = judged.plain(judged.tree("r1", meta=record.meta))
    assert judged.write_trees(folder / "trees", [tree])
    assert read_shards(folder / "trees")[0]["meta"] == meta == asdict(record)["meta"]


def test_bad_share_is_counted_and_named(folder, capsys):
    """max_bad_fraction above the share: every bad record is named on stderr, the rest is read."""
    path = write(folder, GOOD, GOOD | {"id": "r2", "risky": 1}, b"{", GOOD | {"id": "r4"})
    records = read_records(path, max_bad_fraction=0.5)
    assert [record.id for record in records] == ["r1", "r4"]
    said = capsys.readouterr().err
    assert f"{path}:2: record 'r2': risky" in said and f"{path}:3: record: not JSON" in said
    assert "left out 2 of 4 records" in said
    with pytest.raises(RecordError, match="2 of 4 records are bad"):
        read_records(path, max_bad_fraction=0.49)


def test_a_mark_at_the_start_is_no_part_of_the_first_line(folder):
    """Editors of Windows write one before UTF-8; nowhere else is it left out."""
    path = write(folder, GOOD, GOOD | {"id": "r2"})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [record.id for record in read_records(path)] == ["r1", "r2"]
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n\xef\xbb\xbf", 1))
    with pytest.raises(RecordError, match=":2: record: "):
        read_records(path)


def test_write_then_read_gives_the_same_records(folder):
    """Every field survives, text outside ASCII too; optional fields may be absent or null."""
    full = Record(
        id="ä-1",
        images=("a.png", "a.png"),
        question="<image>和<image>?",
        steps=("一", " b"),
        reply="multi\nline",
        category=CATEGORIES[0],
        risky=True,
        unsafe_reply="no",
        source="ssui",
        license="CC0",
        meta={"x": [1, None]},
        root=str(folder),
    )
    plain = Record(id="2", images=(), question="q", steps=("a",), reply="b", root=str(folder))
    write_records([full, plain], folder / "w.jsonl")
    assert read_records(folder / "w.jsonl") == [full, plain]
    null = GOOD | {"category": None, "risky": None, "unsafe_reply": None}
    assert read_records(write(folder, null))[0].category is None
    assert full.image_paths() == [folder / "a.png"] * 2


def test_a_step_may_have_several_lines(folder):
    """Steps keep their line breaks, whatever the file's are; which paths can be written is the
    path format's to say, not the file's."""
    path = write(folder, GOOD | {"reference": {"steps": ["a\r\nb\rc", "Reply: d"], "reply": "e"}})
    assert read_records(path)[0].steps == ("a\nb\nc", "Reply: d")


def test_example_of_the_docs_is_valid(folder):
    """The record shown in docs/data.md is read without complaint."""
    block = DOCS.read_text(encoding="utf-8").split("```json\n")[1].split("```")[0]
    record = json.loads(block)
    (folder / "images").mkdir()
    for name in record["images"]:
        Image.new("RGB", (8, 8)).save(folder / name, "JPEG")
    assert read_records(write(folder, record))[0].risky is True
