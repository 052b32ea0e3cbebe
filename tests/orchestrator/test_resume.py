"""Where a run goes on, by a journal in a real Redis; and what may not change meanwhile."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_samples import evaluation, step_commit

from judging.errors import ConfigurationError, InfrastructureError
from orchestrator.config_loading import config_tree, load_config
from orchestrator.journal import RunJournal
from orchestrator.measurements import StepRow
from orchestrator.resume import (
    Position,
    check_journal_is_there,
    check_unchanged,
    evaluated,
    find_position,
    run_to_resume,
)
from orchestrator.rundir import RunDirectory

KINDS = ["evaluate", "distill", "evaluate", "reinforce", "evaluate"]
WHOLE = SimpleNamespace(  # what is on disk
    checkpoint_damage=lambda path: None,
    batch_damage=lambda digest: None,
    checkpoint_name=lambda step: f"checkpoints/{step}",
)
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
SELF_DISTILLATION = QUICKSTART.with_name("self-distillation.yaml")


@pytest.fixture
def journal(client):
    journal = RunJournal(client, "run-1")
    journal.begin_run("model: tiny\n", {}, 7)
    return journal


def distil(journal, *steps):
    journal.begin_phase(1, "distill", 3)
    for step in steps:
        journal.commit_step(step_commit(step, 1, weight_version=0))


def checkpoint(journal, steps, phase, phase_step):
    journal.record_checkpoint(f"checkpoints/{steps}", steps, phase=phase, phase_step=phase_step)


def end_distillation(journal):
    journal.end_phase(0, 0)
    distil(journal, 1, 2, 3)
    checkpoint(journal, 3, 1, 3)
    journal.end_phase(1, 1)


def test_a_run_that_committed_nothing_begins_at_the_beginning(journal):
    assert find_position(journal, KINDS, WHOLE) == Position()
    assert find_position(journal, KINDS, WHOLE).weights is None


def test_a_run_whose_journal_is_gone_is_not_begun_anew(tmp_path):
    directory = RunDirectory(tmp_path / "run-1")
    directory.path.mkdir()
    check_journal_is_there(directory)  # one that ended before its first step is
    row = StepRow(
        phase="distill", phase_index=0, total_steps=3, step=1, at_s=1.0, metrics={"loss": 1.0}
    )
    directory.append_step(row)
    with pytest.raises(ConfigurationError, match=r"holds 1 committed steps.*store\.url"):
        check_journal_is_there(directory)


def test_the_run_that_is_resumed_is_the_one_that_is_named(tmp_path):
    for number, run_id in enumerate(("t1", "t2")):
        run = RunDirectory(tmp_path / run_id)
        run.path.mkdir()
        run.write_config("")
        os.utime(run.config, (1e9 + number, 1e9 + number))
    config = load_config(QUICKSTART, [f"run.dir={tmp_path}"])
    assert run_to_resume(config, "") == "t2"  # the one begun last
    of_id = load_config(QUICKSTART, [f"run.dir={tmp_path}", "run.id=t1"])
    assert run_to_resume(of_id, "") == "t1"
    assert run_to_resume(of_id, "t2") == "t2"
    absent = load_config(QUICKSTART, [f"run.dir={tmp_path}", "run.id=t3"])
    with pytest.raises(ConfigurationError, match=f"^--resume: {tmp_path} holds no run t3: see"):
        run_to_resume(absent, "")


def test_without_a_checkpoint_all_steps_are_replayed(journal):
    journal.end_phase(0, 0)
    distil(journal, 1, 2)
    position = find_position(journal, KINDS, WHOLE)
    assert (position.phase, position.step, position.weights) == (1, 2, None)
    assert [commit.step for commit in position.replay] == [1, 2]
    assert (position.steps, position.trained, position.weight_version) == (0, "base", 0)


def test_with_one_those_after_it(journal):
    journal.end_phase(0, 0)
    distil(journal, 1, 2, 3)
    checkpoint(journal, 2, 1, 2)
    position = find_position(journal, KINDS, WHOLE)
    assert (position.step, position.weights) == (3, "checkpoints/2")
    assert [commit.step for commit in position.replay] == [3]


def test_a_phase_that_has_ended_is_not_entered_again(journal):
    end_distillation(journal)
    position = find_position(journal, KINDS, WHOLE)
    assert (position.phase, position.step, position.replay) == (2, 0, ())
    assert (position.weights, position.weight_version) == ("checkpoints/3", 1)
    assert (position.steps, position.trained) == (3, "distill")


def test_a_later_phase_has_the_weights_before_it_as_its_reference(journal):
    end_distillation(journal)
    journal.end_phase(2, 1)
    for step in (1, 2, 3):
        journal.commit_step(step_commit(step, 3, kind="reinforce", weight_version=1 + step))
    checkpoint(journal, 5, 3, 2)
    position = find_position(journal, KINDS, WHOLE)
    assert (position.phase, position.step, position.weight_version) == (3, 3, 4)
    assert [commit.step for commit in position.replay] == [3]
    assert position.before is not None
    assert (position.weights, position.before.path) == ("checkpoints/5", "checkpoints/3")


def test_a_run_whose_phases_have_all_ended_is_at_its_end(journal):
    for index in range(len(KINDS)):
        journal.end_phase(index, index)
    assert find_position(journal, KINDS, WHOLE).phase == len(KINDS)


def test_a_journal_with_a_hole_is_refused(journal):
    journal.end_phase(0, 0)
    distil(journal, 1, 3)
    with pytest.raises(InfrastructureError, match="lacks steps of phase 1"):
        find_position(journal, KINDS, WHOLE)


def test_evaluations_stand_once_they_are_written_down(journal):
    base, distilled = evaluation("base", 0, 0.5), evaluation("distill", 3, 0.7, flip_rate=None)
    assert journal.record_evaluation(base)
    assert journal.record_evaluation(distilled)
    assert not journal.record_evaluation(replace(distilled, benchmarks={"rmb": 0.6}))
    assert evaluated(journal) == [base, distilled]


def test_a_run_that_is_resumed_runs_again(journal):
    journal.finish("stopped")
    assert journal.snapshot().status == "stopped"
    journal.resume_run("model: tiny\n", {"ray": "2"})
    assert (journal.snapshot().status, journal.snapshot().finished_at_s) == ("running", None)
    assert journal.finish("done")
    assert journal.snapshot().status == "done"


def test_what_changes_only_where_and_how_fast_may_change():
    then = config_tree(load_config(QUICKSTART))
    now = load_config(
        QUICKSTART,
        [
            *("rollout.workers=1", "learner.ranks=1", "output.samples=0", "deadlines.train_s=9"),
            *("evaluate.every_steps=5", "evaluate.pairs=9", "checkpoint.best_by=accuracy"),
            "distill.validate_every_steps=3",
        ],
    )
    check_unchanged(then, config_tree(now))


def test_what_would_change_the_past_is_refused_with_each_difference():
    then = config_tree(load_config(QUICKSTART))
    changes = ["reinforce.group_size=8", "data.generate.seed=5", "phases=[distill]", "run.id=one"]
    with pytest.raises(ConfigurationError) as refused:
        check_unchanged(then, config_tree(load_config(QUICKSTART, changes)))
    message = str(refused.value)
    assert "reinforce.group_size: 4 -> 8" in message
    assert "data.generate.seed: 0 -> 5" in message
    assert "phases: 'evaluate, distill, evaluate, reinforce, evaluate' -> 'distill'" in message
    assert "phases.1" not in message
    assert "set them back, or choose another run" in message


def test_of_many_differences_some_are_shown_and_the_run_is_named():
    then = config_tree(load_config(QUICKSTART, ["run.id=one"]))
    now = config_tree(load_config(QUICKSTART, ["run.id=one"]))
    now["model"]["make"] = {f"key{number}": 0 for number in range(40)}
    with pytest.raises(ConfigurationError, match="run one was begun with") as refused:
        check_unchanged(then, now)
    shown = [line for line in str(refused.value).splitlines() if line.startswith("  ")]
    changed = len(then["model"]["make"]) + 40
    assert len(shown) == 21
    assert shown[-1] == f"  and {changed - 20} more"


@pytest.mark.parametrize(
    ("before", "after", "is_allowed"),
    [
        ({"a.1": 1}, {"a.1": 1, "b": 2}, True),
        ({"a.1": 1}, {"a.1": 2}, False),
        ({"a.1": 1}, {}, False),
        ({"a.1": 1}, None, False),
        (None, {"a.1": 1}, False),
    ],
)
def test_prices_may_only_be_added_to_others(before, after, is_allowed):
    def tree(prices):
        made = config_tree(load_config(SELF_DISTILLATION, ["run.id=one"]))
        priced = prices and {
            model: {"input_usd_per_million": usd, "output_usd_per_million": usd}
            for model, usd in prices.items()
        }
        made["phases"][4]["synthesize"]["prices"] = made["synthesize"]["prices"] = priced
        return made

    if is_allowed:
        check_unchanged(tree(before), tree(after))
        return
    with pytest.raises(ConfigurationError, match=r"phases\.4\.synthesize\.prices"):
        check_unchanged(tree(before), tree(after))


def test_a_synthesis_may_be_given_other_settings_until_it_has_ended():
    def tree(tokens):
        own = f"{{uses: policy, max_new_tokens: {tokens}}}"
        changes = (f"synthesize.teachers.self={own}", "synthesize.max_requests=7", "run.id=one")
        return config_tree(load_config(SELF_DISTILLATION, changes if tokens > 64 else changes[2:]))

    check_unchanged(tree(64), tree(65))
    check_unchanged(tree(64), tree(65), {3})
    with pytest.raises(ConfigurationError) as refused:
        check_unchanged(tree(64), tree(65), {4})
    message = str(refused.value)
    assert "phases.4.synthesize.teachers.self.max_new_tokens: 64 -> 65" in message
    assert "phases.4.synthesize.max_requests: None -> 7" in message
