import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from run_samples import evaluation, trace_record

from judging.errors import ConfigurationError, DataError
from judging.records import (
    FinishReason,
    Judgment,
    Message,
    PreferencePair,
    Presentation,
    Reason,
    Rollout,
    Trace,
    Verdict,
)
from orchestrator.config_loading import load_config
from orchestrator.disk import atomic_writer
from orchestrator.measurements import Evaluation, StepRow
from orchestrator.resume import run_to_resume
from orchestrator.rundir import RunDirectory, Summary, TraceRecord
from orchestrator.runs import begun_runs
from rewards.protocol import RewardResult

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@pytest.fixture
def run(tmp_path):
    return RunDirectory.open(tmp_path / "runs", "run-1")


def summary(*evaluations) -> Summary:
    return Summary("run-1", "done", 7, 12.5, evaluations, 2**30, {"ray": "2.55.0"})


def test_summary_has_exactly_the_promised_fields(run):
    run.write_summary(summary(evaluation("base", 0, 0.5), evaluation("distill", 9, 0.7)))
    written = json.loads(run.summary.read_text())
    assert list(written) == [
        "run_id",
        "status",
        "seed",
        "wall_s",
        "evaluations",
        "peak_rss_bytes",
        "versions",
        "best",
    ]
    assert written["evaluations"][1] == {
        "phase": "distill",
        "step": 9,
        "pairs": 200,
        "accuracy": 0.7,
        "accuracy_first_order": pytest.approx(0.71),
        "flip_rate": 0.2,
        "first_position_rate": 0.52,
        "parseable": 0.98,
        "mean_tokens": 131.2,
        "benchmarks": {},
    }
    assert run.read_summary() == written


def test_finished_run_is_not_written_over(run, tmp_path):
    run.write_config("seed: 7\n")
    run.write_summary(summary())
    with pytest.raises(ConfigurationError, match="a finished run: choose another run id"):
        RunDirectory.open(tmp_path / "runs", "run-1")


@pytest.mark.parametrize("status", [None, "stopped", "failed"])
def test_run_that_did_not_finish_is_opened_again(run, tmp_path, status):
    assert not run.is_begun
    run.write_config("seed: 7\n")
    if status:
        run.write_summary(replace(summary(), status=status))
    again = RunDirectory.open(tmp_path / "runs", "run-1")
    assert again == run
    assert again.is_begun
    assert again.read_config() == {"seed": 7}


def test_which_run_is_to_be_resumed(run, tmp_path):
    config = load_config(QUICKSTART, [f"run.dir={tmp_path / 'runs'}"])
    for run_id in ("", "run-1", "run-2"):
        with pytest.raises(ConfigurationError, match=f"holds no run ?{run_id}: see gavel status"):
            run_to_resume(config, run_id)
    run.write_config("seed: 7\n")
    assert run_to_resume(config, "") == run_to_resume(config, "run-1") == "run-1"
    run.write_summary(summary())
    with pytest.raises(ConfigurationError, match="already holds a finished run"):
        run_to_resume(config, "")


def test_a_batch_is_named_by_its_content_and_a_damaged_one_is_refused(run):
    digest = run.write_batch(b"content")
    assert digest == run.write_batch(b"content") == hashlib.sha256(b"content").hexdigest()
    assert run.read_batch(digest) == b"content"
    other = run.write_batch(b"other")
    run.drop_batches({other})
    with pytest.raises(DataError, match="is missing"):
        run.read_batch(digest)
    (run.batches / f"{other}.safetensors").write_bytes(b"othar")
    with pytest.raises(DataError, match="is damaged"):
        run.read_batch(other)


def test_a_spoilt_summary_is_none_and_a_spoilt_configuration_is_named(run):
    run.summary.write_text('{"status": "do')
    assert run.read_summary() is None
    run.config.write_text("seed: [7")
    with pytest.raises(DataError, match=r"config\.yaml cannot be read: put it back from a copy"):
        run.read_config()


def step_row(step: int) -> StepRow:
    return StepRow("distill", 0, 9, step, 1000.0 + step, {"loss": 1.0 / step})


