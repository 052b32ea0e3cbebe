"""From `uses:` to a host that is ready to score."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Protocol

from judging.errors import ConfigurationError
from rewards.backend import Backend, CallFailed
from rewards.builtin import BUILTINS, make_builtin
from rewards.host import Counts, RewardHost
from rewards.local import LocalBackend
from rewards.protocol import RewardRequest, RewardResult, RewardSpec
from rewards.pure import PureReward
from rewards.settings import RewardUse
from rewards.uses import Builtin, Import, NamedActor, Url, check_importable, parse_use


class Host(Protocol):
    """One attached reward."""

    spec: RewardSpec
    counts: Counts

    async def score(self, requests: Sequence[RewardRequest]) -> list[RewardResult]: ...

    async def close(self) -> None: ...


class PureHost:
    """A built-in needs no host: it cannot hang or fail, and queueing would cost more than it."""

    def __init__(self, reward: PureReward) -> None:
        self._reward = reward
        self.spec = reward.spec()
        self.counts = Counts()

    async def score(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        self.counts.scored += len(requests)
        return [self._reward.score_one(request) for request in requests]

    async def close(self) -> None:
        """Nothing is held."""


def check_use(use: RewardUse, allowed_hosts: Collection[str]) -> None:
    """All that can be known of a reward before anything starts.

    Raises:
        ConfigurationError: what is wrong, with the string as written.
    """
    parsed = parse_use(use.uses, builtins=BUILTINS, allowed_hosts=allowed_hosts)
    match parsed:
        case Builtin(name):
            make_builtin(name, use.options)
        case Import():
            check_importable(parsed, use.uses)
        case Url():
            _token(use)
        case NamedActor():
            pass  # known by the cluster alone
    if use.options and not isinstance(parsed, Builtin | Import):
        raise ConfigurationError(
            f"reward {use.uses!r}: options are for built-in and imported rewards; this one is "
            "started by its author, with its own"
        )


async def attach(use: RewardUse, allowed_hosts: Collection[str]) -> Host:
    """Opens the reward.

    Raises:
        ConfigurationError: it is refused or cannot be reached, with the string as written.
    """
    check_use(use, allowed_hosts)
    parsed = parse_use(use.uses, builtins=BUILTINS, allowed_hosts=allowed_hosts)
    if isinstance(parsed, Builtin):
        return PureHost(make_builtin(parsed.name, use.options))
    host = RewardHost(make_backend(use, allowed_hosts), use.call)
    try:
        await host.open()
    except CallFailed as failure:
        await host.close()
        raise ConfigurationError(f"reward {use.uses!r}: {failure}") from None
    return host


def make_backend(use: RewardUse, allowed_hosts: Collection[str]) -> Backend:
    """The reward behind its transport, unopened; raises ConfigurationError as `check_use`."""
    check_use(use, allowed_hosts)
    match parse_use(use.uses, builtins=BUILTINS, allowed_hosts=allowed_hosts):
        case Builtin(name):
            return LocalBackend(make_builtin(name, use.options))
        case Import(module, attribute):
            from rewards.process import ProcessBackend

            return ProcessBackend(module, attribute, use.options, use.call)
        case NamedActor(namespace, name):
            from rewards.named_actor import NamedActorBackend

            return NamedActorBackend(namespace, name, use.call)
        case Url(url):
            from rewards.http import HttpBackend

            return HttpBackend(url, _token(use), use.call)


def _token(use: RewardUse) -> str | None:
    name = use.call.token_env
    if name is None:
        return None
    if not (token := os.environ.get(name)):
        raise ConfigurationError(
            f"reward {use.uses!r}: call.token_env names {name}, which is not in the environment"
        )
    return token
