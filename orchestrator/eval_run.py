"""`gavel eval MODEL`: reads the benchmarks, has what is missing judged, and writes the results."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.harness import Ask, JudgmentLog, Task, judge_all, missing, presentations
from evaluation.judgments import StoredJudgment
from evaluation.outcome import Outcome
from evaluation.verdicts import preference
from judging.errors import DataError
from judging.prompts import PromptTemplate, load_template
from orchestrator.benchmark_items import read_items
from orchestrator.benchmarks import (
    JUDGMENTS_FILE,
    write_json,
    write_outcomes,
)
from orchestrator.cluster import Cluster, ray_cluster
from orchestrator.config import RunConfig
from orchestrator.console import RunConsole, duration
from orchestrator.endpoint import TOKEN_VARIABLE, Endpoint
from orchestrator.eval_config import (
    IDENTITY_FILE,
    EvalSettings,
    check_identity,
    folder_of,
    identity_of,
)
from orchestrator.eval_engines import (
    EngineJudge,
    engines,
    requests_in_flight,
    unless_lost,
    until_signal,
)
from orchestrator.material import load_tokenizer
from orchestrator.versions import versions

TOO_LONG_FILE = "too-long.json"  # the limit in tokens, and the uids of pairs
JudgeWith = Callable[..., Coroutine[Any, Any, frozenset[str]]]  # `judge_all` of the tasks


@dataclass(frozen=True, slots=True)
class Evaluated:
    folder: Path
    outcomes: Sequence[Outcome]
    judged_now: int  # judgments; the others were there
    wall_s: float


@dataclass(slots=True)
class _Progress:
    """Shows how far it is, and how good the judge is so far."""

    console: RunConsole
    done: int  # judgments that were there
    total: int
    began_s: float = 0.0
    passed_s: float = 0.0
    new: int = 0
    right: int = 0
    tokens: int = 0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While judgments are made."""
        self.began_s = time.monotonic()
        self.console.begin_phase("evaluate", self.total, done=self.done)
        try:
            yield
        finally:
            self.console.end_phase()

    def show(self, judgments: Sequence[StoredJudgment]) -> None:
        for judgment in judgments:
            self.new += 1
            self.right += preference(judgment.letter, judgment.order) == 1
            self.tokens += judgment.tokens
        self.passed_s = time.monotonic() - self.began_s
        pace = self.tokens / max(self.passed_s, 1e-3)
        metrics = {"accuracy": self.right / self.new, "tokens_per_s": pace}
        self.console.step(self.done + self.new, metrics)


def evaluate_model(
    model: str, config: RunConfig, settings: EvalSettings, output: Path | None, console: RunConsole
) -> Evaluated:
    """Judges what is not judged yet, and writes results and page; into `output`, or a folder below
    evaluations/ that is named by all that the judgments depend on.

    Raises:
        DataError: the benchmarks' files cannot be used.
        ConfigurationError: the folder holds judgments of another kind, or the judge cannot be
            asked.
        InfrastructureError: engines or endpoint failed; what was judged is kept.
        Stop: a signal; the same command goes on.
    """
    began_s = time.monotonic()
    items = read_items(
        settings.benchmarks,
        settings.data,
        limit=settings.limit,
        seed=settings.seed,
        say=console.say,
    )
    template = load_template(config.judge.template)
    identity = identity_of(model, config, settings)
    folder = output or folder_of(identity, Path("evaluations"))
    check_identity(identity, folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / IDENTITY_FILE, {"identity": identity, "versions": versions()})
    pairs = (each.pair for item in items for each in item.comparisons)
    shown = presentations(pairs, protocol=settings.protocol, seed=settings.seed)
    with JudgmentLog(folder / JUDGMENTS_FILE) as log:
        before = len(log)
        too_long = _known_too_long(folder, config)
        fitting = (each for each in shown if each.pair.uid not in too_long)
        tasks = missing(fitting, settings.votes, log.has)
        console.say(_what_is_left(tasks, before, folder))
        progress = _Progress(console, before, before + _count(tasks))
        too_long |= _judge(model, config, settings, template, tasks, log, progress)
        write_json(folder / TOO_LONG_FILE, [config.data.max_prompt_tokens, sorted(too_long)])
        judgments = log.all()
    wall_s = time.monotonic() - began_s
    took = {
        "wall_s": wall_s,
        "judged_now": progress.new,
        "judging_s": progress.passed_s,  # without the start of the engines
        "tokens_now": progress.tokens,
    }
    facts = _facts(settings, wall_s)
    parts = (folder, model, settings, items, judgments)
    found = write_outcomes(*parts, too_long=too_long, took=took, facts=facts)
    if not found:
        raise DataError(
            f"all prompts are longer than {config.data.max_prompt_tokens:,} tokens "
            "(data.max_prompt_tokens): raise it, if the model can read more"
        )
    return Evaluated(folder, found, progress.new, wall_s)


