"""Pictures of the page: a run is served, a browser does what a reader would, and its window is kept.

python tools/page_pictures.py runs/demo/run docs/pictures
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
PROMPT = "Fellow citizens, the state of our Union is"


def write(page: Page) -> None:
    """Let the model go on from the prompt."""
    page.click("#tab-complete")
    page.fill("#complete-field", PROMPT)
    page.press("#complete-field", "Enter")
    page.wait_for_selector("#panel-complete article.assistant >> text=Regenerate")
    page.wait_for_selector("#panel-complete .log:not([aria-busy])")


def look(page: Page) -> None:
    """Open the answer's tokens, and one of them."""
    page.click("#panel-complete >> text=Look inside")
    page.locator("#panel-look .tokens .token").nth(6).click()
    page.wait_for_selector("#panel-look .detail >> text=dart")


def layers(page: Page) -> None:
    """Take the end of the prompt apart."""
    page.click("#tab-layers")
    page.fill("#layers-field", PROMPT)
    page.click("text=Take apart")
    page.wait_for_selector(".lens")


def read(page: Page) -> None:
    """Read a sentence through the model's eyes."""
    page.click("#tab-read")
    page.fill("#read-field", "We must build roads and railways, and a union of free people that no tyrant can divide.")
    page.click("#panel-read button.main")
    page.wait_for_selector("#panel-read >> text=bits per byte")


def learn(page: Page) -> None:
    """Show how it learned."""
    page.click("#tab-learn")
    page.wait_for_timeout(1500)


def main() -> None:
    """Take five pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    command = [sys.executable, "-m", "mini_llm", "serve", args.run, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as tool:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        browser = tool.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        views = [("complete", write, DESKTOP, "light"), ("look", look, DESKTOP, "light"),
                 ("layers", layers, DESKTOP, "dark"), ("read", read, PHONE, "light"),
                 ("learn", learn, DESKTOP, "dark")]  # fmt: skip
        page = browser.new_page(viewport=DESKTOP)
        page.goto(address)
        page.wait_for_selector("#model option", state="attached")
        for name, act, size, theme in views:
            page.set_viewport_size(size)
            page.emulate_media(color_scheme=theme)
            act(page)
            page.wait_for_timeout(300)
            page.screenshot(path=args.out / f"page-{name}.png")
        browser.close()
        server.terminate()


if __name__ == "__main__":
    main()
