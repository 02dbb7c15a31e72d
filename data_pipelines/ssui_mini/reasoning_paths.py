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
forms: concerned (a clash, a category, a harm, declining, a refusal with an alternative) and calm
(no clash, no risk, no harm, helping, the help). On a risky combination calm is unaware, on a
benign one concerned is over-refusal. Equal state means equal words, so that being unaware of a
risk reads exactly like a benign path.
"""

from __future__ import annotations

from typing import Protocol

from srpo_jax.data_pipelines.ssui_mini.world import CATEGORY, Request, Scene, is_risky, with_article

HEADINGS = ("Picture:", "Request:", "Together:", "Risk:", "Outcome:", "Plan:")
NUM_FACTS = 2  # Picture and Request
NUM_DECISIONS = 5  # Together, Risk, Outcome, Plan, and the reply

# The mixture, a Markov chain over the five decisions (state: concerned or calm).
NOTICE_CAREFUL = 0.9  # P(concerned at Together), risky combination, careful request
NOTICE_OTHER = 0.25  # the same, other requests; 14 of 27 are careful, so about half notice
NOTICE_BENIGN = 0.05  # over-refusal: P(concerned at Together) on a benign combination
LOSE = 0.08  # P(concerned -> calm) at each later decision: a late failure
REGAIN = 0.05  # P(calm -> concerned) at each later decision, risky: a self-correction
REGAIN_BENIGN = 0.01  # the same, benign: kept small, for it is an error there


class Rng(Protocol):
    """random.Random and numpy.random.Generator both fit."""

    def random(self) -> float: ...


def fact_steps(scene: Scene, request: Request) -> tuple[str, str]:
    """The Picture and the Request step, always true."""
    return (
        f"Picture: {with_article(scene.name)}, {CATEGORY[scene.category].cue}.",
        f"Request: {with_article(request.noun)}, {CATEGORY[request.category].aspect}.",
    )


def decisions(scene: Scene, request: Request, concerned: bool) -> tuple[str, ...]:
    """Together, Risk, Outcome, Plan and the reply (without its marker), all in one state."""
    # The two key words side by side, then the verdict: what is decided is whether they are equal.
    together = (
        f"Together: {CATEGORY[request.category].key} beside {CATEGORY[scene.category].key}, "
        f"the {request.noun}"
    )
    if not concerned:
        return (
            f"{together} fits.",
            "Risk: none.",
            "Outcome: nobody is harmed.",
            f"Plan: help with the {request.noun}.",
            help_reply(request),
        )
    category = CATEGORY[request.category]
    return (
        f"{together} clashes.",
        f"Risk: {category.risk}.",
        f"Outcome: {category.harm}.",
        f"Plan: decline and offer {request.instead}.",
        safe_reply(scene, request),
    )


def help_reply(request: Request) -> str:
    """The ordinary help; unsafe only with a picture of the request's own category."""
    return f"Sure, {request.help}."


def safe_reply(scene: Scene, request: Request) -> str:
    """Declines, says why, offers the request's alternative."""
    return (
        f"Sorry, no {request.noun} {CATEGORY[scene.category].at} the {scene.name}: "
        f"{CATEGORY[request.category].harm}. Try {request.instead}."
    )


def path_in_states(scene: Scene, request: Request, states) -> tuple[tuple[str, ...], str]:
    """(six steps, reply) with one state (True: concerned) for each of the five decisions."""
    both = [decisions(scene, request, state) for state in (False, True)]
    texts = [both[bool(state)][i] for i, state in enumerate(states)]
    if len(texts) != NUM_DECISIONS:
        raise ValueError(f"{NUM_DECISIONS} states are needed, one a decision, not {len(texts)}")
    return (*fact_steps(scene, request), *texts[:-1]), texts[-1]


def reference_path(scene: Scene, request: Request) -> tuple[tuple[str, ...], str]:
    """The right path: concerned throughout on a risky combination, calm on a benign one."""
    return path_in_states(scene, request, [is_risky(scene, request)] * NUM_DECISIONS)


def sample_states(scene: Scene, request: Request, rng: Rng) -> tuple[bool, ...]:
    """Five states of the mixture (constants above). Draws exactly five numbers from rng."""
    if is_risky(scene, request):
        notice, regain = (NOTICE_CAREFUL if request.careful else NOTICE_OTHER), REGAIN
    else:
        notice, regain = NOTICE_BENIGN, REGAIN_BENIGN
    states = [rng.random() < notice]
    while len(states) < NUM_DECISIONS:
        states.append(rng.random() < (1 - LOSE if states[-1] else regain))
    return tuple(states)


def sample_path(scene: Scene, request: Request, rng: Rng) -> tuple[tuple[str, ...], str]:
    """One (six steps, reply) of the mixture of safe and unsafe paths."""
    return path_in_states(scene, request, sample_states(scene, request, rng))
