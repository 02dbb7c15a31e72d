"""The sections of what samples from a policy; see sections.py."""

from __future__ import annotations

from dataclasses import dataclass

from srpo_jax.config.rules import setting


@dataclass(frozen=True)
class ExploreSettings:
    """How branches are sampled."""

    branches: int = setting(
        4, "K: continuations sampled at every branch point", low=1, decides=False, samples=True
    )
    max_branches: int = setting(
        10, "of a branch point, when explore --more adds some", low=1, decides=False
    )
    temperature: float = setting(
        1.0, "of the sampler; 0 is greedy", low=0, decides=False, samples=True
    )
    max_new_tokens: int = setting(
        256, "a branch that has not ended by then is unfinished", low=1, decides=False, samples=True
    )
    top_p: float = setting(
        1.0,
        "the fewest ids whose probabilities sum to it are drawn from",
        low=0,
        low_open=True,
        high=1,
        decides=False,
        samples=True,
    )
    top_k: int = setting(
        0, "so many of the likeliest ids are drawn from; 0: all", low=0, decides=False, samples=True
    )
    min_p: float = setting(
        0.0,
        "ids less likely than this part of the likeliest one are not drawn",
        low=0,
        high=1,
        decides=False,
        samples=True,
    )
    repetition_penalty: float = setting(
        1.0,
        "divides positive logits of ids in prompt and branch, multiplies negative ones",
        low=0,
        low_open=True,
        decides=False,
        samples=True,
    )
    presence_penalty: float = setting(
        0.0, "subtracted from the logits of ids of the branch", decides=False, samples=True
    )
    stop: tuple[str, ...] = setting(
        (), "texts that end a branch", texts=True, decides=False, samples=True
    )
    slots: int = setting(
        0,
        "branches of a question that are sampled together; 0: a sixth of them, at most 16",
        low=0,
        decides=False,
    )
    batch: int = setting(
        0, "questions that are sampled at once; 0: as many as pay and fit", low=0, decides=False
    )
    mesh: str = setting(
        "auto",
        "of all that samples: explore, eval, judging policies",
        shape="mesh",
        decides=False,
    )
    together: str = setting(
        "auto",
        "all processes on one mesh; auto: if the policy is too large for one",
        words=("auto", "yes", "no"),
        decides=False,
    )
    num_questions: int = setting(
        0, "explore so many of the records, half of them risky; 0: all", low=0, decides=False
    )
    branch_points: str = setting(
        "all",
        "after every prefix; first: whole replies only",
        words=("all", "first"),
        decides=False,
        samples=True,
    )
    reference: str = setting(
        "dataset",
        "path to branch from; self: the policy's first safe one; missing: that, where a record has "
        "none",
        words=("dataset", "self", "missing"),
        decides=False,
        samples=True,
    )
    shards: int = setting(
        4, "files that the trees are written to; each is resumable", low=1, decides=False
    )
    prefix: str = setting(
        "", "text that every branch is made to begin with", decides=False, samples=True
    )
    irregular: str = setting(
        "drop",
        "branches that the format cannot read whole",
        words=("drop", "keep"),
        decides=True,
    )
    max_points: int = setting(
        0,
        "branch points kept: the first three, then the least certain; 0: all",
        low=0,
        decides=False,
        samples=True,
    )

    @property
    def keep_irregular(self) -> bool:
        """Whether branches that the format cannot read whole are judged and used."""
        return self.irregular == "keep"


@dataclass(frozen=True)
class EvalSettings:
    """How the test questions are answered."""

    batch: int = setting(
        0, "questions that are answered at once; 0: as many as pay and fit", low=0, decides=False
    )
    max_new_tokens: int = setting(
        256, "a reply that has not ended by then is unfinished", low=1, decides=False
    )
    num_questions: int = setting(
        0, "answer so many of the records, half of them risky; 0: all", low=0, decides=False
    )
    samples: int = setting(
        0, "answers to every question; 0: as the benchmark says, else one", low=0, decides=False
    )
    temperature: float = setting(
        -1.0,
        "of the sampler, 0 is greedy; -1: as the benchmark says, else 0",
        low=0,
        also=(-1.0,),
        decides=False,
    )
    forced_prefix: str = setting(
        "", "what every answer is made to begin with: a name of docs/benchmarks.md", decides=False
    )
    split: str = setting(
        "test", "which records are answered", words=("test", "train", "validation"), decides=False
    )
    every: int = setting(
        0, "training steps between two looks at held-out data; 0: none", low=0, decides=False
    )
    validation_questions: int = setting(
        64, "so many of the validation records, half of them risky; 0: all", low=0, decides=False
    )
    benchmarks: str = setting(
        "", "looked at during training, too: names, or module:Class, with commas", decides=False
    )
    benchmark_data: str = setting(
        "", "their data: a folder, or NAME=FOLDER,NAME=FOLDER", decides=False
    )


@dataclass(frozen=True)
class RoundsSettings:
    """What a round of `srpo run` takes over from the one before."""

    start: str = setting(
        "previous",
        "where each round's training begins: at the weights of the round before, or of model.path",
        words=("previous", "base"),
        decides=False,  # of one round its weights do
    )


@dataclass(frozen=True)
class ServeSettings:
    """What `srpo serve` answers, and how large a request may be."""

    answer: str = setting(
        "whole",
        "what is sent: path and reply, or the reply alone",
        words=("whole", "reply"),
        decides=False,
    )
    prompt_tokens: int = setting(
        2048, "room for a request, its pictures included", low=1, decides=False
    )
    patches: int = setting(
        0,
        "room for patches of its pictures; 0: as many as fill prompt_tokens",
        low=0,
        decides=False,
    )
