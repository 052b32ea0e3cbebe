"""Replays committed batches from a checkpoint in one process, and compares the weights.

    python replay.py RUN CHECKPOINT REFERENCE BATCH... EXPECTED

Prints how many tensors there are, and how many equal those of the checkpoint EXPECTED.
"""

import json
import os
import sys
from pathlib import Path


def main(folder: str, start: str, reference: str, *rest: str) -> None:
    import torch
    import torch.distributed as dist
    from safetensors.torch import load_file

    os.environ["LOCAL_RANK"] = "0"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    from learning.batches import load_batches
    from learning.settings import ModelSpec
    from learning.trainer import Trainer
    from learning.windows import plan_windows
    from orchestrator.config_loading import config_from_tree
    from orchestrator.rundir import RunDirectory

    *hashes, expected = rest
    run = RunDirectory(Path(folder))
    tree = run.read_config()
    config = config_from_tree(tree)
    spec = ModelSpec(path=str(run.path / start), dtype="fp32")
    temperature = config.rollout.temperature
    trainer = Trainer(spec, config.learner, temperature=temperature, seed=config.run.seed)
    (phase,) = (phase for phase in config.phases if phase.kind == "reinforce")
    trainer.begin_reinforce(phase.settings, phase.settings.max_steps, str(run.path / reference))
    trainer.resume(run.path / start)
    for digest in hashes:
        windows = [
            plan_windows(
                batch,
                ranks=1,
                micro_batch_tokens=config.learner.micro_batch_tokens,
                share_prompts=config.learner.packing,
            )[0]
            for batch in load_batches(run.read_batch(digest))
        ]
        trainer.policy_step(windows)
    wanted = load_file(run.path / expected / "model.safetensors")
    names = [name for name, _, _ in trainer.parameter_shapes()]
    have = {name: full.clone() for name, full in zip(names, trainer.parameters(), strict=True)}
    equal = sum(torch.equal(have[name], tensor) for name, tensor in wanted.items())
    print(json.dumps({"tensors": len(wanted), "equal": equal}))


main(*sys.argv[1:])
