"""Finished units that no step has used yet: on disk, so that a new driver need not generate them.

They are written down together, every so often; what finished since then is generated again after a
crash. A file holds several units and is named by its content; the journal says which holds what.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from judging.records import FinishReason, Judgment, Presentation, Rollout
from judging.traces import parse_trace
from orchestrator.disk import atomic_writer, writing
from orchestrator.journal import RunJournal
from orchestrator.rundir import RunDirectory
from rewards.groups import Group
from rewards.protocol import RewardResult

Units = dict[int, Sequence[Group]]  # by their tickets


class OpenWork:
    """Life: construct, `recover` what an earlier driver left, then `keep` and `used` in turns."""

    def __init__(
        self,
        directory: RunDirectory,
        journal: RunJournal,
        phase: int,
        *,
        every_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = directory.path / "open"
        self._journal, self._phase = journal, phase
        self._every_s, self._clock = every_s, clock
        self._pending: Units = {}
        self._written_s = clock()
        self._files: dict[int, str] = {}  # ticket -> digest, of what is written down

    def keep(self, ticket: int, groups: Sequence[Group]) -> None:
        """A unit is finished."""
        self._pending[ticket] = groups
        if self._clock() - self._written_s >= self._every_s:
            self.write()

    def write(self) -> None:
        """Writes down what is pending."""
        self._written_s = self._clock()
        if not self._pending:
            return
        data = dump_units(self._pending)
        digest = hashlib.sha256(data).hexdigest()
        with writing(self._folder):
            self._folder.mkdir(exist_ok=True)
        with atomic_writer(self._folder / f"{digest}.safetensors", "wb") as file:
            file.write(data)
        written = dict.fromkeys(self._pending, digest)
        self._journal.record_open(self._phase, written)
        self._files |= written
        self._pending.clear()

    def used(self, drawn: int) -> None:
        """All tickets below `drawn` are committed or dropped."""
        for ticket in [ticket for ticket in self._pending if ticket < drawn]:
            del self._pending[ticket]
        if gone := [ticket for ticket in self._files if ticket < drawn]:
            self._journal.forget_open(self._phase, gone)
            for ticket in gone:
                del self._files[ticket]
            self._remove_unused()

    def recover(
        self,
        drawn: int,
        version: int,
        presentations: Mapping[str, Presentation],
        *,
        strict_tail: bool,
    ) -> Units:
        """What an earlier driver left of tickets from `drawn` on, by weights up to `version`.

        What is damaged is left out: it is generated again.
        """
        recorded = self._journal.open_units(self._phase)
        found: Units = {}
        for digest in set(recorded.values()):
            units = self._read(digest, presentations, strict_tail)
            found |= {t: groups for t, groups in units.items() if recorded.get(t) == digest}
        found = {
            ticket: groups
            for ticket, groups in found.items()
            if ticket >= drawn and _newest(groups) <= version
        }
        self._files = {ticket: recorded[ticket] for ticket in found}
        if gone := recorded.keys() - found.keys():
            self._journal.forget_open(self._phase, list(gone))
        self._remove_unused()
        return found

    def _read(
        self, digest: str, presentations: Mapping[str, Presentation], strict_tail: bool
    ) -> Units:
        path = self._folder / f"{digest}.safetensors"
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != digest:
                return {}
            return load_units(data, presentations, strict_tail=strict_tail)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return {}  # gone, or written by another version

    def _remove_unused(self) -> None:
        used = set(self._files.values())
        for path in self._folder.glob("*.safetensors"):
            if path.stem not in used:
                path.unlink(missing_ok=True)


def _newest(groups: Sequence[Group]) -> int:
    return max(j.rollout.weight_version_max for group in groups for j in group.judgments)


def dump_units(units: Mapping[int, Sequence[Group]]) -> bytes:
    """A safetensors file: tokens and log-probabilities one behind the other, the rest as JSON."""
    told = [
        {"ticket": ticket, "groups": [_told(group) for group in groups]}
        for ticket, groups in units.items()
    ]
    rollouts = [j.rollout for groups in units.values() for g in groups for j in g.judgments]
    return save(
        {
            "json": np.frombuffer(json.dumps(told).encode(), np.uint8),
            "lengths": np.array([len(r.token_ids) for r in rollouts], np.int32),
            "tokens": np.concatenate([r.token_ids for r in rollouts]),
            "logprobs": np.concatenate([r.logprobs for r in rollouts]),
        }
    )


def _told(group: Group) -> dict[str, Any]:
    return {
        "uid": group.uid,
        "samples": [
            {
                "seed": j.rollout.seed,
                "sample": j.rollout.sample,
                "text": j.rollout.text,
                "finish_reason": j.rollout.finish_reason,
                "weight_version_min": j.rollout.weight_version_min,
                "weight_version_max": j.rollout.weight_version_max,
                "result": asdict(result),
            }
            for j, result in zip(group.judgments, group.results, strict=True)
        ],
    }


def load_units(
    data: bytes, presentations: Mapping[str, Presentation], *, strict_tail: bool
) -> Units:
    """What `dump_units` was given; raises KeyError for a presentation that is unknown."""
    tensors = load(data)
    cuts = np.cumsum(tensors["lengths"])[:-1]
    tokens = iter(np.split(tensors["tokens"], cuts))
    logprobs = iter(np.split(tensors["logprobs"], cuts))

    def judgment(presentation: Presentation, row: dict[str, Any]) -> Judgment:
        fields = {name: value for name, value in row.items() if name != "result"}
        reason = FinishReason(fields.pop("finish_reason"))
        rollout = Rollout(
            presentation_uid=presentation.uid,
            token_ids=next(tokens),
            logprobs=next(logprobs),
            finish_reason=reason,
            **fields,
        )
        is_truncated = reason is FinishReason.LENGTH
        trace = parse_trace(rollout.text, strict_tail=strict_tail, truncated=is_truncated)
        return Judgment(presentation, rollout, trace)

    def group(told: dict[str, Any]) -> Group:
        presentation = presentations[told["uid"]]
        judgments = tuple(judgment(presentation, row) for row in told["samples"])
        results = tuple(RewardResult(**row["result"]) for row in told["samples"])
        return Group(presentation.uid, judgments, results)

    told = json.loads(tensors["json"].tobytes())
    return {unit["ticket"]: [group(each) for each in unit["groups"]] for unit in told}
