"""Taking a run up again: where it stands by its journal, and how its parts get there.

What is committed is never generated again: the learners start from the newest whole checkpoint and
take the steps after it once more, from the batches on disk.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from judging.errors import ConfigurationError
from orchestrator.journal import RunJournal
from orchestrator.measurements import Evaluation, StepRow
from orchestrator.position import Files, History, Position, locate
from orchestrator.rundir import RunDirectory
from orchestrator.runs import begun_runs, open_run

if TYPE_CHECKING:
    from orchestrator.config import RunConfig
    from orchestrator.run import Run

# What may be another at resumption, since it changes where and how fast, but not what is computed.
MAY_CHANGE = (
    "rollout.workers",
    "rollout.tensor_parallel",
    "rollout.max_concurrent_sequences",
    "rollout.max_batched_tokens",
    "rollout.kv_cache_gib",
    "rollout.gpu_memory_utilization",
    "rollout.cpu_threads",
    "rollout.min_workers",
    "rollout.max_restarts",
    "rollout.enforce_eager",
    "verifier.",
    "learner.ranks",
    "learner.zero_stage",
    "learner.micro_batch_tokens",
    "learner.gradient_checkpointing",
    "learner.offload_optimizer",
    "learner.cpu_threads",
    "learner.max_restarts",
    "placement.",
    "publication.",
    "deadlines.",
    "store.url",
    "store.patience_s",
    "checkpoint.",
    "distill.validate_every_steps",
    "evaluate.",
    "synthesize.",  # what a phase has of it stands there
    "output.",
    "run.dir",
)


_LISTED = 20  # differences
_OF_SYNTHESIS = re.compile(r"phases\.(\d+)\.synthesize\.")
_OF_EVALUATION = re.compile(r"phases\.\d+\.(evaluate\.|distill\.validate_every_steps$)")


def run_to_resume(config: RunConfig, run_id: str) -> str:
    """The id of the run that is meant; "" means that of run.id, or without it the one begun last.

    Raises:
        ConfigurationError: there is none, or it has finished.
    """
    runs_dir = config.run.dir
    begun = begun_runs(runs_dir)
    run_id = run_id or config.run.id or ""
    if not begun or (run_id or begun[-1]) not in begun:
        raise ConfigurationError(
            f"--resume: {runs_dir} holds no run{f' {run_id}' if run_id else ''}: see gavel status, "
            "or set run.dir"
        )
    return open_run(runs_dir, run_id or begun[-1]).run_id


def find_position(
    journal: RunJournal,
    kinds: Sequence[str],
    files: Files,
    *,
    without_reference: Container[int] = (),
) -> Position:
    """By the journal and the files; `kinds` are those of the run's phases. Raises as `locate`."""
    ended = journal.ended_phases()
    begun = next((index for index in range(len(kinds)) if index not in ended), len(kinds)) + 1
    history = History(
        kinds=kinds,
        ended=ended,
        commits=[journal.commits(index) for index in range(min(begun, len(kinds)))],
        checkpoints=journal.checkpoints(),
        weight_version=journal.weight_version(),
        without_reference=without_reference,
    )
    return locate(history, files)


def position_now(config: RunConfig, journal: RunJournal, files: Files) -> Position:
    """Where the run of `config` stands. Raises as `locate`."""
    without_reference = [
        index
        for index, phase in enumerate(config.phases)
        if phase.kind == "reinforce" and phase.settings.kl_coef == 0
    ]
    kinds = [phase.kind for phase in config.phases]
    return find_position(journal, kinds, files, without_reference=without_reference)


def settle(
    directory: RunDirectory, journal: RunJournal, kinds: Sequence[str], position: Position
) -> list[str]:
    """Brings journal and files to the position that was found; answers what a person should know.

    May be done again after a crash at any point of it.
    """
    told: list[str] = []
    ends = (lost.steps + lost.step for lost in position.rebuilds)
    written_again = {directory.checkpoint_name(step) for step in ends}
    for damage in position.damaged:
        aside = directory.set_aside(damage.path)
        data = {"path": damage.path, "what": damage.what, "aside": aside}
        is_best = damage.path in _best_paths(journal) and damage.path not in written_again
        gone = {"checkpoints": [damage.path]}
        journal.take_back("checkpoint_damaged", data, gone, {"best": None} if is_best else {})
        where = f"; it is now {aside}" if aside else ""
        told.append(f"checkpoint {damage.path} is not used: {damage.what}{where}")
    if position.lost:
        told.append(_roll_back(journal, position))
    tell_what_stands(directory, journal, kinds)
    commits = [commit for index in range(len(kinds)) for commit in journal.commits(index)]
    known = {checkpoint.path for checkpoint in journal.checkpoints()} | _best_paths(journal)
    directory.clean({str(commit.batch_hash) for commit in commits}, known)
    return told


