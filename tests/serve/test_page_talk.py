"""The page from the first look on: what it says before, while and after something is written, and when it cannot be."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from running_server import OpenPage, RunningServer, StartServer

playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: pip install playwright")

SETTINGS = "localStorage.setItem('mini-llm-settings', '{}')"

BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def having(**settings: object) -> str:
    """Return the script by which the page begins with these settings, if it has none yet."""
    return f"if (!localStorage.getItem('mini-llm-settings')) {SETTINGS.format(json.dumps(settings))}"


def write(page: Any, text: str, kind: str) -> None:
    """Send a text, and wait until it is answered."""
    page.fill(f"#{kind}-field", text)
    page.press(f"#{kind}-field", "Enter")
    page.wait_for_selector(f"#panel-{kind} article.user >> text={text}")
    page.wait_for_selector(f"#panel-{kind} .log:not([aria-busy])")


def test_a_chat_tells_its_context_and_its_speed(open_page: OpenPage, server: RunningServer) -> None:
    page = open_page(server, having(max_tokens=20, seed=5, system="Be short"))
    asked: list[dict] = []
    page.on("request", lambda one: one.url.endswith("/chat/completions") and asked.append(one.post_data_json))
    page.click("#tab-chat")
    status = page.locator("#panel-chat .status")
    messages = [{"role": "system", "content": "Be short"}]
    for text in ("Where is the city?", "And the sea?"):
        write(page, text, "chat")
        messages.append({"role": "user", "content": text})
        assert asked[-1]["messages"] == messages
        said = server.ask("/v1/chat/completions", messages=messages, seed=5, temperature=0.8, max_tokens=20)
        used = said["usage"]["total_tokens"]
        shown = rf"^context {used} of 512 tokens · [1-9]\d* tokens/s · first after \d+ ms · seed 5$"
        playwright.expect(status).to_have_text(re.compile(shown))
        answer = page.locator("#panel-chat article.assistant .text").last.text_content()
        assert answer == said["choices"][0]["message"]["content"]
        messages.append({"role": "assistant", "content": answer})


def test_while_a_text_grows_so_does_the_context_that_it_uses(open_page: OpenPage, busy_server: RunningServer) -> None:
    page = open_page(busy_server, having(max_tokens=50_000, seed=5))
    page.click("#tab-chat")
    page.fill("#chat-field", "Hello")
    page.press("#chat-field", "Enter")
    status = page.locator("#panel-chat .status")
    playwright.expect(status).to_have_text(re.compile(r"context \d+ of 100000 tokens · [1-9]\d* tokens/s"))
    first = int(status.inner_text().split()[1])
    playwright.expect(status).not_to_have_text(re.compile(rf"^context {first} "))
    assert int(status.inner_text().split()[1]) > first
    page.click("#panel-chat .composer >> text=Stop")
    busy_server.wait_for("requests_running", 0)


def card(page: Any, **values: object) -> None:
    """Open the page anew with another card of the model, after a look at what it says before that comes."""
    held: list[Any] = []
    page.route("**/run", lambda route: held.append(route))
    page.reload()
    page.wait_for_selector("#panel-chat >> text=Loading the model")
    (route,) = held
    route.fulfill(json={**route.fetch().json(), **values})


def test_before_anything_is_written(open_page: OpenPage, server: RunningServer) -> None:
    page = open_page(server)
    card(page, learnt_dialogue=True, prompts=["The first words", "Of others"])
    page.wait_for_selector("#panel-chat >> text=/tiny · .* parameters · context 512/")
    assert page.locator("#panel-chat >> text=Loading the model").count() == 0
    assert page.locator("#panel-chat .warn").count() == 0
    page.click("#panel-chat button.prompt >> text=Of others")
    assert page.input_value("#chat-field") == "Of others"


def test_a_base_model_completes_and_says_so(open_page: OpenPage, server: RunningServer) -> None:
    page = open_page(server)
    card(page, learnt_dialogue=False)
    page.wait_for_selector("#panel-complete .warn >> text=it has learnt no dialogue")  # the tab it opens with
    page.click("#tab-chat")
    page.wait_for_selector("#panel-chat .warn >> text=Complete suits it better")


@pytest.mark.parametrize("kind", ["chat", "complete"])
def test_an_edited_answer_is_a_branch_that_goes_on_where_it_ends(
    open_page: OpenPage, server: RunningServer, kind: str
) -> None:
    page = open_page(server, having(max_tokens=4, seed=5))
    asked: list[dict] = []
    page.on("request", lambda one: one.url.endswith("/completions") and asked.append(one.post_data_json))
    page.click(f"#tab-{kind}")
    write(page, "The city", kind)
    page.click(f"#panel-{kind} article.assistant >> text=Edit")
    page.fill(f"#panel-{kind} article textarea", " of the north")
    page.click(f"#panel-{kind} >> text=Keep as a new branch")
    page.wait_for_selector(f"#panel-{kind} article.assistant .branches >> text=2/2")
    answer = page.locator(f"#panel-{kind} article.assistant .text")
    assert answer.text_content() == " of the north"
    assert len(asked) == 1
    page.click(f"#panel-{kind} article.assistant >> text=Continue")
    page.wait_for_selector(f"#panel-{kind} article.assistant >> text=the most tokens")
    assert answer.text_content().startswith(" of the north")
    assert len(answer.text_content()) > len(" of the north")
    if kind == "chat":
        assert asked[-1]["messages"][-1] == {"role": "assistant", "content": " of the north"}
        assert asked[-1]["continue_final_message"] is True
    else:
        assert asked[-1]["prompt"] == "The city of the north"


def test_a_chosen_theme_is_kept(open_page: OpenPage, server: RunningServer) -> None:
    page = open_page(server, color_scheme="light")
    light = page.evaluate(BACKGROUND)
    page.click("#theme")
    page.click("#theme")
    for _ in range(2):
        assert page.get_attribute("#theme", "aria-label") == "Theme: dark"
        assert page.evaluate(BACKGROUND) != light
        page.reload()


def test_settings_are_kept_until_they_are_reset(open_page: OpenPage, server: RunningServer) -> None:
    page = open_page(server)
    asked: list[dict] = []
    page.on("request", lambda one: one.url.endswith("/v1/completions") and asked.append(one.post_data_json))
    page.click("#tab-complete")
    page.click("#panel-complete .settings summary")
    for name, value in {"top_k": "7", "seed": "11", "max_tokens": "5", "stop": "xyz\\n"}.items():
        page.fill(f"#complete-{name}", value)
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    page.click("#tab-complete")
    write(page, "The city", "complete")
    assert asked[-1].items() >= {"top_k": 7, "seed": 11, "max_tokens": 5, "stop": ["xyz\n"], "temperature": 0.8}.items()
    page.click("#panel-complete .settings summary")
    assert page.input_value("#complete-top_k") == "7"
    page.click("#panel-complete .settings >> text=Reset")
    page.fill("#complete-max_tokens", "5")
    write(page, "The town", "complete")
    assert "top_k" not in asked[-1]
    assert "stop" not in asked[-1]


def test_a_conversation_is_found_and_begun_by_keys(open_page: OpenPage, server: RunningServer) -> None:
    page = open_page(server, having(max_tokens=2))
    page.click("#tab-complete")
    write(page, "The city", "complete")
    page.keyboard.press("Control+Shift+O")
    assert page.locator("#panel-complete article").count() == 0
    page.keyboard.type("The sea")  # the composer has the focus
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel-complete article.user >> text=The sea")
    titles = page.locator("#panel-complete .conversations li button:first-child")
    assert titles.all_inner_texts() == ["The sea", "The city"]
    page.keyboard.press("Control+k")
    page.keyboard.type("cit")
    assert titles.all_inner_texts() == ["The city"]


def test_too_long_a_prompt_is_told_with_what_must_go(open_page: OpenPage, server: RunningServer) -> None:
    page = open_page(server, may_fail="400")
    text = "the city of the north " * 200
    n = server.ask("/tokenize", prompt=text)["count"]
    page.click("#tab-complete")
    page.fill("#complete-field", text)
    page.press("#complete-field", "Enter")
    problem = page.locator("#panel-complete [role=alert]")
    playwright.expect(problem).to_contain_text(f"has {n} tokens and the context 512: leave out {n - 511} or more")
    assert page.text_content("#panel-complete article.user .text") == text


def test_an_answer_that_a_server_s_end_cuts_off_is_kept_and_goes_on(
    open_page: OpenPage, start_server: StartServer, endless_folder: Path
) -> None:
    server = start_server(endless_folder, "--drain", 6)
    page = open_page(server, having(max_tokens=50_000, seed=5), may_fail="Failed to load resource")
    page.click("#tab-complete")
    page.fill("#complete-field", "The city of")
    page.press("#complete-field", "Enter")
    answer = page.locator("#panel-complete article.assistant .text")
    playwright.expect(answer).to_have_text(re.compile(r"\S"))
    server.process.send_signal(signal.SIGTERM)
    page.click("#tab-read")
    page.fill("#read-field", "The sea")
    page.click("#panel-read button.main")
    page.wait_for_selector("#panel-read [role=alert] >> text=/shutting down; try again in \\d+ s/")
    page.click("#tab-complete")
    page.wait_for_selector("#panel-complete article.assistant [role=alert] >> text=the server is shutting down")
    before = answer.text_content()
    assert server.process.wait(30) == 143
    start_server(endless_folder, "--port", server.port)
    page.click("#panel-complete article.assistant [role=alert] >> text=Retry")
    playwright.expect(answer).not_to_have_text(before)
    assert answer.text_content().startswith(before)
    page.press("#complete-field", "Escape")
