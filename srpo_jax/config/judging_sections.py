"""The sections of a config that say who judges, how, and what counts as safe."""

from __future__ import annotations

from dataclasses import dataclass

from srpo_jax.config.rules import setting


@dataclass(frozen=True)
class ArbiterSettings:
    """Who judges a branch, and what counts as safe."""

    kind: str = setting("", "who judges a branch", required=True, shape="name", decides=False)
    scope: str = setting(
        "reply",
        "what makes a branch safe: its reply, or every step of its path",
        words=("reply", "path"),
        decides=True,
    )
    require_effective: bool = setting(
        False, "a safe branch must also be of use to count as chosen", decides=True
    )
    verdicts: str = setting(
        "", "name of the verdict set to train on; empty: the only one there is", decides=False
    )
    max_error_fraction: float = setting(
        0.1, "more ERROR than this, of what was asked, ends judging", low=0, high=1, decides=False
    )
    filter_references: bool = setting(
        False, "leave out questions whose reference path is not judged safe", decides=True
    )
    timeout_seconds: float = setting(
        3600.0,
        "for one batch of cases; those of one that takes longer are ERROR",
        low=1,
        decides=False,
    )


@dataclass(frozen=True)
class JudgeSettings:
    """What an arbiter that asks a chat model is made of: docs/judges.md."""

    model: str = setting(
        "",
        "name of the judge model, as its server knows it; of one that runs here its HF directory",
        address="server",
        decides=False,
    )
    answer: str = setting(
        "labels",
        "how arbiter policy answers: choose among the labels by log-probability, or write",
        words=("labels", "generate"),
        decides=False,
    )
    base_url: str = setting(
        "http://127.0.0.1:8000/v1",
        "of an OpenAI-compatible server",
        required=True,
        address="server",
        decides=False,
    )
    api_key_env: str = setting(
        "",
        "environment variable with the key; empty: OPENAI_API_KEY at OpenAI, no key elsewhere",
        decides=False,
    )
    rubric: str = setting(
        "reply_safety",
        "rubrics that come with srpo_jax, or files; with commas between",
        required=True,
        decides=False,
    )
    system: str = setting(
        "", "file with the system prompt that a guard was trained with", decides=False
    )
    votes: int = setting(
        0, "answers to every case, an odd number; 0: as the rubric says", low=0, decides=False
    )
    unsure: str = setting(
        "rubric",
        "what 'cannot tell' is: ERROR, UNSAFE, or as the rubric says",
        words=("rubric", "drop", "unsafe"),
        decides=False,
    )
    temperature: float = setting(0.0, "of the judge", low=0, decides=False)
    max_tokens: int = setting(1024, "of an answer of the judge", low=1, decides=False)
    max_tokens_name: str = setting(
        "max_completion_tokens",
        "what the server calls that",
        words=("max_completion_tokens", "max_tokens"),
        decides=False,
    )
    structured: str = setting(
        "auto",
        "ask for JSON by schema; auto: as long as the server takes it",
        words=("auto", "schema", "off"),
        decides=False,
    )
    logprobs: bool = setting(False, "score by the log-probabilities of the labels", decides=False)
    image_max_side: int = setting(
        0, "pictures are shrunk to this side; 0: sent as they are", low=0, decides=False
    )
    concurrency: int = setting(
        16, "requests at once; of a judge that runs here, rows of a batch", low=1, decides=False
    )
    timeout_seconds: float = setting(120.0, "for one request", low=1, decides=False)
    retries: int = setting(6, "of a request, all causes together", low=0, decides=False)
    cases: str = setting(
        "", "JSONL of verdicts, for the arbiters replay and scripted", decides=False
    )
    members: str = setting(
        "",
        "config files, or file:variant, of the judges of vote, cascade, jury and graded; with "
        "commas between",
        decides=False,
    )
    foreman: str = setting(
        "", "config file of who decides for a jury; empty: more than half of it", decides=False
    )
    band: str = setting(
        "0.1,0.9",
        "of the score of a cascade's first judge: where its second one is asked",
        decides=False,
    )
    rounds: int = setting(
        1, "in which a jury that does not agree judges again", low=0, high=10, decides=False
    )
    threshold: float = setting(
        0.5, "mean score from which the arbiter graded says UNSAFE", low=0, high=1, decides=False
    )
    margin: float = setting(
        0.0, "around it, where the arbiter graded is unsure", low=0, high=0.5, decides=False
    )
    max_requests: int = setting(
        0,
        "of one command, without retries; what is beyond is ERROR until the next; 0: no limit",
        low=0,
        decides=False,
    )
    price_input: float = setting(0.0, "dollars for a million tokens sent", low=0, decides=False)
    price_output: float = setting(
        0.0, "dollars for a million tokens received", low=0, decides=False
    )
