"""What the settings of a synthesis must not say; and what its teachers lack on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from synthesis.budget import cost_nusd, price_of
from synthesis.ledger import NUSD
from synthesis.records import Usage
from synthesis.settings import SynthesizeSettings, Teacher

if TYPE_CHECKING:
    from orchestrator.config import RunConfig

SERVICES = ("openai", "openai-batch", "anthropic-batch")  # in the network
_USUAL_KEYS = {
    "openai": "OPENAI_API_KEY",
    "openai-batch": "OPENAI_API_KEY",
    "anthropic-batch": "ANTHROPIC_API_KEY",
}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
# Keys of the usual services; a long word with digits in it may be one of another.
_SECRET = re.compile(r"\b(sk-[\w-]{8,}|hf_\w{8,}|(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{32,})")
_SECRET_NAME = re.compile(
    r"['\"](x[-_])?(api[-_]?key|authorization|password|secret|access[-_]token)['\"]:", re.IGNORECASE
)
_CONSTANT = re.compile(r"[A-Z][A-Z0-9_]*")  # as variables are named, and keys are not
# Of a request's body, with the keys that decide them here.
_DECIDED = {
    "model": "model",
    "messages": "judge.template",
    "temperature": "temperature",
    "max_tokens": "max_new_tokens",
    "n": "samples of a pass",
}


def key_variable(teacher: Teacher) -> str | None:
    """The environment variable with the key; None: a service of one's own that asks for none."""
    if teacher.api_key_env is not None or teacher.base_url is not None:
        return teacher.api_key_env
    return _USUAL_KEYS.get(teacher.uses)


def most_output_usd(settings: SynthesizeSettings, teacher: Teacher) -> float | None:
    """What a teacher's longest answer costs without its prompt; None: its model has no price."""
    price = price_of(settings.prices, teacher.model)
    if price is None:
        return None
    usage = Usage(0, 0, teacher.max_new_tokens)
    return cost_nusd(usage, price, is_batch=teacher.uses.endswith("-batch")) / NUSD


def synthesis_contradictions(config: RunConfig) -> Iterator[str]:
    for index, phase in enumerate(config.phases):
        if phase.kind != "synthesize":
            continue
        settings = phase.settings
        name = "synthesize" if settings == config.synthesize else f"phases[{index}].synthesize"
        yield from _passes(settings, name, config.judge.template)
        yield from _teachers(settings, name)
        yield from _money(settings, name)
        is_first = all(other.kind == "synthesize" for other in config.phases[:index])
        yield from _place(config, settings, name, is_first=is_first)


def _passes(settings: SynthesizeSettings, name: str, template: str) -> Iterator[str]:
    if not settings.teachers:
        yield (
            f"phases has synthesize, but {name}.teachers names none: add one, e.g. "
            "{strong: {uses: openai, model: gpt-4.1}}"
        )
    if not settings.passes:
        yield f"{name}.passes is empty: add one, e.g. [{{teacher: strong}}]"
    for number, each in enumerate(settings.passes):
        if each.teacher not in settings.teachers:
            known = ", ".join(settings.teachers) or "none"
            yield (
                f"{name}.passes[{number}].teacher is {each.teacher}, which is not in "
                f"{name}.teachers ({known}): add it there, or name another one"
            )
        if each in settings.passes[:number] and not each.tells_verdict:
            yield (
                f"{name}.passes[{number}] asks again what passes[{settings.passes.index(each)}] "
                "asked, and would be given the same answers: raise samples there instead"
            )
    checks = settings.checks
    if checks.weights and template == "compact":
        yield (
            f"{name}.checks.weights is on, but rubrics of the template compact have no weights, so "
            "that all with a rubric would be rejected: set it to false"
        )
    if checks.max_chars is not None and checks.max_chars < checks.min_chars:
        yield (
            f"{name}.checks.max_chars ({checks.max_chars}) is less than min_chars "
            f"({checks.min_chars}): raise the first or lower the second"
        )


def _teachers(settings: SynthesizeSettings, name: str) -> Iterator[str]:
    for teacher_name, teacher in settings.teachers.items():
        key = f"{name}.teachers.{teacher_name}"
        if not _NAME.fullmatch(teacher_name):
            yield f"{key}: a teacher's name is a letter, then letters, digits, - and _: rename it"
        kind = teacher.uses.partition(":")[0]
        if teacher.uses not in (*SERVICES, "engines", "policy") and kind not in (
            "builtin",
            "import",
        ):
            yield (
                f"{key}.uses is {teacher.uses}: take {', '.join(SERVICES)}, engines, policy, "
                "builtin:quickstart or import:package.module:Object"
            )
        if teacher.uses in (*SERVICES, "engines") and not teacher.model:
            yield f"{key}.model is missing: name the model that is to write the traces"
        if teacher.temperature == 0 and any(
            each.teacher == teacher_name and each.samples > 1 and each.temperature is None
            for each in settings.passes
        ):
            yield f"{key}.temperature is 0, where all samples are the same: raise it, or take one"
        yield from _secrets(teacher, key)
        yield from _parameters(teacher, key)


