"""The page in a real Chromium: every tab, hostile texts, the keyboard; nothing in the console, no request elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_server import RunningServer, StartServer

playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: pip install playwright")

SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}
TABS = ["chat", "complete", "look", "read", "layers", "learn"]
HOSTILE = [
    "<script>document.title = 'owned'</script>", "<img src=x onerror=\"document.title='owned'\">",
    "</textarea><svg onload=document.title='owned'>", "javascript:document.title='owned'",
    "[x](javascript:document.title='owned')", "![x](http://elsewhere.invalid/x.png)", "\u202eabc\u2066",
    "{{7*7}} ${7*7}",
    "<style>body{display:none}</style>", "&lt;b&gt;\x1b[31m",
]  # fmt: skip
IDLE = "section[role=tabpanel]:not([hidden]) .log:not([aria-busy])"


@pytest.fixture(params=[("desktop", "light"), ("phone", "dark")], ids=lambda pair: "-".join(pair))
def page(request: pytest.FixtureRequest, browser: playwright.Browser, server: RunningServer) -> Iterator:
    size, theme = request.param
    context = browser.new_context(viewport=SIZES[size], color_scheme=theme)
    page = context.new_page()
    page.set_default_timeout(15_000)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda problem: said.append(str(problem)))
    page.on("request", lambda one: asked.append(one.url))
    page.goto(server.address)
    page.wait_for_selector("#model option", state="attached")
    yield page
    context.close()
    assert said == []
    assert {url for url in asked if not url.startswith((server.address, "data:", "blob:"))} == set()


def flaws(page: playwright.Page) -> list[str]:
    """Return what axe finds that keeps people out."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found]


def complete(page: playwright.Page, text: str, n: int = 24) -> None:
    page.evaluate(f"localStorage.setItem('mini-llm-settings', '{json.dumps({'max_tokens': n, 'seed': 3})}')")
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    page.click("#tab-complete")
    page.fill("#complete-field", text)
    page.press("#complete-field", "Enter")
    page.wait_for_selector("#panel-complete article.assistant >> text=Regenerate")
    page.wait_for_selector("#panel-complete article.assistant >> text=the most tokens")
    page.wait_for_selector(IDLE)


def test_a_text_is_written_regenerated_continued_edited_and_kept(page: playwright.Page):
    complete(page, "The city of")
    first = page.text_content("article.assistant .text")
    assert first

    page.click("#panel-complete >> text=Regenerate")
    page.wait_for_selector(".branches >> text=2/2")
    page.wait_for_selector("#panel-complete article.assistant >> text=the most tokens")
    assert page.text_content("article.assistant .text") == first  # the same seed
    page.click("#panel-complete >> text=Continue")
    page.wait_for_timeout(200)
    page.wait_for_selector(IDLE)
    assert len(page.text_content("article.assistant .text")) > len(first)
    page.click("[aria-label='Earlier branch']")
    assert page.text_content("article.assistant .text") == first
    page.click("article.user >> text=Edit")
    page.fill("article textarea", "The town of")
    page.click("text=Keep as a new branch")
    page.wait_for_selector("article.user .branches >> text=2/2")
    page.wait_for_selector("#panel-complete article.assistant >> text=the most tokens")
    page.reload()
    page.click("#tab-complete")
    page.wait_for_selector("article.user >> text=The town of")


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_are_texts(page: playwright.Page, text: str):
    complete(page, text, n=2)
    assert page.text_content("article.user .text") == text
    page.click("#tab-read")
    page.fill("#read-field", text)
    page.click("#panel-read button.main")
    page.wait_for_selector("#panel-read .cuts")
    page.click("#tab-layers")
    page.fill("#layers-field", text)
    page.click("text=Take apart")
    page.wait_for_selector(".lens")
    assert "owned" not in page.title()
    assert page.locator("main script, main img, main style, main a").count() == 0


