"""What the driver computes by itself: batches, mini-batches, metrics and the run's material."""

import random
import time
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from judging.errors import DataError
from judging.presentation import both_orders
from judging.records import (
    FinishReason,
    JudgePrompt,
    Judgment,
    Message,
    PreferencePair,
    Presentation,
    Rollout,
    pair_uid,
)
from judging.traces import parse_trace
from learning.settings import GrpoSettings
from orchestrator import peak_memory
from orchestrator.config_loading import config_from_tree, merge
from orchestrator.material import orders_of, prepare
from orchestrator.metrics import check_metrics
from orchestrator.peak_memory import PeakMemory
from orchestrator.phases import shuffled_batches
from orchestrator.plan import total_steps
from orchestrator.reinforce import mini_batches
from orchestrator.step_metrics import group_metrics, reward_metrics
from orchestrator.trace_record import trace_records
from rewards.groups import Group
from rewards.protocol import RewardResult

ITEMS, SIZE = st.integers(1, 30), st.integers(1, 12)


# ---- steps and batches -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "batch_size", "epochs", "max_steps", "expected"),
    [
        (640, 64, 3.0, None, 30),
        (100, 64, 1.0, None, 1),  # what is over goes to no step
        (100, 64, 2.0, None, 3),  # a batch runs on over the end of an epoch
        (100, 64, 0.1, None, 1),
        (640, 64, 3.0, 7, 7),
        (64, 64, 1.0, 7, 1),
    ],
)
def test_steps_are_the_whole_batches_of_all_epochs(items, batch_size, epochs, max_steps, expected):
    assert total_steps(items, batch_size, epochs, max_steps) == expected


