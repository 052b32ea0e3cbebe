"""The driver: starts the parts, runs the phases in order, writes down the end."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from typing import Any

from actors.environment import RUN_VARIABLE
from actors.fleet import RolloutFleet
from actors.learner_group import LearnerGroup
from actors.placement import Placement, has_gpus
from actors.publisher import WeightPublisher
from actors.rollout import EngineSpec
from actors.urls import on_disk
from actors.verifier_pool import VerifierPool
from judging.errors import GavelError, Stop
from learning.settings import ModelSpec
from orchestrator.background import in_background
from orchestrator.cluster import Cluster, ray_cluster
from orchestrator.commands import Commands
from orchestrator.commits import checkpoint_what_stands
from orchestrator.config import RunConfig
from orchestrator.config_loading import config_tree, dump_config
from orchestrator.console import aside, errors_with_place, quiet_libraries
from orchestrator.evaluating import evaluate
from orchestrator.facts import model_facts
from orchestrator.health_endpoint import health_endpoint
from orchestrator.journal import RunJournal
from orchestrator.lease import Lease
from orchestrator.material import Material, prepare, probe
from orchestrator.memory import host_memory
from orchestrator.pairs import LoadedPairs
from orchestrator.peak_memory import PeakMemory
from orchestrator.phases import distill
from orchestrator.prometheus import RayMetrics
from orchestrator.recovery import go_to, write_again
from orchestrator.reinforce import reinforce
from orchestrator.report import write_report
from orchestrator.resume import (
    Position,
    check_journal_is_there,
    check_unchanged,
    evaluated,
    position_now,
    settle,
)
from orchestrator.reward_panel import RewardPanel
from orchestrator.run import Run
from orchestrator.rundir import RunDirectory
from orchestrator.runs import open_run
from orchestrator.shared_directory import check_shared
from orchestrator.stopping import AskedToStop, StopRequest
from orchestrator.store import Store, open_store
from orchestrator.summary import FinalStatus, Summary
from orchestrator.synthesis_report import synthesized
from orchestrator.synthesize import run_ahead, synthesize
from orchestrator.telemetry import Telemetry
from orchestrator.versions import versions
from orchestrator.vitals import Vitals

JOINING = 16  # rollout workers that a cluster of our own has room for, besides those at the start
SHOWN_EVERY_S = 5.0  # what is so now; half of the time between two reports of Ray
TAKEOVER_S = 60.0  # until another driver's lease has run out


def run(config: RunConfig) -> int:
    """Runs all phases; returns the exit code.

    Raises:
        GavelError: bad data, a part that failed, or Ctrl-C; the run's directory says so too.
    """
    quiet_libraries()
    started, run_id = time.monotonic(), config.run.id
    assert run_id is not None, "the command line names the run"
    directory = open_run(config.run.dir, run_id)
    if directory.is_begun:
        check_unchanged(directory.read_config(), config_tree(config), synthesized(directory.path))
    os.environ[RUN_VARIABLE] = run_id
    vitals = Vitals(run_id)
    say = partial(aside, vitals)
    with ExitStack() as stack:
        stack.enter_context(errors_with_place(vitals))
        stack.enter_context(health_endpoint(config, vitals))
        memory = stack.enter_context(PeakMemory())
        store = stack.enter_context(_open_store(config, directory, say))
        lease = Lease(store.client, run_id, is_alone=config.store.url is None)
        epoch = stack.enter_context(lease.hold(wait_s=TAKEOVER_S, say=say))
        directory.write_config(dump_config(config))  # no other driver has the run now
        journal = RunJournal(store.client, run_id, epoch=epoch)
        position = _begin(config, directory, journal, say)
        telemetry = stack.enter_context(_telemetry(config, directory, position, vitals))
        evaluations = evaluated(journal)
        status: FinalStatus = "failed"
        best = None
        try:
            parts = (config, directory, journal, telemetry)
            position, loaded = run_ahead(*parts, position)
            if not config.is_driver_alone:
                _on_cluster(*parts, position, evaluations, loaded)
            status = "done"
        except asyncio.CancelledError:  # of a second signal, while the actors were ended
            status = "stopped"
            raise Stop("stopped at once; what was committed is kept") from None
        except Stop:
            status = "stopped"
            raise
        finally:
            wall_s = time.monotonic() - started
            with suppress(GavelError):  # of a store that is lost, which is told already
                best = journal.best()
            summary = Summary(
                run_id=run_id,
                status=status,
                seed=config.run.seed,
                wall_s=wall_s,
                evaluations=tuple(evaluations),
                best=best,
                peak_rss_bytes=memory.peak_bytes,
                versions=versions(),
            )
            failures = end_run(journal, directory, summary)
            for failure in failures:
                telemetry.say(f"while ending the run: {failure}")
            directory.mirror(telemetry.say)
        if failures:
            raise failures[0]
        telemetry.final_table(evaluations, summary.best)
        telemetry.say(f"run {run_id} done in {wall_s:.0f} s; see {directory.where}")
    return 0


def _on_cluster(
    config: RunConfig,
    directory: RunDirectory,
    journal: RunJournal,
    telemetry: Telemetry,
    position: Position,
    evaluations: list[Any],
    loaded: LoadedPairs | None,
) -> None:
    """All other phases."""
    reading = in_background(lambda: prepare(config, directory.path, directory.share_model, loaded))
    with ray_cluster(_logical_cpus(config)) as cluster:
        telemetry.to_ray = RayMetrics(directory.run_id)
        material = reading.result()
        for note in material.notes:
            telemetry.say(note)
        parts = (material, journal, telemetry, position, evaluations)
        asyncio.run(_drive(config, cluster, directory, *parts))


def end_run(journal: RunJournal, directory: RunDirectory, summary: Summary) -> list[Exception]:
    """Writes down the end as far as it can be; what went wrong must not hide why the run ended."""
    failures: list[Exception] = []
    for write in (
        lambda: journal.finish(summary.status),
        lambda: journal.export(directory.events),
        lambda: directory.write_summary(summary),
        lambda: write_report(directory),
    ):
        try:
            write()
        except (GavelError, OSError) as error:
            failures.append(error)
    return failures


def _open_store(
    config: RunConfig, directory: RunDirectory, say: Callable[[str], None]
) -> AbstractContextManager[Store]:
    section = config.store
    return open_store(
        section.url,
        directory.path,
        prefix=section.prefix,
        patience_s=section.patience_s,
        say=say,
    )


def _begin(
    config: RunConfig, directory: RunDirectory, journal: RunJournal, say: Callable[[str], None]
) -> Position:
    """Begins the run, or takes up the one that the journal holds."""
    if not journal.is_begun:
        check_journal_is_there(directory)
        journal.begin_run(dump_config(config), versions(), config.run.seed)
        return Position()
    kinds = [phase.kind for phase in config.phases]
    position = position_now(config, journal, directory)
    journal.resume_run(dump_config(config), versions())
    for line in settle(directory, journal, kinds, position):
        say(line)
    return position


async def _drive(
    config: RunConfig,
    cluster: Cluster,
    directory: RunDirectory,
    material: Material,
    journal: RunJournal,
    telemetry: Telemetry,
    position: Position,
    evaluations: list[Any],
) -> None:
    """Starts the actors, runs the phases, ends the actors; a signal ends it by `Stop`."""
    driving = asyncio.current_task()
    assert driving is not None
    stop = StopRequest(config.deadlines.grace_s, say=telemetry.say)
    stop.listen(driving)
    watch = asyncio.create_task(stop.end_on(cluster.lost(), driving))
    asyncio.get_running_loop().set_exception_handler(_without_cancellations)
    placement = _placement(config, cluster, tell=telemetry.say)
    learners, fleet = _actors(config, material, placement, tell=telemetry.say)
    panel = _panel(config, placement)
    try:
        if (shared := on_disk(config.run.dir)) is not None:
            await check_shared(shared / str(config.run.id))
        await placement.reserve()
        for lost in position.rebuilds:
            await _write_again(config, directory, material, placement, journal, telemetry, lost)
        telemetry.vitals.change(status="starting")
        telemetry.say("starting learners, rollout workers and verifiers")
        spec = _model_spec(config, material, directory, position)
        seed = config.run.seed
        temperature = config.rollout.temperature
        await asyncio.gather(
            panel.start(journal.mix()),
            fleet.start(),
            learners.start(spec, temperature=temperature, seed=seed),
        )
        publisher = WeightPublisher(
            learners, fleet, config.publication, config.deadlines, probe(config, material)
        )
        commands = Commands(journal, panel, fleet, telemetry)
        parts = (learners, fleet, panel, commands, publisher, journal, telemetry, stop)
        run = Run(config, directory, material, *parts, position, evaluations)
        telemetry.vitals.change(status="running")
        await go_to(run)
        await _run_phases(run)
    except asyncio.CancelledError:
        raise stop.at_once() from None
    finally:
        telemetry.vitals.change(status="ending")
        watch.cancel()
        # What goes wrong here, as when a signal ended the actors too, does not change the outcome.
        endings = await asyncio.gather(fleet.stop(), panel.stop(), return_exceptions=True)
        for error in endings:
            if isinstance(error, GavelError):
                telemetry.say(f"while ending the actors: {error}")


async def _run_phases(run: Run) -> None:
    """Those that are left, in order."""
    run.stop.has_begun = True
    showing = asyncio.create_task(_show(run))
    try:
        for index, phase in enumerate(run.config.phases):
            if index < run.position.phase:
                continue
            run.stop.check()
            match phase.kind:
                case "synthesize":
                    await synthesize(run, index, phase)
                case "distill":
                    await distill(run, index, phase)
                case "reinforce":
                    await reinforce(run, index, phase)
                case "evaluate":
                    await evaluate(run, index, phase)
            await run.directory.in_background(run.directory.mirror, run.telemetry.say)
    except AskedToStop:
        await checkpoint_what_stands(run)
        raise
    finally:
        showing.cancel()
        run.stop.ended()


async def _show(run: Run) -> None:
    """Shows the cluster what is so now, also while a step takes long."""
    while True:
        run.telemetry.show_now(
            {
                "engines": run.fleet.working,
                "engine_restarts": run.fleet.restarts,
                "learner_restarts": run.learners.restarts,
                "weight_version": run.publisher.version,
            }
        )
        await asyncio.sleep(SHOWN_EVERY_S)


async def _write_again(
    config: RunConfig,
    directory: RunDirectory,
    material: Material,
    placement: Placement,
    journal: RunJournal,
    telemetry: Telemetry,
    lost: Position,
) -> None:
    """A damaged checkpoint of a phase that has ended, by learners of its own."""
    learners = LearnerGroup(config.learner, config.deadlines, placement)
    spec = _model_spec(config, material, directory, lost)
    try:
        await learners.start(spec, temperature=config.rollout.temperature, seed=config.run.seed)
        await write_again(learners, config, material, directory, journal, telemetry, lost)
    finally:
        learners.stop()


def _without_cancellations(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A second signal cancels waits that nobody looks at any more: no matter for a traceback."""
    if not isinstance(context.get("exception"), asyncio.CancelledError):
        loop.default_exception_handler(context)


