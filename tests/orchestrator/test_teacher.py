"""What a teacher said of traces: asked once, kept, and only of a teacher with the same words."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from judging.errors import ConfigurationError
from learning.settings import LogitSettings
from learning.windows import TopTokens, TrainSample
from orchestrator import teacher
from orchestrator.material import Demonstration
from orchestrator.rundir import RunDirectory
from orchestrator.stopping import AskedToStop
from orchestrator.teacher import Lessons, ask_teacher
from orchestrator.vocabulary import check_vocabulary

K, KNOWN = 3, 100
TRACES = [
    Demonstration(
        f"pair{number}",
        TrainSample(np.arange(number % 4 + 1, dtype=np.int32), np.arange(number + 1).astype("i4")),
    )
    for number in range(150)
]


def said_of(sample: TrainSample) -> TopTokens:
    count = len(sample.completion_ids)
    ids = np.arange(count * K, dtype=np.int32).reshape(count, K)
    return TopTokens(ids, -0.5 - ids.astype(np.float32))


class Fleet:
    """A teacher that answers so many questions, before the run is asked to stop."""

    def __init__(self, answers: int = 10_000):
        self.left, self.asked, self.stopped, self.models = answers, [], 0, []

    async def top_tokens(self, uid, sample, k):
        assert k == K
        self.left -= 1
        if self.left < 0:
            raise AskedToStop("asked to")
        self.asked.append(uid)
        return said_of(sample)

    async def stop(self):
        self.stopped += 1

    async def start(self):
        self.stopped -= 1

    def of_model(self, path):
        assert self.stopped == 1
        self.models.append(path)
        return self


def run_with(tmp_path, fleet) -> SimpleNamespace:
    told: list[str] = []

    async def while_waited_for(work):
        return await work

    return SimpleNamespace(
        directory=RunDirectory(tmp_path),
        fleet=fleet,
        config=SimpleNamespace(
            rollout=SimpleNamespace(workers=1, max_concurrent_sequences=1), model=None
        ),
        material=SimpleNamespace(model_path="base"),
        checkpoint=None,
        publisher=SimpleNamespace(version=0),
        stop=SimpleNamespace(while_waited_for=while_waited_for),
        telemetry=SimpleNamespace(say=told.append, vitals=SimpleNamespace(sign=lambda: None)),
        told=told,
    )


@pytest.fixture(autouse=True)
def words(monkeypatch):
    tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 0, "z": KNOWN - 1})
    monkeypatch.setattr(teacher, "load_tokenizer", lambda config, path: tokenizer)


def ask(run, *, done=0, traces=TRACES, name="policy"):
    return asyncio.run(ask_teacher(run, 2, LogitSettings(top_k=K, teacher=name), traces, done=done))


def assert_taught(taught, traces=TRACES):
    for trace in traces:
        sample, said = taught(trace.sample), said_of(trace.sample)
        assert sample.completion_ids is trace.sample.completion_ids
        is_known = said.ids < KNOWN
        assert np.array_equal(sample.teacher.ids, np.where(is_known, said.ids, 0))
        assert np.array_equal(sample.teacher.logprobs == -np.inf, ~is_known)
        assert np.array_equal(sample.teacher.logprobs[is_known], said.logprobs[is_known])


def test_each_trace_is_asked_for_once(tmp_path):
    fleet = Fleet()
    run = run_with(tmp_path, fleet)
    assert_taught(ask(run))
    assert len(fleet.asked) == len(TRACES)
    assert "150 traces" in run.told[0]
    assert_taught(ask(run))
    assert len(fleet.asked) == len(TRACES)


def test_what_was_answered_before_a_stop_is_kept(tmp_path):
    first, second = Fleet(answers=100), Fleet()
    with pytest.raises(AskedToStop):
        ask(run_with(tmp_path, first))
    assert_taught(ask(run_with(tmp_path, second)))
    assert len(second.asked) == len(TRACES) - 64  # whole files


def test_a_spoilt_file_is_asked_for_again(tmp_path):
    ask(run_with(tmp_path, Fleet()))
    spoilt = sorted((tmp_path / "teacher" / "2").glob("*.safetensors"))[0]
    spoilt.write_bytes(spoilt.read_bytes()[:40])
    fleet = Fleet()
    assert_taught(ask(run_with(tmp_path, fleet)))
    assert 0 < len(fleet.asked) <= 64
    assert not Lessons(tmp_path / "teacher" / "2").lacks(TRACES[0].sample)


@pytest.mark.parametrize(
    ("name", "done", "checkpoint", "models"),
    [
        ("policy", 0, "run/step-5", []),  # the engines have these weights
        ("policy", 3, "run/step-5", ["run/step-5"]),
        ("policy", 3, None, ["base"]),
        ("other/model", 0, None, ["other/model"]),
    ],
)
def test_the_engines_are_those_of_the_teacher(tmp_path, name, done, checkpoint, models):
    fleet = Fleet()
    run = run_with(tmp_path, fleet)
    run.checkpoint = checkpoint
    assert_taught(ask(run, name=name, done=done, traces=TRACES[:5]), TRACES[:5])
    assert fleet.models == models
    assert fleet.stopped == 0


WORDS = {"a": 0, "b": 1, "c": 2}


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ({"a": 0, "b": 2, "c": 1}, "'b', id 1, has id 2"),
        ({"a": 0, "b": 1}, "'c', id 2, is unknown"),
    ],
)
def test_a_teacher_with_other_words_is_refused_with_the_first(words, what):
    with pytest.raises(ConfigurationError) as refused:
        check_vocabulary("some/model", WORDS, words)
    assert "distill.logits.teacher (some/model)" in str(refused.value)
    assert what in str(refused.value)
    assert "leave distill.logits out" in str(refused.value)


def test_a_teacher_may_know_more_words():
    check_vocabulary("some/model", WORDS, WORDS | {"d": 3})
