"""Preference pairs for measurements of a synthesis: quickstart problems, as many as are asked for.

The task itself has some thousands; a first turn of its own makes each pair another one.

    python benchmarks/teacher_pairs.py pairs.jsonl --count 200
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

from judging.quickstart import QuickstartTask, generate
from judging.readers import write_pairs
from judging.records import Message, PreferencePair, pair_uid


def write(path: Path, count: int) -> None:
    """As JSONL, for `data.path`."""
    write_pairs(path, islice(_pairs(), count))


def _pairs() -> Iterator[PreferencePair]:
    task = QuickstartTask(distill_pairs=6, reinforce_pairs=3000, heldout_pairs=6)
    for number, pair in enumerate(cycle(generate(task).reinforce)):
        before = (Message("user", f"problem {number}"), Message("assistant", "go on"))
        conversation = (*before, *pair.conversation)
        uid = pair_uid(conversation, pair.chosen, pair.rejected)
        yield replace(pair, uid=uid, conversation=conversation)


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes preference pairs for data.path.")
    parser.add_argument("path", type=Path, help="JSONL file to write")
    parser.add_argument("--count", type=int, default=200, help="pairs (default: 200)")
    options = parser.parse_args()
    write(options.path, options.count)
    print(f"{options.path}: {options.count:,} pairs; take them with data.path")


if __name__ == "__main__":
    main()
