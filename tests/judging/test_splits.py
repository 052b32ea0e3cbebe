from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judging.errors import ConfigurationError
from judging.records import Message, PreferencePair, pair_uid
from judging.splits import Split, split_by_source, split_pairs


def make_pairs(conversations: int) -> list[PreferencePair]:
    pairs = []
    for number in range(conversations):
        conversation = (Message("user", f"question {number}"),)
        for answer in ("x", "y"):
            uid = pair_uid(conversation, answer, "z")
            pairs.append(PreferencePair(uid, conversation, answer, "z"))
    return pairs


def test_parts_are_disjoint_by_conversation_and_near_their_shares():
    split = split_pairs(make_pairs(2000), distill_fraction=0.12, heldout_fraction=0.1, seed=3)
    parts = [{pair.conversation for pair in part} for part in (split.distill, split.heldout)]
    parts.append({pair.conversation for pair in split.reinforce})
    assert sum(len(part) for part in parts) == len(set.union(*parts)) == 2000
    for part, share in zip(parts, (0.12, 0.1, 0.78), strict=True):
        assert len(part) / 2000 == pytest.approx(share, abs=0.03)
    assert len(split.distill) == 2 * len(parts[0])


def test_parts_depend_on_content_and_seed_only():
    pairs = make_pairs(300)
    fractions = {"distill_fraction": 0.3, "heldout_fraction": 0.2}
    split = split_pairs(pairs, **fractions, seed=0)
    again = split_pairs(reversed(pairs), **fractions, seed=0)
    assert set(split.distill) == set(again.distill)
    assert set(split.heldout) == set(again.heldout)
    assert set(split.heldout) != set(split_pairs(pairs, **fractions, seed=1).heldout)
    more = split_pairs(pairs, distill_fraction=0.5, heldout_fraction=0.2, seed=0)
    assert more.heldout == split.heldout


def test_nothing_held_out():
    split = split_pairs(make_pairs(50), distill_fraction=0, heldout_fraction=0, seed=0)
    assert len(split.reinforce) == 100
    assert split.distill == split.heldout == ()


@pytest.mark.parametrize(("distill", "heldout"), [(0.8, 0.3), (-0.1, 0.2), (0.1, -0.2)])
def test_impossible_fractions_name_both_keys(distill, heldout):
    with pytest.raises(ConfigurationError, match=r"distill_fraction.*heldout_fraction"):
        split_pairs([], distill_fraction=distill, heldout_fraction=heldout, seed=0)


def make_pair(source: str, question: int, answer: int) -> PreferencePair:
    conversation = (Message("user", f"question {question}"),)
    chosen = f"answer {answer}"
    return PreferencePair(
        pair_uid(conversation, chosen, "no"), conversation, chosen, "no", source=source
    )


def parts_of(split: Split) -> dict[str, tuple[PreferencePair, ...]]:
    return {"distill": split.distill, "reinforce": split.reinforce, "heldout": split.heldout}


shares = st.sampled_from([(0.12, 0.05), (0.5, 0.5), (0.0, 0.3), (0.01, 0.0), (0.3, 0.33)])
seeds = st.integers(0, 2**31)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40), st.integers(0, 3)), unique=True),
    shares,
    seeds,
    st.randoms(use_true_random=False),
)
def test_no_conversation_is_in_two_parts_of_a_mix_in_any_order(rows, fractions, seed, random):
    pairs = [make_pair(*row) for row in rows]
    distill, heldout = fractions
    settings = {"distill_fraction": distill, "heldout_fraction": heldout, "seed": seed}
    parts = parts_of(split_by_source(pairs, **settings))
    assert Counter(pair for part in parts.values() for pair in part) == Counter(pairs)
    conversations = [{pair.conversation for pair in part} for part in parts.values()]
    assert sum(map(len, conversations)) == len(set().union(*conversations))
    random.shuffle(pairs)
    again = parts_of(split_by_source(pairs, **settings))
    assert {name: set(part) for name, part in again.items()} == {
        name: set(part) for name, part in parts.items()
    }


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 120)), shares, seeds)
def test_each_part_has_its_share_of_every_source_to_one_pair(counts, fractions, seed):
    pairs = [
        make_pair(source, 1000 * ord(source) + number, 0)
        for source, count in counts.items()
        for number in range(count)
    ]
    distill, heldout = fractions
    split = split_by_source(pairs, distill_fraction=distill, heldout_fraction=heldout, seed=seed)
    wanted = {"distill": distill, "heldout": heldout, "reinforce": 1 - distill - heldout}
    for name, part in parts_of(split).items():
        got = Counter(pair.source for pair in part)
        for source, count in counts.items():
            assert abs(got[source] - wanted[name] * count) <= 1


def test_the_seed_deals_a_mix_anew_and_held_out_pairs_stay_without_distillation():
    pairs = [make_pair("ab"[number % 2], number, 0) for number in range(400)]

    def split(distill: float, seed: int) -> Split:
        return split_by_source(pairs, distill_fraction=distill, heldout_fraction=0.2, seed=seed)

    assert set(split(0.3, 0).heldout) == set(split(0, 0).heldout)
    assert set(split(0.3, 0).heldout) != set(split(0.3, 1).heldout)
    with pytest.raises(ConfigurationError, match=r"distill_fraction.*heldout_fraction"):
        split(0.9, 0)
