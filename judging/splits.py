"""Which pairs go to distillation, which to reinforcement, which are held out.

No conversation is in two parts, whatever the pairs made of it. By `split_pairs` a conversation's
part depends on its content and the seed only, so that adding data moves no pair from one part to
another; `split_by_source` gives each part its share of every source instead.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from judging.errors import ConfigurationError
from judging.records import Message, PreferencePair


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
    _check_fractions(distill_fraction, heldout_fraction)
    return _deal(pairs, lambda pair: _place(pair, seed), distill_fraction, heldout_fraction)


def split_by_source(
    pairs: Sequence[PreferencePair],
    *,
    distill_fraction: float,
    heldout_fraction: float,
    seed: int,
) -> Split:
    """As `split_pairs`, but of each source each part has its fraction of the pairs.

    It departs from it by one pair at most, or by those of one conversation where a conversation has
    several; one that several sources have is dealt with the first of them by name. The parts are
    the same in whatever order the pairs come.
    """
    _check_fractions(distill_fraction, heldout_fraction)
    places = _places_within_sources(pairs, seed)
    return _deal(pairs, lambda pair: places[pair.conversation], distill_fraction, heldout_fraction)


def _places_within_sources(
    pairs: Sequence[PreferencePair], seed: int
) -> Mapping[tuple[Message, ...], float]:
    """For each conversation a number in (0, 1): where it stands among its source's pairs."""
    sizes = Counter(pair.conversation for pair in pairs)
    firsts: dict[tuple[Message, ...], PreferencePair] = {}
    for pair in pairs:
        first = firsts.setdefault(pair.conversation, pair)
        if pair.source < first.source:
            firsts[pair.conversation] = pair
    totals: Counter[str] = Counter()
    for conversation, first in firsts.items():
        totals[first.source] += sizes[conversation]
    places: dict[tuple[Message, ...], float] = {}
    dealt: Counter[str] = Counter()
    for _, conversation in sorted(
        ((_place(first, seed), conversation) for conversation, first in firsts.items()),
        key=lambda placed: placed[0],
    ):
        source, size = firsts[conversation].source, sizes[conversation]
        places[conversation] = (dealt[source] + size / 2) / totals[source]
        dealt[source] += size
    return places


def _check_fractions(distill_fraction: float, heldout_fraction: float) -> None:
    if distill_fraction < 0 or heldout_fraction < 0 or distill_fraction + heldout_fraction > 1:
        raise ConfigurationError(
            f"distill_fraction ({distill_fraction}) and heldout_fraction ({heldout_fraction}) must"
            " be 0 or more and sum to at most 1: lower one of them"
        )


def _deal(
    pairs: Iterable[PreferencePair],
    place_of: Callable[[PreferencePair], float],
    distill_fraction: float,
    heldout_fraction: float,
) -> Split:
    distill: list[PreferencePair] = []
    reinforce: list[PreferencePair] = []
    heldout: list[PreferencePair] = []
    for pair in pairs:
        place = place_of(pair)
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