def _known_too_long(folder: Path, config: RunConfig) -> frozenset[str]:
    """Uids of pairs that did not fit, under the same limit, so that no engine starts for them."""
    path = folder / TOO_LONG_FILE
    limit, uids = json.loads(path.read_text("utf-8")) if path.exists() else (None, [])
    return frozenset(uids if limit == config.data.max_prompt_tokens else ())


def _what_is_left(tasks: Sequence[Task], before: int, folder: Path) -> str:
    there = f", {before:,} are there" if before else ""
    return f"{_count(tasks):,} judgments to make{there}; see {folder}"


def _judge(
    model: str,
    config: RunConfig,
    settings: EvalSettings,
    template: PromptTemplate,
    tasks: Sequence[Task],
    log: JudgmentLog,
    progress: _Progress,
) -> frozenset[str]:
    """The uids of pairs that are too long for the judge."""
    if not tasks:
        return frozenset()

    async def judge_with(ask: Ask, *, in_flight: int) -> frozenset[str]:
        with progress.shown():
            return await judge_all(
                tasks,
                ask,
                log,
                in_flight=in_flight,
                strict_tail=config.judge.strict_tail,
                show=progress.show,
            )

    if settings.endpoint is None:
        return _by_engines(config, settings, template, judge_with, progress.console)
    return asyncio.run(_by_endpoint(model, config, settings, template, judge_with))


def _by_engines(
    config: RunConfig,
    settings: EvalSettings,
    template: PromptTemplate,
    judge_with: JudgeWith,
    console: RunConsole,
) -> frozenset[str]:
    rollout = config.rollout
    assert config.model.path is not None, "it is the judge"
    tokenizer = load_tokenizer(config, config.model.path)
    in_flight = requests_in_flight(rollout)

    async def drive(cluster: Cluster) -> frozenset[str]:
        async with engines(config, cluster, tell=console.say) as fleet:
            judge = EngineJudge(
                fleet,
                template,
                tokenizer,
                max_prompt_tokens=config.data.max_prompt_tokens,
                max_new_tokens=rollout.max_new_tokens,
                temperature=settings.temperature,
                seed=settings.seed,
            )
            requests = max(1, in_flight // settings.votes)
            return await unless_lost(cluster, judge_with(judge, in_flight=requests))

    with ray_cluster(max(os.cpu_count() or 1, rollout.workers * rollout.cpu_threads)) as cluster:
        console.say("starting rollout workers")
        return asyncio.run(until_signal(drive(cluster)))


async def _by_endpoint(
    model: str,
    config: RunConfig,
    settings: EvalSettings,
    template: PromptTemplate,
    judge_with: JudgeWith,
) -> frozenset[str]:
    assert settings.endpoint is not None
    endpoint = Endpoint(
        settings.endpoint,
        model,
        template,
        token=os.environ.get(TOKEN_VARIABLE),
        temperature=settings.temperature,
        max_new_tokens=config.rollout.max_new_tokens,
        seed=settings.seed,
        timeout_s=config.deadlines.generate_s,
    )
    async with endpoint as judge:
        return await until_signal(judge_with(judge, in_flight=settings.concurrency))


def _facts(settings: EvalSettings, wall_s: float) -> dict[str, str]:
    temperature = f"{settings.temperature:g}" if settings.temperature else "0 (greedy)"
    return {
        "protocol": settings.protocol,
        "votes": str(settings.votes),
        "temperature": temperature,
        "seed": str(settings.seed),
        **({"limit": f"{settings.limit:,} items, drawn by seed"} if settings.limit else {}),
        "took": duration(wall_s),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }


def _count(tasks: Sequence[Task]) -> int:
    return sum(len(task.votes) for task in tasks)
