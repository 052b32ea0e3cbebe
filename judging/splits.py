"""Which pairs go to distillation, which to reinforcement, which are held out.

A conversation's part depends on its content and the seed only, so no conversation is in two parts
whatever the pairs made of it, and adding data moves no pair from one part to another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from judging.errors import ConfigurationError
from judging.records import PreferencePair


@dataclass(frozen=True, slots=True)
class Split:
    distill: tuple[PreferencePair, ...]
    reinforce: tuple[PreferencePair, ...]
    heldout: tuple[PreferencePair, ...]


def split_pairs(
    pairs: Iterable[PreferencePair],
    *,
    distill_fraction: float,
    heldout_fraction: float,
    seed: int,
) -> Split:
    """Deal pairs by conversation; the rest of the two fractions is for reinforcement.

    The fractions are those of the expected number of conversations; a small data set may depart
    from them, down to an empty part. The held-out part is dealt first: it stays the same when only
    `distill_fraction` changes.

    Raises:
        ConfigurationError: a fraction below 0, or fractions that sum to more than 1.
    """
    if distill_fraction < 0 or heldout_fraction < 0 or distill_fraction + heldout_fraction > 1:
        raise ConfigurationError(
            f"distill_fraction ({distill_fraction}) and heldout_fraction ({heldout_fraction}) must"
            " be 0 or more and sum to at most 1: lower one of them"
        )
    distill: list[PreferencePair] = []
    reinforce: list[PreferencePair] = []
    heldout: list[PreferencePair] = []
    for pair in pairs:
        place = _place(pair, seed)
        if place < heldout_fraction:
            heldout.append(pair)
        elif place < heldout_fraction + distill_fraction:
            distill.append(pair)
        else:
            reinforce.append(pair)
    return Split(tuple(distill), tuple(reinforce), tuple(heldout))


def _place(pair: PreferencePair, seed: int) -> float:
    """A number in [0, 1) that the pair's conversation and the seed decide."""
    turns = [[message.role, message.content] for message in pair.conversation]
    digest = hashlib.sha256(json.dumps([seed, turns]).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
