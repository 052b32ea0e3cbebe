"""What the plan must know of data, model and machine, found without torch or Ray.

Reads files and asks the machine; judges nothing. What is not on this machine is None.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from judging.errors import ConfigurationError, InfrastructureError
from learning.tiny import TinyModel
from orchestrator.config import RunConfig
from orchestrator.pairs import load_pairs

MAX_HEADER_BYTES = 100 * 1024 * 1024  # the limit of the safetensors format
NVIDIA_SMI_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Parts:
    """Pairs in each part, before those with overlong prompts are left out."""

    distill: int  # with a trace
    reinforce: int
    heldout: int
    to_ask: int = 0  # for distillation, whether they have a trace or not
    notes: tuple[str, ...] = ()  # what was read and what was left out


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What memory depends on besides the number of parameters."""

    hidden: int
    intermediate: int
    layers: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    def kv_bytes(self, value_bytes: int) -> int:
        """Of one token in an engine's KV cache."""
        return 2 * self.layers * self.kv_heads * self.head_dim * value_bytes


@dataclass(frozen=True, slots=True)
class ModelFacts:
    parameters: int | None
    source: str  # how the number is known
    shape: ModelShape | None
    folder: Path | None  # where its files are, if they are on this machine


@dataclass(frozen=True, slots=True)
class Machine:
    cpus: int
    memory_bytes: int  # free for use
    gpus: int
    gpu_memory_bytes: int | None  # of the smallest GPU
    is_cluster: bool  # the run joins a cluster, whose machines are not seen from here


@dataclass(frozen=True, slots=True)
class Facts:
    parts: Parts | None  # None: the data is not on this machine
    model: ModelFacts
    machine: Machine


def gather_facts(config: RunConfig) -> Facts:
    """Raises DataError and ConfigurationError for data and model files that are malformed."""
    return Facts(count_parts(config), model_facts(config), machine())


def count_parts(config: RunConfig) -> Parts | None:
    data = config.data
    if (task := data.generate) is not None:
        sizes = (task.distill_pairs, task.reinforce_pairs, task.heldout_pairs)
        return Parts(*sizes, to_ask=task.distill_pairs)
    if absent_data(config):
        return None
    loaded = load_pairs(config)
    return Parts(
        distill=sum(pair.trace is not None for pair in loaded.split.distill),
        reinforce=len(loaded.split.reinforce),
        heldout=len(loaded.split.heldout),
        to_ask=len(loaded.split.distill),
        notes=loaded.notes,
    )


def absent_data(config: RunConfig) -> dict[str, str]:
    """Keys of data that the run needs and their paths, as far as these are not on this machine."""
    data = config.data
    needed = {
        "data.path": data.path,
        **{f"data.sources.{name}.path": each.path for name, each in (data.sources or {}).items()},
        "data.distill_path": data.distill_path,
        "data.heldout_path": data.heldout_path,
        **{f"data.overlap_with[{i}]": path for i, path in enumerate(data.overlap_with)},
    }
    return {key: path for key, path in needed.items() if path and not Path(path).exists()}


def absent_benchmarks(config: RunConfig) -> dict[str, str]:
    """As `absent_data`, of the benchmarks that the run evaluates on."""
    folders = (each.data for each in config.evaluations if each.benchmarks and each.data)
    absent = [folder for folder in folders if not Path(folder).exists()]
    return {"evaluate.data": absent[0]} if absent else {}


# ---- model ---------------------------------------------------------------------------------------


def model_facts(config: RunConfig) -> ModelFacts:
    if (tiny := config.model.make) is not None:
        return _tiny_facts(tiny)
    path = config.model.path
    if path is None:
        return ModelFacts(None, "unknown: the run needs none of its own", None, None)
    folder = model_folder(path, config.model.revision)
    if folder is None:
        number = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)B(?![A-Za-z])", path)
        if number is None:
            return ModelFacts(None, "unknown: the model is not on this machine", None, None)
        parameters = round(float(number[1]) * 1e9)
        return ModelFacts(parameters, "estimated from the name", None, None)
    parameters = sum(_tensor_values(file) for file in sorted(folder.glob("*.safetensors")))
    source = "counted in its files" if parameters else "unknown: no safetensors files"
    return ModelFacts(parameters or None, source, _shape(folder / "config.json"), folder)


