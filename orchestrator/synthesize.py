"""The phase `synthesize`: teachers write traces, verified ones become a data set to distil from.

Phases of it that come first run before a cluster is started, since services write their traces.
What is asked, answered and decided is in the phase's ledger; the journal tells when it began and
ended.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from judging.prompts import PromptTemplate, load_template, template_version
from judging.records import PreferencePair
from judging.splits import Split
from orchestrator.config import RunConfig, SynthesizePhase
from orchestrator.disk import atomic_writer
from orchestrator.journal import RunJournal
from orchestrator.pairs import LoadedPairs, load_pairs
from orchestrator.position import Position
from orchestrator.recovery import on_learners
from orchestrator.run import Run
from orchestrator.rundir import RunDirectory
from orchestrator.stopping import StopRequest
from orchestrator.synthesis_engines import engine_service, policy_scorer, policy_service
from orchestrator.synthesis_plan import load_pass_template
from orchestrator.synthesis_report import SUMMARY, synthesis_tables
from orchestrator.synthesis_rules import SERVICES, key_variable
from orchestrator.telemetry import Telemetry
from orchestrator.versions import versions
from synthesis.asking import Asker, Probation, Service, check_all
from synthesis.batches import batch_service
from synthesis.budget import Budget, price_of
from synthesis.couriers import undelivered, wait_for_others
from synthesis.dataset import DatasetFacts, write_dataset
from synthesis.endpoint import Endpoint
from synthesis.functions import FunctionService
from synthesis.ledger import Ledger
from synthesis.passes import Scorer, Synthesis
from synthesis.records import Outcome
from synthesis.settings import Price, SynthesizeSettings, Teacher
from synthesis.spending import spending_tree
from synthesis.tally import Tally

CHECK_S = 120.0  # until all services have said that they can be asked
LEDGER, CACHE = "ledger.sqlite", "answers.sqlite"
_SHOWN_EVERY_S, _SHOWN_SHARE = 2.0, 0.02  # of the time, at most
# Of a teacher, what decides its answers.
_ASKED = (
    *("uses", "model", "temperature", "max_new_tokens"),
    *("parameters", "options", "keep_reasoning"),
)
_ROOM_S = 30.0  # beyond a try's own deadline, for those of a driver that died


@dataclass(frozen=True, slots=True)
class Parts:
    """What a phase of synthesis needs of its run."""

    config: RunConfig
    directory: RunDirectory
    journal: RunJournal
    telemetry: Telemetry
    stop: StopRequest
    split: Split
    run: Run | None = None  # with engines, where the phase comes after others


async def synthesize(run: Run, index: int, phase: SynthesizePhase) -> None:
    """A phase between others, which may ask the run's own weights."""
    if phase.settings.asks_policy and run.trained == "distill":  # whose steps publish nothing
        await on_learners(run, run.publisher.publish)
    parts = Parts(
        run.config,
        run.directory,
        run.journal,
        run.telemetry,
        run.stop,
        run.material.split,
        run,
    )
    await _synthesize(parts, index, phase, weight_version=run.publisher.version)


def run_ahead(
    config: RunConfig,
    directory: RunDirectory,
    journal: RunJournal,
    telemetry: Telemetry,
    position: Position,
) -> tuple[Position, LoadedPairs | None]:
    """The phases of it that come before all others; where the run then stands, and the pairs if
    they were read."""
    if position.phase >= config.phases_ahead:
        return position, None
    loaded = load_pairs(config)
    for note in loaded.notes:
        telemetry.say(note)
    # The pairs stay: to look through 100,000 of them for garbage again and again takes a sixth.
    gc.collect()
    gc.freeze()
    stop = StopRequest(config.deadlines.grace_s, say=telemetry.say)
    parts = Parts(config, directory, journal, telemetry, stop, loaded.split)
    return asyncio.run(_run_ahead(parts, position)), replace(loaded, notes=())


async def _run_ahead(parts: Parts, position: Position) -> Position:
    driving = asyncio.current_task()
    assert driving is not None
    stop, vitals = parts.stop, parts.telemetry.vitals
    stop.listen(driving)
    stop.has_begun = True
    vitals.change(status="running")
    try:
        for index, phase in enumerate(parts.config.phases[: parts.config.phases_ahead]):
            if index >= position.phase and phase.kind == "synthesize":
                stop.check()
                await _synthesize(parts, index, phase, weight_version=0)
                position = replace(position, phase=index + 1)
    except asyncio.CancelledError:
        raise stop.at_once() from None
    finally:
        stop.ended()
    return position


