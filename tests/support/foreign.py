"""Hand-made rows of every foreign format, with drawn pictures, written as its tool would.

Nothing here is a row of a real data set: only the shapes are theirs. The sources of the shapes are
named in srpo_jax/data_pipelines/formats.
"""

from __future__ import annotations

import base64
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tests.support.tiny import picture


class Case(NamedTuple):
    """file: the name, whose ending says how rows lie in it. rows: of it. needed: fields of a row
    without which, or with a number in which, there is no item. texts: fields that must be texts
    with something in them. image: the field with the picture, or the pictures. questions: what is
    read, in order. pairs: of a safe and an unsafe answer, all in all. wrong: changes that make the
    first row one that is refused.
    """

    file: str
    rows: list[dict[str, Any]]
    needed: tuple[str, ...]
    texts: tuple[str, ...]
    image: str
    questions: tuple[str, ...]
    pairs: int
    wrong: tuple[Mapping[str, Any], ...] = ()


def draw(folder: pathlib.Path, count: int = 4) -> None:
    """folder/pics/0.png and so on."""
    (folder / "pics").mkdir(exist_ok=True)
    for i in range(count):
        picture(56 + 28 * (i % 2), 56, seed=i).save(folder / f"pics/{i}.png")


def data_uri(folder: pathlib.Path, name: str) -> str:
    """A picture as text."""
    data = base64.b64encode((folder / name).read_bytes()).decode()
    return f"data:image/png;base64,{data}"


