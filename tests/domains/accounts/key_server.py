"""The company's backend, as far as its keys go: private keys, tokens they sign, and an HTTP server on loopback that publishes the set."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm


@lru_cache(maxsize=16)  # an RSA key takes a while to find
def private_key(algorithm: str, number: int = 0) -> Any:
    """The same key for the same arguments, all through a run."""
    if algorithm == "RS256":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1()) if algorithm == "ES256" else ed25519.Ed25519PrivateKey.generate()


def public_entry(key: Any, **members: Any) -> dict[str, Any]:
    """The key's entry in a JWK set. A member None is left out."""
    kinds = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm, ed25519.Ed25519PrivateKey: OKPAlgorithm}
    algorithm = next(algorithm for kind, algorithm in kinds.items() if isinstance(key, kind))
    entry = json.loads(algorithm.to_jwk(key.public_key()))
    entry.pop("key_ops", None)
    return {name: value for name, value in (entry | members).items() if value is not None}


def signed(algorithm: str, claims: dict[str, Any], *, kid: str | None, key: Any = None) -> str:
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(claims, key or private_key(algorithm), algorithm=algorithm, headers=headers)


@dataclass
class KeyServer:
    port: int = 0
    body: bytes = b""
    head: str = "HTTP/1.1 200 OK\r\n"
    gate: asyncio.Event | None = None  # an answer waits for it
    fetches: int = 0
    server: asyncio.Server | None = None
    _writers: list[asyncio.StreamWriter] = field(default_factory=list[asyncio.StreamWriter])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/.well-known/jwks.json"

    def publish(self, *entries: Any) -> None:
        self.body = json.dumps({"keys": list(entries)}).encode()

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._handle, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self.server is not None
        self.server.close()
        for writer in self._writers:
            writer.close()
        await self.server.wait_closed()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            await reader.readuntil(b"\r\n\r\n")
            self.fetches += 1
            if self.gate is not None:
                await self.gate.wait()
            writer.write(f"{self.head}Content-Length: {len(self.body)}\r\nConnection: close\r\n\r\n".encode() + self.body)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def publishing(*entries: Any) -> AsyncGenerator[KeyServer]:
    server = KeyServer()
    server.publish(*entries)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
