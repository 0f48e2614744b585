"""A shelf whose sales engine is reached through a proxy that breaks the line."""

from dataclasses import dataclass

from app.domains.orders import payments, sandbox
from app.domains.orders.tables import SandboxCharge
from app.storage.work import Engines
from tests.support.faulty_proxy import FaultyProxy
from tests.support.runtime import TestRuntime
from tests.support.shelf import Shelf


@dataclass(slots=True)
class Line:
    """A shelf whose sales engine is reached through a proxy, and the direct way beside it."""

    proxy: FaultyProxy
    shelf: Shelf
    direct: Engines
    runtime: TestRuntime

    async def post_webhook(self, payment: str) -> str:
        async with self.direct.sql.read() as session:
            charge = await session.get(SandboxCharge, payment)
        assert charge
        body, header = sandbox.sandbox_notice(self.direct.settings, charge, now_ms=self.runtime.now_ms())
        return await payments.receive_webhook(self.shelf.engines, "sandbox", {"Jishi-Signature": header}, body)
