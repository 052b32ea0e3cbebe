"""The gloo backend of vLLM's weight-transfer interface.

vLLM imports this module in its worker process before the model is loaded, because
`WorkerExtension` is named as the worker's extension; the import registers the backend.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from actors.gloo import join_group, receive_buckets
from actors.transfer import TransferEndpoint, manifest_from_wire

BACKEND = "gloo"
_PR_SET_PDEATHSIG = 1


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    host: str
    port: int
    world_size: int
    rank: int  # of the engine's first worker; its tensor-parallel workers follow
    timeout_s: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    manifest: list[list[tuple[str, str, list[int]]]]


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Receives packed buckets and loads them layer by layer."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        endpoint = TransferEndpoint(
            init_info.host, init_info.port, init_info.world_size, init_info.timeout_s
        )
        self._group = join_group(endpoint, init_info.rank + self.parallel_config.rank)

    def start_weight_update(self) -> None:
        _forget_unfinished(self.model)
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class synchronizes an accelerator afterwards; a CPU has none.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        manifest = manifest_from_wire(update_info.manifest)
        self.model.load_weights(receive_buckets(self._group, manifest))  # type: ignore[operator]

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        _repack_lm_head(self.model)

    def shutdown(self) -> None:
        self._group = None


def _forget_unfinished(model: torch.nn.Module) -> None:
    """Makes layers forget what a publication that broke off had given them.

    vLLM would count it to the next one, and drop that one's last tensors as too many.
    """
    for layer in model.modules():
        info = get_layerwise_info(layer)
        if info.can_load():
            info.load_numel = 0
            info.loaded_weights.clear()


def _repack_lm_head(model: torch.nn.Module) -> None:
    """Packs the output layer anew from its current weight.

    On a CPU vLLM packs linear layers for oneDNN after loading. A layerwise reload does that for
    every layer but an `lm_head` tied to the embedding, which would go on with the old packed
    matrix while every parameter already shows the new values.
    """
    head: Any = getattr(model, "lm_head", None)
    if head is not None and hasattr(head, "cpu_linear") and head.weight.numel():
        head.__dict__.pop("_already_called_process_weights_after_loading", None)
        head.quant_method.process_weights_after_loading(head)


class WorkerExtension:
    """Named in the engine's arguments so that vLLM's worker imports this module."""


def _end_with_parent() -> None:
    """Asks the kernel to end this process with the one that started it.

    An actor that is killed cannot end its engine, which would keep its memory, or its GPU.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it was gone before
        os.kill(os.getpid(), signal.SIGKILL)


WeightTransferEngineFactory.register_engine(BACKEND, GlooWeightTransferEngine)
_end_with_parent()
