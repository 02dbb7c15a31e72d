"""The methods of the micro world and the settings that are tried of each: six, on validation.

All sample at most 24 paths a question, have them judged, and take the same 60 steps of 8 questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from studies.method.protocol import Method

RATES = (5e-4, 1e-3, 2e-3)


def _grid(rates: Sequence[float] = RATES, **changes: Any) -> tuple[dict[str, Any], ...]:
    """Settings of all rates with the fields given; a list of values makes a setting each."""
    found: list[dict[str, Any]] = [{"rate": rate} for rate in rates]
    for name, value in changes.items():
        values = value if isinstance(value, list) else [value]
        found = [{**setting, name: each} for setting in found for each in values]
    return tuple(found)


SIX = (1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
WARM = {"warm": 0.5, "filtered": True}
OWN = {**WARM, "explore": "own"}
PATHS = {**WARM, "explore": "paths"}
LAM = [0.03, 0.1]

METHODS = {
    method.name: method
    for method in (
        Method("base", "the policy before training", ({"rate": 0.0},)),
        Method("sft", "the references", _grid(SIX)),
        Method("sft filtered", "the references that the arbiter passes", _grid(SIX, filtered=True)),
        Method(
            "rft",
            "those, and own passed paths, sampled from the base policy",
            _grid(filtered=True, explore="paths", teach=["first", "all"]),
        ),
        Method(
            "rft warm",
            "half of the steps on the references; then those and own passed paths",
            _grid(**PATHS, teach=["first", "all"]),
        ),
        Method(
            "orpo",
            "references or passed paths, and odds ratios of whole paths",
            _grid(filtered=True, explore="paths", lam=[0.03, 0.3]),
        ),
        Method(
            "dpo",
            "whole paths against the base policy, no L_ref",
            _grid(
                (2.5e-5, 1e-4, 4e-4),
                **{"filtered": True, "explore": "paths", "contrast": "dpo", "normalise": "sum"},
                ref=0.0,
                lam=[1.0, 3.0],
            ),
        ),
        Method(
            "dpo + L_ref",
            "the same with L_ref",
            _grid(
                **{"filtered": True, "explore": "paths", "contrast": "dpo", "normalise": "sum"},
                lam=[0.3, 1.0],
            ),
        ),
        Method(
            "srpo",
            "branches from the prefixes of the references, from the base policy",
            _grid(filtered=True, explore="reference", lam=LAM),
        ),
        Method(
            "srpo warm",
            "half of the steps on the references; then branches of references and passed paths",
            _grid(**OWN, lam=LAM),
        ),
        Method(
            "srpo warm, value",
            "the passed path of best prefixes",
            _grid(**OWN, lam=LAM, teach="value"),
        ),
        Method(
            "srpo warm, drop",
            "points weighed by the drop of value",
            _grid(**OWN, lam=LAM, weigh="drop"),
        ),
        Method(
            "srpo warm, balanced",
            "benign pairs count as risky ones",
            _grid(**OWN, lam=LAM, balanced=True),
        ),
        Method(
            "srpo warm, divergence",
            "odds from where two branches part",
            _grid(**OWN, lam=LAM, odds_from="divergence"),
        ),
        Method(
            "srpo warm, log-ratio",
            "a contrast without 1/(1-p)",
            _grid(**OWN, lam=[0.1, 0.3], contrast="simpo"),
        ),
        Method(
            "branches taught",
            "passed branches of all points by L_ref, no contrast",
            _grid(**OWN, points=[0.3, 1.0]),
        ),
        Method("srpo warm, 2 rounds", "explored again half-way", _grid(**OWN, lam=LAM, rounds=2)),
        Method(
            "rft warm, 2 rounds",
            "explored again half-way",
            _grid(**PATHS, teach=["first", "all"], rounds=2),
        ),
        Method(
            "recovery",
            "continuations after own unsafe steps, sampled",
            _grid(**PATHS, recover=[0.1, 0.3]),
        ),
        Method(
            "recovery by reference",
            "the same, the rest of the reference",
            _grid(**PATHS, recover=[0.1, 0.3], from_reference=True),
        ),
        Method(
            "recovery, contrast",
            "the same by odds ratios",
            _grid(**PATHS, recover_lam=[0.01, 0.05]),
        ),
        Method(
            "recovery + keep",
            "and half of the benign lessons are the policy's own",
            _grid(**PATHS, recover=[0.1, 0.3], keep=0.5),
        ),
        Method(
            "rft warm + keep",
            "benign lessons by half the policy's own",
            _grid(**PATHS, keep=[0.3, 0.7]),
        ),
        Method(
            "rft warm, mixed", "with a share of the base's weights", _grid(**PATHS, mix=[0.15, 0.3])
        ),
    )
}
