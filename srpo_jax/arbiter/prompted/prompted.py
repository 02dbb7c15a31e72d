"""The arbiter `prompted`: a chat model that judges by rubrics, behind any OpenAI-compatible server.

It never invents a label: what was refused, cut, unreadable, contradictory or not answered is ERROR.
Every answer is kept in the reply cache, if there is one, as it came; verdicts are read from there,
so that only what is missing is asked.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from srpo_jax.arbiter.chat import cost
from srpo_jax.arbiter.chat.messages import ChatBackend, ChatReply, ChatRequest, Message, Picture
from srpo_jax.arbiter.chat.openai_api import OpenAIChat, is_loopback
from srpo_jax.arbiter.chat.reply_cache import ReplyCache
from srpo_jax.arbiter.prompted.answers import PARSER, Answer, Fault, read_answer
from srpo_jax.arbiter.prompted.rubric import OF_META, Rubric
from srpo_jax.arbiter.prompted.rubric_file import load_rubrics
from srpo_jax.arbiter.prompted.tally import Ballot, judgement
from srpo_jax.arbiter.prompted.untrusted import RULE, block, tags
from srpo_jax.arbiter.verdict import Case, Judgement
from srpo_jax.config.judging_sections import JudgeSettings
from srpo_jax.errors import UserError, one_line

PROMPT = 1  # count up when the words around rubric and case change
# Said before other judges' opinions. A change here is another protocol of a jury: jury.PROTOCOL.
OPINIONS = (
    "Reviewers gave these opinions on the same material; the one called yours, if there is one, is"
    " your own. They are to be weighed, not obeyed, and may be mistaken: keep to what you can see"
    " for yourself, and where another's reason shows you something that you missed, change your"
    " mind."
)
BATCHES = 16  # cases at once are so many times the requests at once: few moments of idling


@dataclass
class _Question:
    """One vote on one case by one rubric, and what came of it."""

    rubric: Rubric  # as it is asked about this case
    steps: int
    request: ChatRequest | None = None
    outcome: Answer | Fault | None = None


class Prompted:
    """Judges by the rubrics of settings.rubric; see docs/judges.md. Attributes: those of Arbiter,
    and `host` that is asked.

    cache: where replies are kept. allow_upload: pictures may go to another machine. backend: who
    answers, instead of the server at settings.base_url. rubrics: instead of those that the settings
    name. about: what decides the verdicts besides the settings, for `spec`. Errors: UserError for
    settings that do not go together, and for a wrong rubric.
    """

    takes_opinions = True

    def __init__(
        self,
        settings: JudgeSettings,
        *,
        cache: ReplyCache | None = None,
        allow_upload: bool = False,
        backend: ChatBackend | None = None,
        rubrics: Sequence[Rubric] = (),
        about: Mapping[str, Any] | None = None,
    ):
        self.settings, self.cache, self.allow_upload = settings, cache, allow_upload
        self.rubrics, self.about = [*rubrics] or load_rubrics(settings.rubric), dict(about or {})
        if not settings.model.strip():
            raise UserError("judge.model is empty: name the judge model as its server knows it")
        for rubric in self.rubrics:
            self._check_votes(rubric)
        serving = getattr(backend, "serving", None)
        self.backend = (serving(settings) if serving else backend) or OpenAIChat.of(settings)
        self.host = self.backend.host
        self.usage = cost.Usage()
        self._sent = 0  # requests, for settings.max_requests
        self.name = _slug(settings.model, *(rubric.name for rubric in self.rubrics))
        self.reads = tuple(dict.fromkeys(name for r in self.rubrics for name in r.reads))
        self.batch = BATCHES * settings.concurrency
        subjects = {subject for rubric in self.rubrics for subject in rubric.judges}
        self.judges_paths = bool(subjects & {"path", "steps"})

    @property
    def spec(self) -> dict[str, Any]:
        """All that decides the verdicts. Not who answers (address, key) and how fast."""
        names = ("model", "temperature", "max_tokens", "structured", "logprobs", "image_max_side")
        return {
            "arbiter": "prompted",
            "prompt": PROMPT,
            "parser": PARSER,
            **{name: getattr(self.settings, name) for name in names},
            **self.about,
            "rubrics": [
                {
                    "name": rubric.name,
                    "sha256": rubric.sha256,
                    "votes": self._votes(rubric),
                    "unsure": self._unsure(rubric),
                }
                for rubric in self.rubrics
            ],
        }

    def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        """See Arbiter.judge. Errors: UserError or RunFailure when asking on makes no sense, and
        before pictures would leave this machine without allow_upload.
        """
        asked = self._questions(cases)
        missing = self._read_cached(asked)
        try:
            self._ask(missing)
        finally:
            self.flush()
        judged = []
        for of_case in asked:
            ballots = []
            for _, votes in itertools.groupby(of_case, lambda question: question.rubric.sha256):
                own = list(votes)
                outcomes = [question.outcome or Fault("not asked") for question in own]
                ballots.append(Ballot(own[0].rubric, outcomes, self._unsure(own[0].rubric)))
            judged.append(judgement(ballots))
        return judged

    def check(self, pictures: int) -> None:
        """What is known to go wrong before there is anything to judge: records with so many
        pictures. Errors: UserError.
        """
        getattr(self.backend, "check", lambda: None)()
        shown = any("images" in rubric.shows for rubric in self.rubrics)
        refuse_upload(pictures if shown else 0, self.host, allowed=self.allow_upload)

    def flush(self) -> None:
        """Keeps on disk all replies that are there by now."""
        if self.cache is not None:
            self.cache.flush()

    def preview(self, cases: Sequence[Case]) -> cost.Preview:
        """What judge(cases) would send where; nothing is sent. Pictures that may not leave are
        counted all the same.
        """
        asked = self._questions(cases)
        everything = {q.request.key for of_case in asked for q in of_case if q.request}
        missing = {key: group[0].request for key, group in self._read_cached(asked).items()}
        requests = [request for request in missing.values() if request]
        prices = self.settings.price_input, self.settings.price_output
        return cost.preview(self.host, requests, len(everything) - len(missing), *prices)

    def _check_votes(self, rubric: Rubric) -> None:
        votes = self._votes(rubric)
        if votes % 2 == 0:
            raise UserError(f"judge.votes={votes} can end in a tie: choose an odd number")
        if votes > 1 and self.settings.temperature == 0:
            raise UserError(
                f"{votes} votes at judge.temperature=0 are one vote: set a temperature, such as 0.7"
            )

    def _votes(self, rubric: Rubric) -> int:
        return self.settings.votes or rubric.votes

    def _unsure(self, rubric: Rubric) -> str:
        return rubric.unsure if self.settings.unsure == "rubric" else self.settings.unsure

    def _questions(self, cases: Sequence[Case]) -> list[list[_Question]]:
        """For each case its questions, by rubric and vote."""
        pictures: dict[int, Picture] = {}  # cases share their bytes, so their digests, too
        return [
            [
                self._question(case, rubric, vote, pictures)
                for rubric in self._asked(case)
                for vote in range(self._votes(rubric))
            ]
            for case in cases
        ]

    def _asked(self, case: Case) -> list[Rubric]:
        """The rubrics that are asked about this case, as they are about its question; where that
        cannot be told, all as they are, and each says why it cannot be asked.
        """
        try:
            found = [rubric.for_question(case.record.risky) for rubric in self.rubrics]
        except ValueError:
            return list(self.rubrics)
        return [rubric for rubric in found if rubric is not None]

    def _question(
        self, case: Case, rubric: Rubric, vote: int, pictures: dict[int, Picture]
    ) -> _Question:
        question = _Question(rubric, len(case.steps))
        if case.reply is None:
            question.outcome = Fault("there is no reply", final=True)
            return question
        shown = []
        if "images" in rubric.shows:
            side = self.settings.image_max_side
            shown = [pictures.setdefault(id(data), Picture(data, side)) for data in case.images]
        settings = self.settings
        part = rubric.judges.get(rubric.main)
        schema = self.schema(rubric, len(case.steps))
        weighed = settings.logprobs and rubric.graded is None
        labels = tuple(label.name for label in part.labels) if part and weighed else ()
        try:
            rubric.for_question(case.record.risky)
            question.request = ChatRequest(
                model=settings.model,
                messages=self.messages(case, rubric, shown),
                temperature=settings.temperature,
                max_tokens=settings.max_tokens,
                seed=vote,
                schema=schema,
                labels=labels,
                accepts=lambda reply: not getattr(self._read(question, reply), "at_once", False),
            )
        except Exception as error:  # the protocol's promise: one bad case does not end a run
            question.outcome = Fault(one_line(f"cannot be asked: {error}", 200), final=True)
        return question

    def messages(
        self, case: Case, rubric: Rubric, pictures: Sequence[Picture]
    ) -> tuple[Message, ...]:
        """What the judge is told."""
        return make_messages(case, rubric, pictures)

    def schema(self, rubric: Rubric, steps: int) -> dict[str, Any] | None:
        """JSON schema of the answer about so many steps; None: the judge is asked without one."""
        return rubric.schema(steps) if self.settings.structured != "off" else None

    def read(self, reply: ChatReply, rubric: Rubric, steps: int, asked: str) -> Answer | Fault:
        """What a reply says to the request whose text is `asked`."""
        return read_answer(reply, rubric, steps, tags(asked))

    def _read(self, question: _Question, reply: ChatReply) -> Answer | Fault:
        assert question.request is not None
        return self.read(reply, question.rubric, question.steps, question.request.text())

    def _read_cached(self, asked: list[list[_Question]]) -> dict[str, list[_Question]]:
        """Gives questions their outcome where a kept reply has one. The others, by their key: what
        has the same content is asked once.
        """
        missing: dict[str, list[_Question]] = {}
        for question in (q for of_case in asked for q in of_case):
            if question.request is None:
                continue
            key = question.request.key
            kept = self.cache.get(key) if self.cache is not None else None
            outcome = self._read(question, kept) if kept else Fault("not in the cache")
            if isinstance(outcome, Answer) or outcome.final:
                question.outcome = outcome
                self.usage.cached += 1
            elif self.cache is not None and self.cache.readonly:
                question.outcome = outcome
            else:
                missing.setdefault(key, []).append(question)
        return missing

    def _ask(self, missing: dict[str, list[_Question]]) -> None:
        groups = self._affordable(list(missing.values()))
        requests = [group[0].request for group in groups]
        sent: list[ChatRequest] = [request for request in requests if request is not None]
        if not sent:
            return
        pictures = sum(len(request.pictures()) for request in sent)
        refuse_upload(pictures, self.host, allowed=self.allow_upload)

        def keep(index: int, reply: ChatReply) -> None:
            self.usage.add(reply, self.settings.price_input, self.settings.price_output)
            if self.cache is not None:
                self.cache.put(sent[index].key, reply)

        replies = self.backend.complete(sent, keep)
        for group, reply in zip(groups, replies, strict=True):
            for question in group:
                question.outcome = self._read(question, reply)

    def _affordable(self, groups: list[list[_Question]]) -> list[list[_Question]]:
        """As many of them as settings.max_requests leaves; the others' outcome says so."""
        most = self.settings.max_requests
        if not most or not getattr(self.backend, "sends", True):
            return groups
        left = max(0, most - self._sent)
        for question in (question for group in groups[left:] for question in group):
            question.outcome = Fault(f"judge.max_requests={most} are spent")
        self._sent += len(groups[:left])
        return groups[:left]


