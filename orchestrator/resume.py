"""Taking a run up again: where it stands by its journal, and how its parts get there.

What is committed is never generated again: the learners start from the newest checkpoint and take
the steps after it once more, from the batches on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from judging.errors import ConfigurationError, InfrastructureError
from orchestrator.journal import Checkpoint, RunJournal, StepCommit
from orchestrator.rundir import EvaluatedPhase, Evaluation, RunDirectory, StepRow, latest_run

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
    "publication.",
    "deadlines.",
    "store.",
    "checkpoint.",
    "output.",
    "run.dir",
)


def run_to_resume(config: RunConfig, run_id: str) -> str:
    """The id of the run that is meant; "" means the one begun last.

    Raises:
        ConfigurationError: there is none, or it has finished.
    """
    runs_dir = config.run.dir
    run = RunDirectory(runs_dir / run_id) if run_id else latest_run(runs_dir)
    if run is None or not run.is_begun:
        raise ConfigurationError(
            f"--resume: {runs_dir} holds no run{f' {run_id}' if run_id else ''}: see gavel status, "
            "or set run.dir"
        )
    return RunDirectory.open(runs_dir, run.run_id).run_id


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run goes on; a new one at the beginning."""

    phase: int = 0  # the first that has not ended; the number of phases if all have
    committed: tuple[StepCommit, ...] = ()  # steps of that phase
    checkpoint: Checkpoint | None = None  # the newest one of that phase
    before: Checkpoint | None = None  # the newest one of the phases before
    weight_version: int = 0
    steps: int = 0  # training steps of the phases before
    trained: EvaluatedPhase = "base"

    @property
    def weights(self) -> str | None:
        """The checkpoint to start the learners from, relative to the run; None: the run's model."""
        newest = self.checkpoint or self.before
        return newest.path if newest else None

    @property
    def step(self) -> int:
        return self.committed[-1].step if self.committed else 0

    @property
    def replay(self) -> tuple[StepCommit, ...]:
        """The committed steps that the checkpoint does not hold."""
        after = self.checkpoint.phase_step if self.checkpoint else 0
        return tuple(commit for commit in self.committed if commit.step > after)


def find_position(journal: RunJournal, kinds: Sequence[str]) -> Position:
    """By the journal; `kinds` are those of the run's phases.

    Raises:
        InfrastructureError: the journal is not whole.
    """
    ended = journal.ended_phases()
    phase = next((index for index in range(len(kinds)) if index not in ended), len(kinds))
    committed = journal.commits(phase)
    if [commit.step for commit in committed] != list(range(1, len(committed) + 1)):
        raise InfrastructureError(f"the journal lacks steps of phase {phase}: it cannot be resumed")
    checkpoints = journal.checkpoints()
    trained = [kind for kind in kinds[:phase] if kind != "evaluate"]
    return Position(
        phase=phase,
        committed=committed,
        checkpoint=_newest(checkpoints, lambda of: of == phase),
        before=_newest(checkpoints, lambda of: of < phase),
        weight_version=journal.weight_version(),
        steps=sum(len(journal.commits(index)) for index in range(phase)),
        trained=cast("EvaluatedPhase", trained[-1]) if trained else "base",
    )


def _newest(
    checkpoints: Sequence[Checkpoint], is_wanted: Callable[[int], bool]
) -> Checkpoint | None:
    """Of the phases with a wanted index."""
    wanted = [checkpoint for checkpoint in checkpoints if is_wanted(checkpoint.phase)]
    return max(wanted, key=lambda checkpoint: checkpoint.steps, default=None)


def drawn_units(run: Run, index: int) -> int:
    """Units of prompts that the committed steps of a phase took, those they dropped included."""
    committed = run.position.committed if run.position.phase == index else ()
    return committed[-1].drawn if committed else 0


def evaluated(journal: RunJournal, config: RunConfig) -> list[Evaluation]:
    """The evaluations of the phases that have ended."""
    ended = journal.ended_phases()
    done = sum(p.kind == "evaluate" for i, p in enumerate(config.phases) if i in ended)
    return [Evaluation.of_row(row) for row in journal.evaluations()[:done]]


def drop_old(directory: RunDirectory, journal: RunJournal, phase: int, *, keep: int) -> None:
    """Keeps the last `keep` checkpoints of a phase, those at the ends of others, and the batches
    that would be replayed from the oldest that is kept.

    The last checkpoint of a phase before may be the reference of a later one.
    """
    of_phase = [each for each in journal.checkpoints() if each.phase == phase]
    for checkpoint in of_phase[:-keep]:
        journal.forget_checkpoint(checkpoint.path)
        directory.remove_checkpoint(checkpoint.path)
    oldest = of_phase[-keep:][0].phase_step
    later = [commit for commit in journal.commits(phase) if commit.step > oldest]
    directory.drop_batches({str(commit.batch_hash) for commit in later})


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
    directory.keep_steps(rows)


def check_unchanged(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ConfigurationError, with each difference, for keys that would change the past."""
    before, after = _flat(then), _flat(now)
    changed = [
        f"  {key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(MAY_CHANGE)
    ]
    if changed:
        raise ConfigurationError(
            "the run was begun with another configuration, and these keys would change what is "
            "already done:\n" + "\n".join(changed) + "\nset them back, or choose another run id"
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, list) and any(isinstance(entry, dict | list) for entry in tree):
        tree = {str(number): entry for number, entry in enumerate(tree)}
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
