"""The part of Kustomize that `cluster/` uses, so that manifests are rendered without its program.

Resources, components, JSON patches, deletions, images, replacements and ConfigMaps from files; what
else a kustomization.yaml says is refused rather than passed over. Documents come in the order in
which they are named, which Kustomize changes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from judging.errors import ConfigurationError

Document = dict[str, Any]

FILE = "kustomization.yaml"


def build(folder: Path) -> list[Document]:
    """The documents of the kustomization in `folder`; raises ConfigurationError."""
    return _apply(folder, [])


def _apply(folder: Path, documents: list[Document]) -> list[Document]:
    """`documents` with what the kustomization in `folder` adds to them and changes in them."""
    tree = _read_kustomization(folder / FILE)
    for name in tree.get("resources", ()):
        path = folder / name
        documents = [*documents, *(build(path) if path.is_dir() else read_documents(path))]
    for settings in tree.get("configMapGenerator", ()):
        documents = [*documents, _config_map(folder, settings)]
    for name in tree.get("components", ()):
        documents = _apply(folder / name, documents)
    for patch in tree.get("patches", ()):
        documents = _patched(documents, patch, folder / FILE)
    for image in tree.get("images", ()):
        for document in documents:
            _set_image(document, image)
    for replacement in tree.get("replacements", ()):
        _replace(documents, replacement, folder / FILE)
    return documents


_KEYS = {
    *("apiVersion", "kind", "resources", "components", "patches", "images", "replacements"),
    "configMapGenerator",
}


def _read_kustomization(path: Path) -> Document:
    (tree,) = read_documents(path) or [{}]
    if unknown := sorted(tree.keys() - _KEYS):
        raise ConfigurationError(
            f"{path}: {', '.join(unknown)} is not supported: build it with `kubectl kustomize`"
        )
    return tree


def read_documents(path: Path) -> list[Document]:
    """The documents of a YAML file, without shared parts; raises ConfigurationError."""
    try:
        found = list(yaml.safe_load_all(path.read_text("utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    if not all(isinstance(document, dict) for document in found):
        raise ConfigurationError(f"{path}: each document must be a mapping")
    return [_unshared(document) for document in found]


def _unshared(value: Any) -> Any:
    """A copy in which what YAML aliases name is there once for each of them."""
    if isinstance(value, dict):
        return {key: _unshared(part) for key, part in value.items()}
    return [_unshared(part) for part in value] if isinstance(value, list) else value


def _config_map(folder: Path, settings: Mapping[str, Any]) -> Document:
    options = settings.get("options", {})
    if options.get("disableNameSuffixHash") is not True:
        raise ConfigurationError(
            f"{folder / FILE}: a ConfigMap from files needs options.disableNameSuffixHash: true"
        )
    metadata = {key: settings[key] for key in ("name", "namespace") if key in settings}
    if labels := options.get("labels"):
        metadata["labels"] = dict(labels)
    data = {Path(name).name: (folder / name).read_text("utf-8") for name in settings["files"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


# ---- patches -------------------------------------------------------------------------------------


def _patched(documents: list[Document], patch: Mapping[str, Any], origin: Path) -> list[Document]:
    meant = [document for document in documents if _is_meant(document, patch["target"])]
    if not meant:
        raise ConfigurationError(f"{origin}: a patch for {patch['target']}, of which there is none")
    change = yaml.safe_load(patch["patch"])
    if isinstance(change, dict) and change.get("$patch") == "delete":
        return [document for document in documents if document not in meant]
    if not isinstance(change, list):
        raise ConfigurationError(f"{origin}: a patch must be a list of JSON patch operations")
    for document in meant:
        for operation in change:
            try:
                _operate(document, operation)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise ConfigurationError(f"{origin}: {operation} fails: {error!r}") from error
    return documents


def _is_meant(document: Document, target: Mapping[str, str]) -> bool:
    metadata = document["metadata"]
    has = {"kind": document["kind"], "name": metadata["name"]}
    return all(has.get(key) == value for key, value in target.items())


def _operate(document: Document, operation: Mapping[str, Any]) -> None:
    """One operation of a JSON patch (RFC 6902)."""
    *parents, last = (
        part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]
    )
    owner: Any = document
    for part in parents:
        owner = owner[_place(owner, part)]
    _OPERATIONS[operation["op"]](owner, last, copy.deepcopy(operation.get("value")))


def _add(owner: Any, key: str, value: Any) -> None:
    if isinstance(owner, list):
        owner.insert(len(owner) if key == "-" else int(key), value)
    else:
        owner[key] = value


def _put(owner: Any, key: str, value: Any) -> None:
    place = _place(owner, key)
    owner[place]  # which must be there
    owner[place] = value


def _remove(owner: Any, key: str, _: Any) -> None:
    del owner[_place(owner, key)]


def _test(owner: Any, key: str, value: Any) -> None:
    found = owner[_place(owner, key)]
    if found != value:
        raise ValueError(f"{key} is {found!r}")


def _place(owner: Any, key: str) -> Any:
    return int(key) if isinstance(owner, list) else key


_OPERATIONS: Mapping[str, Callable[[Any, str, Any], None]] = {
    "add": _add,
    "replace": _put,
    "remove": _remove,
    "test": _test,
}


# ---- images and replacements ---------------------------------------------------------------------


def containers(value: Any) -> Iterator[Document]:
    """All containers in `value`, however deep."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key in ("containers", "initContainers") and isinstance(part, list):
                yield from part
            else:
                yield from containers(part)
    elif isinstance(value, list):
        for part in value:
            yield from containers(part)


def _set_image(document: Document, image: Mapping[str, str]) -> None:
    for container in containers(document):
        name = image_name(container["image"])
        if name == image["name"]:
            tag = container["image"].removeprefix(name + ":")
            container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"


def image_name(image: str) -> str:
    """Without its tag or digest; a registry's port is no tag."""
    return re.sub(r"(:[^:/]+)?(@[^@]+)?$", "", image)


def _replace(documents: list[Document], replacement: Mapping[str, Any], origin: Path) -> None:
    source = dict(replacement["source"])
    *parents, last = source.pop("fieldPath").split(".")
    try:
        (given,) = (document for document in documents if _is_meant(document, source))
        owner = given
        for part in parents:
            owner = owner[part]
        value = owner[last]
        for target in replacement["targets"]:
            for document in documents:
                if _is_meant(document, target["select"]):
                    for path in target["fieldPaths"]:
                        _set_field(document, path, copy.deepcopy(value))
    except (KeyError, ValueError) as error:
        raise ConfigurationError(f"{origin}: the replacement from {source} fails") from error


def _set_field(document: Document, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    owner = document
    for part in parents:
        owner = owner.setdefault(part, {})
    owner[last] = value
