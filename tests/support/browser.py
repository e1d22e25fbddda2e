"""A browser without a screen: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# WebGL2 without a GPU, root without a sandbox, nothing but what pages ask for
_ARGUMENTS = (
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_SIZE = {"width": 1280, "height": 720}
_SECONDS = 60
# a folder that gets pictures of what the tests see
SCREENSHOTS = "ESP_MEDSAM_SCREENSHOTS"


def why_not() -> str:
    """What is missing on this machine; empty if nothing is."""
    if find_spec("playwright") is None:
        return "playwright is not installed (requirements-dev.txt)"
    if program() is None:
        return "Chromium is not installed (Debian: chromium)"
    return ""


def program() -> str | None:
    """Debian's Chromium."""
    return shutil.which("chromium")


@dataclass
class Seen:
    """What pages did beside what was asked of them.

    Attributes:
        hosts: that requests went to.
        errors: on the console, and exceptions that nobody caught.
        failed: answers of 400 and more: method, path, status.
    """

    hosts: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)
    failed: list[tuple[str, str, int]] = field(default_factory=list)

    def watch(self, page: Any) -> None:
        """Note what a page does from now on."""
        page.on("request", self._request)
        page.on("response", self._response)
        page.on("console", lambda told: told.type == "error" and self.errors.append(told.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _request(self, request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("blob", "data"):
            self.hosts.add(parts.netloc)

    def _response(self, response: Any) -> None:
        if response.status >= 400:
            path = response.url.partition(urlsplit(response.url).netloc)[2]
            self.failed.append((response.request.method, path, response.status))


@contextmanager
def browser() -> Iterator[Any]:
    """Playwright's browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program(), args=list(_ARGUMENTS))
        try:
            yield started
        finally:
            started.close()


@contextmanager
def page(of: Any, seen: Seen) -> Iterator[Any]:
    """A page with cookies of its own."""
    context = of.new_context(viewport=_SIZE)
    context.set_default_timeout(_SECONDS * 1000)
    opened = context.new_page()
    seen.watch(opened)
    try:
        yield opened
    finally:
        context.close()


def picture(page: Any, name: str) -> None:
    """Keep what is seen, if a folder for it is named."""
    folder = os.environ.get(SCREENSHOTS)
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png")
