"""Every write of the journal and of the lease: sent twice, and sent to a store that is full."""

import uuid
from itertools import count
from types import SimpleNamespace

import pytest
import redis
from run_samples import evaluation, step_commit

from judging.errors import InfrastructureError
from orchestrator.journal import RunJournal
from orchestrator.lease import Lease
from orchestrator.store import open_store
from orchestrator.store_client import Client

WRITES = (
    lambda journal: journal.begin_phase(0, "distill", 9),
    lambda journal: journal.commit_step(step_commit(1)),
    lambda journal: journal.record_evaluation(evaluation("base", 0, 0.5)),
    lambda journal: journal.record_checkpoint("checkpoints/1", 1, phase=0, phase_step=1),
    lambda journal: journal.event("noticed", number=1),
    lambda journal: journal.ask("reward", "weight", "verdict", {"weight": 2.0}),
    lambda journal: journal.record_rewards([{"name": "verdict"}]),
    lambda journal: journal.record_mix({"verdict": {}}),
    lambda journal: journal.end_phase(0, 1),
    lambda journal: journal.finish("failed"),
    lambda journal: journal.resume_run("model: tiny\n", {}),
)


class Stutter(Client):
    """Sends each command twice, as after an answer that was lost."""

    def execute_command(self, *args, **options):
        redis.Redis.execute_command(self, *args, **options)
        return super().execute_command(*args, **options)


def test_each_write_may_be_repeated(client, monkeypatch):
    told = []
    for run_id, kind in (("once", Client), ("twice", Stutter)):
        ids, ticks = count(), count(1000)
        monkeypatch.setattr(uuid, "uuid4", lambda ids=ids: SimpleNamespace(hex=f"{next(ids)}"))
        sender = kind(connection_pool=client.connection_pool)
        journal = RunJournal(sender, run_id, clock=lambda ticks=ticks: float(next(ticks)))
        journal.begin_run("model: tiny\n", {}, 7)
        for write in WRITES:
            write(journal)
        journal.ask("reward", "detach", "brevity", {})
        journal.event("noticed", number=2)
        first, second = journal.waiting_commands()
        journal.finish_command(first, "set", ok=True)
        assert journal.waiting_commands() == [second]
        journal.forget_checkpoint("checkpoints/1")
        events = [fields for _, fields in client.xrange(client.key(run_id, "events"))]
        names = ("run", "phases", "commits:0", "evaluations", "checkpoints", "ended", "drivers")
        hashes = [client.hgetall(client.key(run_id, name)) for name in (*names, "answers")]
        told.append((events, hashes, journal.snapshot().status))
    assert told[0] == told[1]
    assert told[0][2] == "running"
    assert len(told[0][0]) == 11


def test_a_repeated_acquire_keeps_the_epoch(client):
    lease = Lease(Stutter(connection_pool=client.connection_pool), "run")
    lease._acquire(0.0, print)
    assert lease.epoch == 1
    assert lease.renew()
    assert RunJournal(client, "run", epoch=1).finish("failed")


def everything(client) -> dict[str, bytes]:
    return {key: client.dump(key) for key in client.keys()}  # noqa: SIM118


def test_every_write_meets_a_full_store_as_a_whole(tmp_path):
    with open_store(None, tmp_path) as store:
        journal = RunJournal(store.client, "run-1")
        journal.begin_run("model: tiny\n", {}, 7)
        asked = journal.ask("reward", "weight", "verdict", {"weight": 1.0})
        store.client.config_set("maxmemory", 1)
        before = everything(store.client)
        for write in WRITES:
            with pytest.raises(InfrastructureError, match=r"OOM|maxmemory"):
                write(journal)
        (command,) = journal.waiting_commands()
        with pytest.raises(InfrastructureError, match="OOM"):
            journal.finish_command(command, "set", ok=True)
        with pytest.raises(InfrastructureError, match="OOM"):
            Lease(store.client, "run-1")._acquire(0.0, print)
        assert everything(store.client) == before
        assert journal.answer(asked) is None
