"""Judgments that a verifier parses and scores in a second on one core.

    python benchmarks/verifier_throughput.py [--seconds 5] [--json FILE]

Judgments of about 1,000 tokens in RM-R1's grammar, with six quotes each, by the built-in verdict,
format and quotes rewards, through the verifier as its actor runs it. Prints JSON. What scoring adds
to a step is in benchmarks/step_breakdown.py: `scoring_not_hidden`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np

from actors.verifier import Sampled, Verifier
from judging.records import FinishReason, Message, PreferencePair, Presentation, Rollout
from rewards.settings import RewardUse

TOKENS = 1000
TOKENS_PER_WORD = 1.33  # of English text under the tokenizers of current models
GROUP = 8
REWARDS = ("verdict", "format", "quotes")
_TEXT = (
    "the answer gives clear and accurate advice with steps that follow from what was asked while "
    "its tone stays warm though one claim lacks support and a detail about timing is missing"
)
_WORDS = _TEXT.split()


def judgments(groups: int) -> list[Sampled]:
    rng = random.Random(0)
    made: list[Sampled] = []
    for number in range(groups):
        answers = [_text(rng, 300) for _ in range(2)]
        conversation = (Message("user", _text(rng, 60)),)
        pair = PreferencePair(f"pair-{number}", conversation, *answers)
        shown = Presentation(pair, "chosen_first")
        rollouts = [_rollout(shown, _judgment(rng, shown), sample) for sample in range(GROUP)]
        made.append((shown, rollouts))
    return made


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(_WORDS, k=words))


def _judgment(rng: random.Random, shown: Presentation) -> str:
    words = int(TOKENS / TOKENS_PER_WORD)
    parts = [
        f"<quote_{letter}>{_quote(rng, shown, letter)}</quote_{letter}>" for letter in "ABABAB"
    ]
    evaluation = " ".join(f"{_text(rng, words // 9)} {part}" for part in parts)
    return (
        f"<type>Chat</type>\n<rubric>\nClarity (40%): {_text(rng, words // 12)}\n"
        f"Accuracy (60%): {_text(rng, words // 12)}\n<justify>{_text(rng, words // 12)}</justify>\n"
        f"</rubric>\n<eval>\n{evaluation}\n</eval>\n<answer>[[A]]</answer>"
    )


def _quote(rng: random.Random, shown: Presentation, letter: str) -> str:
    words = (shown.answer_a if letter == "A" else shown.answer_b).split()
    start = rng.randrange(len(words) - 8)
    return " ".join(words[start : start + 8])


def _rollout(shown: Presentation, text: str, sample: int) -> Rollout:
    return Rollout(
        presentation_uid=shown.uid,
        sample=sample,
        seed=sample,
        token_ids=np.zeros(TOKENS, np.int32),
        logprobs=np.zeros(TOKENS, np.float32),
        text=text,
        finish_reason=FinishReason.STOP,
        weight_version_min=0,
        weight_version_max=0,
    )


async def measure(seconds: float) -> dict[str, Any]:
    verifier = Verifier(strict_tail=False, max_new_tokens=8192, allowed_hosts=())
    uses = {name: RewardUse(uses=f"builtin:{name}") for name in REWARDS}
    groups = judgments(64)
    # Of the core's time, so that what else the machine does is not counted.
    scored, began_s = 0, time.process_time()
    while (passed_s := time.process_time() - began_s) < seconds:
        for group in groups:
            (outcomes,) = await verifier.score([group], uses)
            scored += len(outcomes)
    characters = sum(len(rollout.text) for _, rollouts in groups for rollout in rollouts)
    return {
        "judgments_per_s": round(scored / passed_s),
        "rewards": REWARDS,
        "characters_per_judgment": round(characters / len(groups) / GROUP),
        "seconds": round(passed_s, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    text = json.dumps(asyncio.run(measure(options.seconds)), indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
