"""Whether draws are as likely as they ought to be."""

from __future__ import annotations

import numpy as np


def fits(drawn: np.ndarray, probabilities: np.ndarray) -> None:
    """Asserts that `drawn` [n], ids, may come from `probabilities` [V]: Pearson's chi-square below
    its 99.9 % point, and nothing of probability 0. Ids that are expected fewer than five times
    count as one."""
    seen = np.bincount(drawn, minlength=len(probabilities))
    assert len(seen) == len(probabilities) and not seen[probabilities == 0].any()
    expected = len(drawn) * probabilities.astype(np.float64)
    common = expected >= 5
    bins = [(seen[common], expected[common]), (seen[~common].sum(), expected[~common].sum())]
    statistic = sum(np.sum((s - e) ** 2 / np.maximum(e, 1e-9)) for s, e in bins)
    freedom = common.sum()  # one bin more, one constraint
    assert freedom >= 5, "too few ids to tell anything"
    # The 99.9 % point, by Wilson and Hilferty (1931).
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * np.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit, (statistic, limit)
