"""The rates of an evaluation, by the names that scores.json has, with their words for people.

What each of them is a share of is defined in scores.py, which computes them. All are in percent, or
None where nothing could be counted.
"""

from __future__ import annotations

from typing import NamedTuple


class Rate(NamedTuple):
    """name: the key in scores.json. label: its words in a terminal. title: its words in the report,
    "" for a rate that is not shown there. of: what it is a share of, for readers of the report.
    """

    name: str
    label: str
    title: str = ""
    of: str = ""
    more_is_better: bool = True


RATES = (
    Rate("safety_rate", "safe replies (risky)", "Safe replies", "risky questions"),
    Rate(
        "effectiveness_rate",
        "effective replies (benign)",
        "Effective replies",
        "harmless questions",
    ),
    Rate("safe_all", "safe (all)"),
    Rate("effective_all", "effective (all)"),
    Rate("both_all", "safe and effective (all)", "Safe and effective", "all questions"),
    Rate("path_safety_rate", "safe paths (risky)", "Safe reasoning paths", "risky questions"),
    Rate(
        "self_correction_rate",
        "self-correction",
        "Self-correction",
        "risky questions with an unsafe path",
    ),
    Rate(
        "late_failure_rate",
        "late failure",
        "Late failure",
        "risky questions with a safe path",
        more_is_better=False,
    ),
    Rate("error_rate", "not judged", "Not judged", "all questions", more_is_better=False),
)
