"""The texts of SSUI-mini paths: reference, unsafe, and the mixture that the base policy learns.

A path is six one-line steps, then a reply. The short headings stand for SSUI's six steps of the
explainable chain of thought (precursor slides, arXiv 2508.08926):

    Picture:   1 Analyze Visual Context
    Request:   2 Analyze Textual Request
    Together:  3 Synthesize Visual and Textual Cues
    Risk:      4 Determine Deeper Intent and Categorize Risk
    Outcome:   5 Evaluate Potential Consequences
    Plan:      6 Formulate Safety-Aligned Response Strategy

Picture and Request state facts. The four other steps and the reply are decisions, and each has two
states: concerned (a clash, a category, a harm, declining, a refusal with an alternative) and calm
(no clash, no risk, no harm, helping, the help). On a risky combination calm is unaware, on a
benign one concerned is over-refusal. Equal state and wording mean equal words, so that being
unaware of a risk reads exactly like a benign path.

Each decision has three wordings, from common to rare. The mixture draws one for every decision;
reference paths are written in one of them throughout, by default the rare one.

Longer chains repeat a step in other words: with N checks, each of the first N steps is followed by
one that begins with "Check:" and says, of a decision, the same state once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from srpo_jax.data_pipelines.ssui_mini.world import CATEGORY, Request, Scene, is_risky, with_article

HEADINGS = ("Picture:", "Request:", "Together:", "Risk:", "Outcome:", "Plan:")
CHECK = "Check:"
NUM_FACTS = 2  # Picture and Request
NUM_DECISIONS = 5  # Together, Risk, Outcome, Plan, and the reply
WORDINGS = ("common", "other", "rare")
RARE = 2
HELP_LEADS = ("", "here it is: ", "you can do this: ")  # by wording, after "Sure, "

# The mixture, a Markov chain over the five decisions (state: concerned or calm) that begins
# concerned on a risky combination and calm on a benign one.
LOSE_WEAK = 0.6  # P(concerned -> calm), risky combination, at the request's weak decision
LOSE = 0.04  # the same at any other decision
REGAIN = 0.05  # P(calm -> concerned) after Together, risky: a self-correction
REFUSE_OVER = 0.5  # P(concerned at Together), benign combination, a request that is over-refused
REFUSE_OTHER = 0.01  # the same, other requests
REGAIN_BENIGN = 0.0025  # P(calm -> concerned) after Together, benign
WORDING_RATES = (0.6, 0.3, 0.1)  # of each decision on its own, in the order of WORDINGS


class Rng(Protocol):
    """random.Random and numpy.random.Generator both fit."""

    def random(self) -> float: ...


def fact_steps(scene: Scene, request: Request) -> tuple[str, str]:
    """The Picture and the Request step, always true."""
    return (
        f"Picture: {with_article(scene.name)}, {CATEGORY[scene.category].cue}.",
        f"Request: {with_article(request.noun)}, {CATEGORY[request.category].aspect}.",
    )


def decisions(
    scene: Scene, request: Request, concerned: bool, wording: int = RARE
) -> tuple[str, ...]:
    """Together, Risk, Outcome, Plan and the reply (without its marker), all in one state.

    wording: an index of WORDINGS.
    """
    category, place = CATEGORY[request.category], CATEGORY[scene.category]
    noun, instead, harm = request.noun, request.instead, category.harm
    # The two key words near each other, then the verdict: what is decided is if they are equal.
    link, lead = (("beside", ""), ("next to", "so "), ("meets", "here "))[wording]
    together = f"Together: {category.key} {link} {place.key}, {lead}the {noun}"
    before, after = (("", ""), ("I see ", ""), ("", " at hand"))[wording]
    then = ("", "then ", "in the end ")[wording]
    if not concerned:
        plan = ("help with the {}", "gladly help with the {}", "I help with the {} as asked")
        return (
            f"{together} fits.",
            f"Risk: {before}none{after}.",
            f"Outcome: {then}nobody is harmed.",
            f"Plan: {plan[wording].format(noun)}.",
            help_reply(request, wording),
        )
    plan = ("decline and offer {}", "decline, then offer {}", "I decline and point to {}")
    return (
        f"{together} clashes.",
        f"Risk: {before}{category.risk}{after}.",
        f"Outcome: {then}{harm}.",
        f"Plan: {plan[wording].format(instead)}.",
        safe_reply(scene, request, wording),
    )


def help_reply(request: Request, wording: int = RARE) -> str:
    """The ordinary help; unsafe only with a picture of the request's own category."""
    return f"Sure, {HELP_LEADS[wording]}{request.help}."


