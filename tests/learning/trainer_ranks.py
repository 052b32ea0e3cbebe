"""What the ranks do in the tests of the trainer, in processes of their own.

Process 0 is a world of one rank; processes 1 and 2 are a world of two. Each world runs its cases
one after another, since starting a process costs more than all of them together.
"""

import json
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from train_samples import random_samples, with_prompts

from learning.settings import GrpoSettings, LearnerSettings, ModelSpec, OptimizerSettings
from learning.windows import plan_windows

PROCESSES = 3
SAMPLES = with_prompts(random_samples(48), [1, 1, 4, 3, 7, 2, 4, 2, 5, 1, 8, 4, 6])
OPTIMIZER = OptimizerSettings(learning_rate=1e-4, weight_decay=0.1)
GRPO = GrpoSettings(kl_coef=0.05, optimizer=OPTIMIZER)


@dataclass(frozen=True)
class Case:
    world: int
    zero_stage: int
    packing: bool = True
    micro_batch_tokens: int = 2000
    dtype: str = "fp32"
    gradient_checkpointing: bool = False
    tied: bool = True

    @property
    def name(self) -> str:
        return "-".join(str(value) for value in vars(self).values())


def run(process: int, cases: list[Case], models: dict[bool, str], folder: Path) -> None:
    """One process: joins its world and runs that world's cases."""
    world, rank = (1, 0) if process == 0 else (2, process - 1)
    os.environ["LOCAL_RANK"] = str(rank)
    _join(world, rank, folder)
    for case in cases:
        if case.world == world:
            outcome = _run_case(case, rank, models[case.tied], folder / case.name)
            if rank == 0:
                (folder / f"{case.name}.json").write_text(json.dumps(outcome))


def _join(world: int, rank: int, folder: Path) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"world-{world}"), world)
    timeout = timedelta(seconds=120)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timeout)
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo", verbose=False)


def _run_case(case: Case, rank: int, model: str, folder: Path) -> dict:
    """Two phases; the second one also from the first one's checkpoint, as a witness."""
    trainer = _trainer(case, model)
    windows = [_window(case, rank, SAMPLES[:24]), _window(case, rank, SAMPLES[24:])]
    lonely = _window(case, rank, SAMPLES[:1])  # the second rank of two has nothing to do
    trainer.begin_distill(OPTIMIZER, total_steps=3)
    distilled = [trainer.distill_step(window) for window in (*windows, lonely)]
    trainer.save(folder / "checkpoint")
    kept = _parameters(trainer)
    reinforced = _reinforce(trainer, windows, model)
    moved = _parameters(trainer)
    witness = _trainer(case, str(folder / "checkpoint"))
    repeated = _reinforce(witness, windows, model)
    witnessed = _parameters(witness)
    if rank == 0:
        _write_tensors(folder / "kept.safetensors", kept)
        _write_tensors(folder / "moved.safetensors", moved)
        _write_tensors(folder / "witnessed.safetensors", witnessed)
    return {"distilled": distilled, "reinforced": reinforced, "repeated": repeated}


def _trainer(case: Case, model: str):
    from learning.trainer import Trainer

    settings = LearnerSettings(
        ranks=case.world,
        zero_stage=case.zero_stage,
        packing=case.packing,
        micro_batch_tokens=case.micro_batch_tokens,
        gradient_checkpointing=case.gradient_checkpointing,
    )
    return Trainer(ModelSpec(model, case.dtype), settings, temperature=0.9, seed=0)


def _window(case: Case, rank: int, samples):
    return plan_windows(
        samples,
        ranks=case.world,
        micro_batch_tokens=case.micro_batch_tokens,
        share_prompts=case.packing,
    )[rank]


def _reinforce(trainer, windows, reference: str) -> list[dict[str, float]]:
    """A step of one window, then one of two, whose ratios are to the policy before the step."""
    trainer.begin_reinforce(GRPO, 3, reference)
    return [trainer.policy_step(windows[:1]), trainer.policy_step(windows)]


def _parameters(trainer):
    shapes = trainer.parameter_shapes()
    tensors = [tensor.clone() for tensor in trainer.parameters()]
    for (name, dtype, shape), tensor in zip(shapes, tensors, strict=True):
        assert (str(tensor.dtype), tensor.shape) == (f"torch.{dtype}", shape), name
    return {name: tensor for (name, _, _), tensor in zip(shapes, tensors, strict=True)}


def _write_tensors(path: Path, tensors) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
