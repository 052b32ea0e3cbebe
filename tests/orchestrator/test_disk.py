"""A disk that takes nothing more: one line that says so, and nothing lost that was complete."""

import errno
import os
import resource
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import RayTaskError
from run_samples import step_commit, trace_record

import orchestrator.disk
from actors.learner import Learner
from actors.waiting import within
from judging.errors import InfrastructureError
from orchestrator import cli
from orchestrator.checkpoints import find_damage, new_checkpoint
from orchestrator.driver import end_run
from orchestrator.journal import RunJournal
from orchestrator.measurements import StepRow
from orchestrator.rundir import RunDirectory, Summary
from orchestrator.telemetry import TensorBoard

SUMMARY = Summary("run-1", "failed", 7, 12.5, (), 2**30, {})
MANY = [trace_record(number, text="a long judgment " * 20) for number in range(40)]


@pytest.fixture
def run(tmp_path):
    return RunDirectory.open(tmp_path / "runs", "run-1")


@contextmanager
def small_disk(limit_bytes=4096):
    """No file of this process may grow beyond that; the kernel refuses what is over."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def all_files(run) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def row(step) -> StepRow:
    return StepRow("distill", 0, 9, step, 1.0, {f"metric{n}": 0.5 for n in range(200)})


WRITES = {
    "batch": (lambda run: run.write_batch(bytes(9999)), "batches"),
    "traces": (lambda run: run.write_traces(0, "reinforce", 2, MANY), "traces/0-reinforce"),
    "summary": (lambda run: run.write_summary(SUMMARY), "summary.json"),
    "configuration": (lambda run: run.write_config("seed: 7\n" * 999), "config.yaml"),
}


@pytest.mark.parametrize("what", WRITES)
def test_what_is_not_whole_is_not_left_behind(run, what):
    write, path = WRITES[what]
    run.write_batch(b"complete")
    run.write_traces(0, "reinforce", 1, [trace_record()])
    run.write_summary(SUMMARY)
    run.write_config("seed: 7\n")
    before = all_files(run)
    limit_bytes = 10 if what == "summary" else 4096
    with pytest.raises(InfrastructureError) as refused, small_disk(limit_bytes):
        write(run)
    message = str(refused.value)
    assert message.startswith(f"cannot write {run.path / path}")
    assert (
        "File too large; what is committed is kept: mend this, and go on with --resume" in message
    )
    assert "\n" not in message
    assert all_files(run) == before


def test_a_row_of_metrics_that_was_cut_off_is_left_out(run):
    run.append_step(row(1))
    refused = pytest.raises(InfrastructureError, match=r"write .*metrics\.jsonl: File too large")
    with refused, small_disk(run.metrics.stat().st_size + 100):
        run.append_step(row(2))
    assert [step.step for step in run.read_measurements()[0]] == [1]
    run.keep_measured({(0, 1): row(1), (0, 2): row(2)}, [])
    assert [step.step for step in run.read_measurements()[0]] == [1, 2]


def test_spoilt_rows_are_left_out(run):
    run.append_step(row(1))
    with run.metrics.open("ab") as file:
        file.write(b"\x00\x00\xff{]\n")
    run.append_step(row(3))
    assert [step.step for step in run.read_measurements()[0]] == [1, 3]


@pytest.mark.parametrize("cause", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
async def test_a_checkpoint_that_is_not_taken_leaves_the_one_before(run, cause, monkeypatch):
    async with run.checkpoint(3) as folder:
        (folder / "model.safetensors").write_bytes(b"weights")
    before = all_files(run)

    def refuse(descriptor):
        raise OSError(cause, os.strerror(cause))

    monkeypatch.setattr(orchestrator.disk.os, "fsync", refuse)
    for step in (3, 6):
        with pytest.raises(InfrastructureError) as refused:
            async with run.checkpoint(step) as folder:
                (folder / "model.safetensors").write_bytes(b"weights")
        path = run.checkpoint_path(step)
        assert str(refused.value).startswith(f"cannot write {path}: {os.strerror(cause)}; what is")
    assert all_files(run) == before
    assert os.listdir(run.checkpoints) == ["step-000003"]
    assert find_damage(run.checkpoint_path(3)) is None


async def test_a_checkpoint_folder_that_cannot_be_made_is_named(run):
    run.checkpoints.write_text("a file where the folder should be")
    with pytest.raises(InfrastructureError, match=r"write .*step-000003: Not a directory"):
        async with new_checkpoint(run.checkpoint_path(3)):
            raise AssertionError("there is nothing to fill")


@pytest.mark.parametrize("by", ["python", "safetensors"])
async def test_what_a_learner_cannot_write_arrives_as_one_line(tmp_path, by):
    from safetensors.numpy import save_file

    def save(folder):
        if by == "python":
            (folder / "config.json").write_bytes(bytes(9999))
        else:
            save_file({"weights": np.zeros(9999)}, folder / "model.safetensors")

    learner = Learner(0, 1)
    learner._trainer = SimpleNamespace(save=save)

    async def remote():
        try:
            with small_disk():
                learner.save(tmp_path)
        except InfrastructureError as error:
            raise RayTaskError("save", "Traceback\n...", error).as_instanceof_cause() from None

    with pytest.raises(InfrastructureError) as refused:
        await within(5.0, "writing", remote())
    message = str(refused.value)
    assert message.startswith(f"cannot write checkpoint {tmp_path}: ")
    assert "File too large" in message
    assert "go on with --resume" in message
    assert "\n" not in message


def test_tensorboard_is_refused_in_one_line_and_closes(run):
    board = TensorBoard(run)
    refused = pytest.raises(InfrastructureError, match=r"write .*tfevents.*: File too large")
    with refused, small_disk(100):
        board.add({f"metric{n}": 0.5 for n in range(100)}, 1, 1.0)
    board.close()


def test_an_end_that_cannot_be_written_down_hides_nothing(run, client):
    journal = RunJournal(client, "run-1")
    journal.begin_run("model: tiny\n", {}, 7)
    journal.commit_step(step_commit(1))
    run.summary.mkdir()  # so that it cannot be written, also by root
    failures = end_run(journal, run, SUMMARY)
    assert str(failures[0]).startswith(f"cannot write {run.summary}: Is a directory")
    assert isinstance(failures[1], IsADirectoryError)  # of the report, which reads it
    assert journal.snapshot().status == "failed"
    assert [event["event"] for event in run.read_events()][-1] == "run_finished"


def test_the_command_line_shows_no_traceback_of_the_machine(monkeypatch, capsys):
    def refuse(options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "runs/run-1/journal")

    monkeypatch.setattr("orchestrator.status_cli.run_command", refuse)
    assert cli.main(["status"]) == 1
    assert capsys.readouterr().err == (
        "gavel: [Errno 30] Read-only file system: 'runs/run-1/journal'\n"
    )
