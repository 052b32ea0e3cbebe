"""What can happen to a run's store while the run goes on, on real servers."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest
from redis_servers import free_port, redis_server, server_pid
from run_samples import step_commit

import orchestrator.store
import orchestrator.store_client
import orchestrator.store_server
from judging.errors import InfrastructureError
from orchestrator.journal import RunJournal
from orchestrator.lease import Lease
from orchestrator.store import open_recorded_store, open_store

pytestmark = [pytest.mark.integration, pytest.mark.alone]  # servers that end and are waited for


@pytest.fixture(autouse=True)
def told_soon(monkeypatch):
    monkeypatch.setattr(orchestrator.store_client, "TELL_AFTER_S", 0.2)


class Told(list):
    """What a driver says of its store; the first time, what ails the store is mended."""

    def __init__(self, mend=lambda: None):
        super().__init__()
        self.mend = mend

    def __call__(self, text: str) -> None:
        self.append(text)
        if len(self) == 1:
            self.mend()


def begun(client, run_id: str = "run-1") -> RunJournal:
    journal = RunJournal(client, run_id)
    journal.begin_run("model: tiny\n", {}, 7)
    return journal


def everything(client) -> dict[str, bytes]:
    return {key: client.dump(key) for key in client.keys()}  # noqa: SIM118


def test_a_server_that_hangs_is_waited_for_and_told_of_once(tmp_path, monkeypatch):
    monkeypatch.setattr(orchestrator.store, "SOCKET_TIMEOUT_S", 0.3)
    said = Told()
    with open_store(None, tmp_path, patience_s=20.0, say=said) as store:
        server = psutil.Process(server_pid(store.client))
        said.mend = server.resume
        server.suspend()
        store.client.set("key", "value")
        assert store.client.get("key") == "value"
    assert len(said) == 2
    assert said[0].startswith(f"waiting up to 20 s for the run's journal at {store.address}: ")
    assert "Timeout" in said[0]
    assert said[1].startswith("the run's journal is back after ")


def test_an_outside_server_that_restarts_is_waited_for(tmp_path):
    port, said = free_port(), Told()
    keeping = ("--dir", str(tmp_path), "--appendonly", "yes", "--appendfsync", "always")
    with redis_server(*keeping, port=port):
        opened = open_store(
            f"redis://127.0.0.1:{port}/3", tmp_path / "run", patience_s=20.0, say=said
        )
        store = opened.__enter__()
        journal = begun(store.client)
        assert journal.commit_step(step_commit(1))
    again = redis_server(*keeping, port=port)
    said.mend = again.__enter__
    try:
        assert journal.commit_step(step_commit(2))  # its script is unknown there
        assert [commit.step for commit in journal.commits(0)] == [1, 2]
        assert store.client.connection_pool.connection_kwargs["db"] == 3
        assert len(said) == 2
        assert "it does not answer (Error 111 connecting to 127.0.0.1" in said[0]
    finally:
        opened.__exit__(None, None, None)
        again.__exit__(None, None, None)


def test_patience_ends_and_tells_how_to_go_on(tmp_path):
    port, run = free_port(), tmp_path / "long-run"
    with redis_server("--requirepass", "hunter2", "--dir", str(tmp_path), port=port):
        opened = open_store(f"redis://:hunter2@127.0.0.1:{port}/0", run, patience_s=0.6)
        store = opened.__enter__()
    began_s = time.monotonic()
    with pytest.raises(InfrastructureError) as caught:
        store.client.set("key", "value")
    assert 0.6 <= time.monotonic() - began_s < 3.0
    message = str(caught.value)
    assert f"the run's journal at redis://127.0.0.1:{port}/0 failed on SET: Error 111" in message
    assert "for 1 s: it does not answer" in message
    assert "gavel run CONFIG --resume long-run" in message
    assert "hunter2" not in message
    began_s = time.monotonic()
    with pytest.raises(InfrastructureError, match="--resume long-run"):  # no second time
        store.client.set("key", "value")
    assert time.monotonic() - began_s < 0.3
    opened.__exit__(None, None, None)


def test_readers_never_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(orchestrator.store, "SOCKET_TIMEOUT_S", 0.3)
    with open_store(None, tmp_path, patience_s=60.0) as store:
        server = psutil.Process(server_pid(store.client))
        with open_recorded_store(tmp_path, timeout_s=0.3) as seen:
            assert seen is not None
            server.suspend()
            began_s = time.monotonic()
            with pytest.raises(InfrastructureError, match="failed on GET"):
                seen.client.get("key")
            with open_recorded_store(tmp_path, timeout_s=0.3) as unseen:
                assert unseen is None
            assert time.monotonic() - began_s < 2.0
        server.resume()


# ---- the private server --------------------------------------------------------------------------


def test_the_private_server_is_started_again_when_it_was_killed(tmp_path):
    said = []
    with open_store(None, tmp_path, patience_s=20.0, say=said.append) as store:
        journal, pids = begun(store.client), []
        for step in range(1, 4):
            assert journal.commit_step(step_commit(step))
            pids.append(server_pid(store.client))
            psutil.Process(pids[-1]).kill()
        assert [commit.step for commit in journal.commits(0)] == [1, 2, 3]
        assert len({*pids, server_pid(store.client)}) == 4
    assert [line for line in said if "server" in line] == [
        f"the run's redis-server ended with status -9: it is started again ({times} of 5)"
        for times in (1, 2, 3)
    ]
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_private_server_that_dies_too_often_is_given_up_before_the_patience(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(orchestrator.store_server, "RESTARTS", 1)
    with open_store(None, tmp_path, patience_s=60.0) as store:
        store.client.set("kept", "yes")
        psutil.Process(server_pid(store.client)).kill()
        assert store.client.get("kept") == "yes"
        psutil.Process(server_pid(store.client)).kill()
        began_s = time.monotonic()
        with pytest.raises(
            InfrastructureError, match=r"ended 2 times, at last with status -9: the end of .*log"
        ):
            store.client.set("key", "value")
        assert time.monotonic() - began_s < 10
    with open_store(None, tmp_path) as store:
        assert store.client.get("kept") == "yes"


@pytest.mark.parametrize("blocked", [[], [signal.SIGINT]])  # as below a raylet
def test_the_restarted_server_dies_with_its_driver(tmp_path, blocked):
    script = (
        "import psutil, signal, sys, time\n"
        f"signal.pthread_sigmask(signal.SIG_BLOCK, {[int(number) for number in blocked]})\n"
        "from pathlib import Path\n"
        "from orchestrator.store import open_store\n"
        "with open_store(None, Path(sys.argv[1]), patience_s=20.0) as store:\n"
        "    psutil.Process(store.client.info('server')['process_id']).kill()\n"
        "    print(store.client.info('server')['process_id'], flush=True)\n"
        "    time.sleep(60)\n"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    pid = int(driver.stdout.readline())
    driver.kill()
    driver.wait()
    driver.stdout.close()
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=10)
    assert not psutil.pid_exists(pid)
    with open_store(None, tmp_path):  # which takes away what the killed one left
        pass


def test_a_write_that_was_cut_off_on_disk_costs_itself_alone(tmp_path):
    with open_store(None, tmp_path) as store:
        journal = begun(store.client)
        for step in (1, 2):
            journal.commit_step(step_commit(step))
    (log,) = (tmp_path / "journal").rglob("appendonly*.aof")
    log.write_bytes(log.read_bytes()[:-20])
    with open_store(None, tmp_path) as store:
        journal = RunJournal(store.client, "run-1")
        assert [commit.step for commit in journal.commits(0)] == [1]
        assert journal.commit_step(step_commit(2))


# ---- servers that answer, but refuse -------------------------------------------------------------


def test_a_store_that_is_full_takes_all_of_a_commit_or_nothing(tmp_path):
    said = Told()
    with open_store(None, tmp_path, patience_s=20.0, say=said) as store:
        journal = begun(store.client)
        store.client.config_set("maxmemory", 1)
        before = everything(store.client)
        with open_recorded_store(tmp_path) as other:
            assert other is not None
            with pytest.raises(InfrastructureError, match="OOM"):
                RunJournal(other.client, "run-1").commit_step(step_commit(1))
            assert everything(store.client) == before
            said.mend = lambda: other.client.config_set("maxmemory", 0)
            assert journal.commit_step(step_commit(1))
        assert journal.commits(0) == (step_commit(1),)
    assert len(said) == 2
    assert "it is out of memory: raise its maxmemory" in said[0]


def test_a_read_only_replica_is_waited_for_until_it_is_promoted(tmp_path):
    said = Told()
    with open_store(None, tmp_path, patience_s=20.0, say=said) as store:
        journal = begun(store.client)
        with open_recorded_store(tmp_path) as other:
            assert other is not None
            other.client.replicaof("127.0.0.1", "1")
            said.mend = lambda: other.client.replicaof("NO", "ONE")
            assert journal.commit_step(step_commit(1))
        assert [commit.step for commit in journal.commits(0)] == [1]
    assert "it is a read-only replica: promote it" in said[0]


# ---- the lease -----------------------------------------------------------------------------------


def test_the_lease_is_renewed_again_after_an_outage_that_outlasted_it(tmp_path, monkeypatch):
    monkeypatch.setattr(orchestrator.store, "SOCKET_TIMEOUT_S", 0.1)
    with open_store(None, tmp_path, patience_s=20.0) as store:
        lease = Lease(store.client, "run", lease_s=0.4)
        with lease.hold(wait_s=0.0, say=print) as epoch:
            server = psutil.Process(server_pid(store.client))
            server.suspend()
            time.sleep(0.8)
            server.resume()
            journal = RunJournal(store.client, "run", epoch=epoch)
            journal.begin_run("", {}, 7)
            server = psutil.Process(server_pid(store.client))
            server.kill()
            assert journal.commit_step(step_commit(1))
            time.sleep(0.3)
            assert 0 < store.client.pttl(store.client.key("run", "lease")) <= 400
        assert not store.client.exists(store.client.key("run", "lease"))


def test_giving_the_lease_back_to_a_store_that_is_gone_takes_no_patience(tmp_path, monkeypatch):
    monkeypatch.setattr(orchestrator.store, "SOCKET_TIMEOUT_S", 0.3)
    with open_store(None, tmp_path, patience_s=60.0) as store:
        server = psutil.Process(server_pid(store.client))
        with Lease(store.client, "run", lease_s=0.4).hold(wait_s=0.0, say=print):
            server.suspend()
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 3.0
        server.resume()


# ---- signals -------------------------------------------------------------------------------------

_DRIVER = """
import asyncio, json, os, signal, sys, time
from pathlib import Path
import orchestrator.store, orchestrator.store_client
from judging.errors import GavelError, InfrastructureError
orchestrator.store.SOCKET_TIMEOUT_S = orchestrator.store_client.TELL_AFTER_S = 0.2

