"""GET /metrics: counters, latencies and what is going on now, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from api.openapi import refusals
from api.service import service_of
from metrics import CONTENT_TYPE

router = APIRouter()


@router.get("/metrics", response_class=PlainTextResponse, responses=refusals(401))
async def metrics(request: Request) -> Response:
    """Counters, latencies and gauges in Prometheus' text format."""
    return Response(service_of(request).metrics.render(), media_type=CONTENT_TYPE)