async def _synthesize(
    parts: Parts, index: int, phase: SynthesizePhase, *, weight_version: int
) -> None:
    config, settings, telemetry = parts.config, phase.settings, parts.telemetry
    pairs = _pairs(parts.split, settings)
    folder = parts.directory.synthesis(index)
    templates = [load_pass_template(config, each) for each in settings.passes]
    parts.journal.begin_phase(index, "synthesize", len(pairs))
    await wait_for_others(folder, _longest_s(settings), telemetry.say)
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(folder / LEDGER))
        cache = None
        if settings.cache is not None:
            cache = stack.enter_context(Ledger(Path(settings.cache) / CACHE, is_shared=True))
            cache.check_templates(_versions(templates))
        if forgotten := ledger.decide_by(_decided_by(settings, templates)):
            telemetry.say(
                f"other settings than before: {forgotten:,} pairs are decided anew, from the "
                "answers there are and those still needed"
            )
        if reopened := ledger.reopen_unanswered():
            telemetry.say(f"pairs whose teachers did not answer, asked about again: {reopened:,}")
        tally = Tally.of(ledger.outcomes())
        async with _askers(parts, folder, settings, ledger, cache) as askers:
            await check_all(list(askers.values()), CHECK_S)
            await _take_up(folder, askers, ledger, settings.prices, telemetry.say)
            done = tally.asked
            stack.enter_context(telemetry.phase("synthesize", index, len(pairs), done=done))
            work = Synthesis(
                settings,
                askers,
                templates,
                ledger,
                seed=config.run.seed,
                strict_tail=config.judge.strict_tail,
                scorer=_scorer(parts, settings),
                show=_Progress(telemetry, parts.journal, ledger, tally, settings.prices),
                between=parts.stop.check,
            )
            await parts.stop.while_waited_for(work.run(pairs))
        facts = _facts(parts, settings, templates, work.spent)
        count, digest = await asyncio.to_thread(
            write_dataset,
            *(folder, settings.format, pairs, ledger),
            load_template(config.judge.template),
            facts,
        )
        ending = {"traces": count, "ended_early": work.spent}
        _conclude(parts, folder, tally, ledger, settings.prices, ending)
    parts.journal.event("synthesized", phase=index, traces=count, sha256=digest)
    parts.journal.end_phase(index, weight_version)


def _pairs(split: Split, settings: SynthesizeSettings) -> Sequence[PreferencePair]:
    pairs = split.distill if settings.of == "distill" else split.reinforce
    unique = {pair.uid: pair for pair in pairs}  # a pair may have several traces already
    return list(unique.values())[: settings.pairs]


def _versions(templates: Sequence[PromptTemplate]) -> dict[str, str]:
    return {template.name: template_version(template) for template in templates}


def _decided_by(settings: SynthesizeSettings, templates: Sequence[PromptTemplate]) -> str:
    """A hash of what outcomes follow from, beside the answers."""
    rest = {name: getattr(settings, name) for name in ("passes", "of", "pairs", "order", "keep")}
    asked = {
        name: {field: getattr(teacher, field) for field in _ASKED}
        for name, teacher in settings.used.items()
    }
    decisive = [asked, rest, asdict(settings.checks), _versions(templates)]
    written = json.dumps(decisive, sort_keys=True, default=str)
    return hashlib.sha256(written.encode()).hexdigest()


def _longest_s(settings: SynthesizeSettings) -> float:
    tries = (t.timeout_s for t in settings.used.values() if t.uses == "openai")
    return max(tries, default=0.0) + _ROOM_S


@asynccontextmanager
async def _askers(
    parts: Parts,
    folder: Path,
    settings: SynthesizeSettings,
    ledger: Ledger,
    cache: Ledger | None,
) -> AsyncIterator[Mapping[str, Asker]]:
    spending = ledger.spending()
    budget = Budget(
        settings.max_cost_usd,
        settings.max_requests,
        spent_nusd=sum(each.cost_nusd for each in spending),
        requests=sum(each.tries for each in spending),
    )
    async with _services(parts, folder, settings.used, ledger) as services:
        yield {
            name: Asker(
                name,
                settings.teachers[name],
                service,
                ledger=ledger,
                # The run's own weights are another model in each run.
                cache=None if settings.teachers[name].uses == "policy" else cache,
                budget=budget,
                price=price_of(settings.prices, settings.teachers[name].model),
                probation=Probation(name, settings.nonsense_window, settings.max_nonsense),
                clock=time.monotonic,
                seed=parts.config.run.seed,
            )
            for name, service in services.items()
        }


@asynccontextmanager
async def _services(
    parts: Parts, folder: Path, teachers: Mapping[str, Teacher], ledger: Ledger
) -> AsyncIterator[Mapping[str, Service]]:
    services: dict[str, Service] = {}
    with ExitStack() as stack:
        try:
            for name, teacher in teachers.items():
                if teacher.uses == "openai":
                    variable = key_variable(teacher)
                    services[name] = Endpoint(name, teacher, folder=folder, key_variable=variable)
                elif teacher.uses in SERVICES:
                    variable = key_variable(teacher)
                    services[name] = batch_service(
                        name, teacher, key_variable=variable, ledger=ledger
                    )
                elif teacher.uses == "policy":
                    assert parts.run is not None, "the rules put it after other phases"
                    services[name] = policy_service(parts.run)
                elif teacher.uses == "engines":
                    services[name] = await engine_service(
                        stack, parts.config, teacher, parts.telemetry.say
                    )
                else:
                    services[name] = FunctionService(name, teacher)
            yield services
        finally:
            await asyncio.gather(*(each.close() for each in services.values()))


