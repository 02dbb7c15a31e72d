"""Scripted agents for `srpo data construct`: a server that plays every role of the stages of SSUI,
one way for each picture, by its script. Each picture is of noise in large squares, so that none is
nearly another.
"""

from __future__ import annotations

import base64
import hashlib
import json
import pathlib
from collections import Counter

import numpy as np
from PIL import Image

from srpo_jax.arbiter.chat.cost import picture_tokens, text_tokens
from srpo_jax.arbiter.chat.messages import Picture
from srpo_jax.arbiter.prompted.untrusted import blocks
from srpo_jax.data_pipelines.construct.stages import load_stages
from tests.support.chat_stub import ChatStub

# What a picture's agents do, by its name; "good" and "redundant" alone become records.
SCRIPTS = {
    "good": "",
    "redundant": "",
    "incomplete": "the reasoning stays incomplete",
    "words_unsafe": "the words alone are not harmless",
    "reply_unsafe": "what a model answers to the words alone is not harmless",
    "picture_unsafe": "the picture alone is not harmless",
    "pair_harmless": "picture and words together are not risky",
    "no_fit": "no question of this kind fits the picture",
    "refusing": "the model refused",
    "malformed": "unreadable answer",
    "minors": "sexual matter and minors: refused",
    "good_again": "nearly the question of",
}
THINGS = {
    name: f"{name.replace('_', ' ')} {i * 7919} over the {word} fence"
    for i, (name, word) in enumerate(zip(SCRIPTS, "abcdefghijkl"))
}
THINGS["good_again"] = THINGS["good"]
STEPS = [f"Step that says matter {i} of" for i in range(6)]


def draw_pictures(folder: pathlib.Path, names=tuple(SCRIPTS)) -> pathlib.Path:
    """A picture for each script, named by it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        squares = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)
        Image.fromarray(squares).resize((90, 80), Image.Resampling.NEAREST).save(
            folder / f"{name}.png"
        )
    return folder


class Agents:
    """`complete` for ChatStub. folder: of the pictures, whose stems are scripts. prompt_tokens are
    counted as the estimate counts them. asked: calls by stage.
    """

    def __init__(self, folder: pathlib.Path, stages: str = "ssui"):
        self.scripts = {}
        for path in folder.glob("*.*"):
            self.scripts[hashlib.sha256(path.read_bytes()).hexdigest()] = path.stem
        self.answer_of = {"ssui": answer_of, "msr_align": answer_of_msr}[stages]
        self.stages = {stage.prompt: stage.name for stage in load_stages(stages).stages}
        self.asked: Counter[str] = Counter()
        self.tokens_in = 0

    def __call__(self, body, kind):
        system, user = body["messages"]
        stage = next(
            name for prompt, name in self.stages.items() if system["content"].startswith(prompt)
        )
        parts: list[dict] = user["content"]
        if isinstance(parts, str):
            parts = [{"type": "text", "text": parts}]
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        pictures = [
            base64.b64decode(part["image_url"]["url"].partition(",")[2])
            for part in parts
            if part["type"] == "image_url"
        ]
        shown = blocks(text)
        script = self._script(pictures, shown)
        self.asked[stage] += 1
        tokens = text_tokens(f"{system['content']}\n{text}")
        tokens += sum(picture_tokens(Picture(data)) for data in pictures)
        self.tokens_in += tokens
        message = self.message(stage, script, shown)
        usage = {"prompt_tokens": tokens, "completion_tokens": 10}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **message}}
        return {"model": body["model"], "choices": [choice], "usage": usage}

    def _script(self, pictures, shown) -> str:
        if pictures:
            return self.scripts[hashlib.sha256(pictures[0]).hexdigest()]
        names = self.scripts.values()
        return next(name for name in names if THINGS.get(name, name) in shown["question"])

    def message(self, stage, script, shown):
        """{"content", "refusal"} of one answer."""
        answer = self.answer_of(stage, script, shown)
        if script == "refusing" and stage == "reason":
            return {"content": None, "refusal": "I would rather not."}
        if script == "malformed" and stage == "query":
            return {"content": f"Here you are: {json.dumps(answer)}"}
        return {"content": json.dumps(answer)}


def answer_of(stage: str, script: str, shown) -> dict:
    """What the agents of a script say in a stage of ssui."""
    thing = THINGS.get(script, script)
    bad = script.removesuffix("_unsafe")
    match stage:
        case "picture":
            verdict = "unsafe" if bad == "picture" else "safe"
            return {"caption": f"a picture for {script}", "people": "none", "verdict": verdict}
        case "query":
            return {
                "unsafe_event": f"somebody falls at {script}",
                "question": f"How do I get {thing}?",
                "why_words_harmless": "plain words",
                "why_picture_harmless": "plain picture",
                "fits": "does_not_fit" if script == "no_fit" else "fits",
            }
        case "text_answer":
            return {"reply": "Take the gate."}
        case "text":
            words, reply = ("unsafe" if bad == x else "safe" for x in ("words", "reply"))
            return {"evidence": "seen", "question": words, "reply": reply}
        case "pair":
            verdict = "harmless" if script == "pair_harmless" else "risky"
            return {"evidence": "seen", "verdict": verdict}
        case "reason":
            steps = [f"{step} {script}." for step in STEPS]
            if script == "minors":
                steps[3] = "A child is shown naked."
            return {"steps": steps}
        case "check":
            steps = list(shown["steps"])
            redundant = script == "redundant"
            if redundant:
                steps[2] = "Now it says something of its own."
            verdict = "incomplete" if script == "incomplete" else "complete"
            found = {"redundant": ["3"] if redundant else [], "missing": [], "steps": steps}
            return {**found, "verdict": verdict}
        case "summary":
            return {"reply": f"Better not at {script}.", "unsafe_reply": f"UNSAFETEXT {script}."}
        case "twin":
            steps = [f"{step} calm {script}." for step in STEPS]
            return {"question": f"Which colour is {script}?", "steps": steps, "reply": "Red."}
    raise AssertionError(stage)


def agents_stub(folder: pathlib.Path, **options) -> ChatStub:
    """A server of agents for the pictures of a folder; its `complete` counts."""
    return ChatStub(complete=Agents(folder, **options))


def construct_argv(stub: ChatStub, pictures: pathlib.Path, out: pathlib.Path, *more) -> list[str]:
    """A command line of the verb, one model a role."""
    roles = ("writer", "answerer", "arbiter", "evaluator")
    return [
        *("data", "construct", str(pictures), str(out)),
        *(f"--{role}=the-{role}" for role in roles),
        f"--config.judge.base_url={stub.url}",
        "--config.judge.retries=1",
        *map(str, more),
    ]


def answer_of_msr(stage: str, script: str, shown) -> dict:
    """What the agents say in a stage of msr_align."""
    match stage:
        case "sort":
            return {"evidence": "seen", "kind": "hazardous_acts"}
        case "answer":
            steps = ["A fence is there.", "It is asked how to get over.", "Rule 1 holds."]
            return {"steps": steps, "rules": ["1"], "reply": f"Take the gate, {script}."}
        case "marks":
            marks = {"grounding": 9, "rules": 6 if script == "incomplete" else 7, "safety": 10}
            return {"evidence": "seen", **marks}
    raise AssertionError(stage)
