"""What a method can differ in, in the micro world. All else is alike for all of them: references,
verdicts, at most 24 sampled and judged paths a question, and the number of steps.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A method, with its settings.

    rate: of learning. lam: weight of the contrast. filtered: references that the arbiter does not
    pass are left out. warm: the share of the steps that go to the references first; what is
    sampled, is sampled from that policy. explore: "none"; "reference", branches from each prefix of
    a reference path; "paths", whole paths; "own", where there is no reference path a passed one of
    the policy takes its place, and branches are sampled from it. teach: which own path stands in
    for a reference: the "first" that passed, the one whose prefixes have most "value", or "all".
    points: passed branches of all branch points are taught too, with this weight. contrast,
    normalise, odds_from: of the objective. weigh: branch points count "even", or by the "drop" that
    the reference's step avoids. balanced: benign pairs count as much as risky ones. recover: the
    weight of continuations that end safe after an unsafe step of the policy's own; from_reference:
    these are the rest of the reference, not sampled. keep: benign questions are taught by this
    share on the policy's own paths, whatever they are. mix: this share of the base policy's weights
    is mixed into the result. rounds: of exploring and training. ref: weight of L_ref. scope: by
    what an own path passes, its "reply", or every decision of its "path". share: the gradient of
    the contrast has this share of the norm of L_ref's, in every step, whatever lam is. choose: own
    exploration branches at "all" points, or at the two of six where the policy's "entropy" over
    the next step is largest, or where the next step saves most value ("drop"). kl: weight of the
    divergence from the policy that was sampled, on its own branches of benign questions.
    """

    rate: float = 1e-3
    lam: float = 0.0
    filtered: bool = False
    warm: float = 0.0
    explore: str = "none"
    teach: str = "first"
    points: float = 0.0
    contrast: str = "odds_ratio"
    normalise: str = "mean"
    odds_from: str = "branch"
    weigh: str = "even"
    balanced: bool = False
    recover: float = 0.0
    recover_lam: float = 0.0
    from_reference: bool = False
    keep: float = 0.0
    mix: float = 0.0
    rounds: int = 1
    ref: float = 1.0
    scope: str = "reply"
    share: float = 0.0
    choose: str = "all"
    kl: float = 0.0