@given(ITEMS, SIZE, st.integers(0, 5))
def test_every_epoch_holds_every_item_once(items, size, seed):
    batches = shuffled_batches(range(items), size, seed)
    epochs = 4
    drawn = [item for _, batch in islice(batches, epochs * items // size + 1) for item in batch]
    for epoch in range(len(drawn) // items):
        assert Counter(drawn[epoch * items : (epoch + 1) * items]) == Counter(range(items))


@given(ITEMS, SIZE, st.integers(0, 5))
def test_batches_are_full_and_the_same_for_the_same_seed(items, size, seed):
    batches = list(islice(shuffled_batches(range(items), size, seed), 20))
    assert all(len(batch) == size for _, batch in batches)
    assert batches == list(islice(shuffled_batches(range(items), size, seed), 20))
    epochs = [epoch for epoch, _ in batches]
    assert epochs == [((number + 1) * size - 1) // items for number in range(20)]


def test_epochs_and_seeds_have_orders_of_their_own():
    first, second = (batch for _, batch in islice(shuffled_batches(range(50), 50, seed=1), 2))
    ((_, other),) = islice(shuffled_batches(range(50), 50, seed=2), 1)
    assert len({tuple(first), tuple(second), tuple(other)}) == 3


# ---- groups, made up ---------------------------------------------------------------------------


def pair(number: int) -> PreferencePair:
    conversation = (Message("user", f"Question {number}"),)
    uid = pair_uid(conversation, "good", "bad")
    return PreferencePair(uid, conversation, "good", "bad")


def judgment(shown: Presentation, sample: int, text: str, finish: FinishReason) -> Judgment:
    tokens = 3 + sample
    rollout = Rollout(
        presentation_uid=shown.uid,
        sample=sample,
        seed=sample,
        token_ids=np.arange(tokens, dtype=np.int32) + 10,
        logprobs=np.full(tokens, -0.5, dtype=np.float32),
        text=text,
        finish_reason=finish,
        weight_version_min=2,
        weight_version_max=2,
    )
    trace = parse_trace(text, truncated=finish is FinishReason.LENGTH)
    return Judgment(shown, rollout, trace)


def group(number: int, scores, letters="", finish=FinishReason.STOP) -> Group:
    """One judgment for each score; None is a failed reward, and "-" a text without a verdict."""
    shown = Presentation(pair(number), "chosen_first")
    letters = letters or "A" * len(scores)
    texts = ["no verdict" if at == "-" else f"<answer>[[{at}]]</answer>" for at in letters]
    judgments = tuple(judgment(shown, n, text, finish) for n, text in enumerate(texts))
    results = tuple(
        RewardResult(str(n), "error", error="lost")
        if score is None
        else RewardResult(str(n), score=score)
        for n, score in enumerate(scores)
    )
    return Group(shown.uid, judgments, results)


def prompts_of(groups) -> dict[str, JudgePrompt]:
    shown = (group.judgments[0].presentation for group in groups)
    return {item.uid: JudgePrompt(item, (), (1, 2, 3)) for item in shown}


def test_mini_batches_hold_each_groups_samples_with_their_advantages():
    groups = [group(0, [1.0, -1.0]), group(1, [1.0, 1.0]), group(2, [-1.0, 1.0])]
    settings = GrpoSettings(prompts_per_step=3, mini_batch_prompts=2, normalize_std=False)
    batches = mini_batches(groups, prompts_of(groups), settings)
    advantages = [[sample.advantage for sample in batch] for batch in batches]
    assert advantages == [[1.0, -1.0, 0.0, 0.0], [-1.0, 1.0]]
    sample, rollout = batches[0][1], groups[0].judgments[1].rollout
    assert sample.prompt_ids.tolist() == [1, 2, 3]
    assert sample.completion_ids.tolist() == rollout.token_ids.tolist()
    assert sample.rollout_logprobs.tolist() == rollout.logprobs.tolist()


def test_a_failed_reward_leaves_its_groups_baseline_and_is_not_trained_on():
    groups = [group(0, [1.0, None, -1.0, 1.0])]
    settings = GrpoSettings(prompts_per_step=1, mini_batch_prompts=1, normalize_std=False)
    (batch,) = mini_batches(groups, prompts_of(groups), settings)
    assert [sample.advantage for sample in batch] == pytest.approx([2 / 3, -4 / 3, 2 / 3])
    assert [len(sample.completion_ids) for sample in batch] == [3, 5, 6]  # the second is not there


def test_advantages_are_normalized_as_the_setting_says():
    groups = [group(0, [1.0, -1.0])]
    (batch,) = mini_batches(groups, prompts_of(groups), GrpoSettings())
    assert [sample.advantage for sample in batch] == pytest.approx([0.5**0.5, -(0.5**0.5)])


def test_group_metrics_never_count_a_failed_reward_as_a_score():
    groups = [
        group(0, [1.0, None, -1.0], "AB-"),
        group(1, [1.0, 1.0, 1.0], "AAA", finish=FinishReason.LENGTH),
    ]
    assert group_metrics(groups) == pytest.approx(
        {
            "reward/failed": 1,
            "reward/mean": 3 / 5,
            "reward/std": (3.2 / 4) ** 0.5,
            "accuracy": 4 / 6,
            "parseable": 5 / 6,
            "truncated": 3 / 6,
            "zero_variance_groups": 1,
            "groups": 2,
            "response_tokens": 4.0,
            "tokens": 24,
            "first_position_rate": 4 / 5,
            "length_bias": 4 / 5,  # "good" is longer than "bad"
        }
    )


def test_bias_metrics_compare_the_two_orders_of_a_pair():
    item = pair(0)
    both = [
        Group(
            shown.uid,
            tuple(
                judgment(shown, sample, f"<answer>[[{letter}]]</answer>", FinishReason.STOP)
                for sample, letter in enumerate(letters)
            ),
            tuple(RewardResult(str(sample), score=1.0) for sample in range(len(letters))),
        )
        for shown, letters in zip(both_orders(item), ("ABA", "BBA"), strict=True)
    ]
    metrics = group_metrics(both)
    assert metrics["flip_rate"] == pytest.approx(2 / 3)  # samples 1 and 2 name one position
    assert metrics["consistent_accuracy"] == pytest.approx(1 / 3)
    assert metrics["tie_rate"] == 0.0  # 4 of 6 votes for the chosen answer
    assert group_metrics(both[:1]).keys().isdisjoint({"flip_rate", "tie_rate"})


def test_reward_metrics_tell_of_each_reward_what_it_said():
    results = [
        RewardResult("0", score=1.0, components={"verdict": 1.0, "verdict/correct": 1.0}),
        RewardResult("1", "timeout", components={"verdict": -1.0}, info={"errors": {"slow": "x"}}),
    ]
    one = group(0, [1.0, 1.0])
    metrics = reward_metrics(
        [Group(one.uid, one.judgments, tuple(results))], {"verdict": 1.0, "slow": 0.5}
    )
    assert metrics == {
        "reward/verdict/weight": 1.0,
        "reward/verdict/failed": 0.0,
        "reward/verdict/skipped": 0.0,
        "reward/verdict/score": 0.0,
        "reward/verdict/correct": 1.0,
        "reward/slow/weight": 0.5,
        "reward/slow/failed": 0.5,
        "reward/slow/skipped": 0.5,
    }
    check_metrics(metrics, "here")


def test_what_cannot_be_known_is_left_out_of_the_metrics():
    metrics = group_metrics([group(0, [None, None], "--")])
    assert metrics["reward/failed"] == 2
    unknown = {"reward/mean", "reward/std", "first_position_rate", "length_bias"}
    assert not unknown & metrics.keys()


def test_every_judgment_leaves_a_trace_record():
    groups = [group(0, [1.0, None]), group(1, [-1.0])]
    records = trace_records(groups)
    assert [(record.status, record.score) for record in records] == [
        ("ok", 1.0),
        ("error", None),
        ("ok", -1.0),
    ]


# ---- material ----------------------------------------------------------------------------------

TREE = {
    "model": {"make": {"layers": 1}, "dtype": "fp32"},
    "data": {
        "generate": {"distill_pairs": 16, "reinforce_pairs": 24, "heldout_pairs": 8},
        "max_prompt_tokens": 128,
    },
    "judge": {"template": "compact"},
    "rollout": {"max_new_tokens": 96},
    "distill": {"batch_size": 8},
    "reinforce": {"prompts_per_step": 8, "mini_batch_prompts": 8},
    "phases": ["distill", "reinforce", "evaluate"],
}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return prepare(config_from_tree(TREE), tmp_path_factory.mktemp("run"))


def test_material_holds_every_generated_pair_in_both_orders(material):
    assert [len(part) for part in (material.distill, material.reinforce, material.heldout)] == [
        16,
        24,
        8,
    ]
    assert material.notes == ()
    for prompts in (*material.reinforce, *material.heldout):
        assert set(prompts.by_order) == {"chosen_first", "rejected_first"}
        for order, prompt in prompts.by_order.items():
            assert prompt.presentation == Presentation(prompts.pair, order)


def test_prompts_and_traces_survive_the_tokenizer(material):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(material.model_path)
    for prompts in material.heldout:
        for prompt in prompts.by_order.values():
            text = tokenizer.decode(prompt.token_ids)
            assert all(message.content in text for message in prompt.messages)
            assert text.endswith("<|im_start|>assistant\n")
    for demonstration in material.distill:
        completion = demonstration.sample.completion_ids
        assert completion[-1] == tokenizer.eos_token_id
        trace = parse_trace(tokenizer.decode(completion, skip_special_tokens=True))
        assert trace.verdict.letter in ("A", "B")


def test_demonstrations_agree_with_the_gold_of_their_order(material):
    """A trace is imitated under the order it was written for."""
    from transformers import AutoTokenizer

    from judging.quickstart import QuickstartTask, generate

    tokenizer = AutoTokenizer.from_pretrained(material.model_path)
    task = QuickstartTask(distill_pairs=16, reinforce_pairs=24, heldout_pairs=8)
    pairs = {pair.uid: pair for pair in generate(task).distill}
    for demonstration in material.distill:
        made_from = pairs[demonstration.pair_uid]
        text = tokenizer.decode(demonstration.sample.completion_ids, skip_special_tokens=True)
        gold = Presentation(made_from, made_from.trace_order).gold
        assert parse_trace(text).verdict.letter == gold


def config_with(**sections):
    return config_from_tree(merge(TREE, sections))


def test_overlong_traces_are_left_out_and_counted(material, tmp_path):
    lengths = sorted(item.sample.tokens for item in material.distill)
    limit = lengths[len(lengths) // 2]
    kept = sum(length <= limit for length in lengths)
    assert kept < len(lengths)
    shorter = prepare(config_with(distill={"max_tokens": limit}), tmp_path)
    assert len(shorter.distill) == kept
    (note,) = shorter.notes
    assert note.startswith(f"distillation: {len(lengths) - kept} traces left out")
    assert f"{limit} tokens together (distill.max_tokens)" in note


def test_a_trace_may_be_as_long_as_its_prompt_leaves_room_for(material, tmp_path):
    """Neither what may be generated nor the longest prompt of reinforcement cuts it short."""
    settings = {"distill": {"max_tokens": 224}, "model": {"context_tokens": 224}}
    config = config_with(rollout={"max_new_tokens": 8}, phases=["distill"], **settings)
    longer = prepare(config, tmp_path)
    assert len(longer.distill) == len(material.distill)
    assert all(len(item.sample.completion_ids) > 8 for item in longer.distill)


def test_a_phase_left_without_pairs_is_refused_with_the_reason(tmp_path):
    with pytest.raises(DataError, match=r"phase distill .*distill.max_tokens"):
        prepare(config_with(distill={"max_tokens": 8}), tmp_path)
    with pytest.raises(DataError, match=r"phase reinforce .*data.max_prompt_tokens"):
        prepare(config_with(data={"max_prompt_tokens": 8}), tmp_path)


def test_more_prompts_a_step_than_pairs_is_refused_with_both_numbers(tmp_path):
    config = config_with(reinforce={"prompts_per_step": 32})
    with pytest.raises(DataError, match=r"24 of at least 32 pairs .*prompts_per_step"):
        prepare(config, tmp_path)


def test_the_order_of_a_pair_is_fair_and_changes_with_the_epoch():
    pairs = [pair(number) for number in range(400)]

    def orders(rule, epoch=0):
        return [orders_of(item, 1, epoch, rule) for item in pairs]

    for rule in ("balanced", "random"):
        assert orders(rule) == orders(rule)
        assert 150 < orders(rule).count(("chosen_first",)) < 250
        changed = [a != b for a, b in zip(orders(rule), orders(rule, epoch=1), strict=True)]
        assert all(changed) if rule == "balanced" else 150 < sum(changed) < 250
    assert orders("balanced") == orders("balanced", epoch=2)
    assert set(orders("both")) == {("chosen_first", "rejected_first")}


# ---- memory ------------------------------------------------------------------------------------


def test_peak_memory_sees_what_was_held_and_given_back(monkeypatch):
    monkeypatch.setattr(peak_memory, "INTERVAL_S", 0.02)
    held = 64 * 2**20
    with PeakMemory() as memory:
        before = sampled(memory)
        block = random.Random(0).randbytes(held)
        after = sampled(memory, above=before + held // 2)
        del block
    assert after - before > held // 2
    assert memory.peak_bytes >= after


def sampled(memory: PeakMemory, above: int = 0) -> int:
    deadline = time.monotonic() + 20
    while memory.peak_bytes <= above and time.monotonic() < deadline:
        time.sleep(0.02)
    return memory.peak_bytes
