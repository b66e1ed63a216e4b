"""Learn: what a run wrote, along a slider; and one prompt through several of its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from running_server import OpenPage, RunningServer, StartServer, write_model

from mini_llm.pointers import write_pointer
from mini_llm.tokenizer.tokenizer import Tokenizer

playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: pip install playwright")

STEPS = (10, 20, 30, 40, 50)
SETTINGS = {"temperature": 0.8, "max_tokens": 12, "seed": 7}
BOXES = "#panel-learn fieldset input"
LATER = """{ const set = window.setTimeout, later = [];
  window.setTimeout = (work, pause, ...more) => pause < 1000 ? set(work, pause, ...more) : later.push(work);
  window.lookAgain = () => later.splice(0).forEach((work) => work()); }"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """Return a run of five checkpoints, which wrote two samples at each of three steps."""
    run = tmp_path_factory.mktemp("learn") / "study"
    for step in STEPS:
        write_model(run / "checkpoints" / f"step-{step:08d}", tokenizer, seed=step)
    write_pointer(run / "latest", run / "checkpoints" / "step-00000050")
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": n, "loss": 5.0}) + "\n" for n in STEPS))
    (run / "samples.jsonl").write_text("".join(sample(step) for step in STEPS[:3]))
    return run


def sample(step: int) -> str:
    """Return a step's lines."""
    rows = [{"step": step, "prompt": prompt, "text": f" of step {step}"} for prompt in ("We", "They")]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def studied(start_server: StartServer, run: Path) -> RunningServer:
    return start_server(run)


def shown(page: Any) -> tuple[str, list[str]]:
    return page.inner_text("label[for=sample]"), page.locator("#panel-learn .sample").all_text_contents()


def test_the_slider_goes_through_what_the_run_wrote(open_page: OpenPage, studied: RunningServer, run: Path) -> None:
    page = open_page(studied, LATER)  # it looks at the run again when it is told
    page.click("#tab-learn")
    slider = page.locator("#sample")
    slider.wait_for()
    assert shown(page) == ("Step 30", ["We of step 30", "They of step 30"])
    slider.press("ArrowLeft")
    assert shown(page) == ("Step 20", ["We of step 20", "They of step 20"])
    slider.press("Home")
    assert shown(page) == ("Step 10", ["We of step 10", "They of step 10"])
    assert slider.get_attribute("aria-valuetext") == "Step 10"
    with (run / "samples.jsonl").open("a") as file:
        file.write(sample(40))
    page.evaluate("lookAgain()")
    playwright.expect(slider).to_have_attribute("max", "3")
    assert shown(page)[0] == "Step 10"  # who looks back is left there
    assert page.evaluate("document.activeElement.id") == "sample"
    slider.press("End")
    assert shown(page)[0] == "Step 40"
    with (run / "samples.jsonl").open("a") as file:
        file.write(sample(50))
    page.evaluate("lookAgain()")
    playwright.expect(page.locator("label[for=sample]")).to_have_text("Step 50")  # and who looks at the newest sees it


def compare(page: Any, *names: str) -> dict[str, str]:
    """Write the prompt with these checkpoints; return what stands under each name."""
    for box in page.locator(BOXES).all():
        if box.is_checked():
            box.uncheck()
    for name in names:
        page.check(f"{BOXES}[value='{name}']")
    page.fill("#compare-field", "The city of")
    page.click("#panel-learn .main >> text=Write")
    columns = page.locator("#panel-learn .columns section")
    playwright.expect(columns).to_have_count(len(names))
    playwright.expect(page.locator("#panel-learn button.main")).to_have_text("Write")
    return {one.get_attribute("aria-label"): one.locator(".text").text_content() for one in columns.all()}


def test_one_prompt_and_seed_through_two_to_four_checkpoints(open_page: OpenPage, studied: RunningServer) -> None:
    page = open_page(studied, f"localStorage.setItem('mini-llm-settings', '{json.dumps(SETTINGS)}')")
    page.click("#tab-learn")
    page.wait_for_selector(BOXES)
    assert page.locator(f"{BOXES}:checked").count() == 3  # the first, one in the middle and the last
    for n in (2, 4):
        names = [f"study@{step}" for step in STEPS[:n]]
        found = compare(page, *names)
        body = {**SETTINGS, "prompt": "The city of"}
        expected = {name: studied.ask("/v1/completions", model=name, **body)["choices"][0]["text"] for name in names}
        assert found == expected
        assert list(found) == names
        assert len(set(found.values())) == n
        assert page.locator("#panel-learn .columns h3").all_inner_texts() == names
        page.wait_for_selector("#panel-learn [role=status] >> text=Seed 7 for all.")
    assert page.is_disabled(f"{BOXES}[value='study@50']")  # four are the most
    page.uncheck(f"{BOXES}[value='study@10']")
    assert page.is_enabled(f"{BOXES}[value='study@50']")


def test_the_menu_s_checkpoint_is_asked(open_page: OpenPage, studied: RunningServer) -> None:
    page = open_page(studied, f"localStorage.setItem('mini-llm-settings', '{json.dumps(SETTINGS)}')")
    names = ["study", *(f"study@{step}" for step in STEPS)]
    assert page.locator("#model option").all_inner_texts() == names
    page.select_option("#model", "study@20")
    page.click("#tab-complete")
    page.fill("#complete-field", "The city of")
    page.press("#complete-field", "Enter")
    page.wait_for_selector("#panel-complete article.assistant >> text=the most tokens")
    said = studied.ask("/v1/completions", model="study@20", prompt="The city of", **SETTINGS)["choices"][0]["text"]
    assert page.text_content("#panel-complete article.assistant .text") == said


def test_one_checkpoint_is_none_to_compare_and_one_that_fails_is_told_beside_the_others(
    open_page: OpenPage, studied: RunningServer
) -> None:
    page = open_page(studied, may_fail="404")
    page.click("#tab-learn")
    page.wait_for_selector(BOXES)
    for box in page.locator(f"{BOXES}:checked").all()[:2]:
        box.uncheck()
    page.click("#panel-learn .main >> text=Write")
    page.wait_for_selector("#panel-learn [role=status] >> text=Choose at least two.")
    page.evaluate(f"document.querySelector(\"{BOXES}[value='study@20']\").value = 'study@21'")
    found = compare(page, "study@10", "study@21")
    assert "does not exist" in found["study@21"]
    assert found["study@10"]
    assert "does not exist" not in found["study@10"]
