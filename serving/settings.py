"""What a server allows and how long it waits."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field

from judging.errors import ConfigurationError
from serving.judge import JudgeSettings

TOKEN_VARIABLE = "GAVEL_SERVE_TOKEN"
_TOKEN = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Of one server. Counts are of requests unless they say otherwise."""

    judge: JudgeSettings = field(default_factory=JudgeSettings)  # where a request says nothing
    max_concurrency: int = 64  # that are judged at the same time
    max_queue: int = 256  # that wait for it; one more is refused with 429
    max_body_bytes: int = 2**20
    max_chars: int = 200_000  # of one text in a request
    max_candidates: int = 64
    max_votes: int = 64
    max_judgments: int = 4096  # texts to be generated for one request
    body_s: float = 10.0  # until a request has been received
    deadline_s: float = 300.0  # from then until it is answered
    grace_s: float = 60.0  # from SIGTERM until what was accepted is given up


def check_binding(host: str, token: str | None) -> None:
    """Raises ConfigurationError for an address that others reach, without a token; and for a token
    that no header can hold."""
    if token is not None and not _TOKEN.fullmatch(token):
        raise ConfigurationError(
            f"{TOKEN_VARIABLE} is set, and empty or not of printable ASCII characters without a "
            "space or the end of a line: give another, or unset it"
        )
    if token is None and not _is_loopback(host):
        raise ConfigurationError(
            f"--host {host} can be reached from elsewhere: set {TOKEN_VARIABLE} to a secret that "
            "clients must send, or bind to 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
