"""The rewards for TRL and verl, asked for by those libraries' own code, from a server."""

import asyncio

import numpy as np
import pytest
from served import QUESTION

from serving import clients
from serving.clients import JudgeClient, TrlReward

pytestmark = pytest.mark.integration

ANSWERS = ["worth 5", "worth 9", "worth 1", ""]
REFERENCES = ["worth 3", "worth 7"]
SHARES = [0.5, 1.0, 0.0, 0.0]  # of ANSWERS against REFERENCES
AMONG = [2 / 3, 1.0, 1 / 3, 0.0]  # of ANSWERS against each other


@pytest.mark.parametrize(
    ("row", "rewards"),
    [
        ({"prompt": QUESTION, "references": REFERENCES}, SHARES),
        ({"prompt": [{"role": "user", "content": QUESTION}]}, AMONG),
    ],
)
def test_trl_trains_a_step_on_the_rewards(make_model, server_here, tmp_path, row, rewards):
    trl = pytest.importorskip("trl", reason="TRL is not installed: make setup does it")
    from datasets import Dataset

    given = []

    class Told(TrlReward):
        def __call__(self, *arguments, **named):
            given.extend(super().__call__(*arguments, **named))
            return given

    def rollout(prompts, trainer):  # which a model of random weights would not write
        tokenizer = trainer.processing_class
        completions = [[*tokenizer(answer).input_ids, tokenizer.eos_token_id] for answer in ANSWERS]
        return {
            "prompt_ids": [tokenizer(QUESTION).input_ids] * len(prompts),
            "completion_ids": completions,
            "logprobs": [[-1.0] * len(completion) for completion in completions],
        }

    judge = JudgeClient(f"http://127.0.0.1:{server_here}", "sesame")
    trainer = trl.GRPOTrainer(
        model=str(make_model()),
        reward_funcs=Told(judge),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=len(ANSWERS),
            num_generations=len(ANSWERS),
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=Dataset.from_list([row] * 4),
        rollout_func=rollout,
    )
    trainer.train()
    assert given == pytest.approx(rewards, abs=1e-5)
    logged = trainer.state.log_history[0]
    assert logged["rewards/gavel_judge/mean"] == pytest.approx(np.mean(rewards), abs=1e-5)
    assert logged["reward_std"] > 0


class Characters:
    """A tokenizer: one token a character, 0 for padding."""

    def decode(self, tokens, skip_special_tokens):
        return "".join(chr(token) for token in tokens.tolist() if token)


def test_verl_loads_the_function_and_collects_its_scores(server_here, monkeypatch):
    pytest.importorskip("verl", reason="verl is in no pinned set: docs/serving.md says why")
    import torch
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.trainer.ppo.reward import load_reward_manager

    monkeypatch.setenv("GAVEL_SERVE_TOKEN", "sesame")
    url = f"http://127.0.0.1:{server_here}"
    function = {"path": clients.__file__, "name": "compute_score", "reward_kwargs": {"url": url}}
    manager = {"source": "register", "name": "naive"}
    config = OmegaConf.create(
        {"reward": {"custom_reward_function": function, "reward_manager": manager}}
    )
    width = max(map(len, ANSWERS))
    responses = torch.tensor([[*map(ord, text), *[0] * (width - len(text))] for text in ANSWERS])
    prompts = torch.tensor([list(map(ord, QUESTION))] * len(ANSWERS))
    seen = torch.cat([torch.ones_like(prompts), (responses > 0).long()], dim=1)
    # As it comes from Parquet: the lists are arrays.
    turns = np.array([{"role": "user", "content": QUESTION}], dtype=object)
    labels = [{"ground_truth": np.array(REFERENCES, dtype=object)} for _ in ANSWERS]
    data = DataProto.from_dict(
        tensors={"prompts": prompts, "responses": responses, "attention_mask": seen},
        non_tensors={
            "data_source": np.array(["mine"] * len(ANSWERS), dtype=object),
            "reward_model": np.array(labels, dtype=object),
            "extra_info": np.array([{"question": turns} for _ in ANSWERS], dtype=object),
        },
    )

    async def scored():
        manager = load_reward_manager(config, Characters())
        each = [manager.run_single(data[i : i + 1]) for i in range(len(ANSWERS))]
        return [result["reward_score"] for result in await asyncio.gather(*each)]

    assert asyncio.run(scored()) == SHARES
