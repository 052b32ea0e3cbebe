"""Each benchmark's total, against judges of which it is known and plain derivations of it."""

import random

import benchmark_samples as samples
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.aggregate import BENCHMARKS, aggregate, item_score, read_benchmark
from evaluation.benchmarks import rewardbench, rm_bench
from evaluation.benchmarks.reading import every_comparison
from evaluation.items import Item
from evaluation.metrics import JudgedPair, evaluate_pairs
from judging.errors import DataError
from judging.records import Message

AT_HAND = ("rm-bench", "rmb")  # with real files


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return samples.write_all(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module", params=[*BENCHMARKS, *(f"real {name}" for name in AT_HAND)])
def items(request, made):
    """Of each benchmark: a small one that is made here, and the real one where it is at hand."""
    if request.param in BENCHMARKS:
        return read_benchmark(request.param, made)
    name = request.param.removeprefix("real ")
    return read_benchmark(name, request.getfixturevalue("shared_data") / name)


def same_score(items, score):
    return {comparison.pair.uid: score for item in items for comparison in item.comparisons}


def best_of_n(items):
    return [item for item in items if len(item.comparisons) > 1 and item.benchmark != "rm-bench"]


def item(benchmark, uid, subset, chosen=1, rejected=1):
    return Item(
        benchmark,
        uid,
        subset,
        every_comparison(
            (Message("user", uid),),
            [f"right {index}" for index in range(chosen)],
            [f"wrong {index}" for index in range(rejected)],
            "",
            source=benchmark,
            category=subset,
        ),
    )


def scored(items_and_scores):
    return {
        comparison.pair.uid: score
        for item, scores in items_and_scores
        for comparison, score in zip(item.comparisons, scores, strict=True)
    }


def test_judge_that_knows_the_gold_scores_one(items):
    result = aggregate(items, same_score(items, 1.0))
    assert result.accuracy.value == 1.0
    shares = {**result.sections, **result.groups, **result.subsets}
    if result.benchmark == "rewardbench2":
        assert shares.pop("Ties").value == pytest.approx(1.01)  # the most that its weights allow
        assert result.total == pytest.approx((5 + 1.01) / 6)
    else:
        assert result.total == 1.0
    assert {share.value for share in shares.values()} == {1.0}
    assert {item_score(item, same_score(items, 1.0)) for item in items} == {1.0}


def test_judge_that_always_says_a_scores_one_half(items):
    """Of single comparisons; a best of n is then won by chance, with half to the power of n - 1."""
    scores = same_score(items, 0.5)
    result = aggregate(items, scores)
    assert result.accuracy.value == 0.5
    if result.benchmark in ("rewardbench", "rm-bench", "judgebench"):
        assert result.total == 0.5
        assert {share.value for share in result.sections.values()} == {0.5}
    for item_of_n in best_of_n(items):
        assert item_score(item_of_n, scores) == 0.5 ** len(item_of_n.comparisons)
    if result.benchmark == "rmb":
        assert result.sections["Pairwise Harmlessness"].value == 0.5
        assert 0 < result.sections["BoN Helpfulness"].value < 0.5
    if result.benchmark == "rewardbench2":
        assert result.sections["Math"].value == 0.125
        assert result.sections["Ties"].value == 0.0


def test_coin_is_inside_its_interval(items):
    coin = random.Random(3)
    pairs = {c.pair.uid: c.pair for item in items for c in item.comparisons}
    judged = [
        JudgedPair(uid, coin.choice("AB"), coin.choice("AB"), 1, 1, 1, 1) for uid in sorted(pairs)
    ]
    low, high = evaluate_pairs(judged, seed=0).accuracy_interval
    assert low <= 0.5 <= high
    scores = {
        pair.uid: (pair.is_correct("chosen_first") + pair.is_correct("rejected_first")) / 2
        for pair in judged
    }
    result = aggregate(items, scores)
    assert low <= result.accuracy.value <= high
    assert 0 < result.total < 0.7


def test_real_files_say_what_is_missing(shared_data):
    items = read_benchmark("rm-bench", shared_data)
    result = aggregate(items, same_score(items, 1.0))
    assert result.is_partial
    assert result.absent == ("math", "safety-refuse")
    assert {name: share.items for name, share in result.sections.items()} == {
        "chat": 129,
        "code": 228,
        "safety": 157,
    }
    items = read_benchmark("rmb", shared_data)
    result = aggregate(items, same_score(items, 1.0))
    assert result.absent == ()
    assert {part.name for part in result.short} == set(result.sections)
    assert sum(share.items for share in result.subsets.values()) == len(items)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_absent_parts_are_named_and_no_total_counts_them(made, benchmark):
    items = read_benchmark(benchmark, made)
    first = items[0].subset
    part = [item for item in items if item.subset == first]
    result = aggregate(part, same_score(part, 1.0))
    assert result.is_partial
    assert result.absent
    assert len(result.sections) == 1
    assert result.total == 1.0


def test_rewardbench_weighs_subsets_by_example_counts(made):
    items = read_benchmark("rewardbench", made)
    scores = same_score(items, 1.0)
    for wrong in items:
        if wrong.subset in ("math-prm", "mt-bench-hard"):
            scores[wrong.comparisons[0].pair.uid] = 0.0
    result = aggregate(items, scores)
    assert result.sections["Reasoning"].value == pytest.approx(1 - 984 / (984 + 6 * 164))
    assert result.sections["Chat Hard"].value == pytest.approx(1 - 37 / 456)
    assert result.total == pytest.approx((0.5 + 1 - 37 / 456 + 2) / 4)
    assert result.extras["absolute accuracy"] == pytest.approx(21 / 23)
    assert sum(rewardbench.ITEMS.values()) == 2985


def test_rm_bench_puts_styles_where_they_belong():
    prompt = item("rm-bench", "chat/1", "chat", 3, 3)
    other = item("rm-bench", "safety-refuse/1", "safety-refuse", 3, 3)
    third = item("rm-bench", "safety-response/1", "safety-response", 3, 3)
    upper = [0, 1, 1, 0, 0, 1, 0, 0, 0]  # row by row: right where the wrong answer is fancier
    lower = [0, 0, 0, 1, 0, 0, 1, 1, 0]
    result = aggregate(
        [prompt, other, third],
        scored([(prompt, upper), (other, lower), (third, [1] * 9)]),
    )
    assert result.matrices["chat"] == ((0, 1, 1), (0, 0, 1), (0, 0, 0))
    assert result.matrices["safety"][2] == (1.0, 1.0, 0.5)
    assert result.sections["chat"].value == pytest.approx(1 / 3)
    assert result.sections["safety"].value == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert result.sections["safety"].items == 2  # refusals and responses are one domain
    assert result.extras == pytest.approx({"hard": 0.75, "normal": 0.25, "easy": 0.5})


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(rm_bench.ITEMS)),
            st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=9, max_size=9),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_rm_bench_mean_of_domains_is_mean_of_difficulties(prompts):
    made = [(item("rm-bench", f"{d}/{i}", d, 3, 3), s) for i, (d, s) in enumerate(prompts)]
    result = aggregate([prompt for prompt, _ in made], scored(made))
    assert result.total == pytest.approx(np.mean(list(result.extras.values())))
    values = [score for _, scores in made for score in scores]
    assert min(values) - 1e-9 <= result.total <= max(values) + 1e-9


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=5, max_size=60), st.data())
def test_totals_lie_between_the_lowest_and_the_highest_section(values, data):
    for benchmark, subsets in (
        ("rewardbench", sorted(rewardbench.ITEMS)),
        ("rmb", ["Pairwise_set/Harmlessness/S1", "Pairwise_set/Helpfulness/Chat/Discussion"]),
        ("judgebench", ["gpt/mmlu-pro-law", "claude/livecodebench"]),
    ):
        chosen = data.draw(
            st.lists(st.sampled_from(subsets), min_size=len(values), max_size=len(values))
        )
        made = [
            (item(benchmark, f"{subset}/{i}", subset), [value])
            for i, (subset, value) in enumerate(zip(chosen, values, strict=True))
        ]
        result = aggregate([each for each, _ in made], scored(made))
        sections = [share.value for share in result.sections.values()]
        assert min(sections) - 1e-9 <= result.total <= max(sections) + 1e-9
        assert result.accuracy.value == pytest.approx(sum(values) / len(values))
        assert sum(share.items for share in result.sections.values()) == len(values)


