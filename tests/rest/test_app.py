"""The web process: probes, problem details, headers, limits."""

import httpx2


async def test_probes_answer(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    ready = await client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"status": "ok", "checks": {"sales": "ok", "fan-out": "ok", "sql": "ok"}}


async def test_a_guest_can_say_who_he_is(client: httpx2.AsyncClient) -> None:
    guest = await client.post("/api/v1/guests", json={"name": "Mei"})
    assert guest.status_code == 201
    me = await client.get("/api/v1/me", headers={"Authorization": f"Bearer {guest.json()['token']}"})
    assert me.json()["kind"] == "guest"
    assert me.json()["name"] == "Mei"
