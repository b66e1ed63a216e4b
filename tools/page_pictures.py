"""Photograph the page of a running server, tab by tab, for the documentation: page_pictures.py ADDRESS FOLDER [PROMPT].

Needs a Chromium named `chromium` and the package playwright. Draws with one seed, so that pictures can be made again.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
IDLE = "section[role=tabpanel]:not([hidden]) .log:not([aria-busy])"
SETTINGS = {"temperature": 0.8, "max_tokens": 120, "seed": 1, "top_k": 40}
SIZE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


def main(address: str, folder: Path, prompt: str = "The history of") -> None:
    """Write page-NAME.png for five views."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        chromium = tool.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = chromium.new_context(viewport=SIZE, color_scheme="light").new_page()
        page.goto(address)
        page.evaluate(f"localStorage.setItem('mini-llm-settings', {json.dumps(json.dumps(SETTINGS))})")
        page.reload()
        page.wait_for_selector("#model option", state="attached")
        page.click("#tab-complete")
        page.fill("#complete-field", prompt)
        page.press("#complete-field", "Enter")
        page.wait_for_selector("#panel-complete article.assistant >> text=Look inside")
        page.wait_for_selector(IDLE)
        page.screenshot(path=folder / "page-complete.png")
        page.click("#panel-complete >> text=Look inside")
        page.click("#panel-look .token[data-n='9']")
        page.screenshot(path=folder / "page-look-inside.png")
        page.click("#panel-look .detail >> text=Layers")
        page.wait_for_selector("#panel-layers .lens")
        page.screenshot(path=folder / "page-layers.png")
        page.emulate_media(color_scheme="dark")
        page.click("#tab-learn")
        page.wait_for_selector("figure svg")
        page.screenshot(path=folder / "page-learn-dark.png")
        page.set_viewport_size(PHONE)
        page.click("#tab-read")
        page.fill("#read-field", f"{prompt} the city is the history of its water.")
        page.click("#panel-read button.main")
        page.wait_for_selector("#panel-read ol")
        page.screenshot(path=folder / "page-read-phone.png")
        chromium.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:4])
