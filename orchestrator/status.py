"""`gavel status`: what a run is doing, or how it ended.

Reads the journal while a driver has it open, and the run's directory otherwise. Starts no server
and writes nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from actors.urls import Place, is_url
from judging.errors import ConfigurationError
from orchestrator.console import duration, evaluations_table, output_console, printable, value
from orchestrator.journal import RunJournal
from orchestrator.journal_records import RunSnapshot
from orchestrator.metrics import METRICS, is_declared, metric
from orchestrator.outside_store import is_driven
from orchestrator.rundir import RunDirectory
from orchestrator.runs import begun_runs, look_at_run
from orchestrator.store import open_recorded_store, recorded_address

EVENTS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What is shown, and printed as JSON; None: not known."""

    run_id: str
    status: str  # as in the journal; else "interrupted", or "unreachable" if its store is
    source: str  # "journal" or "directory"
    phase: str | None
    step: int
    total_steps: int | None
    weight_version: int | None
    committed_s_ago: float | None
    metrics: Mapping[str, float]  # of the last step
    evaluations: tuple[Mapping[str, Any], ...]
    checkpoints: tuple[str, ...]  # relative to the run's directory
    best: Mapping[str, Any] | None  # the best of them, with what it was measured by
    events: tuple[Mapping[str, Any], ...]  # the last few, oldest first


def show_status(
    run: str | None,
    runs_dir: Place,
    as_json: bool,
    *,
    console: Console | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> int:
    """Prints the status of `run` (an id or a directory; None: the one begun last); answers 0.

    Raises ConfigurationError if there is no such run.
    """
    console = console or output_console()
    status = read_status(find_run(run, runs_dir), wall_clock())
    if as_json:
        console.print(
            json.dumps(asdict(status), indent=2), soft_wrap=True, markup=False, highlight=False
        )
    else:
        print_status(status, console)
    return 0


def find_run(run: str | None, runs_dir: Place) -> RunDirectory:
    """Raises ConfigurationError, which names the runs there are, if there is no such run."""
    if run is not None and is_url(run):
        runs_dir, _, run = run.rstrip("/").rpartition("/")
    if run is None:
        if not (begun := begun_runs(runs_dir)):
            raise ConfigurationError(
                f"{runs_dir} holds no run yet: start one with `gavel run CONFIG`"
            )
        run = begun[-1]
    if isinstance(runs_dir, str):
        if (seen := look_at_run(runs_dir, run)) is not None:
            return seen
    else:
        for path in (runs_dir / run, Path(run)):
            if (path / "config.yaml").exists():
                return RunDirectory(path)
    known = ", ".join(begun_runs(runs_dir)) or "none"
    raise ConfigurationError(f"{runs_dir} holds no run {run!r}; the runs there: {known}")


def read_status(run: RunDirectory, now_s: float) -> RunStatus:
    snapshot, has_driver = None, False
    with open_recorded_store(run.path) as store:
        if store is not None:
            journal = RunJournal(store.client, run.run_id)
            snapshot = journal.snapshot(last_events=EVENTS_SHOWN)
            has_driver = is_driven(store.client, run.run_id)
    if snapshot is not None:
        return status_from_journal(snapshot, now_s, is_driven=has_driver)
    return _from_directory(run, now_s)


def status_from_journal(
    snapshot: RunSnapshot, now_s: float, *, is_driven: bool = True
) -> RunStatus:
    """`is_driven`: whether a driver holds the run's lease; else one that runs was interrupted."""
    committed_at_s = snapshot.committed_at_s
    is_lost = snapshot.status == "running" and not is_driven
    return RunStatus(
        run_id=snapshot.run_id,
        status="interrupted" if is_lost else snapshot.status,
        source="journal",
        phase=snapshot.kind,
        step=snapshot.step,
        total_steps=snapshot.total_steps,
        weight_version=snapshot.weight_version,
        committed_s_ago=None if committed_at_s is None else now_s - committed_at_s,
        metrics=snapshot.metrics,
        evaluations=snapshot.evaluations,
        checkpoints=tuple(str(checkpoint["path"]) for checkpoint in snapshot.checkpoints),
        best=snapshot.best,
        events=snapshot.events,
    )


def _from_directory(run: RunDirectory, now_s: float) -> RunStatus:
    steps, evaluations = run.read_measurements()
    last = steps[-1] if steps else None
    summary = run.read_summary()
    if summary is not None:
        status = summary["status"]
    else:  # a private store ends with its driver, of any other nothing can be said
        address = recorded_address(run.path)
        is_private = address is None or address.startswith("unix:")
        status = "interrupted" if is_private else "unreachable"
    return RunStatus(
        run_id=run.run_id,
        status=status,
        source="directory",
        phase=last.phase if last else None,
        step=last.step if last else 0,
        total_steps=last.total_steps if last else None,
        weight_version=None,
        committed_s_ago=now_s - last.at_s if last else None,
        metrics=last.metrics if last else {},
        evaluations=tuple(evaluations),
        checkpoints=tuple(
            f"checkpoints/{path.name}" for path in sorted(run.checkpoints.glob("step-*"))
        ),
        best=summary.get("best") if summary else None,
        events=tuple(run.read_events()[-EVENTS_SHOWN:]),
    )


def print_status(status: RunStatus, console: Console) -> None:
    facts = Table.grid(padding=(0, 2))
    facts.add_row("run", Text(status.run_id, style="bold"))
    facts.add_row("status", f"{status.status} (from the {status.source})")
    if status.phase is not None:
        total = "?" if status.total_steps is None else status.total_steps
        facts.add_row("phase", f"{status.phase}, step {status.step} of {total}")
    if status.weight_version is not None:
        facts.add_row("weights", f"version {status.weight_version}")
    if status.committed_s_ago is not None:
        facts.add_row("last step", f"{duration(status.committed_s_ago)} ago")
    for checkpoint in status.checkpoints[-3:]:
        facts.add_row("checkpoint", Text(checkpoint))
    if (best := status.best) is not None:
        facts.add_row("best", Text(f"{best['path']}, {best['by']} {best['score']:.3f}"))
    console.print(facts)
    if status.metrics:
        console.print(_metrics_table(status.metrics))
    if status.evaluations:
        console.print(evaluations_table(status.evaluations))
    if status.events:
        console.print(_events_table(status.events))


def _metrics_table(metrics: Mapping[str, float]) -> Table:
    table = Table(title="Last step", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("unit")
    table.add_column("meaning", overflow="fold")
    declared = [name for name in METRICS if name in metrics]
    of_rewards = [name for name in metrics if name not in METRICS and is_declared(name)]
    for name in (*declared, *of_rewards):
        told = metric(name)
        table.add_row(name, value(name, metrics[name]), told.unit, told.meaning)
    return table


def _events_table(events: tuple[Mapping[str, Any], ...]) -> Table:
    table = Table(title="Last events", title_justify="left", expand=True)
    table.add_column("at", no_wrap=True)
    table.add_column("event", no_wrap=True)
    table.add_column("what", overflow="ellipsis", no_wrap=True, ratio=1)
    for event in events:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["at_s"]))
        rest = {
            name: content
            for name, content in event.items()
            if name not in ("event", "at_s", "metrics") and content is not None
        }
        what = ", ".join(f"{name} {content}" for name, content in rest.items())
        table.add_row(at, str(event["event"]), Text(printable(what)))
    return table
