"""From files and overrides to a `RunConfig`, and back to text.

A file may extend others (`extends: base.yaml`, or a list), relative to itself; its own keys win
over theirs, and later ones of a list over earlier ones. Mappings merge key by key, everything else
replaces. Overrides from the command line come last.

A path in a file that is not absolute counts from the current directory where it exists there, else
from the file's own folder where it exists there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from dataclasses import fields as dataclass_fields
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from judging.errors import ConfigurationError
from orchestrator.config import RunConfig
from orchestrator.phase_kinds import PhaseKind
from orchestrator.yaml_source import Tree, YamlError, read_tree, read_value

PATH_KEYS = (
    "model.path",
    "data.path",
    "data.distill_path",
    "data.heldout_path",
    "data.overlap_with",
    "distill.logits.teacher",
    "evaluate.data",
    "judge.template",
)
_PHASE_KINDS: tuple[str, ...] = get_args(PhaseKind)
_OVERRIDE = re.compile(r"([a-z_]+(?:\.[A-Za-z0-9_-]+)*)=(.*)", re.DOTALL)
_TEACHER = re.compile(r"(.*synthesize\.teachers\.[^.]+)\.([^.]+)")
_SECRETS = ("api_key", "apikey", "key", "token", "secret", "password")  # what people call theirs
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text (write it in quotes)",
    "path_type": "a path",
    "tuple_type": "a list",
    "model_type": "keys of its own",
    "dataclass_type": "keys of its own",
}


@dataclass(frozen=True, slots=True)
class _Source:
    """A tree with where each of its dotted keys was set."""

    tree: Tree
    origins: dict[str, str] = field(default_factory=dict)

    def over(self, base: _Source) -> _Source:
        # A list that is replaced takes the lines of its entries with it.
        kept = {k: o for k, o in base.origins.items() if k.partition("[")[0] not in self.origins}
        return _Source(merge(base.tree, self.tree), kept | self.origins)


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in `path` with `key=value` overrides.

    Raises:
        ConfigurationError: a file that is missing or no YAML, an override of bad form, an unknown
            key, a value of the wrong type, or keys that contradict each other.
    """
    return _validated(_overridden(_read_file(path, ()), overrides))


