"""`data.overlap`: what a run's pairs are compared with, and what becomes of those that overlap."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from judging.errors import DataError
from judging.readers import write_pairs
from judging.records import Message, PreferencePair, pair_uid
from orchestrator.config_loading import config_from_tree
from orchestrator.facts import gather_facts
from orchestrator.pairs import load_pairs

PAIRS = 40


def words(name: str) -> str:
    return " ".join(f"{name}{place}" for place in range(20))


def make_pair(name: str) -> PreferencePair:
    conversation = (Message("user", words(name)),)
    uid = pair_uid(conversation, "right", "wrong")
    return PreferencePair(uid, conversation, "right", "wrong")


def write(path: Path, *names: str) -> str:
    write_pairs(path, (make_pair(name) for name in names))
    return str(path)


def write_rmb(folder: Path, *names: str) -> str:
    file = folder / "RMB" / "Pairwise_set" / "Harmlessness" / "S1.json"
    file.parent.mkdir(parents=True)
    rows = [
        {
            "pair_uid": name,
            "conversation_input": [{"role": "user", "content": words(name)}],
            "chosen": {"llm_name": "a", "answer": "right"},
            "reject": {"llm_name": "b", "answer": "wrong"},
            "category_path": "Pairwise_set/Harmlessness/S1",
        }
        for name in names
    ]
    file.write_text(json.dumps(rows))
    return str(folder)


@pytest.fixture
def training(tmp_path) -> str:
    return write(tmp_path / "pairs.jsonl", *(f"q{number}x" for number in range(PAIRS)))


def config_with(path: str, phases=("reinforce",), evaluate=None, **data):
    own = {"path": path, "distill_fraction": 0.5, "heldout_fraction": 0}
    tree = {
        "evaluate": evaluate or {},
        "model": {"make": {"max_position_embeddings": 16384}},
        "phases": list(phases),
    }
    tree["reinforce"] = {"prompts_per_step": 1, "mini_batch_prompts": 1}
    return config_from_tree(tree | {"data": own | data})


def training_uids(config) -> set[str]:
    split = load_pairs(config).split
    return {pair.uid for pair in (*split.distill, *split.reinforce)}


def test_what_overlaps_is_counted_named_and_kept(training, tmp_path):
    heldout = write(tmp_path / "heldout.jsonl", "q1x", "other")
    rmb = write_rmb(tmp_path / "benchmarks", "q2x", "q3x", "another")
    config = config_with(training, heldout_path=heldout, overlap_with=[rmb])
    parts = gather_facts(config).parts
    assert parts is not None
    assert parts.reinforce + len(load_pairs(config).split.distill) == PAIRS
    notes = "\n".join(parts.notes)
    assert f"{rmb}: rmb: 3 items" in notes
    assert f"overlap: 3 of {PAIRS} training pairs" in notes
    assert "(held-out 1, rmb 2); they are kept: data.overlap=drop" in notes
    shared = " ".join(words("q2x").split()[:13])
    pair = make_pair("q2x").uid
    item = "Pairwise_set/Harmlessness/S1/q2x"
    assert f'overlap with rmb: pair {pair} and item {item} share "{shared}"' in notes


def test_benchmarks_that_the_run_is_evaluated_on_are_compared(training, tmp_path):
    rmb = write_rmb(tmp_path / "benchmarks", "q2x", "another")
    evaluate = {"every_steps": 5, "benchmarks": ["rmb"], "data": rmb}
    heldout = write(tmp_path / "heldout.jsonl", "other")
    config = config_with(training, evaluate=evaluate, heldout_path=heldout)
    assert "(held-out 0, rmb 1)" in "\n".join(load_pairs(config).notes)
    elsewhere = config_with(training, evaluate=evaluate | {"data": "no/such"}, heldout_path=heldout)
    assert "(held-out)" in "\n".join(load_pairs(elsewhere).notes)


def test_what_overlaps_is_dropped_from_all_parts_but_the_held_out(training, tmp_path):
    heldout = write(tmp_path / "heldout.jsonl", *(f"q{number}x" for number in range(0, PAIRS, 2)))
    config = config_with(training, heldout_path=heldout, overlap="drop")
    expected = {make_pair(f"q{number}x").uid for number in range(1, PAIRS, 2)}
    assert training_uids(config) == expected
    assert len(load_pairs(config).split.heldout) == PAIRS / 2
    assert "they are dropped" in load_pairs(config).notes[-4]


def test_pairs_may_be_the_evaluation_and_held_out_pairs_of_the_run_always_are(training, tmp_path):
    other = write(tmp_path / "evaluation.jsonl", "q7x")
    notes = load_pairs(config_with(training, overlap_with=[other], heldout_fraction=0.2)).notes
    (line,) = (note for note in notes if note.startswith("overlap: "))
    assert "held-out 0, evaluation.jsonl 1" in line


def test_nothing_is_compared_where_that_is_ignored_or_there_is_nothing(training, tmp_path):
    assert len(load_pairs(config_with(training)).notes) == 1
    rmb = write_rmb(tmp_path / "benchmarks", "q2x")
    config = config_with(training, overlap="ignore", overlap_with=[rmb], heldout_fraction=0.5)
    assert len(load_pairs(config).notes) == 1


def test_what_does_not_overlap_is_said_too(training, tmp_path):
    rmb = write_rmb(tmp_path / "benchmarks", "another")
    notes = load_pairs(config_with(training, overlap_with=[rmb])).notes
    assert notes[-1] == f"overlap: none of {PAIRS} training pairs repeats text of evaluation (rmb)"


def test_dropping_all_is_refused(training):
    config = config_with(training, overlap="drop", overlap_with=[training])
    with pytest.raises(DataError, match=r"data\.overlap=drop leaves none of 40.*report"):
        load_pairs(config)


def test_a_folder_without_benchmark_or_pairs_is_refused(training, tmp_path):
    (tmp_path / "empty").mkdir()
    config = config_with(training, overlap_with=[str(tmp_path / "empty")])
    with pytest.raises(DataError, match=r"data\.overlap_with: .*empty holds none of .*rm-bench"):
        load_pairs(config)


def test_a_damaged_benchmark_is_refused_with_its_place(training, tmp_path):
    rmb = Path(write_rmb(tmp_path / "benchmarks", "q2x"))
    file = next(rmb.rglob("S1.json"))
    file.write_text(file.read_text()[:-20])
    with pytest.raises(DataError, match=r"data\.overlap_with: .*S1\.json:1"):
        load_pairs(config_with(training, overlap_with=[str(rmb)]))


def test_a_benchmarks_file_is_refused_with_the_mend(training, tmp_path):
    file = tmp_path / "total_dataset.json"
    row = {"id": 1, "prompt": "p", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]}
    file.write_text(json.dumps([row]))
    with pytest.raises(DataError, match="for a benchmark, name its folder"):
        load_pairs(config_with(training, overlap_with=[str(file)]))


def test_traces_of_pairs_that_are_kept_stay(tmp_path):
    path = tmp_path / "traces.jsonl"
    trace = "<answer>[[A]]</answer>"
    made = [make_pair(f"q{number}x") for number in range(6)]
    write_pairs(path, (replace(pair, trace=trace, trace_order="chosen_first") for pair in made))
    heldout = write(tmp_path / "heldout.jsonl", "q0x")
    own = {"distill_path": str(path), "heldout_path": heldout, "overlap": "drop"}
    other = write(tmp_path / "pairs.jsonl", "q0x", "q9x")
    split = load_pairs(config_with(other, ("distill", "reinforce"), **own)).split
    assert [pair.uid for pair in split.distill] == [pair.uid for pair in made[1:]]
    assert all(pair.trace == trace for pair in split.distill)
    assert [pair.uid for pair in split.reinforce] == [make_pair("q9x").uid]
