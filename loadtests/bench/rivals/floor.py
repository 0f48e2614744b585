"""The kernel's floor for machines without a C compiler: native/floor.c in Python. `python -m loadtests.bench.rivals.floor PORT`.

A bare loop of `send`, which here includes what the interpreter adds to it; `conditions` in the results says which of the two was used.
"""

import contextlib
import selectors
import socket
import sys

UPGRADE = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"  # to RFC 6455's own example key
)


def server_frame(masked: bytes) -> bytes:
    """The same text frame without its mask; nothing for frames of other kinds."""
    if masked[0] & 15 != 1:
        return b""
    head = 2 if masked[1] & 127 < 126 else 4
    length = masked[1] & 127 if head == 2 else int.from_bytes(masked[2:4], "big")
    mask, payload = masked[head : head + 4], masked[head + 4 : head + 4 + length]
    text = bytes(byte ^ mask[index & 3] for index, byte in enumerate(payload))
    return masked[:1] + bytes([masked[1] & 127]) + masked[2:head] + text


def serve(port: int) -> None:
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    listener.setblocking(False)
    viewers: set[socket.socket] = set()
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                found = key.fileobj
                assert isinstance(found, socket.socket)
                if found is listener:
                    client, _ = listener.accept()
                    client.setblocking(False)
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    selector.register(client, selectors.EVENT_READ)
                elif not _look(found, viewers):
                    selector.unregister(found)
                    viewers.discard(found)
                    found.close()


def _look(client: socket.socket, viewers: set[socket.socket]) -> bool:
    """False: it is gone."""
    try:
        data = client.recv(70_000)
    except OSError:
        return False
    if data and client not in viewers:
        client.send(UPGRADE)
        viewers.add(client)
    elif data and (frame := server_frame(data)):
        for viewer in viewers:
            with contextlib.suppress(OSError):  # its buffer is full, or it is gone and will be found out
                viewer.send(frame)
    return bool(data)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
