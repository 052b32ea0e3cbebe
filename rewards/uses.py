"""The one string that names a reward, `uses:`, in its four forms."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import ip_address
from urllib.parse import urlsplit

from judging.errors import ConfigurationError

FORMS = (
    "builtin:NAME, import:package.module:Object, ray://NAMESPACE/ACTOR-NAME or https://HOST/PATH"
)
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True, slots=True)
class Builtin:
    name: str


@dataclass(frozen=True, slots=True)
class Import:
    module: str
    attribute: str


@dataclass(frozen=True, slots=True)
class NamedActor:
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Url:
    url: str


Use = Builtin | Import | NamedActor | Url


def parse_use(
    text: str, *, builtins: Collection[str] = (), allowed_hosts: Collection[str] = ()
) -> Use:
    """Reads `uses:`.

    Args:
        builtins: names of the built-in rewards.
        allowed_hosts: hosts that an https:// reward may be at; loopback always may.

    Raises:
        ConfigurationError: none of the forms, an unknown built-in, a host that is not allowed; the
            message holds the string as written.
    """
    scheme, _, rest = text.partition(":")
    match scheme:
        case "builtin":
            return _builtin(text, rest, builtins)
        case "import":
            module, _, attribute = rest.partition(":")
            if not _DOTTED.fullmatch(module) or not _DOTTED.fullmatch(attribute):
                raise _refused(text, "expected import:package.module:Object")
            return Import(module, attribute)
        case "ray":
            namespace, _, name = rest.removeprefix("//").partition("/")
            if not rest.startswith("//") or not namespace or not name:
                raise _refused(text, "expected ray://NAMESPACE/ACTOR-NAME")
            return NamedActor(namespace, name)
        case "https" | "http":
            return _url(text, allowed_hosts)
        case _:
            raise _refused(text, f"expected {FORMS}")


def check_importable(use: Import, text: str) -> None:
    """Whether there is such a module, without running it.

    Raises:
        ConfigurationError: there is none on the import path.
    """
    package, _, _ = use.module.partition(".")
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise _refused(text, f"no module {package!r} on the import path (PYTHONPATH)")


def _builtin(text: str, name: str, builtins: Collection[str]) -> Builtin:
    if name not in builtins:
        near = get_close_matches(name, builtins, n=1)
        hint = f"did you mean builtin:{near[0]}? " if near else ""
        raise _refused(text, f"{hint}built-in rewards are {', '.join(sorted(builtins))}")
    return Builtin(name)


def _url(text: str, allowed_hosts: Collection[str]) -> Url:
    parts = urlsplit(text)
    host = parts.hostname or ""
    if not host or parts.username or parts.password or parts.fragment:
        raise _refused(text, "expected https://HOST/PATH without a password in it")
    if _is_loopback(host):
        return Url(text)
    if parts.scheme != "https":
        raise _refused(text, "only a reward on this machine may be without https")
    if host not in allowed_hosts:
        raise _refused(
            text, f"host {host} is not allowed: add it to reward.allowed_hosts if you trust it"
        )
    return Url(text)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _refused(text: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"reward {text!r}: {why}")
