"""Several sources of pairs, made one mix of.

Owns what may be asked of a source: filters by the columns of its files, a cap and a weight; and
the order of these: filters, then duplicates over all sources (the first one named keeps the pair),
then caps, then weights. A pair's `source` is then the source's name. Every pair that is left out is
counted with its reason in the source's `ReadReport`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

from annotated_types import Gt

from judging.duplicates import Flags, exact_duplicates, near_duplicates
from judging.errors import DataError
from judging.layouts import Row
from judging.readers import ReadReport, read_pairs
from judging.records import PreferencePair

Values = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where pairs come from, and which of them are taken."""

    path: str  # file or folder
    include: Mapping[str, Values] = field(default_factory=dict)  # column: only rows with these
    exclude: Mapping[str, Values] = field(default_factory=dict)  # column: no rows with these
    limit: Annotated[int, Gt(0)] | None = None  # pairs at most, drawn by seed
    # Of the mix, against the other sources' weights: as many pairs are drawn as there are without
    # taking one twice. All sources have one, or none.
    weight: Annotated[float, Gt(0.0)] | None = None


@dataclass(frozen=True, slots=True)
class SourcePairs:
    """What was read of a source and is still to be mixed."""

    source: Source
    pairs: Sequence[PreferencePair]
    report: ReadReport
    unmet: Sequence[str]  # `column=value` of a filter that no row has


def read_source(name: str, source: Source) -> SourcePairs:
    """Raises DataError as `read_pairs`, and for a filter's column that a row does not have."""
    report, wanted = ReadReport(), _Filter(source)
    pairs = [
        pair if pair.source == name else _named(pair, name)
        for pair in read_pairs(source.path, report, source=name, wanted=wanted)
    ]
    return SourcePairs(source, pairs, report, wanted.unmet())


def _named(pair: PreferencePair, name: str) -> PreferencePair:
    """What the data set itself calls the source is the category, if it names no other."""
    return replace(pair, source=name, category=pair.category or pair.source)


class _Filter:
    """Whether a row is wanted."""

    def __init__(self, source: Source) -> None:
        rules = (("include", source.include), ("exclude", source.exclude))
        self._rules = [(rule, column, set(v)) for rule, of in rules for column, v in of.items()]
        self._met: set[tuple[str, str]] = set()

    def __call__(self, row: Row, place: str) -> bool:
        wanted = True
        for rule, column, values in self._rules:
            if column not in row:
                raise DataError(
                    f"{place}: no column {column}, which {rule} names: the columns are "
                    f"{', '.join(sorted(row))}; correct its name"
                )
            value = str(row[column])
            if value in values:
                self._met.add((column, value))
            wanted &= (value in values) == (rule == "include")
        return wanted

    def unmet(self) -> list[str]:
        named = ((column, value) for _, column, values in self._rules for value in sorted(values))
        return [f"{column}={value}" for column, value in named if (column, value) not in self._met]


def mix(
    read: Mapping[str, SourcePairs], *, similarity: float | None, limit: int | None, seed: int
) -> list[PreferencePair]:
    """The pairs of all sources, in the sources' order; the reports are brought up to date.

    Args:
        similarity: from which on pairs are near duplicates; None: these are kept.
        limit: pairs of the whole mix at most, drawn by seed.

    Raises:
        DataError: a source of which no pair is left.
    """
    kept = _distinct(read, similarity)
    quotas = _quotas({name: len(pairs) for name, pairs in kept.items()}, read)
    for name, pairs in kept.items():
        source, report = read[name].source, read[name].report
        capped = min(len(pairs), source.limit or len(pairs))
        report.over_limit += len(pairs) - capped
        report.over_weight += capped - quotas[name]
        kept[name] = _draw(pairs, quotas[name], f"{seed}/{name}")
    mixed = [pair for pairs in kept.values() for pair in pairs]
    drawn = _draw(mixed, min(len(mixed), limit or len(mixed)), f"{seed}")
    for name, pairs in kept.items():
        read[name].report.kept = len(pairs)
    if len(drawn) < len(mixed):
        _count_limited(drawn, read)
    for name, each in read.items():
        if not each.report.kept:
            raise DataError(
                f"data.sources.{name}: no pair is left: {each.report}; loosen what leaves them out,"
                " or take the source out"
            )
    return drawn


def _count_limited(drawn: Sequence[PreferencePair], read: Mapping[str, SourcePairs]) -> None:
    for each in read.values():
        each.report.over_limit += each.report.kept
        each.report.kept = 0
    for pair in drawn:
        read[pair.source].report.over_limit -= 1
        read[pair.source].report.kept += 1


def _distinct(
    read: Mapping[str, SourcePairs], similarity: float | None
) -> dict[str, list[PreferencePair]]:
    pairs = [pair for each in read.values() for pair in each.pairs]
    pairs = list(_without(exact_duplicates(pairs), pairs, "duplicate", read))
    if similarity is not None:
        alike = near_duplicates(pairs, similarity)
        pairs = list(_without(alike, pairs, "near_duplicate", read))
    kept: dict[str, list[PreferencePair]] = {name: [] for name in read}
    for pair in pairs:
        kept[pair.source].append(pair)
    return kept


def _without(
    flags: Flags,
    pairs: Sequence[PreferencePair],
    why: str,
    read: Mapping[str, SourcePairs],
) -> Iterator[PreferencePair]:
    for is_left_out, pair in zip(flags.tolist(), pairs, strict=True):
        if is_left_out:
            report = read[pair.source].report
            setattr(report, why, getattr(report, why) + 1)
        else:
            yield pair


def _quotas(counts: Mapping[str, int], read: Mapping[str, SourcePairs]) -> dict[str, int]:
    """How many pairs of each source are taken, of so many that there are."""
    sources = {name: each.source for name, each in read.items()}
    capped = {name: min(counts[name], sources[name].limit or counts[name]) for name in counts}
    weights = {name: source.weight for name, source in sources.items() if source.weight}
    if not weights:
        return capped
    unit = min(capped[name] / weight for name, weight in weights.items())
    # Rounded, so that the source that sets the unit is taken as a whole.
    return {name: min(capped[name], round(unit * weight)) for name, weight in weights.items()}


def _draw(pairs: list[PreferencePair], count: int, seed: str) -> list[PreferencePair]:
    """So many, in their order."""
    if count == len(pairs):
        return pairs
    return [pairs[at] for at in sorted(random.Random(seed).sample(range(len(pairs)), count))]
