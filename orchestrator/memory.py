"""How much memory a learner and an engine need, from the model's size and the settings.

Weights, gradients and optimizer states follow from the numbers of bytes (ZeRO, 1910.02054,
section 3); activations and the processes themselves are rough.
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.placement import Kind
from orchestrator.config import ReinforcePhase, RunConfig
from orchestrator.facts import Machine, ModelFacts, ModelShape

GIB = 1024**3
DTYPE_BYTES = {"fp32": 4, "bf16": 2}
ADAM_BYTES = 8  # of one parameter: two moments in fp32
MASTER_BYTES = 4  # of one parameter: the fp32 copy that is updated
# Resident size of a process with its libraries, measured on a CPU.
LEARNER_PROCESS_BYTES = round(1.1 * GIB)
ENGINE_PROCESS_BYTES = round(1.1 * GIB)
VERIFIER_PROCESS_BYTES = round(0.15 * GIB)
DRIVER_PROCESS_BYTES = round(0.9 * GIB)  # with Ray's own and the private Redis server


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one process by what they are for."""

    parts: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        return sum(size for _, size in self.parts)


def learner_memory(config: RunConfig, model: ModelFacts, *, on_gpu: bool) -> Memory | None:
    """Of one rank, at most; None if the number of parameters is unknown."""
    if model.parameters is None:
        return None
    settings, each = config.learner, DTYPE_BYTES[config.model.dtype]
    stage, ranks, count = settings.zero_stage, settings.ranks, model.parameters
    has_master = config.model.dtype == "bf16" or stage >= 1
    states = (ADAM_BYTES + (MASTER_BYTES if has_master else 0)) * count
    has_reference = any(p.kind == "reinforce" and p.settings.kl_coef > 0 for p in config.phases)
    parts = {
        "weights": each * count // (ranks if stage == 3 else 1),
        "gradients": each * count // (ranks if stage >= 2 else 1),
        "optimizer states": states // (ranks if stage >= 1 else 1),
    }
    if settings.offload_optimizer and on_gpu:
        del parts["optimizer states"]  # in host memory
    if has_reference:
        parts["reference"] = parts["weights"]
    if model.shape is not None:
        parts["activations"] = _activations(config, model.shape, each)
    if not on_gpu:
        parts["process"] = LEARNER_PROCESS_BYTES
    return Memory(tuple(parts.items()))


def _activations(config: RunConfig, shape: ModelShape, each: int) -> int:
    """Of one full micro-batch: what the layers keep for the backward pass, and the logits."""
    tokens = config.learner.micro_batch_tokens
    layer = tokens * (16 * shape.hidden + 4 * shape.intermediate) * each
    if config.learner.gradient_checkpointing:
        layers = layer + shape.layers * tokens * shape.hidden * each
    else:
        layers = shape.layers * layer
    # Logits are made for completions only: in the model's type, in fp32, and their gradient, which
    # the tokens of a teacher add to once more.
    completion = config.rollout.max_new_tokens
    if config.learner.packing:  # a group's prompt is computed once
        completion *= max((p.settings.group_size for p in _reinforcing(config)), default=1)
    scored = tokens * completion // (config.data.max_prompt_tokens + completion)
    has_teacher = any(p.kind == "distill" and p.settings.logits for p in config.phases)
    return layers + scored * shape.vocabulary * (each + (12 if has_teacher else 8))


def _reinforcing(config: RunConfig) -> list[ReinforcePhase]:
    return [phase for phase in config.phases if isinstance(phase, ReinforcePhase)]


def engine_memory(config: RunConfig, model: ModelFacts, machine: Machine) -> Memory | None:
    """Of one engine (on a GPU: of each of its GPUs); None if it is unknown."""
    if model.parameters is None:
        return None
    rollout = config.rollout
    weights = DTYPE_BYTES[config.model.dtype] * model.parameters // rollout.tensor_parallel
    if not needs_gpus(config, machine):
        cache = round(rollout.kv_cache_gib * GIB)
        process = ENGINE_PROCESS_BYTES
        return Memory((("weights", weights), ("KV cache", cache), ("process", process)))
    if machine.gpu_memory_bytes is None:
        return Memory((("weights", weights),))
    share = round(rollout.gpu_memory_utilization * machine.gpu_memory_bytes)
    return Memory((("weights", weights), ("KV cache and work", max(0, share - weights))))


def host_memory(config: RunConfig, model: ModelFacts) -> dict[Kind, int]:
    """Bytes of one actor of each kind on nodes without GPUs; empty if they are unknown."""
    node = Machine(cpus=1, memory_bytes=0, gpus=0, gpu_memory_bytes=None, is_cluster=True)
    learner = learner_memory(config, model, on_gpu=False)
    engine = engine_memory(config, model, node)
    if learner is None or engine is None:
        return {}
    return {
        "learner": learner.total,
        "rollout": engine.total,
        "verifier": VERIFIER_PROCESS_BYTES,
    }


def needs_gpus(config: RunConfig, machine: Machine) -> bool:
    """Whether the actors are placed on GPUs: where there are any, or one engine takes several."""
    return machine.gpus > 0 or config.rollout.tensor_parallel > 1


def kv_cache_tokens(config: RunConfig, shape: ModelShape) -> int:
    """Tokens that fit into the KV cache of an engine on a CPU."""
    each = DTYPE_BYTES[config.model.dtype]
    return int(config.rollout.kv_cache_gib * GIB) // shape.kv_bytes(each)
