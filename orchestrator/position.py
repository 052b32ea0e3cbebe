"""Where a run goes on: by its journal, and by which of the files that it needs are whole.

Pure: what is on disk is asked of `Files`, and only of what is to be used.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

from judging.errors import DataError, InfrastructureError
from orchestrator.journal_records import Checkpoint, StepCommit
from orchestrator.measurements import EvaluatedPhase
from orchestrator.phase_kinds import TRAINING


class Files(Protocol):
    """What is wrong with a file, or None; a run's directory."""

    def checkpoint_damage(self, path: str) -> str | None: ...
    def batch_damage(self, digest: str) -> str | None: ...
    def checkpoint_name(self, step: int) -> str: ...


@dataclass(frozen=True, slots=True)
class History:
    """What the journal tells of a run."""

    kinds: Sequence[str]  # of its phases
    ended: Mapping[int, int]  # phase -> weight version at its end
    commits: Sequence[tuple[StepCommit, ...]]  # of each phase up to the first that has not ended
    checkpoints: Sequence[Checkpoint]  # oldest first
    weight_version: int
    without_reference: Container[int] = ()  # reinforcement phases that weigh no KL term

    @property
    def phase(self) -> int:
        """The first that has not ended; the number of phases if all have."""
        count = len(self.kinds)
        return next((index for index in range(count) if index not in self.ended), count)

    def commits_of(self, phase: int) -> tuple[StepCommit, ...]:
        return self.commits[phase] if phase < len(self.commits) else ()

    def steps_until(self, phase: int) -> int:
        """Training steps of the phases before `phase`."""
        return sum(len(self.commits_of(index)) for index in range(phase))

    def trained_before(self, phase: int) -> int | None:
        """The last training phase before `phase`."""
        trained = [index for index in range(phase) if self.kinds[index] in TRAINING]
        return trained[-1] if trained else None

    def has_reference(self, phase: int) -> bool:
        """Whether it reads the weights before it as its KL reference."""
        is_reinforce = phase < len(self.kinds) and self.kinds[phase] == "reinforce"
        return is_reinforce and phase not in self.without_reference

    def version_at(self, committed: Sequence[StepCommit], phase: int) -> int:
        """The weight version after the `committed` steps of a phase."""
        return committed[-1].weight_version if committed else self.ended.get(phase - 1, 0)


@dataclass(frozen=True, slots=True)
class Damage:
    path: str  # of a checkpoint, relative to the run's directory
    what: str  # the file in it that is wrong, and how


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run goes on; a new one at the beginning."""

    phase: int = 0  # the first that has not ended; the number of phases if all have
    committed: tuple[StepCommit, ...] = ()  # steps of that phase that stand
    checkpoint: Checkpoint | None = None  # the newest whole one of that phase
    before: Checkpoint | None = None  # the last one of the training phase before
    weight_version: int = 0
    steps: int = 0  # training steps of the phases before
    trained: EvaluatedPhase = "base"
    damaged: tuple[Damage, ...] = ()  # checkpoints that were to be used, and cannot be
    lost: tuple[StepCommit, ...] = ()  # steps that cannot be replayed, and are to be taken back
    lost_why: str = ""
    # Ended phases whose last checkpoint is needed and damaged: where to write it again from, in
    # the order in which they are written.
    rebuilds: tuple[Position, ...] = ()

    @property
    def weights(self) -> str | None:
        """The checkpoint to start the learners from, relative to the run; None: the run's model."""
        newest = self.checkpoint or self.before
        return newest.path if newest else None

    @property
    def step(self) -> int:
        return self.committed[-1].step if self.committed else 0

    def done(self, phase: int) -> int:
        """Steps of the phase at this index that stand."""
        return self.step if phase == self.phase else 0

    @property
    def replay(self) -> tuple[StepCommit, ...]:
        """The committed steps that the checkpoint does not hold."""
        after = self.checkpoint.phase_step if self.checkpoint else 0
        return tuple(commit for commit in self.committed if commit.step > after)


def locate(history: History, files: Files) -> Position:
    """Where the run goes on.

    A damaged checkpoint falls back to the one before it, or to the start of the phase, with more
    steps replayed. Where a batch for that is damaged, the steps from its own on are lost, and are
    trained again; but never those up to the oldest checkpoint kept, whose batches were dropped on
    purpose. The last checkpoint of an ended phase, which may be the next one's start or reference,
    is written again from one before it: steps of ended phases stand.

    Raises:
        DataError: with what is damaged and the mend, where nothing whole is left to fall back to.
        InfrastructureError: the journal is not whole.
    """
    return _stand(history, files, history.phase, is_ended=False)


