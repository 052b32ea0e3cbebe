"""`gavel cluster render`: sizes from the plan, and recipes that contradict the cluster."""

import copy
import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from actors.placement import GROUPS, LOCATION
from judging.errors import ConfigurationError
from orchestrator.cli import main
from orchestrator.cluster_render import Target, job_name, on_cluster, render
from orchestrator.cluster_sizes import Nodes, group_sizes
from orchestrator.config_loading import config_from_tree, load_config, merge
from orchestrator.facts import Facts, Machine, ModelFacts, Parts
from orchestrator.kustomize import build
from orchestrator.memory import GIB
from orchestrator.plan import make_plan

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
TREE = {
    "run": {"id": "made"},
    "model": {"path": "made/up", "dtype": "bf16"},
    "data": {"path": "data/pairs"},
    "phases": ["reinforce"],
}
FOUR_NODES, ONE_NODE, NO_GPUS = Nodes(4, 8), Nodes(1, 8), Nodes(1, 0)


def sizes_of(nodes, **sections):
    config = config_from_tree(merge(TREE, sections))
    return {size.group: size for size in group_sizes(config, plan_of(config, nodes), nodes, "made")}


def plan_of(config, nodes):
    machine = Machine(8, 64 * GIB, nodes.gpus, None, is_cluster=True)
    model = ModelFacts(7_000_000_000, "made up", None, None)
    return make_plan(config, Facts(Parts(640, 6400, 256), model, machine))


def rendered(*arguments):
    """(exit status, documents by kind and name, standard error)."""
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        status = main(["cluster", "render", *map(str, arguments)])
    documents = list(yaml.safe_load_all(output.getvalue())) if status == 0 else []
    return status, {(d["kind"], d["metadata"]["name"]): d for d in documents}, errors.getvalue()


def groups_of(ray):
    spec = ray["spec"].get("rayClusterSpec", ray["spec"])
    return {group["groupName"]: group for group in spec["workerGroupSpecs"]}


# ---- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "workers", "parallel", "learner", "rollout"),
    [  # (pods, actors on each, GPUs of each)
        (4, 1, 4, (1, 4, 4), (1, 1, 4)),
        (16, 4, 4, (2, 8, 8), (2, 2, 8)),
        (12, 3, 4, (2, 6, 6), (3, 1, 4)),  # 3 engines: not two on one pod and one on another
        (9, 2, 2, (3, 3, 3), (1, 2, 4)),
        (8, 8, 1, (1, 8, 8), (1, 8, 8)),
    ],
)
def test_pods_hold_whole_engines_and_equal_ranks(ranks, workers, parallel, learner, rollout):
    nodes = Nodes(5, 8)
    sizes = sizes_of(
        nodes,
        learner={"ranks": ranks},
        rollout={"workers": workers, "tensor_parallel": parallel},
    )
    for group, wanted in (("learner", learner), ("rollout", rollout)):
        size = sizes[group]
        assert (size.pods, size.actors, size.gpus) == wanted
    assert sizes["learner"].min_pods == sizes["learner"].max_pods


def test_colocated_pods_hold_a_worker_beside_each_learner():
    apart = sizes_of(ONE_NODE, learner={"ranks": 4}, rollout={"workers": 4})
    sizes = sizes_of(
        ONE_NODE,
        learner={"ranks": 4},
        rollout={"workers": 4},
        placement={"mode": "colocated"},
    )
    learner, rollout = sizes["learner"], sizes["rollout"]
    assert (learner.pods, learner.actors, learner.gpus) == (1, 4, 4)
    assert (rollout.pods, rollout.min_pods, rollout.max_pods) == (0, 0, 0)
    assert learner.cpus == apart["learner"].cpus + apart["rollout"].cpus
    assert learner.memory_gib == apart["learner"].memory_gib + apart["rollout"].memory_gib


def test_rollout_pods_may_fill_the_room_that_learners_leave():
    sizes = sizes_of(FOUR_NODES, learner={"ranks": 8}, rollout={"tensor_parallel": 4})
    assert (sizes["rollout"].min_pods, sizes["rollout"].max_pods) == (1, 6)  # 3 nodes of 2 each


def test_least_rollout_pods_hold_the_least_workers():
    rollout = {"workers": 8, "min_workers": 3, "tensor_parallel": 4}
    size = sizes_of(Nodes(5, 8), rollout=rollout)["rollout"]
    assert (size.actors, size.pods, size.min_pods) == (2, 4, 2)


def test_memory_without_gpus_is_the_plans():
    config = config_from_tree(TREE | {"learner": {"ranks": 2, "zero_stage": 1}})
    plan = plan_of(config, NO_GPUS)
    size = {s.group: s for s in group_sizes(config, plan, NO_GPUS, "made")}["learner"]
    (actor,) = [actor for actor in plan.actors if actor.role == "learner"]
    left = size.memory_gib * GIB * 0.7 - GIB  # without object store and Ray itself
    assert 2 * actor.memory.total <= left < 2 * actor.memory.total + GIB


