"""Whether a quote occurs in the text that it claims to be taken from."""

from __future__ import annotations

from functools import lru_cache

_MARKS = "\"'\u201c\u201d\u2018\u2019`.,;:\u2026 "


def occurs(quote: str, text: str) -> bool:
    """Every piece of the quote between ellipses, in order.

    Blanks, case and surrounding quotation marks do not count; a quote of marks alone does not
    occur.
    """
    text = _plain_text(text)
    position = 0
    for piece in _pieces(quote):
        position = text.find(piece, position)
        if position < 0:
            return False
        position += len(piece)
    return position > 0


def _pieces(quote: str) -> list[str]:
    pieces = _plain(quote).replace("\u2026", "...").split("...")
    return [stripped for piece in pieces if (stripped := piece.strip(_MARKS))]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


@lru_cache(maxsize=1024)
def _plain_text(text: str) -> str:
    """All samples of a group are about the same two answers."""
    return _plain(text)