async def _take_up(
    folder: Path,
    askers: Mapping[str, Asker],
    ledger: Ledger,
    prices: Mapping[str, Price] | None,
    say: Callable[[str], object],
) -> None:
    """What teachers answered to a driver that did not live to write it down."""
    services = {name: asker.service for name, asker in askers.items()}
    endpoints = {name: each for name, each in services.items() if isinstance(each, Endpoint)}
    for path, entries in undelivered(folder):
        if unknown := {entry["teacher"] for entry in entries} - endpoints.keys():
            names = ", ".join(sorted(unknown))
            say(f"{path}: answers of {names}, which no pass asks so now: left until one does")
            continue
        for entry in entries:
            answer = endpoints[entry["teacher"]].read(entry["body"])
            if answer is not None:
                model = ledger.model_of(entry["key"])  # another one may write for the teacher now
                price = price_of(prices, model)
                await askers[entry["teacher"]].take_up(entry["key"], answer, model, price)
        path.unlink()


def _scorer(parts: Parts, settings: SynthesizeSettings) -> Scorer | None:
    if settings.keep != "reward" or parts.run is None:
        return None
    return policy_scorer(parts.run)


class _Progress:
    """Shows and measures, every so often."""

    def __init__(
        self,
        telemetry: Telemetry,
        journal: RunJournal,
        ledger: Ledger,
        tally: Tally,
        prices: Mapping[str, Price] | None,
    ) -> None:
        self._telemetry, self._journal = telemetry, journal
        self._ledger, self._tally, self._prices = ledger, tally, prices
        self._next_s = float("-inf")

    def __call__(self, outcome: Outcome) -> None:
        self._tally.add(outcome)
        if (began_s := time.monotonic()) < self._next_s:
            return
        metrics = measured(self._tally, self._ledger, self._prices)
        self._telemetry.synthesis(self._tally.asked, metrics)
        self._journal.note_progress(self._tally.asked, metrics)
        # Summing up a large ledger takes long, and nothing is asked meanwhile.
        took_s = time.monotonic() - began_s
        self._next_s = began_s + max(_SHOWN_EVERY_S, took_s / _SHOWN_SHARE)


def measured(tally: Tally, ledger: Ledger, prices: Mapping[str, Price] | None) -> dict[str, float]:
    """What has come of the pairs and what was spent, as metrics; no costs where none are known."""
    spending = ledger.spending()
    cost_usd = spending_tree(spending, prices)["cost_usd"]
    return {
        **tally.metrics(),
        "synthesis/requests": sum(each.tries for each in spending),
        "synthesis/answers": sum(each.answers for each in spending),
        "synthesis/input_tokens": sum(each.input_tokens for each in spending),
        "synthesis/output_tokens": sum(each.output_tokens for each in spending),
        **({} if cost_usd is None else {"synthesis/cost_usd": cost_usd}),
    }


def _facts(
    parts: Parts,
    settings: SynthesizeSettings,
    templates: Sequence[PromptTemplate],
    spent: str | None,
) -> DatasetFacts:
    lines: list[str] = []
    for number, (each, template) in enumerate(zip(settings.passes, templates, strict=True), 1):
        teacher = settings.teachers[each.teacher]
        told = ", with the verdict and the failed trace" if each.tells_verdict else ""
        lines.append(
            f"pass {number}: teacher {each.teacher} ({teacher.model or teacher.uses}), template "
            f"{template.name}, samples {each.samples}{told}"
        )
    return DatasetFacts(
        name=parts.directory.run_id,
        template=parts.config.judge.template,
        template_versions=_versions(templates),
        checks=settings.checks,
        passes=lines,
        told=[each.tells_verdict for each in settings.passes],
        versions=versions(),
        spent=spent,
        prices=settings.prices,
    )


def _conclude(
    parts: Parts,
    folder: Path,
    tally: Tally,
    ledger: Ledger,
    prices: Mapping[str, Price] | None,
    ending: Mapping[str, Any],
) -> None:
    """Says and writes down what came of it."""
    parts.telemetry.synthesis(tally.asked, measured(tally, ledger, prices), is_last=True)
    summary = {**summary_of(tally, ledger, prices), **ending}
    with atomic_writer(folder / SUMMARY) as file:
        json.dump(summary, file, indent=2)
    parts.telemetry.show(synthesis_tables(summary))
    if why := ending["ended_early"]:
        parts.telemetry.say(f"synthesis ended early: {why}")


def summary_of(tally: Tally, ledger: Ledger, prices: Mapping[str, Price] | None) -> dict[str, Any]:
    """What came of the pairs, and what each teacher was paid, as plain values."""
    paid, _ = ledger.undecided_counts()
    spent = spending_tree(ledger.spending(), prices)
    return {**tally.tree(), "undecided_answers": paid, **spent}
