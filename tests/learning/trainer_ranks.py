"""What the ranks do in the tests of the trainer, in processes of their own.

Process 0 is a world of one rank; processes 1 and 2 are a world of two. Each world runs its cases
one after another, since starting a process costs more than all of them together.
"""

import json
import os
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from train_samples import random_samples, with_prompts, with_teacher

from learning.batches import dump_batches, load_batches
from learning.settings import (
    DistillSettings,
    GrpoSettings,
    LearnerSettings,
    LogitSettings,
    ModelSpec,
    OptimizerSettings,
)
from learning.windows import plan_windows

PROCESSES = 3
TEMPERATURE = 0.9
# An engine about as sure of its tokens as a model of random weights, so that ratios lie around 1.
_UNSURE = [replace(s, rollout_logprobs=s.rollout_logprobs - 4) for s in random_samples(48)]
SAMPLES = with_prompts(_UNSURE, [1, 1, 4, 3, 7, 2, 4, 2, 5, 1, 8, 4, 6])
OPTIMIZER = OptimizerSettings(learning_rate=1e-4, weight_decay=0.1)
GRPO = GrpoSettings(kl_coef=0.05, optimizer=OPTIMIZER)
DISTILL = DistillSettings(optimizer=OPTIMIZER)
TAUGHT = DistillSettings(optimizer=OPTIMIZER, logits=LogitSettings(weight=0.7))


@dataclass(frozen=True)
class Case:
    world: int
    zero_stage: int
    packing: bool = True
    micro_batch_tokens: int = 2000
    dtype: str = "fp32"
    gradient_checkpointing: bool = False
    tied: bool = True
    offload_optimizer: bool = False

    @property
    def name(self) -> str:
        return "-".join(str(value) for value in vars(self).values())


BASE = Case(world=1, zero_stage=0)


def run(process: int, cases: list[Case], models: dict[bool, str], folder: Path) -> None:
    """One process: joins its world and runs that world's cases."""
    world, rank = (1, 0) if process == 0 else (2, process - 1)
    os.environ["LOCAL_RANK"] = str(rank)
    _join(world, rank, folder)
    for case in cases:
        if case.world == world:
            outcome = _run_case(case, rank, models[case.tied], folder)
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


def _run_case(case: Case, rank: int, model: str, cases: Path) -> dict:
    """Two phases; the second one also from the first one's checkpoint, as a witness.

    The last step of the first phase also by a trainer that resumes from a checkpoint before it, and
    by one that resumes from that of the base case, with its ranks and stage.
    """
    folder = cases / case.name
    trainer = _trainer(case, model)
    windows = [_window(case, rank, SAMPLES[:24]), _window(case, rank, SAMPLES[24:])]
    lonely = _window(case, rank, SAMPLES[:1])  # the second rank of two has nothing to do
    trainer.begin_distill(DISTILL, total_steps=3)
    losses = [trainer.distill_loss(windows[0])]
    distilled = [trainer.distill_step(window) for window in windows]
    trainer.save(folder / "midway")
    losses += [trainer.distill_loss(window) for window in (windows[0], lonely)]
    distilled.append(trainer.distill_step(lonely))
    trainer.save(folder / "checkpoint")
    kept = _parameters(trainer)
    reinforced, gap = _reinforce(trainer, windows, model)
    moved = _parameters(trainer)
    witness = _trainer(case, str(folder / "checkpoint"))
    repeated, _ = _reinforce(witness, windows, model)
    witnessed = _parameters(witness)
    resumed, again = _resume(case, folder / "midway", lonely)
    (taught, by_teacher), (retaught, replayed) = _teach(case, rank, trainer, folder)
    outcome = {"distilled": distilled, "reinforced": reinforced, "repeated": repeated}
    outcome |= {"losses": losses, "taught": taught, "retaught": retaught}
    states = {"kept": kept, "moved": moved, "witnessed": witnessed, "resumed": again}
    states |= {"taught": by_teacher, "retaught": replayed}
    if case.dtype == "fp32" and case.tied:
        other, states["resumed-elsewhere"] = _resume(case, _written(cases / BASE.name), lonely)
        outcome["elsewhere"] = [other]
    if rank == 0:
        for name, tensors in states.items():
            _write_tensors(folder / f"{name}.safetensors", tensors)
    return outcome | {"resumed": [resumed], "gap": gap}


