"""Nothing in a rendered prompt but the order of the answers may depend on the label.

RM-R1's published sets broke this: in conversations of several turns their script named the speaker
"Chabot B" exactly where the answer preferred stood first. A judge can learn such a slip in place of
judging. Here a classifier tries to: with both answers masked, it must stay at chance.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from judging.presentation import balanced_order, both_orders
from judging.prompts import load_template
from judging.readers import read_pairs
from judging.records import Message, PreferencePair, Presentation, pair_uid

FAMILIES = ["compact", "instruct", "reasoning"]
TEMPLATES = {family: load_template(family) for family in FAMILIES}
WORDS = [f"w{number}" for number in range(40)]
QUANTILE = 3.29  # of the normal distribution, two-sided, for a band that chance leaves in 0.1 %

Render = Callable[[Presentation], tuple[Message, ...]]


def band(count: int) -> float:
    """How far from 0.5 the accuracy on `count` fair coins is in 99.9 % of cases."""
    return QUANTILE * (0.25 / count) ** 0.5


def with_slip(render: Render) -> Render:
    """The renderer with RM-R1's slip: with several turns, a label in the spelling of a name."""

    def slipped(shown: Presentation) -> tuple[Message, ...]:
        messages = render(shown)
        if len(shown.pair.conversation) == 1 or shown.gold == "B":
            return messages
        return tuple(
            replace(turn, content=turn.content.replace("Chatbot B: ", "Chabot B: "))
            for turn in messages
        )

    return slipped


def made_pairs(count: int, turns: Sequence[str]) -> list[PreferencePair]:
    """Conversations of these roles and two answers, all of random words."""
    rng = random.Random(f"{count}/{turns}")

    def say() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(3, 12)))

    pairs = []
    for _ in range(count):
        conversation = tuple(Message(role, say()) for role in turns)
        chosen, rejected = say(), say()
        uid = pair_uid(conversation, chosen, rejected)
        pairs.append(PreferencePair(uid, conversation, chosen, rejected))
    return pairs


def masked(shown: Presentation, render: Render) -> str:
    """The prompt with the same placeholder for either answer."""
    text = "\n".join(f"{turn.role}: {turn.content}" for turn in render(shown))
    for answer in sorted((shown.answer_a, shown.answer_b), key=lambda text: (-len(text), text)):
        text = text.replace(answer, "MASKED")
    return text


def heldout_accuracy(texts: Sequence[str], labels: Sequence[bool]) -> tuple[float, int]:
    """Logistic regression on the words of half of the texts; its accuracy on the other half.

    A feature is how often a word stands in a text; of words that a twentieth of the texts have, for
    rare ones only tell texts apart.
    """
    half = len(texts) // 2
    counts = [Counter(re.findall(r"\w+|[^\w\s]|\s{2,}", text)) for text in texts]
    frequency = Counter(word for words in counts[:half] for word in words)
    vocabulary = [word for word, count in frequency.most_common(500) if count >= half / 20]
    x = np.array([[words[word] for word in vocabulary] for words in counts], np.float32)
    x = np.log1p(x)
    spread = x[:half].std(0)
    x = (x - x[:half].mean(0)) / np.where(spread > 0, spread, 1)
    y = np.array(labels, np.float32)
    weights, bias = np.zeros(x.shape[1], np.float32), 0.0
    rate = 2 / max(1.0, float(np.linalg.norm(x[:half], 2) ** 2 / half))
    for _ in range(100):
        error = 1 / (1 + np.exp(-(x[:half] @ weights + bias))) - y[:half]
        weights -= rate * (x[:half].T @ error / half + 0.1 * weights)
        bias -= rate * error.mean()
    right = ((x[half:] @ weights + bias) > 0) == (y[half:] > 0.5)
    return float(right.mean()), len(right)


def leak(pairs: Sequence[PreferencePair], render: Render) -> tuple[float, int]:
    """How well the label is told from masked prompts, each pair in one fair order; on how many."""
    pairs = random.Random(0).sample(pairs, len(pairs))  # either half is of every kind
    shown = [Presentation(pair, balanced_order(pair.uid, 0)) for pair in pairs]
    return heldout_accuracy(
        [masked(one, render) for one in shown], [one.gold == "A" for one in shown]
    )