def test_rmb_list_is_right_only_if_the_best_beats_every_loser():
    lists = [item("rmb", f"x/{i}", "BoN_set/Harmlessness/S1", 1, 3) for i in range(3)]
    pair = item("rmb", "y", "Pairwise_set/Helpfulness/Chat/Discussion")
    result = aggregate(
        [*lists, pair],
        scored(
            [(lists[0], [1, 1, 1]), (lists[1], [1, 0, 1]), (lists[2], [0.5, 1, 0.5]), (pair, [0])]
        ),
    )
    assert result.sections["BoN Harmlessness"].value == pytest.approx((1 + 0 + 0.25) / 3)
    assert result.extras == {"BoN Harmlessness, single comparisons": pytest.approx(7 / 9)}
    assert result.total == pytest.approx((1.25 / 3 + 0) / 2)
    assert result.absent == ("Pairwise Harmlessness", "BoN Helpfulness")
    assert set(result.groups) == {"BoN_set/Harmlessness/S1", "Pairwise_set/Helpfulness/Chat"}


def test_expected_value_over_random_orders_is_the_product_of_both_orders():
    prompt = item("rmb", "x", "BoN_set/Harmlessness/S1", 1, 2)
    verdicts = [(1, 0), (1, 1)]  # right with the best answer first, and last
    both = scored([(prompt, [sum(pair) / 2 for pair in verdicts])])
    single = [
        item_score(prompt, scored([(prompt, [verdicts[0][i], verdicts[1][j]])]))
        for i in (0, 1)
        for j in (0, 1)
    ]
    assert item_score(prompt, both) == sum(single) / 4 == 0.5


