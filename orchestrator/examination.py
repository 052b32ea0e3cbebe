"""Gathers what `gavel doctor` judges: of this machine, of a run's store, of a Ray cluster's nodes.

A node that does not answer within the deadline is a row that says so.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import redis

from actors.urls import cache_root, on_disk
from judging.errors import ConfigurationError, GavelError, InfrastructureError
from orchestrator import doctor
from orchestrator.cluster import OBJECT_STORE_BYTES, joined
from orchestrator.config import RunConfig
from orchestrator.doctor import Row, StoreFacts, row
from orchestrator.facts import Facts, gather_facts
from orchestrator.memory import ADAM_BYTES, DTYPE_BYTES, MASTER_BYTES
from orchestrator.node_facts import NodeFacts, look
from orchestrator.phase_kinds import TRAINING
from orchestrator.plan import Plan, make_plan
from orchestrator.preflight import (
    STORE_TIMEOUT_S,
    check_inputs,
    check_store,
    find_obstacles,
    nearest_existing,
    too_few_gpus,
)
from orchestrator.store_client import connect, without_password
from orchestrator.store_server import redis_binary
from orchestrator.survey import Survey, survey
from orchestrator.versions import pinned_versions

THIS = "this machine"


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined; without a configuration only what every run needs."""

    config: RunConfig | None
    facts: Facts | None  # of the configuration
    own: NodeFacts  # of this machine, as this process sees it

    @property
    def parameters(self) -> int | None:
        return self.facts.model.parameters if self.facts else None

    @property
    def folder(self) -> Path:
        """Where runs go on this machine."""
        if self.config is None:
            return Path("runs")
        return self.shared_folder or cache_root()

    @property
    def shared_folder(self) -> Path | None:
        """The one that all nodes must share; of what is at a URL there is none."""
        return on_disk(self.config.run.dir) if self.config else None

    def plan(self, gpus: int | None) -> tuple[Plan, Facts] | None:
        """On this machine, or on a cluster that has so many GPUs."""
        if self.config is None or self.facts is None:
            return None
        facts, machine = self.facts, self.facts.machine
        if gpus is not None:
            machine = replace(machine, gpus=gpus, gpu_memory_bytes=None, is_cluster=True)
            facts = replace(facts, machine=machine)
        return make_plan(self.config, facts), facts


def examine(config: RunConfig | None, address: str | None, *, timeout_s: float) -> list[Row]:
    """This machine, or the cluster at `address` with this machine as its driver's.

    `timeout_s` is what each node has for each answer.

    Raises:
        ConfigurationError, DataError: the configuration, its data or its model is wrong anywhere.
    """
    facts = None
    if config is not None:
        facts = gather_facts(config)
        check_inputs(config, facts)
    subject = Subject(config, facts, look())
    rows = [doctor.judge_variables(os.environ)]
    if address is None:
        rows += _this_machine(subject)
    else:
        rows += _cluster(subject, address, timeout_s)
    if config is not None:
        rows += doctor.judge_store(look_at_store(config))
    return rows


def _this_machine(subject: Subject) -> list[Row]:
    own, nodes = subject.own, {THIS: subject.own}
    return [
        *doctor.judge_versions(own, {}, pinned_versions()),
        *doctor.judge_gpus(nodes, None, parameters=subject.parameters),
        *doctor.judge_memory(nodes, None),
        *doctor.judge_shared_memory(nodes, {THIS: OBJECT_STORE_BYTES}),
        _disk(subject),
        *doctor.judge_tools(nodes),
        *_configuration(subject, None),
    ]


def _cluster(subject: Subject, address: str, timeout_s: float) -> list[Row]:
    try:
        with joined(address):
            found = asyncio.run(survey(subject.shared_folder, timeout_s=timeout_s))
    except InfrastructureError as error:
        return [row("cluster", doctor.of_error(error)), *_this_machine(subject)]
    return _rows_of(found, subject)


