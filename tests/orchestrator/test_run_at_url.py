"""A run whose directory is a URL: what is there, and a driver that goes on from it on another node.

Another node is an empty cache.
"""

import asyncio
import io
import json
import os
import threading
import time
from pathlib import Path

import pytest
from redis_servers import redis_server
from rich.console import Console
from run_samples import evaluation
from small_run import KEEP, KINDS, PHASE, STEPS, Driver, dies, open_journal

from actors.sealed_folder import MANIFEST
from actors.urls import UrlFolder
from judging.errors import ConfigurationError, DataError, InfrastructureError
from orchestrator import commits
from orchestrator.config_loading import dump_config, load_config
from orchestrator.journal import RunJournal
from orchestrator.lease import Lease
from orchestrator.resume import find_position, run_to_resume
from orchestrator.run_at_url import RunAtUrl
from orchestrator.rundir import RunDirectory
from orchestrator.runs import begun_runs, open_run
from orchestrator.status import show_status
from orchestrator.store import open_store
from orchestrator.summary import Summary

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
STORE = "store.url=redis://gavel@localhost:6379/1"


@pytest.fixture(autouse=True)
def fast(monkeypatch, server):
    """What a killed process has written is there, synced or not."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    server.config_set("appendfsync", "everysec")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GAVEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def runs(tmp_path) -> str:
    return f"file://{tmp_path}/there"


@pytest.fixture
def there(tmp_path) -> Path:
    """What is at the URL of the run."""
    return tmp_path / "there" / "run-1"


@pytest.fixture(scope="module")
def undisturbed(server, tmp_path_factory) -> str:
    server.flushall()
    driver = Driver(server, RunDirectory.open(tmp_path_factory.mktemp("runs"), "run-1"))
    driver.run()
    return driver.learners.weights


def begin(runs: str) -> RunAtUrl:
    run = open_run(runs, "run-1")
    assert isinstance(run, RunAtUrl)
    if not run.is_begun:
        run.write_config("seed: 7\n")
    return run


def on_another_node(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("GAVEL_CACHE", str(tmp_path / f"cache-{time.monotonic_ns()}"))


def name(step: int) -> str:
    return f"checkpoints/step-{step:06d}"


def check_ended(client, there, driver, undisturbed, *, lost_traces=()):
    """All that a finished run should be; traces are copied at checkpoints alone."""
    journal = open_journal(client)
    commits = journal.commits(PHASE)
    assert driver.learners.weights == undisturbed
    assert [commit.step for commit in commits] == list(range(1, STEPS + 1))
    known = [checkpoint.path for checkpoint in journal.checkpoints()]
    assert sorted(known) == sorted(f"checkpoints/{p}" for p in os.listdir(there / "checkpoints"))
    assert len(known) == KEEP
    assert known[-1] == name(STEPS)
    assert all(driver.directory.checkpoint_damage(path) is None for path in known)
    oldest = journal.checkpoints()[0].phase_step
    kept = {f"{commit.batch_hash}.safetensors" for commit in commits[oldest:]}
    assert set(os.listdir(there / "batches")) == kept
    traces = {int(path.stem.removeprefix("step-")) for path in there.glob("traces/*/*")}
    assert set(range(1, STEPS + 1)) - traces <= set(lost_traces)
    assert not list(there.rglob("*.tmp"))


def test_a_run_ends_with_all_of_it_at_the_url(client, runs, there, cache, undisturbed):
    driver = Driver(client, begin(runs))
    driver.run()
    driver.directory.mirror(pytest.fail)
    check_ended(client, there, driver, undisturbed)
    assert (there / "config.yaml").read_text() == "seed: 7\n"
    rows = (there / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, STEPS + 1))
    assert not list(cache.glob("runs/*/run-1/checkpoints/*"))
    assert not list(cache.glob("runs/*/run-1/batches/*"))


# Where the driver dies; then the steps that are committed, and that of the newest checkpoint.
POINTS = {
    "batch there, not committed": (RunJournal, "commit_step", "before", 6, 5, 4),
    "committed": (RunJournal, "commit_step", "after", 6, 6, 4),
    "checkpoint without its manifest": ("put", 6, 4),
    "checkpoint there, not recorded": (RunJournal, "record_checkpoint", "before", 3, 6, 4),
    "checkpoint recorded": (commits, "drop_old", "before", 3, 6, 6),
    "old checkpoint half removed": ("remove", 6, 6),
    "old batches removed": (commits, "drop_old", "after", 3, 6, 6),
    "at the end, not ended": (RunJournal, "end_phase", "before", 2, 7, 7),
}


def die_over_manifest(monkeypatch, method: str, checkpoint: str) -> None:
    """Before the manifest of the checkpoint is put, or after it has been removed from what was
    whole."""
    real = getattr(UrlFolder, method)

    def die(self, name, *content):
        is_it = name == MANIFEST and self.url.endswith(checkpoint)
        is_it = is_it and (method == "put" or MANIFEST in self.find())
        if not is_it or method == "remove":
            real(self, name, *content)
        if is_it:
            os.kill(os.getpid(), 9)

    monkeypatch.setattr(UrlFolder, method, die)


@pytest.mark.parametrize("point", POINTS)
def test_another_node_goes_on_wherever_the_driver_died(
    client, runs, there, undisturbed, point, monkeypatch, tmp_path
):
    *call, committed, newest = POINTS[point]

    def live():
        if len(call) == 1:
            die_over_manifest(monkeypatch, call[0], name(6) if call[0] == "put" else name(2))
        Driver(client, begin(runs)).run()

    never = (UrlFolder, "size_bytes", "before", 10**6)
    assert dies(live, *(call if len(call) > 1 else never)), "it did not come to this point"
    on_another_node(monkeypatch, tmp_path)
    run = begin(runs)
    position = find_position(open_journal(client), KINDS, run)
    assert (position.step, position.checkpoint and position.checkpoint.phase_step) == (
        committed,
        newest,
    )
    assert not position.damaged
    driver = Driver(client, run)
    driver.run()
    run.mirror(pytest.fail)
    check_ended(client, there, driver, undisturbed, lost_traces=range(5, committed + 1))
    steps, _ = run.read_measurements()
    assert sorted(row.step for row in steps) == list(range(1, STEPS + 1))


def test_a_damaged_checkpoint_falls_back_and_lies_aside_at_the_url(
    client, runs, there, undisturbed
):
    Driver(client, begin(runs)).run(6)
    (there / name(6) / "model.safetensors").write_text("w" * 64)  # a digest has as many
    driver = Driver(client, begin(runs))
    assert driver.position.checkpoint.phase_step == 4
    told = "\n".join(driver.told)
    assert "model.safetensors does not have its SHA-256; it is now checkpoints/damaged-" in told
    assert (there / "checkpoints" / "damaged-step-000006" / MANIFEST).exists()
    driver.run()
    assert driver.learners.weights == undisturbed


def test_an_interrupted_upload_is_no_checkpoint_and_one_that_is_cut_off_is_named(runs, there):
    run = begin(runs)
    assert run.checkpoint_damage(name(2)) == f"{MANIFEST} is missing: it was not written to its end"
    with pytest.raises(DataError, match=r"file://.*there/run-1/batches/abc.safetensors is missing"):
        run.read_batch("abc")
    digest = run.write_batch(b"tokens")
    assert run.read_batch(digest) == b"tokens"
    (there / "batches" / f"{digest}.safetensors").write_bytes(b"tok")
    assert "is damaged" in str(run.batch_damage(digest))


def test_what_cannot_be_reached_is_no_damage(client, runs, monkeypatch):
    """Else a network that fails would take committed steps back."""
    Driver(client, begin(runs)).run(6)
    run = begin(runs)

    def refuse(*arguments):
        raise ConnectionError("connection refused")

    monkeypatch.setattr(UrlFolder, "_system", refuse)
    with pytest.raises(InfrastructureError, match="connection refused"):
        find_position(open_journal(client), KINDS, run)
    with pytest.raises(InfrastructureError, match=f"{runs}/run-1.*connection refused"):
        run.write_batch(b"tokens")
    told = []
    run.traces.mkdir(exist_ok=True)
    (run.traces / "new").write_text("text")
    run.mirror(told.append)
    assert "not copied, until the next checkpoint" in told[0]


def test_a_url_that_does_not_answer_has_a_deadline(runs, monkeypatch):
    run, is_over = begin(runs), threading.Event()
    monkeypatch.setattr(RunAtUrl._reached, "__defaults__", (0.1,))
    monkeypatch.setattr(UrlFolder, "put", lambda *arguments: is_over.wait(30))
    with pytest.raises(InfrastructureError, match=r"run-1: writing batch .*: no answer within 0 s"):
        run.write_batch(b"tokens")
    is_over.set()


def test_nothing_else_waits_while_files_are_copied(runs, monkeypatch):
    run, began = begin(runs), threading.Event()
    may_end = threading.Event()
    put = UrlFolder.put

    def slow(self, name, content):
        began.set()
        assert may_end.wait(30), "the event loop stood still"
        put(self, name, content)

    monkeypatch.setattr(UrlFolder, "put", slow)

    async def both():
        writing = asyncio.create_task(run.in_background(run.write_batch, b"tokens"))
        while not began.is_set():
            await asyncio.sleep(0.001)
        may_end.set()
        return await writing

    digest = asyncio.run(both())
    assert run.read_batch(digest) == b"tokens"


def test_only_what_changed_is_copied_and_what_is_removed_goes(runs, there, monkeypatch):
    run, copied = begin(runs), []
    put = UrlFolder.put
    monkeypatch.setattr(
        UrlFolder, "put", lambda self, name, data: (copied.append(name), put(self, name, data))
    )
    for text in ("events.jsonl", "open/a.safetensors", "open/b.safetensors", "journal/lock"):
        (run.path / text).parent.mkdir(exist_ok=True)
        (run.path / text).write_text("text")
    (run.path / ".half.tmp").write_text("half")
    run.mirror(pytest.fail)
    assert sorted(copied) == sorted(
        ["config.yaml", "events.jsonl", "open/a.safetensors", "open/b.safetensors"]
    )
    copied.clear()
    (run.path / "open" / "a.safetensors").unlink()
    run.events.write_text("text and more")
    run.mirror(pytest.fail)
    assert copied == ["events.jsonl"]
    assert os.listdir(there / "open") == ["b.safetensors"]


def test_another_node_has_what_it_needs(runs, monkeypatch, tmp_path):
    run = begin(runs)
    model = run.path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_text("weights")
    assert run.share_model(model) == f"{runs}/run-1/model"
    kept = (
        *("open/a.safetensors", "teacher/0/a.safetensors"),
        *("synthesis/0/summary.json", "synthesis/0/dataset/traces.jsonl"),
    )
    left = ("traces/0-distill/step-000001.jsonl", "synthesis/0/rejected.jsonl")
    for text in (*kept, *left):
        (run.path / text).parent.mkdir(parents=True, exist_ok=True)
        (run.path / text).write_text("{}\n")
    (run.path / "traces/0-distill/step-000002.jsonl").write_text("{}\n")
    run.append_evaluation(evaluation("base", 0, 0.5), 1.0)
    run.mirror(pytest.fail)

    on_another_node(monkeypatch, tmp_path)
    again = begin(runs)
    assert again.path != run.path
    found = {p.relative_to(again.path).as_posix() for p in again.path.rglob("*") if p.is_file()}
    assert found - {"journal/lock"} == {
        "config.yaml",
        "metrics.jsonl",
        "model/config.json",
        "model/model.safetensors",
        *kept,
        "traces/0-distill/step-000002.jsonl",
    }


def test_a_cache_of_a_run_that_is_no_more_is_not_used(runs, there, tmp_path):
    run = begin(runs)
    run.metrics.write_text("{}\n")
    there.rename(tmp_path / "away")
    again = open_run(runs, "run-1")
    assert not again.is_begun
    assert not again.metrics.exists()


def test_a_finished_run_is_not_begun_again(runs):
    run = begin(runs)
    run.write_summary(Summary("run-1", "done", 1, 2.0, (), 3, {}))
    run.mirror(pytest.fail)
    with pytest.raises(ConfigurationError, match=rf"{runs}/run-1 already holds a finished run"):
        open_run(runs, "run-1")


def test_two_drivers_of_one_node_do_not_share_the_folder(runs):
    run = begin(runs)
    with redis_server_for(run), pytest.raises(ConfigurationError, match="another driver"):
        open_run(runs, "run-1")


def redis_server_for(run):
    return open_store(None, run.path)


def test_runs_at_a_url_are_found(runs, there):
    assert begun_runs(runs) == []
    for age_s, run_id in ((20, "b"), (10, "a"), (30, "c")):
        open_run(runs, run_id).write_config("")
        os.utime(there.parent / run_id / "config.yaml", (1e9 - age_s, 1e9 - age_s))
    (there.parent / "no-run").mkdir()
    assert begun_runs(runs) == ["c", "b", "a"]
    config = load_config(QUICKSTART, [f"run.dir={runs}", STORE])
    assert run_to_resume(config, "") == "a"
    assert run_to_resume(config, "b") == "b"
    with pytest.raises(ConfigurationError, match="holds no run none"):
        run_to_resume(config, "none")


def shown(run: str | None, runs: str) -> dict:
    out = io.StringIO()
    assert show_status(run, runs, True, console=Console(file=out, width=60)) == 0
    return json.loads(out.getvalue())


def test_status_is_read_at_the_url_from_any_node(runs, free_port, monkeypatch, tmp_path):
    store_url = f"redis://127.0.0.1:{free_port}/3"
    text = dump_config(load_config(QUICKSTART, [f"run.dir={runs}", f"store.url={store_url}"]))
    with redis_server(port=free_port):
        run = open_run(runs, "run-1")
        with open_store(store_url, run.path) as store:
            run.write_config(text)
            RunJournal(store.client, "run-1").begin_run(text, {}, 7)
            on_another_node(monkeypatch, tmp_path)
            with Lease(store.client, "run-1").hold(wait_s=0.0, say=print):
                for asked in (("run-1", runs), (None, runs), (f"{runs}/run-1", "runs")):
                    status = shown(*asked)
                    assert (status["status"], status["source"]) == ("running", "journal")
            assert shown("run-1", runs)["status"] == "interrupted"
    (Path(run.url.removeprefix("file://")) / name(4)).mkdir(parents=True)
    status = shown("run-1", runs)
    assert (status["status"], status["source"]) == ("unreachable", "directory")
    assert status["checkpoints"] == [name(4)]
    with pytest.raises(ConfigurationError, match=r"holds no run 'none'; the runs there: run-1"):
        shown("none", runs)
