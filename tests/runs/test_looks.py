"""srpo_jax/runs/looks.py: every policy that was tested counts, and counts once."""

from srpo_jax.files import read_json
from srpo_jax.runs.looks import FILE, count_look, tell_look


def test_a_look_is_counted_once(tmp_path):
    """Another policy, set or way to decode is another look; the same again, under any name, is
    not."""
    about = {"policy_digest": "a", "prompt_digest": "p", "records": "r", "decoding": {"dtype": "x"}}
    assert count_look(tmp_path, "before", about) == 1
    assert count_look(tmp_path, "after", {**about, "policy_digest": "b"}) == 2
    assert count_look(tmp_path, "again", {**about, "more": 1}) == 1
    assert count_look(tmp_path, "other", {**about, "decoding": {"dtype": "y"}}) == 3
    found = read_json(tmp_path / FILE)["looks"]
    assert [look["evaluation"] for look in found] == ["before", "after", "other"]


def test_a_look_is_told(tmp_path, capsys):
    """With its number, and where all are; one at other questions is none."""
    tell_look(tmp_path, "before", {"policy_digest": "a", "decoding": {"split": "validation"}})
    for policy in "aba":
        tell_look(tmp_path, "rsbench", {"policy_digest": policy, "benchmark": "rsbench"})
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(" of ")[0] for line in said] == [
        f"rsbench: test questions, look {i}" for i in (1, 2, 1)
    ]
    assert FILE in said[0]
