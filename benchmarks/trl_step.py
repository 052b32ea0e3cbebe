"""A GRPO step of TRL on the workloads of step_breakdown.py, to be compared side by side.

    uv pip install trl==1.16.0          # no part of Gavel's own environment
    python benchmarks/trl_step.py [toy] [m30] [--steps 6]

Same model, prompts, samples, tokens, precision, KL weight and allocator settings; TRL generates
with transformers, since its vLLM mode needs a GPU. Prints the median seconds of a step as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from step_breakdown import GROUP_SIZE, WARM_UP_STEPS, WORKLOADS, Workload, write_pairs

from judging.presentation import both_orders
from judging.prompts import load_template
from judging.readers import read_pairs
from learning.tiny import TinyModel, make_tiny_model

THREADS = 2


def measure(name: str, workload: Workload, steps: int) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class StepClock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self._began_at_s = time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.monotonic() - self._began_at_s)

    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory(prefix="gavel-bench-") as folder:
        prompts = make_prompts(Path(folder), workload)
        batch = workload.prompts * GROUP_SIZE
        clock = StepClock()
        trainer = GRPOTrainer(
            model=str(Path(folder) / "model"),
            reward_funcs=random_reward,
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            callbacks=[clock],
            args=GRPOConfig(
                output_dir=folder,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                per_device_train_batch_size=batch // 8,
                gradient_accumulation_steps=8,
                num_generations=GROUP_SIZE,
                max_completion_length=workload.new_tokens,
                temperature=1.0,
                beta=1e-3,
                learning_rate=1e-6,
                max_steps=steps,
                report_to=[],
                save_strategy="no",
                logging_steps=10**6,
                disable_tqdm=True,
            ),
        )
        trainer.train()
    return {
        "workload": name,
        "trl_step_s": round(statistics.median(clock.seconds[WARM_UP_STEPS:]), 3),
        "steps": steps - WARM_UP_STEPS,
    }


def make_prompts(folder: Path, workload: Workload) -> list[list[dict[str, str]]]:
    data = folder / "pairs.jsonl"
    write_pairs(data, workload.prompts * 4, workload.prompt_words)
    template = load_template("compact")
    rendered = [template.render(both_orders(pair)[0]) for pair in read_pairs(data)]
    shape = TinyModel(**workload.model, max_position_embeddings=512)
    make_tiny_model(folder / "model", (message[-1].content for message in rendered), shape)
    return [[{"role": m.role, "content": m.content} for m in messages] for messages in rendered]


def random_reward(completions: list[Any], **_: Any) -> list[float]:
    """Scores of either sign, as a verdict's are; free of charge."""
    return [1.0 if hash(str(completion)) % 2 else -1.0 for completion in completions]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(WORKLOADS)}; default: all")
    parser.add_argument("--steps", type=int, default=6, help="steps of each, two of them warm-up")
    options = parser.parse_args()
    results = [measure(n, WORKLOADS[n], options.steps) for n in options.workloads or WORKLOADS]
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
