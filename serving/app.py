"""The HTTP application: routes, their errors in one shape, health and metrics."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from judging.errors import DataError, GavelError
from serving import openrlhf
from serving.gate import Gate
from serving.guard import OPEN, Guard, error_body
from serving.judge import Judge, Ruling
from serving.messages import (
    ErrorAnswer,
    JudgeAnswer,
    JudgeRequest,
    RankAnswer,
    RankRequest,
    ScoreAnswer,
    ScoreRequest,
)
from serving.metrics import Metrics
from serving.service import Service
from serving.settings import ServeSettings

_FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "No JSON, or not of this shape.",
        401: "No token, or a wrong one.",
        413: "More than max_body_bytes.",
        422: "Cannot be judged: the message names the field and the mend.",
        429: "The queue is full; Retry-After says when to try again.",
        503: "Still queued at the deadline, or the server is ending, or its engine has died.",
        504: "Still judged at the deadline.",
    }.items()
}
_LONGEST_FIELD = 200  # characters of its name, which is the client's where it is unknown
_DESCRIPTION = "Which of two answers is better, by a model that writes its reasons."


def make_app(
    judge: Judge,
    settings: ServeSettings,
    gate: Gate,
    metrics: Metrics,
    *,
    token: str | None = None,
) -> Guard:
    """The application with its guard, for any ASGI server. The judge's engine is to be a
    `MeasuredGenerate` of the same metrics."""

    def ruled(ruling: Ruling) -> None:
        metrics.rulings.labels(_outcome(ruling)).inc()

    app = FastAPI(
        title="Gavel", version="1", description=_DESCRIPTION, docs_url=None, redoc_url=None
    )
    _add_routes(app, Service(judge, settings, ruled))
    _add_views(app, gate, metrics)
    for kind, answer in ((DataError, _unusable), (GavelError, _failed), (HTTPException, _http)):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(RequestValidationError, _invalid)
    guard = Guard(app, settings, gate, metrics, token)
    guard.paths = frozenset(getattr(route, "path", "") for route in app.routes)
    return guard


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/judge", responses=_FAULTS)
    async def judge(request: JudgeRequest) -> JudgeAnswer:
        """Which of two answers is better."""
        return await service.compare(request)

    @app.post("/v1/rank", responses=_FAULTS)
    async def rank(request: RankRequest) -> RankAnswer:
        """An order of two candidates or more: n - 1 comparisons by knockout, n (n - 1) / 2 by
        round-robin and bradley-terry, about n times opponents by bradley-terry with opponents."""
        return await service.rank(request)

    @app.post("/v1/score", responses=_FAULTS)
    async def score(request: ScoreRequest) -> ScoreAnswer:
        """How single answers fare against references, from 0 to 1: a reward for a policy."""
        return await service.score(request)

    @app.post("/v1/rewards/openrlhf", responses=_FAULTS)
    async def openrlhf_reward(
        request: openrlhf.RewardRequest,
        undecided: Annotated[
            float | None,
            Query(allow_inf_nan=False, description="The reward where no judgment has a verdict."),
        ] = None,
    ) -> openrlhf.RewardAnswer:
        """OpenRLHF's --reward.remote_url."""
        return await openrlhf.reward(service, request, undecided)


def _add_views(app: FastAPI, gate: Gate, metrics: Metrics) -> None:
    @app.get(OPEN)
    async def health() -> JSONResponse:
        """200 while requests are taken."""
        state, status = ("ending", 503) if gate.is_closed else ("ok", 200)
        counts = {"judging": gate.judging, "queued": gate.admitted - gate.judging}
        return JSONResponse({"status": state, **counts}, status)

    @app.get("/metrics")
    async def prometheus() -> Response:
        """In the text format of Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _outcome(ruling: Ruling) -> str:
    if ruling.share_a is None:
        return "unreadable"
    return ruling.letter or "draw"


async def _unusable(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse(error_body("unusable", str(error)), 422)


async def _failed(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse(error_body("engine", str(error)), 503, {"retry-after": "1"})


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = {400: "bad_request", 404: "not_found", 405: "method"}.get(error.status_code, "http")
    return JSONResponse(error_body(kind, str(error.detail)), error.status_code, error.headers)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """One line for each of the first faults, with its field; not the input, which may be long."""
    assert isinstance(error, RequestValidationError)
    lines = [
        f"{'.'.join(map(str, fault['loc'][1:]))[:_LONGEST_FIELD] or 'the body'}: {fault['msg']}"
        for fault in error.errors()[:5]
    ]
    return JSONResponse(error_body("bad_request", "; ".join(lines)), 400)
