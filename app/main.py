"""Composition root of the web process: settings, engines, gateway, REST, console. `jishi serve` runs `create_app`.

Nothing here is decided by being imported; tests pass engines of their own, which they also close.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from app import __version__
from app.composition import build_registry
from app.console.pages import router as console_router
from app.core.caller import Caller
from app.core.registry import Registry
from app.core.runtime import Runtime
from app.core.settings import Settings, split_words
from app.domains.accounts.service import resolve
from app.domains.accounts.tokens import keeping_keys_fresh
from app.domains.orders.payments import provider_named
from app.gateway.endpoint import CODECS
from app.gateway.endpoint import router as gateway_router
from app.gateway.hub import Hub
from app.rest import document, guides, probes, realtime_page
from app.rest.asyncapi import build_asyncapi
from app.rest.idempotency import Idempotency
from app.rest.middleware import Edge, WhoCalls, WholeBody
from app.rest.problems import install_problem_handlers
from app.rest.twins import twin_router
from app.storage.work import Engines

TAGS = {
    "accounts": "Sign-in, guests, the team and its roles, API keys.",
    "products": "Products with their origin.",
    "rooms": "Rooms: snapshot, likes, pin, audit.",
    "sessions": "Sessions: life cycle, checklist, run-of-show.",
    "offers": "The shelf: prices, stock, windows.",
    "inventory": "Stock: hold, release, count.",
    "wallet": "Balances, deposits and transfers of the ledger.",
    "orders": "Orders from hold to delivery: place, pay, cancel, ship, refund.",
    "chat": "Messages, moderation, the archive.",
    "draws": "Draws that anyone can recompute.",
    "envelopes": "Red envelopes: fund, grab, settle.",
    "analytics": "Live figures and the post-show report.",
    "integrations": "Signed webhooks to the company's backend.",
}
TAG_OF = {"catalogue": "products", "lottery": "draws"}  # where the public word is not the package's


def create_app(settings: Settings | None = None, *, engines: Engines | None = None) -> FastAPI:
    """The web process. Engines that are passed in stay open; otherwise they are made from the settings and closed with the process."""
    registry = engines.registry if engines else build_registry()
    settings = settings or (engines.settings if engines else Settings())
    settings.check_production()
    own = engines is None
    engines = engines or Engines.connect(settings, Runtime(), registry)
    app = FastAPI(
        title="Jishi",
        version=__version__,
        openapi_url=None,  # rest/document.py serves the document, built off the event loop
        docs_url=None,  # FastAPI's pages load their scripts from a CDN; rest/document.py has one that does not
        redoc_url=None,
        lifespan=_lifespan(engines, close_engines=own),
    )
    app.state.engines = engines
    app.state.hub = Hub(engines)
    app.state.draining = False
    install_problem_handlers(app)
    _include_routers(app, registry, settings)
    _add_middleware(app, engines)
    return app


def _lifespan(engines: Engines, *, close_engines: bool) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        provider_named(engines, engines.settings.payment_provider)  # imports its SDK before anybody waits for it
        async with keeping_keys_fresh(engines):
            await app.state.hub.start()
            try:
                yield
            finally:
                app.state.draining = True
                await app.state.hub.drain()
                await app.state.hub.stop()
                if close_engines:
                    await engines.close()

    return lifespan


def _include_routers(app: FastAPI, registry: Registry, settings: Settings) -> None:
    for router in (gateway_router, console_router, probes.router):
        app.include_router(router)
    app.include_router(document.router)
    app.include_router(realtime_page.router)
    app.include_router(guides.router)
    for domain in registry.domains.values():
        for router in domain.routers:
            app.include_router(router)
        app.include_router(twin_router(domain.commands, tag=TAG_OF.get(domain.name, domain.name)))
    document.install_document(app, commands=registry.commands.values(), tags=TAGS)
    realtime_page.install_realtime(app, lambda: build_asyncapi(registry, settings, CODECS))


def _add_middleware(app: FastAPI, engines: Engines) -> None:
    """Starlette puts what is added last outermost."""

    async def resolve_token(token: str) -> Caller:
        return await resolve(engines, token)

    origins = split_words(engines.settings.allowed_origins)
    app.add_middleware(Idempotency, engines=engines)
    app.add_middleware(WhoCalls, resolve=resolve_token)
    app.add_middleware(WholeBody, bytes_max=engines.settings.body_bytes_max, timeout_s=engines.settings.body_timeout_s)
    if origins:  # pages of the company on other hosts; no cookies, so no credentials
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key"],
            expose_headers=["Idempotency-Replayed", "Retry-After", "X-Request-Id"],
            max_age=600,
        )
    app.add_middleware(Edge, new_id=engines.runtime.new_id)
