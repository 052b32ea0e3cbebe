import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from redis_servers import free_port, redis_server, server_pid, wait_until_gone

from judging.errors import ConfigurationError, InfrastructureError
from orchestrator.store import (
    PASSWORD_VARIABLE,
    open_recorded_store,
    open_store,
    recorded_address,
    without_password,
)

pytestmark = [pytest.mark.integration, pytest.mark.alone]


def test_private_server_is_private_and_durable(tmp_path):
    with open_store(None, tmp_path) as store:
        settings = store.client.config_get()
        assert settings["port"] == "0"
        assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "always")
        assert settings["save"] == ""
        assert settings["dir"] == str(tmp_path / "journal")
        path = Path(str(settings["unixsocket"]))
        assert path.stat().st_mode & 0o077 == 0
        assert path.parent.stat().st_mode & 0o077 == 0


def test_private_server_outlives_the_terminals_ctrl_c(tmp_path):
    with open_store(None, tmp_path) as store:
        pid = server_pid(store.client)
        assert os.getpgid(pid) != os.getpgid(0)


def test_closing_leaves_no_process_and_no_socket_but_the_data(tmp_path):
    with open_store(None, tmp_path) as store:
        pid = server_pid(store.client)
        path = Path(store.address.removeprefix("unix://"))
        store.client.set("kept", "yes")
        assert recorded_address(tmp_path) == store.address
    assert not psutil.pid_exists(pid)
    assert not path.parent.exists()
    assert recorded_address(tmp_path) is None
    with open_store(None, tmp_path) as store:
        assert store.client.get("kept") == "yes"


