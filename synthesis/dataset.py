"""The data set that a synthesis makes: traces to imitate, those that failed, and a card.

Rows are what Gavel's reader and any trainer of chat models take: `messages` is the judge's prompt
with the trace as the assistant's turn; `chosen` and `rejected` are the pair as message lists.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import yaml

from judging.prompts import PromptTemplate
from judging.records import Message, Order, PreferencePair, Presentation
from judging.verification import TraceChecks
from synthesis.ledger import Ledger
from synthesis.records import Attempt, Outcome
from synthesis.settings import Price
from synthesis.spending import spending_tree, teacher_table
from synthesis.tally import Tally

CARD, REJECTED = "README.md", "rejected.jsonl"
_TOGETHER = 1000  # rows of one Parquet row group
_EXAMPLES = 2


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """What the card tells besides counts."""

    name: str
    template: str
    template_versions: Mapping[str, str]
    checks: TraceChecks
    passes: Sequence[str]  # one line each
    told: Sequence[bool]  # of each pass, whether its teacher was shown the verdict
    versions: Mapping[str, str]  # of Gavel and its parts
    spent: str | None  # why it ended before all pairs were asked about
    prices: Mapping[str, Price] | None = None  # by model; None: costs are not known


def traces_file(folder: Path, form: Literal["jsonl", "parquet"]) -> Path:
    """In a folder of their own with the card, which can be given to a trainer or a hub as it is."""
    return folder / "dataset" / f"traces.{form}"


def has_traces(path: Path) -> bool:
    """Whether a `traces_file` holds any."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return parquet.read_metadata(path).num_rows > 0
    return path.stat().st_size > 0


def write_dataset(
    folder: Path,
    form: Literal["jsonl", "parquet"],
    pairs: Sequence[PreferencePair],
    ledger: Ledger,
    template: PromptTemplate,
    facts: DatasetFacts,
) -> tuple[int, str]:
    """Writes traces, rejected pairs and card; answers the number of traces and the SHA-256 of
    their file. The same outcomes give the same bytes."""
    rows = _rows(pairs, ledger, template, facts)
    path = traces_file(folder, form)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    count = (_write_jsonl if form == "jsonl" else _write_parquet)(partial, rows)
    partial.replace(path)
    rejected = (_rejected_row(o) for o in ledger.outcomes() if o.state != "kept")
    partial = folder / f".{REJECTED}.tmp"
    _write_jsonl(partial, rejected)
    partial.replace(folder / REJECTED)
    examples = list(islice(_rows(pairs, ledger, template, facts), _EXAMPLES))
    card = _card(facts, ledger, count, path.name, examples)
    (path.parent / CARD).write_text(card, "utf-8")
    return count, _digest(path)


def _rows(
    pairs: Sequence[PreferencePair], ledger: Ledger, template: PromptTemplate, facts: DatasetFacts
) -> Iterator[dict[str, Any]]:
    for pair in pairs:
        outcome = ledger.outcome(pair.uid)
        if outcome is None or outcome.state != "kept":
            continue
        for attempt in outcome.attempts:
            if attempt.is_kept:
                yield _row(pair, attempt, ledger.text_of(attempt.key), template, facts)


def _row(
    pair: PreferencePair,
    attempt: Attempt,
    trace: str,
    template: PromptTemplate,
    facts: DatasetFacts,
) -> dict[str, Any]:
    order: Order = "chosen_first" if attempt.order == "chosen_first" else "rejected_first"
    shown = Presentation(pair, order)
    checks, told = facts.checks, facts.told[attempt.number - 1]
    on = [name for name in ("grammar", "weights", "quotes") if getattr(checks, name)]
    return {
        "messages": _list((*template.render(shown), Message("assistant", trace))),
        "trace": trace,
        "verdict": shown.gold,
        "teacher": attempt.teacher,
        "pass": attempt.number,
        "sample": attempt.sample,
        "checks": ["verdict", *on, *(["mentions"] if told and checks.mentions else [])],
        "uid": pair.uid,
        "source": pair.source,
        "category": pair.category,
        "trace_order": order,
        "chosen": _list((*pair.conversation, Message("assistant", pair.chosen))),
        "rejected": _list((*pair.conversation, Message("assistant", pair.rejected))),
    }


