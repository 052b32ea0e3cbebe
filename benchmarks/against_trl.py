"""A GRPO step of Gavel and of TRL side by side, on the workloads of step_breakdown.py.

    uv pip install --no-deps --target TRL trl==1.16.0       # no part of Gavel's own environment
    PYTHONPATH=TRL python benchmarks/against_trl.py [toy] [m30] [--rounds 3] [--steps 6]

Rounds alternate, each a fresh process, on the same machine: same model, prompts, samples, tokens,
precision, KL weight and allocator settings. TRL generates with transformers, since its vLLM mode
needs a GPU, and has all cores as threads. Prints the seconds of a step as JSON: each round's
median, their median, and the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from step_breakdown import GROUP_SIZE, WARM_UP_STEPS, WORKLOADS, Workload, write_pairs

from actors.environment import ALLOCATOR
from judging.presentation import both_orders
from judging.prompts import load_template
from judging.readers import read_pairs
from learning.tiny import TinyModel, make_tiny_model

HERE = Path(__file__).parent


def compare(name: str, rounds: int, steps: int) -> dict[str, Any]:
    """Both, in turns."""
    commands = {
        "gavel": ["step_breakdown.py", name, "--steps", str(steps)],
        "trl": [Path(__file__).name, name, "--steps", str(steps), "--trl-only"],
    }
    seconds: dict[str, list[float]] = {who: [] for who in commands}
    for _ in range(rounds):
        for who, command in commands.items():
            seconds[who].append(_step_s(command))
    medians = {who: statistics.median(rounds_s) for who, rounds_s in seconds.items()}
    return {
        "workload": name,
        "steps_a_round": steps - WARM_UP_STEPS,
        "step_s": medians,
        "rounds_s": seconds,
        "trl_over_gavel": round(medians["trl"] / medians["gavel"], 2),
    }


def _step_s(command: list[str]) -> float:
    with tempfile.TemporaryDirectory(prefix="gavel-bench-") as folder:
        path = Path(folder) / "result.json"
        script, *arguments = command
        subprocess.run(
            [sys.executable, str(HERE / script), *arguments, "--json", str(path)],
            env=os.environ | ALLOCATOR | {"TOKENIZERS_PARALLELISM": "false"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        (result,) = json.loads(path.read_text())
        return result["step_s"]


def measure_trl(name: str, workload: Workload, steps: int) -> dict[str, Any]:
    """Of TRL alone: the median of all steps but the first, which warm up."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    class StepClock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self._began_at_s = time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.monotonic() - self._began_at_s)

    torch.set_num_threads(os.cpu_count() or 1)
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
    step_s = round(statistics.median(clock.seconds[WARM_UP_STEPS:]), 3)
    return {"workload": name, "step_s": step_s, "steps": steps - WARM_UP_STEPS}


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
    parser.add_argument("--steps", type=int, default=6, help="steps a round, two of them warm-up")
    parser.add_argument("--rounds", type=int, default=3, help="of both")
    parser.add_argument("--trl-only", action="store_true", help="one round of TRL")
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    names = options.workloads or list(WORKLOADS)
    if options.trl_only:
        results = [measure_trl(name, WORKLOADS[name], options.steps) for name in names]
    else:
        results = [compare(name, options.rounds, options.steps) for name in names]
    text = json.dumps(results, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
