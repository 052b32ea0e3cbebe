"""Requests for the tests of rewards."""

from judging.records import Message
from judging.traces import parse_trace
from rewards.protocol import RewardRequest, SwappedJudgment

CHAT = (
    "<type>Chat</type>\n<rubric>\nClarity (40%): is it clear\nAccuracy (60%): is it right\n"
    "<justify>both matter</justify>\n</rubric>\n<eval>\n"
    "A has clarity: <quote_A>it is four</quote_A>. "
    "B lacks accuracy: <quote_B>It is  five</quote_B>.\n"
    "</eval>\n<answer>[[A]]</answer>"
)


def request(
    number: int = 0, response: str = CHAT, *, gold="A", swapped: str | None = None, **metadata
) -> RewardRequest:
    return RewardRequest(
        id=f"pair/chosen_first#{number}",
        conversation=(Message("user", f"What is 2 + 2, asked the {number}th time?"),),
        answer_a="Well, it is four.",
        answer_b="It is five.",
        gold=gold,
        response=response,
        trace=parse_trace(response),
        swapped=None
        if swapped is None
        else SwappedJudgment("B" if gold == "A" else "A", swapped, parse_trace(swapped)),
        metadata={"response_tokens": 50, "max_new_tokens": 100, "truncated": False} | metadata,
    )


def requests(count: int) -> list[RewardRequest]:
    return [request(number) for number in range(count)]
