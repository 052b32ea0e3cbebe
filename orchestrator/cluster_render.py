"""Kubernetes manifests for one recipe: the documents of an overlay, sized by the recipe's plan.

Pure: documents, configuration and plan in, documents out. What pods and policies look like is in
`cluster/`; here are names, numbers and the configuration that the driver reads.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from actors.placement import GROUPS, LOCATION
from actors.settings import GroupPlacement, PlacementSettings
from actors.urls import Place
from judging.errors import ConfigurationError
from orchestrator.cluster_sizes import GroupSize, Nodes, group_sizes
from orchestrator.config import RunConfig
from orchestrator.config_loading import dump_config
from orchestrator.kustomize import Document, containers, image_name
from orchestrator.plan import Plan

RUNS_MOUNT = Path("/runs")  # of the volume that all pods share
CONFIG_MOUNT = Path("/etc/gavel")
STORE_URL = "redis://gavel-redis:6379/1"
MAX_JOB_NAME = 47  # KubeRay appends to it what makes a cluster's name, of 53 at most
# From the deadline of a stopped driver to Ray's, to a pod's preStop, to the kill of the pod.
STOP_WAIT_MARGIN_S, PRE_STOP_MARGIN_S, TERMINATION_MARGIN_S = 10, 15, 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the manifests are for."""

    overlay: str
    namespace: str = "gavel"
    operator_namespace: str = "kuberay-system"
    image: str | None = None  # None: that of the overlay


def nodes_of(documents: Sequence[Document], overlay: str) -> Nodes:
    """The nodes that an overlay is for; raises ConfigurationError if it does not say."""
    annotations = _ray_document(documents, overlay)["metadata"].get("annotations") or {}
    try:
        return Nodes(int(annotations["gavel/nodes"]), int(annotations["gavel/gpus-per-node"]))
    except (KeyError, ValueError):
        raise ConfigurationError(
            f"the overlay {overlay} does not say what nodes it is for: set the annotations "
            "gavel/nodes and gavel/gpus-per-node of its RayJob to numbers"
        ) from None


def on_cluster(config: RunConfig, name: str) -> RunConfig:
    """`config` as a driver in the cluster reads it: with an id that stays when it is started
    again, with relative paths on the shared volume, and with each kind of actor on its group's
    nodes, also while none of these is up."""
    run_id = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "run"
    changes = {
        "run": {"id": config.run.id or run_id, "dir": _in_cluster(config.run.dir)},
        "store": {"url": config.store.url or STORE_URL},
        "data": {
            key: str(RUNS_MOUNT / path)
            for key in ("path", "distill_path", "heldout_path")
            if (path := getattr(config.data, key)) is not None
        }
        | {
            "sources": config.data.sources
            and {
                name: replace(source, path=str(RUNS_MOUNT / source.path))
                for name, source in config.data.sources.items()
            },
            "overlap_with": tuple(str(RUNS_MOUNT / path) for path in config.data.overlap_with),
        },
    }
    sections = {
        section: getattr(config, section).model_copy(update=update)
        for section, update in changes.items()
    }
    return config.model_copy(update=sections | {"placement": _in_groups(config.placement)})


def _in_groups(placement: PlacementSettings) -> PlacementSettings:
    groups: dict[str, GroupPlacement] = {name: getattr(placement, name) for name in GROUPS}
    own = {
        name: replace(group, resources={name: LOCATION})
        for name, group in groups.items()
        if group.resources is None
    }
    return replace(placement, **own)


def _in_cluster(runs: Place) -> Place:
    if isinstance(runs, str):  # a URL
        return runs
    return RUNS_MOUNT if runs == Path("runs") else RUNS_MOUNT / runs


def render(
    documents: Sequence[Document], config: RunConfig, plan: Plan, target: Target
) -> list[Document]:
    """The manifests of one run. `config` is one of `on_cluster`.

    Raises:
        ConfigurationError: the recipe and the overlay contradict each other.
    """
    sizes = group_sizes(config, plan, nodes_of(documents, target.overlay), target.overlay)
    made = copy.deepcopy(list(documents))
    ray = _ray_document(made, target.overlay)
    _check_learners_stay(ray, target.overlay)
    name = job_name(str(config.run.id))
    ray["metadata"]["name"] = name
    _set_entrypoint(ray)
    for size in sizes:
        _set_size(_group(ray, size.group), size)
    _mount_config(_group(ray, "driver"), name)
    _set_grace(ray, config.deadlines.grace_s + config.deadlines.stop_s)
    for document in made:
        _set_learners_budget(document, next(s.pods for s in sizes if s.group == "learner"))
        _set_image(document, target.image)
        _set_operator(document, target.operator_namespace)
    at = next(i for i, document in enumerate(made) if document is ray)
    made.insert(at, _config_map(name, config))
    for document in made:
        _set_namespace(document, target.namespace)
    return made


def job_name(run_id: str) -> str:
    """As Kubernetes and KubeRay take it."""
    plain = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")
    return f"gavel-{plain}"[:MAX_JOB_NAME].rstrip("-")


