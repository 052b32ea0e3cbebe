"""Finished units that no step has used yet outlive their driver."""

import numpy as np
import pytest

from judging.presentation import both_orders
from judging.records import FinishReason, Judgment, Message, PreferencePair, Rollout
from judging.traces import parse_trace
from orchestrator.journal import RunJournal
from orchestrator.open_work import OpenWork, dump_units, load_units
from orchestrator.rundir import RunDirectory
from rewards.groups import Group
from rewards.protocol import RewardResult

PAIR = PreferencePair("0" * 16, (Message("user", "which?"),), "yes", "no")
SHOWN = {shown.uid: shown for shown in both_orders(PAIR)}


def group(uid: str, version: int, tokens: int = 3, text: str = "<answer>[[A]]</answer>") -> Group:
    judgments, results = [], []
    for index in range(2):
        rollout = Rollout(
            presentation_uid=uid,
            sample=index,
            seed=5 + index,
            token_ids=np.arange(tokens + index, dtype=np.int32),
            logprobs=np.linspace(-1, -0.1, tokens + index, dtype=np.float32),
            text=text,
            finish_reason=FinishReason.STOP if index else FinishReason.LENGTH,
            weight_version_min=version - index,
            weight_version_max=version,
        )
        trace = parse_trace(text, truncated=not index)
        judgments.append(Judgment(SHOWN[uid], rollout, trace))
        is_ok = index == 0
        results.append(
            RewardResult(
                f"{uid}#{index}",
                "ok" if is_ok else "error",
                0.25 if is_ok else None,
                {"verdict": 1.0},
                {"errors": {"verdict": "why"}},
                None if is_ok else "why",
            )
        )
    return Group(uid, tuple(judgments), tuple(results))


def unit(version: int = 1, **changes) -> list[Group]:
    return [group(uid, version, **changes) for uid in SHOWN]


def plain(groups) -> list:
    return [
        (
            *(g.uid, j.trace, j.presentation, r),
            *(j.rollout.token_ids.tolist(), j.rollout.logprobs.tolist()),
            *(j.rollout.seed, j.rollout.sample, j.rollout.finish_reason, j.rollout.text),
            *(j.rollout.weight_version_min, j.rollout.weight_version_max),
        )
        for g in groups
        for j, r in zip(g.judgments, g.results, strict=True)
    ]


def test_units_come_back_as_they_were():
    units = {4: unit(text="ünd \ud800 <answer>[[B]]</answer>"), 9: unit(tokens=7, version=3)}
    back = load_units(dump_units(units), SHOWN, strict_tail=False)
    assert {ticket: plain(groups) for ticket, groups in back.items()} == {
        ticket: plain(groups) for ticket, groups in units.items()
    }


@pytest.fixture
def directory(tmp_path) -> RunDirectory:
    return RunDirectory.open(tmp_path, "run-1")


def open_work(directory, client, now) -> OpenWork:
    journal = RunJournal(client, "run-1")
    return OpenWork(directory, journal, 2, every_s=10.0, clock=lambda: now[0])


def recovered(work: OpenWork, drawn: int, version: int) -> list[int]:
    return sorted(work.recover(drawn, version, SHOWN, strict_tail=False))


def test_what_finished_is_there_for_the_next_driver_and_what_was_used_is_not(directory, client):
    now = [0.0]
    work = open_work(directory, client, now)
    for ticket in range(3):
        work.keep(ticket, unit())
    assert recovered(open_work(directory, client, now), 0, 1) == []  # not written down yet
    now[0] = 10.0
    work.keep(3, unit())
    work.keep(4, unit())
    assert recovered(open_work(directory, client, now), 0, 1) == [0, 1, 2, 3]
    work.used(2)
    assert recovered(open_work(directory, client, now), 2, 1) == [2, 3]
    work.used(5)
    assert recovered(open_work(directory, client, now), 5, 1) == []
    assert not list((directory.path / "open").iterdir())


def test_units_by_weights_that_are_no_longer_there_are_generated_again(directory, client):
    now = [100.0]
    work = open_work(directory, client, now)
    work.keep(0, unit(version=4))
    work.keep(1, unit(version=5))
    work.write()
    other = open_work(directory, client, now)
    assert recovered(other, 0, 4) == [0]
    assert recovered(open_work(directory, client, now), 0, 5) == [0]  # 1 is forgotten


@pytest.mark.parametrize("damage", ["truncated", "gone", "altered"])
def test_a_damaged_file_costs_its_units_alone(directory, client, damage):
    now = [0.0]
    work = open_work(directory, client, now)
    work.keep(0, unit())
    work.write()
    work.keep(1, unit())
    work.write()
    first = directory.path / "open" / f"{RunJournal(client, 'run-1').open_units(2)[0]}.safetensors"
    data = first.read_bytes()
    match damage:
        case "truncated":
            first.write_bytes(data[:-9])
        case "gone":
            first.unlink()
        case "altered":
            first.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert recovered(open_work(directory, client, now), 0, 1) == [1]
    assert recovered(open_work(directory, client, now), 0, 1) == [1]
