"""Teachers that are functions: of generated tasks, and of users."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from judging.errors import ConfigurationError
from synthesis.endpoint import estimated_usage
from synthesis.records import Answer, RequestFailed, TeacherRequest
from synthesis.settings import Teacher


class FunctionService:
    """One teacher with `uses: builtin:` or `import:`."""

    def __init__(self, name: str, settings: Teacher) -> None:
        self._name, self._timeout_s = name, settings.timeout_s
        self._function = load_function(name, settings.uses, settings.options)
        self._is_builtin = settings.uses.startswith("builtin:")

    async def check(self) -> None:
        """It is there."""

    async def answer(self, request: TeacherRequest) -> Answer:
        try:
            if self._is_builtin:
                text = self._function(request)
            else:
                called = (
                    self._function(request)
                    if _is_async(self._function)
                    else asyncio.to_thread(self._function, request)
                )
                text = await asyncio.wait_for(called, self._timeout_s)
        except TimeoutError:
            raise RequestFailed(
                f"teacher {self._name} did not answer within {self._timeout_s:g} s (timeout_s)"
            ) from None
        except Exception as error:  # a user's code may raise anything; others may go on
            raise RequestFailed(f"teacher {self._name}: {type(error).__name__}: {error}") from error
        if not isinstance(text, str):
            raise RequestFailed(
                f"teacher {self._name} answered {type(text).__name__}: it must answer text"
            )
        chars = sum(len(message.content) for message in request.messages)
        return Answer(text, usage=estimated_usage(chars, text), usage_is_estimate=True)

    def written(self, key: str) -> None:
        """Nothing keeps it."""

    async def close(self) -> None:
        """Nothing is open."""


def _is_async(function: Any) -> bool:
    """Of a function, or of an object that is called like one."""
    return any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))


def _quickstart(**options: Any) -> Callable[[TeacherRequest], str]:
    from judging.quickstart_teacher import ErringOracle

    made = ErringOracle(**options)
    oracle = TypeAdapter(ErringOracle).validate_python(asdict(made))  # their bounds, too
    return lambda request: oracle.trace(
        request.presentation, sample=request.sample, letter=request.verdict
    )


BUILTIN = {"quickstart": _quickstart}


def load_function(name: str, uses: str, options: Mapping[str, Any]) -> Any:
    """The function, or an object of the class made with `options`.

    Raises:
        ConfigurationError: there is none, or it does not take the options.
    """
    kind, _, path = uses.partition(":")
    module_name, _, attribute = path.partition(":")
    try:
        if kind == "builtin":
            return BUILTIN[path](**options)
        found = getattr(importlib.import_module(module_name), attribute)
        made = found(**options) if inspect.isclass(found) else found
    except Exception as error:  # a user's module may raise anything as it is imported
        raise ConfigurationError(
            f"synthesize.teachers.{name}.uses ({uses}): {error}: it must name a function of one "
            "request, or a class that takes the options, as import:package.module:Object"
        ) from error
    if not callable(made):
        raise ConfigurationError(f"synthesize.teachers.{name}.uses ({uses}) cannot be called")
    return made
