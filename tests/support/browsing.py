"""A real browser, as people use it: Chromium without a window."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, ViewportSize, async_playwright

from servers import PATIENCE_SECONDS

DESK: ViewportSize = {"width": 1280, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")


@asynccontextmanager
async def browsing(address: str) -> AsyncIterator[Page]:
    """Give a page of a browser. At the end, it must have met no error, and asked nobody else."""
    executable = next(filter(None, map(shutil.which, CHROMIUM)), None)
    assert executable, "the pages are tested in Chromium: apt-get install chromium"
    faults: list[str] = []
    async with async_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = await playwright.chromium.launch(executable_path=executable, args=arguments)
        page = await browser.new_page(base_url=address)
        page.set_default_timeout(PATIENCE_SECONDS * 1000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: faults.append(line.text))
        page.on(
            "request",
            lambda sent: faults.append(sent.url) if not sent.url.startswith(address) else None,
        )
        yield page
        await browser.close()
    assert faults == []


async def check_accessibility(page: Page) -> None:
    """Check that axe finds no serious fault of a page: on a desk in light, on a phone in dark."""
    for scheme, size in (("dark", PHONE), ("light", DESK)):
        await page.emulate_media(color_scheme=scheme)
        await page.set_viewport_size(size)
        assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        results = await Axe().run(page)
        serious = {
            violation["id"]: [node["html"] for node in violation["nodes"]]
            for violation in results.response["violations"]
            if violation["impact"] in ("serious", "critical")
        }
        assert serious == {}, f"{page.url}, {scheme}"
