"""Does the page stay smooth while an answer of 4,000 tokens comes in, each token explained, and when it is taken apart?

    python benchmarks/page.py [--quick] [--json]

A stub writes at full speed and at 400 tokens/s; Chromium, headless, software drawing. Goals: no frame above 50 ms, and
scripts below 5 % of the stream's time at 400 tokens/s.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _harness import finish, machine, table

STUB = Path(__file__).with_name("_page_stub.py")
SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
LIMIT = 50.0  # ms
WATCH = """() => {
  window.frames_seen = [];
  let last = 0;
  const tick = (now) => { if (last) frames_seen.push([now, now - last]); last = now; requestAnimationFrame(tick); };
  requestAnimationFrame(tick);
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="800 tokens, on a desktop's window alone")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    options = parser.parse_args()
    n = 800 if options.quick else 4000
    rows = []
    for size in ["desktop"] if options.quick else SIZES:
        for per_second in (0, 400):
            rows += measure(n, per_second, size)
    heads = ["window", "tokens/s", "what", "frames", "longest, ms", f"above {LIMIT:.0f} ms", "script"]
    print(table(heads, [[*map(str, row[:4]), f"{row[4]:.0f}", str(row[5]), f"{row[6]:.1%}"] for row in rows]))
    result = {"machine": machine(), "n_tokens": n, "rows": [dict(zip(heads, row, strict=True)) for row in rows]}
    finish("page", result, as_json=options.json, keep=not options.quick)


@contextlib.contextmanager
def stub(n: int, per_second: int) -> Iterator[str]:
    command = [sys.executable, str(STUB), str(n), str(per_second)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        assert process.stdin is not None
        process.stdin.close()


def measure(n: int, per_second: int, size: str) -> list[list[Any]]:
    """Have an answer written, continued, and taken apart; return a row for each."""
    from playwright.sync_api import sync_playwright

    if (chromium := shutil.which("chromium")) is None:
        sys.exit("there is no chromium here: apt-get install chromium")
    rows = []
    with stub(n, per_second) as address, sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport=SIZES[size])
        page.set_default_timeout(180_000)
        page.goto(address)
        settings = json.dumps({"max_tokens": n, "seed": 3})
        page.evaluate(f"localStorage.setItem('mini-llm-settings', '{settings}')")
        page.reload()
        page.wait_for_selector("#model option", state="attached")
        page.click("#tab-complete")
        page.fill("#complete-field", "We the people")
        tool_of = page.context.new_cdp_session(page)
        tool_of.send("Performance.enable")
        page.evaluate(WATCH)

        def script() -> float:
            found = tool_of.send("Performance.getMetrics")["metrics"]
            return float(next(one["value"] for one in found if one["name"] == "ScriptDuration"))

        def row(what: str, work: Any) -> None:
            since, before = page.evaluate("performance.now()"), script()
            work()
            page.wait_for_timeout(600)  # what is kept is kept by then
            now, spent = page.evaluate("performance.now()"), script() - before
            gaps = page.evaluate("(since) => frames_seen.filter((one) => one[0] >= since).map((one) => one[1])", since)
            long = sum(gap > LIMIT + 1 for gap in gaps)  # clocks are rounded
            rows.append([size, per_second or "all", what, len(gaps), max(gaps), long, 1000 * spent / (now - since)])

        def written() -> None:
            page.wait_for_selector("#panel-complete .log[aria-busy]", state="attached")
            page.wait_for_selector("#panel-complete .log:not([aria-busy])")

        def look() -> None:
            page.click("#panel-complete >> text=Look inside")
            page.wait_for_selector(f"#panel-look .tokens .token[data-n='{n - 1}']", state="attached")

        def pick() -> None:
            page.locator("#panel-look .tokens .token").nth(n // 2).click()
            for key in ("ArrowDown", "ArrowRight", "Enter", "End"):
                page.keyboard.press(key)

        row(f"{n} tokens", lambda: (page.press("#complete-field", "Enter"), written()))
        row("look inside", look)
        row("choose tokens", pick)
        page.click("#tab-complete")
        row(f"{n} more", lambda: (page.click("article.assistant >> text=Continue"), written()))
        browser.close()
    return rows


if __name__ == "__main__":
    main()
