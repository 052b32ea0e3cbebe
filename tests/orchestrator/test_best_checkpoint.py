"""The checkpoint that evaluations between steps found best, whatever ends the driver meanwhile."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_samples import evaluation
from small_run import PHASE, STEPS, Driver, dies, open_journal

from orchestrator import evaluating
from orchestrator.benchmarks import JUDGMENTS_FILE, make_folder
from orchestrator.checkpoints import find_damage
from orchestrator.config import EvaluateSettings
from orchestrator.config_loading import load_config
from orchestrator.journal import RunJournal
from orchestrator.journal_records import Best
from orchestrator.resume import evaluated
from orchestrator.rundir import RunDirectory

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
SCORES = [0.5, 0.7, 0.6, 0.8, 0.75, 0.8, 0.4]  # after each step


class Measured(Driver):
    """Its weights are evaluated after every step."""

    async def between_steps(self, run, step):
        run.config.checkpoint.best_by = "accuracy"
        made = [(each.made_in, each.step) for each in evaluated(self.journal)]
        if step and (PHASE, step) not in made:
            score = evaluation("distill", step, SCORES[step - 1], made_in=PHASE)
            await evaluating._record(run, PHASE, step, score)


@pytest.fixture(autouse=True)
def fast(monkeypatch, server):
    """What a killed process has written is there, synced or not."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    server.config_set("appendfsync", "everysec")


@pytest.fixture
def directory(tmp_path):
    return RunDirectory.open(tmp_path / "runs", "run-1")


def name(step):
    return f"checkpoints/step-{step:06d}"


def check_ended(client, directory):
    journal = open_journal(client)
    best = Best(name(4), 4, "accuracy", 0.8)
    assert journal.best() == best
    assert [each.step for each in evaluated(journal)] == list(range(1, STEPS + 1))
    # Those that the run may go back to, and the best one, which was the newest at its time.
    assert [each.path for each in journal.checkpoints()] == [name(6), name(7)]
    there = sorted(os.listdir(directory.checkpoints))
    assert [f"checkpoints/{each}" for each in there] == [name(4), name(6), name(7)]
    assert all(find_damage(directory.checkpoints / each) is None for each in there)
    assert len(list(directory.batches.iterdir())) == STEPS - 6  # none for the best one's sake


def test_it_is_kept_beside_the_newest(client, directory):
    driver = Measured(client, directory)
    driver.run()
    check_ended(client, directory)
    found = [line for line in driver.told if "best" in line]
    assert [line.rpartition("-")[2] for line in found] == ["000001", "000002", "000004"]


@pytest.mark.parametrize(
    ("owner", "called", "when", "nth"),
    [
        (RunJournal, "record_checkpoint", "before", 3),  # written, as the best of step 4
        (RunJournal, "record_evaluation", "before", 4),
        (RunJournal, "record_evaluation", "after", 4),  # the one before is still there
        (RunJournal, "forget_checkpoint", "before", 3),
        (RunDirectory, "hide_checkpoint", "after", 2),
    ],
)
def test_it_is_found_wherever_the_driver_died(client, directory, owner, called, when, nth):
    assert dies(lambda: Measured(client, directory).run(), owner, called, when, nth)
    Measured(client, directory).run()
    check_ended(client, directory)


def test_what_is_no_longer_the_best_is_gone(client, directory):
    Measured(client, directory).run(3)
    assert sorted(os.listdir(directory.checkpoints)) == ["step-000001", "step-000002"]
    Measured(client, directory).run(4)
    assert sorted(os.listdir(directory.checkpoints)) == ["step-000002", "step-000004"]


def test_steps_that_are_taken_back_take_their_evaluations_along(client, directory):
    Measured(client, directory).run(5)
    journal = open_journal(client)
    commit = journal.commits(PHASE)[4]
    batch = directory.batches / f"{commit.batch_hash}.safetensors"
    batch.write_bytes(b"spoilt")
    driver = Measured(client, directory)
    assert driver.position.step == 4
    assert [each.step for each in evaluated(journal)] == [1, 2, 3, 4]
    driver.run()
    check_ended(client, directory)


def test_the_best_is_forgotten_with_its_steps(client, directory):
    """Of step 4 nothing is left, and none of the better ones before it."""
    Measured(client, directory).run(4)
    journal = open_journal(client)
    for path in (directory.checkpoints / "step-000004").iterdir():
        if path.is_file():
            path.write_text("spoilt")
    (directory.batches / f"{journal.commits(PHASE)[2].batch_hash}.safetensors").unlink()
    driver = Measured(client, directory)
    assert driver.position.step == 2
    assert journal.best() is None
    driver.run()
    best = journal.best()
    assert best is not None
    assert (best.steps, best.score) == (4, 0.8)
    assert (directory.path / best.path).is_dir()


def test_a_checkpoint_that_is_written_again_stays_the_best(client, directory):
    """The last of a phase, damaged while a later phase goes on."""
    Measured(client, directory).run()
    journal = open_journal(client)
    last = evaluation("distill", STEPS, 0.9, made_in=PHASE + 1)
    best = Best(name(STEPS), STEPS, "accuracy", 0.9)
    journal.record_evaluation(last, best)
    (directory.path / name(STEPS) / "model.safetensors").write_text("spoilt")
    driver = Measured(client, directory)
    assert [lost.step for lost in driver.position.rebuilds] == [STEPS]
    driver.run()
    assert journal.best() == best
    assert find_damage(directory.path / name(STEPS)) is None


def test_benchmarks_are_not_mixed_with_those_of_other_settings(tmp_path):
    folder = tmp_path / "2-step-000010"
    make_folder(folder, {"max_new_tokens": 64})
    (folder / JUDGMENTS_FILE).write_text("made\n")
    make_folder(folder, {"max_new_tokens": 64})
    assert (folder / JUDGMENTS_FILE).exists()
    make_folder(folder, {"max_new_tokens": 32})
    assert not (folder / JUDGMENTS_FILE).exists()


async def test_when_weights_are_evaluated(monkeypatch):
    made = []

    async def evaluate(run, index, step, trained, settings):
        made.append((index, step, trained, settings.pairs))

    monkeypatch.setattr(evaluating, "_evaluate", evaluate)
    config = load_config(
        QUICKSTART,
        ["evaluate.every_steps=2", "phases=[distill, {evaluate: {pairs: 3}}, reinforce]"],
    )
    run = SimpleNamespace(config=config, stop=SimpleNamespace(check=lambda: None))
    for step in range(7):
        await evaluating.evaluate_if_due(run, 0, "distill", step, 6)
        await evaluating.evaluate_if_due(run, 2, "reinforce", step, 6)
    # After the last step of distillation the phase that follows does it.
    assert [place[:3] for place in made] == [
        (0, 2, "distill"),
        (2, 2, "reinforce"),
        (0, 4, "distill"),
        (2, 4, "reinforce"),
        (2, 6, "reinforce"),
    ]
    assert all(place[3] == EvaluateSettings().pairs for place in made)
