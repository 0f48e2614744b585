"""What clients send and what nobody should: the seeds of all tests of bad input, and what makes more of them.

    seeds.py          right commands in both codecs, joined and framed; the classics of wrong ones that are too long to write down
    json.txt          messages of the JSON codec, mostly wrong        `name = bytes literal`, one a line
    protobuf.txt      the same for Protobuf
    heads.txt         HTTP before the upgrade, right and wrong
    recorded.txt      what real SDKs sent after the upgrade, byte by byte as it came
    findings.txt      what once broke something; stays for good
    frames.py         websocket frames, right and lying
    mutations.py      a seed and a generator: a wrong input

Owns no assertion: what must hold is said in tests/fuzz/targets.py.
"""