def model_folder(path: str, revision: str | None) -> Path | None:
    """The folder itself, or that of a hub id in the local cache; None if it is in neither."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(path, "config.json", revision=revision)
    except HFValidationError:
        return None  # no hub id either
    return Path(cached).parent if isinstance(cached, str) else None


def _tiny_facts(tiny: TinyModel) -> ModelFacts:
    head_dim = tiny.hidden_size // tiny.heads
    hidden, kv = tiny.hidden_size, tiny.kv_heads * head_dim
    attention = 2 * hidden * hidden + hidden + 2 * (hidden * kv + kv)
    layer = attention + 3 * hidden * tiny.intermediate_size + 2 * hidden
    embeddings = tiny.vocab_size * hidden * (1 if tiny.tie_word_embeddings else 2)
    shape = ModelShape(
        hidden, tiny.intermediate_size, tiny.layers, tiny.kv_heads, head_dim, tiny.vocab_size
    )
    parameters = embeddings + tiny.layers * layer + hidden
    return ModelFacts(parameters, "at most, from model.make", shape, None)


def _shape(config_json: Path) -> ModelShape | None:
    """None for a model whose configuration has other fields than the usual ones."""
    values = read_json(config_json)
    try:
        heads = values["num_attention_heads"]
        return ModelShape(
            hidden=values["hidden_size"],
            intermediate=values["intermediate_size"],
            layers=values["num_hidden_layers"],
            kv_heads=values.get("num_key_value_heads") or heads,
            head_dim=values.get("head_dim") or values["hidden_size"] // heads,
            vocabulary=values["vocab_size"],
        )
    except KeyError:
        return None


def read_json(path: Path, key: str = "model.path") -> dict[str, Any]:
    """A model's JSON file; raises ConfigurationError, which names `key`, if it is missing or
    malformed."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(
            f"{key}: {path} is missing, so {path.parent} is no model: name a Hugging Face "
            "model folder"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{key}: {path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{key}: {path} holds no JSON object: fetch the model again")
    return values


def _tensor_values(file: Path) -> int:
    """How many numbers a safetensors file holds, by its header alone."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(min(length, MAX_HEADER_BYTES)))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        return sum(prod(entry["shape"]) for entry in tensors)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigurationError(
            f"model.path: {file} is no safetensors file or is cut off: fetch the model again"
        ) from error


# ---- machine -------------------------------------------------------------------------------------


def machine() -> Machine:
    import psutil

    sizes = gpu_memory_sizes()
    return Machine(
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=free_memory(psutil.virtual_memory().available),
        gpus=len(sizes),
        gpu_memory_bytes=min(sizes, default=None),
        is_cluster=bool(os.environ.get("RAY_ADDRESS")),
    )


def gpu_memory_sizes() -> list[int]:
    """Bytes of each GPU that CUDA_VISIBLE_DEVICES leaves, asked of nvidia-smi."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1"):
        return []
    sizes = [int(line) * 1024**2 for line in ask_nvidia_smi("memory.total") if line.isdigit()]
    return sizes if visible is None else sizes[: len(visible.split(","))]


def ask_nvidia_smi(field: str) -> list[str]:
    """The field of each GPU of this machine; none without nvidia-smi.

    Raises InfrastructureError if it does not answer.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise InfrastructureError(
            f"nvidia-smi did not answer within {NVIDIA_SMI_TIMEOUT_S:g} s: mend the driver, or set "
            "CUDA_VISIBLE_DEVICES= to run without a GPU"
        ) from None
    return answer.stdout.splitlines() if answer.returncode == 0 else []


def free_memory(available: int) -> int:
    """What is available to this container, whose limit psutil does not know."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").open())
        used -= int(statistics["inactive_file"])  # cache that is given up on demand
    except (OSError, ValueError):  # no limit, or no such control group
        return available
    return min(available, max(0, limit - used))
