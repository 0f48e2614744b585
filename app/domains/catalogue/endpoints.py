"""REST routes of products. Offers stand on a session's shelf, so their routes are in `rooms`."""

from datetime import date, datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from app.core.caller import Caller
from app.core.errors import AppError
from app.core.registry import Domain
from app.domains.catalogue import service
from app.domains.catalogue.rules import ReturnPolicy
from app.domains.catalogue.tables import Product
from app.protocol.codes import PERMISSION_DENIED
from app.rest.access import EnginesDep, require
from app.rest.pages import CursorParam, LimitParam, Page, decode_moment_cursor, encode_moment_cursor

router = APIRouter(prefix="/api/v1", tags=["products"])

_EXAMPLE: JsonDict = {
    "name": "Spring tea, first flush",
    "description": "Hand-picked before Qingming.",
    "unit": "250 g tin",
    "image": "/static/products/tea.svg",
    "village": "Longwu",
    "lot": "LW-2026-04",
    "harvested_on": "2026-04-02",
    "return_policy": "no_reason_7_days",
}


class ProductIn(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})

    name: str = Field(min_length=1, max_length=120)
    description: str = Field("", max_length=4000)
    unit: str = Field("", max_length=40)
    image: str = Field("", max_length=500, pattern=r"^(https?://|/).*$|^$", description="a URL, or a path on this server")
    village: str = Field("", max_length=120)
    lot: str = Field("", max_length=80)
    harvested_on: date | None = None
    return_policy: ReturnPolicy = ReturnPolicy.NO_REASON_7_DAYS


class ProductPatch(BaseModel):
    """Fields that are left out stay as they are."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"lot": "LW-2026-05", "harvested_on": "2026-04-19"}]})

    name: str = Field("", min_length=1, max_length=120)
    description: str = Field("", max_length=4000)
    unit: str = Field("", max_length=40)
    image: str = Field("", max_length=500, pattern=r"^(https?://|/).*$|^$")
    village: str = Field("", max_length=120)
    lot: str = Field("", max_length=80)
    harvested_on: date | None = None
    return_policy: ReturnPolicy = ReturnPolicy.NO_REASON_7_DAYS


class ProductOut(ProductIn):
    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={"examples": [{**_EXAMPLE, "id": "01jr9z0k3v8g6w1y5n2c4t7x0m", "created_at": "2026-04-03T08:00:00Z"}]},
    )

    id: str
    created_at: datetime

    @classmethod
    def of(cls, product: Product) -> "ProductOut":
        return cls.model_validate(product, from_attributes=True)


@router.get("/products")
async def list_products(
    engines: EnginesDep, caller: Annotated[Caller, require("product.edit")], cursor: CursorParam = "", limit: LimitParam = 50
) -> Page[ProductOut]:
    """Newest first."""
    async with engines.sql.read() as session:
        rows = await service.list_products(session, after=decode_moment_cursor(cursor), limit=limit + 1)
    next_cursor = encode_moment_cursor(rows[limit - 1].created_at, rows[limit - 1].id) if len(rows) > limit else ""
    return Page(items=[ProductOut.of(row) for row in rows[:limit]], next_cursor=next_cursor)


@router.post("/products", status_code=201)
async def create_product(engines: EnginesDep, caller: Annotated[Caller, require("product.edit")], body: ProductIn) -> ProductOut:
    async with engines.work() as work:
        product = await service.create_product(work, service.ProductDraft(**body.model_dump()), owner_id=caller.id)
    return ProductOut.of(product)


@router.get("/products/{product_id}")
async def get_product(product_id: str, engines: EnginesDep, caller: Annotated[Caller, require("product.edit")]) -> ProductOut:
    async with engines.sql.read() as session:
        return ProductOut.of(await service.get_product(session, product_id))


@router.patch("/products/{product_id}")
async def change_product(
    product_id: str, engines: EnginesDep, caller: Annotated[Caller, require("product.edit")], body: ProductPatch
) -> ProductOut:
    """A product is changed by whoever made the entry, or by staff who hold the right everywhere. Offers keep what they were listed with."""
    async with engines.work() as work:
        product = await service.get_product(work.session, product_id)
        if product.owner_id != caller.id and not caller.may("product.edit"):
            raise AppError(PERMISSION_DENIED, "this product is another's entry: ask its owner or an operator")
        product = await service.change_product(work, product_id, body.model_dump(exclude_unset=True))
    return ProductOut.of(product)


DOMAIN = Domain(name="catalogue", rights={"product.edit": "enter products, and change one's own entries"}, routers=(router,))
