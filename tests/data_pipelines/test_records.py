"""The record format: what is accepted, and one message for every way to get it wrong."""

from __future__ import annotations

import json
import pathlib

import pytest
from PIL import Image

from srpo_jax.data_pipelines.records import (
    CATEGORIES,
    Record,
    RecordError,
    read_records,
    write_records,
)
from tests.support import ROOT

DOCS = ROOT / "docs" / "data.md"
GOOD = {
    "id": "r1",
    "images": ["a.png"],
    "question": "What is this?",
    "reference": {"steps": ["It is red.", "Say so."], "reply": "A red square."},
}


def without(name: str) -> dict:
    return {key: value for key, value in GOOD.items() if key != name}


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
