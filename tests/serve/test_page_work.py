"""What the page does for an answer of 4,000 tokens, counted and not timed: a late frame does no more than an early one.

A stub serves the page and writes at full speed; `benchmarks/page.py` times the same.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

N = 4000
A_FRAME = 300  # elements that the page makes in a frame, dom.js
SETTINGS = f"localStorage.setItem('mini-llm-settings', '{{\"max_tokens\": {N}, \"seed\": 3}}')"
COUNT = """(what) => {
  const work = { frames: 0, batches: 0, records: 0, removed: 0, rewritten: 0, attributes: 0, most_batches: 0,
    most_added: 0 };
  let batches = 0;
  let added = 0;
  const observer = new MutationObserver((records) => {
    batches += 1;
    work.batches += 1;
    work.records += records.length;
    for (const one of records) {
      added += one.addedNodes.length;
      work.removed += one.removedNodes.length;
      if (one.type === "attributes") work.attributes += 1;
      if (one.type === "characterData" && !one.target.data.startsWith(one.oldValue)) work.rewritten += 1;
    }
  });
  observer.observe(document.querySelector(what), { subtree: true, childList: true, characterData: true,
    characterDataOldValue: true, attributes: true });
  const frame = () => {
    work.frames += 1;
    work.most_batches = Math.max(work.most_batches, batches);
    work.most_added = Math.max(work.most_added, added);
    batches = added = 0;
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
  window.work = work;
}"""
COUNT_TEXT = """() => {
  const groups = document.querySelectorAll("#panel-complete article.assistant .text > div");
  const lines = [...groups].flatMap((group) => [...group.children]);
  return { lines: lines.length, groups: groups.length, text: lines.map((line) => line.textContent).join(""),
    longest: Math.max(...lines.map((line) => line.firstChild.length)),
    nodes: Math.max(...lines.map((line) => line.childNodes.length)) };
}"""
LOG = "document.querySelector('#panel-complete .log')"
FROM_THE_END = f"{LOG}.scrollHeight - {LOG}.scrollTop - {LOG}.clientHeight"  # pixels


@contextlib.contextmanager
def serving(repository: Path, per_second: int) -> Iterator[str]:
    """Yield the address of a stub that writes so fast; 0: as fast as it is read."""
    command = [sys.executable, str(repository / "benchmarks" / "_page_stub.py"), str(N), str(per_second)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def stub(repository: Path) -> Iterator[str]:
    with serving(repository, 0) as address:
        yield address


@pytest.fixture
def page(browser: Any, stub: str) -> Iterator[Any]:
    """Return the page, where the next answer has 4,000 tokens and what is done in the conversation is counted."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(60_000)
    problems: list[str] = []
    page.on("pageerror", lambda problem: problems.append(str(problem)))
    open_page(page, stub)
    yield page
    page.close()
    assert problems == []


def open_page(page: Any, address: str) -> None:
    page.goto(address)
    page.evaluate(SETTINGS)
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    page.click("#tab-complete")


@contextlib.contextmanager
def writing(page: Any) -> Iterator[None]:
    """Have an answer written, whose first token waits for what is done inside."""
    held: list[Any] = []
    page.route("**/v1/completions", lambda route: held.append(route), times=1)
    page.fill("#complete-field", "We the people")
    page.press("#complete-field", "Enter")
    page.wait_for_selector("#panel-complete .log[aria-busy]", state="attached")
    while not held:
        page.wait_for_timeout(10)
    yield
    held[0].continue_()


def write(page: Any) -> None:
    """Have an answer written."""
    with writing(page):
        pass


def until_written(page: Any) -> None:
    page.wait_for_selector("#panel-complete .log:not([aria-busy])")
    page.wait_for_selector("#panel-complete article.assistant >> text=Look inside")


def test_a_stream_is_drawn_once_a_frame_and_nothing_is_drawn_twice(page: Any):
    with writing(page):
        page.evaluate(COUNT, "#panel-complete article.assistant .text")
        page.evaluate("window.said = 0; new MutationObserver(() => { said += 1; }).observe(live, { childList: true })")
    until_written(page)
    work, found = page.evaluate("work"), page.evaluate(COUNT_TEXT)
    assert found["text"].count(" ") >= N
    assert work["most_batches"] <= 2  # the end need not wait for its frame
    assert work["batches"] <= work["frames"] + 2
    assert work["removed"] == work["rewritten"] == 0
    assert work["records"] <= 2 * (work["batches"] + found["lines"])
    assert page.evaluate("said") <= work["frames"] + 2
    # what grows is a line, not the text; and what is laid out and painted together is as long as a window
    assert found["nodes"] == 1
    assert found["longest"] < len(found["text"]) / 20
    assert found["lines"] > 20
    assert len(found["text"]) / 4000 < found["groups"] < len(found["text"]) / 1000


def test_an_answer_is_read_aloud_sentence_by_sentence(page: Any):
    """What a screen reader is given: all of the text, once, in whole sentences but for the last words."""
    with writing(page):
        page.evaluate(
            "window.spoken = []; new MutationObserver((records) => spoken.push(...records.flatMap("
            "(one) => [...one.addedNodes].map((node) => node.data)))).observe(live, { childList: true })"
        )
    until_written(page)
    spoken = page.evaluate("spoken")
    assert len(spoken) > 5
    assert "".join(spoken) == page.evaluate(COUNT_TEXT)["text"]
    assert all(part.endswith((".", "\n")) for part in spoken[:-1])


def test_who_has_scrolled_up_is_left_there(page: Any, repository: Path):
    with serving(repository, 800) as address:
        open_page(page, address)
        write(page)
        page.wait_for_function(f"{LOG}.scrollHeight > 3000")
        page.wait_for_function(f"{FROM_THE_END} < 40")  # it follows, also when what is out of view gets its true height
        page.set_viewport_size({"width": 1280, "height": 500})
        page.wait_for_function(f"{FROM_THE_END} < 40")
        page.evaluate(f"{LOG}.scrollTop = 500")
        before = page.evaluate(f"{LOG}.scrollHeight")
        page.wait_for_function(f"{LOG}.scrollHeight > {before} + 500")
        assert page.evaluate(f"{LOG}.scrollTop") == 500
        page.evaluate(f"{LOG}.scrollTop = {LOG}.scrollHeight")  # who comes back follows again
        before = page.evaluate(f"{LOG}.scrollHeight")
        page.wait_for_function(f"{LOG}.scrollHeight > {before} + 500 && {FROM_THE_END} < 40")
        assert page.locator("#panel-complete .log[aria-busy]").count() == 1
        page.press("#complete-field", "Escape")


def test_the_tokens_of_a_long_answer_come_a_few_a_frame(page: Any):
    write(page)
    until_written(page)
    page.evaluate(COUNT, "#panel-look")
    page.click("#panel-complete >> text=Look inside")
    page.wait_for_selector(f"#panel-look .tokens .token[data-n='{N - 1}']", state="attached")
    assert page.locator("#panel-look .tokens .token").count() == N
    assert page.evaluate("work.most_added") < 2 * A_FRAME + 100  # two batches may meet in one frame
    page.evaluate(COUNT, "#panel-look .tokens")
    page.locator("#panel-look .tokens .token").nth(N // 2).click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel-look .detail >> text=The dart fell at")
    assert page.locator("#panel-look .tokens .token[aria-current]").count() == 1
    assert page.locator("#panel-look .tokens .token[tabindex='0']").count() == 1
    assert 0 < page.evaluate("work.attributes") < 20
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.dataset.n") == str(N - 1)


def test_what_is_kept_of_long_answers_has_a_bound(page: Any):
    for _ in range(3):
        write(page)
        until_written(page)
    page.wait_for_timeout(300)  # it is kept 200 ms after the last change
    kept = page.evaluate("localStorage.getItem('mini-llm-conversations-1')")
    assert 3 * N * 5 < len(kept) < 2_500_000
    nodes = page.evaluate("JSON.parse(localStorage.getItem('mini-llm-conversations-1'))[0].nodes")
    answers = [node for node in nodes if node["role"] == "assistant"]
    assert [len(node["ids"]) for node in answers] == [N, N, N]
    assert [len(node.get("inspect", [])) for node in answers] == [0, 0, N]  # the newest stays explained
    assert page.locator("#notice").is_hidden()
