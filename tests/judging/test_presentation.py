from judging.presentation import balanced_order, both_orders
from judging.records import Message, PreferencePair, Presentation

PAIR = PreferencePair("u", (Message("user", "Hi"),), chosen="good", rejected="bad")


def test_gold_and_answers_follow_the_order():
    shown = Presentation(PAIR, "rejected_first")
    assert (shown.answer_a, shown.answer_b, shown.gold) == ("bad", "good", "B")
    assert [shown.gold for shown in both_orders(PAIR)] == ["A", "B"]
    assert len({shown.uid for shown in both_orders(PAIR)}) == 2


def test_balanced_order_is_a_fair_coin_of_seed_and_pair():
    uids = [f"{number:016x}" for number in range(4000)]
    first, second = ([balanced_order(uid, seed) for uid in uids] for seed in (0, 1))
    assert first == [balanced_order(uid, 0) for uid in uids]
    for orders in (first, second):
        assert 0.46 < orders.count("chosen_first") / len(orders) < 0.54
    agreement = sum(a == b for a, b in zip(first, second, strict=True)) / len(uids)
    assert 0.46 < agreement < 0.54


def test_balanced_order_does_not_change_between_versions():
    orders = [balanced_order(f"{number:016x}", 7)[0] for number in range(8)]
    assert "".join(orders) == "rcrrrrrr"
