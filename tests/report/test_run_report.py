"""The report: true to the run's files, whole whatever is missing, and harmless whatever a model or file says."""

import html.parser
import json
import math
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mini_llm.config import load_config
from mini_llm.data.store_writer import TokenStoreWriter
from mini_llm.data.token_store import TokenStore
from mini_llm.errors import UserError
from mini_llm.report.baselines import ngram_bits_per_byte
from mini_llm.report.blocks import Code, Quote, Words, as_html, as_markdown
from mini_llm.report.page import published
from mini_llm.report.report import write_report
from mini_llm.report.svg import ticks
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.config import TrainConfig
from mini_llm.train.train import train

SETS = Path(__file__).parents[1] / "eval" / "sets"


@pytest.fixture(scope="module")
def run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory, run_cli) -> Path:
    """Return a run of eight steps with an evaluation."""
    folder = tmp_path_factory.mktemp("report") / "run"
    values = {
        "data_dir": tiny_store,
        "out_dir": folder,
        "batch_size": 4,
        "block_size": 32,
        "max_iters": 8,
        "warmup_iters": 2,
        "eval_interval": 4,
        "eval_iters": 2,
        "log_interval": 1,
        "device": "cpu",
        "compile": "false",
    }
    shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 512, "max_seq_len": 64}
    words = [*(f"{k}={v}" for k, v in values.items()), *(f"model.{k}={v}" for k, v in shape.items())]
    train(load_config(TrainConfig, None, words))
    result = run_cli("eval", folder, "--tasks", "piqa,lambada", "--data", SETS)
    assert result.returncode == 0, result.stderr
    return folder


class Checker(html.parser.HTMLParser):
    """Collects tags and checks that they close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags[tag] += 1
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_says_what_the_files_say(run: Path, run_cli) -> None:
    result = run_cli("report", run, "--price", "2.5", fresh=True)
    assert result.returncode == 0, result.stderr
    page, web = (run / "report.md").read_text(), (run / "report.html").read_text()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = min(row["val_bits_per_byte"] for row in rows if "val_bits_per_byte" in row)
    (results,) = [json.loads(path.read_text()) for path in (run / "eval").glob("results_*.json")]
    for text in (page, web):
        assert f"it needs {best:.3f} bits a byte" in text
        assert "xz -9" in text
        assert "5-gram" in text
        assert f"{100 * results['results']['piqa']['acc,none']:.1f} %" in text
        assert "0 of 20" in text  # overlap
        assert "max_iters: 8" in text
        assert "mini-llm train --config" in text
        assert "at 2.5 an hour" in text
        assert "Not above chance" in text
        assert "The sources name no licence" in text
    tags = Checker(web).tags
    assert tags["svg"] == 2
    assert tags["script"] == tags["img"] == tags["link"] == 0
    assert "http" not in web.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


PARTS = ["config.yaml", "metrics.jsonl", "timing.jsonl", "eval", "checkpoints", "latest"]


@pytest.mark.parametrize("part", [*PARTS, "all but config.yaml", "all but metrics.jsonl"])
def test_it_renders_with_any_part_missing(part: str, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, symlinks=True)
    gone = [part] if part in PARTS else [other for other in PARTS if other not in part]
    for name in gone:
        path = copy / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    paths = write_report(copy)
    page = paths[0].read_text()
    assert page.startswith("# Report: copy")
    assert "## Caveats" in page
    Checker(paths[1].read_text())


@pytest.mark.parametrize("damage", ["metrics.jsonl", "config.yaml", "eval", "timing.jsonl"])
def test_a_damaged_part_is_named(damage: str, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, symlinks=True)
    path = next((copy / "eval").glob("results_*")) if damage == "eval" else copy / damage
    path.write_bytes(b'{"step": \xff\x00\n' * 3)
    page = write_report(copy, samples=False)[0].read_text()
    if damage in ("metrics.jsonl", "config.yaml"):
        assert "Missing here" in page
    assert "## Caveats" in page


def test_no_run_is_an_error(tmp_path: Path, run_cli) -> None:
    with pytest.raises(UserError, match="no such run"):
        write_report(tmp_path / "none")
    with pytest.raises(UserError, match="holds no run"):
        write_report(tmp_path)
    result = run_cli("report", tmp_path)
    assert (result.returncode, "Traceback" in result.stderr, result.stdout) == (1, False, "")


def test_what_a_model_writes_is_only_text() -> None:
    hostile = "```\n<script>alert(1)</script>\x1b[31m | & \u202e"
    blocks = [Quote(hostile), Words(hostile), Code(hostile)]
    web, page = as_html(blocks, hostile), as_markdown(blocks)
    assert Checker(web).tags["script"] == 0
    assert "\x1b" not in web + page
    assert page.startswith("````text\n```")
    assert "\n<script>" not in page.partition("\n````\n")[2].partition("````")[0]


def test_the_5_gram_model_is_witten_and_bells(tiny_store: Path, tmp_path: Path) -> None:
    """Against the recursion written out with dictionaries."""
    tokenizer = Tokenizer.load(tiny_store / "tokenizer")
    store = TokenStore.open(tiny_store)
    seen, asked = store.split("train").read(0, 3000).tolist(), store.split("val").read(0, 400).tolist()
    with TokenStoreWriter.create(tmp_path / "small", tokenizer, sources=[]) as writer:
        writer.append("train", seen, text_bytes=1, new_document=True)
        writer.append("val", asked, text_bytes=1, new_document=True)
    counts: Counter[tuple[int, ...]] = Counter()
    after: dict[tuple[int, ...], Counter[int]] = {}
    for order in range(1, 6):
        for i in range(len(seen) - order + 1):
            *context, token = seen[i : i + order]
            counts[tuple(seen[i : i + order])] += 1
            after.setdefault(tuple(context), Counter())[token] += 1

    def probability(context: tuple[int, ...], token: int) -> float:
        shorter = probability(context[1:], token) if context else 1 / tokenizer.vocab_size
        if context not in after:
            return shorter
        total, kinds = after[context].total(), len(after[context])
        return (after[context][token] + kinds * shorter) / (total + kinds)

    bits = -sum(math.log2(probability(tuple(asked[max(0, i - 4) : i]), asked[i])) for i in range(1, len(asked)))
    n_bytes = int(tokenizer.token_bytes()[np.array(asked[1:])].sum())
    found = ngram_bits_per_byte(TokenStore.open(tmp_path / "small"))
    assert found == pytest.approx(bits / n_bytes, rel=1e-9)


def test_published_scores_stand_beside_their_like_alone() -> None:
    line = {"task": "piqa", "metric": "acc", "shots": 0, "filter": "none", "items": 1838, "of": 1838}
    assert "Pythia-70M 59.5" in published(line)
    for change in ({"shots": 5}, {"items": 500}, {"metric": "acc_bytes"}, {"task": "copa"}):
        assert published({**line, **change}) == ""


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.31, 1.32), (0.0, 2.4e9), (-3.0, 12.0), (5e-7, 6e-4)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 7
    assert low <= min(found) + 1e-9 * abs(high)
    assert max(found) <= high * (1 + sys.float_info.epsilon * 8)


def test_only_a_report_of_ours_is_replaced(run: Path, tmp_path: Path) -> None:
    for _ in range(2):
        paths = write_report(run, out=tmp_path / "page", samples=False)
    paths[1].write_text("<p>my own</p>")
    before = paths[0].read_bytes()
    with pytest.raises(UserError, match=r"page\.html is there, and Mini-LLM did not make it"):
        write_report(run, out=tmp_path / "page", samples=False)
    assert (paths[0].read_bytes(), paths[1].read_text()) == (before, "<p>my own</p>")


def test_one_page_of_several_evaluations(run: Path, tmp_path: Path) -> None:
    """The newest lines of each task, of the last checkpoint alone; a short trial does not replace a whole set."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, symlinks=True)
    (first,) = (copy / "eval").glob("results_*.json")
    values = json.loads(first.read_text())
    lines = values["mini_llm"]["lines"]

    def keep(name: str, lines: list[dict], **more: object) -> None:
        one = {**values, "mini_llm": {**values["mini_llm"], "lines": lines, **more}}
        (copy / "eval" / f"results_9{name}.json").write_text(json.dumps(one))

    piqa = [line for line in lines if line["task"] == "piqa"]
    keep("1", [{**line, "task": "sciq", "value": 0.123} for line in piqa])
    keep("2", [{**line, "items": 3, "value": 0.456} for line in piqa])
    keep("3", [{**line, "task": "copa", "value": 0.789} for line in piqa], checkpoint="step-00000004")
    keep("4", [{"task": "winogrande"}, [], None, {**piqa[0], "value": "\x1b[31m"}])
    page = write_report(copy, samples=False)[0].read_text()
    table = [line for line in page.splitlines() if line.startswith("| ")]
    assert [sum(line.startswith(f"| {task} ") for line in table) for task in ("piqa", "lambada_openai", "sciq")] == [
        len(piqa),
        len(lines) - len(piqa),
        len(piqa),
    ]
    assert "12.3 %" in page
    assert not any(word in page for word in ("45.6 %", "78.9 %", "copa", "winogrande", "\x1b"))
    assert "--tasks piqa,lambada_openai,sciq" in page


