"""Where records come from: the embedded world's splits and switches by name, each drawn once."""

from __future__ import annotations

import pytest

from srpo_jax.data_pipelines.records import read_records
from srpo_jax.data_pipelines.sources import records_path
from srpo_jax.errors import UserError

FIELD = "data.train_records"


def test_a_file_is_a_file(tmp_path):
    """Whatever is not the world's name is a path, and nothing is drawn."""
    assert str(records_path("my/records.jsonl", tmp_path, field=FIELD)) == "my/records.jsonl"
    assert list(tmp_path.iterdir()) == []


def test_a_split_is_drawn_once_and_each_choice_of_switches_has_its_folder(tmp_path, capsys):
    """The default in data/ssui_mini; equal switches are one folder, however they are spelled."""
    plain = records_path("ssui_mini:validation", tmp_path, field=FIELD)
    assert plain == tmp_path / "data" / "ssui_mini" / "validation.jsonl"
    assert [path.name for path in plain.parent.glob("*.jsonl")] == ["validation.jsonl"]
    assert "drew ssui_mini: 216 validation records, 108 pictures" in capsys.readouterr().out
    written = plain.stat().st_mtime_ns
    assert records_path("ssui_mini:validation,steps=6", tmp_path, field=FIELD) == plain
    assert plain.stat().st_mtime_ns == written and capsys.readouterr().out == ""

    other = records_path("ssui_mini:test,variants=1,wrong=0.50", tmp_path, field=FIELD)
    assert other == tmp_path / "data" / "ssui_mini,wrong=0.5,variants=1" / "test.jsonl"
    assert records_path("ssui_mini:test,wrong=.5,variants=1", tmp_path, field=FIELD) == other
    records = read_records(other)
    assert len(records) == 108 and sum(r.meta["wrong_reference"] for r in records) == 27
    assert all(path.is_file() for r in records for path in r.image_paths())


@pytest.mark.parametrize(
    "spec, said",
    [
        ("", "data.train_records is empty"),
        ("ssui_mini", "data.train_records 'ssui_mini': ssui_mini has the splits train, validation"),
        ("ssui_mini:dev", "has the splits train, validation, test"),
        ("ssui_mini:train?wrong=0.3", "switches follow after a comma"),
        ("ssui_mini:train,", "'' is not NAME=VALUE"),
        ("ssui_mini:train,steps=20", "'ssui_mini:train,steps=20': steps=20 is not from 6 to 12"),
    ],
)
def test_what_is_not_there_is_told(tmp_path, spec, said):
    """With the field and the whole of what it says; nothing is drawn."""
    with pytest.raises(UserError, match=said.replace("?", "[?]")):
        records_path(spec, tmp_path, field=FIELD)
    assert list(tmp_path.iterdir()) == []
