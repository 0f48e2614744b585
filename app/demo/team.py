"""The host and her team: a thin REST client that keeps trying while the product restarts, and never does a thing twice.

Every call that changes something carries an `Idempotency-Key`, so a retry after a lost answer gets the first answer.
"""

import asyncio
import uuid
from typing import Any

import httpx2

ATTEMPTS_MAX = 40
RETRY_S = 0.5


class Refused(Exception):
    """A problem that trying again will not mend: the server's own words."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(f"{status} {problem.get('word', '')}: {problem.get('detail', '')}")
        self.status = status
        self.problem = problem


class Team:
    """One member of the team, by token."""

    def __init__(self, base_url: str, token: str) -> None:
        self._client = httpx2.AsyncClient(base_url=f"{base_url}/api/v1", headers={"Authorization": f"Bearer {token}"}, timeout=10)

    async def close(self) -> None:
        await self._client.aclose()

    async def get(self, path: str) -> Any:
        return await self._call("GET", path, None)

    async def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return await self._call("POST", path, body or {})

    async def put(self, path: str, body: dict[str, Any]) -> Any:
        return await self._call("PUT", path, body)

    async def _call(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        headers = {} if method == "GET" else {"Idempotency-Key": str(uuid.uuid4())}
        for attempt in range(ATTEMPTS_MAX):
            try:
                response = await self._client.request(method, path, json=body, headers=headers)
            except httpx2.TransportError:
                await asyncio.sleep(RETRY_S)
                continue
            if response.status_code < 400:
                return response.json() if response.content else None
            problem = response.json() if "json" in response.headers.get("content-type", "") else {"detail": response.text[:200]}
            if not problem.get("temporary") or attempt == ATTEMPTS_MAX - 1:
                raise Refused(response.status_code, problem)
            await asyncio.sleep(RETRY_S)
        raise Refused(503, {"word": "service_unavailable", "detail": f"no answer from the product after {ATTEMPTS_MAX} attempts"})
