"""A tiny random Qwen2 in memory, for tests of what is computed with one."""

import torch
from train_samples import VOCABULARY
from transformers import Qwen2Config, Qwen2ForCausalLM

GAIN = 5.0  # fresh weights give every token nearly the same probability


def random_qwen(attention: str, *, seed: int = 0, dtype: torch.dtype = torch.float32):
    """Two layers, grouped key-value heads; the same seed gives the same weights."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation=attention,
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(GAIN)
    return model.to(dtype)
