"""What the sampler is shaped for: found from headers and token counts, once."""

from __future__ import annotations

import pytest
from PIL import Image, ImageFile

from srpo_jax.config.convert import as_config
from srpo_jax.data_pipelines.records import RecordError, read_records
from srpo_jax.explore import explore as run
from srpo_jax.explore import explorer, room
from srpo_jax.inference.policy import Policy, load_policy
from tests.support.small_world import RecitingEngine, write_world


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(explorer, "Engine", RecitingEngine)
    (tmp_path / "world").mkdir()
    return write_world(tmp_path / "world")


def test_the_room_holds_every_question_and_decodes_none(config, monkeypatch):
    """It is that of the encoded prompts with their paths; of a picture the header is enough."""
    policy = load_policy(as_config(config))
    records = read_records(config.data.train_records)
    references = room.References(policy, records)
    paths = {name: pieces for name, (_, pieces) in references.items()}
    prompts = {record.id: policy.encode(record) for record in records}
    longest = max(
        len(prompts[name].tokens) + sum(map(len, pieces[:-2])) for name, pieces in paths.items()
    )
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    found = room.room_for(policy, records, references, 0)
    assert found.tokens == -(-longest // 16) * 16
    assert found.patches == max(prompt.num_patches for prompt in prompts.values())
    assert found.steps == max(len(pieces) - 1 for pieces in paths.values())
    assert found.last == max(len(pieces[-2]) for pieces in paths.values())
    whole = room.room_for(policy, records, None, 1000)
    longest = max(len(prompt.tokens) for prompt in prompts.values())
    assert (whole.tokens, whole.steps) == (-(-(longest + 1000) // 16) * 16, 1)


def test_a_bad_header_is_named_at_the_start_and_bad_pixels_when_they_come(config, tmp_path):
    """Nothing is sampled before every picture's header was seen; the record is named both times."""
    last = tmp_path / "world" / "images" / "4.png"
    whole = last.read_bytes()
    last.write_bytes(b"<html>")
    with pytest.raises(RecordError, match=r"record 'r4': .*4.png: not a JPEG, PNG, WEBP image"):
        run.explore(config, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.array_record"))
    last.write_bytes(whole[: len(whole) // 2])
    with Image.open(last) as image:
        assert image.size == (56, 56)  # its header is whole
    with pytest.raises(RecordError, match=r"record 'r4': .*4.png: cannot decode the image"):
        run.explore(config, tmp_path / "run")
    assert len(list((tmp_path / "run").rglob("*.array_record"))) == 1


def test_a_later_start_looks_at_no_picture(config, tmp_path, monkeypatch):
    """The room is kept with the run; another run's, or a damaged one, is found anew."""
    run.explore(config, tmp_path / "run")
    kept = tmp_path / "run" / "trees" / room.FILE
    before = kept.read_bytes()
    shard = max((tmp_path / "run" / "trees").glob("*.array_record"))
    calls = []
    outline = Policy.outline
    monkeypatch.setattr(
        Policy, "outline", lambda self, record: calls.append(record.id) or outline(self, record)
    )
    shard.unlink()
    shard.with_name(shard.name + ".manifest.json").unlink()
    run.explore(config, tmp_path / "run")
    assert calls == [] and kept.read_bytes() == before
    for damage in (before[:20], before.replace(b'"run": "', b'"run": "0')):
        kept.write_bytes(damage)
        shard.unlink()
        shard.with_name(shard.name + ".manifest.json").unlink()
        run.explore(config, tmp_path / "run")
        assert len(calls) == 5 and kept.read_bytes() == before
        calls.clear()
