import pytest

from judging.errors import ConfigurationError
from judging.records import Message, PreferencePair, pair_uid
from judging.splits import split_pairs


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
