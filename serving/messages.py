"""What is asked and answered over HTTP, as OpenAPI shows it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from judging.records import Letter
from judging.records import Message as Turn
from serving.judge import JudgeSettings, Orders, Ruling, Shown, Vote
from serving.ranking import Method


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Message(Body):
    role: Literal["system", "user", "assistant"]
    content: str


class Question(Body):
    """What is judged, and how; what is left out is as the server was started with."""

    conversation: Annotated[
        str | list[Message],
        Field(description="The user's message, or the turns up to the one to be answered."),
    ]
    votes: Annotated[
        int | None, Field(ge=1, description="Judgments in each order. One is greedy.")
    ] = None
    orders: Annotated[
        Orders | None, Field(description="both, or one of the two, chosen by seed and content.")
    ] = None
    seed: Annotated[int | None, Field(ge=0)] = None

    @property
    def turns(self) -> tuple[Turn, ...]:
        if isinstance(self.conversation, str):
            return (Turn("user", self.conversation),)
        return tuple(Turn(message.role, message.content) for message in self.conversation)

    def settings(self, default: JudgeSettings) -> JudgeSettings:
        return JudgeSettings(
            votes=default.votes if self.votes is None else self.votes,
            orders=self.orders or default.orders,
            seed=default.seed if self.seed is None else self.seed,
        )


class JudgeRequest(Question):
    answer_a: str
    answer_b: str


class RankRequest(Question):
    candidates: list[str]
    method: Method = "round-robin"
    opponents: Annotated[
        int | None,
        Field(
            ge=1,
            description="bradley-terry only: compare each candidate with about twice so many others"
            " instead of with all.",
        ),
    ] = None


class ScoreRequest(Question):
    answers: list[str]
    references: Annotated[list[str], Field(description="Answers to compare each with.")]


class JudgmentAnswer(BaseModel):
    """One vote."""

    shown: Shown
    letter: Annotated[Letter | None, Field(description="In the letters of the request.")]
    verdict: Annotated[Letter | None, Field(description="As written: what was shown as A or B.")]
    reason: Annotated[str | None, Field(description="Why there is no verdict.")]
    kind: str
    rubric: str
    justify: str
    solution: str
    evaluation: str
    thought: str
    text: Annotated[str, Field(description="All that the judge wrote.")]
    tokens: int
    truncated: bool


class JudgeAnswer(BaseModel):
    letter: Annotated[Letter | None, Field(description="The better answer; null: a draw, or none.")]
    share_a: Annotated[float | None, Field(description="Of the votes with a verdict, those for A.")]
    confidence: Annotated[
        float, Field(description="Of all votes in all orders, those for the letter; of a draw 0.")
    ]
    consistent: Annotated[bool | None, Field(description="Both orders prefer the same answer.")]
    votes: list[JudgmentAnswer]


class RankAnswer(BaseModel):
    order: Annotated[list[int], Field(description="Candidates by index, the best first.")]
    scores: Annotated[
        list[float],
        Field(
            description="By candidate. knockout: matches won; round-robin: mean share of verdicts;"
            " bradley-terry: log-strength."
        ),
    ]
    method: Method
    comparisons: int
    judgments: Annotated[int, Field(description="Texts generated.")]
    undecided: Annotated[int, Field(description="Comparisons without a verdict: draws.")]
    undecided_pairs: Annotated[list[tuple[int, int]], Field(description="Which these are.")]


class ScoreAnswer(BaseModel):
    scores: Annotated[
        list[float | None],
        Field(description="By answer: its mean share of verdicts; null: there was no verdict."),
    ]
    comparisons: int
    judgments: int
    undecided: int


class Fault(BaseModel):
    type: str
    message: str


class ErrorAnswer(BaseModel):
    error: Fault


def judge_answer(ruling: Ruling) -> JudgeAnswer:
    return JudgeAnswer(
        letter=ruling.letter,
        share_a=ruling.share_a,
        confidence=ruling.confidence,
        consistent=ruling.consistent,
        votes=[_judgment(vote) for vote in ruling.votes],
    )


def _judgment(vote: Vote) -> JudgmentAnswer:
    trace = vote.trace
    return JudgmentAnswer(
        shown=vote.shown,
        letter=vote.letter,
        verdict=trace.verdict.letter,
        reason=trace.verdict.reason,
        kind=trace.kind,
        rubric=trace.rubric,
        justify=trace.justify,
        solution=trace.solution,
        evaluation=trace.evaluation,
        thought=trace.thought,
        text=vote.text,
        tokens=vote.tokens,
        truncated=vote.truncated,
    )
