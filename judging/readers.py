"""From files to preference pairs, and from pairs to a file.

Owns the formats (JSONL, JSON arrays, Parquet, folders of them), the places that errors name, and
what is left out: pairs that no judge can be right about, and repeats. JSONL and Parquet are read
as a stream; of a JSON array only the text is held. What the columns mean is `judging.layouts`'.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from judging.errors import DataError
from judging.layouts import Layout, Row, detect_layout
from judging.records import PreferencePair

SUFFIXES = (".json", ".jsonl", ".parquet")

_PARQUET_BATCH_ROWS = 256
_JSON_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(slots=True)
class ReadReport:
    """Counts of rows, filled while `read_pairs` is iterated."""

    rows: int = 0
    kept: int = 0
    identical: int = 0  # both answers are the same, but for white space around them
    empty: int = 0  # an answer or the last user turn is blank
    duplicate: int = 0  # the same pair again
    no_verdict: int = 0  # a trace that names no clear verdict, and so no preferred answer
    # What `judging.mixing` leaves out, of which the reader knows the first only.
    excluded: int = 0  # by a filter of columns
    near_duplicate: int = 0
    over_limit: int = 0
    over_weight: int = 0

    @property
    def dropped(self) -> int:
        return self.rows - self.kept

    def reasons(self) -> dict[str, int]:
        """The rows left out, by why."""
        counts = {field.name: getattr(self, field.name) for field in fields(self)[2:]}
        return {name.replace("_", " "): count for name, count in counts.items() if count}

    def __str__(self) -> str:
        reasons = ", ".join(f"{count:,} {name}" for name, count in self.reasons().items())
        left_out = f", {self.dropped:,} left out ({reasons})" if reasons else ""
        return f"{self.kept:,} of {self.rows:,} rows kept{left_out}"


def read_pairs(
    path: str | Path,
    report: ReadReport | None = None,
    *,
    source: str | None = None,
    wanted: Callable[[Row, str], bool] | None = None,
    every_trace: bool = False,
) -> Iterator[PreferencePair]:
    """Every usable pair of a file, or of the files below a folder, in a fixed order.

    The layout of each file is known by its first row. Identical or blank answers, repeated pairs
    (with `every_trace` those alone that repeat a pair's trace too) and traces without a verdict
    are left out and counted in `report`, and so are rows of which `wanted` says no, which is given
    each with its place. Pairs that name no source are of `source`, or of the file's name.

    Raises:
        DataError: at once for a path with nothing to read, and during iteration for a file that is
            empty, malformed, of an unknown layout or with a wrong value (file and line are named),
            or if no pair is left.
    """
    files = data_files(Path(path))
    report = ReadReport() if report is None else report
    return _read_files(files, report, source, wanted, every_trace=every_trace)


def write_pairs(path: str | Path, pairs: Iterable[PreferencePair]) -> int:
    """Write pairs as JSONL, as prompt, chosen and rejected message lists; returns their number.

    `read_pairs` gives the same pairs back.
    """
    count = 0
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        for pair in pairs:
            file.write(json.dumps(_row(pair), ensure_ascii=False) + "\n")
            count += 1
    return count


def _row(pair: PreferencePair) -> dict[str, Any]:
    row: dict[str, Any] = {
        "prompt": [{"role": turn.role, "content": turn.content} for turn in pair.conversation],
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
        "source": pair.source,
        "category": pair.category,
    }
    if pair.trace is not None:
        row |= {"trace": pair.trace, "trace_order": pair.trace_order}
    return row


def data_files(path: Path) -> list[Path]:
    """A file itself, or those below a folder that can be read, sorted; hidden ones are not.

    Raises:
        DataError: no such path, another kind of file, or nothing to read below it.
    """
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataError(
                f"{path}: unknown kind of file {path.suffix or '(no suffix)'}: give a file ending"
                f" in {', '.join(SUFFIXES)}, or a folder of such files"
            )
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder: correct the path")
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix in SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise DataError(f"{path}: the folder holds no file ending in {', '.join(SUFFIXES)}")
    return files


def _read_files(
    files: list[Path],
    report: ReadReport,
    source: str | None,
    wanted: Callable[[Row, str], bool] | None,
    *,
    every_trace: bool,
) -> Iterator[PreferencePair]:
    seen: set[tuple[str, ...]] = set()
    for file in files:
        layout: Layout | None = None
        for place, row in read_rows(file):
            if layout is None:
                layout = detect_layout(row, place)
            if missing := layout.columns - row.keys():
                raise DataError(
                    f"{place}: no {', '.join(sorted(missing))}, which the first row has: mend or"
                    " remove the row"
                )
            report.rows += 1
            if wanted is not None and not wanted(row, place):
                report.excluded += 1
                continue
            pair = layout.read(row, place, source or file.stem)
            if pair is None:
                report.no_verdict += 1
            elif _is_usable(pair, seen, report, every_trace=every_trace):
                report.kept += 1
                yield pair
        if layout is None:
            raise DataError(f"{file}: the file is empty: remove it, or write pairs to it")
    if not report.kept:
        raise DataError(f"{files[0]}: no pair is left: {report}")


def _is_usable(
    pair: PreferencePair, seen: set[tuple[str, ...]], report: ReadReport, *, every_trace: bool
) -> bool:
    chosen, rejected = pair.chosen.strip(), pair.rejected.strip()
    if not (chosen and rejected and pair.conversation[-1].content.strip()):
        report.empty += 1
        return False
    if chosen == rejected:
        report.identical += 1
        return False
    content = (pair.uid, pair.trace_order or "", pair.trace or "") if every_trace else (pair.uid,)
    if content in seen:
        report.duplicate += 1
        return False
    seen.add(content)
    return True


def read_rows(file: Path) -> Iterator[tuple[str, Row]]:
    """Each row of a file with its place (file and line, or file and row).

    Raises:
        DataError: during iteration, for a file that is unreadable, truncated or malformed.
    """
    read = {".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows}[file.suffix]
    try:
        for place, row in read(file):
            if not isinstance(row, dict):
                raise DataError(
                    f"{place}: a row must be an object with named fields, it is"
                    f" {type(row).__name__}: mend or remove the row"
                )
            yield place, row
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


def _jsonl_rows(file: Path) -> Iterator[tuple[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{file}:{number}"
            try:
                yield place, json.loads(line.decode("utf-8-sig").rstrip())
            except json.JSONDecodeError as error:  # the line that it names is always the first
                what = f"{error.msg} (column {error.colno})"
                raise DataError(f"{place}: not JSON: {what}: mend or remove the line") from error
            except (ValueError, RecursionError) as error:
                raise DataError(f"{place}: not JSON: {error}: mend or remove the line") from error


def _json_rows(file: Path) -> Iterator[tuple[str, Any]]:
    """The items of a JSON array one by one, so that each is known by the line it begins on."""
    text = _decode(file)
    decoder = json.JSONDecoder()
    position = _skip_space(text, 0)
    if position == len(text):
        return
    if text[position] != "[":
        raise DataError(f"{file}: not a JSON array: rename it to .jsonl if it has one row a line")
    line, counted = 1, 0
    position = _skip_space(text, position + 1)
    if text[position : position + 1] == "]":
        return
    while True:
        line, counted = line + text.count("\n", counted, position), position
        place = f"{file}:{line}"
        try:
            row, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}:{error.lineno}: not JSON: {error.msg}: mend it") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not JSON: {error}: mend or remove the row") from error
        yield place, row
        position = _skip_space(text, position)
        separator = text[position : position + 1]
        if separator == "]":
            return
        if separator != ",":
            line += text.count("\n", counted, position)
            raise DataError(f"{file}:{line}: not JSON: no comma or ] after a row: mend it")
        position = _skip_space(text, position + 1)


def _decode(file: Path) -> str:
    data = file.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}:{line}: not UTF-8: {error.reason}: convert the file") from error


def _skip_space(text: str, position: int) -> int:
    match = _JSON_SPACE.match(text, position)
    return match.end() if match else position


def _parquet_rows(file: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}: row {number}", row
    except pa.ArrowException as error:
        raise DataError(f"{file}: not Parquet after row {number}: {error}: mend it") from error
