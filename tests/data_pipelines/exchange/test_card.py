"""The data card and licences: only what lies there, and no markup of strangers."""

from __future__ import annotations

import json

import pytest

from srpo_jax.cli import main as cli
from srpo_jax.data_pipelines.exchange.card import MARK, data_card
from srpo_jax.data_pipelines.exchange.licenses import forbids, told
from srpo_jax.errors import UserError
from srpo_jax.export.model_card import model_card
from tests.support.foreign import write_rows


@pytest.mark.parametrize(
    "name, said",
    [
        ("CC-BY-NC-4.0", ["no commercial use"]),
        ("cc by-nc-sa 4.0", ["no commercial use", "what is made of it has the same licence"]),
        ("CC BY-ND 4.0", ["nothing made of it may be passed on"]),
        ("research only (VLGuard)", ["research only"]),
        ("Non-Commercial", ["no commercial use"]),
        ("Apache-2.0", []),
        ("MIT", []),
        ("", ["unknown: nobody has said whether it may be used"]),
    ],
)
def test_what_a_name_forbids(name, said):
    """Nothing is read into a licence but what its name says."""
    assert forbids(name) == said


def imported(tmp_path, license="CC-BY-NC-4.0"):
    rows = [{"id": "<b>", "prompt": "Q", "chosen": "a", "rejected": "b", "x|y": 1}]
    rows.append({"prompt": "Q", "chosen": "a", "rejected": "a"})
    path = write_rows(tmp_path / "a[1].jsonl", rows)
    argv = ["data", "import", str(path), str(tmp_path / "out"), "--allow_bad=1"]
    assert cli.main([*argv, f"--license={license}"]) == 0
    return tmp_path / "out"


def test_the_card_of_an_import(capsys, tmp_path):
    """Origin with its sum, what was left out and why, licences with what they forbid; names of
    others are no markup. It is written anew, but never over a file of others.
    """
    out = imported(tmp_path)
    card = (out / "README.md").read_text()
    assert card.startswith(MARK) and card == data_card(out)
    assert "a\\[1\\].jsonl: SHA-256" in card and "x\\|y (1)" in card
    assert "| rows left out, as they cannot be used | 1 |" in card
    assert "the chosen and the rejected answer say the same" in card
    assert "CC-BY-NC-4.0 (no commercial use): 1 questions" in card
    assert str(tmp_path) not in card
    (out / "README.md").write_text("mine")
    assert cli.main(["data", "card", str(out)]) == 2
    assert "no data card of ours" in capsys.readouterr().err
    assert (out / "README.md").read_text() == "mine"
    assert cli.main(["data", "card", str(out), f"--out={tmp_path / 'card.md'}"]) == 0
    with pytest.raises(UserError, match=r"there is no import\.json"):
        data_card(tmp_path)


def test_review_by_people_is_told(tmp_path):
    """What a calibration keeps, with its intervals, escaped; of verdicts that another judge gave
    since it is said; without one, how to get there.
    """
    out = imported(tmp_path)
    assert "Not recorded here; `srpo data review` and `srpo judge calibrate` keep it" in data_card(
        out
    )
    rate = {"value": 0.9, "low": 0.8, "high": 0.95}
    kept = {
        "judge": {"set": "s", "arbiter": "a*b", "digest": "d1"},
        "answers": "",
        "labels": {"people": 2, "cases": 30, "files": {"l[1].jsonl": "0f"}},
        "confusion": {},
        "estimates": {"sensitivity": rate, "specificity": None, "agreement": rate},
        "kappa": 0.71,
        "alpha": None,
        "alpha_people": 0.8,
    }
    (out / "calibration.json").write_text(json.dumps(kept))
    (out / "calibration-b.json").write_text(json.dumps({**kept, "answers": "after"}))
    (out / "calibration-c.json").write_text("{}")
    place = out / "verdicts/s"
    place.mkdir(parents=True)
    (place / "judge.json").write_text(json.dumps({"arbiter": "a*b", "digest": "d1"}))
    card = data_card(out)
    assert "* a\\*b, digest d1, verdict set s, on the trees: 30 cases labelled by 2 people" in card
    assert "on the answers after" in card and "calibrate again" not in card
    assert "  * Cohen's kappa 0.71, alpha of the people alone 0.80\n" in card
    assert "  * sensitivity 90.0 % (80.0 to 95.0), agreement 90.0 % (80.0 to 95.0); 95 %" in card
    assert "  * l\\[1\\].jsonl: SHA-256 `0f`" in card and "Not recorded" not in card
    (place / "judge.json").write_text(json.dumps({"arbiter": "a*b", "digest": "d2"}))
    assert data_card(out).count("of another judge by now: calibrate again") == 2


def test_a_licence_reaches_the_model_card(tmp_path):
    """A model that was trained on trees of an import, or explored from its records, says under
    which licences its data is, and what they forbid.
    """
    out = imported(tmp_path)
    base = {"model": {"path": "base"}, "train": {"steps": 1}, "seed": 0, "objective": {}}
    for data in ({"trees": str(out / "trees")}, {"train_records": str(out / "records.jsonl")}):
        (tmp_path / "config.json").write_text(json.dumps({"config": {**base, "data": data}}))
        card = model_card(tmp_path, {**base, "data": data}, step=1)
        assert "licences of the data:" in card and told("CC-BY-NC-4.0") in card
