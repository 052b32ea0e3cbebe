import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import ResponseError
from run_samples import evaluation, step_commit

import orchestrator.journal
from judging.errors import ConfigurationError, GavelError, InfrastructureError
from orchestrator.journal import RunJournal


class Clock:
    """Goes on by one second each time it is read."""

    def __init__(self):
        self.now_s = 1000.0

    def __call__(self) -> float:
        self.now_s += 1
        return self.now_s


@pytest.fixture
def journal(client):
    journal = RunJournal(client, "run-1", clock=Clock())
    journal.begin_run("model: tiny\n", {"ray": "2.55.0"}, 7)
    journal.begin_phase(0, "distill", 20)
    return journal


def everything(client) -> dict[str, bytes]:
    return {key: client.dump(key) for key in client.keys()}  # noqa: SIM118


def test_snapshot_follows_the_run(journal):
    assert journal.commit_step(step_commit(1))
    journal.record_checkpoint("checkpoints/step-000001", 1, phase=0, phase_step=1)
    journal.record_evaluation(evaluation("base", 0, 0.5))
    journal.record_evaluation(evaluation("distill", 1, 0.7, flip_rate=None))
    snapshot = journal.snapshot()
    assert snapshot.status == "running"
    assert snapshot.seed == 7
    assert snapshot.config_yaml == "model: tiny\n"
    assert snapshot.versions == {"ray": "2.55.0"}
    assert (snapshot.phase, snapshot.kind, snapshot.total_steps) == (0, "distill", 20)
    assert (snapshot.step, snapshot.weight_version) == (1, 1)
    assert snapshot.committed_at_s == 1001.0
    assert snapshot.metrics == {"loss": 1.0}
    assert [row["phase"] for row in snapshot.evaluations] == ["base", "distill"]
    assert snapshot.evaluations[1]["accuracy_low"] == pytest.approx(0.65)
    assert snapshot.evaluations[1]["flip_rate"] is None
    assert snapshot.checkpoints[0]["path"] == "checkpoints/step-000001"
    assert snapshot.finished_at_s is None

    journal.begin_phase(1, "reinforce", None)
    snapshot = journal.snapshot()
    assert (snapshot.phase, snapshot.step, snapshot.total_steps) == (1, 0, None)

    assert journal.finish("done")
    assert not journal.finish("failed")
    snapshot = journal.snapshot(last_events=2)
    assert snapshot.status == "done"
    assert snapshot.finished_at_s > snapshot.started_at_s
    assert [event["event"] for event in snapshot.events] == ["phase_begun", "run_finished"]


def test_unknown_run_has_no_snapshot(client):
    assert RunJournal(client, "nobody").snapshot() is None


def test_repeated_commit_changes_nothing_and_says_so(journal, client):
    assert journal.commit_step(step_commit(1)) is True
    before = everything(client)
    assert journal.commit_step(step_commit(1)) is False
    assert journal.commit_step(step_commit(1, metrics={"loss": 9.0}, weight_version=9)) is False
    assert everything(client) == before


def test_the_same_step_of_another_phase_is_another_commit(journal):
    assert journal.commit_step(step_commit(1, phase=0))
    assert journal.commit_step(step_commit(1, phase=1))
    assert len(journal.commits(0)) == len(journal.commits(1)) == 1


def test_the_later_commits_come_back_alone(journal):
    for step in range(1, 6):
        journal.commit_step(step_commit(step))
    assert [commit.step for commit in journal.commits(0, after=3)] == [4, 5]
    assert journal.commits(0, after=5) == ()


def test_commits_come_back_as_they_were(journal):
    commits = [
        step_commit(10, batch_hash="sha256:12", metrics={"loss": 0.1, "kl": 1e-5}),
        step_commit(2, consumed=("pair1", "pair1")),
    ]
    for commit in commits:
        journal.commit_step(commit)
    assert journal.commits(0) == tuple(reversed(commits))
    assert journal.consumed(0) == Counter({"pair1": 2, "pair10": 1, "pair11": 1})
    assert journal.consumed(1) == Counter()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 5)), max_size=20))
def test_any_sequence_of_repeats_consumes_each_step_once(client, steps):
    client.flushall()
    journal = RunJournal(client, "run-1")
    journal.begin_run("", {}, 0)
    answers = [journal.commit_step(step_commit(step, phase)) for phase, step in steps]
    assert sum(answers) == len(set(steps))
    for phase in (0, 1):
        once = {step for of_phase, step in steps if of_phase == phase}
        expected = Counter(uid for step in once for uid in step_commit(step).consumed)
        assert journal.consumed(phase) == expected


