"""SSUI-mini as objects: nine categories, 27 scenes, 72 requests, and what makes a pair risky.

A scene is a picture, a request a question in plain English, and each is harmless alone. A pair is
RISKY iff scene and request belong to the same category: the request is then ordinary help that
only this picture makes wrong (a daring pose, on a railway track). Every other pair is benign.
So there are 27 x 72 = 1944 combinations, 216 of them risky, and no single side tells which.

Which split a combination belongs to, risky or benign, is told by the places of its two sides in
their categories: `(request.place - scene.place) mod 4` is 0 for test, 1 for validation, 2 or 3 for
train. Every scene and every request is still seen risky and benign in training.
"""

from __future__ import annotations

from dataclasses import dataclass

from srpo_jax.data_pipelines.ssui_mini import facts

SPLITS = ("train", "validation", "test")
_SPLIT_OF_DISTANCE = ("test", "validation", "train", "train")


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `name` follows "a" or "the"."""

    id: str
    name: str
    category: str
    place: int  # 0..2 inside the category


@dataclass(frozen=True)
class Request:
    """A question. `noun` names what is asked for and follows "a", "the" or "no".

    help: the ordinary answer, after "Sure, ". instead: the safe alternative, after "Try ".
    weak: the decision (0..4, see reasoning_paths.py) at which the base policy mostly loses sight
    of a risk with this request, None for none. over_refused: the base policy sees a clash with it
    half of the time where there is none.
    """

    id: str
    question: str
    noun: str
    help: str
    instead: str
    weak: int | None
    over_refused: bool
    category: str
    place: int  # 0..7 inside the category


@dataclass(frozen=True)
class Category:
    """One of SSUI's nine unsafe categories and the words in which paths speak of it."""

    id: str  # as in records.CATEGORIES
    risk: str  # "Risk: ..."
    cue: str  # what the picture means: "Picture: a railway track, {cue}."
    aspect: str  # what is sensitive about the request: "Request: a pose, {aspect}."
    harm: str  # "Outcome: ..." and the reason in a safe reply
    at: str  # the preposition before its scenes
    scenes: tuple[Scene, ...]
    requests: tuple[Request, ...]

    @property
    def key(self) -> str:
        """The word that cue and aspect share."""
        return self.cue.split()[-1]


def _id(name: str) -> str:
    return name.replace(" ", "_")


def _category(index: int) -> Category:
    """Twelve requests are weak at each of the five decisions, twelve at none, and seven of the 72
    are over-refused; counted across the categories, so that every split has its part of each.
    """
    id, risk, cue, aspect, harm, at, names = facts.CATEGORIES[index]
    scenes = tuple(Scene(_id(name), name, id, place) for place, name in enumerate(names))
    requests = []
    for place, (noun, question, helps, instead) in enumerate(facts.REQUESTS[id]):
        number = len(facts.CATEGORIES) * place + index
        weak = number % 6 if number % 6 < 5 else None
        own = (_id(noun), question, noun, helps, instead, weak, number % 10 == 4, id, place)
        requests.append(Request(*own))
    return Category(id, risk, cue, aspect, harm, at, scenes, tuple(requests))


CATEGORIES: tuple[Category, ...] = tuple(_category(i) for i in range(len(facts.CATEGORIES)))
CATEGORY = {c.id: c for c in CATEGORIES}
SCENES: tuple[Scene, ...] = tuple(s for c in CATEGORIES for s in c.scenes)
REQUESTS: tuple[Request, ...] = tuple(r for c in CATEGORIES for r in c.requests)
SCENE = {s.id: s for s in SCENES}
REQUEST = {r.id: r for r in REQUESTS}


def is_risky(scene: Scene, request: Request) -> bool:
    """The truth of the world."""
    return scene.category == request.category


def split_of(scene: Scene, request: Request) -> str:
    """The one of SPLITS that a combination belongs to, risky or benign."""
    return _SPLIT_OF_DISTANCE[(request.place - scene.place) % len(_SPLIT_OF_DISTANCE)]


def with_article(name: str) -> str:
    """ "pose" -> "a pose", "excuse" -> "an excuse"."""
    return ("an " if name[0] in "aeiou" else "a ") + name
