"""The methods of the micro world and the settings that are tried: four of each, six of SFT, two of
variants that have their rate from the method they vary. The last ones were tried later.

All sample at most 24 paths a question, have them judged, and take the same 60 steps of 8 questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from studies.method.protocol import Method

RATES = (5e-4, 1e-3)


def _grid(rates: Sequence[float] = RATES, **changes: Any) -> tuple[dict[str, Any], ...]:
    """Settings of all rates with the fields given; a list of values makes a setting each."""
    found: list[dict[str, Any]] = [{"rate": rate} for rate in rates]
    for name, value in changes.items():
        values = value if isinstance(value, list) else [value]
        found = [{**setting, name: each} for setting in found for each in values]
    return tuple(found)


SIX = (1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
ONE = (1e-3,)  # rate of what is varied on a method that has both
LOW = (5e-4,)
MIX = [0.15, 0.3, 0.45, 0.6]
FILTERED = {"filtered": True}
PATHS = {**FILTERED, "explore": "paths"}
OWN = {**FILTERED, "explore": "own"}
WARM = {"warm": 0.5}
LAM = [0.03, 0.1]
DPO = {**PATHS, "contrast": "dpo", "normalise": "sum"}

METHODS = {
    method.name: method
    for method in (
        Method("base", "the policy before training", ({"rate": 0.0},)),
        Method("sft", "the references", _grid(SIX)),
        Method("sft filtered", "the references that the arbiter passes", _grid(SIX, **FILTERED)),
        Method(
            "rft",
            "those, and own passed paths of the questions without one, sampled from the base",
            _grid(**PATHS, teach=["first", "all"]),
        ),
        Method(
            "rft warm",
            "half of the steps on the references; the own paths are sampled from there",
            _grid(**PATHS, **WARM, teach=["first", "all"]),
        ),
        Method("orpo", "rft, and odds ratios of whole paths", _grid(**PATHS, lam=[0.03, 0.3])),
        Method(
            "dpo",
            "whole paths against the base policy, no L_ref",
            _grid((2.5e-5, 1e-4), **DPO, ref=0.0, lam=[1.0, 3.0]),
        ),
        Method("dpo + L_ref", "rft, and the same", _grid(**DPO, lam=[0.3, 1.0])),
        Method(
            "srpo",
            "references, and branches from their prefixes",
            _grid(**FILTERED, explore="reference", lam=LAM),
        ),
        Method(
            "srpo own",
            "rft, and branches from the prefixes of references and own passed paths",
            _grid(**OWN, lam=LAM),
        ),
        Method("srpo own, warm", "the same after a warm-up", _grid(ONE, **OWN, **WARM, lam=LAM)),
        Method(
            "srpo own, value",
            "from the passed path whose prefixes have most value",
            _grid(ONE, **OWN, lam=LAM, teach="value"),
        ),
        Method(
            "srpo own, drop",
            "branch points weighed by the value that the next step saves",
            _grid(ONE, **OWN, lam=LAM, weigh="drop"),
        ),
        Method(
            "srpo own, balanced",
            "benign pairs count as much as risky ones",
            _grid(ONE, **OWN, lam=LAM, balanced=True),
        ),
        Method(
            "srpo own, divergence",
            "odds from where two branches part",
            _grid(ONE, **OWN, lam=LAM, odds_from="divergence"),
        ),
        Method(
            "srpo own, log-ratio",
            "a contrast without 1/(1-p)",
            _grid(ONE, **OWN, lam=[0.1, 0.3], contrast="simpo"),
        ),
        Method(
            "branches taught",
            "rft, and the passed branches of all points by L_ref, no contrast",
            _grid(**OWN, points=[0.3, 1.0]),
        ),
        Method(
            "branches taught, value",
            "the same from the passed path whose prefixes have most value",
            _grid(ONE, **OWN, points=[1.0, 2.0], teach="value"),
        ),
        Method(
            "rft, 2 rounds", "sampled again half-way", _grid(**PATHS, teach="all", rounds=[2, 3])
        ),
        Method(
            "srpo own, 2 rounds", "sampled again half-way", _grid(ONE, **OWN, lam=LAM, rounds=2)
        ),
        Method(
            "recovery",
            "rft, and safe continuations after own unsafe steps",
            _grid(**PATHS, recover=[0.1, 0.3], teach="all"),
        ),
        Method(
            "recovery by reference",
            "the same, where the continuation is the rest of the reference",
            _grid(**PATHS, recover=[0.1, 0.3], teach="all", from_reference=True),
        ),
        Method(
            "recovery, contrast",
            "the same by odds ratios of such continuations",
            _grid(ONE, **PATHS, recover_lam=[0.01, 0.05], teach="all"),
        ),
        Method(
            "rft, safe paths",
            "an own path passes by all its decisions, not by its reply",
            _grid(ONE, **PATHS, scope="path", teach=["first", "all"]),
        ),
        Method(
            "srpo own, safe paths",
            "the same of branches",
            _grid(ONE, **OWN, scope="path", lam=[0.03, 0.1]),
        ),
        Method(
            "recovery, safe paths",
            "safe paths, and continuations that end safe after own unsafe steps",
            _grid(ONE, **PATHS, scope="path", teach="all", recover=[0.1, 0.3]),
        ),
        Method(
            "rft + keep",
            "benign lessons partly own paths",
            _grid(ONE, **PATHS, keep=[0.3, 0.7], teach="all"),
        ),
        Method(
            "rft, mixed",
            "with a share of the base's weights",
            _grid(ONE, **PATHS, mix=[0.15, 0.3], teach="all"),
        ),
        Method(
            "rft + KL",
            "near the base policy on own branches of benign questions",
            _grid(ONE, **PATHS, kl=[0.3, 3.0], teach="all"),
            later=True,
        ),
        Method(
            "srpo own + KL",
            "the same",
            _grid(LOW, **OWN, lam=0.1, kl=[0.3, 3.0]),
            later=True,
        ),
        Method(
            "srpo own, share",
            "the contrast has a share of the gradient, not a weight",
            _grid(LOW, **OWN, share=[0.1, 0.3, 1.0]),
            later=True,
        ),
        Method(
            "srpo own, chosen points",
            "branches at two of six points, as many in all",
            _grid(LOW, **OWN, lam=0.1, choose=["entropy", "drop"]),
            later=True,
        ),
        Method(
            "branches taught, chosen points",
            "the same",
            _grid(ONE, **OWN, points=1.0, choose=["entropy", "drop"]),
            later=True,
        ),
        Method(
            "srpo own, lambda",
            "over a wider range",
            _grid(LOW, **OWN, lam=[0.01, 0.3, 1.0]),
            later=True,
        ),
        Method(
            "srpo own, mixed",
            "with a share of the base's weights",
            _grid(LOW, **OWN, lam=0.1, mix=MIX),
            later=True,
        ),
        Method("sft filtered, mixed", "the same", _grid((2e-3,), **FILTERED, mix=MIX), later=True),
    )
}