def test_an_optimizer_in_host_memory_is_counted():
    rollout = {"tensor_parallel": 4}
    without, offloaded = (
        sizes_of(ONE_NODE, rollout=rollout, learner={"ranks": 4, "offload_optimizer": offloads})
        for offloads in (False, True)
    )
    more = (offloaded["learner"].memory_gib - without["learner"].memory_gib) * 0.7
    assert more == pytest.approx(12 * 7e9 / GIB, abs=1)


def test_unknown_sizes_leave_the_overlays_memory():
    config = on_cluster(config_from_tree(TREE), "made")
    plan = plan_of(config, NO_GPUS)
    unknown = replace(plan, actors=tuple(replace(actor, memory=None) for actor in plan.actors))
    documents = build(ROOT / "cluster" / "overlays" / "cpu")
    made = render(documents, config, unknown, Target(overlay="cpu"))
    before, after = (groups_of(ray_of(each)) for each in (documents, made))
    for group in ("learner", "rollout"):
        assert memory_of(before[group]) == memory_of(after[group])


def ray_of(documents):
    return next(d for d in documents if d["kind"] in ("RayJob", "RayCluster"))


def memory_of(group):
    return group["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]


# ---- contradictions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "sections", "told"),
    [
        (ONE_NODE, {"rollout": {"tensor_parallel": 16}}, [r"tensor_parallel \(16\)", "made has 8"]),
        (ONE_NODE, {"rollout": {"tensor_parallel": 3}}, [r"tensor_parallel \(3\)", "made has 8"]),
        (NO_GPUS, {"rollout": {"tensor_parallel": 2}}, [r"tensor_parallel \(2\)", "made has 0"]),
        (
            ONE_NODE,
            {"learner": {"ranks": 8}, "rollout": {"tensor_parallel": 4}},
            [r"ranks \(8, as 1 x 8 GPUs\)", r"workers \(1, as 1 x 4 GPUs\)", "12 GPUs", "has 8"],
        ),
        (  # 16 GPUs in all, but not in these pieces
            Nodes(2, 8),
            {"learner": {"ranks": 10}, "rollout": {"workers": 3, "tensor_parallel": 2}},
            [r"ranks \(10, as 2 x 5 GPUs\)", r"workers \(3, as 1 x 6 GPUs\)", "16 GPUs", "2 x 8"],
        ),
    ],
)
def test_contradictions_name_both_values(nodes, sections, told):
    with pytest.raises(ConfigurationError) as refused:
        sizes_of(nodes, **sections)
    for part in told:
        assert refused.match(part)


def test_learners_that_scale_are_refused():
    documents = build(ROOT / "cluster" / "overlays" / "cpu")
    groups_of(ray_of(documents))["learner"]["maxReplicas"] = 3
    config = on_cluster(config_from_tree(TREE), "made")
    with pytest.raises(ConfigurationError, match=r"minReplicas \(1\) and maxReplicas \(3\)"):
        render(documents, config, plan_of(config, NO_GPUS), Target(overlay="cpu"))


def test_an_overlay_must_say_its_nodes(tmp_path):
    (tmp_path / "kustomization.yaml").write_text(f"resources: [{ROOT / 'cluster' / 'base'}]\n")
    status, _, told = rendered(CONFIGS / "quickstart.yaml", "--overlay", tmp_path)
    assert status == 2
    assert "gavel/gpus-per-node" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--overlay", "absent"), "cpu, four-nodes-8-gpus, one-node-8-gpus"),
        (("rollout.tensor_parallel=16",), "tensor_parallel (16)"),
        (("--overlay", "cpu", "rollout.tensor_parallel=2"), "tensor_parallel (2)"),
        (("no.such=1",), "no.such"),
    ],
)
def test_bad_input_ends_with_2(arguments, told):
    status, _, errors = rendered(CONFIGS / "quickstart.yaml", *arguments)
    assert status == 2
    assert told in errors