def _roll_back(journal: RunJournal, position: Position) -> str:
    """The steps that are lost leave the journal, which is then as it was before them."""
    phase, first, last = position.phase, position.lost[0].step, position.lost[-1].step
    earlier = [commit for index in range(phase) for commit in journal.commits(index)]
    newest = next(reversed([*earlier, *position.committed]), None)
    after = [c for c in journal.checkpoints() if c.phase == phase and c.phase_step >= first]
    lost = {
        f"commits:{phase}": [str(commit.step) for commit in position.lost],
        "checkpoints": [checkpoint.path for checkpoint in after],
        "evaluations": [f"{phase}/{position.steps + commit.step}" for commit in position.lost],
    }
    best = journal.best()
    is_best_lost = best is not None and best.steps > position.steps + position.step
    fields: dict[str, Any] = {
        **({"best": None} if is_best_lost else {}),
        "step": position.step,
        "weight_version": position.weight_version,
        "metrics": dict(newest.metrics) if newest else {},
        "committed_at_s": newest.committed_at_s if newest else None,
    }
    why = position.lost_why
    data = {"phase": phase, "from_step": last, "to_step": position.step, "why": why}
    journal.take_back("rolled_back", data, lost, fields)
    which = f"step {first}" if first == last else f"steps {first} to {last}"
    return (
        f"phase {phase + 1} goes back from step {last} to step {position.step}, and {which} will "
        f"be trained again: {why}"
    )


def drawn_units(run: Run, index: int) -> int:
    """Units of prompts that the committed steps of a phase took, those they dropped included."""
    committed = run.position.committed if run.position.phase == index else ()
    return committed[-1].drawn if committed else 0


def check_journal_is_there(directory: RunDirectory) -> None:
    """Of a run that its journal does not know. Raises ConfigurationError if it has steps."""
    steps, _ = directory.read_measurements()
    if steps:
        raise ConfigurationError(
            f"{directory.where} holds {len(steps)} committed steps, and the run's journal knows "
            "nothing of it: bring back the store's data (store.url, store.prefix, or journal/ of a "
            "private server), or choose another run.id to begin anew"
        )


def evaluated(journal: RunJournal) -> list[Evaluation]:
    """The evaluations that stand."""
    return [Evaluation.of_row(row) for row in journal.evaluations()]


def drop_old(directory: RunDirectory, journal: RunJournal, phase: int, *, keep: int) -> None:
    """Keeps the last `keep` checkpoints of a phase and those kept of others, and the batches that
    would be replayed from the oldest that is kept of each.

    The last checkpoint of a phase before may be the reference of a later one. Of the best one the
    folder stays, to be used; the run itself does not go back to it.
    """
    of_phase = [each for each in journal.checkpoints() if each.phase == phase]
    best = _best_paths(journal)
    for checkpoint in of_phase[:-keep]:
        if checkpoint.path not in best:
            directory.hide_checkpoint(checkpoint.path)
        journal.forget_checkpoint(checkpoint.path)
    directory.sweep()
    oldest: dict[int, int] = {}
    for checkpoint in journal.checkpoints():
        oldest.setdefault(checkpoint.phase, checkpoint.phase_step)
    later = [
        commit
        for index in range(phase + 1)
        for commit in journal.commits(index, after=oldest.get(index, 0))
    ]
    directory.drop_batches({str(commit.batch_hash) for commit in later})


def _best_paths(journal: RunJournal) -> set[str]:
    best = journal.best()
    return {best.path} if best else set()


def tell_what_stands(directory: RunDirectory, journal: RunJournal, kinds: Sequence[str]) -> None:
    """Makes the run's files tell of what is committed, and of nothing else."""
    rows = {
        (commit.phase, commit.step): StepRow(
            phase=commit.kind,
            phase_index=commit.phase,
            total_steps=journal.total_steps(commit.phase),
            step=commit.step,
            at_s=commit.committed_at_s,
            metrics=commit.metrics,
        )
        for index in range(len(kinds))
        for commit in journal.commits(index)
    }
    made = [(Evaluation.of_row(row), float(row["at_s"])) for row in journal.evaluations()]
    directory.keep_measured(rows, made)


def check_unchanged(
    then: Mapping[str, Any], now: Mapping[str, Any], synthesized: Container[int] = ()
) -> None:
    """Raises ConfigurationError, with the differences, for keys that would change the past.

    `synthesized` are the phases of synthesis that have ended: of another one the answers are kept,
    and what comes of them is decided anew (`Ledger.decide_by`). Prices may only be added to others.
    """
    if _kinds(then) != _kinds(now):
        then, now = ({**tree, "phases": ", ".join(_kinds(tree))} for tree in (then, now))
    before, after = _flat(then), _flat(now)
    changed = [
        f"  {key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not _may_change(key, before, synthesized)
    ]
    if changed:
        if (more := len(changed) - _LISTED) > 0:
            changed[_LISTED:] = [f"  and {more} more"]
        raise ConfigurationError(
            f"run {then['run']['id']} was begun with another configuration, and these keys would "
            "change what is already done:\n" + "\n".join(changed) + "\nset them back, or choose "
            "another run: run.id=NEW begins one, --resume RUN takes that one up"
        )


def _kinds(tree: Mapping[str, Any]) -> list[str]:
    return [each if isinstance(each, str) else next(iter(each)) for each in tree["phases"]]


def _may_change(key: str, before: Mapping[str, Any], synthesized: Container[int]) -> bool:
    if of_synthesis := _OF_SYNTHESIS.match(key):
        prices = f"{of_synthesis[0]}prices"
        is_new_price = key not in before and prices not in before  # else what was spent is unknown
        is_price = key == prices or key.startswith(f"{prices}.")
        return int(of_synthesis[1]) not in synthesized and (is_new_price or not is_price)
    return key.startswith(MAY_CHANGE) or _OF_EVALUATION.match(key) is not None


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, list) and any(isinstance(entry, dict | list) for entry in tree):
        tree = {str(number): entry for number, entry in enumerate(tree)}
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