def test_a_token_is_explained_and_replaced_by_ids(page: playwright.Page):
    complete(page, "The city of")
    page.click("#panel-complete >> text=Look inside")
    tokens = page.locator("#panel-look .tokens .token")
    assert tokens.count() == 24
    before = [tokens.nth(n).text_content() for n in range(5)]
    tokens.nth(5).focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert "The dart fell at" in page.inner_text("#panel-look .detail")
    assert "Probability in the model" in page.inner_text("#panel-look .detail")
    row = page.locator("#panel-look tbody tr:not(.chosen)").first
    other = row.locator("td").nth(1).inner_text()
    row.locator("text=Take").click()
    page.wait_for_selector("#panel-look >> text=The answer, 29 tokens")
    assert flaws(page) == []
    assert [tokens.nth(n).text_content() for n in range(4)] == before[:4]
    assert other.strip("␣↵") in (tokens.nth(4).text_content() or "")
    page.click("#tab-complete")
    page.wait_for_selector(".branches >> text=2/2")


def test_each_tab_opens_by_keyboard(page: playwright.Page):
    page.focus("#tab-chat")
    page.click("#tab-chat")
    for name in [*TABS[1:], TABS[0]]:
        page.keyboard.press("ArrowRight")
        page.wait_for_selector(f"#panel-{name}:not([hidden])")
        assert page.locator("[role=tabpanel]:not([hidden])").count() == 1
        assert flaws(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"


def test_reading_and_layers(page: playwright.Page):
    page.click("#tab-read")
    page.fill("#read-field", "The city of the north")
    page.click("#panel-read button.main")
    page.wait_for_selector("#panel-read >> text=bits per byte")
    page.click("#panel-read ol button >> nth=0")
    page.click("#panel-read .detail >> text=Layers")
    page.wait_for_selector("#panel-layers >> text=Rank of it")
    assert page.locator(".lens tbody tr").count() == 2
    assert page.locator(".grid tbody td").count() == 2 * 4
    assert flaws(page) == []


def test_conversations_go_out_and_come_back(page: playwright.Page, tmp_path: Path):
    complete(page, "The city of", n=4)
    side = page.locator("#panel-complete .side")
    if side.get_attribute("open") is None:
        side.locator("summary").click()
    with page.expect_download() as saving:
        side.locator("text=Export").click()
    file = tmp_path / "all.json"
    saving.value.save_as(file)
    side.locator("[aria-label^=Delete]").click()
    assert side.locator("li").count() == 0
    side.locator("input[type=file]").set_input_files(file)
    page.wait_for_selector("#notice >> text=1 imported")
    file.write_text("{}")
    side.locator("input[type=file]").set_input_files(file)
    page.wait_for_selector("#notice >> text=nothing was imported")


def test_a_deleted_conversation_comes_back_by_one_key(page: playwright.Page):
    complete(page, "The city of", n=4)
    page.wait_for_selector("#panel-complete .log:not([aria-busy])")
    kept = page.locator("#panel-complete .conversations li")
    texts = page.locator("#panel-complete article .text")
    before = texts.all_text_contents()
    side = page.locator("#panel-complete .side")
    if side.get_attribute("open") is None:
        side.locator("summary").click()
    side.locator("[aria-label^=Delete]").press("Enter")
    assert kept.count() == 0
    assert page.locator("#panel-complete article").count() == 0
    assert page.locator("#notice").inner_text().startswith("Deleted: The city of")
    assert flaws(page) == []
    page.keyboard.press("Enter")  # Undo has the focus
    assert texts.all_text_contents() == before
    assert page.locator("#notice").is_hidden()
    assert page.evaluate("document.activeElement.textContent") == "The city of"
    page.reload()
    page.click("#tab-complete")
    assert kept.count() == 1
    if side.get_attribute("open") is None:
        side.locator("summary").click()
    side.locator("[aria-label^=Delete]").click()
    page.click("#notice >> text=Dismiss")
    page.reload()
    page.click("#tab-complete")
    assert kept.count() == 0


def test_an_undone_deletion_is_undone_in_every_tab_and_takes_no_view_away(page: playwright.Page):
    complete(page, "The city of", n=4)
    page.wait_for_selector("#panel-complete .log:not([aria-busy])")
    page.wait_for_timeout(400)  # it is kept 200 ms after the last change
    other = page.context.new_page()
    other.goto(page.url)
    other.click("#tab-complete")
    there = other.locator("#panel-complete .conversations li")
    playwright.expect(there).to_have_count(1)
    page.evaluate("document.querySelector('#panel-complete .side').open = true")
    page.click("#panel-complete [aria-label^=Delete]")
    playwright.expect(there).to_have_count(0)
    page.fill("#complete-field", "Of the north")
    page.press("#complete-field", "Enter")
    page.wait_for_selector("#panel-complete article.user >> text=Of the north")
    page.wait_for_selector("#panel-complete .log:not([aria-busy])")
    page.click("#notice >> text=Undo")
    playwright.expect(there).to_have_count(2)
    assert page.locator("#panel-complete article.user .text").all_inner_texts() == ["Of the north"]
    titles = page.locator("#panel-complete .conversations li button:first-child").all_inner_texts()
    assert titles == ["Of the north", "The city of"]
    other.close()


def begin(page: playwright.Page, text: str, n: int) -> None:
    page.evaluate(f"localStorage.setItem('mini-llm-settings', '{json.dumps({'max_tokens': n, 'seed': 3})}')")
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    page.click("#tab-complete")
    page.fill("#complete-field", text)
    page.press("#complete-field", "Enter")


@pytest.fixture
def fresh(browser: playwright.Browser) -> Iterator:
    """Return a page that is nowhere yet."""
    page = browser.new_page()
    page.set_default_timeout(20_000)
    yield page
    page.close()


def test_a_server_that_was_killed_comes_back(fresh: playwright.Page, start_server: StartServer, model_folder: Path):
    server = start_server(model_folder)
    fresh.goto(server.address)
    fresh.wait_for_selector("#model option", state="attached")
    server.process.kill()
    server.process.wait()
    fresh.click("#tab-complete")
    fresh.fill("#complete-field", "The city of")
    fresh.press("#complete-field", "Enter")
    fresh.wait_for_selector("article.assistant [role=alert] >> text=Retry")
    fresh.wait_for_selector("#notice >> text=The server is gone. Looking for it")
    assert fresh.text_content("article.user .text") == "The city of"
    start_server(model_folder, "--port", server.port)
    fresh.wait_for_selector("#notice", state="hidden")  # found without being asked for
    fresh.click("article.assistant [role=alert] >> text=Retry")
    fresh.locator("article.assistant .text", has_text=re.compile(r"\S")).wait_for()
    fresh.wait_for_selector("#panel-complete article.assistant >> text=Regenerate")


def test_what_is_stopped_is_kept_and_goes_on(fresh: playwright.Page, busy_server: RunningServer):
    fresh.goto(busy_server.address)
    begin(fresh, "The city of", 50_000)
    fresh.locator("article.assistant .text", has_text="e").wait_for()
    fresh.press("#complete-field", "Escape")
    fresh.wait_for_selector("article.assistant >> text=stopped")
    fresh.wait_for_selector("#panel-complete article.assistant >> text=Continue")
    assert fresh.text_content("article.assistant .text")
    busy_server.wait_for("requests_running", 0)


def test_a_queue_tells_how_many_go_first(fresh: playwright.Page, start_server: StartServer, endless_folder: Path):
    server = start_server(endless_folder, "--slots", 1)
    body = {"prompt": "x", "max_tokens": 90_000, "stream": True}
    with server.client.stream("POST", "/v1/completions", json=body) as others:
        parts = others.iter_bytes()  # held: without it httpx closes the stream
        next(parts)
        fresh.goto(server.address)
        begin(fresh, "The city of", 4)
        fresh.wait_for_selector("#panel-complete .status >> text=before you")
    fresh.wait_for_selector("article.assistant >> text=the most tokens")


def test_a_full_context_is_told(fresh: playwright.Page, server: RunningServer):
    fresh.goto(server.address)
    begin(fresh, "The city of", 5000)
    fresh.wait_for_selector("article.assistant >> text=the context is full")


def test_a_key_is_asked_for(fresh: playwright.Page, start_server: StartServer, model_folder: Path):
    server = start_server(model_folder, env={"MINI_LLM_API_KEY": "open sesame"})
    fresh.goto(server.address)
    fresh.fill("#key", "open sesame")
    fresh.press("#key", "Enter")
    fresh.wait_for_selector("#model option", state="attached")
    begin(fresh, "The city of", 4)
    fresh.wait_for_selector("article.assistant >> text=the most tokens")
