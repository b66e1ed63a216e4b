"""The page while something else goes on: its run trains, a second tab is open, an answer that ended goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_server import RunningServer, StartServer, write_model

from mini_llm.pointers import write_pointer
from mini_llm.tokenizer.tokenizer import Tokenizer

HELD_OUT = "#panel-learn figure >> nth=0 >> text=held out {loss} at step {step}"


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    """Return a browser of one person."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(40_000)
    yield context
    context.close()


def opened(context: Any, server: RunningServer) -> Any:
    page = context.new_page()
    page.goto(server.address)
    page.wait_for_selector("#model option", state="attached")
    page.click("#tab-complete")
    page.evaluate("for (const one of document.querySelectorAll('#panel-complete details')) one.open = true")
    return page


def write(page: Any, text: str) -> None:
    page.fill("#complete-max_tokens", "4")
    page.fill("#complete-field", text)
    page.press("#complete-field", "Enter")
    page.wait_for_selector("#panel-complete article.assistant >> text=the most tokens")
    page.wait_for_selector("#panel-complete .log:not([aria-busy])")
    page.wait_for_timeout(400)  # it is kept 200 ms after the last change


def titles(page: Any) -> list[str]:
    return page.locator("#panel-complete .conversations li button:first-child").all_inner_texts()


def test_two_tabs_keep_what_both_wrote_and_forget_what_one_deleted(context: Any, server: RunningServer):
    first, second = opened(context, server), opened(context, server)
    write(first, "The one")
    write(second, "The other")
    first.wait_for_selector("#panel-complete .conversations >> text=The other")
    assert titles(first) == titles(second) == ["The other", "The one"]
    second.click("#panel-complete .conversations >> text=The one")
    write(first, "And more")  # in the conversation that the second tab looks at
    second.wait_for_selector("#panel-complete article.user >> text=And more")
    first.click("[aria-label='Delete The other']")
    second.wait_for_selector("#panel-complete .conversations >> text=The other", state="detached")
    write(second, "And again")
    third = opened(context, server)
    assert titles(third) == ["The one"]
    third.wait_for_selector("#panel-complete article.user .text >> text=And again", state="attached")


@pytest.fixture
def run(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """Return a run that is at step 20, and has not been measured there yet."""
    folder = write_model(tmp_path / "study" / "checkpoints" / "step-00000010", tokenizer)
    write_pointer(folder.parent.parent / "latest", folder)
    add(folder.parent.parent, *({"step": n, "loss": 6 - n / 10} for n in range(1, 21)), {"step": 10, "val_loss": 5.0})
    return folder.parent.parent


def add(run: Path, *rows: dict[str, float], mode: str = "a") -> None:
    with (run / "metrics.jsonl").open(mode) as file:
        file.write("".join(json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["step"])))


def test_a_run_is_followed_as_it_is_measured_rests_and_is_set_back(context: Any, start_server: StartServer, run: Path):
    server = start_server(run)
    page = context.new_page()
    page.clock.install()
    page.goto(server.address)
    page.wait_for_selector("#model option", state="attached")
    page.click("#tab-learn")
    page.wait_for_selector(HELD_OUT.format(loss="5.000", step=10))
    add(run, {"step": 20, "val_loss": 4.5})  # seconds after the line with the step's own loss
    page.clock.fast_forward(4_000)
    page.wait_for_selector(HELD_OUT.format(loss="4.500", step=20))
    long_ago = time.time() - 3600
    os.utime(run / "metrics.jsonl", (long_ago, long_ago))
    page.clock.fast_forward(4_000)
    page.wait_for_selector("#panel-learn >> text=training now", state="detached")
    add(run, {"step": 40, "val_loss": 4.0})  # it goes on after all
    page.clock.fast_forward(16_000)
    page.wait_for_selector(HELD_OUT.format(loss="4.000", step=40))
    add(run, {"step": 10, "val_loss": 5.0}, {"step": 11, "loss": 4.9}, mode="w")  # it goes on from step 10
    for _ in range(2):
        page.clock.fast_forward(16_000)
        page.wait_for_timeout(300)
    page.wait_for_selector(HELD_OUT.format(loss="5.000", step=10))


ENDED = """async () => {
  const { generate } = await import("/js/generate.js");
  const { Look } = await import("/js/look.js");
  const node = () => ({ parent: null, text: "a", promptIds: [1, 2], ids: [3, 0],
    inspect: [{ token: "a", bytes: [97], logprob: -1, top: [] }, { token: "</s>", bytes: [], logprob: -1, top: [] }] });
  let sent = null;
  window.fetch = async (_, options) => { sent = JSON.parse(options.body); return new Response("data: [DONE]\\n\\n"); };
  await generate("complete", node(), [], {}, { changed() {}, queued() {} });
  const counts = { shown: 0, written: 0, show() { this.shown += 1; }, write() { this.written += 1; } };
  const writer = { conversation: { nodes: [], chosen: {} }, ...counts };
  const look = new Look(() => {});
  look.show(writer, node());
  look.branch([3, 0], node().inspect, {}, true);
  look.branch([3], node().inspect.slice(0, 1));
  return [sent.prompt, writer.shown, writer.written, writer.conversation.nodes.map((one) => one.finish)];
}"""


def test_an_answer_goes_on_before_its_end_and_a_branch_to_the_end_ends(context: Any, server: RunningServer):
    page = opened(context, server)
    assert page.evaluate(ENDED) == [[1, 2, 3], 1, 1, ["stop", None]]
