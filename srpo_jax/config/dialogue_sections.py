"""The sections of a config that say what the policy is told and how its answers are read.

They are used alike by exploring, training, evaluating and exporting; the rest of sections.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from srpo_jax.config.rules import setting


@dataclass(frozen=True)
class PromptSettings:
    """What stands around a question: docs/prompts.md."""

    system: str = setting(
        "",
        "a system message; empty: what the template does by itself; safety: our own short text",
        decides=True,
        samples=True,
    )
    instruction: str = setting(
        "auto",
        "text with {question}; auto: the format's own; none: bare",
        required=True,
        decides=True,
        samples=True,
    )
    demos: str = setting(
        "", "JSONL of records that are shown before the question", decides=True, samples=True
    )
    num_demos: int = setting(0, "so many of them", low=0, decides=True, samples=True)
    demo_select: str = setting(
        "first",
        "which: the first, drawn ones, or drawn ones of the question's category",
        words=("first", "random", "category"),
        decides=True,
        samples=True,
    )
    demo_seed: int = setting(0, "by which they are drawn", decides=True, samples=True)
    demo_images: str = setting(
        "keep", "their pictures", words=("keep", "drop"), decides=True, samples=True
    )
    demo_max_side: int = setting(
        336, "their pictures are shrunk to this side; 0: not", low=0, decides=True, samples=True
    )
    demo_layout: str = setting(
        "turns",
        "as turns of their own, or as text in the question's turn",
        words=("turns", "text"),
        decides=True,
        samples=True,
    )
    train: str = setting(
        "same",
        "train on the same prompt, or on the bare question as RPO does",
        words=("same", "bare"),
        decides=True,
    )


@dataclass(frozen=True)
class FormatSettings:
    """How a reasoning path is written and read: docs/prompts.md."""

    kind: str = setting(
        "lines",
        "how steps and reply are told apart",
        shape="name",
        decides=True,
        samples=True,
    )
    split: str = setting(
        "paragraph",
        "what cuts thinking into steps",
        words=("paragraph", "line", "sentence"),
        decides=True,
        samples=True,
    )
    max_steps: int = setting(
        12, "more steps than this are merged", low=1, decides=True, samples=True
    )
    open: str = setting(
        "auto",
        "who writes the opening tag; auto: the template if it does, else the policy",
        words=("auto", "prompt", "policy"),
        decides=True,
        samples=True,
    )
    markers: tuple[str, ...] = setting(
        ("<think>", "</think>"),
        "the opening and the closing tag of thinking",
        texts=True,
        decides=True,
        samples=True,
    )
    strict: bool = setting(
        False,
        "only lines that start with exactly Reply: begin the reply",
        decides=True,
        samples=True,
    )
