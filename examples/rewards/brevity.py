"""A reward as a function: a judgment should come to the point.

    gavel rewards check import:examples.rewards.brevity:brevity
    gavel run configs/quickstart.yaml \
        "reward.mix.brevity={uses: 'import:examples.rewards.brevity:brevity', weight: 0.1}"
"""

from rewards import RewardRequest, reward

FREE_WORDS = 200


@reward(range=(0.0, 1.0))
def brevity(request: RewardRequest) -> float:
    """1 up to 200 words, and less and less beyond."""
    words = len(request.response.split())
    return min(1.0, FREE_WORDS / max(words, 1))
