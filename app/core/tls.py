"""Whom this product believes to be who they say, when it calls others: the certificate authorities of the machine, read once.

Reading them takes 40 ms of the event loop, which is what a client without a context of its own does each time.
"""

import ssl
from functools import lru_cache


@lru_cache(maxsize=1)
def trusted_tls() -> ssl.SSLContext:
    return ssl.create_default_context()
