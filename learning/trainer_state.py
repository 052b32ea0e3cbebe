"""What a checkpoint holds beside the weights, so that training goes on as if it had not stopped.

Full tensors by the parameters' names, whatever the number of ranks and the ZeRO stage that wrote
them, so that a trainer with others can read them. In fp32 the weights are the checkpoint's own; in
bf16 the fp32 copies that the optimizer steps are here too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_INDEX = "state.json"  # written last: without it the state is not whole
_SHARD_BYTES = 4 * 2**30
_MASTER = "master"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer that holds the moments, beneath DeepSpeed's wrapper if there is one."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def set_steps_done(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """AdamW's own count, which corrects the bias of its moments."""
    for state in optimizer.state.values():
        if isinstance(step := state.get("step"), torch.Tensor):
            step.fill_(steps)
        elif step is not None:
            state["step"] = steps


def write_state(engine: Any, folder: Path, *, steps_done: int) -> None:
    """Fills `folder`; all ranks must call, rank 0 writes."""
    from safetensors.torch import save_file

    is_writer = dist.get_rank() == 0
    shard: dict[str, torch.Tensor] = {}
    shards: list[str] = []

    def flush() -> None:
        if shard:
            shards.append(f"state-{len(shards) + 1:05d}.safetensors")
            save_file(shard, folder / shards[-1])
            shard.clear()

    if is_writer:
        folder.mkdir()
    for key, tensor in _full_tensors(engine) if steps_done else ():
        if is_writer:
            shard[key] = tensor
            if sum(held.nbytes for held in shard.values()) >= _SHARD_BYTES:
                flush()
    if is_writer:
        flush()
        index = {"steps_done": steps_done, "shards": shards}
        (folder / _INDEX).write_text(json.dumps(index) + "\n", encoding="utf-8")


def read_state(engine: Any, folder: Path) -> int:
    """Brings every rank's share of the state into its optimizer; answers the steps done.

    Raises:
        ValueError: the state is not whole, or not of this model.
    """
    from safetensors import safe_open

    if not (folder / _INDEX).exists():
        raise ValueError(f"{folder} holds no whole trainer state: {_INDEX} is missing")
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    missing = set(_keys(engine)) if index["steps_done"] else set()
    parameters = dict(_named_parameters(engine))
    _link(engine)
    for shard in index["shards"]:
        with safe_open(folder / shard, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a dictionary
                if key not in missing:
                    raise ValueError(
                        f"{folder / shard} holds {key}, which this model does not have"
                    )
                missing.remove(key)
                name, _, part = key.rpartition("/")
                _set(engine, parameters[name], part, tensors.get_tensor(key))
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} tensors, among them {min(missing)}")
    set_steps_done(torch_optimizer(engine), index["steps_done"])
    return index["steps_done"]


def _named_parameters(engine: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return engine.module.model.named_parameters()


def _keys(engine: Any) -> Iterator[str]:
    for name, parameter in _named_parameters(engine):
        for part in _parts(parameter):
            yield f"{name}/{part}"


def _parts(parameter: torch.nn.Parameter) -> tuple[str, ...]:
    return _MOMENTS if parameter.dtype == torch.float32 else (_MASTER, *_MOMENTS)


def _full_tensors(engine: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """On the CPU; all ranks must iterate."""
    _link(engine)
    for name, parameter in _named_parameters(engine):
        shape = getattr(parameter, "ds_shape", parameter.shape)
        for part in _parts(parameter):
            full = _get(engine, parameter, part).detach().flatten()[: shape.numel()]
            yield f"{name}/{part}", full.reshape(shape).cpu().clone()


def _link(engine: Any) -> None:
    """Makes the moments, and has ZeRO 1 and 2 know of them, as a first step would have done."""
    optimizer = torch_optimizer(engine)
    partitions = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)  # of ZeRO 3
    for held in partitions or [p for group in optimizer.param_groups for p in group["params"]]:
        if not optimizer.state[held]:
            is_torch = isinstance(optimizer, torch.optim.AdamW)  # else DeepSpeed's, on the CPU
            step = torch.zeros((), dtype=torch.float32, device=held.device) if is_torch else 0
            moments = {part: torch.zeros_like(held, requires_grad=False) for part in _MOMENTS}
            optimizer.state[held] = {"step": step, **moments}
    if link := getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None):
        link()


def _get(engine: Any, parameter: torch.nn.Parameter, part: str) -> torch.Tensor:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if not _is_partitioned(parameter):
        return _whole(engine, parameter, part)
    is_master = part == _MASTER
    full: Any = (
        safe_get_full_fp32_param(parameter)
        if is_master
        else safe_get_full_optimizer_state(parameter, part)
    )
    return full


def _set(engine: Any, parameter: torch.nn.Parameter, part: str, full: torch.Tensor) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    if not _is_partitioned(parameter):
        _whole(engine, parameter, part).data.copy_(full)
    elif part == _MASTER:
        safe_set_full_fp32_param(parameter, full)
    else:
        safe_set_full_optimizer_state(parameter, full, part)


def _is_partitioned(parameter: torch.nn.Parameter) -> bool:
    """By ZeRO 1 to 3."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _whole(engine: Any, parameter: torch.nn.Parameter, part: str) -> torch.Tensor:
    """Without ZeRO: the optimizer's own tensor."""
    stepped = parameter
    if masters := getattr(engine.optimizer, "fp32_groups", None):  # in bf16 it steps fp32 copies
        groups = zip(engine.optimizer.fp16_groups, masters, strict=True)
        pairs = (pair for group in groups for pair in zip(*group, strict=True))
        stepped = next(master for held, master in pairs if held is parameter)
    return stepped if part == _MASTER else torch_optimizer(engine).state[stepped][part]
