"""Any bytes at all: what must hold for every input, whoever makes it, and a driver that makes a million of them.

    python -m tests.fuzz [--inputs 1000000] [--seed 1] [--only json ...] [--replay json:4711]       (`make fuzz`)

    target.py      what a target is: makes an input of a generator, checks it
    codecs.py      bytes -> a command or `Malformed`; the independent decoders agree
    framing.py     bytes in any chunks -> the same messages, pings and close codes; `websockets` agrees
    sessions.py    frames and clock -> answers, a close code and bounded state
    recording.py   writes what SDKs send into the corpus
    sockets.py     bytes before, in and after the handshake of a real node, with a neighbour who must not notice

It stands beside the tests and not beside the load runs, because the same targets run in both: tests/properties/test_fuzz_*.py runs each
with a small budget and the whole corpus, and lets Hypothesis look for the smallest input where shape matters more than number.
"""
