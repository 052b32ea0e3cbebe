"""Configuration: rules between keys, unknown keys, types, phases, files and overrides."""

from datetime import datetime
from pathlib import Path

import pytest

from judging.errors import ConfigurationError
from orchestrator.config_loading import (
    config_from_tree,
    config_tree,
    dump_config,
    known_keys,
    load_config,
    merge,
    new_run_id,
    with_run_id,
)

SMALL = """\
model: {make: {}}
data: {generate: {}, max_prompt_tokens: 96}
rollout: {max_new_tokens: 64}
phases: [evaluate, distill, reinforce]
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def refusal(path, *overrides):
    with pytest.raises(ConfigurationError) as caught:
        load_config(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["model.path=x"], ["model.path", "model.make"]),
        (["model.make=null"], ["model.path", "model.make"]),
        (["model.revision=main"], ["model.revision", "model.make"]),
        (["data.path=x"], ["data.path", "data.generate"]),
        (["data.generate=null"], ["data.path", "data.generate"]),
        (["data.limit=5"], ["data.limit", "data.generate"]),
        (["data.distill_path=x"], ["data.distill_path", "data.generate"]),
        (["data.overlap_with=[x]"], ["data.overlap_with", "data.generate"]),
        (
            ["data.generate=null", "data.path=x", "data.distill_fraction=0.99"],
            ["data.distill_fraction", "data.heldout_fraction"],
        ),
        (
            ["data.generate=null", "data.path=x", "data.distill_fraction=0"],
            ["phases", "data.distill_fraction", "data.distill_path"],
        ),
        (
            ["data.generate=null", "data.path=x", "data.heldout_fraction=0"],
            ["phases", "data.heldout_fraction", "data.heldout_path"],
        ),
        (
            ["model.context_tokens=100"],
            ["model.context_tokens", "data.max_prompt_tokens", "rollout.max_new_tokens"],
        ),
        (
            ["data.max_prompt_tokens=1000"],
            ["model.make.max_position_embeddings", "data.max_prompt_tokens"],
        ),
        (
            ["model.context_tokens=1000"],
            ["model.make.max_position_embeddings", "model.context_tokens"],
        ),
        (
            [
                "synthesize={teachers: {own: {uses: policy, max_new_tokens: 4096}}}",
                "phases=[distill, synthesize: {passes: [{teacher: own}]}]",
                "synthesize.checks.weights=false",
            ],
            [
                "model.make.max_position_embeddings (512)",
                "synthesize.teachers.own.max_new_tokens (4096)",
            ],
        ),
        (
            ["evaluate.max_new_tokens=100", "model.context_tokens=160"],
            ["model.context_tokens", "evaluate.max_new_tokens"],
        ),
        (
            ["learner.micro_batch_tokens=100"],
            ["learner.micro_batch_tokens", "data.max_prompt_tokens", "rollout.max_new_tokens"],
        ),
        (["publication.probe_tokens=160"], ["publication.probe_tokens", "data.max_prompt_tokens"]),
        (
            ["rollout.max_batched_tokens=8"],
            ["rollout.max_batched_tokens", "rollout.max_concurrent_sequences"],
        ),
        (
            ["learner.offload_optimizer=true", "learner.zero_stage=0"],
            ["learner.offload_optimizer", "learner.zero_stage"],
        ),
        (
            ["placement.mode=colocated", "rollout.workers=2", "learner.ranks=1"],
            ["placement.mode", "learner.ranks is 1", "rollout.workers 2"],
        ),
        (
            ["placement.mode=colocated", "learner.ranks=1", "rollout.tensor_parallel=2"],
            ["placement.mode", "rollout.tensor_parallel is 2"],
        ),
        (
            ["placement.learner.resources={GPU: 2}"],
            ["placement.learner.resources", "GPU", "custom resources"],
        ),
        (
            ["distill.max_tokens=200"],
            ["distill.max_tokens (200)", "160 tokens", "model.context_tokens to 200"],
        ),
        (
            ["learner.micro_batch_tokens=170", "model.context_tokens=180"],
            ["learner.micro_batch_tokens (170)", "model.context_tokens (180)", "raise it to 180"],
        ),
        (
            ["learner.micro_batch_tokens=100", "distill.max_tokens=120"],
            ["learner.micro_batch_tokens (100)", "distill.max_tokens (120)", "raise it to 120"],
        ),
        (
            ["phases=[{distill: {validation_fraction: 0.5}}]"],
            ["phases[0].distill.validation_fraction (0.5)", "in the section distill"],
        ),
        (
            ["distill.logits={weight: 0}"],
            ["distill.logits.weight is 0", "leave distill.logits out"],
        ),
        (["learner.ranks=200"], ["distill.batch_size", "learner.ranks"]),
        (
            ["learner.ranks=1000"],
            ["reinforce.mini_batch_prompts", "reinforce.group_size", "learner.ranks"],
        ),
        (
            ["reinforce.prompts_per_step=100"],
            ["reinforce.prompts_per_step", "reinforce.mini_batch_prompts"],
        ),
        (["evaluate.benchmarks=[rmb]"], ["evaluate.benchmarks", "rmb", "evaluate.data"]),
        (
            ["checkpoint.best_by=rmb", "evaluate.benchmarks=[rm-bench]"],
            ["checkpoint.best_by", "rmb", "evaluate.benchmarks (rm-bench)"],
        ),
        (
            ["checkpoint.best_by=accuracy", "phases=[distill]"],
            ["checkpoint.best_by", "evaluate.every_steps"],
        ),
        (
            ["checkpoint.best_by=accuracy", "phases=[evaluate, distill]"],
            ["checkpoint.best_by", "after training"],
        ),
        (
            ["checkpoint.best_by=accuracy", "phases=[distill, evaluate, {evaluate: {pairs: 5}}]"],
            ["evaluate.pairs is None in one evaluation and 5 in another"],
        ),
        (
            ["phases=[distill, {evaluate: {every_steps: 5}}]"],
            ["evaluate.every_steps (5)", "the phases that train"],
        ),
        (
            ["reinforce.old_logprobs=engine"],
            ["reinforce.importance_cap", "reinforce.old_logprobs", "set importance_cap to null"],
        ),
        (
            ["reinforce.ratio=sequence"],
            ["reinforce.importance_cap", "reinforce.ratio", "set importance_cap to null"],
        ),
    ],
)
def test_a_contradiction_names_all_its_keys(small, overrides, keys):
    message = refusal(small, *overrides)
    assert any(all(key in line for key in keys) for line in message.splitlines()), message


def test_the_mend_of_a_batch_that_cannot_be_split_works(small):
    message = refusal(small, "reinforce.prompts_per_step=96", "reinforce.mini_batch_prompts=36")
    assert "mini_batch_prompts 32" in message
    load_config(small, ["reinforce.prompts_per_step=96", "reinforce.mini_batch_prompts=32"])


@pytest.mark.parametrize("key", ["reinforce.old_logprobs=engine", "reinforce.ratio=sequence"])
def test_the_mend_of_a_cap_without_a_meaning_works(small, key):
    load_config(small, [key, "reinforce.importance_cap=null"])


def test_no_phases_are_refused(small):
    assert "phases is empty" in refusal(small, "phases=[]")


@pytest.mark.parametrize(
    ("override", "unknown", "near"),
    [
        ("rollout.wokers=1", "rollout.wokers", "rollout.workers"),
        ("rollot.workers=1", "rollot", "rollout"),
        ("learning_rate=1e-3", "learning_rate", "learning_rate"),
        ("distill.optimizer.lerning_rate=1", "distill.optimizer.lerning_rate", "learning_rate"),
        ("model.make.layrs=2", "model.make.layrs", "model.make.layers"),
        ("data.generate.distil_pairs=2", "distil_pairs", "data.generate.distill_pairs"),
        ("learner.group_size=8", "learner.group_size", "reinforce.group_size"),
    ],
)
def test_an_unknown_key_is_told_with_its_origin_and_the_nearest(small, override, unknown, near):
    message = refusal(small, override)
    assert "unknown key" in message
    assert unknown in message
    assert near in message.partition("did you mean")[2]
    assert override in message


def test_an_unknown_key_in_a_file_is_told_with_its_line(small):
    small.write_text(SMALL + "learner:\n  ranks: 1\n  zero_stag: 1\n")
    assert f"{small}:7: unknown key learner.zero_stag: did you mean learner.zero_stage?" in refusal(
        small
    )


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("learner.ranks=two", ["learner.ranks", '"two"', "a whole number"]),
        ("learner.ranks=true", ["learner.ranks", "true", "a whole number"]),
        ("learner.ranks='2'", ["learner.ranks", '"2"', "a whole number"]),
        ("learner.ranks=0", ["learner.ranks", "0", "greater than 0"]),
        ("distill.epochs=.inf", ["distill.epochs", "a number"]),
        ("model.dtype=fp16", ["model.dtype", "fp16", "'fp32' or 'bf16'"]),
        ("model.revision=123", ["model.revision", "123", "quotes"]),
        ("rollout=", ["rollout", "null"]),
        ("reinforce.optimizer.betas=[0.9]", ["reinforce.optimizer.betas[1]", "missing"]),
        ("reward.uses=builtin:verdict", ["reward.uses", "reward.mix"]),
        ("reward.mix.verdict.uses=builtin:verdit", ["'builtin:verdit'", "did you mean"]),
        ("reward.mix.verdict.uses=verdict", ["'verdict'", "import:package.module:Object"]),
        ("reward.mix.mine={uses: 'import:no_such:f'}", ["reward.mix.mine", "no module 'no_such'"]),
        ("reward.mix.mine={uses: 'https://x.org/'}", ["https://x.org/", "reward.allowed_hosts"]),
        ("reward.mix.verdict.options.x=1", ["builtin:verdict", "options", "'x'"]),
        ("reward.mix.verdict.mode=off", ["reward.mix.verdict.mode", "'train' or 'shadow'"]),
        ("reward.mix.verdict.mode=shadow", ["reward.mix", "mode train"]),
        ("reward.mix.verdict.weight=heavy", ["reward.mix.verdict.weight"]),
        ("reward.mix.verdict.call.call_timeout_s=99", ["call_timeout_s (99)", "timeout_s (60)"]),
        ("reinforce.reward_weights.other=1", ["reward_weights", "other", "reward.mix"]),
        ("reward.min_samples=9", ["reward.min_samples (9)", "reinforce.group_size"]),
        ("checkpoint.best_by=loss", ["checkpoint.best_by", "'consistent_accuracy'"]),
        ("evaluate.benchmarks=[rmbench]", ["evaluate.benchmarks[0]", "'rm-bench'"]),
        ("phases=distill", ["phases", "a list"]),
        ("phases=[distil]", ["phases[0]", "did you mean distill"]),
        ("phases=[{distill: {epochs: two}}]", ["phases[0].distill.epochs", "a number"]),
        ("phases=[{distill: {epoch: 2}}]", ["phases[0].distill.epoch", "distill.epochs"]),
        ("phases=[{distill: {}, evaluate: {}}]", ["phases[0]"]),
    ],
)
def test_a_wrong_value_is_told_with_key_value_and_what_it_must_be(small, override, parts):
    message = refusal(small, override)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("override", ["learner.ranks", "=2", "learner.=2", "Learner.Ranks=2"])
def test_an_override_of_bad_form_is_refused(small, override):
    assert repr(override) in refusal(small, override)


def test_an_override_may_leave_its_quotes_to_yaml_numbers(small):
    config = load_config(small, ["distill.optimizer.learning_rate=1e-3"])
    assert config.distill.optimizer.learning_rate == 1e-3


def test_a_partly_given_section_keeps_the_rest_of_its_defaults(small):
    optimizer = load_config(small, ["distill.optimizer.learning_rate=1e-3"]).distill.optimizer
    assert (optimizer.schedule, optimizer.warmup_ratio, optimizer.betas) == (
        "cosine",
        0.03,
        (0.9, 0.95),
    )


def test_a_phase_overrides_its_section_for_itself_only(small):
    config = load_config(
        small, ["phases=[distill, {distill: {epochs: 2}}]", "distill.batch_size=64"]
    )
    first, second = (phase.settings for phase in config.phases)
    assert first == config.distill
    assert (second.epochs, second.batch_size) == (2.0, 64)


def test_a_contradiction_in_a_phase_names_the_phase(small):
    message = refusal(small, "phases=[distill, {reinforce: {prompts_per_step: 100}}]")
    assert "phases[1].reinforce.prompts_per_step (100)" in message


def test_a_dump_reads_back_as_the_same_configuration(small):
    config = load_config(small, ["phases=[evaluate, {distill: {epochs: 2}}, reinforce]"])
    assert config_from_tree(config_tree(config)) == config
    path = small.with_name("again.yaml")
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_a_password_is_kept_but_never_dumped(small):
    config = load_config(small, ["store.url=redis://user:hunter2@host:6379/0"])
    assert "hunter2" in str(config.store.url)
    assert "hunter2" not in dump_config(config)
    assert "host:6379" in dump_config(config)


def test_a_configuration_cannot_be_changed(small):
    config = load_config(small)
    with pytest.raises(ValueError):
        config.run.seed = 2


def test_every_known_key_can_be_told(small):
    keys = set(known_keys())
    assert {"run.id", "model.make.layers", "data.generate.seed", "distill.optimizer.betas"} <= keys


def test_the_context_is_the_longest_prompt_and_completion(small):
    assert load_config(small).context_tokens == 160
    assert load_config(small, ["evaluate.max_new_tokens=100"]).context_tokens == 196
    assert load_config(small, ["model.context_tokens=500"]).context_tokens == 500


def test_a_run_id_is_made_from_name_and_time(small):
    now = datetime(2026, 1, 2, 3, 4, 5)
    assert new_run_id("my recipe", now) == "my-recipe-20260102-030405"
    assert with_run_id(load_config(small), "mine") == load_config(small, ["run.id=mine"])


# ---- files ---------------------------------------------------------------------------------------


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_extends_merges_key_by_key_and_the_nearest_wins(tmp_path):
    write(
        tmp_path,
        base=SMALL + "learner: {ranks: 2, zero_stage: 1}\n",
        other="learner: {ranks: 3}\nrun: {seed: 7}\n",
        top="extends: [base.yaml, other.yaml]\nlearner: {zero_stage: 3}\nphases: [evaluate]\n",
    )
    config = load_config(tmp_path / "top.yaml", ["run.seed=9"])
    assert (config.learner.ranks, config.learner.zero_stage, config.run.seed) == (3, 3, 9)
    assert [phase.kind for phase in config.phases] == ["evaluate"]


def test_extends_in_a_circle_is_refused(tmp_path):
    write(tmp_path, a="extends: b.yaml", b="extends: a.yaml")
    assert "circle" in refusal(tmp_path / "a.yaml")


def test_extends_of_what_is_not_there_names_both_files(tmp_path):
    write(tmp_path, a="extends: b.yaml")
    message = refusal(tmp_path / "a.yaml")
    assert "a.yaml" in message
    assert "b.yaml" in message


def test_merge_replaces_lists_and_leaves_its_arguments():
    base = {"a": {"b": 1, "c": [1, 2]}}
    assert merge(base, {"a": {"c": [3]}}) == {"a": {"b": 1, "c": [3]}}
    assert base == {"a": {"b": 1, "c": [1, 2]}}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("run:\n  seed: 1\n  seed: 2\n", ":3: run.seed is there twice"),
        ("run: {seed: 1\n", "no YAML"),
        ("- a\n", "holds no keys"),
        ("run: &x {seed: 1}\ndata: *x\n", "anchors"),
        ("1: 2\n", "a key must be a name"),
        ("run: !!python/object/apply:os.system [true]\n", "no YAML"),
        ("extends: 3\n", "extends is 3"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_its_name(tmp_path, text, part):
    write(tmp_path, bad=text)
    message = refusal(tmp_path / "bad.yaml")
    assert "bad.yaml" in message
    assert part.lstrip(":0123456789 ") in message


def test_a_missing_file_is_refused(tmp_path):
    assert "there is no such file" in refusal(tmp_path / "none.yaml")


def test_a_path_counts_from_here_and_else_from_its_file(tmp_path, monkeypatch):
    folder, here = tmp_path / "configs", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    data = "data: {path: pairs.jsonl, overlap_with: [pairs.jsonl, other]}"
    taught = "distill: {logits: {teacher: pairs.jsonl}}"
    write(folder, run=f"model: {{make: {{}}}}\n{data}\n{taught}\nphases: [evaluate]\n")
    monkeypatch.chdir(here)
    limits = ["data.max_prompt_tokens=96", "rollout.max_new_tokens=64"]
    assert load_config(folder / "run.yaml", limits).data.path == "pairs.jsonl"
    (folder / "pairs.jsonl").touch()
    beside = load_config(folder / "run.yaml", limits).data
    assert beside.path == str(folder / "pairs.jsonl")
    teacher = load_config(folder / "run.yaml", limits).distill.logits.teacher
    assert teacher == str(folder / "pairs.jsonl")
    assert beside.overlap_with == (str(folder / "pairs.jsonl"), "other")
    (here / "pairs.jsonl").touch()
    assert load_config(folder / "run.yaml", limits).data.path == "pairs.jsonl"
