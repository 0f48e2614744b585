"""`make load`: an evening on an embedded product, then the audit. Fails on a broken invariant, on failures, on hopeless answers.

python -m loadtests.run [--users 200] [--shape evening|doors|steady|flash|storm]
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from app.composition import build_registry
from app.core.runtime import Runtime
from app.core.settings import Settings
from app.storage.intake import list_rooms, outbox_key
from app.storage.work import Engines, rooms_to_announce
from loadtests.product import Product, running_product
from tests.support.auditor.ledger import audit_ledger
from tests.support.auditor.stock import audit_stock

QUIET_S_MAX = 60
OFFERS = ["闪购蜂蜜 Flash honey:1990:60:1", "龙井 Tea:16800:400:3", "脐橙 Oranges:4990:300"]


def run_locust(product: Product, place: dict[str, Any], *, users: int, shape: str) -> int:
    environment = {
        **os.environ,
        "JISHI_URL": product.url,
        "JISHI_TOKEN_SECRET": product.secret,
        "JISHI_LOAD_PLACE": json.dumps(place),
        "JISHI_LOAD_USERS": str(users),
        "JISHI_SHAPE": shape,
    }
    locustfile = Path(__file__).with_name("locustfile.py")
    command = [sys.executable, "-m", "locust", "-f", str(locustfile), "--headless", "--only-summary", "--host", product.url]
    return subprocess.run(command, env=environment, check=False, timeout=900).returncode  # noqa: S603 - our own file


async def audit(product: Product) -> list[str]:
    """Waits until everything has reached SQL, then asks the auditor about every room."""
    found: dict[str, str] = json.loads((product.data_dir / "run.json").read_text())
    settings = Settings(redis_url=found["redis_url"], database_url=found["database_url"], data_dir=product.data_dir)
    engines = Engines.connect(settings, Runtime(), build_registry())
    try:
        rooms = await list_rooms(engines)
        for _ in range(QUIET_S_MAX * 4):
            waiting = [room for room in rooms if await engines.sales.xlen(outbox_key(room))]
            if not waiting and not await rooms_to_announce(engines):
                break
            await asyncio.sleep(0.25)
        else:
            return [f"the outbox was not taken in within {QUIET_S_MAX} s"]
        return [*await audit_stock(engines, rooms), *await audit_ledger(engines)]
    finally:
        await engines.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--shape", default="evening", choices=["evening", "doors", "steady", "flash", "storm"])
    arguments = parser.parse_args()
    with running_product(web=2) as product:
        place = product.open_room("Load test", OFFERS)
        failed = run_locust(product, place, users=arguments.users, shape=arguments.shape)
        problems = asyncio.run(audit(product))
    for problem in problems:
        print(f"auditor: {problem}")
    print("auditor: every offer adds up, the ledger sums to zero" if not problems else f"auditor: {len(problems)} problems")
    return 1 if failed or problems else 0


if __name__ == "__main__":
    sys.exit(main())
