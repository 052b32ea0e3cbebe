"""The trained model: a Hugging Face causal language model that scores completion tokens."""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from learning import attention
from learning.openrlhf_import import Actor, log_probs_from_logits
from learning.packing import MicroBatch
from learning.settings import Dtype

TORCH_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Policy(Actor):
    """OpenRLHF's actor, with a forward pass that computes logits for completion tokens alone.

    OpenRLHF's own forward pass builds float32 logits for the prompt too, which at a vocabulary of
    150,000 is most of the memory of a step (docs/decisions/0003).
    """

    def __init__(self, model: torch.nn.Module, temperature: float) -> None:
        super().__init__(model, temperature=temperature)

    def forward(self, batch: MicroBatch) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Log-probabilities [S, C] of the completion tokens at the temperature; 0 where masked.

        With a teacher's k tokens [S, C, 1 + k]: first the completion's, then the teacher's.
        """
        present = batch.mask.bool()
        if not bool(present.any()):  # a filler batch: run the model, weigh nothing
            present = torch.ones_like(present)
        positions = batch.source[present]
        arguments: dict[str, Any] = {"position_ids": batch.position_ids, "use_cache": False}
        if batch.segments is not None:
            arguments |= {
                "cu_seq_lens_q": batch.segments.query_starts,
                "cu_seq_lens_k": batch.segments.key_starts,
                "max_length_q": batch.segments.longest_query,
                "max_length_k": batch.segments.longest_key,
                "key_positions": batch.segments.key_positions,
                "logits_to_keep": positions,
            }
            logits = self.model(batch.input_ids, **arguments).logits[0]
        else:
            arguments["attention_mask"] = batch.attention_mask
            logits = self.model(batch.input_ids, **arguments).logits.flatten(0, 1)[positions]
        logits = logits.float() / self.temperature
        scores = log_probs_from_logits(logits, batch.labels[present])
        if batch.teacher_ids is not None:
            return _with_top_tokens(scores, logits, batch, batch.teacher_ids, present)
        return torch.zeros_like(batch.mask).masked_scatter(present, scores) * batch.mask


def _with_top_tokens(
    scores: torch.Tensor,  # [P] of the P completion tokens
    logits: torch.Tensor,  # [P, vocabulary]
    batch: MicroBatch,
    ids: torch.Tensor,  # [S, C, k]
    present: torch.Tensor,  # [S, C]
) -> torch.Tensor:
    own = logits.gather(1, torch.cat([batch.labels[present][:, None], ids[present]], dim=1))
    # The softmax's normalizer is known from the label's score: no second pass over the vocabulary.
    normalizer = own[:, :1] - scores[:, None]
    top = own[:, 1:] - normalizer
    width = 1 + ids.shape[-1]
    empty = batch.mask.new_zeros((*batch.mask.shape, width))
    where = present[..., None].expand(*present.shape, width)
    return empty.masked_scatter(where, torch.cat([scores[:, None], top], dim=1))


def load_model(
    path: str,
    *,
    dtype: Dtype,
    packing: bool,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> torch.nn.Module:
    """Loads a causal language model from a folder or the hub; safetensors only."""
    from transformers import AutoModelForCausalLM

    packed = attention.FLASH_NAME if torch.cuda.is_available() else attention.NAME
    return AutoModelForCausalLM.from_pretrained(
        path,
        revision=revision,
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
        dtype=TORCH_DTYPES[dtype],
        attn_implementation=packed if packing else "sdpa",
    )


def recompute_activations(model: torch.nn.Module) -> None:
    """Has the layers compute their activations again in the backward pass, instead of keeping them.

    A layer does so only if it is in training mode, in which `from_pretrained` leaves none. All else
    stays in evaluation mode, so that nothing drops out and a step can be taken again.
    """
    model.gradient_checkpointing_enable({"use_reentrant": False})  # pyright: ignore[reportCallIssue]
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
