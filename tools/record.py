"""A recording of a terminal: run a command in tmux, keep its screens, write one animated SVG that any browser plays.

python tools/record.py docs/pictures/demo.svg "mini-llm demo"
"""

from __future__ import annotations

import argparse
import io
import re
import shlex
import subprocess
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

SESSION = "mini-llm-recording"
LAST_PAGE = 12  # times as long as the others: the end is what is read


def main() -> None:
    """Record the command given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("command")
    parser.add_argument("--columns", type=int, default=110)
    parser.add_argument("--lines", type=int, default=26)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two looks at the screen")
    parser.add_argument("--frames", type=int, default=40, help="screens to keep, spread evenly")
    parser.add_argument("--seconds", type=float, default=0.35, help="how long the recording shows each")
    options = parser.parse_args()
    screens = record(options.command, options.columns, options.lines, options.every)
    kept = [screens[i * (len(screens) - 1) // max(1, options.frames - 1)] for i in range(options.frames)]
    kept = [screen for i, screen in enumerate(kept) if i == 0 or screen != kept[i - 1]]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(animated_svg(kept, options.columns, options.command, options.seconds), encoding="utf-8")


def record(command: str, columns: int, lines: int, every: float) -> list[str]:
    """Return the screens, as text with ANSI colours, that differ from the one before."""
    tmux("new-session", "-d", "-s", SESSION, "-x", str(columns), "-y", str(lines), "cat")
    tmux("set-option", "-t", SESSION, "remain-on-exit", "on")
    tmux("respawn-pane", "-k", "-t", SESSION, f"printf '$ %s\\n' {shlex.quote(command)}; {command}")
    screens: list[str] = []
    is_running = True
    while is_running:
        time.sleep(every)
        is_running = tmux("display-message", "-p", "-t", SESSION, "#{pane_dead}").strip() == "0"
        screen = re.sub(r"\n*Pane is dead.*", "", tmux("capture-pane", "-e", "-p", "-t", SESSION)).rstrip()
        if screen and (not screens or screen != screens[-1]):
            screens.append(screen)
    tmux("kill-session", "-t", SESSION)
    return screens


def tmux(*words: str) -> str:
    """Run a tmux command and return what it prints."""
    return subprocess.run(["tmux", *words], check=True, capture_output=True, text=True).stdout


def animated_svg(screens: list[str], columns: int, title: str, seconds: float) -> str:
    """Return one SVG that shows the screens in turn, the last one for longer, and then begins anew."""
    lines = max(screen.count("\n") + 1 for screen in screens)
    pages = [svg_of(screen, columns, lines, title, f"page{number}") for number, screen in enumerate(screens)]
    total = seconds * (len(pages) - 1 + LAST_PAGE)
    rules, groups = [], []
    for number, page in enumerate(pages):
        is_last = number == len(pages) - 1
        appears, goes = (100 * seconds * n / total for n in (number, number + 1))
        steps = f"0% {{opacity:0}} {appears:.3f}% {{opacity:1}}" + ("" if is_last else f" {goes:.3f}% {{opacity:0}}")
        rules.append(f"@keyframes show{number} {{{steps}}}")
        rules.append(f".show{number} {{opacity:{int(is_last)}; animation:show{number} {total:.2f}s step-end infinite}}")
        groups.append(f'<g class="show{number}">{page}</g>')
    size = re.search(r'viewBox="[^"]*"', pages[-1])
    assert size, "an SVG says how large it is"
    style = "<style>" + "\n".join(rules) + "</style>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" {size[0]}>{style}{"".join(groups)}</svg>\n'


def svg_of(screen: str, columns: int, lines: int, title: str, name: str) -> str:
    """Return rich's SVG of one screen, without fonts from elsewhere."""
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(screen + "\n" * (lines - 1 - screen.count("\n")), no_wrap=True), end="")
    page = console.export_svg(title=title, unique_id=name)
    page = re.sub(r"@font-face \{.*?\}|<!--.*?-->|\s*<text[^>]*>\s*</text>", "", page, flags=re.DOTALL)
    return re.sub(r"\n\s*", "\n", page)


if __name__ == "__main__":
    main()