async def drive(client):
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    if sys.argv[2] == "late":  # the wait is over when the signal comes: asyncio's handler is back
        client.set("key", "value")
        print("waited", flush=True)
        await asyncio.sleep(60)
    client.set("key", "value")

def say(text):
    print("waiting" if "waiting" in text else text, flush=True)

with orchestrator.store.open_store(None, Path(sys.argv[1]), patience_s=60.0, say=say) as store:
    server = store.client.info("server")["process_id"]
    os.kill(server, signal.SIGSTOP)
    print(server, flush=True)
    try:
        asyncio.run(drive(store.client))
    except asyncio.CancelledError:
        print("cancelled", flush=True)
    except GavelError as error:
        began_s = time.monotonic()
        try:
            store.client.set("key", "value")  # as a run that ends writes down why
        except InfrastructureError:
            print(json.dumps([str(error), error.exit_code, time.monotonic() - began_s]), flush=True)
    os.kill(server, signal.SIGCONT)
"""


@contextmanager
def driver(*arguments: str):
    process = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("when", "number"), [("now", signal.SIGTERM), ("late", signal.SIGINT)])
def test_a_signal_ends_a_driver_that_waits_for_its_store(tmp_path, when, number):
    with driver(str(tmp_path), when) as process:
        check_that_it_ends(process, when, number)


def check_that_it_ends(process, when: str, number: int) -> None:
    server = int(process.stdout.readline())
    assert process.stdout.readline() == "waiting\n"
    if when == "late":
        os.kill(server, signal.SIGCONT)
        assert "back after" in process.stdout.readline()
        assert process.stdout.readline() == "waited\n"
    process.send_signal(number)
    told = process.stdout.readline()
    if when == "late":
        assert told == "cancelled\n"
    else:
        message, exit_code, ending_s = json.loads(told)
        assert "stopped by a signal while it waited for its journal at unix:" in message
        assert exit_code == 130
        assert ending_s < 1.0
    assert process.wait(10) == 0
