"""The run's journal in Redis: what was begun, what was committed, and what happened when.

Owns the keys under `<store.prefix>:{<run id>}:`, of which one hash tag keeps them in one slot:

    run            hash    identity, configuration, current phase, last commit, status
    phases         hash    phase index -> how it began
    commits:<n>    hash    step of phase n -> its commit, with the uids it consumed
    evaluations    hash    "phase index/step" -> evaluation
    checkpoints    hash    path -> checkpoint
    open:<n>       hash    ticket -> file of a finished unit that no step of phase n used yet
    ended          hash    phase index -> how it ended
    lease          string  the driver that may write (orchestrator/lease.py)
    drivers        hash    what each driver did once, and how many plain events it wrote
    commands       hash    what people ask of the run, until it is done
    answers        hash    command -> what came of it
    events         stream  everything above and more, for people; trimmed

Values are JSON. Every write may be sent again when its answer was lost: it sets one field, or it is
one script that does all of it exactly once. Large payloads are files, here only by hash.
"""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from judging.errors import ConfigurationError, InfrastructureError
from orchestrator.disk import atomic_writer
from orchestrator.journal_records import Best, Checkpoint, Command, RunSnapshot, StepCommit
from orchestrator.journal_scripts import EVENT, TAKE_BACK, WRITE_ONCE
from orchestrator.measurements import Evaluation
from orchestrator.metrics import check_metrics
from orchestrator.store_client import Client
from rewards.protocol import Json

EVENTS_KEPT = 10_000  # roughly: Redis trims whole nodes of the stream
_PAGE = 1000  # events of one read


