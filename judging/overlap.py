"""Which training pairs repeat text of an evaluation set.

The measure is that of GPT-3 (arXiv 2005.14165, appendix C): 13 words in a row, in lower case,
between spaces and without punctuation, that both sides have. Those that occur in more than 10
documents are ignored, as stock phrases. A document is here a conversation with all answers to it,
since many pairs may share one, and the rule holds for either side.

- A conversation (its user's turns as one text) overlaps by one such run of words; one that is
  shorter, if another conversation is the same as a whole.
- An answer overlaps if 70% of its runs are the evaluation set's, which is PaLM's measure (arXiv
  2204.02311, section 8): answers of models to unlike questions have many a sentence in common,
  refusals above all. A shorter one ("Yes") tells nothing and is not compared.

Of Chinese and Japanese, which have no spaces, each character is a word; Thai, Lao, Khmer and
Burmese stay as they are spaced, and so are found by longer stretches only. Not found are
paraphrases, translations, and what more than 10 conversations say.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from judging.records import PreferencePair

WORDS = 13  # in a row
COMMON_CONVERSATIONS = 10  # what occurs in more of them is ignored
ANSWER_SHARE = 0.7  # of an answer's runs of words, from which on it overlaps
EXAMPLES_SHOWN = 3

Keys = NDArray[np.uint64]  # hashes, each of 13 words in a row or of a whole short conversation
Indices = NDArray[np.intp]

_ASCII_PUNCTUATION = {
    code: None for code in range(128) if not (chr(code).isalnum() or chr(code).isspace())
}
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")
_PUNCTUATION = re.compile(r"[^\w\s]+")
_HAN_OR_KANA = re.compile(
    r"[\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
# Odd, so that no bit of a word's hash is lost, whatever its place.
_POWERS = np.full(WORDS, 0x9E3779B97F4A7C15, np.uint64).cumprod(dtype=np.uint64)
_SIEVE_BITS = 32  # of each key: of foreign keys one in so many passes, which saves most searches


def words_of(text: str) -> list[str]:
    """The words that are compared: in lower case and without punctuation."""
    text = unicodedata.normalize("NFKC", text).lower()
    if not text.isascii():
        text = _BEYOND_ASCII.sub(lambda run: _clean(run[0]), text)
    return text.translate(_ASCII_PUNCTUATION).split()


def _clean(run: str) -> str:
    return _HAN_OR_KANA.sub(r" \g<0> ", _PUNCTUATION.sub("", run))


def keys_of(words: Sequence[str], *, is_conversation: bool = False) -> Keys:
    """One for each 13 words in a row, in their order.

    A conversation of fewer words has one key, a shorter answer none. Keys are good within this
    process only: they rest on Python's hash of text, which is drawn anew in each.
    """
    if len(words) >= WORDS:
        hashes = np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)
        return np.convolve(hashes, _POWERS, "valid")
    whole = [hash(tuple(words))] if is_conversation and words else []
    return np.array(whole, np.int64).view(np.uint64)


@dataclass(frozen=True, slots=True)
class _Texts:
    """A conversation and the answers to it, each text once."""

    keys: Keys  # of all texts, one text after the other
    ends: Indices  # [texts], where the keys of each end
    needed: Sequence[int]  # [texts], keys that make an overlap
    pairs: Sequence[Sequence[int]]  # [texts], which pairs have it

    def text_of(self, places: Indices) -> Indices:
        """[places], the text that a key is of."""
        return np.searchsorted(self.ends, places, side="right")


def _conversations(pairs: Sequence[PreferencePair]) -> Iterator[_Texts]:
    members: dict[tuple[object, ...], list[int]] = {}
    for number, pair in enumerate(pairs):
        members.setdefault(pair.conversation, []).append(number)
    for numbers in members.values():
        answers: dict[str, list[int]] = {}
        for number in numbers:
            for answer in {pairs[number].chosen, pairs[number].rejected}:
                answers.setdefault(answer, []).append(number)
        first = pairs[numbers[0]]
        keys = [_conversation_keys(first), *(keys_of(words_of(text)) for text in answers)]
        ends = np.cumsum([len(each) for each in keys])
        needed = [1, *(_needed_of_answer(each) for each in keys[1:])]
        owners = [numbers, *answers.values()]
        yield _Texts(np.concatenate(keys), ends, needed, owners)


def _needed_of_answer(keys: Keys) -> int:
    return max(1, ceil(ANSWER_SHARE * len(keys)))


def _conversation_words(pair: PreferencePair) -> list[str]:
    return words_of("\n".join(turn.content for turn in pair.conversation if turn.role == "user"))


def _conversation_keys(pair: PreferencePair) -> Keys:
    return keys_of(_conversation_words(pair), is_conversation=True)


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """The keys of an evaluation set, to be looked up."""

    name: str
    items: Sequence[str]  # uids
    keys: Keys  # [keys], sorted; without those that too many of its conversations share
    owners: NDArray[np.int32]  # [keys], the first item that has it, by its place in `items`
    sieve: NDArray[np.uint8]  # bits, by the highest bits of a key, of which some key sets one

    def find(self, keys: Keys) -> tuple[Indices, Indices]:
        """Which of `keys` are in the set, and where, both by their places."""
        byte, bit = _sieve_places(keys, len(self.sieve))
        likely = np.flatnonzero(self.sieve[byte] & bit)
        at = np.minimum(np.searchsorted(self.keys, keys[likely]), len(self.keys) - 1)
        found = self.keys[at] == keys[likely]
        return likely[found], at[found]


def evaluation_set(name: str, items: Iterable[tuple[str, PreferencePair]]) -> EvaluationSet:
    """Of each pair of an evaluation set with the uid of its item."""
    items = tuple(items)
    uids, pairs = [uid for uid, _ in items], [pair for _, pair in items]
    keys, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int32)]
    for texts in _conversations(pairs):
        unique, first = np.unique(texts.keys, return_index=True)
        having = np.array([numbers[0] for numbers in texts.pairs], np.int32)
        keys.append(unique)
        owners.append(having[texts.text_of(first)])
    unique, first, counts = np.unique(np.concatenate(keys), return_index=True, return_counts=True)
    rare = counts <= COMMON_CONVERSATIONS
    unique = unique[rare]
    sieve = np.zeros(1 << (_SIEVE_BITS // 8 * len(unique)).bit_length(), np.uint8)
    np.bitwise_or.at(sieve, *_sieve_places(unique, len(sieve)))
    return EvaluationSet(name, uids, unique, np.concatenate(owners)[first[rare]], sieve)


def _sieve_places(keys: Keys, size: int) -> tuple[Keys, NDArray[np.uint8]]:
    """The byte of each key in a sieve of `size` bytes, a power of 2, and its bit there."""
    places = keys >> np.uint64(64 - 3 - (size.bit_length() - 1))
    return places >> np.uint64(3), np.uint8(1) << (places & np.uint64(7)).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Example:
    """Words that a training pair shares with an evaluation item."""

    pair_uid: str
    item_uid: str
    words: str  # the first 13 that they share, as they are compared


@dataclass(frozen=True, slots=True)
class Overlap:
    """What a set of training pairs shares with one evaluation set."""

    name: str  # of the evaluation set
    pairs: tuple[int, ...]  # places of the training pairs, ascending
    examples: tuple[Example, ...]  # of the first of them


def find_overlaps(
    pairs: Sequence[PreferencePair], sets: Sequence[EvaluationSet]
) -> tuple[Overlap, ...]:
    """One for each evaluation set, in their order.

    One core does about 3,000 pairs of 750 words a second (benchmarks/overlap.py).
    """
    searches = [_Search.over(each) for each in sets]
    for texts in _conversations(pairs):
        for search in searches:
            search.add(texts)
    return tuple(search.result(pairs) for search in searches)


@dataclass(frozen=True, slots=True)
class _Search:
    """Of the keys of one evaluation set, conversation by conversation."""

    within: EvaluationSet
    counts: NDArray[np.int32]  # [keys], training conversations that have it
    # Of each text that may overlap: the pairs it is of, the keys it needs, and those it shares by
    # their places in the set. Those known to be common are not kept: what is kept has a bound.
    found: list[tuple[Sequence[int], int, Indices]]

    @classmethod
    def over(cls, within: EvaluationSet) -> _Search:
        return cls(within, np.zeros(len(within.keys), np.int32), [])

    def add(self, texts: _Texts) -> None:
        places, at = self.within.find(texts.keys)
        if not len(at):
            return
        self.counts[np.unique(at)] += 1
        rare = self.counts[at] <= COMMON_CONVERSATIONS
        places, at = places[rare], at[rare]
        text_of = texts.text_of(places)
        shared = np.bincount(text_of, minlength=len(texts.ends))
        for text in np.flatnonzero(shared >= texts.needed):
            self.found.append((texts.pairs[text], texts.needed[text], at[text_of == text]))

    def result(self, pairs: Sequence[PreferencePair]) -> Overlap:
        rare = self.counts <= COMMON_CONVERSATIONS
        overlapping = {
            number
            for numbers, needed, at in self.found
            if rare[at].sum() >= needed
            for number in numbers
        }
        ordered = tuple(sorted(overlapping))
        examples = (self._example(pairs[number], rare) for number in ordered[:EXAMPLES_SHOWN])
        return Overlap(self.within.name, ordered, tuple(examples))

    def _example(self, pair: PreferencePair, rare: NDArray[np.bool_]) -> Example:
        """Of the first of its texts that overlaps."""
        conversation = _conversation_words(pair)
        for words in (conversation, words_of(pair.chosen), words_of(pair.rejected)):
            is_conversation = words is conversation
            keys = keys_of(words, is_conversation=is_conversation)
            places, at = self.within.find(keys)
            places, at = places[rare[at]], at[rare[at]]
            if len(at) >= (1 if is_conversation else _needed_of_answer(keys)):
                item = self.within.items[int(self.within.owners[at[0]])]
                shared = words[places[0] : places[0] + WORDS]
                return Example(pair.uid, item, " ".join(shared))
        raise AssertionError(f"no text of pair {pair.uid} overlaps")
