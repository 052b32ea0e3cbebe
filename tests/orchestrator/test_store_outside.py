"""A run's store at an existing server: user, password, database, TLS and the prefix of its keys."""

import re
import shutil
import socket
import ssl
import subprocess
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis
from redis_servers import free_port, redis_server
from run_samples import evaluation, step_commit

from judging.errors import ConfigurationError, InfrastructureError
from orchestrator.config_loading import config_from_tree, config_tree, load_config
from orchestrator.journal import RunJournal
from orchestrator.lease import Lease
from orchestrator.outside_store import known_runs, store_of
from orchestrator.resume import check_unchanged
from orchestrator.store import PASSWORD_VARIABLE, open_recorded_store, open_store, recorded_address

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
DOCUMENTED = ROOT / "docs" / "store.md"
QUICKSTART = ROOT / "configs" / "quickstart.yaml"


def documented_rule() -> list[str]:
    """The words of the page's ACL, as they follow the user's name and password."""
    (rule,) = re.findall(r"^ACL SETUSER gavel on >SECRET (.*)$", DOCUMENTED.read_text(), re.M)
    return rule.split()


@contextmanager
def server_with_user(folder: Path, rule: list[str]):
    """A server on which only the user `judge`, with the password `secret`, may do anything."""
    port = free_port()
    users = folder / "users.acl"
    users.write_text(f"user default off\nuser judge on >secret {' '.join(rule)}\n")
    with redis_server("--aclfile", str(users), "--dir", str(folder), port=port):
        yield f"127.0.0.1:{port}"


def test_the_documented_user_can_do_all_that_a_run_does(tmp_path, monkeypatch):
    with server_with_user(tmp_path, documented_rule()) as host:
        monkeypatch.setenv(PASSWORD_VARIABLE, "secret")
        url = f"redis://judge@{host}/2"
        with open_store(url, tmp_path / "run", prefix="judges") as store:
            with Lease(store.client, "run").hold(wait_s=0.0, say=print) as epoch:
                live_a_run(RunJournal(store.client, "run", epoch=epoch), tmp_path)
            assert recorded_address(tmp_path / "run") == url
            with open_recorded_store(tmp_path / "run") as seen:
                assert seen is not None
                assert RunJournal(seen.client, "run").snapshot().status == "done"
            assert [run.run_id for run in known_runs(store)] == ["run"]
            for key in ("other:{run}:run", "judges"):
                with pytest.raises(ConfigurationError, match=r"let its user do HGET .*docs/store"):
                    store.client.hget(key, "status")


def live_a_run(journal: RunJournal, folder: Path) -> None:
    """Everything that a driver and its readers ask of a journal."""
    assert not journal.is_begun
    journal.begin_run("model: tiny\n", {}, 7)
    journal.begin_phase(0, "distill", 9)
    assert journal.commit_step(step_commit(1))
    journal.record_evaluation(evaluation("base", 0, 0.5))
    for path in ("checkpoints/1", "checkpoints/2"):
        journal.record_checkpoint(path, 1, phase=0, phase_step=1)
    journal.forget_checkpoint("checkpoints/1")
    journal.event("noticed", number=1)
    journal.ask("reward", "weight", "verdict", {"weight": 2.0})
    (command,) = journal.waiting_commands()
    journal.finish_command(command, "set", ok=True)
    assert journal.answer(command.id) == {"ok": True, "told": "set"}
    journal.record_rewards([])
    journal.record_mix({})
    assert (journal.rewards(), journal.mix()) == ([], {})
    journal.record_open(0, {3: "digest"})
    assert journal.open_units(0) == {3: "digest"}
    journal.forget_open(0, [3])
    assert journal.commits(0, after=1) == ()
    journal.take_back("damaged", {}, {"checkpoints": ["checkpoints/9"]}, {})
    journal.end_phase(0, 1)
    journal.resume_run("model: tiny\n", {})
    assert journal.finish("done")
    assert len(journal.commits(0)) == len(journal.checkpoints()) == len(journal.evaluations()) == 1
    journal.export(folder / "events.jsonl")
    assert journal.snapshot().total_steps == journal.total_steps(0) == 9


