"""What goes over the socket, frame by frame, as a client that hides nothing sees it."""

from typing import Any

from tests.gateway.conftest import Node
from tests.support.clients import raw_client


async def test_connect_tells_pings_and_subscribes_the_own_channel(node: Node, token: Any) -> None:
    async with raw_client(node.http, token("ann")) as client:
        assert client.node == node.hub.node_id
        reply = await client.command(connect={})
        assert reply
