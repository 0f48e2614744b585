"""Code out of a Markdown page, so that what a page shows is what a test runs."""

import re


def blocks(markdown: str, heading: str, language: str) -> list[str]:
    """The fenced blocks of this language under the second-level heading, in their order."""
    section = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", markdown, re.MULTILINE | re.DOTALL)
    assert section is not None, f"no section {heading}"
    return re.findall(rf"^```{re.escape(language)}\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
