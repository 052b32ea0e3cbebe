"""What a synthesis is said to ask and cost, and the models of teachers that are not there."""

import json
from dataclasses import asdict, replace

import pytest

from judging.errors import ConfigurationError
from orchestrator.config_loading import config_from_tree
from orchestrator.facts import Facts, Machine, ModelFacts, Parts
from orchestrator.memory import GIB
from orchestrator.plan import make_plan, render_plan
from orchestrator.preflight import check_inputs, find_obstacles
from orchestrator.synthesis_plan import of_engine_teacher

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


@pytest.mark.parametrize(
    ("make", "key"), [(asking_engines, ENGINES), (learning_from, LOGITS)], ids=["engines", "logits"]
)
def test_a_teacher_with_too_few_positions_is_refused(make, key, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("tokenizer.json", "model.safetensors", "chat_template.jinja"):
        (folder / name).write_text("{}")
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 100}))
    with pytest.raises(ConfigurationError, match=f"^{key}: .* has 100 positions, and a prompt"):
        check_inputs(make(str(folder), tmp_path), FACTS)


def test_a_model_of_its_own_has_room_for_its_own_answers(tmp_path):
    config = asking_engines("some/model", tmp_path)
    (teacher,) = config.synthesize.teachers.values()
    for context, expected in ((None, 4096 + 8192), (9000, 4096 + 8192), (32768, 32768)):
        model = config.model.model_copy(update={"context_tokens": context})
        own = of_engine_teacher(config.model_copy(update={"model": model}), teacher)
        assert own.context_tokens == expected
        assert own.model.path == "some/model"


def test_policy_is_the_name_of_no_model(tmp_path):
    config = learning_from("policy", tmp_path)
    check_inputs(config, FACTS)
    facts = replace(FACTS, parts=replace(FACTS.parts, distill=64))
    assert not any(
        LOGITS in found for found in find_obstacles(config, make_plan(config, facts), facts)
    )


# ---- what is asked at most -----------------------------------------------------------------------

PRICES = {"big": {"input_usd_per_million": 3, "output_usd_per_million": 15}}


def planned(facts=FACTS, **settings):
    """The plan of a synthesis in two passes, the second of which has no price, and its lines."""
    teachers = {
        "first": {"uses": "openai-batch", "model": "big", "max_new_tokens": 1000},
        "second": {"uses": "builtin:quickstart", "max_new_tokens": 10, "max_tries": 3},
    }
    passes = [{"teacher": "first", "samples": 2}, {"teacher": "second"}]
    tree = tree_of({})
    tree["synthesize"] = {"teachers": teachers, "passes": passes, "prices": PRICES, **settings}
    (phase,) = (plan := make_plan(config_from_tree(tree), facts)).phases
    return phase, render_plan(plan)


def test_requests_tokens_and_costs_are_told_by_pass():
    phase, text = planned(order="both", max_requests=50, max_cost_usd=5)
    first, second = phase.synthesis.passes
    assert (first.requests_per_pair, first.requests, first.output_tokens) == (4, 800, 800_000)
    assert first.output_usd == pytest.approx(6.0)  # half of 800,000 x $15 / million, in batches
    assert (second.requests, second.output_tokens, second.output_usd) == (400, 4000, None)
    assert (phase.samples_per_step, phase.new_tokens_per_step) == (1200, 804_000)
    for part in (
        "200 pairs -> at most 1,200 requests (7,600 with all tries)",
        "pass 1: first (big): requests at most 800 (4 to a pair), tries of each at most 8, "
        "output tokens at most 800,000 = $6.00\n",
        "pass 2: second: requests at most 400 (2 to a pair), tries of each at most 3, "
        "output tokens at most 4,000\n",
        "cost: at most $6.00 for output, and that of the prompts, whose tokens are not known",
        "ends earlier at max_requests (50, tries included) or max_cost_usd ($5.00)",
        "200 pairs to distil (0 with a trace), 50 to reinforce",
    ):
        assert part in text


def test_part_and_limit_of_the_pairs_count():
    assert planned(of="reinforce")[0].synthesis.requests == 150
    assert planned(pairs=7)[0].synthesis.requests == 21
    assert "ends earlier" not in planned()[1]
    assert "$" not in planned(prices=None)[1]


def test_where_the_data_is_not_here_the_pairs_are_said_to_be_unknown():
    phase, text = planned(replace(FACTS, parts=None))
    assert (phase.pairs, phase.synthesis.requests, phase.new_tokens_per_step) == (None, None, None)
    assert "how many pairs is not known, since the data is not on this machine" in text
    assert "pass 1: first (big): requests at most 2 to a pair, tries of each at most 8\n" in text
    assert "cost" not in text


def test_the_plan_of_a_synthesis_is_plain_data():
    phase, _ = planned()
    assert json.loads(json.dumps(asdict(phase)))["synthesis"]["passes"][0]["requests"] == 400
