"""A mix of made-up pairs: seconds and memory from files to the parts of a run.

    python benchmarks/mixing.py [--pairs 1000000] [--words 30 50] [--folder DIR] [--json FILE]

Three sources with the layouts of RM-R1's, of a question of 30 words and two answers of 50, whose
words are as frequent as those of a natural language; one pair in 20 is an earlier one of its source
again, exactly or with a word changed. Times reading, filtering, mixing, splitting and the search
for overlap with the held-out pairs; prints JSON with what each took of the wall clock and the
process' highest memory. Files are made first, and are not timed; with --folder, a second call finds
them there, and its memory is that of the mix alone.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from judging.mixing import Source, mix, read_source
from judging.splits import split_by_source
from orchestrator.config_loading import config_from_tree
from orchestrator.overlap import check_overlap

VOCABULARY = 50_000
COPIED = 20  # one pair in so many


class Writer:
    """Texts of words by Zipf's law."""

    def __init__(self, seed: int, question_words: int, answer_words: int) -> None:
        self.rng = random.Random(seed)
        self.question_words, self.answer_words = question_words, answer_words
        letters = "etaoinshrdlucm"
        self.words = [
            "".join(self.rng.choices(letters, k=self.rng.randint(2, 9))) for _ in range(VOCABULARY)
        ]
        self.weights = list(accumulate(1 / rank for rank in range(1, VOCABULARY + 1)))

    def text(self, words: int) -> list[str]:
        return self.rng.choices(self.words, cum_weights=self.weights, k=words)

    def pairs(self, count: int) -> Iterator[tuple[str, str, str]]:
        recent: list[tuple[list[str], list[str], list[str]]] = []
        for number in range(count):
            if number % COPIED or not recent:
                asked = self.text(self.question_words)
                texts = (asked, self.text(self.answer_words), self.text(self.answer_words))
                recent = [*recent[-50:], texts]
            else:
                asked, chosen, rejected = self.rng.choice(recent)
                texts = (asked, chosen if number % (2 * COPIED) else ["well", *chosen], rejected)
            question, chosen, rejected = (" ".join(words) for words in texts)
            yield question, chosen, rejected


def rows(layout: str, writer: Writer, count: int) -> Iterator[dict[str, Any]]:
    for number, (question, chosen, rejected) in enumerate(writer.pairs(count)):
        if layout == "code":
            yield {"input": question, "accepted": chosen, "rejected": rejected}
        elif layout == "math":
            yield {
                "prompt": question,
                "initial_reason_steps": "Step 1:",
                "full_chosen": chosen,
                "full_rejected": rejected,
                "dataset": "made",
            }
        else:
            asked = {"role": "user", "content": question}
            yield {
                "chosen": [asked, {"role": "assistant", "content": chosen}],
                "rejected": [asked, {"role": "assistant", "content": rejected}],
                "source": "magpie_ultra" if number % 5 == 1 else "other",
            }


def write_sources(folder: Path, pairs: int, words: tuple[int, int]) -> None:
    for seed, (layout, share) in enumerate((("skywork", 0.6), ("code", 0.2), ("math", 0.2))):
        writer = Writer(seed, *words)
        with (folder / f"{layout}.jsonl").open("w") as file:
            for row in rows(layout, writer, round(pairs * share)):
                file.write(json.dumps(row) + "\n")


def peak_rss_mib() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure(folder: Path) -> dict[str, Any]:
    spans, imports_mib, began = {}, peak_rss_mib(), time.perf_counter()

    def lap(name: str) -> None:
        spans[name] = round(time.perf_counter() - began - sum(spans.values()), 2)

    sources = {
        "skywork": Source(
            path=str(folder / "skywork.jsonl"), exclude={"source": ("magpie_ultra",)}
        ),
        "code": Source(path=str(folder / "code.jsonl")),
        "math": Source(path=str(folder / "math.jsonl")),
    }
    read = {name: read_source(name, source) for name, source in sources.items()}
    lap("read_s")
    pairs = mix(read, similarity=0.8, limit=None, seed=1)
    lap("mix_s")
    split = split_by_source(pairs, distill_fraction=0.12, heldout_fraction=0.01, seed=1)
    lap("split_s")
    mixed_mib = peak_rss_mib()
    tree = {"model": {"make": {"max_position_embeddings": 16384}}, "phases": ["reinforce"]}
    config = config_from_tree(tree | {"data": {"path": "mix", "overlap": "drop"}})
    notes: list[str] = []
    check_overlap(split, config, notes)
    lap("overlap_s")
    return {
        "rows": sum(each.report.rows for each in read.values()),
        "pairs": len(pairs),
        "sources": {name: str(each.report) for name, each in read.items()},
        **spans,
        "total_s": round(sum(spans.values()), 2),
        "imports_rss_mib": imports_mib,
        "mixed_peak_rss_mib": mixed_mib,
        "peak_rss_mib": peak_rss_mib(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--words", type=int, nargs=2, default=(30, 50), metavar=("Q", "A"))
    parser.add_argument("--folder", type=Path, help="keeps the files, and takes those there")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "math.jsonl").exists():
            write_sources(folder, options.pairs, tuple(options.words))
        measured = measure(folder)
    text = json.dumps(measured, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
