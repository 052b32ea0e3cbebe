"""Where the time of a reinforcement step goes.

    python benchmarks/step_breakdown.py [toy] [m30] [--steps 6] [--json FILE]

Runs the real driver (Ray, vLLM, DeepSpeed, Redis) on two workloads of fixed size and prints, as
JSON, the median seconds and shares of each part of a step over all steps but the first two, which
warm up. Shares may overlap by what was scored while other prompts were still generated; `other` is
the time in which nothing of it went on. `scoring_not_hidden` is the share in which
judgments were scored and none was generated any more.

    toy   1 M parameters, 64 prompts x 8 samples of 24 tokens
    m30   30 M parameters, 16 prompts of about 128 tokens x 8 samples of 128 tokens

`limits` and `trl_1_16` are medians of separate runs on another machine of 2 cores: the bare parts
(forward, backward and AdamW; generation alone), and TRL's GRPO step. They are for orientation;
to compare, run both side by side on one machine (benchmarks/against_trl.py).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config_loading import config_from_tree
from orchestrator.driver import run
from orchestrator.rundir import RunDirectory

WARM_UP_STEPS = 2
PARTS = ("generate", "score", "train", "publish", "commit", "other")


@dataclass(frozen=True, slots=True)
class Workload:
    model: dict[str, Any]
    prompts: int
    prompt_words: int
    new_tokens: int
    micro_batch_tokens: int
    limit_s: tuple[float, float]  # a step from the raw parts, seconds: low and high estimate
    trl_step_s: float  # TRL 1.16, the same batch


WORKLOADS = {
    "toy": Workload(
        model={"hidden_size": 128, "layers": 4, "heads": 4, "kv_heads": 2,
               "intermediate_size": 512, "vocab_size": 640},
        prompts=64, prompt_words=14, new_tokens=24, micro_batch_tokens=4096,
        limit_s=(2.4, 2.4), trl_step_s=3.54,
    ),
    "m30": Workload(
        model={"hidden_size": 512, "layers": 9, "heads": 8, "kv_heads": 4,
               "intermediate_size": 1664, "vocab_size": 2048},
        prompts=16, prompt_words=112, new_tokens=128, micro_batch_tokens=4096,
        limit_s=(52.0, 56.0), trl_step_s=70.0,
    ),
}  # fmt: skip
GROUP_SIZE = 8


def measure(name: str, workload: Workload, steps: int, learner: dict[str, int]) -> dict[str, Any]:
    """Runs one workload and returns its medians."""
    with tempfile.TemporaryDirectory(prefix="gavel-bench-") as folder:
        data = Path(folder) / "pairs.jsonl"
        write_pairs(data, workload.prompts * 4, workload.prompt_words)
        tree = configuration(folder, name, data, workload, steps)
        tree["learner"] |= learner
        run(config_from_tree(tree))
        rows, _ = RunDirectory(Path(folder) / name).read_measurements()
        summary = json.loads((Path(folder) / name / "summary.json").read_text())
    measured = [dict(row.metrics) for row in rows[WARM_UP_STEPS:]]
    step_s = statistics.median(row["time/step_s"] for row in measured)
    seconds = {part: statistics.median(row[f"time/{part}_s"] for row in measured) for part in PARTS}
    return {
        "workload": name,
        "steps": len(measured),
        "step_s": round(step_s, 3),
        "seconds": {part: round(value, 3) for part, value in seconds.items()},
        "shares": {part: round(value / step_s, 4) for part, value in seconds.items()},
        "scoring_not_hidden": round(_median(measured, "time/score_alone_s") / step_s, 4),
        "generated_tokens": statistics.median(row["tokens"] for row in measured),
        "logprob_gap": statistics.median(row["logprob_gap"] for row in measured),
        "peak_memory_gb": round(summary["peak_rss_bytes"] / 1e9, 2),
        "limits_step_s": workload.limit_s,
        "trl_1_16_step_s": workload.trl_step_s,
    }


def _median(rows: list[dict[str, float]], name: str) -> float:
    return statistics.median(row[name] for row in rows)


def configuration(
    folder: str, name: str, data: Path, workload: Workload, steps: int
) -> dict[str, Any]:
    return {
        "run": {"id": name, "dir": folder},
        "model": {
            "make": workload.model | {"max_position_embeddings": 512},
            "dtype": "fp32",
            "context_tokens": 512,
        },
        "data": {"path": str(data), "heldout_fraction": 0.0, "max_prompt_tokens": 320},
        "judge": {"template": "compact"},
        "rollout": {
            "workers": 2,
            "max_new_tokens": workload.new_tokens,
            "max_concurrent_sequences": 512,
            "kv_cache_gib": 0.5,
        },
        "learner": {
            "zero_stage": 1,
            "micro_batch_tokens": workload.micro_batch_tokens,
        },
        "reinforce": {
            "prompts_per_step": workload.prompts,
            "mini_batch_prompts": workload.prompts,
            "group_size": GROUP_SIZE,
            "max_steps": steps,
            "epochs": 100.0,
        },
        "output": {"progress": "quiet", "samples": 0},
        "phases": ["reinforce"],
    }


def write_pairs(path: Path, count: int, words: int) -> None:
    """Pairs of random words; a prompt has about `words` of them and the same number of tokens."""
    rng = random.Random(0)
    vocabulary = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdglmnrst"][:400]

    def text(length: int) -> str:
        return " ".join(rng.choices(vocabulary, k=length))

    with path.open("w") as file:
        for _ in range(count):
            row = {"prompt": text(words // 3), "chosen": text(words // 3)}
            file.write(json.dumps(row | {"rejected": text(words // 3)}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(WORKLOADS)}; default: all")
    parser.add_argument("--steps", type=int, default=6, help="steps of each, two of them warm-up")
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--ranks", type=int, default=2, help="learner ranks")
    parser.add_argument("--threads", type=int, default=1, help="threads of a learner rank")
    options = parser.parse_args()
    learner = {"ranks": options.ranks, "cpu_threads": options.threads}
    names = options.workloads or WORKLOADS
    results = [measure(name, WORKLOADS[name], options.steps, learner) for name in names]
    text = json.dumps(results, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