def config_from_tree(tree: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """A configuration from the mapping that a YAML file would hold; raises as `load_config`."""
    return _validated(_overridden(_Source(dict(tree)), overrides))


def _overridden(source: _Source, overrides: Sequence[str]) -> _Source:
    for text in overrides:
        source = _read_override(text).over(source)
    return source


def new_run_id(name: str, now: datetime) -> str:
    """From the configuration's name and the time."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "run"
    return f"{plain}-{now:%Y%m%d-%H%M%S}"


def with_run_id(config: RunConfig, run_id: str) -> RunConfig:
    return config.model_copy(update={"run": config.run.model_copy(update={"id": run_id})})


def config_tree(config: RunConfig) -> Tree:
    """Plain values that `config_from_tree` reads again, without a password."""
    tree = config.model_dump(mode="json")
    if config.store.url is not None:
        from orchestrator.store import without_password

        tree["store"]["url"] = without_password(config.store.url)
    tree["phases"] = [{phase["kind"]: phase["settings"]} for phase in tree["phases"]]
    return tree


def dump_config(config: RunConfig) -> str:
    """YAML of every key of `config`, without a password."""
    return yaml.safe_dump(config_tree(config), sort_keys=False, allow_unicode=True, width=100)


def merge(base: Mapping[str, Any], above: Mapping[str, Any]) -> Tree:
    """`above` over `base`: mappings merge key by key, everything else replaces."""
    merged = dict(base)
    for key, value in above.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = merge(below, value)
        merged[key] = value
    return merged


# ---- files and overrides -------------------------------------------------------------------------


def _read_file(path: Path, extended_by: tuple[Path, ...]) -> _Source:
    resolved = path.resolve()
    if resolved in extended_by:
        chain = " -> ".join(str(file) for file in (*extended_by, resolved))
        raise ConfigurationError(f"{path}: extends goes in a circle: {chain}")
    try:
        tree, lines = read_tree(path.read_text("utf-8"))
    except FileNotFoundError:
        by = f", which {extended_by[-1]} extends" if extended_by else ""
        raise ConfigurationError(f"{path}{by}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read as a configuration: {error}") from error
    except YamlError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    bases = tree.pop("extends", [])
    names = [bases] if isinstance(bases, str) else bases
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigurationError(
            f"{path}:{lines['extends']}: extends is {bases!r}: write the path of a file, or a list"
        )
    _settle_paths(tree, path.parent)
    source = _Source(tree, {key: f"{path}:{line}" for key, line in lines.items()})
    base = _Source({})
    for name in names:
        base = _read_file(path.parent / name, (*extended_by, resolved)).over(base)
    return source.over(base)


def _settle_paths(tree: Tree, folder: Path) -> None:
    for dotted in PATH_KEYS:
        *sections, key = dotted.split(".")
        values: Any = tree
        for section in sections:
            values = values.get(section) if isinstance(values, dict) else None
        if not isinstance(values, dict):
            continue
        if isinstance(value := values.get(key), str):
            values[key] = _settled(value, folder)
        elif isinstance(value, list):
            values[key] = [_settled(v, folder) if isinstance(v, str) else v for v in value]
    data = tree.get("data")
    sources = data.get("sources") if isinstance(data, dict) else None
    for source in sources.values() if isinstance(sources, dict) else ():
        if isinstance(source, dict) and isinstance(path := source.get("path"), str):
            source["path"] = _settled(path, folder)


def _settled(path: str, folder: Path) -> str:
    is_beside = not Path(path).exists() and (folder / path).exists()
    return str(folder / path) if is_beside else path


def _read_override(text: str) -> _Source:
    match = _OVERRIDE.fullmatch(text)
    # What is written of teachers may be a secret, and is not repeated.
    shown = f"{text.partition('=')[0]}=..." if "teachers" in text else text
    if match is None:
        raise ConfigurationError(
            f"override {shown!r}: write section.key=value, e.g. learner.ranks=2"
        )
    dotted, written = match.groups()
    try:
        value = read_value(written)
    except YamlError as error:
        raise ConfigurationError(f"override {shown!r}: {error}") from error
    tree = value
    for key in reversed(dotted.split(".")):
        tree = {key: tree}
    return _Source(tree, {dotted: f"override {shown!r}"})


# ---- phases --------------------------------------------------------------------------------------


def _resolve_phases(tree: Tree) -> Tree:
    """Each phase entry with its kind and its whole settings: the section's under its own."""
    entries = tree.get("phases", [])
    if not isinstance(entries, list):
        raise ConfigurationError(
            f"phases is {entries!r}: write a list, e.g. [distill, reinforce, evaluate]"
        )
    return tree | {"phases": [_phase(i, entry, tree) for i, entry in enumerate(entries)]}


def _phase(index: int, entry: Any, tree: Tree) -> Tree:
    item = {entry: {}} if isinstance(entry, str) else entry
    kind, own = next(iter(item.items())) if isinstance(item, dict) and len(item) == 1 else (None, 0)
    if kind not in _PHASE_KINDS or not isinstance(own, dict):
        near = get_close_matches(str(kind), _PHASE_KINDS, n=1)
        raise ConfigurationError(
            f"phases[{index}] is {_shown(entry)}: write {', '.join(_PHASE_KINDS)}, or one of them "
            "with its own settings, e.g. {distill: {epochs: 2}}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    section = tree.get(kind)
    return {"kind": kind, "settings": merge(section, own) if isinstance(section, dict) else own}


# ---- validation and its messages -----------------------------------------------------------------


def _validated(source: _Source) -> RunConfig:
    # Merged key by key, since a section's default may set other values than its parts' types do.
    tree = _resolve_phases(merge(_defaults(), source.tree))
    try:
        # JSON's strict mode takes lists for tuples and text for paths, but no "2" or true for 2.
        return RunConfig.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        found = {_dotted(detail["loc"]): detail for detail in error.errors()}
        # What a phase has from its section is told once, of the section.
        own = {n: d for n, d in found.items() if n == _of_section(n) or _of_section(n) not in found}
        messages = [_message(name, detail, source.origins) for name, detail in own.items()]
        raise ConfigurationError("\n".join(messages)) from None


def _defaults() -> Tree:
    sections = {name: info.default for name, info in RunConfig.model_fields.items()}
    return {
        name: value.model_dump(mode="json") if isinstance(value, BaseModel) else asdict(value)
        for name, value in sections.items()
        if name != "phases"
    }


def _message(name: str, error: ErrorDetails, origins: Mapping[str, str]) -> str:
    if error["type"] == "value_error":  # the rules between keys, with text of their own
        return error["msg"].removeprefix("Value error, ")
    place = _origin(name, origins)
    of_teacher = _TEACHER.fullmatch(name)
    if error["type"] in _UNKNOWN and of_teacher is not None and of_teacher[2].lower() in _SECRETS:
        return (
            f"{place}unknown key {name}: a secret never stands in a configuration: export it as an "
            f"environment variable, and name that in {of_teacher[1]}.api_key_env"
        )
    if error["type"] in _UNKNOWN:
        near = _nearest(name)
        return f"{place}unknown key {name}" + (f": did you mean {near}?" if near else "")
    if error["type"] == "missing":  # a source's path, or an entry of a list of fixed length
        return f"{place}{name} is missing: add it"
    expected = _EXPECTED.get(error["type"]) or error["msg"].removeprefix("Input should be ")
    is_number = isinstance(error["input"], int | float | None)
    if ".teachers" in name and not is_number:  # it may be a secret in the wrong place
        return f"{place}{name} must be {expected}"
    return f"{place}{name} is {_shown(error['input'])}: it must be {expected}"


def _dotted(loc: Sequence[int | str]) -> str:
    # A phase's settings are written right below its kind.
    parts = [part for i, part in enumerate(loc) if not (loc[0] == "phases" and i == 3)]
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts).removeprefix(".")


def _of_section(name: str) -> str:
    """The key that a phase's own setting overrides; any other name as it is."""
    return re.sub(r"^phases\[\d+\]\.", "", name)


def _origin(name: str, origins: Mapping[str, str]) -> str:
    for key, origin in origins.items():
        if key.startswith(f"{name}.") and name not in origins:
            return f"{origin}: "
    while name:
        if name in origins:
            return f"{origins[name]}: "
        name = name[: max(name.rfind("."), name.rfind("["), 0)]
    return ""


def _shown(value: Any) -> str:
    text = "null" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _nearest(name: str) -> str | None:
    """The known key most like `name`: of its own section, else of another one."""
    section, last_part = name.rpartition(".")[::2]
    known = [_beside(section, key) for key in known_keys() if not key.startswith("phases[")]
    beside = [key for key in known if key.rpartition(".")[0] == section]
    for keys, cutoff in ((beside, 0.75), (known, 0.75), (beside, 0.6)):
        last_parts = {key.rpartition(".")[2] for key in keys}
        if near := get_close_matches(last_part, last_parts, n=1, cutoff=cutoff):
            alike = [key for key in keys if key.rpartition(".")[2] == near[0]]
            return get_close_matches(name, alike, n=1, cutoff=0.0)[0]
    return None


def _beside(section: str, key: str) -> str:
    """A known key, with the names and numbers of `section` if it is one of its keys."""
    parent, last_part = key.rpartition(".")[::2]
    of_any = re.escape(parent).replace(r"\.\*", r"\..+").replace(r"\[\*\]", r"\[\d+\]")
    if re.fullmatch(of_any, _of_section(section)):
        return f"{section}.{last_part}".removeprefix(".")
    return key.replace(".*", ".NAME").replace("[*]", "[0]")


def known_keys() -> Iterator[str]:
    """The dotted names of all sections and keys; `.*` and `[*]` stand for any name and number."""
    yield from _keys_of(RunConfig, "")


def _keys_of(kind: type, prefix: str) -> Iterator[str]:
    hints = get_type_hints(kind)
    names = (
        kind.model_fields
        if issubclass(kind, BaseModel)
        else [f.name for f in dataclass_fields(kind)]
    )
    for name in names:
        yield f"{prefix}{name}"
        for part, within in _parts_of(hints[name]):
            if isinstance(part, type) and (is_dataclass(part) or issubclass(part, BaseModel)):
                yield from _keys_of(part, f"{prefix}{name}{within}.")


def _parts_of(hint: Any, within: str = "") -> Iterator[tuple[Any, str]]:
    """The types that a hint is made of: `Mapping[str, X] | None` has X, within `.*`."""
    yield hint, within
    within += {Mapping: ".*", tuple: "[*]"}.get(get_origin(hint), "")
    for part in get_args(hint):
        yield from _parts_of(part, within)
