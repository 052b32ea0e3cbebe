"""What must be in place before the first actor starts, checked on this machine.

`inputs` are wrong on every machine and refused even by a dry run; `obstacles` are what this
machine lacks, which a dry run only tells.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from actors.urls import cache_root, is_url, missing_package
from judging.errors import ConfigurationError, InfrastructureError
from judging.prompts import load_template
from orchestrator.benchmark_items import benchmark_items
from orchestrator.config import RunConfig
from orchestrator.facts import Facts, absent_benchmarks, absent_data, model_folder, read_json
from orchestrator.memory import GIB, kv_cache_tokens
from orchestrator.plan import Plan
from orchestrator.synthesis_plan import check_teachers, engine_teachers, logit_teachers
from orchestrator.synthesis_rules import lacking_keys

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
STORE_TIMEOUT_S = 5.0
# vLLM's own number for one engine step on a CPU where rollout.max_batched_tokens is not set.
CPU_BATCHED_TOKENS = 4096


def check_inputs(config: RunConfig, facts: Facts) -> None:
    """Raises ConfigurationError for a template or a model folder that cannot be used, DataError for
    files of benchmarks."""
    load_template(config.judge.template)
    check_teachers(config)
    if not absent_benchmarks(config):
        benchmark_items(config, lambda text: None, with_hub=False)
    if facts.model.folder is not None:
        check_model_folder(facts.model.folder)
        _check_positions(facts.model.folder, "model.path", config.context_tokens)
    for key, path, tokens in engine_teachers(config):
        if (folder := model_folder(path, None)) is not None:
            check_model_folder(folder, key)
            _check_positions(folder, key, tokens)
    for key, path in logit_teachers(config):  # given the student's own tokens
        if (folder := model_folder(path, None)) is not None:
            _check_weights(folder, key)
            _check_positions(folder, key, config.context_tokens)


def check_model_folder(folder: Path, key: str = "model.path") -> None:
    """Raises ConfigurationError, which names `key`, if `folder` is no model with weights, tokenizer
    and template."""
    _check_weights(folder, key)
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        raise ConfigurationError(
            f"{key}: {folder} has no tokenizer (tokenizer.json): copy that of its base model "
            "into it"
        )
    tokenizer = folder / "tokenizer_config.json"
    has_template = tokenizer.exists() and bool(read_json(tokenizer, key).get("chat_template"))
    if not has_template and not (folder / "chat_template.jinja").exists():
        raise ConfigurationError(
            f"{key}: {folder} has no chat template: add chat_template.jinja, or take a model "
            "that is tuned for chat"
        )


def _check_positions(folder: Path, key: str, tokens: int) -> None:
    """As vLLM would refuse it, but before anything starts."""
    values = read_json(folder / "config.json", key)
    positions = values.get("max_position_embeddings")
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    is_plain = isinstance(rope, dict) and not any(isinstance(each, dict) for each in rope.values())
    is_scaled = not is_plain or rope.get("rope_type", rope.get("type", "default")) != "default"
    if isinstance(positions, int) and not is_scaled and positions < tokens:
        raise ConfigurationError(
            f"{key}: {folder} has {positions:,} positions, and a prompt with its answer may have "
            f"{tokens:,} tokens: lower data.max_prompt_tokens, max_new_tokens or "
            "model.context_tokens, or take a model with a longer context"
        )


def _check_weights(folder: Path, key: str) -> None:
    read_json(folder / "config.json", key)
    weights = {file.name for file in folder.glob("*.safetensors")}
    index = folder / "model.safetensors.index.json"
    wanted = set(read_json(index, key).get("weight_map", {}).values()) if index.exists() else set()
    if missing := sorted(wanted - weights):
        raise ConfigurationError(
            f"{key}: {folder} lacks {', '.join(missing[:3])} of its weights: fetch them again"
        )
    if not weights:
        pickled = next(folder.glob("*.bin"), None) or next(folder.glob("*.pt"), None)
        held = f"only {pickled.name}, a pickle, which is not loaded" if pickled else "no weights"
        raise ConfigurationError(
            f"{key}: {folder} holds {held}: save the model as *.safetensors "
            "(save_pretrained of transformers does)"
        )


def check_obstacles(config: RunConfig, plan: Plan, facts: Facts) -> None:
    """Raises ConfigurationError with all that keeps this machine from running `config`."""
    if found := find_obstacles(config, plan, facts):
        lines = "\n".join(f"- {obstacle}" for obstacle in found)
        raise ConfigurationError(f"this run cannot start here:\n{lines}")


def find_obstacles(config: RunConfig, plan: Plan, facts: Facts) -> list[str]:
    """What keeps this machine from running `config`, each with its mend; changes nothing."""
    found = [*_data(config), *_model(config, facts), *_run_dir(config), *_urls(config)]
    found += lacking_keys(config)
    if config.is_driver_alone:
        return found  # nothing is trained, and no engine of its own is needed
    found += build_tools()
    if not facts.machine.is_cluster:  # else they are other machines' matter
        found += too_few_gpus(plan, facts)
        if not plan.uses_gpus:
            found += [*_memory(plan, facts), *_cpu_engine(config, facts), *libnuma()]
    return found


def check_store(config: RunConfig) -> None:
    """Raises ConfigurationError if the server at `store.url` cannot be used."""
    if config.store.url is None:
        return
    from orchestrator.store import open_store

    try:  # opened and closed as the run will do it, with a directory that is not the run's
        with (
            TemporaryDirectory(prefix="gavel-") as folder,
            open_store(config.store.url, Path(folder), timeout_s=STORE_TIMEOUT_S),
        ):
            pass
    except InfrastructureError as error:
        raise ConfigurationError(
            f"store.url: {error}: start that server, mend the address, or leave store.url out for "
            "a private server"
        ) from error


def _data(config: RunConfig) -> Iterator[str]:
    for key, path in (absent_data(config) | absent_benchmarks(config)).items():
        yield f"{key}: {path} is not on this machine: put it there, or set {key} to where it is"


def _model(config: RunConfig, facts: Facts) -> Iterator[str]:
    path = config.model.path
    if path is not None and facts.model.folder is None:
        yield from _absent_model("model.path", path)
    teachers = ((key, other) for key, other, _ in engine_teachers(config))
    for key, other in dict.fromkeys((*teachers, *logit_teachers(config))):
        if model_folder(other, None) is None:
            yield from _absent_model(key, other)


def _absent_model(key: str, path: str) -> Iterator[str]:
    if is_url(path):
        return
    if not HUB_ID.fullmatch(path) or path.startswith("."):
        yield f"{key}: {path} is not a folder: name a Hugging Face model folder or a hub id"
    elif os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        yield (
            f"{key}: {path} is neither a folder nor in the hub's cache, and HF_HUB_OFFLINE "
            f"is set: fetch it with `hf download {path}` where there is a network"
        )


def nearest_existing(path: Path) -> Path:
    """`path`, or what there is of the way to it."""
    nearest = path.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    return nearest


def _run_dir(config: RunConfig) -> Iterator[str]:
    folder, key = config.run.dir, "run.dir"
    if isinstance(folder, str):
        folder, key = cache_root(), "GAVEL_CACHE"
    nearest = nearest_existing(folder)
    if not nearest.is_dir():
        yield f"{key}: {nearest} is not a folder: choose another {key}"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        yield f"{key}: {nearest} cannot be written to: choose another {key}"


def _urls(config: RunConfig) -> Iterator[str]:
    for key, place in (("run.dir", config.run.dir), ("model.path", config.model.path)):
        if isinstance(place, str) and is_url(place) and (package := missing_package(place)):
            yield (
                f"{key}: {place} needs a package that is not here: pip install {package} (on every "
                "node)"
            )


def build_tools() -> Iterator[str]:
    """What DeepSpeed lacks here to compile with."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        yield (
            "no C++ compiler is on the PATH, and DeepSpeed compiles its communication on first "
            "use: install one (apt install g++)"
        )
    # The scripts of this Python's packages need not be on the PATH.
    elif shutil.which("ninja") is None and not (Path(sys.executable).parent / "ninja").exists():
        yield "ninja, which DeepSpeed builds with, is not on the PATH: pip install ninja"