def test_commit_that_fails_half_way_can_be_repeated(journal, client):
    events = "gavel:{run-1}:events"
    client.rename(events, "aside")
    client.set(events, "no stream")
    with pytest.raises(ResponseError):
        journal.commit_step(step_commit(1))
    assert journal.commits(0) == ()
    client.rename("aside", events)
    assert journal.commit_step(step_commit(1)) is True
    assert journal.snapshot().step == 1


def test_every_key_has_the_runs_hash_tag(journal, client):
    journal.commit_step(step_commit(1))
    journal.record_checkpoint("checkpoints/step-000001", 1, phase=0, phase_step=1)
    journal.record_evaluation(evaluation("base", 0, 0.5))
    keys = client.keys()
    assert len(keys) == 6
    assert all(key.startswith("gavel:{run-1}:") for key in keys)


def test_runs_of_one_server_do_not_mix(journal, client):
    other = RunJournal(client, "run-2")
    other.begin_run("", {}, 1)
    other.commit_step(step_commit(3))
    assert journal.commits(0) == ()
    assert journal.snapshot().seed == 7


def test_run_id_is_used_once_but_a_lost_answer_is_forgiven(journal, client):
    before = everything(client)
    journal.begin_run("model: tiny\n", {"ray": "2.55.0"}, 7)
    with pytest.raises(ConfigurationError, match="already holds a run 'run-1'"):
        RunJournal(client, "run-1").begin_run("", {}, 8)
    assert everything(client) == before


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        ({"loss": float("nan")}, GavelError, "distill step 1: loss is nan"),
        ({"grad_norm": float("inf")}, GavelError, "grad_norm is inf"),
        ({"lost": 1.0}, ValueError, "lost"),
    ],
)
def test_what_is_no_measurement_is_not_committed(journal, client, metrics, error, message):
    before = everything(client)
    with pytest.raises(error, match=message):
        journal.commit_step(step_commit(1, metrics=metrics))
    assert everything(client) == before


def test_export_writes_all_events_in_order(journal, tmp_path, monkeypatch):
    monkeypatch.setattr(orchestrator.journal, "_PAGE", 3)
    for number in range(8):
        journal.event("noticed", number=number, text="naïve \ud83d", nothing=None)
    journal.export(tmp_path / "events.jsonl")
    lines = (tmp_path / "events.jsonl").read_text("utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events] == ["run_begun", "phase_begun"] + ["noticed"] * 8
    assert [event["number"] for event in events[2:]] == list(range(8))
    assert events[2] | {"at_s": 0} == {
        "event": "noticed",
        "at_s": 0,
        "number": 0,
        "text": "naïve \ud83d",
        "nothing": None,
    }
    times = [event["at_s"] for event in events]
    assert times == sorted(times)


def test_stream_of_events_is_trimmed(journal, client, monkeypatch):
    monkeypatch.setattr(orchestrator.journal, "EVENTS_KEPT", 100)
    for number in range(400):
        journal.event("noticed", number=number)
    assert 100 <= client.xlen("gavel:{run-1}:events") <= 250


def test_commit_is_frozen():
    with pytest.raises(AttributeError):
        step_commit(1).step = 2  # pyright: ignore
    assert replace(step_commit(1), step=2).step == 2


def test_what_is_taken_back_goes_at_once_and_once(journal, client):
    for step in (1, 2, 3):
        journal.commit_step(step_commit(step))
    journal.record_checkpoint("checkpoints/step-000003", 3, phase=0, phase_step=3)
    lost = {"commits:0": ["2", "3"], "checkpoints": ["checkpoints/step-000003"]}
    why = {"from_step": 3, "to_step": 1, "why": "a batch is gone"}
    assert journal.take_back("rolled_back", why, lost, {"step": 1, "metrics": {}})
    assert [commit.step for commit in journal.commits(0)] == [1]
    assert journal.checkpoints() == ()
    snapshot = journal.snapshot()
    assert (snapshot.step, snapshot.metrics, snapshot.weight_version) == (1, {}, 3)
    event = snapshot.events[-1]
    assert (event["event"], event["from_step"], event["why"]) == (
        "rolled_back",
        3,
        "a batch is gone",
    )
    before = everything(client)
    assert not journal.take_back("rolled_back", why, lost, {"step": 0})
    assert everything(client) == before
    assert journal.commit_step(step_commit(2))  # trained again


def test_a_driver_that_was_replaced_takes_nothing_back(journal, client):
    journal.commit_step(step_commit(1))
    client.hset("gavel:{run-1}:run", "epoch", 2)
    before = everything(client)
    replaced = RunJournal(client, "run-1", epoch=1)
    with pytest.raises(InfrastructureError, match="another driver has taken over"):
        replaced.take_back("rolled_back", {}, {"commits:0": ["1"]}, {"step": 0})
    assert everything(client) == before
    assert RunJournal(client, "run-1", epoch=2).take_back("gone", {}, {"commits:0": ["1"]}, {})