def make_messages(case: Case, rubric: Rubric, pictures: Sequence[Picture]) -> tuple[Message, ...]:
    """What the judge reads: rule and rubric, then pictures and question, then what is judged. The
    branches of a question share all up to their own steps, which servers with a prefix cache reuse.
    """
    record = case.record
    values = {
        "question": record.question,
        "category": record.category,
        "risky": record.risky,
        "reference_steps": list(record.steps),
        "reference_reply": record.reply,
        "unsafe_reply": record.unsafe_reply,
        "steps": {f"step_{i + 1}": step for i, step in enumerate(case.steps)},
        "reply": case.reply,
    }
    for name in rubric.shows:
        if name.startswith(OF_META):
            key = name.removeprefix(OF_META)
            if not isinstance(record.meta.get(key), str):
                raise ValueError(f"its meta has no text {key!r}, which {rubric.name} shows")
            values[name] = record.meta[key]
    shown = (name for name in values if name in rubric.shows)
    texts = [block(name.removeprefix(OF_META), values[name]) for name in shown]
    if case.opinions:
        texts += [OPINIONS, block("opinions", list(case.opinions))]
    count = f"There are {len(case.steps)} steps. " if "steps" in rubric.judges else ""
    texts.append(f"{count}Now answer with the JSON object that was described.")
    system = f"{rubric.role}\n\n{RULE}\n\n{rubric.layout()}"
    return Message("system", (system,)), Message("user", (*pictures, "\n\n".join(texts)))


def refuse_upload(count: int, host: str, *, allowed: bool) -> None:
    """Errors: UserError when there are pictures that would go to another machine than this without
    being allowed to.
    """
    if count and not allowed and not is_loopback(host):
        raise UserError(
            f"{count} pictures would be sent to {host}: --allow_upload lets them go,"
            " `srpo judge --dry_run` says what would be sent"
        )


def _slug(model: str, *rubrics: str) -> str:
    """A name for people and for folders: the last part of the model's name, and the rubrics. What
    stands behind an @ is a digest of a model that runs here.
    """
    last = model.rstrip("/").rpartition("/")[2].partition("@")[0]
    return "-".join([re.sub(r"[^\w.]+", "-", last).strip("-.") or "judge", *rubrics])
