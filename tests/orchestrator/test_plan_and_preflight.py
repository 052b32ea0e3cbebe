"""The plan's arithmetic and memory, and what is refused before anything starts."""

import json
import socket
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from judging.errors import ConfigurationError, DataError
from orchestrator.config_loading import config_from_tree, merge
from orchestrator.facts import (
    Facts,
    Machine,
    ModelFacts,
    ModelShape,
    Parts,
    gather_facts,
    model_facts,
)
from orchestrator.memory import GIB, learner_memory
from orchestrator.plan import make_plan, plan_tree, render_plan, total_steps
from orchestrator.preflight import (
    check_inputs,
    check_model_folder,
    check_obstacles,
    check_store,
    find_obstacles,
)

CPU = Machine(cpus=2, memory_bytes=16 * GIB, gpus=0, gpu_memory_bytes=None, is_cluster=False)
SHAPE = ModelShape(128, 512, 4, 2, 32, 640)
MODEL = ModelFacts(1_000_000, "made up", SHAPE, None)
PARTS = Parts(distill=640, reinforce=6400, heldout=256)
FACTS = Facts(PARTS, MODEL, CPU)
TREE = {
    "model": {"make": {}, "dtype": "fp32"},
    "data": {"generate": {}, "max_prompt_tokens": 96},
    "rollout": {"max_new_tokens": 64, "workers": 2, "kv_cache_gib": 1},
    "distill": {"batch_size": 64, "epochs": 3},
    "reinforce": {"prompts_per_step": 64, "mini_batch_prompts": 16, "group_size": 8},
    "phases": ["evaluate", "distill", "reinforce"],
}


def config_with(**sections):
    return config_from_tree(merge(TREE, sections))


def test_steps_and_batches_follow_from_pairs_and_settings():
    plan = make_plan(config_with(), FACTS)
    evaluate, distill, reinforce = plan.phases
    assert evaluate.samples_per_step == 512
    assert (distill.steps, distill.updates) == (30, 30)
    assert (reinforce.steps, reinforce.updates, reinforce.samples_per_step) == (100, 400, 512)
    assert reinforce.new_tokens_per_step == 512 * 64
    assert reinforce.trained_tokens_per_step == 512 * 160


def test_steps_are_capped_and_never_none():
    assert total_steps(640, 64, 1.0, None) == 10
    assert total_steps(640, 64, 1.0, 4) == 4
    assert total_steps(100, 64, 2.0, None) == 3
    assert total_steps(10, 64, 1.0, None) == 1


def test_an_evaluation_may_be_limited():
    plan = make_plan(config_with(evaluate={"pairs": 10}), FACTS)
    assert (plan.phases[0].pairs, plan.phases[0].samples_per_step) == (10, 20)


def test_the_plan_tells_what_is_evaluated_between_steps(tmp_path):
    evaluate = {"every_steps": 20, "benchmarks": ["rmb"], "data": str(tmp_path)}
    text = render_plan(make_plan(config_with(evaluate=evaluate), FACTS))
    assert "new tokens; and on rmb\n" in text
    assert text.count("; evaluated every 20 steps, also on rmb\n") == 2


def test_without_the_data_counts_are_unknown_and_the_rest_stands():
    plan = make_plan(config_with(), replace(FACTS, parts=None))
    assert [phase.steps for phase in plan.phases] == [1, None, None]
    assert plan.phases[2].samples_per_step == 512
    assert "unknown" in render_plan(plan)


@pytest.mark.parametrize(
    ("parts", "keys"),
    [
        (Parts(640, 50, 256), ["phases[2].reinforce.prompts_per_step (64)", "50 pairs"]),
        (Parts(0, 6400, 256), ["distill", "data.distill_path"]),
        (Parts(640, 6400, 0), ["data.heldout_fraction", "data.heldout_path"]),
    ],
)
def test_a_phase_without_enough_data_is_refused(parts, keys):
    with pytest.raises(ConfigurationError) as caught:
        make_plan(config_with(), replace(FACTS, parts=parts))
    assert all(key in str(caught.value) for key in keys)


def test_the_plan_is_plain_data_and_text():
    plan = make_plan(config_with(), FACTS)
    assert json.loads(json.dumps(plan_tree(plan)))["phases"][1]["steps"] == 30
    text = render_plan(plan)
    assert "640 pairs -> 30 steps" in text
    assert "2 x rollout worker: 1 CPU" in text


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "stage", "ranks", "bytes_each"),
    [
        ("fp32", 0, 1, 4 + 4 + 8),
        ("bf16", 0, 1, 2 + 2 + 12),
        ("bf16", 1, 4, 2 + 2 + 12 / 4),
        ("bf16", 2, 4, 2 + 2 / 4 + 12 / 4),
        ("bf16", 3, 4, (2 + 2 + 12) / 4),
    ],
)
def test_a_learner_holds_the_bytes_that_its_zero_stage_leaves(dtype, stage, ranks, bytes_each):
    config = config_with(
        model={"dtype": dtype},
        learner={"zero_stage": stage, "ranks": ranks},
        phases=["distill"],
    )
    memory = learner_memory(config, replace(MODEL, shape=None), on_gpu=True)
    assert memory is not None
    assert memory.total == pytest.approx(1_000_000 * bytes_each, abs=10)


