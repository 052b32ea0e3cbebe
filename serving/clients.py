"""Clients of a served judge, in one file that needs httpx and nothing else of Gavel: copy it into
the environment of the library that trains.

- `JudgeClient`: judge, rank, score;
- `TrlReward`: a reward function for TRL's GRPOTrainer and RLOOTrainer;
- `compute_score`: one for verl (`reward.custom_reward_function.path`, `.name`).

OpenRLHF needs none: give `--reward.remote_url` the server's /v1/rewards/openrlhf.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import groupby
from typing import Any

import httpx

Conversation = str | Sequence[dict[str, Any]]
URL_VARIABLE, TOKEN_VARIABLE = "GAVEL_SERVE_URL", "GAVEL_SERVE_TOKEN"
_MAY_PASS = (408, 429, 502, 503)  # 502 is that of a proxy, while the server behind it starts
_LONGEST_PAUSE_S = 10.0


class JudgeError(RuntimeError):
    """The server refused, or gave no answer in time."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status  # of HTTP, where the server refused


class JudgeClient:
    """Asks one server; for several threads. What it does not say is as the server was started."""

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        deadline_s: float = 600.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`url` and `token` are by default those of the environment (GAVEL_SERVE_URL, ..._TOKEN).
        `deadline_s` is how long an answer is waited for, with all tries."""
        token = token or os.environ.get(TOKEN_VARIABLE)
        self._deadline_s = deadline_s
        self._http = httpx.Client(
            base_url=url or os.environ.get(URL_VARIABLE) or "http://127.0.0.1:8000",
            headers={"Authorization": f"Bearer {token}"} if token else {},
            transport=transport,
            trust_env=False,
            limits=httpx.Limits(max_connections=256),
        )

    def judge(self, conversation: Conversation, a: str, b: str, **how: Any) -> dict[str, Any]:
        """`letter`, `confidence`, `votes`. All of these raise JudgeError."""
        return self._ask("/v1/judge", conversation, {"answer_a": a, "answer_b": b} | how)

    def rank(
        self, conversation: Conversation, candidates: Sequence[str], **how: Any
    ) -> dict[str, Any]:
        """`order`, the best first, and `scores`."""
        return self._ask("/v1/rank", conversation, {"candidates": list(candidates)} | how)

    def score(
        self,
        conversation: Conversation,
        answers: Sequence[str],
        references: Sequence[str],
        **how: Any,
    ) -> list[float | None]:
        """Of each answer the share of verdicts against the references; None: there was none."""
        asked = {"answers": list(answers), "references": list(references)}
        return self._ask("/v1/score", conversation, asked | how)["scores"]

    def close(self) -> None:
        self._http.close()

    def _ask(self, path: str, conversation: Conversation, body: dict[str, Any]) -> dict[str, Any]:
        end = time.monotonic() + self._deadline_s
        turns = conversation if isinstance(conversation, str) else list(map(_turn, conversation))
        body = {"conversation": turns} | body
        pause_s = 0.25
        while True:
            left_s = end - time.monotonic()
            said, wanted_s = self._try(path, body, max(left_s, 0.001))
            if isinstance(said, dict):
                return said
            # Clients that were refused together must not come back together.
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            wait_s = max(wanted_s, pause_s) * random.uniform(0.75, 1.25)
            if time.monotonic() + wait_s >= end:
                raise JudgeError(f"{path}: no answer within {self._deadline_s:g} s: {said}")
            time.sleep(wait_s)

    def _try(
        self, path: str, body: dict[str, Any], timeout_s: float
    ) -> tuple[dict[str, Any] | str, float]:
        """The answer; or why there is none yet, and after how many seconds to ask again."""
        try:
            response = self._http.post(path, json=body, timeout=timeout_s)
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}", 0.0
        answer: Any = None
        with suppress(ValueError):
            answer = response.json()
        if response.status_code == httpx.codes.OK and isinstance(answer, dict):
            return answer, 0.0
        try:
            message = answer["error"]["message"]
        except (LookupError, TypeError):
            message = "no message: is this a served judge?"
        said = f"status {response.status_code}: {message}"
        if response.status_code not in _MAY_PASS:
            raise JudgeError(f"{path}: {said}", response.status_code)
        wanted = response.headers.get("retry-after", "")
        return said, float(wanted) if wanted.isdigit() else 0.0


class TrlReward:
    """`reward_funcs=TrlReward(...)`: the share of verdicts that a completion has, 0 to 1, against
    the data set's column `references` (a text or a list of them), or where there is none, against
    the other completions of its prompt, each with each. None, which TRL takes for "does not
    apply", where it has nothing to be compared with or no judgment has a verdict. An empty
    completion loses to every other.

    Prompts and completions may be texts or messages. TRL gives a process only its own share of the
    completions: without references a prompt's should not be split over processes. So many requests
    as `concurrency` are asked at once.
    """

    def __init__(
        self,
        client: JudgeClient | None = None,
        *,
        concurrency: int = 16,
        votes: int | None = None,
        orders: str | None = None,
        seed: int | None = None,
    ) -> None:
        self._client, self._concurrency = client or JudgeClient(), concurrency
        self._how = {"votes": votes, "orders": orders, "seed": seed}
        self.__name__ = "gavel_judge"  # TRL names its metrics by it

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        references: Sequence[Any] | None = None,
        **_: Any,
    ) -> list[float | None]:
        answers = [_answer(completion) for completion in completions]
        with ThreadPoolExecutor(self._concurrency) as pool:
            if references is not None:
                return list(pool.map(self._against, prompts, answers, references))
            groups = [list(group) for _, group in groupby(range(len(answers)), prompts.__getitem__)]
            members = [[answers[i] for i in group] for group in groups]
            rewards = pool.map(self._among, (prompts[group[0]] for group in groups), members)
            return [reward for group in rewards for reward in group]

    def _against(self, prompt: Any, answer: str, references: Any) -> float | None:
        texts = _texts(references)
        if not texts:
            return None
        if not answer.strip():
            return 0.0
        return self._client.score(prompt, [answer], texts, **self._how)[0]

    def _among(self, prompt: Any, answers: Sequence[str]) -> list[float | None]:
        if len(answers) < 2:
            return [None] * len(answers)
        written = [i for i, answer in enumerate(answers) if answer.strip()]
        empty = len(answers) - len(written)
        won, decided = [float(empty)] * len(written), [empty] * len(written)
        if len(written) > 1:
            ranking = self._client.rank(prompt, [answers[i] for i in written], **self._how)
            undecided = Counter(i for pair in ranking["undecided_pairs"] for i in pair)
            others = len(written) - 1
            for i, share in enumerate(ranking["scores"]):
                won[i] += share * others - undecided[i] / 2  # there they are draws
                decided[i] += others - undecided[i]
        rewards: list[float | None] = [0.0] * len(answers)
        for i, place in enumerate(written):
            rewards[place] = round(won[i] / decided[i], 6) if decided[i] else None
        return rewards


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    *,
    url: str | None = None,
    undecided: float | None = None,
    votes: int | None = None,
    orders: str | None = None,
    seed: int | None = None,
) -> float:
    """verl's signature. The share of verdicts, 0 to 1, that the solution has against the ground
    truth: a reference answer or a list of them. An empty solution has 0.

    What was asked is `extra_info["question"]`, a text or messages, which verl does not tell
    otherwise. `url`, `undecided` (the reward where no judgment has a verdict), `votes`, `orders`
    and `seed` may come from `reward.custom_reward_function.reward_kwargs`.

    Raises:
        JudgeError: there is no reward; a failure is never a number.
    """
    extra = {} if extra_info is None else extra_info
    question = extra.get("question", extra.get("prompt"))
    if question is None:
        raise JudgeError(f"{data_source}: extra_info has no question: add one to each row")
    if not solution_str.strip():
        return 0.0
    references = _texts(ground_truth)
    if not references:
        raise JudgeError(f"{data_source}: no ground_truth: give each row a reference answer")
    how = {"votes": votes, "orders": orders, "seed": seed}
    (share,) = _client(url).score(question, [solution_str], references, **how)
    share = undecided if share is None else share
    if share is None:
        raise JudgeError(f"{data_source}: no judgment has a verdict: set undecided, or more votes")
    return share


@cache
def _client(url: str | None) -> JudgeClient:
    return JudgeClient(url)


def _texts(references: str | Iterable[str] | None) -> list[str]:
    if references is None:
        return []
    return [references] if isinstance(references, str) else list(references)


def _turn(message: dict[str, Any]) -> dict[str, str]:
    return {"role": message["role"], "content": _text(message["content"])}


def _answer(completion: Any) -> str:
    """A completion as text: of messages the last, which follows those with tools."""
    return completion if isinstance(completion, str) else _text(completion[-1]["content"])


def _text(content: str | Iterable[dict[str, Any]] | None) -> str:
    """A message's content, which may be a list of parts."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.get("text", "") for part in content if part.get("type") == "text")
