"""The demo's table says what the report says."""

from __future__ import annotations

from srpo_jax.cli.demo import COLUMNS, table


def test_a_share_is_rounded_once():
    """53 of 54 are 98.1 percent, also over seeds; rounded to two digits first, 98.2."""
    row = {name: None for name, _ in COLUMNS} | {"path_safety_rate": 100 * 53 / 54}
    one = table({"srpo": [row]})
    several = table({"srpo": [row, row]})
    assert "98.1" in one and "98.2" not in one
    assert "98.1 ± 0.0" in several
