"""What an OpenAI-compatible endpoint says of an error."""

from typing import NamedTuple


class EndpointError(NamedTuple):
    """An endpoint's own words.

    Attributes:
        code: such as ``insufficient_quota``; empty where it gives none.
        reason: for people; of any length.
    """

    code: str
    reason: str


def read_error(body: object, text: str) -> EndpointError:
    """OpenAI's own shape of an error, FastAPI's, or whatever text was sent.

    >>> read_error({"error": {"message": "No money.", "code": "insufficient_quota"}}, "")
    EndpointError(code='insufficient_quota', reason='No money.')
    >>> read_error({"detail": "Not Found"}, "").reason, read_error(None, "<html>").reason
    ('Not Found', '<html>')
    """
    said = body if isinstance(body, dict) else {}
    said = said["error"] if isinstance(said.get("error"), dict) else said
    return EndpointError(str(said.get("code") or ""), str(said.get("message") or said.get("detail") or text))


def first_line(text: str) -> str:
    """The first line of somebody else's message, at most 300 characters of it."""
    return (text.strip().splitlines() or ["no reason given"])[0][:300]
