"""Look inside: what is banned or taken instead of a token, and what is asked of the model for it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from running_server import OpenPage, RunningServer

SETTINGS = f"localStorage.setItem('mini-llm-settings', '{json.dumps({'temperature': 0, 'max_tokens': 24, 'seed': 3})}')"
PLACE = 4  # of the token that something is done to
LAST = """() => {
  const [conversation] = JSON.parse(localStorage.getItem("mini-llm-conversations-1"));
  return conversation.nodes.at(-1);
}"""


@pytest.fixture
def page(open_page: OpenPage, server: RunningServer) -> Any:
    """Return the page with a token of the likeliest answer opened; `page.asked` holds the requests."""
    page = open_page(server, SETTINGS)
    page.asked = []
    page.on("request", lambda one: one.url.endswith("/v1/completions") and page.asked.append(one.post_data_json))
    page.click("#tab-complete")
    page.fill("#complete-field", "The city of")
    page.press("#complete-field", "Enter")
    page.click("#panel-complete article.assistant >> text=Look inside")
    pick(page)
    return page


def pick(page: Any) -> None:
    token = page.locator("#panel-look .tokens .token").nth(PLACE)
    token.click()
    token.focus()
    page.wait_for_selector("#panel-look .inspector")


def answer(page: Any, n_branches: int) -> dict[str, Any]:
    """Return the newest answer, once there are so many and it is written and kept."""
    page.click("#tab-complete")
    if n_branches > 1:
        page.wait_for_selector(f"#panel-complete article.assistant .branches >> text={n_branches}/{n_branches}")
    page.wait_for_selector("#panel-complete .log:not([aria-busy])")
    page.wait_for_timeout(400)  # it is kept 200 ms after the last change
    page.click("#tab-look")
    return dict(page.evaluate(LAST))


@pytest.mark.parametrize("row", [0, 2])
def test_a_banned_token_comes_no_more(page: Any, row: int) -> None:
    before = answer(page, 1)
    top = before["inspect"][PLACE]["top"]
    assert top[0]["token_id"] == before["ids"][PLACE]
    page.locator("#panel-look .inspector tbody tr").nth(row).locator("text=Ban").click()
    after = answer(page, 2)
    banned = top[row]["token_id"]
    assert page.asked[-1]["logit_bias"] == {str(banned): -100}
    assert page.asked[-1]["prompt"] == before["promptIds"] + before["ids"][:PLACE]
    assert after["ids"][:PLACE] == before["ids"][:PLACE]
    assert after["ids"][PLACE] == top[0 if row else 1]["token_id"]  # the likeliest of those that are left
    assert banned not in after["ids"][PLACE:]
    assert len(after["ids"]) == PLACE + 24
    shown = page.locator("#panel-look .tokens .token")
    assert shown.count() == len(after["ids"])


def test_keys_go_through_the_tokens(page: Any) -> None:
    focused = "Number(document.activeElement.dataset.n)"
    for key, place in {"End": 23, "ArrowLeft": 22, "Home": 0, "ArrowRight": 1}.items():
        page.keyboard.press(key)
        assert page.evaluate(focused) == place
    page.keyboard.press("Enter")
    tokens = page.locator("#panel-look .tokens .token")
    assert tokens.nth(1).get_attribute("aria-current") == "true"
    assert tokens.nth(PLACE).get_attribute("aria-current") is None


def test_a_key_takes_an_alternative(page: Any) -> None:
    before = answer(page, 1)
    page.focus("#panel-look .inspector")
    page.keyboard.press("3")
    after = answer(page, 2)
    third = before["inspect"][PLACE]["top"][2]["token_id"]
    assert after["ids"][: PLACE + 1] == [*before["ids"][:PLACE], third]
    assert page.asked[-1]["prompt"] == before["promptIds"] + after["ids"][: PLACE + 1]
    assert "logit_bias" not in page.asked[-1]


def test_a_branch_begins_anew_at_its_token(page: Any) -> None:
    before = answer(page, 1)
    page.click("#panel-look .inspector >> text=Branch here")
    after = answer(page, 2)
    assert page.asked[-1]["prompt"] == before["promptIds"] + before["ids"][:PLACE]
    assert after["ids"][:24] == before["ids"]  # no dart at temperature 0


def test_fingers_do_all_of_it_on_a_phone(open_page: OpenPage, server: RunningServer) -> None:
    """What is tapped stays in view above its explanation, and what is to be tapped is as large as a fingertip."""
    page = open_page(server, SETTINGS, has_touch=True, is_mobile=True)
    page.set_viewport_size({"width": 390, "height": 844})
    page.tap("#tab-complete")
    page.fill("#complete-field", "The city of")
    page.tap("#panel-complete >> text=Complete")
    page.tap("#panel-complete article.assistant >> text=Look inside")
    token = page.locator("#panel-look .tokens .token").nth(PLACE)
    token.tap()
    detail = page.locator("#panel-look .detail")
    detail.locator(".inspector").wait_for()
    above, sheet = token.bounding_box(), detail.bounding_box()
    assert above["y"] >= 0
    assert above["y"] + above["height"] <= sheet["y"]
    assert sheet["y"] + sheet["height"] <= 844
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ban = detail.locator("tbody tr").nth(0).locator("text=Ban")
    assert ban.bounding_box()["height"] >= 44
    banned = answer(page, 1)["ids"][PLACE]
    ban.tap()
    assert banned not in answer(page, 2)["ids"][PLACE:]
