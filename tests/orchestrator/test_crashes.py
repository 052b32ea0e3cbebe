"""A driver that dies between "batch complete" and "checkpoint complete", at each point of it.

It is ended by SIGKILL in a child process. The run must then go on, with every step committed once,
to the weights of a run that nothing happened to.
"""

import os
import shutil
from pathlib import Path

import pytest
from small_run import KEEP, KINDS, PHASE, STEPS, Driver, Learners, dies, open_journal

import orchestrator.checkpoints
import orchestrator.disk
from orchestrator import commits, resume
from orchestrator.checkpoints import find_damage
from orchestrator.journal import RunJournal
from orchestrator.resume import find_position
from orchestrator.rundir import RunDirectory

pytestmark = pytest.mark.integration

# Step 6 has the third checkpoint, with which the first one goes, and the batches until the second.
AT_SIX = STEPS - 1
CHECKPOINTS = [2, 4, 6, 7]


@pytest.fixture(autouse=True)
def fast(monkeypatch, server):
    """What a killed process has written is there, synced or not."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    server.config_set("appendfsync", "everysec")


@pytest.fixture
def directory(tmp_path):
    return RunDirectory.open(tmp_path / "runs", "run-1")


@pytest.fixture(scope="module")
def undisturbed(server, tmp_path_factory) -> str:
    server.flushall()
    driver = Driver(server, RunDirectory.open(tmp_path_factory.mktemp("runs"), "run-1"))
    driver.run()
    return driver.learners.weights


def name(step: int) -> str:
    return f"checkpoints/step-{step:06d}"


def batch(journal, directory, step: int) -> Path:
    return directory.batches / f"{journal.commits(PHASE)[step - 1].batch_hash}.safetensors"


def check_ended(client, directory, driver, undisturbed, *, aside=()):
    """All that a finished run should be, in the journal and on disk."""
    journal = open_journal(client)
    commits = journal.commits(PHASE)
    assert driver.learners.weights == undisturbed
    assert [commit.step for commit in commits] == list(range(1, STEPS + 1))
    assert [commit.consumed for commit in commits] == [(f"pair{n}",) for n in range(1, STEPS + 1)]
    steps, _ = directory.read_measurements()
    assert [row.step for row in steps] == list(range(1, STEPS + 1))
    traces = sorted(path.name for path in directory.traces.glob("*/*"))
    assert traces == [f"step-{step:06d}.jsonl" for step in range(1, STEPS + 1)]
    assert PHASE in journal.ended_phases()
    known = [checkpoint.path for checkpoint in journal.checkpoints()]
    assert sorted([*known, *aside]) == sorted(
        f"checkpoints/{p}" for p in os.listdir(directory.checkpoints)
    )
    assert len(known) == KEEP
    assert known[-1] == name(STEPS)
    assert all(find_damage(directory.path / path) is None for path in known)
    oldest = journal.checkpoints()[0].phase_step
    kept = {batch(journal, directory, step).name for step in range(oldest + 1, STEPS + 1)}
    assert set(os.listdir(directory.batches)) == kept
    assert not list(directory.path.rglob("*.tmp"))  # fmt: skip


def half_removed(path, **options):
    """As `shutil.rmtree` does it, up to its first deed."""
    if (Path(path) / "model.safetensors").exists():
        (Path(path) / "model.safetensors").unlink()
        os.kill(os.getpid(), 9)


async def half_saved(self, folder):
    (folder / "model.safetensors").write_text("half")
    if folder.name == f".step-{AT_SIX:06d}.partial":
        os.kill(os.getpid(), 9)
    (folder / "trainer").mkdir()
    (folder / "trainer" / "state.json").write_text('"half"')


# Where the driver dies; then the steps that are committed, and that of the newest checkpoint.
POINTS = {
    "while the batch is written": (orchestrator.disk.os, "fsync", "before", None, 5, 4),
    "batch written, not committed": (RunJournal, "commit_step", "before", AT_SIX, 5, 4),
    "committed, no checkpoint begun": (RunJournal, "commit_step", "after", AT_SIX, 6, 4),
    "checkpoint filled, not sealed": (orchestrator.checkpoints, "seal", "before", 3, 6, 4),
    "checkpoint sealed, without its name": (orchestrator.checkpoints, "seal", "after", 3, 6, 4),
    "checkpoint there, not recorded": (RunJournal, "record_checkpoint", "before", 3, 6, 4),
    "checkpoint recorded": (commits, "drop_old", "before", 3, 6, 6),
    "old checkpoint hidden": (RunJournal, "forget_checkpoint", "before", 1, 6, 6),
    "old checkpoint forgotten": (RunJournal, "forget_checkpoint", "after", 1, 6, 6),
    "old checkpoint removed": (RunDirectory, "drop_batches", "before", 4, 6, 6),
    "old batches removed": (commits, "drop_old", "after", 3, 6, 6),
    "no row of metrics": (RunDirectory, "append_step", "before", AT_SIX, 6, 6),
    "at the end, not recorded": (RunJournal, "record_checkpoint", "before", 4, 7, 6),
    "at the end, not ended": (RunJournal, "end_phase", "before", 2, 7, 7),
}


@pytest.mark.parametrize("point", POINTS)
def test_the_run_goes_on_wherever_its_driver_died(
    client, directory, undisturbed, point, monkeypatch
):
    owner, called, when, nth, committed, newest = POINTS[point]

    def live():
        if nth is None:  # the first file that step 6 writes, half written
            Driver(client, directory).run(5)
            monkeypatch.setattr(owner, called, lambda descriptor: os.kill(os.getpid(), 9))
        Driver(client, directory).run()

    assert dies(live, owner, called, when, nth or 10**6), "it did not come to this point"
    check_recovery(client, directory, undisturbed, committed, newest)  # fmt: skip


def check_recovery(client, directory, undisturbed, committed, newest):
    journal = open_journal(client)
    position = find_position(journal, KINDS, directory)
    assert (position.phase, position.step, position.weights) == (PHASE, committed, name(newest))
    assert not position.damaged
    assert not position.lost
    first = Driver(client, directory)
    left = sorted(directory.path.rglob("*"))
    second = Driver(client, directory)  # one that died as soon as it had begun
    assert first.position == second.position == position
    assert sorted(directory.path.rglob("*")) == left
    second.run()
    assert second.learners.taken == list(range(newest + 1, STEPS + 1))
    check_ended(client, directory, second, undisturbed)


@pytest.mark.parametrize(
    ("owner", "called", "deed", "newest"),
    [
        (Learners, "save", half_saved, 4),
        (shutil, "rmtree", half_removed, 6),
    ],
    ids=["half saved", "half removed"],
)
def test_half_a_checkpoint_is_never_met(
    client, directory, undisturbed, owner, called, deed, newest, monkeypatch
):
    def live():
        monkeypatch.setattr(owner, called, deed)
        Driver(client, directory).run()

    if called == "save":  # the checkpoints before are whole
        Driver(client, directory).run(5)
    assert dies(live, os, "getpgid", "before")
    check_recovery(client, directory, undisturbed, 6, newest)


def test_a_folder_that_the_journal_does_not_know_is_replaced(client, directory, undisturbed):
    """Whatever it holds: it may be of a history that was taken back."""
    Driver(client, directory).run(5)
    driver = Driver(client, directory)
    (directory.path / name(6)).mkdir()
    (directory.path / name(6) / "model.safetensors").write_text("other")
    driver.run()
    check_ended(client, directory, driver, undisturbed)


# ---- damage ------------------------------------------------------------------------------------


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def events(client, kind):
    found = open_journal(client).snapshot(last_events=100).events
    return [event for event in found if event["event"] == kind]


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(client, directory, undisturbed):
    Driver(client, directory).run(6)
    spoil(directory.path / name(6) / "model.safetensors")
    driver = Driver(client, directory)
    assert driver.position.weights == name(4)
    aside = f"checkpoints/damaged-step-{6:06d}"
    assert driver.told == [
        f"checkpoint {name(6)} is not used: model.safetensors does not have its SHA-256; it is "
        f"now {aside}"
    ]
    (event,) = events(client, "checkpoint_damaged")
    assert (event["path"], event["aside"]) == (name(6), aside)
    assert event["what"] == "model.safetensors does not have its SHA-256"
    again = Driver(client, directory)
    assert again.told == []
    assert len(events(client, "checkpoint_damaged")) == 1
    again.run()
    assert again.learners.taken == [5, 6, 7]
    check_ended(client, directory, again, undisturbed, aside=[aside])


def test_a_damaged_batch_takes_the_run_back(client, directory, undisturbed):
    Driver(client, directory).run(7 - 1)
    journal = open_journal(client)
    spoil(directory.path / name(6) / "trainer" / "state.json")
    before = journal.commits(PHASE)
    lost = batch(journal, directory, 6)
    lost.write_bytes(lost.read_bytes()[:20])
    driver = Driver(client, directory)
    assert driver.told[1] == (
        "phase 2 goes back from step 6 to step 5, and step 6 will be trained again: "
        f"{lost} is damaged: its content does not have the SHA-256 of its name"
    )
    assert journal.commits(PHASE) == before[:5]
    snapshot = journal.snapshot()
    assert (snapshot.step, snapshot.weight_version) == (5, before[4].weight_version)
    assert (snapshot.metrics, snapshot.committed_at_s) == (
        before[4].metrics,
        before[4].committed_at_s,
    )
    (event,) = events(client, "rolled_back")
    assert (event["phase"], event["from_step"], event["to_step"]) == (PHASE, 6, 5)
    assert str(lost) in event["why"]
    assert [row.step for row in directory.read_measurements()[0]] == [1, 2, 3, 4, 5]
    assert len(list(directory.traces.glob("*/*"))) == 5
    assert not lost.exists()
    again = Driver(client, directory)
    assert (again.told, again.position.step) == ([], 5)
    again.run()
    assert again.learners.taken == [5, 6, 7]
    check_ended(client, directory, again, undisturbed, aside=["checkpoints/damaged-step-000006"])


def test_a_batch_that_no_replay_needs_may_be_gone(client, directory, undisturbed):
    Driver(client, directory).run(6)
    journal = open_journal(client)
    batch(journal, directory, 5).unlink()
    driver = Driver(client, directory)
    assert (driver.told, driver.position.step) == ([], 6)
    driver.run()
    assert driver.learners.weights == undisturbed


def test_without_any_checkpoint_the_run_goes_back_to_its_beginning(client, directory, undisturbed):
    Driver(client, directory).run(1)
    batch(open_journal(client), directory, 1).unlink()
    driver = Driver(client, directory)
    assert (driver.position.step, driver.position.weights) == (0, None)
    snapshot = open_journal(client).snapshot()
    assert (snapshot.step, snapshot.metrics, snapshot.committed_at_s) == (0, {}, None)
    driver.run()
    check_ended(client, directory, driver, undisturbed)


SETTLING = {
    "checkpoint set aside": (RunDirectory, "set_aside", "after"),
    "checkpoint forgotten": (RunJournal, "take_back", "after"),
    "rolled back": (resume, "tell_what_stands", "before"),
    "files tell of it": (RunDirectory, "clean", "before"),
    "half cleaned": (RunDirectory, "drop_batches", "before"),
}


@pytest.mark.parametrize("point", SETTLING)
def test_settling_is_taken_up_where_a_driver_died(client, directory, undisturbed, point):
    Driver(client, directory).run(6)
    spoil(directory.path / name(6) / "model.safetensors")
    batch(open_journal(client), directory, 6).unlink()
    assert dies(lambda: Driver(client, directory), *SETTLING[point])
    driver = Driver(client, directory)
    assert (driver.position.step, driver.position.weights) == (5, name(4))
    assert len(events(client, "rolled_back")) == 1
    assert len(events(client, "checkpoint_damaged")) == 1
    driver.run()
    check_ended(client, directory, driver, undisturbed, aside=["checkpoints/damaged-step-000006"])


# ---- the checkpoint that an ended phase left ----------------------------------------------------


@pytest.mark.parametrize("point", [None, "before", "after"])
def test_the_last_checkpoint_of_an_ended_phase_is_written_again(
    client, directory, undisturbed, point
):
    Driver(client, directory).run()
    weights = directory.path / name(7) / "model.safetensors"
    spoil(weights)
    if point:  # and the driver dies over it
        live = lambda: Driver(client, directory).run()  # noqa: E731
        assert dies(live, RunJournal, "record_checkpoint", point)
    driver = Driver(client, directory)
    assert (driver.position.phase, driver.position.weights) == (PHASE + 1, name(7))
    assert len(driver.position.rebuilds) == (0 if point == "after" else 1)
    driver.run()
    assert weights.read_text() == undisturbed
    assert find_damage(weights.parent) is None
    assert len(open_journal(client).commits(PHASE)) == STEPS
    assert Driver(client, directory).told == []