def test_it_ends_at_once_also_where_signals_are_blocked(tmp_path):
    """As they are in all that descends from a raylet."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        with open_store(None, tmp_path) as store:
            pid = server_pid(store.client)
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 5
        assert not psutil.pid_exists(pid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_store_is_closed_when_the_run_fails(tmp_path):
    pids = []

    def failing_run() -> None:
        with open_store(None, tmp_path) as store:
            pids.append(server_pid(store.client))
            raise RuntimeError("of the run")

    with pytest.raises(RuntimeError, match="of the run"):
        failing_run()
    assert not psutil.pid_exists(pids[0])


def test_killed_driver_takes_its_server_with_it_and_loses_nothing(tmp_path):
    driver = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\n"
            "from pathlib import Path\n"
            "from orchestrator.store import open_store\n"
            "with open_store(None, Path(sys.argv[1])) as store:\n"
            "    store.client.set('kept', 'yes')\n"
            "    print(store.client.info('server')['process_id'], flush=True)\n"
            "    time.sleep(60)\n",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout is not None
    pid = int(driver.stdout.readline())
    assert psutil.pid_exists(pid)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    wait_until_gone(pid)
    with open_recorded_store(tmp_path) as store:
        assert store is None
    left = Path(str(recorded_address(tmp_path)).removeprefix("unix://")).parent
    with open_store(None, tmp_path) as store:
        assert store.client.get("kept") == "yes"
    assert not left.exists()


def test_leftover_server_is_ended_before_a_new_one_starts(tmp_path):
    journal = tmp_path / "journal"
    journal.mkdir()
    path = Path(tempfile.mkdtemp(prefix="gavel-")) / "redis.sock"
    arguments = ("--unixsocket", str(path), "--dir", str(journal), "--appendonly", "yes")
    with redis_server(*arguments, socket_path=str(path)) as leftover:
        (journal / "address").write_text(f"unix://{path}")
        with open_recorded_store(tmp_path) as store:
            assert store is not None
            store.client.set("kept", "yes")
        with open_store(None, tmp_path) as store:
            assert leftover.wait(10) == 0
            assert server_pid(store.client) != leftover.pid
            assert store.client.get("kept") == "yes"
    assert not path.parent.exists()


def test_copied_run_directory_does_not_end_the_originals_server(tmp_path):
    with open_store(None, tmp_path / "original") as original:
        pid = server_pid(original.client)
        (tmp_path / "copy" / "journal").mkdir(parents=True)
        shutil.copy(tmp_path / "original/journal/address", tmp_path / "copy/journal/address")
        with open_store(None, tmp_path / "copy") as copy:
            assert server_pid(copy.client) != pid
        assert original.client.ping()


def test_long_paths_are_no_obstacle(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with open_store(None, deep / "run with space") as store:
        assert store.client.ping()
        assert len(store.address) < 107


def test_second_driver_of_one_run_is_refused(tmp_path):
    with open_store(None, tmp_path) as store:
        with pytest.raises(ConfigurationError, match="another driver has the run"):
            open_store(None, tmp_path).__enter__()
        assert store.client.ping()


def test_server_that_cannot_start_says_why(tmp_path):
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "appendonly.aof").write_text("no append-only file\n")
    with pytest.raises(InfrastructureError, match=r"before it was up.*Bad file format"):
        open_store(None, tmp_path).__enter__()
    assert recorded_address(tmp_path) is None


def test_server_that_dies_is_an_infrastructure_error(tmp_path):
    with open_store(None, tmp_path) as store:
        psutil.Process(server_pid(store.client)).kill()
        began_s = time.monotonic()
        with pytest.raises(InfrastructureError, match=f"{store.address} failed on SET"):
            store.client.set("key", "value")
        assert time.monotonic() - began_s < 10


def test_unreachable_server_is_named_without_its_password(tmp_path):
    url = f"redis://me:secret@127.0.0.1:{free_port()}/0?password=secret"
    with pytest.raises(InfrastructureError, match=r"redis://me@127.0.0.1.* within 0.3 s") as error:
        open_store(url, tmp_path, timeout_s=0.3).__enter__()
    assert "secret" not in str(error.value)


def test_silent_server_meets_the_deadline(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began_s = time.monotonic()
        with pytest.raises(InfrastructureError, match=r"did not answer within 0\.3 s"):
            open_store(
                f"redis://127.0.0.1:{silent.getsockname()[1]}", tmp_path, timeout_s=0.3
            ).__enter__()
        assert time.monotonic() - began_s < 3


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://host:6379",
        "redis://:se#cret@host:6379",
        "redis://host:port",
        "redis:///0",
        "redis://:secret@host:6379/0?socket_timeout=soon",
    ],
)
def test_what_is_no_address_is_a_configuration_error(url, tmp_path):
    with pytest.raises(ConfigurationError, match=r"store\.url is no Redis address") as error:
        open_store(url, tmp_path).__enter__()
    assert "cret" not in str(error.value)


def test_existing_server_with_a_password(tmp_path, monkeypatch):
    port = free_port()
    with redis_server("--requirepass", "secret", "--dir", str(tmp_path), port=port):
        bare = f"redis://127.0.0.1:{port}/0"
        for wrong in (bare, f"redis://:wrong@127.0.0.1:{port}/0"):
            with pytest.raises(ConfigurationError, match="refuses the user or password"):
                open_store(wrong, tmp_path).__enter__()
        with open_store(f"redis://:secret@127.0.0.1:{port}/0", tmp_path) as store:
            store.client.set("key", "value")
            assert store.address == recorded_address(tmp_path) == bare
            with open_recorded_store(tmp_path) as seen:
                assert seen is None  # the password is not written down
            monkeypatch.setenv(PASSWORD_VARIABLE, "secret")
            with open_recorded_store(tmp_path) as seen:
                assert seen is not None
                assert seen.client.get("key") == "value"
        with open_store(bare, tmp_path) as store:
            assert store.client.get("key") == "value"


def test_without_password_keeps_the_rest():
    url = "rediss://me:secret@host:6380/2?ssl_ca_certs=%2Fca.pem&password=secret"
    assert without_password(url) == "rediss://me@host:6380/2?ssl_ca_certs=%2Fca.pem"