def _rows_of(found: Survey, subject: Subject) -> list[Row]:
    nodes = found.facts
    resources = {node.name: node.resources for node in found.nodes}
    gpus = {name: resources[name].get("GPU", 0.0) for name in nodes}
    stores = {name: int(resources[name].get("object_store_memory", 0)) for name in nodes}
    planned = subject.plan(int(sum(gpus.values())))
    needed = planned[0].host_memory_bytes if planned else None
    return [
        *(row("node", doctor.of_error(error), name) for name, error in found.silent.items()),
        *doctor.judge_versions(subject.own, nodes, pinned_versions()),
        *doctor.judge_gpus(nodes, gpus, parameters=subject.parameters),
        *doctor.judge_memory(nodes, needed),
        *doctor.judge_shared_memory(nodes, stores),
        _disk(subject),
        *doctor.judge_tools(nodes),
        *_shared(found, subject),
        *doctor.judge_ports(found.unconnected),
        *doctor.judge_clocks(found.skews),
        *doctor.judge_authentication(
            {name: facts.auth_mode for name, facts in nodes.items()},
            [node.address for node in found.nodes],
        ),
        doctor.judge_roles(resources),
        *_configuration(subject, int(sum(gpus.values()))),
    ]


def _shared(found: Survey, subject: Subject) -> list[Row]:
    if subject.shared_folder is None:
        return []
    if isinstance(found.shared, ConfigurationError):
        return [row("run.dir", doctor.of_error(found.shared))]
    return doctor.judge_shared(subject.shared_folder, found.shared)


def _disk(subject: Subject) -> Row:
    config, parameters = subject.config, subject.parameters
    folder = nearest_existing(subject.folder)
    free = shutil.disk_usage(folder).free
    if config is None or parameters is None:
        return doctor.judge_disk(folder, free, None, 0)
    each = DTYPE_BYTES[config.model.dtype] + ADAM_BYTES + MASTER_BYTES
    ends = sum(phase.kind in TRAINING for phase in config.phases)
    best = config.checkpoint.best_by is not None
    count = config.checkpoint.keep + best + ends + 1  # one is written before another goes
    return doctor.judge_disk(folder, free, parameters * each, count)


def _configuration(subject: Subject, gpus: int | None) -> list[Row]:
    """What would keep `gavel run` from starting, but for what other rows tell."""
    planned = subject.plan(gpus)
    if planned is None or subject.config is None:
        return []
    plan, facts = planned
    obstacles = find_obstacles(subject.config, plan, facts)
    if gpus is not None:
        obstacles += too_few_gpus(plan, facts)
    return doctor.judge_run(each for each in obstacles if each not in subject.own.lacking)


# ---- the store -----------------------------------------------------------------------------------


def look_at_store(config: RunConfig) -> StoreFacts:
    """At the server at `store.url`, or for one that a run would start."""
    url = config.store.url
    if url is None:
        try:
            binary = redis_binary()
        except ConfigurationError as error:
            return StoreFacts("", problem=str(error))
        return StoreFacts(Path(binary).name, is_private=True)
    try:
        check_store(config)
    except ConfigurationError as error:
        return StoreFacts(without_password(url), problem=str(error))
    return _settings(url)


def _settings(url: str) -> StoreFacts:
    client = connect(url, STORE_TIMEOUT_S)
    asked: dict[str, Any] = {}
    try:
        for section in ("server", "persistence", "memory"):
            asked |= _permitted(client.info, section)
        sync = _permitted(client.config_get, "appendfsync").get("appendfsync")
    finally:
        client.close()
    append_only = asked.get("aof_enabled")
    return StoreFacts(
        what=client.address,
        version=asked.get("redis_version"),
        append_only=None if append_only is None else bool(append_only),
        sync=sync,
        eviction=asked.get("maxmemory_policy"),
    )


def _permitted(ask: Callable[..., Any], what: str) -> dict[str, Any]:
    """Nothing if the user may not ask, or the service does not know the command."""
    try:
        return ask(what)
    except (GavelError, redis.ResponseError):
        return {}
