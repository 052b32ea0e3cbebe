import io
import json
import os
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from run_samples import evaluation, step_commit

from judging.errors import ConfigurationError
from orchestrator.journal import RunJournal
from orchestrator.lease import Lease
from orchestrator.measurements import StepRow
from orchestrator.rundir import RunDirectory, Summary
from orchestrator.status import show_status
from orchestrator.store import open_store


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


def begin(runs: Path, run_id: str) -> RunDirectory:
    run = RunDirectory.open(runs, run_id)
    run.write_config("seed: 7\n")
    return run


def status(runs: Path, run: str | None = None) -> dict:
    out = io.StringIO()
    console = Console(file=out, width=60)
    assert show_status(run, runs, True, console=console, wall_clock=lambda: 1010.0) == 0
    return json.loads(out.getvalue())


def printed(runs: Path, run: str | None = None) -> str:
    out = io.StringIO()
    show_status(run, runs, False, console=Console(file=out, width=140), wall_clock=lambda: 1010.0)
    return out.getvalue()


def journalled(store, run: RunDirectory) -> RunJournal:
    journal = RunJournal(store.client, run.run_id, clock=lambda: 1000.0)
    journal.begin_run("seed: 7\n", {"ray": "2.55.0"}, 7)
    journal.begin_phase(0, "distill", 20)
    journal.record_evaluation(evaluation("base", 0, 0.5))
    journal.commit_step(step_commit(3))
    return journal


def redis_processes() -> set[int]:
    return {
        process.pid
        for process in psutil.Process().children(recursive=True)
        if "redis-server" in process.name()
    }


def test_running_run_is_read_from_its_journal(runs):
    run = begin(runs, "run-1")
    with open_store(None, run.path) as store:
        journalled(store, run)
        with Lease(store.client, "run-1").hold(wait_s=0.0, say=print):
            seen = status(runs)
            text = printed(runs, "run-1")
    assert seen["status"] == "running"
    assert seen["source"] == "journal"
    assert (seen["phase"], seen["step"], seen["total_steps"]) == ("distill", 3, 20)
    assert seen["weight_version"] == 3
    assert seen["committed_s_ago"] == 7.0
    assert seen["metrics"] == {"loss": pytest.approx(1 / 3)}
    assert seen["evaluations"][0]["accuracy"] == 0.5
    assert [event["event"] for event in seen["events"]][-1] == "step_committed"
    for shown in ("distill, step 3 of 20", "7 s ago", "loss", "0.500 [0.450, 0.550]", "evaluated"):
        assert shown in text


def test_finished_run_is_read_from_its_directory_without_a_server(runs):
    run = begin(runs, "run-1")
    with open_store(None, run.path) as store:
        journal = journalled(store, run)
        journal.finish("done")
        journal.export(run.events)
    metrics = {"loss": 0.25, "a_metric_of_another_version": 1.0}
    run.append_step(StepRow("distill", 0, 20, 20, 1005.0, metrics))
    run.append_evaluation(evaluation("base", 0, 0.5, flip_rate=None), 1000.0)
    run.checkpoint_path(20).mkdir(parents=True)
    run.write_summary(Summary("run-1", "done", 7, 5.0, (), 0, {}))
    before = sorted(str(path) for path in run.path.rglob("*"))
    seen = status(runs)
    assert (seen["status"], seen["source"]) == ("done", "directory")
    assert (seen["phase"], seen["step"], seen["total_steps"]) == ("distill", 20, 20)
    assert seen["committed_s_ago"] == 5.0
    assert seen["checkpoints"] == ["checkpoints/step-000020"]
    assert seen["events"][-1] == {"event": "run_finished", "at_s": 1000.0, "status": "done"}
    text = printed(runs)
    assert "done (from the directory)" in text
    assert "run_finished" in text
    assert redis_processes() == set()
    assert sorted(str(path) for path in run.path.rglob("*")) == before


def test_run_whose_driver_died_is_interrupted(runs):
    run = begin(runs, "run-1")
    run.append_step(StepRow("reinforce", 1, None, 4, 1000.0, {"loss": 0.1}))
    (run.path / "journal").mkdir()
    (run.path / "journal" / "address").write_text("unix:///tmp/gavel-gone/redis.sock")
    seen = status(runs)
    assert (seen["status"], seen["step"], seen["total_steps"]) == ("interrupted", 4, None)
    assert "reinforce, step 4 of ?" in printed(runs)


def test_store_that_does_not_answer_is_not_taken_for_a_dead_run(runs):
    run = begin(runs, "run-1")
    (run.path / "journal").mkdir()
    (run.path / "journal" / "address").write_text("redis://127.0.0.1:1/0")
    assert status(runs)["status"] == "unreachable"


def test_run_that_has_only_begun(runs):
    begin(runs, "run-1")
    seen = status(runs)
    assert (seen["status"], seen["phase"], seen["step"]) == ("interrupted", None, 0)
    assert "run-1" in printed(runs)


def test_latest_run_is_shown_unless_one_is_named(runs):
    for age_s, run_id in ((10, "new"), (20, "old")):
        os.utime(begin(runs, run_id).config, (1e9 - age_s, 1e9 - age_s))
    assert status(runs)["run_id"] == "new"
    assert status(runs, "old")["run_id"] == "old"
    assert status(runs, str(runs / "old"))["run_id"] == "old"


def test_unknown_run_names_the_runs_there_are(runs):
    with pytest.raises(ConfigurationError, match="holds no run yet"):
        show_status(None, runs, False)
    begin(runs, "run-1")
    begin(runs, "run-2")
    with pytest.raises(ConfigurationError, match=r"no run 'run-3'; the runs there: .*run-1"):
        show_status("run-3", runs, True)
