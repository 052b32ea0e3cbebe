"""What a judge is asked with, and when judgments are of the same kind."""

import argparse
import json
from pathlib import Path

import pytest

from judging.errors import ConfigurationError
from orchestrator.eval_cli import with_verb
from orchestrator.eval_config import (
    EvalSettings,
    check_identity,
    folder_of,
    identity_of,
    judge_config,
)
from orchestrator.serve_cli import model_arguments, model_settings
from orchestrator.trained_by import run_sections_of

RUN = """
model: {path: some/base, dtype: fp32}
judge: {template: compact}
rollout: {max_new_tokens: 40, workers: 3}
learner: {ranks: 2}
data: {path: pairs.jsonl, max_prompt_tokens: 96}
phases: [reinforce]
"""


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """Of a run; a model of 200 positions."""
    folder = tmp_path / "first" / "checkpoints" / "step-000010"
    folder.mkdir(parents=True)
    (tmp_path / "first" / "config.yaml").write_text(RUN)
    shape = {"max_position_embeddings": 200, "model_type": "qwen2"}
    (folder / "config.json").write_text(json.dumps(shape))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def test_a_checkpoint_is_asked_as_its_run_asked_it(checkpoint, tmp_path):
    config = judge_config(str(checkpoint), [], is_here=True)
    assert (config.judge.template, config.model.dtype, config.rollout.workers) == (
        "compact",
        "fp32",
        3,
    )
    assert (config.model.path, config.learner.ranks) == (str(checkpoint), 1)
    assert config.data.max_prompt_tokens == 160  # what 40 new tokens leave of 200
    other = judge_config(str(checkpoint), ["data.max_prompt_tokens=50"], is_here=True)
    assert other.data.max_prompt_tokens == 50
    options = argparse.ArgumentParser(parents=[model_arguments()])
    served = model_settings(options.parse_args([str(checkpoint), "--cpu-threads", "1"]))
    assert (served.template, served.dtype, served.engine.max_new_tokens) == ("compact", "fp32", 40)
    told = [str(checkpoint), "--template", "instruct", "--max-new-tokens", "7"]
    served = model_settings(options.parse_args(told))
    assert (served.template, served.engine.max_new_tokens) == ("instruct", 7)


def test_a_model_of_no_run_has_the_defaults(checkpoint, tmp_path):
    alone = checkpoint.rename(tmp_path / "alone")
    assert run_sections_of(str(alone)) == {} == run_sections_of("s3://bucket/runs/x")
    config = judge_config(str(alone), ["rollout.max_new_tokens=20"], is_here=True)
    assert (config.judge.template, config.data.max_prompt_tokens) == ("instruct", 180)


@pytest.mark.parametrize(
    ("model", "overrides", "told"),
    [
        ("/no/such/model", [], "no such folder"),
        ("{checkpoint}", ["rollout.max_new_tokens=200"], "no room for a prompt in the 200"),
        ("{checkpoint}", ["rollout.max_new_token=2"], "did you mean rollout.max_new_tokens"),
    ],
)
def test_what_cannot_judge_is_refused(checkpoint, tmp_path, model, overrides, told):
    model = model.format(checkpoint=checkpoint)
    with pytest.raises(ConfigurationError, match=told):
        judge_config(model, overrides, is_here=True)
    (checkpoint / "model.safetensors").unlink()
    if model != "/no/such/model":
        with pytest.raises(ConfigurationError, match="no weights"):
            judge_config(str(checkpoint), [], is_here=True)


def test_judgments_are_of_one_kind_by_all_that_they_depend_on(checkpoint, tmp_path):
    def identity(*overrides, **changes):
        config = judge_config(str(checkpoint), overrides, is_here=True)
        made = EvalSettings(**{"benchmarks": ("rmb",), "data": tmp_path} | changes)
        return identity_of(str(checkpoint), config, made)

    first = identity()
    assert identity(votes=5, limit=7, benchmarks=("rm-bench",)) == first
    others = [identity(temperature=1.0), identity(seed=2), identity("rollout.max_new_tokens=30")]
    (checkpoint / "model.safetensors").write_bytes(b"other weights")
    others.append(identity())
    folders = [folder_of(each, tmp_path) for each in (first, *others)]
    assert len(set(folders)) == 5
    assert folders[0].name.startswith("first-checkpoints-step-000010-")

    check_identity(first, tmp_path)  # nothing is there
    (tmp_path / "evaluation.json").write_text(json.dumps({"identity": first}))
    check_identity(first, tmp_path)
    with pytest.raises(ConfigurationError, match=r"temperature: 0\.0 there, 1\.0 now"):
        check_identity(others[0], tmp_path)
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(ConfigurationError, match="choose another --output"):
        check_identity(first, tmp_path)


def test_a_model_is_no_verb():
    assert with_verb(["eval", "m", "--bench", "rmb"]) == ["eval", "model", "m", "--bench", "rmb"]
    for arguments in (["eval"], ["eval", "-h"], ["eval", "compare", "a", "b"], ["run", "x"]):
        assert with_verb(arguments) == arguments