def test_a_user_who_may_too_little_is_told_where_the_rule_is(tmp_path):
    rule = [word for word in documented_rule() if word not in ("+xadd", "+hset")]
    with (
        server_with_user(tmp_path, rule) as host,
        open_store(f"redis://judge:secret@{host}/0", tmp_path / "run", prefix="judges") as store,
    ):
        for write in (
            lambda: RunJournal(store.client, "run").begin_run("", {}, 7),
            lambda: RunJournal(store.client, "run").record_mix({}),
        ):
            with pytest.raises(ConfigurationError, match=r"store\.url: .*docs/store\.md") as error:
                write()
            assert "secret" not in str(error.value)


def test_readers_find_a_run_under_its_prefix(tmp_path):
    with open_store(None, tmp_path, prefix="judges") as store:
        RunJournal(store.client, "run").begin_run("", {}, 7)
        assert set(store.client.keys()) == {"judges:{run}:run", "judges:{run}:events"}
        with open_recorded_store(tmp_path) as seen:
            assert seen is not None
            assert RunJournal(seen.client, "run").is_begun


@pytest.mark.parametrize("prefix", ["", "a{b}", "a*", "with space"])
def test_a_prefix_is_a_plain_word(prefix):
    with pytest.raises(ConfigurationError, match=r"store\.prefix"):
        config_from_tree({"store": {"prefix": prefix}})


def test_a_run_is_resumed_under_its_prefix_but_perhaps_elsewhere():
    then = config_tree(load_config(QUICKSTART))
    elsewhere = ["store.url=redis://host:6379/0", "store.patience_s=5"]
    check_unchanged(then, config_tree(load_config(QUICKSTART, elsewhere)))
    with pytest.raises(ConfigurationError, match=r"store\.prefix: 'gavel' -> 'judges'"):
        check_unchanged(then, config_tree(load_config(QUICKSTART, ["store.prefix=judges"])))


# ---- TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on the PATH to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


@contextmanager
def tls_in_front_of(port: int, certificate: Path, key: Path):
    """Ends TLS before a server: the one that is bundled for the tests was built without it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_serve, args=(listener, context, port), daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _serve(listener: socket.socket, context: ssl.SSLContext, port: int) -> None:
    with suppress(OSError):
        while True:
            plain, _ = listener.accept()
            with suppress(ssl.SSLError):  # of a client that does not trust the certificate
                secure = context.wrap_socket(plain, server_side=True)
                redis_side = socket.create_connection(("127.0.0.1", port))
                for ends in ((secure, redis_side), (redis_side, secure)):
                    threading.Thread(target=_copy, args=ends, daemon=True).start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(65536):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_RDWR)


def test_a_store_over_tls(tmp_path, certificate):
    port = free_port()
    with (
        redis_server("--requirepass", "secret", "--dir", str(tmp_path), port=port),
        tls_in_front_of(port, *certificate) as tls_port,
    ):
        url = f"rediss://:secret@127.0.0.1:{tls_port}/1"
        trusting = f"{url}?ssl_ca_certs={certificate[0]}"
        with open_store(trusting, tmp_path / "run") as store:
            journal = RunJournal(store.client, "run")
            journal.begin_run("", {}, 7)
            assert journal.commit_step(step_commit(1))
            with store_of(trusting, "gavel") as seen:
                assert [run.run_id for run in known_runs(seen)] == ["run"]
            recorded = str(recorded_address(tmp_path / "run"))
            assert "secret" not in recorded
            assert "ssl_ca_certs=" in recorded
        with redis.Redis(port=port, db=1, password="secret") as plain:
            assert plain.exists("gavel:{run}:commits:0")
        with pytest.raises(InfrastructureError, match="CERTIFICATE_VERIFY_FAILED"):
            open_store(url, tmp_path / "untrusted", timeout_s=0.5).__enter__()
        other_name = trusting.replace("127.0.0.1", "localhost")
        with pytest.raises(InfrastructureError, match="Hostname mismatch"):
            open_store(other_name, tmp_path / "other", timeout_s=0.5).__enter__()


def test_a_parameter_of_the_address_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"store\.url is no Redis address"):
        open_store("rediss://host:6380/0?ssl_ca_cert=/ca.pem", tmp_path).__enter__()
