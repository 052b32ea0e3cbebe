"""Which pairs say what another pair says already.

Two pairs are exact duplicates if conversation, chosen and rejected answer are the same but for
case, white space and Unicode's forms of one character. They are near duplicates if the three texts
are each alike, in which also the answers may have changed places: a pair that contradicts an
earlier one goes too.

Alike is the measure of Lee et al. (arXiv 2107.06499): the share of runs of 5 words that both texts
have among those that either has, the Jaccard index; candidates are found by MinHash. Words are
those of `judging.overlap`. A text of fewer words is one run, so that short texts must be equal.
What is found depends on the texts alone, and is the same in every process.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import chain
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from judging.overlap import words_of
from judging.records import PreferencePair

WORDS = 5  # in a row
SIMILARITY = 0.8
# Of 12 bands of 6 hashes one is the same in 97% of the pairs that are alike by 0.8, in more than
# 99.9% by 0.9, and in 5% by 0.4, for which the comparison itself is spent in vain.
BANDS, HASHES = 12, 6
COMPARED = 4  # kept pairs of one value of a band, and those that a pair is compared with, at most
# What the hashes in common may say less than the texts do: two standard errors of 72 hashes.
LEEWAY = 0.1

_BATCH_PAIRS = 512  # so that what is computed at a time stays in the cache

Runs = NDArray[np.uint64]  # hashes of 5 words in a row
Flags = NDArray[np.bool_]

# Raw, since numpy promises no more than that these stay the same from version to version.
_DRAWN = np.random.PCG64(20220713).random_raw(3 * 128).reshape(3, 128)
_PLACES = _DRAWN[0, :WORDS] | np.uint64(1)  # odd, so that no bit of a word's hash is lost
_MASKS, _FACTORS = _DRAWN[1, : BANDS * HASHES], _DRAWN[2, : BANDS * HASHES] | np.uint64(1)
_OF_TEXT = np.array([_DRAWN[0, -1], 0, 0], np.uint64)  # of conversation, chosen, rejected
_IN_BAND = _DRAWN[0, WORDS : WORDS + HASHES] | np.uint64(1)
_MIX = np.uint64(0xFF51AFD7ED558CCD)  # of MurmurHash3's finalizer


def exact_duplicates(pairs: Sequence[PreferencePair]) -> Flags:
    """[pairs], whether an earlier one is the same."""
    seen: set[bytes] = set()
    found = np.zeros(len(pairs), np.bool_)
    for number, pair in enumerate(pairs):
        key = _key(pair)
        found[number] = key in seen
        seen.add(key)
    return found


def _key(pair: PreferencePair) -> bytes:
    turns = chain.from_iterable((turn.role, turn.content) for turn in pair.conversation)
    texts = (*turns, pair.chosen, pair.rejected)
    normal = (" ".join(unicodedata.normalize("NFKC", text).lower().split()) for text in texts)
    return blake2b("\0".join(normal).encode(), digest_size=16).digest()


def near_duplicates(pairs: Sequence[PreferencePair], similarity: float = SIMILARITY) -> Flags:
    """[pairs], whether an earlier one that is kept is alike.

    A pair is compared with `COMPARED` of the kept ones at most, those that share most bands.
    """
    found = np.zeros(len(pairs), np.bool_)
    if not pairs:
        return found
    keys, sketches = (np.concatenate(parts) for parts in zip(*_sketches(pairs), strict=True))
    bands = _shared_bands(keys)
    kept = np.full((int(bands.max()) + 1, COMPARED), -1, np.int32)  # [values, pairs], the first

    @lru_cache(maxsize=4096)
    def runs(number: int) -> tuple[Runs, ...]:
        return tuple(map(_runs_of, _texts(pairs[number])))

    for number in np.flatnonzero(bands.any(axis=1)).tolist():
        values = bands[number][bands[number] > 0]
        earlier = kept[values]
        others = np.unique(earlier[earlier >= 0])
        in_common = (sketches[others] == sketches[number]).mean(axis=1)
        others = others[np.argsort(-in_common, kind="stable")[:COMPARED]]
        others = others[: int((in_common >= similarity - LEEWAY).sum())].tolist()
        if any(_are_alike(runs(number), runs(other), similarity) for other in others):
            found[number] = True
            continue
        is_free = earlier < 0
        has_room = is_free.any(axis=1)
        kept[values[has_room], is_free.argmax(axis=1)[has_room]] = number
    return found


def _shared_bands(keys: NDArray[np.uint64]) -> NDArray[np.int32]:
    """[pairs, BANDS], a number for each value of each band; 0 for one that no other pair has."""
    bands = np.zeros(keys.shape, np.int32)
    total = 0
    for band in range(BANDS):
        _, places, counts = np.unique(keys[:, band], return_inverse=True, return_counts=True)
        is_shared = counts > 1
        numbers = np.where(is_shared, is_shared.cumsum() + total, 0)
        bands[:, band] = numbers[places]
        total += int(is_shared.sum())
    return bands


def _sketches(
    pairs: Sequence[PreferencePair],
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint8]]]:
    """Of one batch after the other: [pairs, BANDS], a key for each band; and [pairs, BANDS *
    HASHES], the lowest bits of each hash, the share of which that two pairs have in common is near
    their Jaccard index."""
    for start in range(0, len(pairs), _BATCH_PAIRS):
        batch = pairs[start : start + _BATCH_PAIRS]
        runs, counts = _runs(list(chain.from_iterable(map(_texts, batch))))
        # Words of a question are others than those of an answer.
        runs ^= np.repeat(np.tile(_OF_TEXT, len(batch)), counts)
        ends = counts.reshape(len(batch), 3).sum(axis=1).cumsum()
        begins = np.concatenate(([0], ends[:-1]))
        least = np.empty((BANDS * HASHES, len(batch)), np.uint64)
        for place in range(BANDS * HASHES):
            drawn = ((runs ^ _MASKS[place]) * _FACTORS[place]) >> np.uint64(32)
            least[place] = np.minimum.reduceat(drawn.astype(np.uint32), begins)
        in_bands = least.reshape(BANDS, HASHES, len(batch)) * _IN_BAND[:, None]
        yield in_bands.sum(axis=1, dtype=np.uint64).T, least.astype(np.uint8).T


def _texts(pair: PreferencePair) -> tuple[str, str, str]:
    return "\n".join(turn.content for turn in pair.conversation), pair.chosen, pair.rejected


def _runs(texts: Sequence[str]) -> tuple[Runs, NDArray[np.intp]]:
    """The runs of all texts, one text after the other, and [texts] how many each has, 1 or more."""
    words = [words_of(text) for text in texts]
    padded = (each + [""] * (WORDS - len(each)) for each in words)
    hashes = np.fromiter(map(crc32, map(str.encode, chain.from_iterable(padded))), np.uint64)
    lengths = np.array([max(WORDS, len(each)) for each in words], np.intp)
    runs = np.zeros(len(hashes) - WORDS + 1, np.uint64)
    for place, factor in enumerate(_PLACES):
        runs += hashes[place : place + len(runs)] * factor
    runs ^= runs >> np.uint64(33)
    runs *= _MIX
    runs ^= runs >> np.uint64(33)
    is_within = np.ones(len(hashes), np.bool_)  # one text, from its first word to its last
    ends = lengths.cumsum()
    for place in range(1, WORDS):
        is_within[ends - place] = False
    return runs[is_within[: len(runs)]], lengths - (WORDS - 1)


def _runs_of(text: str) -> Runs:
    return np.unique(_runs([text])[0])


def _are_alike(one: Sequence[Runs], other: Sequence[Runs], similarity: float) -> bool:
    (asked, chosen, rejected), (asked_other, *answers) = one, other
    if _jaccard(asked, asked_other) < similarity:
        return False
    return any(
        _jaccard(chosen, first) >= similarity and _jaccard(rejected, second) >= similarity
        for first, second in (answers, answers[::-1])
    )


def _jaccard(one: Runs, other: Runs) -> float:
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)