def test_a_model_that_has_left_its_run(run: Path, tmp_path: Path, run_cli) -> None:
    """Weights with the numbers of their run beside them have a report and keep an evaluation, and no path is told."""
    folder = tmp_path / "gone"
    shutil.copytree((run / "latest").resolve(), folder)
    shutil.rmtree(folder / "training_state")
    (folder / "checksums.json").unlink()
    for name in ("metrics.jsonl", "timing.jsonl"):
        shutil.copy(run / name, folder)
    settings = (run / "config.yaml").read_text().replace("init_from: null", f"init_from: {tmp_path}/base")
    settings = settings.replace("max_iters: 8", "max_iters: 80").replace("fit_minutes: false", "fit_minutes: true")
    settings = settings.replace("max_minutes: null", "max_minutes: 3.0")
    (folder / "run-config.yaml").write_text(settings.replace("data_dir: ", f"data_dir: {tmp_path}/none/"))
    (folder / "budget.json").write_text('{"max_iters": 8}')
    samples = [{"step": step, "prompt": "The", "text": f" text {step}"} for step in range(1, 8)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    result = run_cli("eval", folder, "--tasks", "piqa", "--data", SETS)
    assert result.returncode == 0, result.stderr
    page = write_report(folder, samples=False)[0].read_text()
    assert "| piqa | 20 | 0 | acc |" in page
    assert "The run is not finished" not in page
    assert "mini-llm train --config gone/run-config.yaml" in page
    assert "init_from: base" in page
    assert [f"\ntext {step}\n" in page for step in (1, 3, 4, 7)] == [True, False, True, True]
    assert "Missing here: training text" in page
    assert str(tmp_path) not in page


def test_a_run_that_cannot_be_read_says_why(tmp_path: Path, run_cli) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 5.0}\n[]\n{"step": 2, "loss": 5.0}\n')
    result = run_cli("report", tmp_path)
    assert result.returncode == 1
    assert "curves: metrics.jsonl, line 2 is damaged" in result.stderr
    assert run_cli("report", tmp_path, "--price", "inf").returncode == 2