def test_a_reference_is_held_only_for_its_kl_term():
    names = {
        kl: dict(learner_memory(config_with(reinforce={"kl_coef": kl}), MODEL, on_gpu=True).parts)
        for kl in (0.0, 1e-3)
    }
    assert "reference" in names[1e-3]
    assert "reference" not in names[0.0]


def test_memory_is_unknown_with_the_number_of_parameters():
    plan = make_plan(config_with(), replace(FACTS, model=ModelFacts(None, "unknown", None, None)))
    assert plan.host_memory_bytes is None
    assert "memory unknown" in render_plan(plan)


@pytest.mark.parametrize(("tie", "parameters"), [(True, 1_067_136), (False, 1_149_056)])
def test_the_parameters_of_a_made_model_are_those_of_its_shape(tie, parameters):
    # The numbers that transformers counts in a Qwen2 model of this shape.
    config = config_with(model={"make": {"tie_word_embeddings": tie}})
    assert model_facts(config).parameters == parameters


# ---- model folders -------------------------------------------------------------------------------


def write_safetensors(path: Path, **shapes: list[int]) -> None:
    header = json.dumps(
        {
            name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
            for name, shape in shapes.items()
        }
    ).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps(
            {
                "hidden_size": 8,
                "intermediate_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "vocab_size": 32,
            }
        )
    )
    write_safetensors(folder / "model.safetensors", a=[2, 3], b=[5])
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    return folder


def at(folder: Path):
    return config_with(model={"make": None, "path": str(folder)})


def test_a_model_folder_is_measured_by_its_headers(model):
    check_model_folder(model)
    facts = model_facts(at(model))
    assert facts.parameters == 11
    assert facts.shape == ModelShape(8, 16, 2, 2, 4, 32)


def test_a_chat_template_may_be_a_file_of_its_own(model):
    (model / "tokenizer_config.json").unlink()
    (model / "chat_template.jinja").write_text("{{ messages }}")
    check_model_folder(model)


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        ("config.json", None, "config.json is missing"),
        ("config.json", "{", "cannot be read"),
        ("config.json", "[]", "no JSON object"),
        ("model.safetensors", None, "no weights"),
        ("tokenizer.json", None, "no tokenizer"),
        ("tokenizer_config.json", "{}", "no chat template"),
        (
            "model.safetensors.index.json",
            '{"weight_map": {"c": "model-2.safetensors"}}',
            "lacks model-2.safetensors",
        ),
    ],
)
def test_a_folder_that_is_no_model_is_refused(model, file, content, part):
    (model / file).unlink(missing_ok=True)
    if content is not None:
        (model / file).write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        check_model_folder(model)
    assert part in str(caught.value)
    assert str(model) in str(caught.value)


def test_a_model_with_too_few_positions_is_refused_unless_they_are_stretched(model):
    config, path = at(model), model / "config.json"
    facts = replace(FACTS, model=model_facts(config))
    values = json.loads(path.read_text())

    def check(**changes):
        path.write_text(json.dumps(values | changes))
        check_inputs(config, facts)

    few = config.context_tokens - 1
    with pytest.raises(ConfigurationError, match=f"^model.path: {model} has {few:,} positions"):
        check(max_position_embeddings=few)
    check(max_position_embeddings=few + 1)
    check(max_position_embeddings=few, rope_scaling={"type": "yarn", "factor": 4.0})
    check(max_position_embeddings=few, rope_parameters={"full": {"rope_type": "linear"}})
    with pytest.raises(ConfigurationError):
        check(max_position_embeddings=few, rope_parameters={"rope_type": "default"})


def test_pickled_weights_are_refused_with_the_mend(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match=r"pytorch_model\.bin, a pickle"):
        check_model_folder(model)


@pytest.mark.parametrize("content", [b"", b"\x05\0\0\0\0\0\0\0{", b"\x02\0\0\0\0\0\0\0[]"])
def test_weights_that_are_cut_off_are_refused(model, content):
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigurationError, match="safetensors"):
        model_facts(at(model))


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", 7_000_000_000),
        ("org/some-1.5B", 1_500_000_000),
        ("org/other", None),
    ],
)
def test_a_model_elsewhere_is_estimated_from_its_name_and_says_so(path, parameters):
    facts = model_facts(config_with(model={"make": None, "path": path}))
    assert facts.parameters == parameters
    assert ("name" in facts.source) == (parameters is not None)


# ---- this machine --------------------------------------------------------------------------------


def obstacles(config, facts):
    return find_obstacles(config, make_plan(config, facts), facts)


def test_too_little_memory_is_an_obstacle_that_names_both_amounts():
    facts = replace(FACTS, machine=replace(CPU, memory_bytes=GIB))
    (found,) = obstacles(config_with(), facts)
    assert "1.0 GiB are free" in found
    assert "rollout.workers" in found


