"""Rules of KubeRay's operator that its CRDs do not hold: what it refuses when it reads a document.

Each rule yields what is wrong, for one RayJob or RayCluster.
"""

import re

import yaml

DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # RFC 1035
MAX_NAME = {"RayCluster": 53, "RayJob": 47}
RESOURCE_PARAMETERS = {"num-cpus", "num-gpus", "memory", "resources"}
FORBIDDEN_WITH_FAULT_TOLERANCE = {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS", "REDIS_USERNAME"}


def spec_of(document):
    return document["spec"]["rayClusterSpec"] if document["kind"] == "RayJob" else document["spec"]


def groups_of(document):
    return {group["groupName"]: group for group in spec_of(document)["workerGroupSpecs"]}


def all_groups(document):
    return {"head": spec_of(document)["headGroupSpec"], **groups_of(document)}


def names(document):
    name = document["metadata"]["name"]
    if not DNS_LABEL.fullmatch(name) or len(name) > MAX_NAME[document["kind"]]:
        yield f"the name {name} is no DNS label of {MAX_NAME[document['kind']]} characters"
    for group in groups_of(document):
        if not DNS_LABEL.fullmatch(group):
            yield f"the group's name {group} is no DNS label"


def ray_containers(document):
    for name, group in all_groups(document).items():
        if not group["template"]["spec"].get("containers"):
            yield f"the group {name} has no container"


def start_parameters(document):
    for name, group in all_groups(document).items():
        parameters = group.get("rayStartParams")
        if parameters is None or not all(isinstance(v, str) for v in parameters.values()):
            yield f"rayStartParams of {name} must be there, with texts"
        elif "labels" in parameters:
            yield f"rayStartParams of {name} has labels"
        elif RESOURCE_PARAMETERS & parameters.keys() and group.get("resources"):
            yield f"{name} has resources in rayStartParams too"


def replicas(document):
    for name, group in groups_of(document).items():
        least, most = group["minReplicas"], group["maxReplicas"]
        if not 0 <= least <= group["replicas"] <= most:
            yield f"replicas of {name}: {least} to {most}, {group['replicas']} at first"
        if group.get("suspend"):
            yield f"the group {name} is suspended"


def autoscaling(document):
    spec = spec_of(document)
    options = spec.get("autoscalerOptions", {})
    if not spec.get("enableInTreeAutoscaling"):
        if any("idleTimeoutSeconds" in group for group in groups_of(document).values()):
            yield "idleTimeoutSeconds of a group without autoscaling"
        return
    if options.get("version") != "v2":
        yield "autoscalerOptions.version is not v2"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds is negative"
    variables = environment(spec["headGroupSpec"])
    if "RAY_enable_autoscaler_v2" in variables:
        yield "the autoscaler's version is set twice"
    for name, group in all_groups(document).items():
        if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield f"restartPolicy of {name} must be Never"


def group_priorities(document):
    for name, group in groups_of(document).items():
        if group.get("priority") and version(document) < (2, 56):
            yield f"the group {name} has a priority, which needs Ray 2.56"


def fault_tolerance(document):
    spec = spec_of(document)
    if "gcsFaultToleranceOptions" not in spec:
        return
    if "storage" in spec["gcsFaultToleranceOptions"]:
        yield "storage belongs to the backend rocksdb"
    variables = FORBIDDEN_WITH_FAULT_TOLERANCE & environment(spec["headGroupSpec"])
    if variables:
        yield f"the head has {', '.join(sorted(variables))}"
    if {"redis-password", "redis-username"} & spec["headGroupSpec"]["rayStartParams"].keys():
        yield "rayStartParams of the head has Redis' account"
    annotations = document["metadata"].get("annotations", {})
    if {"ray.io/ft-enabled", "ray.io/external-storage-namespace"} & annotations.keys():
        yield "annotations of the older way are set too"


def authentication(document):
    options = spec_of(document).get("authOptions", {})
    if options.get("mode") != "token":
        yield "no token is asked for"
    elif version(document) < (2, 52):
        yield "tokens need Ray 2.52"
    if options.get("enableK8sTokenAuth") and document["kind"] == "RayJob":
        yield "a RayJob cannot use Kubernetes' tokens"


def gates_that_are_off(document):
    for field in ("networkPolicy", "tlsOptions", "historyServerOptions"):
        if field in spec_of(document):
            yield f"{field} needs a feature gate that is off"


def job_fields(document):
    if document["kind"] != "RayJob":
        return
    spec = document["spec"]
    stays = not spec.get("shutdownAfterJobFinishes")
    if stays and (spec.get("suspend") or spec.get("ttlSecondsAfterFinished", 0) > 0):
        yield "suspend and ttlSecondsAfterFinished need shutdownAfterJobFinishes"
    if not stays and spec.get("deletionStrategy", {}).get("deletionRules"):
        yield "deletionRules exclude shutdownAfterJobFinishes"
    if spec.get("clusterSelector") and (spec.get("backoffLimit") or spec.get("suspend")):
        yield "a clusterSelector excludes backoffLimit and suspend"
    if spec.get("submissionMode") == "SidecarMode" and (
        spec.get("submitterPodTemplate") or spec.get("submitterConfig")
    ):
        yield "SidecarMode has no submitter"
    if "upgradeStrategy" in spec["rayClusterSpec"]:
        yield "a RayJob's cluster has no upgradeStrategy"
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(field, 1) <= 0:
            yield f"{field} is not positive"
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML is no mapping"


def environment(group):
    return {each["name"] for each in group["template"]["spec"]["containers"][0].get("env", [])}


def version(document):
    return tuple(int(part) for part in spec_of(document)["rayVersion"].split("."))


RULES = (
    *(names, ray_containers, start_parameters, replicas, autoscaling, group_priorities),
    *(fault_tolerance, authentication, gates_that_are_off, job_fields),
)
