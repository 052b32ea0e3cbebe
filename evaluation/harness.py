"""Judging what an evaluation asks: every presentation and vote once, written down when it exists.

An evaluation that was killed goes on with what is missing, whatever ended it: what is in its file
is not judged again. Who judges is injected; nothing here knows of engines.
"""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from evaluation.judgments import StoredJudgment, cut_unfinished_line, judgment_line, read_judgments
from evaluation.verdicts import Protocol
from judging.errors import ConfigurationError, DataError, InfrastructureError
from judging.presentation import balanced_order, both_orders
from judging.records import FinishReason, PreferencePair, Presentation
from judging.traces import parse_trace


@dataclass(frozen=True, slots=True)
class Task:
    """Votes on one presentation that are not there yet."""

    presentation: Presentation
    votes: range


@dataclass(frozen=True, slots=True)
class Answer:
    """What a judge wrote."""

    text: str
    tokens: int
    finish_reason: FinishReason


# The answers to a task, vote by vote; None: the prompt is longer than the judge can read.
Ask = Callable[[Task], Awaitable[Sequence[Answer] | None]]


def presentations(
    pairs: Iterable[PreferencePair], *, protocol: Protocol, seed: int
) -> Iterator[Presentation]:
    """Each pair once, in both orders or in the one that its uid and the seed decide."""
    for pair in {pair.uid: pair for pair in pairs}.values():
        if protocol == "both":
            yield from both_orders(pair)
        else:
            yield Presentation(pair, balanced_order(pair.uid, seed))


def missing(
    shown: Iterable[Presentation], votes: int, has: Callable[[tuple[str, int]], bool]
) -> list[Task]:
    """What is still to be judged, in runs of votes that follow each other."""
    tasks: list[Task] = []
    for presentation in shown:
        start: int | None = None
        for vote in range(votes + 1):
            is_open = vote < votes and not has((presentation.uid, vote))
            if is_open and start is None:
                start = vote
            elif not is_open and start is not None:
                tasks.append(Task(presentation, range(start, vote)))
                start = None
    return tasks


class JudgmentLog:
    """The file of an evaluation's judgments, which one process writes at a time.

    Life: `with JudgmentLog(path) as log`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._judgments: dict[tuple[str, int], StoredJudgment] = {}

    def __enter__(self) -> Self:
        """Reads what is there.

        Raises:
            ConfigurationError: another process writes the file.
            DataError: a line is no judgment, or one is there twice.
        """
        try:
            self._file = self._path.open("a", encoding="ascii")
        except OSError as error:
            raise self._refused(error) from error
        try:
            self._lock()
            cut_unfinished_line(self._path)
            for judgment in read_judgments(self._path):
                if judgment.key in self._judgments:
                    raise DataError(
                        f"{self._path}: vote {judgment.vote} on {judgment.presentation_uid} is "
                        "there twice: remove one of the lines"
                    )
                self._judgments[judgment.key] = judgment
        except BaseException:
            self._file.close()
            raise
        return self

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until it is closed
        except OSError:
            raise ConfigurationError(
                f"{self._path}: another evaluation writes it: wait for that, or name another folder"
            ) from None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._judgments)

    def has(self, key: tuple[str, int]) -> bool:
        return key in self._judgments

    def all(self) -> list[StoredJudgment]:
        return list(self._judgments.values())

    def add(self, judgments: Sequence[StoredJudgment]) -> None:
        """They outlive this process once this returns.

        Raises:
            InfrastructureError: the disk does not take them.
        """
        try:
            self._file.write("".join(judgment_line(judgment) for judgment in judgments))
            self._file.flush()
        except OSError as error:
            raise self._refused(error) from error
        self._judgments |= {judgment.key: judgment for judgment in judgments}

    def _refused(self, error: OSError) -> InfrastructureError:
        return InfrastructureError(
            f"cannot write {self._path}: {error.strerror or error}; what is in it is kept: mend "
            "this, and begin again: it goes on"
        )


async def judge_all(
    tasks: Sequence[Task],
    ask: Ask,
    log: JudgmentLog,
    *,
    in_flight: int,
    strict_tail: bool = False,
    show: Callable[[Sequence[StoredJudgment]], object] = lambda judgments: None,
) -> frozenset[str]:
    """Asks for all tasks, `in_flight` at a time, and writes down each answer when it comes.

    Returns the uids of pairs that are too long for the judge. The first error ends it; `ask`'s
    errors are its own.
    """
    left, overlong = iter(tasks), set[str]()

    async def work() -> None:
        for task in left:
            answers = await ask(task)
            if answers is None:
                overlong.add(task.presentation.pair.uid)
                continue
            judgments = list(_read(task, answers, strict_tail))
            log.add(judgments)
            show(judgments)

    workers = [asyncio.create_task(work()) for _ in range(min(in_flight, len(tasks)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return frozenset(overlong)


def _read(task: Task, answers: Sequence[Answer], strict_tail: bool) -> Iterator[StoredJudgment]:
    for vote, answer in zip(task.votes, answers, strict=True):
        is_truncated = answer.finish_reason is FinishReason.LENGTH
        verdict = parse_trace(answer.text, strict_tail=strict_tail, truncated=is_truncated).verdict
        yield StoredJudgment(
            pair_uid=task.presentation.pair.uid,
            order=task.presentation.order,
            vote=vote,
            letter=verdict.letter,
            reason=verdict.reason,
            text=answer.text,
            tokens=answer.tokens,
            finish_reason=answer.finish_reason,
        )