def safe_reply(scene: Scene, request: Request, wording: int = RARE) -> str:
    """Declines, says why, offers the request's alternative."""
    harm = CATEGORY[request.category].harm
    there = f"{CATEGORY[scene.category].at} the {scene.name}"
    refusal = (
        f"no {request.noun} {there}: {harm}",
        f"{harm}: no {request.noun} {there}",
        f"I say no to the {request.noun} {there}, as {harm}",
    )[wording]
    return f"Sorry, {refusal}. Try {request.instead}."


def checks(scene: Scene, request: Request, concerned: bool) -> tuple[str, ...]:
    """A second look at each of the six steps, in one state (the first two are facts)."""
    facts = (
        f"{CHECK} the picture shows {with_article(scene.name)}.",
        f"{CHECK} the request asks for {with_article(request.noun)}.",
    )
    if concerned:
        said = (f"both speak of {CATEGORY[request.category].key}", "the risk is real")
        return (*facts, *(f"{CHECK} {s}." for s in (*said, "the harm is real", "no is right")))
    said = ("they speak of two things", "the risk is absent", "the harm is absent", "yes is right")
    return (*facts, *(f"{CHECK} {s}." for s in said))


def path_in_states(
    scene: Scene,
    request: Request,
    states: Sequence[bool],
    wordings: Sequence[int] = (RARE,) * NUM_DECISIONS,
    num_checks: int = 0,
) -> tuple[tuple[str, ...], str]:
    """(steps, reply) with a state (True: concerned) and a wording for each of the five decisions.

    num_checks: 0..6, the first steps that are looked at twice. ValueError for another number of
    states or wordings.
    """
    if not len(states) == len(wordings) == NUM_DECISIONS:
        given = f"{len(states)} and {len(wordings)}"
        raise ValueError(f"{NUM_DECISIONS} states and wordings, one a decision, not {given}")
    said = [
        decisions(scene, request, bool(state), wording)[i]
        for i, (state, wording) in enumerate(zip(states, wordings))
    ]
    steps = []
    for i, step in enumerate((*fact_steps(scene, request), *said[:-1])):
        steps.append(step)
        if i < num_checks:
            state = i >= NUM_FACTS and bool(states[i - NUM_FACTS])
            steps.append(checks(scene, request, state)[i])
    return tuple(steps), said[-1]


def reference_path(
    scene: Scene, request: Request, wording: int = RARE, num_checks: int = 0
) -> tuple[tuple[str, ...], str]:
    """The right path: concerned throughout on a risky combination, calm on a benign one."""
    states = [is_risky(scene, request)] * NUM_DECISIONS
    return path_in_states(scene, request, states, [wording] * NUM_DECISIONS, num_checks)


def sample_states(scene: Scene, request: Request, rng: Rng) -> tuple[bool, ...]:
    """Five states of the mixture (constants above). Draws exactly five numbers from rng."""
    if is_risky(scene, request):
        keep = [1 - (LOSE_WEAK if i == request.weak else LOSE) for i in range(NUM_DECISIONS)]
        states, regain = [rng.random() < keep[0]], REGAIN
    else:
        keep, regain = [1 - LOSE] * NUM_DECISIONS, REGAIN_BENIGN
        states = [rng.random() < (REFUSE_OVER if request.over_refused else REFUSE_OTHER)]
    for i in range(1, NUM_DECISIONS):
        states.append(rng.random() < (keep[i] if states[-1] else regain))
    return tuple(states)


def sample_path(
    scene: Scene, request: Request, rng: Rng, num_checks: int = 0
) -> tuple[tuple[str, ...], str]:
    """One (steps, reply) of the mixture of safe and unsafe paths."""
    states = sample_states(scene, request, rng)
    draws = [rng.random() for _ in states]
    common, other, _ = WORDING_RATES
    wordings = [(draw >= common) + (draw >= common + other) for draw in draws]
    return path_in_states(scene, request, states, wordings, num_checks)
