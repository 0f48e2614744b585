"""The same broadcast in picows, a websocket library in Cython, on uvloop. `python -m loadtests.bench.rivals.picows_server PORT`."""

import sys

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_create_server

viewers: set[WSTransport] = set()


class Viewer(WSListener):
    def on_ws_connected(self, transport: WSTransport) -> None:
        viewers.add(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            message = frame.get_payload_as_bytes()
            for viewer in viewers:
                viewer.send(WSMsgType.TEXT, message)
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        viewers.discard(transport)


async def main(port: int) -> None:
    server = await ws_create_server(lambda _request: Viewer(), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