class RunJournal:
    """One run's journal; of all methods, those that write once say whether they did.

    With the `epoch` of a lease they raise InfrastructureError once another driver has taken over.
    """

    def __init__(
        self,
        client: Client,
        run_id: str,
        *,
        epoch: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.run_id = run_id
        self._client = client
        self._epoch = epoch
        self._clock = clock
        self._write_once = client.register_script(WRITE_ONCE)
        self._take_back = client.register_script(TAKE_BACK)
        self._write_event = client.register_script(EVENT)
        self._events_written = 0
        self._token = uuid.uuid4().hex  # tells a repeated write from another driver's

    def begin_run(self, config_yaml: str, versions: Mapping[str, str], seed: int) -> None:
        """Raises ConfigurationError if the journal already holds a run of this id."""
        run = self._key("run")
        now = self._clock()
        fields = {
            "status": "running",
            "config_yaml": config_yaml,
            "versions": dict(versions),
            "seed": seed,
            "started_at_s": now,
            "step": 0,
            "weight_version": 0,
        }
        data = {"at_s": now, "seed": seed}
        begun = self._once(run, "begun_by", self._token, "run_begun", data, fields)
        if not begun and self._read(run, "begun_by") != self._token:
            raise ConfigurationError(
                f"the journal already holds a run {self.run_id!r}: choose another run id"
            )

    def resume_run(self, config_yaml: str, versions: Mapping[str, str]) -> None:
        """The run goes on, under this driver."""
        self._token, self._events_written = uuid.uuid4().hex, 0
        now = self._clock()
        fields = {
            "status": "running",
            "config_yaml": config_yaml,
            "versions": dict(versions),
            "finished_at_s": None,
        }
        data = {"at_s": now, "step": self._read(self._key("run"), "step")}
        self._once(self._key("drivers"), f"{self._token}/began", now, "run_resumed", data, fields)

    def begin_phase(self, index: int, kind: str, total_steps: int | None) -> bool:
        """`total_steps` is None where only a target ends the phase."""
        data = {"at_s": self._clock(), "phase": index, "kind": kind, "total_steps": total_steps}
        fields = {"phase": index, "kind": kind, "total_steps": total_steps, "step": 0}
        return self._once(self._key("phases"), str(index), data, "phase_begun", data, fields)

    def commit_step(self, commit: StepCommit) -> bool:
        """Writes down a step and all that goes with it, in one atomic script.

        Answers False, and changes nothing, if this step of this phase is committed already.
        """
        check_metrics(commit.metrics, f"{commit.kind} step {commit.step}")
        record = asdict(commit)
        data = {name: value for name, value in record.items() if name != "consumed"}
        data["at_s"] = data.pop("committed_at_s")
        fields = {
            "phase": commit.phase,
            "kind": commit.kind,
            "step": commit.step,
            "weight_version": commit.weight_version,
            "committed_at_s": commit.committed_at_s,
            "metrics": dict(commit.metrics),
        }
        guard = self._key(f"commits:{commit.phase}")
        return self._once(guard, str(commit.step), record, "step_committed", data, fields)

    def end_phase(self, index: int, weight_version: int) -> bool:
        """All that the phase was to do is done, and its checkpoint is written."""
        data = {"at_s": self._clock(), "phase": index, "weight_version": weight_version}
        fields = {"weight_version": weight_version}
        return self._once(self._key("ended"), str(index), data, "phase_ended", data, fields)

    def record_evaluation(self, evaluation: Evaluation, best: Best | None = None) -> bool:
        """The first evaluation of a phase after a step stands; `best` if its weights are."""
        record = {"at_s": self._clock(), **evaluation.row()}
        guard_field = f"{evaluation.made_in}/{evaluation.step}"
        fields = {} if best is None else {"best": asdict(best)}
        guard = self._key("evaluations")
        return self._once(guard, guard_field, record, "evaluated", record, fields)

    def best(self) -> Best | None:
        """The best checkpoint so far, which may be none of `checkpoints`."""
        best = self._read(self._key("run"), "best")
        return Best(**best) if best else None

    def record_checkpoint(self, path: str, steps: int, *, phase: int, phase_step: int) -> bool:
        """Of one that is complete."""
        record = asdict(Checkpoint(path, steps, phase, phase_step, self._clock()))
        return self._once(self._key("checkpoints"), path, record, "checkpoint_written", record, {})

    def forget_checkpoint(self, path: str) -> None:
        """Before its folder goes."""
        self._client.hdel(self._key("checkpoints"), path)

    def take_back(
        self,
        event: str,
        data: Mapping[str, Json],
        lost: Mapping[str, Sequence[str]],
        fields: Mapping[str, Json],
    ) -> bool:
        """Takes fields out of hashes (`commits:<n>`, `checkpoints`) and sets `fields` of the run.

        Answers False, and changes nothing, if none of them is there.
        """
        taken = self._take_back(
            keys=[self._key("run"), self._key("events"), *map(self._key, lost)],
            args=[
                "" if self._epoch is None else self._epoch,
                *(event, _dump({"at_s": self._clock(), **data}), EVENTS_KEPT),
                _dump([list(names) for names in lost.values()]),
                *(word for name, value in fields.items() for word in (name, _dump(value))),
            ],
        )
        return self._is_done(taken)

    def record_open(self, phase: int, units: Mapping[int, str]) -> None:
        """Finished units that no step has used yet: ticket -> digest of the file that holds it."""
        fields: Any = {str(ticket): _dump(digest) for ticket, digest in units.items()}
        self._client.hset(self._key(f"open:{phase}"), mapping=fields)

    def forget_open(self, phase: int, tickets: Sequence[int]) -> None:
        self._client.hdel(self._key(f"open:{phase}"), *map(str, tickets))

    def open_units(self, phase: int) -> dict[int, str]:
        return {int(ticket): digest for ticket, digest in self._read_all(f"open:{phase}").items()}

    def event(self, event: str, /, **fields: Json) -> None:
        """Adds to the stream of events."""
        data = _dump({"at_s": self._clock(), **fields})
        self._events_written += 1
        self._write_event(
            keys=[self._key("drivers"), self._key("events")],
            args=[f"{self._token}/events", self._events_written, event, data, EVENTS_KEPT],
        )

    # ---- commands ------------------------------------------------------------------------------

    def ask(self, subject: str, verb: str, name: str, arguments: Mapping[str, Json]) -> str:
        """Leaves a command for the driver; returns its id."""
        command = Command(uuid.uuid4().hex, verb, name, arguments, self._clock(), subject)
        self._client.hset(self._key("commands"), command.id, _dump(asdict(command)))
        return command.id

    def waiting_commands(self) -> list[Command]:
        """In the order they were given."""
        asked = (Command(**record) for record in self._read_all("commands").values())
        waiting = [command for command in asked if self.answer(command.id) is None]
        return sorted(waiting, key=lambda command: command.asked_at_s)

    def finish_command(self, command: Command, told: str, *, ok: bool, **place: Json) -> None:
        """Answers a command, writes that down as an event, and takes the command out."""
        answer = {"ok": ok, "told": told}
        data = {"at_s": self._clock(), **asdict(command), **answer, **place}
        event = f"{command.subject}_{command.verb}"
        self._once(self._key("answers"), command.id, answer, event, data, {})
        self._client.hdel(self._key("commands"), command.id)  # which waits no more, once answered

    def answer(self, command_id: str) -> Mapping[str, Any] | None:
        """What came of a command; None while it waits."""
        return self._read(self._key("answers"), command_id)

    def note_progress(self, step: int, metrics: Mapping[str, float]) -> None:
        """How far a phase without steps to commit is; for people, and no ground for anything."""
        values: Any = {"step": _dump(step), "metrics": _dump(dict(metrics))}
        self._client.hset(self._key("run"), mapping=values)

    def record_rewards(self, rewards: Sequence[Mapping[str, Json]]) -> None:
        """The mix as it stands."""
        self._client.hset(self._key("run"), "rewards", _dump(list(rewards)))

    def rewards(self) -> list[Mapping[str, Any]] | None:
        return self._read(self._key("run"), "rewards")

    def finish(self, status: str) -> bool:
        """The first status that this driver gives stands."""
        now = self._clock()
        data = {"at_s": now, "status": status}
        fields = {"status": status, "finished_at_s": now}
        guard_field = f"{self._token}/finished"
        return self._once(self._key("drivers"), guard_field, now, "run_finished", data, fields)

    # ---- what a driver that resumes needs --------------------------------------------------------

    @property
    def is_begun(self) -> bool:
        return self._read(self._key("run"), "begun_by") is not None

    def evaluations(self) -> tuple[Mapping[str, Any], ...]:
        """In the order they were made."""
        return _by_time(self._read_all("evaluations"))

    def ended_phases(self) -> dict[int, int]:
        """The weight version at the end of each phase that has ended."""
        ended = self._read_all("ended")
        return {int(index): ended[index]["weight_version"] for index in ended}

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Oldest first."""
        records = (Checkpoint(**record) for record in self._read_all("checkpoints").values())
        return tuple(sorted(records, key=lambda checkpoint: checkpoint.steps))

    def weight_version(self) -> int:
        return self._read(self._key("run"), "weight_version") or 0

    def total_steps(self, phase: int) -> int | None:
        """As the phase began."""
        begun = self._read(self._key("phases"), str(phase))
        return begun["total_steps"] if begun else None

    def record_mix(self, mix: Mapping[str, Json]) -> None:
        """The rewards with all their settings, after a person changed them."""
        self._client.hset(self._key("run"), "mix", _dump(mix))

    def mix(self) -> Mapping[str, Any] | None:
        return self._read(self._key("run"), "mix")

    # ---- for people ------------------------------------------------------------------------------

    def snapshot(self, *, last_events: int = 10) -> RunSnapshot | None:
        """The run as the journal knows it, or None if it knows no run of this id."""
        run = self._read_all("run")
        if "begun_by" not in run:
            return None
        newest: Any = self._client.xrevrange(self._key("events"), count=last_events)
        return RunSnapshot(
            run_id=self.run_id,
            status=run["status"],
            seed=run["seed"],
            config_yaml=run["config_yaml"],
            versions=run["versions"],
            started_at_s=run["started_at_s"],
            finished_at_s=run.get("finished_at_s"),
            phase=run.get("phase"),
            kind=run.get("kind"),
            total_steps=run.get("total_steps"),
            step=run["step"],
            weight_version=run["weight_version"],
            committed_at_s=run.get("committed_at_s"),
            metrics=run.get("metrics", {}),
            evaluations=_by_time(self._read_all("evaluations")),
            checkpoints=_by_time(self._read_all("checkpoints")),
            best=run.get("best"),
            events=tuple(_event(fields) for _, fields in reversed(newest)),
        )

    def commits(self, phase: int, *, after: int = 0) -> tuple[StepCommit, ...]:
        """The commits of a phase by step, those of steps above `after`."""
        key = f"commits:{phase}"
        records = self._later(key, after) if after else self._read_all(key).values()
        commits = (StepCommit(**{**r, "consumed": tuple(r["consumed"])}) for r in records)
        return tuple(sorted(commits, key=lambda commit: commit.step))

    def _later(self, key: str, after: int) -> list[Any]:
        """Of steps 1 to n the records above `after`, without reading all of a long phase."""
        count: Any = self._client.hlen(self._key(key))
        steps = [str(step) for step in range(after + 1, count + 1)]
        values: Any = self._client.hmget(self._key(key), steps) if steps else []
        return [json.loads(value) for value in values if value is not None]

    def consumed(self, phase: int) -> Counter[str]:
        """How often each uid was trained on in a phase."""
        return Counter(uid for commit in self.commits(phase) for uid in commit.consumed)

    def export(self, path: Path) -> None:
        """Writes all events that are kept as JSON lines, oldest first."""
        with atomic_writer(path) as file:
            for event in self._events():
                file.write(_dump(event) + "\n")

    def _events(self) -> Iterator[Mapping[str, Json]]:
        start = "-"
        while True:
            page: Any = self._client.xrange(self._key("events"), min=start, count=_PAGE)
            for _, fields in page:
                yield _event(fields)
            if len(page) < _PAGE:
                return
            start = f"({page[-1][0]}"

    def _key(self, name: str) -> str:
        return self._client.key(self.run_id, name)

    def _once(
        self,
        guard: str,
        guard_field: str,
        guard_value: Json,
        event: str,
        data: Mapping[str, Json],
        fields: Mapping[str, Json],
    ) -> bool:
        run_fields = [word for name, value in fields.items() for word in (name, _dump(value))]
        written = self._write_once(
            keys=[guard, self._key("run"), self._key("events")],
            args=[
                *(guard_field, _dump(guard_value), event, _dump(data), EVENTS_KEPT),
                "" if self._epoch is None else self._epoch,
                *run_fields,
            ],
        )
        return self._is_done(written)

    def _is_done(self, answer: int) -> bool:
        if answer == -1:
            raise InfrastructureError(
                f"another driver has taken over run {self.run_id!r}, or its store has lost the "
                "journal: this driver wrote nothing more"
            )
        return answer == 1

    def _read(self, key: str, name: str) -> Any:
        value: Any = self._client.hget(key, name)
        return None if value is None else json.loads(value)

    def _read_all(self, name: str) -> dict[str, Any]:
        values: Any = self._client.hgetall(self._key(name))
        return {key: json.loads(value) for key, value in values.items()}


def _dump(value: Json) -> str:
    return json.dumps(value, allow_nan=False)


def _event(fields: Mapping[str, str]) -> dict[str, Json]:
    return {"event": fields["event"], **json.loads(fields["data"])}


def _by_time(records: Mapping[str, Any]) -> tuple[Mapping[str, Json], ...]:
    return tuple(sorted(records.values(), key=lambda record: record["at_s"]))