def _teach(case: Case, rank: int, trainer, folder: Path):
    """Metrics and weights of two steps on a teacher's numbers, of which the second is also taken by
    a trainer that resumes before it, from the bytes of its batch."""
    samples = [with_teacher(sample, seed=row) for row, sample in enumerate(SAMPLES)]
    trainer.begin_distill(TAUGHT, total_steps=2)
    taught = [trainer.distill_step(_window(case, rank, samples[:24]))]
    trainer.save(folder / "taught")
    taught.append(trainer.distill_step(_window(case, rank, samples[24:])))
    again = _trainer(case, str(folder / "taught"))
    again.begin_distill(TAUGHT, total_steps=2)
    again.resume(folder / "taught")
    ((*replayed,),) = load_batches(dump_batches([samples[24:]]))
    retaught = [again.distill_step(_window(case, rank, replayed))]
    return (taught, _parameters(trainer)), (retaught, _parameters(again))


def _resume(case: Case, checkpoint: Path, window):
    """The metrics of one more step, and the weights after it."""
    trainer = _trainer(case, str(checkpoint))
    trainer.begin_distill(DISTILL, total_steps=3)
    trainer.resume(checkpoint)
    return trainer.distill_step(window), _parameters(trainer)


def _written(base: Path) -> Path:
    """The base case's checkpoint, once the other world has written it."""
    deadline = time.monotonic() + 120
    while not (base / "checkpoint").exists():  # the one after it
        assert time.monotonic() < deadline, f"{base} holds no checkpoint after 120 s"
        time.sleep(0.1)
    return base / "midway"


def _trainer(case: Case, model: str):
    from learning.trainer import Trainer

    settings = LearnerSettings(
        ranks=case.world,
        zero_stage=case.zero_stage,
        packing=case.packing,
        micro_batch_tokens=case.micro_batch_tokens,
        gradient_checkpointing=case.gradient_checkpointing,
        offload_optimizer=case.offload_optimizer,
    )
    return Trainer(ModelSpec(model, case.dtype), settings, temperature=TEMPERATURE, seed=0)


def _window(case: Case, rank: int, samples):
    return plan_windows(
        samples,
        ranks=case.world,
        micro_batch_tokens=case.micro_batch_tokens,
        share_prompts=case.packing,
    )[rank]


def _reinforce(trainer, windows, reference: str) -> tuple[list[dict[str, float]], list[float]]:
    """A step of one window, then one of two, whose ratios are to the policy before the step.

    Also of each token of both, in nats, how far that policy is from the engine.
    """
    trainer.begin_reinforce(GRPO, 3, reference)
    first = trainer.policy_step(windows[:1])
    scored = trainer.score(SAMPLES, temperature=TEMPERATURE)
    gap = [
        logprob - float(rollout)
        for sample, logprobs in zip(SAMPLES, scored, strict=True)
        for logprob, rollout in zip(logprobs, sample.rollout_logprobs, strict=True)
    ]
    return [first, trainer.policy_step(windows)], gap


def _parameters(trainer):
    shapes = trainer.parameter_shapes()
    tensors = [tensor.clone() for tensor in trainer.parameters()]
    for (name, dtype, shape), tensor in zip(shapes, tensors, strict=True):
        assert (str(tensor.dtype), tensor.shape) == (f"torch.{dtype}", shape), name
    return {name: tensor for (name, _, _), tensor in zip(shapes, tensors, strict=True)}


def _write_tensors(path: Path, tensors) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