def _placement(config: RunConfig, cluster: Cluster, *, tell: Callable[[str], object]) -> Placement:
    sections = (config.placement, config.learner, config.rollout, config.deadlines)
    # Of our own cluster's one machine it is known already.
    is_asked = not (cluster.is_own or has_gpus() or config.rollout.tensor_parallel > 1)
    memory = host_memory(config, model_facts(config)) if is_asked else {}
    verifiers = config.verifier.workers
    return Placement(*sections, verifiers=verifiers, memory_bytes=memory, tell=tell)


def _actors(
    config: RunConfig, material: Material, placement: Placement, *, tell: Callable[[str], object]
) -> tuple[LearnerGroup, RolloutFleet]:
    engine = EngineSpec(
        model_path=material.model_path,
        dtype=config.model.dtype,
        context_tokens=config.context_tokens,
        settings=config.rollout,
        trust_remote_code=config.model.trust_remote_code,
        revision=config.model.revision if config.model.make is None else None,
    )
    learners = LearnerGroup(config.learner, config.deadlines, placement, tell=tell)
    return learners, RolloutFleet(engine, config.deadlines, placement, tell=tell)


def _model_spec(
    config: RunConfig, material: Material, directory: RunDirectory, position: Position
) -> ModelSpec:
    return ModelSpec(
        path=material.model_path,
        dtype=config.model.dtype,
        revision=config.model.revision if config.model.make is None else None,
        trust_remote_code=config.model.trust_remote_code,
        weights=str(directory.place(position.weights)) if position.weights else None,
    )


def _panel(config: RunConfig, placement: Placement) -> RewardPanel:
    pool = VerifierPool(
        workers=config.verifier.workers,
        max_restarts=config.verifier.max_restarts,
        strict_tail=config.judge.strict_tail,
        max_new_tokens=config.rollout.max_new_tokens,
        allowed_hosts=config.reward.allowed_hosts,
        deadlines=config.deadlines,
        placement=placement,
    )
    return RewardPanel(pool, config.reward)


def _logical_cpus(config: RunConfig) -> int:
    """Enough for every actor to be placed, those too that join; they take turns on the cores."""
    engines = (config.rollout.workers + JOINING) * config.rollout.cpu_threads
    return max(os.cpu_count() or 1, engines + config.learner.ranks * config.learner.cpu_threads)


def _telemetry(
    config: RunConfig, directory: RunDirectory, position: Position, vitals: Vitals
) -> Telemetry:
    output = config.output
    return Telemetry(
        directory,
        tensorboard=output.tensorboard,
        samples=output.samples,
        samples_every_steps=output.samples_every_steps,
        progress=output.progress,
        steps_done=position.steps + position.step,
        vitals=vitals,
    )
