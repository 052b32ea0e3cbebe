"""OpenRLHF's remote reward model: its wire format, as its `SingleTurnAgentExecutor` speaks it.

A judge compares, so each sample needs answers to be compared with. They come with the label: a
reference answer as plain text, or a JSON object with `references` and, where the prompt is not
just the user's message (it has the policy's chat template, say), with `conversation`.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from judging.errors import DataError
from serving.messages import Body, Message, ScoreRequest
from serving.service import AT_ONCE, Service
from serving.together import together

# What ends a turn in the usual chat templates; the query is decoded with its special tokens.
_ENDING = re.compile(r"(?:\s+|<\|[a-z_]{1,32}\|>|</s>|<eos>|<end_of_turn>|<pad>)\Z", re.I)
_LONGEST_ENDING = 36  # characters


class RewardRequest(BaseModel):
    model_config = ConfigDict(strict=True)  # other fields may come with other versions

    query: Annotated[list[str], Field(description="Prompt and response as one text.")]
    prompts: list[str]
    labels: Annotated[list[Any], Field(description="See docs/serving.md.")]


class RewardAnswer(BaseModel):
    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


class Label(Body):
    references: Annotated[list[str], Field(min_length=1)]
    conversation: str | list[Message] | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    conversation: str | list[Message]
    answer: str
    references: list[str]


async def reward(service: Service, request: RewardRequest, undecided: float | None) -> RewardAnswer:
    """The share of verdicts, 0 to 1, that each response has against its references. An empty
    response has 0: a policy writes some.

    Raises:
        DataError: a sample without references; or without a verdict, if `undecided` says no reward
            for one.
    """
    samples = read_samples(request)
    service.check_cost(sum(len(sample.references) for sample in samples))
    room = asyncio.Semaphore(AT_ONCE)
    shares = await together(_share(service, *numbered, room) for numbered in enumerate(samples))
    rewards: list[float] = []
    for index, share in enumerate(shares):
        reward = undecided if share is None else share
        if reward is None:
            raise DataError(
                f"query.{index}: no judgment has a verdict, and a failure is no reward: ask with "
                "?undecided=0.5 to have one all the same, or with more votes"
            )
        rewards.append(reward)
    unread = [float(share is None) for share in shares]
    return RewardAnswer(rewards=rewards, scores=rewards, extra_logs={"undecided": unread})


async def _share(
    service: Service, index: int, sample: Sample, room: asyncio.Semaphore
) -> float | None:
    if not sample.answer:
        return 0.0
    request = ScoreRequest(
        conversation=sample.conversation, answers=[sample.answer], references=sample.references
    )
    try:
        answer = await service.score(request, room)
    except DataError as error:
        raise DataError(f"query.{index}: {error}") from None
    return answer.scores[0]


def read_samples(request: RewardRequest) -> list[Sample]:
    """Raises DataError with the place."""
    counts = {len(request.query), len(request.prompts), len(request.labels)}
    if len(counts) > 1 or not request.query:
        raise DataError("query, prompts and labels must have the same length, of at least 1")
    rows = zip(request.query, request.prompts, request.labels, strict=True)
    return [_sample(index, *row) for index, row in enumerate(rows)]


def _sample(index: int, query: str, prompt: str, label: Any) -> Sample:
    start = query.find(prompt)
    if not 0 <= start <= 32:  # a tokenizer may put a token before it
        raise DataError(f"query.{index} does not begin with prompts.{index}: send both as they are")
    answer = _without_endings(query[start + len(prompt) :])
    read = _label(index, label)
    return Sample(
        prompt if read.conversation is None else read.conversation, answer, read.references
    )


def _without_endings(text: str) -> str:
    """One by one, from the end: a search for all would take a time that grows with the square."""
    end = len(text)
    while found := _ENDING.search(text, max(0, end - _LONGEST_ENDING), end):
        end = found.start()
    return text[:end]


def _label(index: int, label: Any) -> Label:
    if isinstance(label, str) and label.strip():
        if not label.lstrip().startswith("{"):
            return Label(references=[label])
        try:
            tree = json.loads(label)
        except (ValueError, RecursionError):
            return Label(references=[label])  # a text that begins with a brace
        if not isinstance(tree, dict) or "references" not in tree:
            return Label(references=[label])
    else:
        tree = label
    try:
        return Label.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("labels", index, *first["loc"])))[:200]
        raise DataError(
            f"{place}: {first['msg']}: give a reference answer as text, or JSON as in "
            '{"references": ["..."], "conversation": "..."}'
        ) from None