SINGLE = ["user"]
SEVERAL = ["user", "assistant", "user"]
SHAPES = [SINGLE, SEVERAL, ["system", "user"], ["system", *SEVERAL], [*SEVERAL, *SEVERAL[1:]]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_label_cannot_be_told_from_a_prompt_without_its_answers(family):
    pairs = [pair for turns in SHAPES for pair in made_pairs(200, turns)]
    accuracy, count = leak(pairs, TEMPLATES[family].render)
    assert count == 500
    assert abs(accuracy - 0.5) < band(count)


@pytest.mark.parametrize("family", ["instruct", "reasoning"])
def test_the_slip_of_rm_r1_would_be_found(family):
    slipped = with_slip(TEMPLATES[family].render)
    accuracy, _ = leak(made_pairs(400, SEVERAL), slipped)
    assert accuracy > 0.99
    mixed = [pair for turns in (SINGLE, SEVERAL) for pair in made_pairs(400, turns)]
    accuracy, count = leak(mixed, slipped)
    assert accuracy > 0.5 + 2 * band(count)


turns = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.text()),
    min_size=1,
    max_size=5,
).map(tuple)


@pytest.mark.parametrize("family", FAMILIES)
@given(turns, st.text(), st.text())
def test_a_prompt_is_a_function_of_conversation_and_answers_alone(
    family, conversation, first, second
):
    """Swapped label and swapped order: the same answers at the same places, the same bytes."""
    render = TEMPLATES[family].render
    pair = PreferencePair("1", conversation, first, second)
    relabelled = PreferencePair(
        "2", conversation, second, first, "file", "category", "[[A]]", "chosen_first"
    )
    for shown, other in zip(both_orders(pair), reversed(both_orders(relabelled)), strict=True):
        assert shown.gold != other.gold
        assert render(shown) == render(other)


def test_orders_are_balanced_in_every_source_and_whatever_the_answers():
    sources = {f"source-{number}": made_pairs(2000, SHAPES[number]) for number in range(5)}
    first = Counter(
        source
        for source, pairs in sources.items()
        for pair in pairs
        if balanced_order(pair.uid, 0) == "chosen_first"
    )
    assert abs(first.total() / 10_000 - 0.5) < band(10_000)
    for source, pairs in sources.items():
        assert abs(first[source] / len(pairs) - 0.5) < band(len(pairs))
    longer = [
        balanced_order(pair.uid, 0) == "chosen_first"
        for pairs in sources.values()
        for pair in pairs
        if len(pair.chosen) > len(pair.rejected)
    ]
    assert abs(sum(longer) / len(longer) - 0.5) < band(len(longer))


@pytest.fixture(scope="module")
def real_pairs(shared_data) -> list[PreferencePair]:
    rmb = list(read_pairs(shared_data / "rmb" / "Pairwise_set"))
    rm_bench = [
        PreferencePair(pair_uid(question, chosen, rejected), question, chosen, rejected)
        for file in sorted((shared_data / "rm-bench").glob("*.json"))
        for item in json.loads(file.read_text())
        for question in [(Message("user", item["prompt"]),)]
        for chosen, rejected in zip(item["chosen"], item["rejected"], strict=True)
    ]
    several = [pair for pair in rmb if len(pair.conversation) > 1]
    single = [pair for pair in rmb if len(pair.conversation) == 1]
    return several + random.Random(0).sample(single, 500) + random.Random(0).sample(rm_bench, 300)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_label_cannot_be_told_from_real_prompts_without_their_answers(family, real_pairs):
    accuracy, count = leak(real_pairs, TEMPLATES[family].render)
    assert count > 400
    assert abs(accuracy - 0.5) < band(count)


def test_the_slip_would_be_found_in_real_prompts(real_pairs):
    several = [pair for pair in real_pairs if len(pair.conversation) > 1]
    accuracy, count = leak(several, with_slip(TEMPLATES["reasoning"].render))
    assert accuracy > 0.5 + 2 * band(count)
