"""What watches the process: `/healthz` (it runs), `/readyz` (it can serve), `/metrics` (Prometheus)."""

import os
from collections.abc import Iterable

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from redis.exceptions import RedisError
from starlette.responses import JSONResponse, Response

from app.core.metrics import write_figures
from app.rest.access import EnginesDep, public
from app.storage.durability import find_weaknesses
from app.storage.work import Engines

METRIC_PREFIX = "jishi_"

router = APIRouter(include_in_schema=False)


class OurMetrics(Collector):
    """The product's own metrics out of the process-wide registry; the client library's defaults stay out."""

    def collect(self) -> Iterable[Metric]:
        return (metric for metric in REGISTRY.collect() if metric.name.startswith(METRIC_PREFIX))


def _make_registry() -> CollectorRegistry:
    """The whole machine's figures where the processes share them, else those of this process with its memory, processor time and files."""
    registry = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        MultiProcessCollector(registry)
    else:
        registry.register(OurMetrics())
        ProcessCollector(namespace="jishi", registry=registry)
    return registry


_registry = _make_registry()


@router.get("/healthz")
@public
async def healthz() -> JSONResponse:
    """The process is alive. Says nothing of the engines: a restart would not bring them back."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz")
@public
async def readyz(request: Request, engines: EnginesDep) -> JSONResponse:
    """503 with the reasons while an engine is out of reach, the process does not hear what other nodes say, or it drains.

    `warnings` name what endangers the promises without keeping anybody from serving: settings of the sales engine.
    """
    checks = await engines.check()
    checks["bus"] = "ok" if request.app.state.hub.is_hearing else "lost"
    if request.app.state.draining:
        checks["process"] = "draining"
    ready = all(answer == "ok" for answer in checks.values())
    body = {"status": "ok" if ready else "unavailable", "checks": checks, "warnings": await _warnings(engines)}
    return JSONResponse(body, 200 if ready else 503)


async def _warnings(engines: Engines) -> list[str]:
    try:
        return await find_weaknesses(engines.sales)
    except (RedisError, OSError):
        return []  # it is away: the checks say so


@router.get("/metrics")
@public
async def metrics() -> Response:
    write_figures()  # what other processes have counted is a second old at most
    return Response(generate_latest(_registry), media_type=CONTENT_TYPE_LATEST)