def to_yaml(documents: Sequence[Document]) -> str:
    return yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, width=100)


# ---- parts ---------------------------------------------------------------------------------------


def _ray_document(documents: Sequence[Document], overlay: str) -> Document:
    found = [document for document in documents if document["kind"] in ("RayJob", "RayCluster")]
    if len(found) != 1:
        raise ConfigurationError(
            f"the overlay {overlay} has {len(found)} documents of the kinds RayJob and RayCluster: "
            "it must have one"
        )
    return found[0]


def cluster_spec(ray: Document) -> Document:
    return ray["spec"]["rayClusterSpec"] if ray["kind"] == "RayJob" else ray["spec"]


def _group(ray: Document, name: str) -> Document:
    groups = {group["groupName"]: group for group in cluster_spec(ray)["workerGroupSpecs"]}
    if name not in groups:
        raise ConfigurationError(f"{ray['kind']} {ray['metadata']['name']} has no group {name}")
    return groups[name]


def _check_learners_stay(ray: Document, overlay: str) -> None:
    learner = _group(ray, "learner")
    least, most = learner["minReplicas"], learner["maxReplicas"]
    if least != most:
        raise ConfigurationError(
            f"the overlay {overlay} lets learners scale: minReplicas ({least}) and maxReplicas "
            f"({most}) of the group learner must be the same, for ranks cannot come and go"
        )


def _set_entrypoint(ray: Document) -> None:
    if ray["kind"] == "RayJob":
        ray["spec"]["entrypoint"] = f"gavel run {CONFIG_MOUNT / 'config.yaml'}"


def _set_size(group: Document, size: GroupSize) -> None:
    group |= {"replicas": size.pods, "minReplicas": size.min_pods, "maxReplicas": size.max_pods}
    if size.group != "driver":  # which is there once, whatever runs
        group["resources"] = {size.group: str(size.actors)}
    container = group["template"]["spec"]["containers"][0]
    given = container["resources"]["limits"]
    limits = {"cpu": str(size.cpus), "memory": given["memory"]}
    if size.memory_gib is not None:
        limits["memory"] = f"{size.memory_gib}Gi"
    if size.group in ("driver", "verifier"):  # which the overlay may know to need more
        limits = {key: _larger(given[key], value) for key, value in limits.items()}
    if size.gpus:
        limits["nvidia.com/gpu"] = str(size.gpus)
    container["resources"] = {"requests": limits, "limits": dict(limits)}


def _larger(given: str, needed: str) -> str:
    """Of two quantities; `needed` if they have not the same unit."""
    pairs = [re.fullmatch(r"(\d+)(\D*)", quantity) for quantity in (given, needed)]
    mine, theirs = (pair.groups() if pair else ("", None) for pair in pairs)
    return given if mine[1] == theirs[1] and int(mine[0]) > int(theirs[0]) else needed


def _mount_config(driver: Document, name: str) -> None:
    pod = driver["template"]["spec"]
    pod["volumes"].append({"name": "config", "configMap": {"name": f"{name}-config"}})
    mount = {"name": "config", "mountPath": str(CONFIG_MOUNT), "readOnly": True}
    pod["containers"][0]["volumeMounts"].append(mount)


def _config_map(name: str, config: RunConfig) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-config", "labels": {"app.kubernetes.io/part-of": "gavel"}},
        "data": {"config.yaml": dump_config(config)},
    }


def _set_grace(ray: Document, grace_s: float) -> None:
    grace = round(grace_s)
    if ray["kind"] == "RayJob":
        wait = {"RAY_JOB_STOP_WAIT_TIME_S": str(grace + STOP_WAIT_MARGIN_S)}
        ray["spec"]["runtimeEnvYAML"] = yaml.safe_dump({"env_vars": wait})
    for pod in _ray_pods(ray):
        pod["terminationGracePeriodSeconds"] = grace + TERMINATION_MARGIN_S
        hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]
        hook["command"] = [*hook["command"][:-1], str(grace + PRE_STOP_MARGIN_S)]


def _ray_pods(ray: Document) -> Iterator[Document]:
    spec = cluster_spec(ray)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        yield group["template"]["spec"]


def _set_learners_budget(document: Document, pods: int) -> None:
    if document["kind"] == "PodDisruptionBudget":
        labels = document["spec"]["selector"]["matchLabels"]
        if labels.get("ray.io/group") == "learner":
            document["spec"]["minAvailable"] = pods


def _set_image(document: Document, image: str | None) -> None:
    for container in containers(document) if image else ():
        if image_name(container["image"]) == "gavel":
            container["image"] = image


def _set_operator(document: Document, namespace: str) -> None:
    if document["kind"] == "NetworkPolicy" and document["metadata"]["name"] == "gavel-operator":
        peer: Any = document["spec"]["ingress"][0]["from"][0]
        peer["namespaceSelector"] = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}


def _set_namespace(document: Document, namespace: str) -> None:
    if document["kind"] == "Namespace":
        document["metadata"]["name"] = namespace
    else:
        document["metadata"]["namespace"] = namespace