def test_engines_over_several_gpus_need_gpus():
    config = config_with(rollout={"tensor_parallel": 4, "workers": 1})
    (found,) = obstacles(config, FACTS)
    assert "5 GPUs are needed" in found
    with pytest.raises(ConfigurationError, match=r"rollout\.tensor_parallel"):
        check_obstacles(config, make_plan(config, FACTS), FACTS)


def test_the_resources_of_a_cluster_are_not_judged_from_here():
    facts = replace(FACTS, machine=replace(CPU, is_cluster=True))
    assert obstacles(config_with(rollout={"tensor_parallel": 4}), facts) == []


@pytest.mark.parametrize(
    ("rollout", "key"),
    [
        ({"max_batched_tokens": 100, "max_concurrent_sequences": 64}, "rollout.max_batched_tokens"),
        ({"max_concurrent_sequences": 5000}, "rollout.max_concurrent_sequences"),
    ],
)
def test_limits_of_an_engine_on_a_cpu_are_obstacles(rollout, key):
    (found,) = obstacles(config_with(rollout=rollout), FACTS)
    assert key in found


def test_a_kv_cache_without_room_for_one_sequence_is_an_obstacle():
    facts = replace(FACTS, model=replace(MODEL, shape=replace(SHAPE, layers=100_000)))
    machine = replace(CPU, memory_bytes=100_000 * GIB)
    (found,) = obstacles(config_with(), replace(facts, machine=machine))
    assert "rollout.kv_cache_gib (1)" in found


def test_absent_data_is_an_obstacle_and_not_a_wrong_input(tmp_path):
    config = config_with(data={"generate": None, "path": str(tmp_path / "none.jsonl")})
    facts = replace(gather_facts(config), machine=CPU)
    assert facts.parts is None
    (found,) = obstacles(config, facts)
    assert "data.path" in found


def test_benchmarks_are_read_before_anything_starts(tmp_path):
    folder = tmp_path / "rmb"
    config = config_with(evaluate={"benchmarks": ["rmb"], "data": str(folder)})
    check_inputs(config, FACTS)  # of a folder that is on another machine
    (found,) = obstacles(config, FACTS)
    assert f"evaluate.data: {folder} is not on this machine" in found
    folder.mkdir()
    with pytest.raises(DataError, match="holds no files of rmb"):
        check_inputs(config, FACTS)


def test_absent_evaluation_sets_are_an_obstacle_too(tmp_path):
    pairs, absent = write_pairs_file(tmp_path / "pairs.jsonl", 9), str(tmp_path / "benchmarks")
    data = {"generate": None, "path": str(pairs), "overlap_with": [str(tmp_path), absent]}
    config = config_with(data=data, phases=["reinforce"])
    facts = replace(gather_facts(config), machine=CPU)
    (found,) = obstacles(config, facts)
    assert f"data.overlap_with[1]: {absent} is not on this machine" in found


def test_a_folder_that_is_not_there_is_no_hub_id(tmp_path):
    config = config_with(model={"make": None, "path": str(tmp_path / "none")})
    (found,) = obstacles(config, replace(FACTS, model=model_facts(config)))
    assert "model.path" in found
    assert "not a folder" in found


def test_a_run_directory_that_is_a_file_is_an_obstacle(tmp_path):
    (tmp_path / "runs").touch()
    (found,) = obstacles(config_with(run={"dir": str(tmp_path / "runs")}), FACTS)
    assert "run.dir" in found


def test_without_a_compiler_nothing_starts(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    (found,) = obstacles(config_with(), FACTS)
    assert "compiler" in found


def test_a_store_that_does_not_answer_is_refused_within_its_deadline(monkeypatch):
    monkeypatch.setattr("orchestrator.preflight.STORE_TIMEOUT_S", 0.2)
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"redis://:hunter2@127.0.0.1:{reserved.getsockname()[1]}/0"
        with pytest.raises(ConfigurationError) as caught:
            check_store(config_with(store={"url": url}))
    assert "store.url" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_an_unknown_template_is_a_wrong_input():
    with pytest.raises(ConfigurationError, match="compact"):
        check_inputs(config_with(judge={"template": "compcat"}), FACTS)


# ---- pairs ---------------------------------------------------------------------------------------


def write_pairs_file(path: Path, count: int, trace: str | None = None) -> Path:
    rows = [
        {"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"}
        | ({"trace": trace, "trace_order": "chosen_first"} if trace else {})
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_on_this_machine_are_counted_in_their_parts(tmp_path):
    path = write_pairs_file(tmp_path / "pairs.jsonl", 200)
    config = config_with(
        data={"generate": None, "path": str(path), "limit": 100, "distill_fraction": 0},
        phases=["evaluate"],
    )
    parts = gather_facts(config).parts
    assert parts is not None
    assert parts.reinforce + parts.heldout == 100
    assert "100 of 200 rows kept, 100 left out (100 over limit)" in parts.notes[0]


def test_distillation_without_any_trace_is_refused(tmp_path):
    path = write_pairs_file(tmp_path / "pairs.jsonl", 100)
    config = config_with(data={"generate": None, "path": str(path)})
    with pytest.raises(DataError, match=r"data\.distill_path"):
        gather_facts(config)
