"""`gavel cluster`: manifests for Kubernetes, sized for a recipe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from judging.errors import ConfigurationError
from orchestrator.cluster_render import Target, nodes_of, on_cluster, render, to_yaml
from orchestrator.cluster_sizes import Nodes
from orchestrator.config import RunConfig
from orchestrator.config_loading import load_config
from orchestrator.facts import Facts, gather_facts
from orchestrator.kustomize import FILE, Document, build
from orchestrator.plan import Plan, make_plan
from orchestrator.preflight import check_inputs

MANIFESTS = Path(__file__).parents[1] / "cluster"
CPU_OVERLAY = "cpu"
GPU_OVERLAYS = ("one-node-8-gpus", "four-nodes-8-gpus")  # the smaller one first
_RENDER_HELP = """\
Writes the Kubernetes manifests of a run, for KubeRay: those of an overlay of cluster/, with pods,
GPUs and memory from the plan that `gavel run CONFIG --dry-run` prints, and the configuration.

  gavel cluster render configs/quickstart.yaml --image REGISTRY/gavel:0.1.0-cpu
  gavel cluster render configs/rm-r1/qwen-7b.yaml run.id=first --output manifests

Relative paths of data are taken as below the shared volume, /runs."""


def add_parser(commands: Any) -> None:
    cluster = commands.add_parser(
        "cluster", help="write manifests for Kubernetes", allow_abbrev=False
    )
    verbs = cluster.add_subparsers(dest="verb", required=True, metavar="VERB")
    made = verbs.add_parser(
        "render",
        help="write manifests sized for a recipe",
        description=_RENDER_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("config", metavar="CONFIG", type=Path, help="YAML file")
    made.add_argument("overrides", metavar="key=value", nargs="*", help="override of a key")
    made.add_argument(
        "--overlay",
        metavar="NAME",
        help=f"{', '.join((CPU_OVERLAY, *GPU_OVERLAYS))}, or a folder of your own (default: the "
        "smallest with room if an engine takes several GPUs, else cpu)",
    )
    made.add_argument(
        "--development",
        action="store_true",
        help="a RayCluster that stays, for jobs that are submitted to it, in place of a RayJob",
    )
    made.add_argument("--image", help="of all Ray pods (default: the overlay's, gavel:VERSION-...)")
    made.add_argument("--namespace", default="gavel", help="default: gavel")
    made.add_argument(
        "--operator-namespace",
        default="kuberay-system",
        metavar="NAMESPACE",
        help="where KubeRay's operator is, which must reach the head (default: kuberay-system)",
    )
    made.add_argument(
        "--output",
        metavar="DIR",
        default="-",
        help=f"folder for manifests.yaml and a {FILE} (default: -, standard output)",
    )


def run_command(options: argparse.Namespace) -> int:
    """Does one command; returns the exit status. Raises ConfigurationError and DataError."""
    config = load_config(options.config, options.overrides)
    facts = gather_facts(config)
    check_inputs(config, facts)
    config = on_cluster(config, options.config.stem)
    overlay, documents = _choose_overlay(config, facts, options)
    target = Target(
        overlay=overlay,
        namespace=options.namespace,
        operator_namespace=options.operator_namespace,
        image=options.image,
    )
    plan = _plan(config, facts, nodes_of(documents, overlay))
    _write(to_yaml(render(documents, config, plan, target)), options.output)
    return 0


def _choose_overlay(
    config: RunConfig, facts: Facts, options: argparse.Namespace
) -> tuple[str, list[Document]]:
    """The overlay that is named, or the smallest with room, and its documents."""
    if options.overlay is not None:
        return options.overlay, _read_overlay(options.overlay, options.development)
    if config.rollout.tensor_parallel == 1:
        return CPU_OVERLAY, _read_overlay(CPU_OVERLAY, options.development)
    for name in GPU_OVERLAYS[:-1]:
        documents = _read_overlay(name, options.development)
        nodes = nodes_of(documents, name)
        if _plan(config, facts, nodes).gpus <= nodes.count * nodes.gpus:
            return name, documents
    return GPU_OVERLAYS[-1], _read_overlay(GPU_OVERLAYS[-1], options.development)


def _read_overlay(name: str, is_development: bool) -> list[Document]:
    named = MANIFESTS / ("development" if is_development else "overlays") / name
    folder = named if name in (CPU_OVERLAY, *GPU_OVERLAYS) else Path(name)
    if not (folder / FILE).is_file():
        known: Sequence[str] = sorted(
            path.parent.name for path in MANIFESTS.glob(f"overlays/*/{FILE}")
        )
        raise ConfigurationError(
            f"--overlay {name}: there is no {folder / FILE}: name one of {', '.join(known)} (which "
            "are in the folder cluster of Gavel's repository) or the folder of another"
        )
    return build(folder)


def _plan(config: RunConfig, facts: Facts, nodes: Nodes) -> Plan:
    """What the run does on the cluster's nodes, whatever this machine has."""
    machine = replace(facts.machine, gpus=nodes.gpus, gpu_memory_bytes=None, is_cluster=True)
    return make_plan(config, replace(facts, machine=machine))


def _write(manifests: str, output: str) -> None:
    if output == "-":
        print(manifests, end="")
        return
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifests.yaml").write_text(manifests, "utf-8")
    (folder / FILE).write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\n"
        "kind: Kustomization\n"
        "resources: [manifests.yaml]\n",
        "utf-8",
    )
    print(f"wrote {folder / 'manifests.yaml'}: kubectl apply --server-side -k {folder}")
