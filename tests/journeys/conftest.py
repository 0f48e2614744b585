"""A whole product in processes of its own: `jishi up --no-demo` with two web processes, as an operator would start it."""

import json
import random
from collections.abc import AsyncGenerator, Callable, Generator

import pytest

from app.composition import build_registry
from app.core.runtime import Runtime
from app.core.settings import Settings
from app.demo.__main__ import Signer, websocket_url
from app.demo.team import Team
from app.demo.viewers import Tally, Viewer
from app.storage.intake import list_rooms, outbox_key
from app.storage.work import Engines, rooms_to_announce
from loadtests.product import Product, running_product
from tests.support.auditor.ledger import audit_ledger
from tests.support.auditor.stock import audit_stock
from tests.support.waiting import wait_until

ENVIRONMENT = {"JISHI_PAYMENT_TTL_S": "20", "JISHI_HOLD_TTL_S": "20", "JISHI_SANDBOX_PAYMENT_DELAY_MS": "100", "JISHI_DRAIN_S": "1"}


@pytest.fixture(scope="module")
def product() -> Generator[Product]:
    with running_product(web=2, environment=ENVIRONMENT) as product:
        yield product


@pytest.fixture
def signer(product: Product) -> Signer:
    return Signer(Settings(token_secret=product.secret))


@pytest.fixture
async def operator(product: Product, signer: Signer) -> AsyncGenerator[Team]:
    team = Team(product.url, signer.token("operator", "Operator", roles=("operator",)))
    yield team
    await team.close()


@pytest.fixture
async def new_viewer(product: Product, signer: Signer) -> AsyncGenerator[Callable[[str], Viewer]]:
    made: list[Viewer] = []

    def make(name: str) -> Viewer:
        viewer = Viewer(
            viewer_id=name,
            name=name,
            websocket_url=websocket_url(product.url),
            token=signer.token(name, name),
            rng=random.Random(name),
            tally=Tally(),
        )
        made.append(viewer)
        return viewer

    yield make
    for viewer in made:
        await viewer.leave()


@pytest.fixture
async def product_engines(product: Product) -> AsyncGenerator[Engines]:
    """The running product's engines, to look at its books."""
    found = json.loads((product.data_dir / "run.json").read_text())
    engines = Engines.connect(Settings(redis_url=found["redis_url"], database_url=found["database_url"]), Runtime(), build_registry())
    yield engines
    await engines.close()


async def assert_books(engines: Engines) -> None:
    """Once everything has been taken in: every offer adds up, the ledger sums to zero."""
    rooms = await list_rooms(engines)

    async def quiet() -> bool:
        return not await rooms_to_announce(engines) and not any([await engines.sales.xlen(outbox_key(room)) for room in rooms])

    await wait_until(quiet, within_s=30)
    assert [*await audit_stock(engines, rooms), *await audit_ledger(engines)] == []
