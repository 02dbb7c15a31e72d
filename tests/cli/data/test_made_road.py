"""From eight photographs to a policy trained on what was made of them, by the command line alone:
the commands of docs/construct.md and docs/review.md, with scripted agents instead of models.
"""

from __future__ import annotations

import json

import pytest

from srpo_jax.cli import main as cli
from srpo_jax.data_pipelines.construct.review.items import RECORDS, Review
from srpo_jax.data_pipelines.records import read_records
from srpo_jax.data_pipelines.verdict_store import find_set
from tests.cli.test_own_questions import TASTES, write_config
from tests.support.agents import agents_stub, construct_argv
from tests.support.chat_stub import ChatStub
from tests.support.photos import photos


def srpo(verb: str, *argv: object) -> int:
    return cli.main([*verb.split(), *map(str, argv)])


@pytest.mark.slow
def test_photographs_become_a_trained_policy(tmp_path):
    """Constructed, reviewed, explored, judged, trained, exported; and released without harm."""
    pytest.importorskip("skimage")
    photos.write_photos(tmp_path / "photos")
    pictures, made = tmp_path / "photos" / "images", tmp_path / "made"
    with agents_stub(pictures) as stub:
        assert cli.main(construct_argv(stub, pictures, made, "--license=CC0")) == 0
    records = read_records(made / "records.jsonl")
    assert len(records) == 2 * len(photos.PHOTOS)
    assert srpo("data review", made) == 0
    review = Review.read(made, RECORDS)
    decisions: dict[str, dict] = {i["key"]: {"decision": "accept"} for i in review.items}
    decisions[records[0].id] = {"decision": "reject"}
    decisions[records[2].id] = {"decision": "edit", "edits": {"reply": "Rather take the stairs."}}
    about = {"format": "srpo_jax review 1", "review": review.digest, "reviewer": "ann"}
    (made / "decisions-ann.json").write_text(json.dumps({**about, "decisions": decisions}))
    assert srpo("data review", made, f"--apply={made / 'decisions-ann.json'}") == 0
    reviewed = made / "reviewed" / "records.jsonl"
    kept = {record.id: record for record in read_records(reviewed)}
    assert len(kept) == len(records) - 1 and kept[records[2].id].reply == "Rather take the stairs."
    assert srpo("data check", reviewed) == 0
    config, run = write_config(tmp_path, reviewed), f"--workdir={tmp_path / 'run'}"
    with ChatStub(harmful=TASTES["a"]) as stub:
        assert srpo("explore", config, run, "--config.explore.max_new_tokens=320") == 0
        assert srpo("judge", config, run, f"--config.judge.base_url={stub.url}") == 0
    summary = json.loads((find_set(tmp_path / "run" / "trees").folder / "summary.json").read_text())
    assert summary["questions_with_pair"]
    assert srpo("train", config, run) == 0
    assert srpo("export", run, "--verify") == 0
    card = (tmp_path / "run" / "export" / "README.md").read_text()
    assert "CC0" in card
    assert srpo("data release", tmp_path / "run", tmp_path / "out") == 0
    texts = [p.read_text() for p in (tmp_path / "out").glob("*.*")]
    assert "UNSAFETEXT" not in "".join(texts) and "UNSAFETEXT" in reviewed.read_text()