# ---- documents -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "overlay"),
    [
        ("quickstart", "cpu"),
        ("rm-r1/qwen-7b", "one-node-8-gpus"),
        ("rm-r1/qwen-32b", "four-nodes-8-gpus"),
    ],
)
def test_overlays_are_sized_as_their_recipes_are_rendered(recipe, overlay):
    status, made, _ = rendered(CONFIGS / f"{recipe}.yaml")  # which also chooses the overlay
    assert status == 0
    given = {
        (d["kind"], d["metadata"]["name"]): d for d in build(ROOT / "cluster/overlays" / overlay)
    }
    job = made["RayJob", f"gavel-{Path(recipe).name}"]
    theirs, ours = groups_of(given["RayJob", "gavel"]), groups_of(job)
    for name, group in theirs.items():
        for field in ("replicas", "minReplicas", "maxReplicas", "resources"):
            assert ours[name][field] == group[field], (name, field)
        assert (
            ours[name]["template"]["spec"]["containers"][0]["resources"]
            == (group["template"]["spec"]["containers"][0]["resources"])
        )
    budget = ("PodDisruptionBudget", "gavel-learner")
    assert made[budget]["spec"] == given[budget]["spec"]
    assert (
        job["spec"]["runtimeEnvYAML"].split()
        == given["RayJob", "gavel"]["spec"]["runtimeEnvYAML"].replace('"', "'").split()
    )


def test_the_driver_reads_the_same_configuration(tmp_path):
    recipe = CONFIGS / "rm-r1" / "qwen-7b.yaml"
    overrides = ["data.limit=10", "data.overlap_with=[data/benchmarks]", "run.id=First.run"]
    _, made, _ = rendered(recipe, *overrides)
    job, settings = made["RayJob", "gavel-first-run"], made["ConfigMap", "gavel-first-run-config"]
    (tmp_path / "config.yaml").write_text(settings["data"]["config.yaml"])
    read = load_config(tmp_path / "config.yaml")
    assert read == on_cluster(load_config(recipe, overrides), "other")
    assert read.data.path == "/runs/data/RM-R1-after-Distill-RLVR"
    assert read.data.overlap_with == ("/runs/data/benchmarks",)
    assert str(read.run.dir) == "/runs"
    assert read.store.url == "redis://gavel-redis:6379/1"
    assert job["spec"]["entrypoint"] == "gavel run /etc/gavel/config.yaml"
    groups = {kind: getattr(read.placement, kind).resources for kind in GROUPS}
    assert groups == {kind: {kind: LOCATION} for kind in GROUPS}
    driver = groups_of(job)["driver"]["template"]["spec"]
    assert {"name": "config", "configMap": {"name": "gavel-first-run-config"}} in driver["volumes"]


def test_namespaces_image_and_grace():
    options = ["--namespace", "team", "--operator-namespace", "ray", "--image", "host:5000/g:1"]
    _, made, _ = rendered(CONFIGS / "quickstart.yaml", "deadlines.grace_s=300", *options)
    assert ("Namespace", "team") in made
    assert {d["metadata"].get("namespace", "team") for d in made.values()} == {"team"}
    policy = made["NetworkPolicy", "gavel-operator"]["spec"]["ingress"][0]["from"][0]
    assert policy["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "ray"}
    job = made["RayJob", "gavel-quickstart"]["spec"]
    assert yaml.safe_load(job["runtimeEnvYAML"])["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "340"}
    spec = job["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] == 360
        assert pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1] == "345"
        assert pod["containers"][0]["image"] == "host:5000/g:1"
    redis = made["StatefulSet", "gavel-redis"]["spec"]["template"]["spec"]["containers"][0]
    assert redis["image"].startswith("docker.io/library/redis:")


def test_a_cluster_for_development():
    _, made, _ = rendered(CONFIGS / "quickstart.yaml", "--development")
    assert not [kind for kind, _ in made if kind == "RayJob"]
    assert groups_of(made["RayCluster", "gavel-quickstart"])["learner"]["resources"] == {
        "learner": "2"
    }


def test_a_password_is_not_written_down():
    url = "store.url=redis://me:horse-battery@elsewhere:6379/0"
    _, made, _ = rendered(CONFIGS / "quickstart.yaml", url)
    assert "horse-battery" not in str(made)


def test_a_folder_builds_to_the_same(tmp_path):
    status, printed, _ = rendered(CONFIGS / "quickstart.yaml")
    assert status == main(
        ["cluster", "render", str(CONFIGS / "quickstart.yaml"), "--output", str(tmp_path)]
    )
    assert {(d["kind"], d["metadata"]["name"]): d for d in build(tmp_path)} == printed


def test_rendering_leaves_what_it_reads():
    documents = build(ROOT / "cluster" / "overlays" / "cpu")
    before = copy.deepcopy(documents)
    config = on_cluster(config_from_tree(TREE), "made")
    render(documents, config, plan_of(config, NO_GPUS), Target(overlay="cpu"))
    assert documents == before


@pytest.mark.parametrize(
    ("run_id", "name"),
    [("Quick_Start.2", "gavel-quick-start-2"), ("a" * 80, "gavel-" + "a" * 41), ("-", "gavel")],
)
def test_names_that_kubernetes_takes(run_id, name):
    assert job_name(run_id) == name
