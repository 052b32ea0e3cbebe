"""Teachers on rollout workers: what the fleet is asked, and what becomes of its answers."""

import asyncio
from typing import ClassVar

import numpy as np
import pytest

from judging.errors import DataError
from judging.records import FinishReason, Message, PreferencePair, Presentation, Rollout
from orchestrator.synthesis_engines import FleetService, policy_scorer
from synthesis.records import Answer, RequestFailed, TeacherRequest, Usage

PAIR = PreferencePair("uid", (Message("user", "2 + 2?"),), "4", "5", "sums")
CONTEXT = 115  # tokens of the prompt and of the longest answer
SHOWN = Presentation(PAIR, "chosen_first")


class Tokenizer:
    """A token for each character."""

    chat_template = "any"
    added_tokens_decoder: ClassVar = {}

    def apply_chat_template(self, messages, **options):
        return list(range(sum(len(message["content"]) for message in messages)))


class Fleet:
    def __init__(self, finish_reason=FinishReason.STOP, error=None):
        self.asked, self._finish_reason, self._error = [], finish_reason, error

    async def generate(self, asked):
        self.asked.append(asked)
        if self._error:
            raise self._error
        return [
            Rollout(
                presentation_uid=asked.presentation_uid,
                sample=0,
                seed=asked.seed,
                token_ids=np.arange(7, dtype=np.int32),
                logprobs=np.zeros(0, np.float32),
                text="a trace",
                finish_reason=self._finish_reason,
                weight_version_min=0,
                weight_version_max=0,
            )
        ]


def request(key="f" * 32, sample=0):
    messages = (Message("user", "Which is better?"),)
    return TeacherRequest(key, SHOWN, messages, sample, 0.7, 99)


async def test_the_fleet_is_asked_as_the_request_says_and_the_same_key_gives_the_same_seed():
    fleet = Fleet()
    service = FleetService(fleet, Tokenizer(), CONTEXT)
    answer = await service.answer(request())
    assert answer == Answer("a trace", usage=Usage(16, 0, 7))
    await service.answer(request())
    await service.answer(request("0" * 31 + "1"))
    (asked, again, other) = fleet.asked
    assert (asked.temperature, asked.max_new_tokens, asked.samples) == (0.7, 99, 1)
    assert len(asked.token_ids) == 16
    assert asked.seed == again.seed != other.seed
    assert 0 <= asked.seed < 2**30
    assert not asked.logprobs


async def test_an_answer_that_was_cut_off_is_told():
    answer = await FleetService(Fleet(FinishReason.LENGTH), Tokenizer(), CONTEXT).answer(request())
    assert answer.is_truncated


async def test_a_prompt_that_is_too_long_is_not_sent():
    fleet = Fleet()
    with pytest.raises(RequestFailed, match=r"prompt of 16 tokens .* of 99 .* context of 114:"):
        await FleetService(fleet, Tokenizer(), CONTEXT - 1).answer(request())
    assert fleet.asked == []


async def test_what_engines_refuse_is_of_that_request_alone():
    fleet = Fleet(error=DataError("longer than the context"))
    with pytest.raises(RequestFailed, match="longer than the context"):
        await FleetService(fleet, Tokenizer(), CONTEXT).answer(request())


async def test_a_fleet_of_its_own_is_ended_and_the_runs_is_not():
    ended = asyncio.Event()

    async def end():
        ended.set()

    await FleetService(Fleet(), Tokenizer(), CONTEXT).close()
    await FleetService(Fleet(), Tokenizer(), CONTEXT, end).close()
    assert ended.is_set()


async def test_samples_are_scored_by_the_mix_with_what_is_known_of_them():
    seen = []

    class Group:
        scores = (0.5, None)

    class Panel:
        def weights(self, reinforce, progress):
            return {"verdict": 1.0}

        async def score(self, groups, weights):
            seen.extend(groups)
            return [Group]

    class Config:
        reinforce = None

    class Run:
        panel, config = Panel(), Config()

    answers = [Answer("one", usage=Usage(1, 0, 5)), Answer("other", is_truncated=True)]
    assert await policy_scorer(Run())(SHOWN, answers) == (0.5, None)
    ((shown, rollouts),) = seen
    assert shown == SHOWN
    assert [rollout.text for rollout in rollouts] == ["one", "other"]
    assert [rollout.finish_reason.value for rollout in rollouts] == ["stop", "length"]
    assert [len(rollout.token_ids) for rollout in rollouts] == [5, 0]
