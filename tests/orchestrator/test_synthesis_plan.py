"""What a synthesis is said to ask and cost, and the models of teachers that are not there."""

import json
from dataclasses import replace

import pytest

from judging.errors import ConfigurationError
from orchestrator.config_loading import config_from_tree
from orchestrator.facts import Facts, Machine, ModelFacts, Parts
from orchestrator.memory import GIB
from orchestrator.plan import make_plan
from orchestrator.preflight import check_inputs, find_obstacles

CPU = Machine(cpus=2, memory_bytes=16 * GIB, gpus=0, gpu_memory_bytes=None, is_cluster=False)
FACTS = Facts(
    Parts(distill=0, reinforce=50, heldout=0, to_ask=200), ModelFacts(None, "none", None, None), CPU
)


def tree_of(teacher, **sections):
    return {
        "data": {"generate": {}},
        "phases": ["synthesize"],
        "synthesize": {"teachers": {"first": teacher}, "passes": [{"teacher": "first"}]},
        **sections,
    }


# ---- models of teachers --------------------------------------------------------------------------


def learning_from(teacher, tmp_path):
    return config_from_tree(
        {
            "model": {"make": {}, "dtype": "fp32"},
            "data": {"generate": {}, "max_prompt_tokens": 96},
            "rollout": {"max_new_tokens": 64},
            "run": {"dir": str(tmp_path / "runs")},
            "distill": {"batch_size": 4, "logits": {"teacher": teacher}},
            "phases": ["distill"],
        }
    )


def asking_engines(model, tmp_path):
    return config_from_tree(
        tree_of({"uses": "engines", "model": model}, run={"dir": str(tmp_path / "runs")})
    )


ENGINES, LOGITS = "synthesize.teachers.first.model", "distill.logits.teacher"


@pytest.mark.parametrize(
    ("make", "key"), [(asking_engines, ENGINES), (learning_from, LOGITS)], ids=["engines", "logits"]
)
def test_a_teacher_whose_model_is_not_there_is_an_obstacle(make, key, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    absent = str(tmp_path / "none")
    facts = replace(FACTS, parts=replace(FACTS.parts, distill=64))
    config = make(absent, tmp_path)
    plan = make_plan(config, facts)
    assert f"{key}: {absent} is not a folder: name a Hugging Face model folder or a hub id" in (
        find_obstacles(config, plan, facts)
    )
    at_hub = make("some/model", tmp_path)  # it may be fetched when it is needed
    assert not any(key in found for found in find_obstacles(at_hub, plan, facts))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert any(
        f"{key}: some/model is neither a folder" in found
        for found in find_obstacles(at_hub, plan, facts)
    )


@pytest.mark.parametrize(
    ("make", "key"), [(asking_engines, ENGINES), (learning_from, LOGITS)], ids=["engines", "logits"]
)
def test_a_teachers_folder_that_is_no_model_is_refused(make, key, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(ConfigurationError, match=rf"^{key}: .*config\.json is missing"):
        check_inputs(make(str(folder), tmp_path), FACTS)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=rf"^{key}: .* holds no weights"):
        check_inputs(make(str(folder), tmp_path), FACTS)


def test_only_a_teacher_that_writes_needs_a_chat_template(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text(json.dumps({}))
    with pytest.raises(ConfigurationError, match=f"^{ENGINES}: .* has no chat template"):
        check_inputs(asking_engines(str(folder), tmp_path), FACTS)
    check_inputs(learning_from(str(folder), tmp_path), FACTS)


def test_policy_is_the_name_of_no_model(tmp_path):
    config = learning_from("policy", tmp_path)
    check_inputs(config, FACTS)
    facts = replace(FACTS, parts=replace(FACTS.parts, distill=64))
    assert not any(
        LOGITS in found for found in find_obstacles(config, make_plan(config, facts), facts)
    )
