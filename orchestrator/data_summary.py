"""What came of a configuration's data: counts, lengths, categories and examples.

Reads the pairs as a run does; starts nothing and imports neither torch nor Ray.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from judging.presentation import balanced_order
from judging.readers import ReadReport
from judging.records import PreferencePair
from orchestrator.config import RunConfig
from orchestrator.facts import model_folder
from orchestrator.pairs import load_pairs

PARTS = ("distill", "reinforce", "heldout")
TEXTS = ("conversation", "chosen", "rejected")
QUANTILES = {"p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
MEASURED_PAIRS = 20_000  # whose lengths are taken, drawn by seed: tokens take their time
EXAMPLES = 2  # of each source

Unit = Literal["tokens", "characters"]


@dataclass(frozen=True, slots=True)
class Example:
    source: str
    category: str
    part: str
    uid: str
    question: str
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True, eq=False)
class Lengths:
    """Of a sample of the pairs."""

    unit: Unit
    pairs: int
    of: Mapping[str, Mapping[str, NDArray[np.int64]]]  # source, text: [pairs]

    def quantiles(self, source: str, text: str) -> dict[str, int]:
        lengths = self.of[source][text]
        return {name: int(np.quantile(lengths, at)) for name, at in QUANTILES.items()}

    def chosen_longer(self, source: str) -> float:
        """Share of the pairs; those of equal length count half."""
        texts = self.of[source]
        longer = np.sign(texts["chosen"] - texts["rejected"])
        return float(np.mean((longer + 1) / 2))


@dataclass(frozen=True, slots=True, eq=False)
class DataSummary:
    reports: Mapping[str, ReadReport]  # by source, or path
    parts: Mapping[str, Mapping[str, int]]  # pairs by source and part
    overlapping: Mapping[str, int]  # training pairs left out by data.overlap, by source
    categories: Mapping[str, Mapping[str, int]]  # pairs by source and category, most first
    lengths: Lengths
    chosen_first: float  # share of the pairs that one order shows with the chosen answer first
    examples: Sequence[Example]
    notes: Sequence[str]

    def reasons(self) -> list[str]:
        """Why rows of any source were left out, in the order of `ReadReport`."""
        found = {why for report in self.reports.values() for why in report.reasons()}
        known = (field.name.replace("_", " ") for field in fields(ReadReport))
        return [why for why in known if why in found]

    def tree(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        lengths = self.lengths
        return {
            "sources": {
                name: {"rows": each.rows, "kept": each.kept, "left_out": each.reasons()}
                for name, each in self.reports.items()
            },
            "parts": {name: dict(counts) for name, counts in self.parts.items()},
            "overlapping": dict(self.overlapping),
            "categories": {name: dict(counts) for name, counts in self.categories.items()},
            "lengths": {
                "unit": lengths.unit,
                "pairs": lengths.pairs,
                "sources": {
                    source: {text: lengths.quantiles(source, text) for text in TEXTS}
                    | {"chosen_longer": lengths.chosen_longer(source)}
                    for source in lengths.of
                },
            },
            "chosen_first": self.chosen_first,
            "examples": [asdict(example) for example in self.examples],
            "notes": list(self.notes),
        }


def summarize(config: RunConfig) -> DataSummary:
    """Raises as `load_pairs`."""
    loaded, seed = load_pairs(config), config.run.seed
    dealt = [(part, pair) for part in PARTS for pair in getattr(loaded.split, part)]
    pairs = [pair for _, pair in dealt]
    parts: dict[str, dict[str, int]] = {}
    categories: dict[str, Counter[str]] = {}
    for part, pair in sorted(dealt, key=lambda each: each[1].source):
        parts.setdefault(pair.source, dict.fromkeys(PARTS, 0))[part] += 1
        categories.setdefault(pair.source, Counter())[pair.category] += 1
    firsts = sum(balanced_order(pair.uid, seed) == "chosen_first" for pair in pairs)
    return DataSummary(
        reports=loaded.reports,
        parts=parts,
        overlapping=loaded.overlapping,
        categories={name: dict(counts.most_common()) for name, counts in categories.items()},
        lengths=_lengths(pairs, config),
        chosen_first=firsts / max(1, len(pairs)),
        examples=_examples(dealt, seed),
        notes=loaded.notes,
    )


def _lengths(pairs: Sequence[PreferencePair], config: RunConfig) -> Lengths:
    unit, measure = _measure(config)
    drawn = random.Random(config.run.seed).sample(pairs, min(len(pairs), MEASURED_PAIRS))
    of: dict[str, dict[str, NDArray[np.int64]]] = {}
    for source in sorted({pair.source for pair in drawn}):
        own = [pair for pair in drawn if pair.source == source]
        texts = (
            [_conversation(pair) for pair in own],
            [pair.chosen for pair in own],
            [pair.rejected for pair in own],
        )
        of[source] = {
            name: np.array(measure(each), np.int64) for name, each in zip(TEXTS, texts, strict=True)
        }
    return Lengths(unit, len(drawn), of)


def _measure(config: RunConfig) -> tuple[Unit, Callable[[list[str]], list[int]]]:
    """By the model's tokenizer if it is on this machine, else in characters."""
    path = config.model.path
    folder = model_folder(path, config.model.revision) if path else None
    if folder is None or not (folder / "tokenizer.json").exists():
        return "characters", lambda texts: list(map(len, texts))
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return "tokens", lambda texts: [
        len(each) for each in tokenizer.encode_batch(texts, add_special_tokens=False)
    ]


def _conversation(pair: PreferencePair) -> str:
    return "\n".join(turn.content for turn in pair.conversation)


def _examples(dealt: Sequence[tuple[str, PreferencePair]], seed: int) -> list[Example]:
    by_source: dict[str, list[tuple[str, PreferencePair]]] = {}
    for part, pair in dealt:
        by_source.setdefault(pair.source, []).append((part, pair))
    return [
        Example(
            source=source,
            category=pair.category,
            part=part,
            uid=pair.uid,
            question=_conversation(pair),
            chosen=pair.chosen,
            rejected=pair.rejected,
        )
        for source, own in sorted(by_source.items())
        for part, pair in random.Random(f"{seed}/{source}").sample(own, min(len(own), EXAMPLES))
    ]
