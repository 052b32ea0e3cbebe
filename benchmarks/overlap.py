"""Training pairs that are compared with evaluation sets in a second, on one core.

    python benchmarks/overlap.py [--pairs 20000] [--items 20000] [--json FILE]

Made-up pairs, of a question of 150 words and two answers of 300, whose words are as frequent as
those of a natural language; one in a hundred has the question of an evaluation item. Prints JSON:
pairs a second, of the core's time, what the evaluation set takes in memory, and what more the
search takes at its peak.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import tracemalloc
from itertools import accumulate
from pathlib import Path
from typing import Any

from judging.overlap import EvaluationSet, evaluation_set, find_overlaps
from judging.records import Message, PreferencePair

QUESTION_WORDS, ANSWER_WORDS, SENTENCE_WORDS = 150, 300, 15
VOCABULARY = 50_000
COPIED = 100  # one pair in so many
MIB = 1024**2


class Writer:
    """Sentences of words by Zipf's law."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        letters = "etaoinshrdlucm"
        self.words = [
            "".join(self.rng.choices(letters, k=self.rng.randint(2, 9))) for _ in range(VOCABULARY)
        ]
        self.weights = list(accumulate(1 / rank for rank in range(1, VOCABULARY + 1)))

    def text(self, words: int) -> str:
        drawn = self.rng.choices(self.words, cum_weights=self.weights, k=words)
        sentences = range(0, words, SENTENCE_WORDS)
        # A dash in each second sentence, since text of models is seldom ASCII throughout.
        return " \N{EM DASH} ".join(
            ". ".join(" ".join(drawn[start : start + SENTENCE_WORDS]) for start in two)
            for two in (sentences[i : i + 2] for i in range(0, len(sentences), 2))
        )

    def pair(self, uid: str) -> PreferencePair:
        conversation = (Message("user", self.text(QUESTION_WORDS)),)
        return PreferencePair(uid, conversation, self.text(ANSWER_WORDS), self.text(ANSWER_WORDS))


def copied(writer: Writer, number: int, items: list[PreferencePair]) -> PreferencePair:
    pair = writer.pair(f"pair-{number}")
    if number % COPIED:
        return pair
    question = items[number % len(items)].conversation
    return PreferencePair(pair.uid, question, pair.chosen, pair.rejected)


def measure(pair_count: int, item_count: int) -> dict[str, Any]:
    writer = Writer(0)
    items = [writer.pair(f"item-{number}") for number in range(item_count)]
    pairs = [copied(writer, number, items) for number in range(pair_count)]
    began_s = time.process_time()
    within = evaluation_set("made up", [(item.uid, item) for item in items])
    built_s = time.process_time() - began_s
    began_s = time.process_time()
    (overlap,) = find_overlaps(pairs, [within])
    passed_s = time.process_time() - began_s
    assert len(overlap.pairs) == len(range(0, pair_count, COPIED))
    return {
        "pairs_per_s": round(pair_count / passed_s),
        "minutes_for_a_million_pairs": round(1e6 * passed_s / pair_count / 60, 1),
        "words_per_pair": QUESTION_WORDS + 2 * ANSWER_WORDS,
        "evaluation_items": item_count,
        "evaluation_set_s": round(built_s, 1),
        "evaluation_set_mib": round(_size(within) / MIB),
        "search_peak_mib": round(_peak(pairs, within) / MIB),
    }


def _size(within: EvaluationSet) -> int:
    return within.keys.nbytes + within.owners.nbytes + within.sieve.nbytes


def _peak(pairs: list[PreferencePair], within: EvaluationSet) -> int:
    """In bytes, of a search by itself, which is slower while it is watched."""
    tracemalloc.start()
    try:
        find_overlaps(pairs, [within])
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=20_000, help="for training")
    parser.add_argument("--items", type=int, default=20_000, help="of the evaluation set")
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    text = json.dumps(measure(options.pairs, options.items), indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
