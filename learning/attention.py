"""Attention over packed segments, in which the samples of a group share their prompt.

Registered with transformers under two names: the linear layers see one row of T packed tokens, each
prompt once, and only the attention itself takes the row apart. `packed_sdpa` pads, segment by
segment, so that no T x T mask is ever made; `packed_varlen` gives the same segments to flash-attn.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "packed_sdpa"
FLASH_NAME = "packed_varlen"  # transformers loads a kernel for any name with "flash" in it


def packed_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, H, T, D]
    key: torch.Tensor,  # [1, K, T, D], K key-value heads
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,  # [N + 1]
    cu_seq_lens_k: torch.Tensor | None = None,  # [N + 1]
    max_length_q: int = 0,
    max_length_k: int = 0,
    key_positions: torch.Tensor | None = None,  # see learning.packing.Segments
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each segment, whose last query stands at its last key.

    Returns:
        [1, T, H, D].

    Raises:
        ValueError: called without the starts of the segments.
    """
    if cu_seq_lens_q is None or cu_seq_lens_k is None:
        raise ValueError(f"{NAME} needs cu_seq_lens_q and cu_seq_lens_k, the segments' starts")
    queries, present = _padded(cu_seq_lens_q, max_length_q)
    keys, mask = queries, None
    if key_positions is not None:
        places, _present = _padded(cu_seq_lens_k, max_length_k)
        keys = key_positions[places]
        mask = _causal_mask(cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
    # Padding stands at the end, where causal attention keeps it from every real token.
    output = scaled_dot_product_attention(
        _unpack(query, queries),
        _unpack(key, keys),
        _unpack(value, keys),
        attn_mask=mask,
        is_causal=mask is None,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2)[present][None], None  # [N, L, H, D] -> [1, T, H, D]


def packed_varlen(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, H, T, D]
    key: torch.Tensor,  # [1, K, T, D]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int = 0,
    max_length_k: int = 0,
    key_positions: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The same by flash-attn, which aligns a segment's last query with its last key by itself."""
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [T, H, D]
    if key_positions is not None:
        key, value = key[key_positions], value[key_positions]
    output = flash_attn_varlen_func(
        query,
        key,
        value,
        cu_seqlens_q=cu_seq_lens_q,
        cu_seqlens_k=cu_seq_lens_k,
        max_seqlen_q=max_length_q,
        max_seqlen_k=max_length_k,
        dropout_p=dropout,
        softmax_scale=scaling,
        causal=True,
    )
    return output[None], None


def _padded(starts: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of each segment's tokens [N, L], and where there is one; padding repeats the last."""
    begin, end = starts[:-1, None].long(), starts[1:, None].long()
    index = begin + torch.arange(longest, device=starts.device)
    return index.minimum(end - 1), index < end


def _causal_mask(
    query_starts: torch.Tensor, key_starts: torch.Tensor, longest_query: int, longest_key: int
) -> torch.Tensor:
    """[N, 1, Lq, Lk], true where a query may look: at most at the key it stands at."""
    before = (key_starts.diff() - query_starts.diff()).long()  # keys before the first query
    queries = torch.arange(longest_query, device=before.device)
    keys = torch.arange(longest_key, device=before.device)
    return (keys <= before[:, None, None] + queries[:, None])[:, None]


def _unpack(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[1, H, T, D] -> [N, H, L, D]."""
    return tensor[0].transpose(0, 1)[index].transpose(1, 2)


def _no_mask(*_: Any, **__: Any) -> None:
    return None


for _name, _function in ((NAME, packed_sdpa), (FLASH_NAME, packed_varlen)):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, _no_mask)