def _list(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _rejected_row(outcome: Outcome) -> dict[str, Any]:
    return {
        "uid": outcome.pair_uid,
        "source": outcome.source,
        "state": outcome.state,
        "attempts": [asdict(attempt) for attempt in outcome.attempts],
    }


def _write_jsonl(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    count = 0
    with path.open("w", encoding="utf-8", errors="replace") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    message = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    kinds: Mapping[str, Any] = {
        "messages": message,
        "chosen": message,
        "rejected": message,
        "checks": pa.list_(pa.string()),
        "pass": pa.int32(),
        "sample": pa.int32(),
    }
    names = ("messages", "trace", "verdict", "teacher", "pass", "sample", "checks", "uid")
    names += ("source", "category", "trace_order", "chosen", "rejected")
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
    count = 0
    with parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, _TOGETHER)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            count += len(group)
    return count


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- the card ------------------------------------------------------------------------------------


def _card(
    facts: DatasetFacts,
    ledger: Ledger,
    count: int,
    file: str,
    examples: Sequence[Mapping[str, Any]],
) -> str:
    tally, spent = Tally.of(ledger.outcomes()), spending_tree(ledger.spending(), facts.prices)
    header = {
        "configs": [{"config_name": "default", "data_files": file}],
        "task_categories": ["text-generation"],
        "tags": ["reward-model", "preference", "reasoning", "gavel"],
    }
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {facts.name}: judgments to distil from",
        f"{count:,} reasoning traces that rule on preference pairs, written by teachers and "
        f"verified by Gavel, from {tally.asked:,} pairs. Each row holds the judge's prompt and "
        "the trace (`messages`), and the pair (`chosen`, `rejected`).",
        _outcomes(tally, facts.spent, ledger.undecided_counts()[0]),
        _pass_table(tally),
        _rejection_table(tally),
        "## How\n\n" + "\n".join(f"- {line}" for line in _how(facts)),
        _table("Teachers", *teacher_table(spent["teachers"])),
        *(_example(row) for row in examples),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _outcomes(tally: Tally, spent: str | None, undecided: int) -> str:
    rows = [(state, f"{tally.states[state]:,}") for state in tally.states]
    note = f"\n\nIt ended before all pairs were asked about: {spent}." if spent else ""
    if undecided:
        note += f"\n\nAnswers paid for whose pairs were not decided: {undecided:,}."
    return _table("Pairs", ("outcome", "pairs"), sorted(rows)) + note


def _pass_table(tally: Tally) -> str:
    rows = [
        (source or "(none)", str(number), f"{c.asked:,}", f"{c.kept:,}", f"{c.keep_rate:.1%}")
        for (source, number), c in sorted(tally.passes.items())
    ]
    return _table("Kept", ("source", "pass", "asked", "kept", "keep rate"), rows)


def _rejection_table(tally: Tally) -> str:
    rows = [(why, f"{number:,}") for why, number in tally.rejections.most_common()]
    return _table("Why answers were rejected", ("reason", "answers"), rows) if rows else ""


def _how(facts: DatasetFacts) -> Iterator[str]:
    yield from facts.passes
    yield f"prompt: template {facts.template}"
    for name, version in facts.template_versions.items():
        yield f"template {name}: version {version}"
    yield "checks: " + ", ".join(f"{name}={value}" for name, value in asdict(facts.checks).items())
    yield "made with " + ", ".join(f"{name} {value}" for name, value in facts.versions.items())


def _example(row: Mapping[str, Any]) -> str:
    fence = "~~~~"
    trace = str(row["trace"]).replace(fence, "~ ~ ~ ~")
    title = f"Example ({_cell(row['source'])}, pass {row['pass']})"
    return f"## {title}\n\n{fence}\n{trace}\n{fence}"


def _table(title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [_line(names), "|" + "---|" * len(names), *map(_line, rows)]
    return f"## {title}\n\n" + "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
