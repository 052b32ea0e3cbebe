"""The lease on a real Redis: one driver at a time, and none that was replaced can write."""

import time

import pytest
from run_samples import evaluation, step_commit

from judging.errors import ConfigurationError, InfrastructureError
from orchestrator.journal import RunJournal
from orchestrator.lease import Lease

pytestmark = [pytest.mark.integration, pytest.mark.alone]


def quiet(text: str) -> None:
    """Says nothing."""


def test_a_driver_holds_it_longer_than_a_lease_and_then_gives_it_back(client):
    first, second = Lease(client, "run", lease_s=0.4), Lease(client, "run", lease_s=0.4)
    with first.hold(wait_s=0.0, say=quiet) as epoch:
        time.sleep(0.8)
        with (
            pytest.raises(ConfigurationError, match=r"held by another driver .* after 0\.5 s"),
            second.hold(wait_s=0.5, say=quiet),
        ):
            pass
    with second.hold(wait_s=0.0, say=quiet) as later:
        assert later > epoch


def test_another_driver_takes_over_when_the_lease_has_run_out(client):
    dead, said = Lease(client, "run", lease_s=0.3), []
    dead._acquire(0.0, quiet)  # and never renews it
    began_s = time.monotonic()
    with Lease(client, "run").hold(wait_s=5.0, say=said.append):
        assert 0.1 < time.monotonic() - began_s < 3.0
    assert len(said) == 1
    assert "waiting for the lease of another driver" in said[0]


def test_who_is_alone_with_the_store_waits_for_nobody(client):
    dead = Lease(client, "run", lease_s=60.0)
    dead._acquire(0.0, quiet)
    with Lease(client, "run", is_alone=True).hold(wait_s=0.0, say=quiet) as epoch:
        assert epoch > dead.epoch


def test_a_driver_that_was_replaced_can_write_nothing_more(client):
    old = Lease(client, "run", lease_s=0.2)
    old._acquire(0.0, quiet)
    stale = RunJournal(client, "run", epoch=old.epoch)
    stale.begin_run("model: tiny\n", {}, 7)
    stale.begin_phase(0, "distill", 9)
    assert stale.commit_step(step_commit(1))
    with Lease(client, "run").hold(wait_s=5.0, say=quiet) as epoch:
        journal = RunJournal(client, "run", epoch=epoch)
        assert not old.renew()
        for write in (
            lambda: stale.commit_step(step_commit(2)),
            lambda: stale.record_evaluation(evaluation("base", 0, 0.5)),
            lambda: stale.record_checkpoint("checkpoints/1", 1, phase=0, phase_step=1),
            lambda: stale.end_phase(0, 1),
            lambda: stale.finish("done"),
        ):
            with pytest.raises(InfrastructureError, match="another driver has taken over"):
                write()
        assert [commit.step for commit in journal.commits(0)] == [1]
        assert journal.snapshot().status == "running"
        assert journal.commit_step(step_commit(2))


def test_a_store_that_lost_the_journal_takes_nothing_more(client):
    with Lease(client, "run").hold(wait_s=0.0, say=quiet) as epoch:
        journal = RunJournal(client, "run", epoch=epoch)
        journal.begin_run("", {}, 7)
        client.flushall()
        with pytest.raises(InfrastructureError, match="or its store has lost the journal"):
            journal.commit_step(step_commit(1))
        assert client.keys() == []


def test_one_that_only_stopped_for_long_goes_on(client):
    lease = Lease(client, "run", lease_s=0.1)
    lease._acquire(0.0, quiet)
    time.sleep(0.3)
    assert lease.renew()


def test_a_lease_alone_is_no_run(client):
    Lease(client, "run")._acquire(0.0, quiet)
    journal = RunJournal(client, "run")
    assert not journal.is_begun
    assert journal.snapshot() is None