def libnuma() -> Iterator[str]:
    """Whether the library that vLLM loads on a CPU is lacking here."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        yield "libnuma, which vLLM needs on a CPU, is not installed: apt install libnuma1"


def too_few_gpus(plan: Plan, facts: Facts) -> Iterator[str]:
    have = facts.machine.gpus
    if plan.uses_gpus and plan.gpus > have:
        parts = " + ".join(
            f"{actor.count} {actor.role}s x {actor.gpus}" for actor in plan.actors if actor.gpus
        )
        mend = (
            "lower rollout.workers, rollout.tensor_parallel or learner.ranks, set RAY_ADDRESS to "
            "a cluster that has them"
        )
        without = ", or set CUDA_VISIBLE_DEVICES= to use none" if have else ""
        yield f"{plan.gpus} GPUs are needed ({parts}) and {have} are here: {mend}{without}"


def _memory(plan: Plan, facts: Facts) -> Iterator[str]:
    needed, free = plan.host_memory_bytes, facts.machine.memory_bytes
    if needed is not None and needed > free:
        yield (
            f"about {needed / GIB:.1f} GiB of memory are needed and {free / GIB:.1f} GiB are free: "
            "lower rollout.workers, rollout.kv_cache_gib, learner.ranks or "
            "learner.micro_batch_tokens, or end other programs"
        )


def _cpu_engine(config: RunConfig, facts: Facts) -> Iterator[str]:
    rollout, context = config.rollout, config.context_tokens
    batched = rollout.max_batched_tokens
    if batched is not None and batched < context:
        yield (
            f"rollout.max_batched_tokens ({batched}) is less than the context of {context} tokens, "
            "but an engine on a CPU takes a prompt in one step: raise it, or leave it out"
        )
    if batched is None and rollout.max_concurrent_sequences > max(context, CPU_BATCHED_TOKENS):
        yield (
            f"rollout.max_concurrent_sequences ({rollout.max_concurrent_sequences}) is more than "
            f"the {max(context, CPU_BATCHED_TOKENS)} tokens of one engine step: lower it, or raise "
            "rollout.max_batched_tokens"
        )
    shape = facts.model.shape
    if shape is not None and (room := kv_cache_tokens(config, shape)) < context:
        yield (
            f"rollout.kv_cache_gib ({rollout.kv_cache_gib:g}) holds {room} tokens, less than the "
            f"context of {context}: raise it"
        )
