"""Makes wrong bytes of right ones. Everything comes from the generator that is given, so that a seed tells the whole run again."""

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

# What parsers trip over when it stands where something else is expected.
TOKENS: tuple[bytes, ...] = (
    b"\0",
    b"\n",
    b"\r\n",
    b"\xff",
    b"\x80",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xf4\x90\x80\x80",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x02",
    b"\xff\xff\xff\xff\x0f",
    b"\xff\xff\xff\xff\x10",
    b"\x7f\xff\xff\xff\xff\xff\xff\xff",
    b'"',
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"{}",
    b"[[[[[[[[",
    b"null",
    b"true",
    b"NaN",
    b"-Infinity",
    b"-0",
    b"-1",
    b"1e999",
    b"1.5",
    b"0.0",
    b"4294967295",
    b"4294967296",
    b"9223372036854775808",
    b"18446744073709551616",
    b"1" * 400,
    b'"id":0,',
    b'"id":1,',
    b'"connect":{}',
    b'"rpc":{}',
    b"\xe8\x8c\xb6",
    b"\xf0\x9f\x8d\xb5",
)
BYTES_MAX = 20_000  # a seed grows no further, so that a run's pace does not depend on its luck

Mutation = Callable[[random.Random, bytearray, Sequence[bytes]], None]


def _flip_bit(rng: random.Random, raw: bytearray, seeds: Sequence[bytes]) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)


def _set_byte(rng: random.Random, raw: bytearray, seeds: Sequence[bytes]) -> None:
    raw[rng.randrange(len(raw))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _nudge_byte(rng: random.Random, raw: bytearray, seeds: Sequence[bytes]) -> None:
    """Lengths, counts and keys that lie by a little are the ones that get far."""
    at = rng.randrange(len(raw))
    raw[at] = (raw[at] + rng.choice((-2, -1, 1, 2, 8, -8))) & 0xFF


def _truncate(rng: random.Random, raw: bytearray, seeds: Sequence[bytes]) -> None:
    del raw[rng.randrange(len(raw)) :]


def _behead(rng: random.Random, raw: bytearray, seeds: Sequence[bytes]) -> None:
    del raw[: rng.randrange(len(raw))]


def _cut_out(rng: random.Random, raw: bytearray, seeds: Sequence[bytes]) -> None:
    start = rng.randrange(len(raw))
    del raw[start : start + rng.randint(1, 16)]


def _repeat(rng: random.Random, raw: bytearray, seeds: Sequence[bytes]) -> None:
    start = rng.randrange(len(raw))
    part = bytes(raw[start : start + rng.randint(1, 64)])
    raw[start:start] = part * rng.choice((1, 1, 2, 40))


def _insert_token(rng: random.Random, raw: bytearray, seeds: Sequence[bytes]) -> None:
    at = rng.randrange(len(raw) + 1)
    raw[at:at] = rng.choice(TOKENS)


def _overwrite_with_token(rng: random.Random, raw: bytearray, seeds: Sequence[bytes]) -> None:
    token = rng.choice(TOKENS)
    at = rng.randrange(len(raw))
    raw[at : at + rng.choice((1, len(token)))] = token


def _insert_noise(rng: random.Random, raw: bytearray, seeds: Sequence[bytes]) -> None:
    at = rng.randrange(len(raw) + 1)
    raw[at:at] = rng.randbytes(rng.randint(1, 12))


def _splice(rng: random.Random, raw: bytearray, seeds: Sequence[bytes]) -> None:
    """The head of one seed and the tail of another."""
    other = rng.choice(seeds)
    raw[rng.randrange(len(raw)) :] = other[rng.randrange(len(other) + 1) :]


def _append(rng: random.Random, raw: bytearray, seeds: Sequence[bytes]) -> None:
    raw += rng.choice(seeds)


def _swap(rng: random.Random, raw: bytearray, seeds: Sequence[bytes]) -> None:
    first, second = rng.randrange(len(raw)), rng.randrange(len(raw))
    raw[first], raw[second] = raw[second], raw[first]


MUTATIONS: tuple[Mutation, ...] = (
    _flip_bit,
    _set_byte,
    _nudge_byte,
    _nudge_byte,
    _truncate,
    _behead,
    _cut_out,
    _repeat,
    _insert_token,
    _overwrite_with_token,
    _insert_noise,
    _splice,
    _append,
    _swap,
)


def mutate(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A seed with a few things done to it; now and then none, and now and then noise alone."""
    dice = rng.random()
    if dice < 0.02:
        return rng.randbytes(rng.randint(0, 64))
    raw = bytearray(rng.choice(seeds))
    if dice < 0.05:
        return bytes(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 6))):
        if raw:
            rng.choice(MUTATIONS)(rng, raw, seeds)
    del raw[BYTES_MAX:]
    return bytes(raw)


def in_chunks(rng: random.Random, raw: bytes) -> list[bytes]:
    """The same bytes as a socket may bring them: whole, byte by byte, or cut at any places."""
    match rng.randrange(4):
        case 0:
            return [raw]
        case 1 if len(raw) <= 300:
            return [raw[at : at + 1] for at in range(len(raw))]
        case _:
            cuts = sorted({0, len(raw), *(rng.randint(0, len(raw)) for _ in range(rng.randint(1, 6)))})
            return [raw[start:end] for start, end in pairwise(cuts)]
