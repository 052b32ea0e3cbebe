"""The run's rewards as they stand: which are attached, with which weight, and how they do.

Owns the mix while the run goes on: it may change between steps. What a reward does is the
verifiers' matter; what a score teaches is the learners'.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from actors.verifier import Sampled
from actors.verifier_pool import VerifierPool
from judging.errors import InfrastructureError
from judging.records import Judgment
from orchestrator.config import ReinforceSettings, RewardSection
from rewards.groups import Group
from rewards.mix import combine
from rewards.settings import RewardUse, parse_reward_use, weight_at


class RewardPanel:
    """Life: construct, `start`, then `score` within steps and `attach`, ... between them."""

    def __init__(self, pool: VerifierPool, section: RewardSection) -> None:
        self._pool, self._section = pool, section
        self.mix: dict[str, RewardUse] = {}
        self._set_weights: dict[str, float] = {}  # by a person, while the run goes on

    async def start(self, mix: Mapping[str, Any] | None = None) -> None:
        """Attaches the configured mix, or the one that `as_it_stands` gave.

        Raises:
            ConfigurationError: a reward is refused or cannot be reached.
        """
        self.mix = dict(self._section.mix)
        if mix is not None:
            self.mix = {name: parse_reward_use(each["use"]) for name, each in mix.items()}
            self._set_weights = {
                name: each["set_weight"]
                for name, each in mix.items()
                if each["set_weight"] is not None
            }
        await self._pool.start(self.mix)

    def as_it_stands(self) -> dict[str, Any]:
        """All of the mix, with what was changed while the run went on, as plain values."""
        return {
            name: {"use": asdict(use), "set_weight": self._set_weights.get(name)}
            for name, use in self.mix.items()
        }

    async def stop(self) -> None:
        await self._pool.stop()

    def weights(self, settings: ReinforceSettings, progress: float) -> dict[str, float]:
        """Of each reward at this share of a phase's steps; 0 for those in the shadow."""
        weights = {name: use.weight for name, use in self.mix.items()}
        weights |= {n: w for n, w in settings.reward_weights.items() if n in weights}
        weights |= self._set_weights
        return {
            name: weight_at(weight, progress) if self.mix[name].mode == "train" else 0.0
            for name, weight in weights.items()
        }

    async def score(
        self, unit: Sequence[Sampled], weights: Mapping[str, float] | None
    ) -> list[Group]:
        """The groups of one unit, scored by all rewards and combined.

        Without `weights`, as in evaluation, the score is the verdict's correctness alone.
        """
        scored = await self._pool.score(unit, verdict_only=weights is None)
        weights = {"verdict": 1.0} if weights is None else weights
        groups: list[Group] = []
        for (presentation, rollouts), outcomes in zip(unit, scored, strict=True):
            by_name = {
                name: [outcome.results[name] for outcome in outcomes]
                for name in outcomes[0].results
            }
            judgments = tuple(
                Judgment(presentation, rollout, outcome.trace)
                for rollout, outcome in zip(rollouts, outcomes, strict=True)
            )
            results = combine(by_name, weights, normalize=self._section.normalize)
            groups.append(Group(presentation.uid, judgments, tuple(results)))
        return groups

    async def restarts(self) -> int:
        """How many verifiers died and were started again so far."""
        return await self._pool.restarts()

    async def check_failures(self, groups: Sequence[Group], weights: Mapping[str, float]) -> None:
        """Stops the run if a reward that trains failed too often in these groups.

        Raises:
            InfrastructureError: names the reward, the rate and its last error.
        """
        counts, total = failures(groups)
        for name, failed in counts.items():
            rate = failed / total
            if weights.get(name) and rate > self._section.max_failure_rate:
                last = (await self._pool.last_errors()).get(name, "unknown")
                raise InfrastructureError(
                    f"the reward {name} ({self.mix[name].uses}) failed for {rate:.0%} of the "
                    f"step's {total:,} judgments, more than reward.max_failure_rate "
                    f"({self._section.max_failure_rate:.0%}); its last error: {last}"
                )

    # ---- changes between steps -------------------------------------------------------------------

    async def attach(self, name: str, use: RewardUse) -> None:
        await self._pool.attach(name, use)
        self.mix[name] = use
        self._set_weights.pop(name, None)

    async def detach(self, name: str) -> None:
        del self.mix[name]
        self._set_weights.pop(name, None)
        await self._pool.detach(name)

    def set_weight(self, name: str, weight: float) -> None:
        self._set_weights[name] = weight

    def describe(self, weights: Mapping[str, float]) -> list[dict[str, Any]]:
        """For `gavel rewards list`."""
        return [
            {
                "name": name,
                "uses": use.uses,
                "mode": use.mode,
                "weight": weights.get(name, 0.0),
                "spec": f"{self._pool.specs[name].name} {self._pool.specs[name].version}",
                "range": list(self._pool.specs[name].range),
            }
            for name, use in self.mix.items()
        ]


def failures(groups: Sequence[Group]) -> tuple[Counter[str], int]:
    """Judgments that each reward failed for, and all judgments."""
    counts: Counter[str] = Counter()
    total = 0
    for group in groups:
        for result in group.results:
            total += 1
            errors = result.info.get("errors", {})
            assert isinstance(errors, Mapping)
            counts.update(errors.keys())
    return counts, total
