"""What came of reading an answer: the statuses, which are usable, and when a run must stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from srpo_jax.errors import UserError, one_line

OK = "ok"
NO_REPLY = "no_reply"  # ended without the mark that begins the reply
EMPTY_REPLY = "empty_reply"  # the mark is there and nothing behind it
UNCLOSED = "unclosed"  # ended inside the thinking
UNFINISHED = "unfinished"  # cut by the token limit
NO_THINKING = "no_thinking"  # a reply without any step
ANSWER_BEFORE_THINKING = "answer_before_thinking"  # text in front of the opening tag
SEVERAL_CLOSINGS = "several_closings"  # the closing tag stands in the reply once more
IRREGULAR = "irregular"  # sections are missing, empty or in another order

# In the order in which they are shown.
STATUSES = (
    OK,
    SEVERAL_CLOSINGS,
    NO_THINKING,
    IRREGULAR,
    NO_REPLY,
    EMPTY_REPLY,
    UNCLOSED,
    ANSWER_BEFORE_THINKING,
    UNFINISHED,
)
LEAST = 64  # answers that must be there before a run is judged by them


def usable(status: str, irregular: str = "drop") -> bool:
    """Whether an answer with this status has a reply that can be judged and trained on.

    Of `ok`, `several_closings` and `no_thinking` it is certain what the user would see as the
    reply; of `irregular` too, but the path is not the one asked for: used with irregular="keep"
    (the field explore.irregular). All other statuses are not usable.
    """
    return status in (OK, SEVERAL_CLOSINGS, NO_THINKING) or (
        status == IRREGULAR and irregular == "keep"
    )


def count_statuses(statuses: Iterable[str] | Mapping[str, int]) -> dict[str, int]:
    """How often each status occurs, in the order of STATUSES; what never occurs is left out.

    statuses: one an answer, or counted already.
    """
    counts = Counter(statuses)
    names = [*STATUSES, *sorted(set(counts) - set(STATUSES))]
    return {name: counts[name] for name in names if counts[name]}


def unreadable(
    counts: Mapping[str, int],
    total: int,
    sample_text: str,
    format_name: str,
    *,
    least: int = LEAST,
) -> str | None:
    """One line about answers that mostly do not follow their format, or None if they do.

    counts: as of count_statuses, of `total` answers. sample_text: one that is not ok. There is
    something to say when at least `least` answers were read and more than half are not `ok`.
    """
    bad = total - counts.get(OK, 0)
    if total < least or 2 * bad <= total:
        return None
    told = ", ".join(f"{name} {count}" for name, count in counts.items())
    shown = one_line(sample_text)
    if len(shown) > 160:
        shown = f"{shown[:80]} ... {shown[-80:]}"
    if 2 * counts.get(UNFINISHED, 0) > bad:
        cure = "raise max_new_tokens, or ask for shorter answers (prompt.instruction)"
    else:
        cure = "set format.kind to what the policy writes, or tell it how to (prompt.instruction)"
    return (
        f"{bad} of {total} answers cannot be read as format.kind={format_name} ({told}); "
        f"one is {shown!r}; {cure}"
    )


def check_readable(
    counts: Mapping[str, int], total: int, sample_text: str, format_name: str
) -> None:
    """Raises UserError with what `unreadable` says, if anything."""
    if message := unreadable(counts, total, sample_text, format_name):
        raise UserError(message)
