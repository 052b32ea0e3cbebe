"""Imports OpenRLHF where there is no flash-attn, that is, on a machine without a GPU.

OpenRLHF's models import a few names of flash-attn at module level, for packing and ring attention.
Gavel packs by itself and calls none of them on a CPU; only the names must exist while OpenRLHF is
imported. Where the real package is installed this module does nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

_NAMES = {
    "flash_attn": (),
    "flash_attn.bert_padding": ("index_first_axis", "pad_input", "rearrange", "unpad_input"),
    "flash_attn.utils": (),
    "flash_attn.utils.distributed": ("all_gather",),
}


@contextlib.contextmanager
def flash_attn_standin() -> Iterator[None]:
    """Puts the names in place for the time of an import, then takes them away again.

    They must not stay: other libraries take a module called flash_attn for the real one.
    """
    if importlib.util.find_spec("flash_attn") is not None:
        yield
        return
    sys.modules.update({name: _module(name, exports) for name, exports in _NAMES.items()})
    try:
        yield
    finally:
        for name in _NAMES:
            sys.modules.pop(name, None)


def _module(name: str, exports: tuple[str, ...]) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, loader=None)
    module.__path__ = []
    for export in exports:
        setattr(module, export, _absent)
    return module


def _absent(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError("this path of OpenRLHF needs flash-attn, which is not installed")


with flash_attn_standin():
    from openrlhf.models import Actor, PolicyLoss, SFTLoss
    from openrlhf.models.utils import compute_approx_kl, log_probs_from_logits

__all__ = ["Actor", "PolicyLoss", "SFTLoss", "compute_approx_kl", "log_probs_from_logits"]
