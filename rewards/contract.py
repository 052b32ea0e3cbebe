"""The contract of a reward, as checks: `gavel rewards check USES`, or in an author's own pytest:

from rewards.contract import assert_contract

def test_my_reward():
    assert_contract(my_reward)
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from judging.errors import DataError
from judging.quickstart import QuickstartTask, generate
from judging.records import Message, PreferencePair, Presentation
from judging.traces import parse_trace
from rewards.backend import Backend, CallFailed
from rewards.local import LocalBackend
from rewards.protocol import Reward, RewardRequest, RewardResult, RewardSpec
from rewards.wire import WireError, request_from_json, result_from_json

TIMEOUT_S = 30.0
_TOO_SHORT_S = 0.001
_ODD_RESPONSES = (
    "",
    "no verdict at all",
    "<answer>[[A]]</answer><answer>[[B]]</answer>",
    "\u4f60\u597d \u0645\u0631\u062d\u0628\u0627 \U0001f600 \x00 <eval>",
    "word " * 20_000,
)


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    ok: bool
    detail: str


def assert_contract(reward: Reward, samples: Sequence[RewardRequest] | None = None) -> None:
    """Raises AssertionError that names every check the reward fails."""
    findings = asyncio.run(check_contract(LocalBackend(reward), samples or sample_requests()))
    failed = [f"{finding.check}: {finding.detail}" for finding in findings if not finding.ok]
    assert not failed, "; ".join(failed)


async def check_contract(backend: Backend, samples: Sequence[RewardRequest]) -> list[Finding]:
    """One finding for each check; those after a spec that cannot be had are left out."""
    try:
        spec = await backend.open(TIMEOUT_S)
    except CallFailed as failure:
        return [Finding("spec", False, str(failure))]
    try:
        contract = _Contract(backend, spec, samples)
        return [_told_spec(spec), *await contract.check()]
    finally:
        await backend.close()


def _told_spec(spec: RewardSpec) -> Finding:
    low, high = spec.range
    nature = "deterministic" if spec.deterministic else "not deterministic"
    text = f"{spec.name} {spec.version}, range [{low:g}, {high:g}], {nature}"
    return Finding("spec", True, f"{text}, at most {spec.max_batch} a call")


class _Contract:
    def __init__(
        self, backend: Backend, spec: RewardSpec, samples: Sequence[RewardRequest]
    ) -> None:
        self._backend, self._spec, self._samples = backend, spec, samples

    async def check(self) -> list[Finding]:
        began = time.perf_counter()
        try:
            answers = await self._all()
        except CallFailed as failure:
            return [Finding("scores", False, str(failure))]
        per_1000_s = (time.perf_counter() - began) / len(self._samples) * 1000
        results, problems = _read(answers)
        return [
            Finding("types", not problems, problems[0] if problems else "every result can be read"),
            self._ids(results),
            self._order(results),
            self._range(results),
            self._outcomes(results),
            await self._determinism(results),
            Finding("speed", True, f"{per_1000_s:.3g} s for 1,000 judgments, one call at a time"),
            await self._deadline(),
        ]

    async def _all(self) -> list[Any]:
        size = self._spec.max_batch
        answers: list[Any] = []
        for start in range(0, len(self._samples), size):
            batch = self._samples[start : start + size]
            answers.extend(await self._backend.score(0, batch, TIMEOUT_S))
        return answers

    def _ids(self, results: Sequence[RewardResult]) -> Finding:
        asked = [sample.id for sample in self._samples]
        given = [result.id for result in results]
        missing = sorted(set(asked) - set(given))
        unknown = sorted(set(given) - set(asked))
        doubled = sorted({name for name in given if given.count(name) > 1})
        for kind, names in (("missing", missing), ("unknown", unknown), ("doubled", doubled)):
            if names:
                return Finding("ids", False, f"{len(names)} {kind}, e.g. {names[0]!r}")
        return Finding("ids", True, f"each of {len(asked)} requests has one result")

    def _order(self, results: Sequence[RewardResult]) -> Finding:
        same = [result.id for result in results] == [sample.id for sample in self._samples]
        told = "as asked" if same else "another than asked; the host restores it"
        return Finding("order", True, told)

    def _range(self, results: Sequence[RewardResult]) -> Finding:
        low, high = self._spec.range
        scores = [result.score for result in results if result.score is not None]
        outside = [score for score in scores if not low <= score <= high]
        if outside:
            told = f"{len(outside)} scores outside [{low:g}, {high:g}], e.g. {outside[0]:g}"
            return Finding("range", False, told)
        if not scores:
            return Finding("range", False, "no request was given a score")
        return Finding("range", True, f"scores from {min(scores):g} to {max(scores):g}")

    def _outcomes(self, results: Sequence[RewardResult]) -> Finding:
        failed = [result for result in results if result.status in ("error", "timeout")]
        skipped = sum(result.status == "skipped" for result in results)
        if failed:
            told = f"{len(failed)} of {len(results)} failed, e.g. {failed[0].error}"
            return Finding("outcomes", False, told)
        return Finding("outcomes", True, f"{len(results) - skipped} scored, {skipped} skipped")

    async def _determinism(self, results: Sequence[RewardResult]) -> Finding:
        """The same scores again, one by one: neither time nor neighbours may change them."""
        if not self._spec.deterministic:
            return Finding("determinism", True, "not claimed, so that no score is kept")
        before = {result.id: result.score for result in results}
        for sample in self._samples[:32]:
            try:
                again, _ = _read(await self._backend.score(0, [sample], TIMEOUT_S))
            except CallFailed as failure:
                return Finding("determinism", False, f"{sample.id} alone: {failure}")
            if [result.score for result in again] != [before.get(sample.id)]:
                now = again[0].score if again else None
                told = f"{sample.id}: {before.get(sample.id)} in a batch, {now} alone"
                return Finding("determinism", False, f"{told}: say deterministic=False, or mend it")
        return Finding("determinism", True, "the same scores again, alone and in a batch")

    async def _deadline(self) -> Finding:
        """A call that is cut off must not spoil the next one."""
        batch = self._samples[: self._spec.max_batch]
        try:
            await self._backend.score(0, batch, _TOO_SHORT_S)
            told = "answers within a millisecond"
        except CallFailed:
            told = "cut off after a millisecond, and well again"
        try:
            again, _ = _read(await self._backend.score(0, batch, TIMEOUT_S))
        except CallFailed as failure:
            return Finding("deadline", False, f"after a call that was cut off: {failure}")
        ok = {result.id for result in again} == {sample.id for sample in batch}
        return Finding("deadline", ok, told if ok else "a call after one cut off answers wrongly")


def _read(answers: Sequence[Any]) -> tuple[list[RewardResult], list[str]]:
    results: list[RewardResult] = []
    problems: list[str] = []
    for answer in answers:
        try:
            results.append(result_from_json(answer))
        except WireError as error:
            problems.append(str(error))
    return results, problems


# ---- samples -------------------------------------------------------------------------------------


def sample_requests(count: int = 96) -> list[RewardRequest]:
    """Judgments of both kinds, right and wrong, and some that no judge should write."""
    task = QuickstartTask(distill_pairs=count, reinforce_pairs=1, heldout_pairs=1)
    requests: list[RewardRequest] = []
    for place, pair in enumerate(generate(task).distill):
        assert pair.trace is not None
        assert pair.trace_order is not None
        wrong = {"A": "B", "B": "A"}
        shown = Presentation(pair, pair.trace_order)
        response = pair.trace
        if place % 3 == 0:
            verdict = f"[[{shown.gold}]]"
            response = response.replace(verdict, f"[[{wrong[shown.gold]}]]")
        requests.append(_request(shown, response, place))
    for place, response in enumerate(_ODD_RESPONSES, start=count):
        pair = PreferencePair(f"odd-{place}", (Message("user", "Hello?"),), "Hello!", "No.")
        requests.append(_request(Presentation(pair, "chosen_first"), response, place))
    return requests


def _request(shown: Presentation, response: str, place: int) -> RewardRequest:
    return RewardRequest(
        id=f"{shown.uid}#{place}",
        conversation=shown.pair.conversation,
        answer_a=shown.answer_a,
        answer_b=shown.answer_b,
        gold=shown.gold,
        response=response,
        trace=parse_trace(response),
        metadata={
            "source": shown.pair.source,
            "category": shown.pair.category,
            "response_tokens": len(response.split()),
            "max_new_tokens": 8192,
            "truncated": False,
        },
    )


def read_samples(path: Path) -> list[RewardRequest]:
    """Requests of a JSON Lines file, as docs/reward-api.yaml describes them; traces are parsed.

    Raises:
        DataError: names file and line.
    """
    requests: list[RewardRequest] = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            requests.append(_read_sample(json.loads(line), number))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}:{number}: no request: {type(error).__name__} {error}"
            ) from None
    if not requests:
        raise DataError(f"{path}: holds no request")
    return requests


def _read_sample(row: Mapping[str, Any], number: int) -> RewardRequest:
    empty = {"id": f"line-{number}", "swapped": None, "metadata": {}, "trace": None}
    whole = {**empty, **row}
    response = str(whole["response"])
    stand_in = {"verdict": {"letter": None, "reason": None}}
    stand_in |= {"quotes": (), "summaries": (), "outline": ()}
    request = request_from_json({**whole, "trace": stand_in})
    return replace(request, trace=parse_trace(response))
