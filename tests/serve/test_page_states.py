"""The page where the browser gives less: no room to keep anything, no leave to keep anything, no motion wanted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from running_server import OpenPage, RunningServer, StartServer

KEPT = "localStorage.getItem('mini-llm-conversations-1')"
FILL = """(room) => {
  for (let size = 2 ** 22; size >= 1; size /= 2) {
    for (let n = 0; ; n += 1) {
      try { localStorage.setItem(`filler-${size}-${n}`, "x".repeat(size)); } catch { break; }
    }
  }
  const fillers = Object.keys(localStorage).filter((name) => name.startsWith("filler-"));
  fillers.sort((a, b) => localStorage.getItem(a).length - localStorage.getItem(b).length);
  for (let free = 0; free < room; localStorage.removeItem(fillers.shift())) {
    free += localStorage.getItem(fillers[0]).length;
  }
}"""
SLIM = """() => {
  const name = "mini-llm-conversations-1";
  const all = JSON.parse(localStorage.getItem(name));
  for (const node of all.flatMap((one) => one.nodes)) delete node.inspect;
  localStorage.setItem(name, JSON.stringify(all));
}"""
FORBID = """for (const name of ["localStorage", "sessionStorage"]) {
  Object.defineProperty(window, name, { get() { throw new DOMException("forbidden", "SecurityError"); } });
}"""
MOVES = """() => [...document.querySelectorAll("*")].filter((one) => {
  const style = getComputedStyle(one);
  return style.animationName !== "none" || parseFloat(style.transitionDuration) > 0 || style.scrollBehavior !== "auto";
}).map((one) => one.outerHTML.slice(0, 80))"""


def write(page: Any, text: str, n: int) -> None:
    """Have n tokens written in Complete."""
    page.click("#tab-complete")
    page.evaluate("for (const one of document.querySelectorAll('#panel-complete details')) one.open = true")
    page.fill("#complete-max_tokens", str(n))
    page.fill("#complete-field", text)
    page.press("#complete-field", "Enter")
    page.wait_for_selector("#panel-complete article.assistant >> text=the most tokens")
    page.wait_for_selector("#panel-complete .log:not([aria-busy])")


def kept(page: Any) -> list[dict[str, Any]]:
    page.wait_for_timeout(400)  # it is kept 200 ms after the last change
    return list(json.loads(page.evaluate(KEPT) or "[]"))


def test_little_room_keeps_the_text_and_lets_the_rest_go(open_page: OpenPage, server: RunningServer):
    page = open_page(server)
    page.evaluate(FILL, 20_000)
    write(page, "The city of", 64)  # 2 kB a token with all that is known of it
    (conversation,) = kept(page)
    asked, answer = conversation["nodes"]
    assert asked["text"] == "The city of"
    assert answer["text"] == page.text_content("article.assistant .text")
    assert len(answer["ids"]) == 64
    assert not any("top" in entry for entry in answer.get("inspect", []))
    assert page.locator("#notice").is_hidden()
    page.click("#panel-complete >> text=Look inside")  # what this page has seen itself it still knows
    page.locator("#panel-look .tokens .token").nth(3).click()
    page.wait_for_selector("#panel-look .detail >> text=The dart fell at")


def test_a_full_storage_is_told_loses_nothing_and_is_used_again(open_page: OpenPage, server: RunningServer):
    page = open_page(server)
    write(page, "The first", 4)
    kept(page)
    page.evaluate(SLIM)
    page.evaluate(FILL, 0)
    before = kept(page)
    page.click("#panel-complete .side >> text=New")
    write(page, "The second", 64)
    page.wait_for_selector("#notice >> text=no room")
    assert kept(page) == before  # what was kept is whole
    assert page.locator("#panel-complete .conversations li").count() == 2
    with page.expect_download() as saving:
        page.click("#panel-complete .side >> text=Export")
    exported = json.loads(saving.value.path().read_text())["conversations"]
    assert [one["nodes"][0]["text"] for one in exported] == ["The second", "The first"]
    page.evaluate(
        "for (const name of Object.keys(localStorage)) if (name.startsWith('filler-')) localStorage.removeItem(name)"
    )
    page.click("#panel-complete >> text=Regenerate")
    page.wait_for_selector("#panel-complete .branches >> text=2/2")
    page.wait_for_selector("#notice", state="hidden")
    assert len(kept(page)) == 2


def test_a_browser_that_keeps_nothing_still_writes(open_page: OpenPage, start_server: StartServer, model_folder: Any):
    server = start_server(model_folder, env={"MINI_LLM_API_KEY": "open sesame"})
    page = browser_with_key(open_page, server)
    write(page, "The city of", 8)
    assert page.text_content("article.assistant .text")
    page.wait_for_selector("#notice >> text=or leave, to keep this")
    page.click("#panel-complete >> text=Regenerate")
    page.wait_for_selector("#panel-complete .branches >> text=2/2")


def browser_with_key(open_page: OpenPage, server: RunningServer) -> Any:
    """Open the page of a server that wants its key, in a browser that forbids storage, and give it."""
    give = """new MutationObserver(() => {
      const field = document.getElementById("key");
      if (!field || field.value) return;
      field.value = "open sesame";
      setTimeout(() => field.form.requestSubmit(), 50);
    }).observe(document, { childList: true, subtree: true });"""
    return open_page(server, FORBID + give)


@pytest.mark.parametrize("wish", ["reduce", "no-preference"])
def test_nothing_moves_where_no_motion_is_wanted(open_page: OpenPage, server: RunningServer, wish: str):
    page = open_page(server, reduced_motion=wish)
    write(page, "The city of", 8)
    page.click("#panel-complete >> text=Look inside")
    page.locator("#panel-look .tokens .token").nth(3).click()
    for tab in ("chat", "complete", "look", "read", "layers", "learn"):
        page.click(f"#tab-{tab}")
        assert page.evaluate("document.getAnimations().length") == 0
        assert page.evaluate(MOVES) == []
    # whatever moves one day must stand still for who asks for that
    page.evaluate("document.adoptedStyleSheets = [new CSSStyleSheet()]")
    page.evaluate(
        "document.adoptedStyleSheets[0].replaceSync('button { transition: color 1s } main { scroll-behavior: smooth }')"
    )
    assert (page.evaluate(MOVES) == []) == (wish == "reduce")