def test_metrics_tell_of_committed_steps_alone(run):
    for step in (1, 2, 3):
        run.append_step(step_row(step))
    run.append_evaluation(evaluation("distill", 3, 0.7), 1003.5)
    for step in (2, 4):
        run.benchmarks(0, step).mkdir(parents=True)
    with run.metrics.open("a") as file:
        file.write('{"phase": "reinforce", "phase_i')  # a driver died here
    stands = evaluation("distill", 2, 0.6)
    committed = {(0, step): step_row(step) for step in (1, 2, 3)}
    run.keep_measured(committed | {(0, 4): step_row(4)}, [(stands, 1002.5)])
    steps, evaluations = run.read_measurements()
    assert [row.step for row in steps] == [1, 2, 3, 4]
    assert [Evaluation.of_row(row) for row in evaluations] == [stands]
    run.keep_measured(committed, [(stands, 1002.5)])
    assert [row.step for row in run.read_measurements()[0]] == [1, 2, 3]
    assert [path.name for path in run.benchmarks(0, 0).parent.iterdir()] == ["0-step-000002"]


@pytest.mark.parametrize("run_id", ["", "..", "a/b", "/tmp/a", ".hidden", "a{b}", "a b", "a\n"])
def test_run_id_is_a_plain_name(run_id, tmp_path):
    with pytest.raises(ConfigurationError, match="run id"):
        RunDirectory.open(tmp_path, run_id)


def test_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")

    def write_half() -> None:
        with atomic_writer(path) as file:
            file.write("half")
            file.flush()
            assert path.read_text() == "before"
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]
    with atomic_writer(path) as file:
        file.write("after")
    assert path.read_text() == "after"
    assert os.listdir(tmp_path) == ["file"]


def test_measurements_survive_a_row_that_a_crash_cut_off(run):
    row = StepRow("distill", 0, 20, 1, 1000.5, {"loss": 0.5})
    run.append_step(row)
    run.append_evaluation(evaluation("distill", 1, 0.7, length_bias=None), 1001.0)
    with run.metrics.open("a") as file:
        file.write('{"phase": "distill", "phase_in')
    steps, evaluations = run.read_measurements()
    assert steps == [row]
    expected = {"at_s": 1001.0, **evaluation("distill", 1, 0.7, length_bias=None).row()}
    assert evaluations == [expected]
    assert evaluations[0]["length_bias"] is None


def test_traces_keep_any_text(run):
    texts = ["简体中文 🙂", "a lone \ud83d surrogate", "line\nend\r\n\u2028\x00", "<answer>[[A]]"]
    records = [trace_record(number, text) for number, text in enumerate(texts)]
    path = run.write_traces(1, "reinforce", 12, records)
    assert path == run.traces / "1-reinforce" / "step-000012.jsonl"
    assert run.read_traces(path) == records
    assert "简体中文 🙂" in path.read_text("utf-8")


def test_trace_record_tells_a_judgment_apart():
    pair = PreferencePair("uid1", (Message("user", "Q" * 900),), "good", "bad")
    rollout = Rollout(
        presentation_uid="uid1/rejected_first",
        sample=2,
        seed=5,
        token_ids=np.arange(3, dtype=np.int32),
        logprobs=np.zeros(3, dtype=np.float32),
        text="no verdict",
        finish_reason=FinishReason.LENGTH,
        weight_version_min=4,
        weight_version_max=5,
    )
    trace = Trace(Verdict(None, Reason.TRUNCATED))
    judgment = Judgment(Presentation(pair, "rejected_first"), rollout, trace)
    record = TraceRecord.of(judgment, RewardResult("1", status="timeout"))
    assert (record.presentation_uid, record.order) == ("uid1/rejected_first", "rejected_first")
    assert (record.gold, record.verdict, record.reason) == ("B", None, "truncated")
    assert (record.status, record.score) == ("timeout", None)
    assert (record.tokens, record.finish_reason) == (3, "length")
    assert (record.weight_version_min, record.weight_version_max) == (4, 5)
    assert record.question == "Q" * 500


def test_the_run_begun_last_comes_last(tmp_path):
    assert begun_runs(tmp_path / "none") == []
    for age_s, run_id in ((20, "b"), (10, "a"), (30, "c")):
        run = RunDirectory.open(tmp_path, run_id)
        run.write_config("")
        os.utime(run.config, (1e9 - age_s, 1e9 - age_s))
    (tmp_path / "no-run").mkdir()
    assert begun_runs(tmp_path) == ["c", "b", "a"]