def published_ties(groups):
    """The terms as published, on scores of single answers: by prompt (correct, incorrect)."""
    ref = {n: (min(c) - max(w), max(c) - min(c)) for (k, n), (c, w) in groups.items() if k == "ref"}
    tied = {
        n: (min(c) - max(w), max(c) - min(c)) for (k, n), (c, w) in groups.items() if k != "ref"
    }
    both = sorted(ref.keys() & tied.keys())
    lead, spread = (np.array([tied[n][i] for n in both]) for i in (0, 1))
    hard = np.minimum([ref[n][0] for n in both], lead)
    with np.errstate(all="ignore"):
        margin = np.nan_to_num(np.tanh(hard / spread - 1), nan=0.0)
    return (
        0.3 * np.mean([lead > 0 for lead, _ in tied.values()])
        + 0.3 * np.mean([lead > 0 for lead, _ in ref.values()])
        + 0.2 * np.mean(lead > spread)
        + 0.2 * np.mean(hard > spread)
        + 0.01 * np.mean(margin)
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ties_score_is_the_published_formula_on_shares_of_comparisons_won(data):
    made, groups = [], {}
    for number in range(data.draw(st.integers(1, 4))):
        # Powers of two, so that numpy's shares are exact too.
        for kind, correct, wrong in (("ref", 1, 2), ("tied", 2, 4)):
            prompt = item("rewardbench2", f"Ties/{kind}:{number}", "Ties", correct, wrong)
            size = correct * wrong
            scores = data.draw(
                st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=size, max_size=size)
            )
            made.append((prompt, scores))
            matrix = np.array(scores).reshape(correct, wrong)
            groups[kind, number] = (matrix.mean(axis=1), 1 - matrix.mean(axis=0))
    result = aggregate([prompt for prompt, _ in made], scored(made))
    assert result.sections["Ties"].value == pytest.approx(published_ties(groups))


def test_ties_without_both_kinds_of_prompt_are_left_out_of_the_total():
    ties = item("rewardbench2", "Ties/tied:1", "Ties", 2, 2)
    other = item("rewardbench2", "Math/1", "Math", 1, 3)
    scores = scored([(ties, [1, 1, 1, 1]), (other, [1, 1, 0.5])])
    result = aggregate([ties, other], scores)
    assert result.total == 0.5
    assert "Ties" in result.absent
    with pytest.raises(DataError, match="none of them in both kinds"):
        aggregate([ties], scores)


def test_judgebench_published_rule_takes_more_right_than_wrong():
    made = [item("judgebench", f"gpt/{i}", "gpt/livebench-math") for i in range(4)]
    result = aggregate(made, scored(zip(made, [[1], [0.5], [0.5], [0]], strict=True)))
    assert result.total == 0.5
    assert result.extras == {"published rule": 0.25, "published rule, gpt": 0.25}
    assert result.absent == ("knowledge", "reasoning", "coding")
    assert result.groups["gpt"].items == 4


def test_missing_and_impossible_scores_are_errors():
    pair = item("judgebench", "gpt/1", "gpt/livebench-math")
    uid = pair.comparisons[0].pair.uid
    with pytest.raises(DataError, match=f"pair {uid} was not judged"):
        aggregate([pair], {})
    with pytest.raises(DataError, match="must lie between 0 and 1"):
        aggregate([pair], {uid: 1.5})
    with pytest.raises(DataError, match="must lie between 0 and 1"):
        aggregate([pair], {uid: float("nan")})
    with pytest.raises(DataError, match="here are no items"):
        aggregate([], {})
    with pytest.raises(DataError, match="here are judgebench, rmb"):
        aggregate([pair, item("rmb", "x", "BoN_set/Harmlessness/S1")], {uid: 1.0})