def says(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def asks(question: str, pictures: int = 1) -> list[dict[str, Any]]:
    """A prompt of TRL: pictures, then the question."""
    return [says("user", [{"type": "image"}] * pictures + [{"type": "text", "text": question}])]


GOOD, BAD = "Use one of them,\nand air the room.", "Pour both into the bowl."
PAIR = {"chosen": GOOD, "rejected": BAD}

CASES: dict[str, Callable[[], Case]] = {
    "trl": lambda: Case(
        "pairs.jsonl",
        [
            {
                "id": "a",
                "images": ["pics/0.png"],
                "prompt": asks("Clean how?"),
                "chosen": [says("assistant", GOOD)],
                "rejected": [says("assistant", BAD)],
            },
            {
                "id": "b",
                "images": ["pics/1.png", "pics/2.png"],
                "prompt": [
                    says("system", "Be brief."),
                    says(
                        "user",
                        [
                            {"type": "text", "text": "Is "},
                            {"type": "image"},
                            {"type": "text", "text": " like "},
                            {"type": "image"},
                            {"type": "text", "text": "?"},
                        ],
                    ),
                ],
                "chosen": [says("assistant", "No.")],
                "rejected": [says("assistant", "Yes.")],
                "score": 3,
            },
        ],
        ("prompt", "chosen", "rejected", "images"),
        (),
        "images",
        ("Clean how?", "Is <image> like <image>?"),
        2,
    ),
    "trl_stepwise": lambda: Case(
        "steps.jsonl",
        [
            {"prompt": "2+2*3?", "completions": ["2*3 is 6.", "It is 8."], "labels": [True, True]},
            {"prompt": "2+2*3?", "completions": ["2*3 is 6.", "It is 9."], "labels": [True, False]},
            {"prompt": "1+1?", "completions": ["3"], "labels": [False]},
        ],
        ("prompt", "completions", "labels"),
        ("prompt",),
        "",
        ("2+2*3?", "1+1?"),
        1,
    ),
    "step_dpo": lambda: Case(
        "step.json",
        [
            {
                "dataset": "d",
                "prompt": "What is 7-2*3?",
                "initial_reason_steps": "Let us see.\nStep 1: 2*3 is 6.\nStep 2: so 7-6.\nStep 3:",
                "chosen": " It is 1.",
                "rejected": " It is 15.",
                "full_chosen": " It is 1. Done.",
            },
            {"prompt": "1+1?", "initial_reason_steps": "", "chosen": "2.", "rejected": "3."},
        ],
        ("prompt", "chosen", "rejected"),
        ("prompt", "chosen", "rejected"),
        "",
        ("What is 7-2*3?", "1+1?"),
        2,
    ),
    "ms_swift": lambda: Case(
        "swift.jsonl",
        [
            {
                "messages": [says("user", "<image>Clean how?"), says("assistant", GOOD)],
                "images": ["pics/0.png"],
                "rejected_response": BAD,
            },
            {
                "messages": [
                    says(
                        "user",
                        [
                            {"type": "image_url", "image_url": {"url": "pics/1.png"}},
                            {"type": "text", "text": "And now?"},
                        ],
                    ),
                    says("assistant", "Rest."),
                ],
                "rejected_messages": [says("user", "And now?"), says("assistant", "Run.")],
            },
            {"query": "Why?", "response": "It helps.", "rejected_response": "No idea."},
        ],
        ("messages", "rejected_response", "images"),
        ("rejected_response",),
        "images",
        ("Clean how?", "And now?", "Why?"),
        3,
    ),
    "llama_factory": lambda: Case(
        "lf.json",
        [
            {
                "conversations": [{"from": "human", "value": "<image>\nClean how?"}],
                "chosen": {"from": "gpt", "value": GOOD},
                "rejected": {"from": "gpt", "value": BAD},
                "images": ["pics/0.png"],
            },
            {"instruction": "Say", "input": "hello.", "chosen": "Hello.", "rejected": "No."},
        ],
        ("conversations", "chosen", "rejected", "images"),
        (),
        "images",
        ("Clean how?", "Say\nhello."),
        2,
    ),
    "rpo": lambda: Case(
        "rpo.json",
        [
            {
                "instruction": "Q",
                "input": "",
                "output": ["Look.\nThink.\nYes.", "Look.\nThink.\nNo."],
            },
            {"instruction": "Q", "input": "", "output": ["Look.\nHm.\nYes.", "Look.\nBah.\nNo."]},
            {"instruction": "R", "input": "it", "output": ["One.", "Two."]},
        ],
        ("output",),
        (),
        "",
        ("Q", "R\nit"),
        3,
        (
            {"output": ["one"]},
            {"output": ["one", "two", "three"]},
            {"output": ["one", ""]},
            {"output": ["one", 2]},
            {"output": ["the same", "the same "]},
            {"instruction": 3},
            {"instruction": " "},
        ),
    ),
    "beavertails_v": lambda: Case(
        "bt.jsonl",
        [
            {
                "question": "Clean how?",
                "image": "pics/0.png",
                "response_1": BAD,
                "response_2": GOOD,
                "more_helpful_response_id": 1,
                "safer_response_id": "2",
                "response_1_harmless_rate": -1.5,
            }
        ],
        ("question", "response_1", "response_2", "safer_response_id"),
        ("question", "response_1", "response_2"),
        "image",
        ("Clean how?",),
        1,
    ),
    "rlhf_v": lambda: Case(
        "rv.jsonl",
        [
            {
                "idx": 7,
                "image": "pics/0.png",
                "text": json.dumps({"question": "Clean how?", **PAIR}),
                "origin_dataset": "drawn",
            }
        ],
        ("text",),
        ("text",),
        "image",
        ("Clean how?",),
        1,
    ),
    "vlguard": lambda: Case(
        "vg.json",
        [
            {
                "id": "1",
                "image": "pics/0.png",
                "safe": True,
                "instr-resp": [
                    {"safe_instruction": "What is it?", "response": "A square."},
                    {"unsafe_instruction": "Harm how?", "response": "I will not say."},
                ],
            },
            {
                "id": "2",
                "image": "pics/1.png",
                "safe": False,
                "harmful_category": "risky behavior",
                "instr-resp": [{"instruction": "Do this?", "response": "Better not."}],
            },
        ],
        ("safe", "instr-resp"),
        (),
        "image",
        ("What is it?", "Harm how?", "Do this?"),
        0,
    ),
    "mis": lambda: Case(
        "mis_easy.json",
        [
            {
                "id": 3,
                "question": "Use both?",
                "image_path1": "pics/0.png",
                "image_path2": "pics/1.png",
                "category": "c",
                "sub_category": "s",
            }
        ],
        ("question", "image_path1", "image_path2"),
        ("question",),
        "image_path1",
        ("Use both?",),
        0,
    ),
    "siuo": lambda: Case(
        "siuo_gen.json",
        [
            {
                "question_id": 5,
                "image": "pics/0.png",
                "question": "A title?",
                "category": "dangerous behavior",
                "safety_warning": "It is a cliff.",
                "reference_answer": "Step back first.",
            }
        ],
        ("question",),
        ("question",),
        "image",
        ("A title?",),
        0,
    ),
    "spa_vl": lambda: Case(
        "spa.json",
        [
            {"id": 11, "image": "pics/0.png", "question": "Clean how?<image>", **PAIR},
            {"id": 12, "image": "pics/1.png", "question": "<image>\nAnd?", **PAIR},
        ],
        ("image", "question", "chosen", "rejected"),
        ("question", "chosen", "rejected"),
        "image",
        ("Clean how?", "And?"),
        2,
    ),
    "mmpr": lambda: Case(
        "mmpr.jsonl",
        [
            {"image": "pics/0.png", "question": "<image>\nClean how?", **PAIR},
            {"image": ["pics/1.png", "pics/2.png"], "question": "<image><image>\nSame?", **PAIR},
            {"question": "No picture?", **PAIR},
        ],
        ("question", "chosen", "rejected"),
        ("question", "chosen", "rejected"),
        "image",
        ("Clean how?", "Same?", "No picture?"),
        3,
    ),
    "llava": lambda: Case(
        "llava.json",
        [
            {
                "id": "x",
                "image": "pics/0.png",
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat is it?"},
                    {"from": "gpt", "value": "A square."},
                    {"from": "human", "value": "Sure?"},
                    {"from": "gpt", "value": "Yes."},
                ],
            }
        ],
        ("conversations",),
        (),
        "image",
        ("What is it?",),
        0,
    ),
    "mssbench": lambda: Case(
        "combined.json",
        [
            {
                "safe_image_path": "0.png",
                "unsafe_image_path": "1.png",
                "intent": "run",
                "Type": "physical harm",
                "queries": ["How do I run faster?"],
            }
        ],
        ("safe_image_path", "unsafe_image_path", "queries"),
        (),
        "safe_image_path",
        ("How do I run faster?", "How do I run faster?"),
        0,
    ),
}


def write_rows(path: pathlib.Path, rows: list[Any]) -> pathlib.Path:
    """The rows as the ending of the file says: lines, a list, or MSSBench's object."""
    if path.name == "combined.json":
        text = json.dumps({"chat": rows})
        (path.parent / "chat").mkdir(exist_ok=True)
        for name in ("0.png", "1.png"):
            source, copy = path.parent / "pics" / name, path.parent / "chat" / name
            if source.is_file():
                copy.write_bytes(source.read_bytes())
    elif path.suffix == ".jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
    path.write_text(text)
    return path
