"""Made-up comparisons that carry their own truth: every summary says in its text how good it is.

Whoever holds the texts knows the verdict, so a server can answer as a reader would and a harness can check each
verdict, in whatever words and order the question was put.
"""

import re
import zlib
from random import Random
from typing import NamedTuple

_CASE = re.compile(r"case (\d{6})")
_WORTH = re.compile(r"worth (\d{2}) of 99")
_WHO = (
    "my sister",
    "a neighbour",
    "the landlord",
    "our coach",
    "an old friend",
    "the baker",
    "my cousin",
    "a colleague",
)
_DID = ("borrowed", "painted", "sold", "forgot", "repaired", "hid", "photographed", "gave away")
_WHAT = ("a bicycle", "the kitchen door", "two tickets", "an umbrella", "the garden fence", "a red kettle", "my notes")
_WHEN = ("last week", "on Monday", "before the trip", "during the storm", "at the party", "without asking", "again")


def made_up(number: int, seed: int = 0) -> dict[str, str]:
    """A row of a completions file: a post of a few hundred bytes and two summaries, one of which is worth more."""
    random = Random(f"{seed} {number}")
    case = f"{number:06d}"
    post = " ".join(_sentence(random) for _ in range(6))
    worths = random.sample(range(10, 100), 2)
    sample, opponent = (f" {_sentence(random)} It is worth {worth} of 99." for worth in worths)
    prompt = f"SUBREDDIT: r/stories\n\nTITLE: What now?\n\nPOST: This is case {case}. {post}\n\nTL;DR:"
    return {"prompt_id": f"case {case}", "prompt": prompt, "response": sample, "opponent": opponent}


def _sentence(random: Random) -> str:
    words = " ".join(random.choice(part) for part in (_WHO, _DID, _WHAT, _WHEN))
    return f"{words[0].upper()}{words[1:]}."


class Question(NamedTuple):
    """What a server can read in a question, whatever its wording.

    Attributes:
        case: six digits; ``None`` in texts that are not ours.
        worths: of the summaries, in the order they were shown.
    """

    case: str | None
    worths: tuple[int, ...]


def read_question(text: str) -> Question:
    """The case and the summaries' worths.

    >>> row = made_up(7)
    >>> case, (first, second) = read_question(row["prompt"] + row["opponent"] + row["response"])
    >>> case, (first < second) == (truth(row) == "win")
    ('000007', True)
    """
    case = _CASE.search(text)
    return Question(case[1] if case else None, tuple(map(int, _WORTH.findall(text))))


def unanswered(case: str, *, unreadable: float, refused: float) -> str | None:
    """Whether a case is one that never gets a proper answer: ``unreadable``, ``refused`` or neither.

    Args:
        case: six digits.
        unreadable: share of cases whose answer names no summary.
        refused: share of cases that are refused.
    """
    place = zlib.crc32(case.encode()) / 2**32
    if place < unreadable:
        return "unreadable"
    return "refused" if place >= 1 - refused else None


def truth(row: dict[str, str], *, unreadable: float = 0.0, refused: float = 0.0) -> str:
    """The verdict that a row of :func:`made_up` must get: win, loss, unreadable or refused."""
    case = read_question(row["prompt"]).case
    assert case
    [sample], [opponent] = (read_question(row[which]).worths for which in ("response", "opponent"))
    return unanswered(case, unreadable=unreadable, refused=refused) or ("win" if sample > opponent else "loss")
