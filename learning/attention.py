"""Attention over packed sequences without flash-attn.

Registered with transformers as `packed_sdpa`: the linear layers see one row of T packed tokens,
and only the attention itself pads, sequence by sequence, so that no T x T mask is ever made. On a
GPU `flash_attention_2` does the same natively from the same arguments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "packed_sdpa"


def packed_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, H, T, D]
    key: torch.Tensor,  # [1, K, T, D], K key-value heads
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,  # [S + 1]
    max_length_q: int = 0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each packed sequence; returns [1, T, H, D].

    Raises:
        ValueError: called without the sequence starts.
    """
    if cu_seq_lens_q is None:
        raise ValueError(f"{NAME} needs cu_seq_lens_q, the starts of the packed sequences")
    starts = cu_seq_lens_q.long()
    offsets = torch.arange(max_length_q, device=query.device)
    present = offsets[None] < (starts[1:] - starts[:-1])[:, None]  # [S, L]
    index = (starts[:-1, None] + offsets[None]).clamp(max=query.shape[2] - 1)  # [S, L]
    groups = query.shape[1] // key.shape[1]
    unpacked = [_unpack(query, index), _unpack(key, index), _unpack(value, index)]
    if groups > 1:
        unpacked[1:] = [part.repeat_interleave(groups, dim=1) for part in unpacked[1:]]
    # Padding stands at the end, where causal attention keeps it from every real token.
    output = scaled_dot_product_attention(
        *unpacked, is_causal=True, dropout_p=dropout, scale=scaling
    )
    return output.transpose(1, 2)[present][None], None  # [S, L, H, D] -> [1, T, H, D]


def _unpack(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[1, H, T, D] -> [S, H, L, D]."""
    return tensor[0].transpose(0, 1)[index].transpose(1, 2)


def _no_mask(*_: Any, **__: Any) -> None:
    return None


AttentionInterface.register(NAME, packed_sdpa)
AttentionMaskInterface.register(NAME, _no_mask)
