"""KubeRay's custom resource definitions as a checker: schema, unknown fields and CEL rules.

They are read from KUBERAY_CRD_DIR; tests skip where it is not set.
"""

import os
from functools import cache
from pathlib import Path

import celpy
import jsonschema
import pytest
import yaml

FILES = {"RayJob": "ray.io_rayjobs.yaml", "RayCluster": "ray.io_rayclusters.yaml"}


@cache
def _schema(kind):
    folder = os.environ.get("KUBERAY_CRD_DIR")
    if not folder:
        pytest.skip("KUBERAY_CRD_DIR is not set: KubeRay's CRDs are not here")
    text = (Path(folder) / FILES[kind]).read_text("utf-8")
    crd = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [each for each in crd["spec"]["versions"] if each["name"] == "v1"]
    return _strict(version["schema"]["openAPIV3Schema"])


def _strict(schema):
    """As the API server takes it: no unknown fields, defaults filled in before what is required."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(part) for key, part in schema.items() if key != "properties"}
    properties = schema.get("properties")
    if isinstance(properties, dict):
        strict["properties"] = {key: _strict(part) for key, part in properties.items()}
        defaults = {key for key, part in properties.items() if "default" in part}
        strict["required"] = [key for key in schema.get("required", []) if key not in defaults]
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        strict["anyOf"] = [{"type": "integer"}, {"type": "string"}]
        strict.pop("type", None)
    return strict


def problems(document):
    """What the API server would refuse in a RayJob or RayCluster."""
    schema = _schema(document["kind"])
    # `metadata` is of Kubernetes' own type, which the CRD leaves open.
    own = schema | {"properties": schema["properties"] | {"metadata": {"type": "object"}}}
    found = [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
        for error in jsonschema.Draft202012Validator(own).iter_errors(document)
    ]
    return found + list(_broken_rules(document, own, ""))


def _broken_rules(value, schema, path):
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"] and not _holds(rule["rule"], value):
            yield f"{path}: {rule['message']}"
    if isinstance(value, dict):
        for key, part in value.items():
            if isinstance(below := schema.get("properties", {}).get(key), dict):
                yield from _broken_rules(part, below, f"{path}/{key}")
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index, part in enumerate(value):
            yield from _broken_rules(part, schema["items"], f"{path}/{index}")


def _holds(rule, value):
    environment = celpy.Environment()
    program = environment.program(environment.compile(rule))
    return bool(program.evaluate({"self": celpy.json_to_cel(value)}))