def _secrets(teacher: Teacher, key: str) -> Iterator[str]:
    """What looks like one is not repeated."""
    env = teacher.api_key_env
    is_key = env is not None and _SECRET.fullmatch(env) and not _CONSTANT.fullmatch(env)
    if env is not None and (is_key or not _VARIABLE.fullmatch(env)):
        yield (
            f"{key}.api_key_env is the name of an environment variable, and what it holds does not "
            "look like one: put the key into a variable, name that, and if the key itself was "
            "written here, have a new one made"
        )
    yield from _address(teacher.base_url or "http://host", key)
    for part in ("parameters", "options"):
        written = str(getattr(teacher, part))
        if _SECRET.search(written) or _SECRET_NAME.search(written):
            yield (
                f"{key}.{part} holds what looks like a key: a secret never stands in a "
                "configuration; name its variable in api_key_env"
            )


def _address(base_url: str, key: str) -> Iterator[str]:
    try:
        url = urlsplit(base_url)
        is_address = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # brackets, or a port that is none
        yield f"{key}.base_url is no address: write http://host:port/v1"
        return
    if not is_address:
        yield f"{key}.base_url is no address: write http://host:port/v1"
    if url.username or url.password or url.query:
        yield (
            f"{key}.base_url holds more than an address: leave user, password and query out, and "
            "name the variable with the key in api_key_env"
        )


def _parameters(teacher: Teacher, key: str) -> Iterator[str]:
    """What is decided elsewhere, so that budget and requests go by it."""
    for name, by in _DECIDED.items():
        if name in teacher.parameters:
            yield f"{key}.parameters.{name} is decided by {by}: set that instead"
    if teacher.parameters.get("stream"):
        yield f"{key}.parameters.stream is on, and answers are read whole: leave it out"
    most = teacher.parameters.get("max_completion_tokens", teacher.max_new_tokens)
    if most != teacher.max_new_tokens:
        yield (
            f"{key}.parameters.max_completion_tokens ({most}) is not max_new_tokens "
            f"({teacher.max_new_tokens}), by which costs are reckoned: set both to the same"
        )


def _money(settings: SynthesizeSettings, name: str) -> Iterator[str]:
    models = [
        (key, teacher.model)
        for key, teacher in settings.teachers.items()
        if teacher.uses in SERVICES and teacher.model
    ]
    for key, teacher in settings.used.items():
        cost_usd, most_usd = most_output_usd(settings, teacher), settings.max_cost_usd
        if cost_usd is not None and most_usd is not None and cost_usd > most_usd:
            yield (
                f"{name}.teachers.{key}.max_new_tokens ({teacher.max_new_tokens}) may cost "
                f"${cost_usd:.4g}, more than {name}.max_cost_usd (${most_usd:.4g}), so that it "
                "could be asked nothing: raise the second or lower the first"
            )
    if settings.prices is None:
        if settings.max_cost_usd is not None:
            yield (
                f"{name}.max_cost_usd is set, but {name}.prices is not, so that nobody would know "
                "what is spent: add {MODEL: {input_usd_per_million: 1, output_usd_per_million: 1}}"
            )
        return
    for key, model in models:
        if model not in settings.prices:
            known = ", ".join(settings.prices) or "none"
            yield (
                f"{name}.prices has no {model}, the model of {name}.teachers.{key} (it has "
                f"{known}): add its price, which may be 0"
            )


def _place(
    config: RunConfig, settings: SynthesizeSettings, name: str, *, is_first: bool
) -> Iterator[str]:
    uses = {
        settings.teachers[p.teacher].uses for p in settings.passes if p.teacher in settings.teachers
    }
    if "engines" in uses and not is_first:
        yield (
            f"{name} has a teacher on engines of its own, but comes after other phases, whose "
            "engines have the run's GPUs: put it first in phases"
        )
    if "policy" in uses and is_first and config.model.make is not None:
        yield (
            f"{name} asks the run's own weights before any training, and model.make gives it "
            "random ones: put it after distill or reinforce"
        )
    if settings.keep == "reward" and "policy" not in uses:
        yield (
            f"{name}.keep is reward, and the verifiers that score by reward.mix come with the "
            "run's engines: name policy as a teacher, or keep first, shortest or all"
        )
    if isinstance(config.run.dir, str) and settings.cache is None and uses & set(SERVICES):
        yield (
            f"run.dir ({config.run.dir}) is a URL, which does not get each answer when it is "
            f"paid for: set {name}.cache to a folder that outlives this machine"
        )


def lacking_keys(config: RunConfig) -> Iterator[str]:
    """Variables that teachers need and this process does not have."""
    for phase in config.phases:
        if phase.kind == "synthesize":
            for name, teacher in phase.settings.used.items():
                if teacher.uses in SERVICES and (variable := key_variable(teacher)) is not None:
                    yield from _lacking(f"synthesize.teachers.{name}", variable)


def _lacking(key: str, variable: str) -> Iterator[str]:
    value = os.environ.get(variable)
    if not value:
        yield (
            f"{key}: the environment variable {variable}, which is to hold its key, is not set: "
            "export it, or name another one in api_key_env"
        )
    # The libraries would refuse it as a header, and show it with that.
    elif not value.isascii() or not value.isprintable() or value != value.strip():
        yield (
            f"{key}: what the environment variable {variable} holds has a line end, a blank around "
            "it or a letter that no key has: export the key alone"
        )
