"""Judging, ranking and scoring for requests: limits, and a judge for every comparison."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from judging.errors import DataError
from serving.judge import Judge, JudgeSettings, Ruling, check_answer
from serving.messages import (
    JudgeAnswer,
    JudgeRequest,
    Question,
    RankAnswer,
    RankRequest,
    ScoreAnswer,
    ScoreRequest,
    judge_answer,
)
from serving.ranking import comparisons_needed, rank, score
from serving.settings import ServeSettings
from serving.together import together

# Comparisons of one request that are asked at once: a large one must not keep others waiting for
# tokenizer and engine.
AT_ONCE = 32


@dataclass(slots=True)
class _Tally:
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    judgments: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """Each method raises DataError for a request that cannot be judged, with the field."""

    judge: Judge
    settings: ServeSettings
    ruled: Callable[[Ruling], None] = field(default=lambda _: None)  # told of every ruling

    async def compare(self, request: JudgeRequest) -> JudgeAnswer:
        how = self._check(request, 1, {"answer_a": request.answer_a, "answer_b": request.answer_b})
        ruling = await self.judge.rule(request.turns, request.answer_a, request.answer_b, how)
        self.ruled(ruling)
        return judge_answer(ruling)

    async def rank(self, request: RankRequest) -> RankAnswer:
        candidates, method = request.candidates, request.method
        self._check_count("candidates", len(candidates))
        needed = comparisons_needed(method, len(candidates), opponents=request.opponents)
        how = self._check(request, needed, _numbered("candidates", candidates))
        tally = _Tally()

        async def compare(i: int, j: int) -> float | None:
            return await self._share(request, candidates[i], candidates[j], how, tally)

        ranking = await rank(
            method, len(candidates), compare, opponents=request.opponents, seed=how.seed
        )
        return RankAnswer(
            order=list(ranking.order),
            scores=list(ranking.scores),
            method=method,
            comparisons=ranking.comparisons,
            judgments=tally.judgments,
            undecided=len(ranking.undecided),
            undecided_pairs=list(ranking.undecided),
        )

    async def score(
        self, request: ScoreRequest, room: asyncio.Semaphore | None = None
    ) -> ScoreAnswer:
        """`room` is for the comparisons of several that are asked together."""
        answers, references = request.answers, request.references
        self._check_count("answers", len(answers))
        self._check_count("references", len(references))
        texts = _numbered("answers", answers) | _numbered("references", references)
        how = self._check(request, len(answers) * len(references), texts)
        tally = _Tally(room) if room else _Tally()

        async def against(answer: str, index: int) -> float | None:
            return await self._share(request, answer, references[index], how, tally)

        scores = await together(
            score(len(references), lambda index, answer=answer: against(answer, index))
            for answer in answers
        )
        return ScoreAnswer(
            scores=[each.share for each in scores],
            comparisons=sum(each.comparisons for each in scores),
            judgments=tally.judgments,
            undecided=sum(each.undecided for each in scores),
        )

    def check_cost(self, comparisons: int, how: JudgeSettings | None = None) -> None:
        """Of one request."""
        how, limit = how or self.settings.judge, self.settings.max_judgments
        judgments = comparisons * how.votes * (2 if how.orders == "both" else 1)
        if judgments > limit:
            raise DataError(
                f"{comparisons:,} comparisons take {judgments:,} judgments, of which {limit:,} are "
                "allowed: give fewer answers, votes or orders, or rank by knockout, or by "
                "bradley-terry with opponents"
            )

    async def _share(
        self, request: Question, one: str, other: str, how: JudgeSettings, tally: _Tally
    ) -> float | None:
        async with tally.room:
            ruling = await self.judge.rule(request.turns, one, other, how)
        tally.judgments += len(ruling.votes)
        self.ruled(ruling)
        return ruling.share_a

    def _check(self, request: Question, comparisons: int, texts: dict[str, str]) -> JudgeSettings:
        how, limits = request.settings(self.settings.judge), self.settings
        if how.votes > limits.max_votes:
            raise DataError(f"votes is {how.votes}: at most {limits.max_votes} are allowed")
        self.check_cost(comparisons, how)
        for name, text in texts.items():
            check_answer(name, text)
        turns = {f"conversation.{i}.content": turn.content for i, turn in enumerate(request.turns)}
        for name, text in (turns | texts).items():
            if len(text) > limits.max_chars:
                raise DataError(
                    f"{name} has {len(text):,} characters: at most {limits.max_chars:,} are allowed"
                )
        return how

    def _check_count(self, name: str, count: int) -> None:
        if not 1 <= count <= self.settings.max_candidates:
            raise DataError(f"{name}: {count} of them; 1 to {self.settings.max_candidates} may be")


def _numbered(name: str, texts: Iterable[str]) -> dict[str, str]:
    return {f"{name}.{index}": text for index, text in enumerate(texts)}
