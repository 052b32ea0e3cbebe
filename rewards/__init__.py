"""What a judgment is worth: the reward protocol, its host, and the built-in rewards."""

from rewards.function import reward
from rewards.protocol import (
    Reward,
    RewardRequest,
    RewardResult,
    RewardSpec,
    SwappedJudgment,
)

__all__ = ["Reward", "RewardRequest", "RewardResult", "RewardSpec", "SwappedJudgment", "reward"]