def _stand(history: History, files: Files, phase: int, *, is_ended: bool) -> Position:
    """Where a phase goes on or, of one that has ended, where its end is computed again from."""
    committed = history.commits_of(phase)
    if [commit.step for commit in committed] != list(range(1, len(committed) + 1)):
        raise InfrastructureError(f"the journal lacks steps of phase {phase}: it cannot be resumed")
    newest = len(committed) - is_ended
    own = [c for c in history.checkpoints if c.phase == phase and c.phase_step <= newest]
    checkpoint, damaged = _newest_whole(own, files)
    trained = [kind for kind in history.kinds[:phase] if kind in TRAINING]
    position = Position(
        phase=phase,
        committed=committed,
        checkpoint=checkpoint,
        before=_last_before(history, phase, files),
        weight_version=history.ended[phase] if is_ended else history.weight_version,
        steps=history.steps_until(phase),
        trained=cast("EvaluatedPhase", trained[-1]) if trained else "base",
        damaged=damaged,
    )
    position = _with_before(position, history, files)
    lost_at, why = _first_lost(position.replay, files)
    if lost_at is None:
        return position
    oldest = own[0].phase_step if own else 0
    if is_ended or lost_at <= oldest:
        raise DataError(_beyond_mend(position.damaged, f"step {lost_at} of phase {phase}: {why}"))
    stand = committed[: lost_at - 1]
    return replace(
        position,
        committed=stand,
        weight_version=history.version_at(stand, phase),
        lost=committed[lost_at - 1 :],
        lost_why=why,
    )


def _with_before(position: Position, history: History, files: Files) -> Position:
    """With the last checkpoint of the phase before checked, if it is going to be used."""
    before = position.before
    is_used = position.checkpoint is None or history.has_reference(position.phase)
    if before is None or not is_used:
        return position
    damaged = position.damaged
    if before in history.checkpoints:
        what = files.checkpoint_damage(before.path)
        if what is None:
            return position
        damaged = (*damaged, Damage(before.path, what))
    try:
        rebuild = _stand(history, files, before.phase, is_ended=True)
    except DataError as error:
        lines = [*map(_told, damaged), f"{before.path} cannot be written again:", str(error)]
        raise DataError("\n".join(lines)) from None
    return replace(
        position,
        damaged=(*damaged, *rebuild.damaged),
        rebuilds=(*rebuild.rebuilds, replace(rebuild, rebuilds=(), damaged=())),
    )


def _last_before(history: History, phase: int, files: Files) -> Checkpoint | None:
    """The checkpoint at the end of the training phase before. The journal may lack it: then it was
    damaged, and a driver died before it was written again.
    """
    trained = history.trained_before(phase)
    if trained is None:
        return None
    steps, phase_step = history.steps_until(trained + 1), len(history.commits_of(trained))
    for checkpoint in history.checkpoints:
        if (checkpoint.phase, checkpoint.phase_step) == (trained, phase_step):
            return checkpoint
    return Checkpoint(files.checkpoint_name(steps), steps, trained, phase_step, 0.0)


def _newest_whole(
    checkpoints: Sequence[Checkpoint], files: Files
) -> tuple[Checkpoint | None, tuple[Damage, ...]]:
    """And the newer ones, which are damaged."""
    damaged: list[Damage] = []
    for checkpoint in reversed(checkpoints):
        what = files.checkpoint_damage(checkpoint.path)
        if what is None:
            return checkpoint, tuple(damaged)
        damaged.append(Damage(checkpoint.path, what))
    return None, tuple(damaged)


def _first_lost(replay: Sequence[StepCommit], files: Files) -> tuple[int | None, str]:
    """The first step whose batch is not whole, and why."""
    for commit in replay:
        if what := files.batch_damage(commit.batch_hash or ""):
            return commit.step, what
    return None, ""


def _beyond_mend(damaged: Sequence[Damage], batch: str) -> str:
    lines = [*map(_told, damaged), batch]
    return "\n".join(lines) + (
        "\nthe run cannot go on without one of these: put it back from a copy, or begin anew "
        "under another run id"
    )


def _told(damage: Damage) -> str:
    return f"{damage.path} is damaged: {damage.what}"
