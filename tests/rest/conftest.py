"""Logs of tests that make the product fail on purpose: plain, since drawing every local variable of a traceback takes seconds."""

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True, scope="package")
def _plain_logs() -> Iterator[None]:
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.dev.ConsoleRenderer(colors=False)])
    yield
    structlog.reset_defaults()
