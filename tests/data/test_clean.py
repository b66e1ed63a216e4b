"""Cleaning finds what was planted, drops it for the right reason, keeps the rest, and goes on where it was stopped."""

import gzip
import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mini_llm.config import load_config
from mini_llm.data.clean.config import CleanConfig
from mini_llm.data.clean.plan import group, needs
from mini_llm.data.clean.run import Where, clean
from mini_llm.data.clean.steps import WORD, Words
from mini_llm.errors import UserError
from mini_llm.temporary import alone

LIGHT = {
    "language": None,
    "gopher_repetition": None,
    "gopher_quality": None,
    "c4": None,
    "fineweb": None,
    "pii": None,
}


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def kept(out: Path, name: str = "kept") -> list[str]:
    files = sorted((out / name).rglob("*.jsonl.gz"))
    return [json.loads(line)["text"] for path in files for line in gzip.open(path, "rt", encoding="utf-8")]


def near(text: str) -> str:
    """Return a text with one word in 150 changed."""
    words = text.split(" ")
    return " ".join(word + "ly" if i % 150 == 75 else word for i, word in enumerate(words))


@pytest.fixture(scope="module")
def passages(sotu_texts: list[str]) -> list[str]:
    """Return 50 pieces of speeches of 600 words that no rule finds wanting."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter

    rules = [GopherQualityFilter(language=Words()), GopherRepetitionFilter(language=Words())]
    found = []
    for text in sotu_texts[60:]:
        piece = re.sub(r"\n\s*", "\n", text[:4000])
        document = Document(text=piece[: piece.rfind(".") + 1], id="")
        if all(rule.filter(document) is True for rule in rules):
            found.append(document.text)
    return found[:50]


def test_what_was_planted_is_found_for_the_right_reason(tmp_path: Path, passages: list[str], run_cli: Any) -> None:
    german = "Der Hund lief \u00fcber die Wiese, und niemand wusste, wohin er gehen wollte. " * 9
    short = (
        "Of all the things that we have to do this year, none weighs more than the peace which everybody wants. "
        "Roads and schools, mail and ships, taxes and coins may wait until spring; a war never does."
    )
    numbers = "and the of to " + " ".join(str(7919 * i) for i in range(200))
    planted = {
        "language": [german],
        "gopher_repetition": ["The same line of text stands here and that is it to be sure.\n" * 60],
        "gopher_quality": [short, numbers],
        "exact_duplicates": [passages[3], passages[4]],
        "near_duplicates": [near(passages[5]), near(passages[6])],
    }
    mail = passages[7] + " Write to jane.doe@company.com or 8.8.8.8 and tell us."
    broken = passages[8] + " It was the people\u00e2\u20ac\u2122s will."
    texts = [*passages[:7], mail, broken, *passages[9:], *(text for texts in planted.values() for text in texts)]
    contaminated = passages[20]
    sciq = {"question": " ".join(contaminated.split()[40:70]), "correct_answer": "x", "distractor1": "a"}
    item = {**sciq, "distractor2": "b", "distractor3": "c", "support": ""}
    (tmp_path / "sciq.jsonl").write_text(json.dumps(item) + "\n")
    write(tmp_path / "a.jsonl", texts)
    words = ("--decontaminate", "sciq", "--data", f"sciq={tmp_path / 'sciq.jsonl'}", "--json")
    run = run_cli("clean", tmp_path / "a.jsonl", "--out", tmp_path / "out", *words, "fineweb=null", "c4=null")
    assert run.returncode == 0, run.stderr
    dropped = {step["step"]: step["dropped"] for step in json.loads(run.stdout)["steps"]}
    assert dropped == {**{name: len(found) for name, found in planted.items()}, "contaminated": 1}
    assert kept(tmp_path / "out", "dropped/contaminated") == [contaminated]
    for name, found in planted.items():
        assert len(kept(tmp_path / "out", f"dropped/{name}")) == len(found)
    stays = kept(tmp_path / "out")
    assert len(stays) == len(passages) - 1
    together = " ".join(stays)
    assert "jane.doe" not in together
    assert "8.8.8.8" not in together
    assert "people's will" in together.replace("\u2019", "'")
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == ["dropped", "kept", "report.json", "report.md"]


def reference_duplicates(texts: list[str], settings: Any) -> set[int]:
    """MinHash in plain numpy: two texts with all hashes of a bucket in common are one; the first of a group stays."""
    from datatrove.utils.text import TextNormConfig, simplify_text

    prime = np.uint64((1 << 61) - 1)
    random = np.random.RandomState(settings.seed)
    shape = (1, settings.buckets * settings.hashes)
    a, b = (random.randint(low, prime, dtype=np.uint64, size=shape) for low in (1, 0))
    seen: dict[tuple[int, ...], int] = {}
    groups = list(range(len(texts)))
    for number, text in enumerate(texts):
        words = WORD.findall(simplify_text(text, TextNormConfig()))
        rows = {" ".join(words[i : i + settings.n_grams]) for i in range(len(words) - settings.n_grams + 1)}
        hashes = [int.from_bytes(hashlib.sha1(row.encode()).digest()[:8], "little") for row in rows]
        signature = ((np.array(hashes, dtype=np.uint64)[:, None] * a + b) % prime).min(0)
        for place, bucket in enumerate(signature.reshape(settings.buckets, settings.hashes)):
            other = seen.setdefault((place, *bucket.tolist()), number)
            old, new = groups[number], groups[other]
            groups = [new if group == old else group for group in groups]
    return {number for number, of in enumerate(groups) if of != number}


def test_near_duplicates_are_those_of_a_minhash_in_ten_lines(tmp_path: Path, passages: list[str]) -> None:
    texts = [text for p in passages[:20] for text in (p, near(near(p)), p[: len(p) // 2] + p[::-1][: len(p) // 2])]
    write(tmp_path / "a.jsonl", texts)
    config = CleanConfig(**{**LIGHT, "fix_unicode": False, "exact_duplicates": False})  # type: ignore[arg-type]
    report = clean([str(tmp_path / "a.jsonl")], tmp_path / "out", config, Where())
    assert report is not None
    expected = reference_duplicates(texts, config.minhash)
    assert 15 <= len(expected) <= 25
    assert kept(tmp_path / "out") == [text for i, text in enumerate(texts) if i not in expected]
    assert report.kept == len(texts) - len(expected)


def test_two_processes_keep_what_one_keeps_across_files(
    tmp_path: Path, passages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mini_llm.data import parts

    monkeypatch.setattr(parts, "SMALLEST", 20_000)
    (tmp_path / "in").mkdir()
    for i in range(5):
        write(tmp_path / "in" / f"{i}.jsonl", [*passages[i * 8 : i * 8 + 8], passages[0], near(passages[1])])
    write(tmp_path / "in" / "5.jsonl", ["short"])  # a task that keeps nothing: the next must not take its place
    write(tmp_path / "in" / "6.jsonl", passages[40:48])
    config = CleanConfig()
    for n in (1, 2):
        clean([str(tmp_path / "in")], tmp_path / f"out{n}", config, Where(workers=n))
    assert kept(tmp_path / "out1") == kept(tmp_path / "out2")
    assert kept(tmp_path / "out1").count(passages[0]) == 1
    assert len([text for text in kept(tmp_path / "out1") if text[:200] == passages[1][:200]]) == 1
    assert json.loads((tmp_path / "out1" / "report.json").read_text()) == json.loads(
        (tmp_path / "out2" / "report.json").read_text()
    )


SMALL = """
from mini_llm.data import parts
parts.SMALLEST = 3000
from mini_llm.cli import main
main()
"""


def test_a_stopped_cleaning_goes_on_and_another_setting_begins_anew(tmp_path: Path, passages: list[str]) -> None:
    (tmp_path / "in").mkdir()
    for i, text in enumerate(passages):
        write(tmp_path / "in" / f"{i:02d}.jsonl", [text])
    command = [sys.executable, "-c", SMALL, "clean", str(tmp_path / "in"), "--workers", "1", "--out"]
    process = subprocess.Popen([*command, str(tmp_path / "out")], stderr=subprocess.PIPE, text=True)
    while len(list(tmp_path.glob("out/work-*/logs/0/completions/*"))) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "the same command goes on from there" in said
    (first,) = tmp_path.glob("out/work-*/logs/0/completions/00000")
    held = first.open()
    before = os.fstat(held.fileno()).st_mtime_ns
    again = subprocess.run([*command, str(tmp_path / "out")], capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert os.fstat(held.fileno()).st_mtime_ns == before
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["documents"] == len(passages)
    assert len(kept(tmp_path / "out")) == report["kept"]
    short = [*command, str(tmp_path / "out"), "gopher_quality.min_doc_words=100000", "minhash=null"]
    other = subprocess.run(short, capture_output=True, text=True, timeout=300)
    assert other.returncode == 0, other.stderr
    assert kept(tmp_path / "out") == []
    assert list(tmp_path.glob("out/work-*")) == []


@pytest.mark.parametrize("mine", ["kept/diary.txt", "kept/00000.jsonl.gz", "dropped/a/b/c.txt"])
def test_what_only_looks_like_cleaned_text_is_left_alone(tmp_path: Path, passages: list[str], mine: str) -> None:
    """`kept` is a name that anybody may give: the report says who made it."""
    file = tmp_path / "out" / mine
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    (tmp_path / "out" / "report.json").write_text('{"mine": 1}')
    source = write(tmp_path / "a.jsonl", passages[:6])
    with pytest.raises(UserError, match="not replaced"):
        clean([str(source)], tmp_path / "out", CleanConfig.model_validate({"minhash": None}), Where())
    assert file.read_text() == "mine"


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_slurm_gets_jobs_that_do_the_work(
    tmp_path: Path, passages: list[str], run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for sbatch runs each job at once, as the cluster would later."""
    tools = tmp_path / "bin"
    tools.mkdir()
    executable(
        tools / "sbatch",
        f"""#!{sys.executable}
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
number = 1 + len(os.listdir({str(tmp_path)!r}))
open({str(tmp_path)!r} + f"/job-{{number}}", "w").write(script + " ".join(sys.argv))
found = re.search(r"--array=0-(\\d+)", script)
for task in range(int(found[1]) + 1 if found else 0):
    environment = dict(os.environ, SLURM_ARRAY_TASK_ID=str(task), RUN_OFFSET="0", SLURM_NODELIST="here",
        SLURM_CPUS_PER_TASK="1", SLURM_MEM_PER_CPU="1000")
    subprocess.run(["bash", sys.argv[-1]], env=environment, check=True, stdout=sys.stderr)
print("Submitted batch job", number)
""",
    )
    executable(tools / "srun", '#!/bin/bash\nwhile [[ $1 == -* || $1 =~ ^[0-9]+$ ]]; do shift; done\nexec "$@"\n')
    executable(tools / "scontrol", "#!/bin/bash\necho here\n")
    write(tmp_path / "a.jsonl", [*passages[:6], passages[2]])
    path = f"{tools}:{os.environ['PATH']}"
    slurm = ("--slurm", "partition=cpu,time=01:00:00", "minhash=null")
    words = ("clean", tmp_path / "a.jsonl", "--out", tmp_path / "out", *slurm)
    first = run_cli(*words, env={"PATH": path})
    assert first.returncode == 0, first.stderr
    assert "submitted 3 jobs" in first.stderr
    scripts = [path.read_text() for path in sorted(tmp_path.glob("job-*"))]
    assert any("#SBATCH --partition=cpu" in script and "#SBATCH --time=01:00:00" in script for script in scripts)
    assert all(f"export PATH={Path(sys.executable).parent}:$PATH" in script for script in scripts)
    assert any("--dependency=afterok:" in script or "dependency=afterok" in script for script in scripts)
    second = run_cli(*words, env={"PATH": path})
    assert second.returncode == 0, second.stderr
    assert kept(tmp_path / "out") == passages[:6]


def test_two_cleanings_into_one_folder_are_one_too_many(tmp_path: Path, passages: list[str]) -> None:
    """The second removed the work of the first where its settings were others."""
    source = write(tmp_path / "a.jsonl", passages[:3])
    (tmp_path / "out").mkdir()
    with alone(tmp_path / "out", UserError("x")), pytest.raises(UserError, match="another process is cleaning into"):
        clean([str(source)], tmp_path / "out", CleanConfig.model_validate({"minhash": None}), Where())


def test_an_older_cleaning_stays_until_the_next_is_whole_and_files_without_text_stop_none(
    tmp_path: Path, passages: list[str], run_cli: Any
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "0.jsonl").write_text("")
    (texts / "1.jsonl").write_text('{"text": " "}\n')
    write(texts / "2.jsonl", passages[:4])
    words = ("clean", texts, "--out", tmp_path / "out", "minhash=null")
    assert run_cli(*words).returncode == 0
    assert kept(tmp_path / "out") == passages[:4]
    (texts / "3.jsonl").write_text("no JSON\n")
    assert run_cli(*words).returncode == 1
    assert kept(tmp_path / "out") == passages[:4]
    write(texts / "3.jsonl", passages[4:6])
    assert run_cli(*words).returncode == 0
    assert kept(tmp_path / "out") == passages[:6]


def test_killed_while_the_result_is_put_in_its_place_it_goes_on(
    tmp_path: Path, passages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, config = str(write(tmp_path / "a.jsonl", passages[:4])), CleanConfig.model_validate({"minhash": None})
    real, moved = Path.rename, []

    def killed(path: Path, target: Path) -> Path:
        moved.append(real(path, target))
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        clean([source], tmp_path / "out", config, Where())
    assert moved == [tmp_path / "out" / "kept"]
    monkeypatch.undo()
    assert clean([source], tmp_path / "out", config, Where()) is not None
    assert kept(tmp_path / "out") == passages[:4]
    assert not list((tmp_path / "out").glob("work-*"))


def test_nothing_that_stays_is_no_text_to_go_on_with(tmp_path: Path, passages: list[str], run_cli: Any) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    write(texts / "a.jsonl", [*passages[:3], " "])
    (texts / "a.csv").touch()
    words = (
        "clean",
        texts,
        "--out",
        tmp_path / "out",
        "minhash=null",
        "gopher_quality.min_doc_words=9999",
    )
    run = run_cli(*words, "gopher_quality.max_doc_words=99999")
    assert run.returncode == 0, run.stderr
    assert "nothing was kept: the rule that dropped most is gopher_quality" in run.stderr
    assert "next:" not in run.stderr
    assert f"left out: 1 .csv files ({texts / 'a.csv'})" in run.stderr
    assert "left out while reading: 1 blank documents" in run.stderr + run.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("bad.jsonl",), 1, ["bad.jsonl:2", "not JSON"]),
        (("nothing.jsonl",), 1, ["no file, folder or glob"]),
        (("good.jsonl", "gopher_qualty.min_doc_words=3"), 1, ["no file, folder or glob"]),
        (("good.jsonl", "gopher_quality.min_doc_wrds=3"), 2, ["did you mean"]),
        (("good.jsonl", "--slurm", "queue=x"), 2, ["known keys"]),
        (("good.jsonl", "--slurm", "cpus=x"), 2, ["cpus=x", "a whole number"]),
        (("good.jsonl", "--slurm", "partition=cpu"), 1, ["there is no sbatch here"]),
        (("good.jsonl", "--ray"), 1, ["--ray needs the package ray", "pip install 'ray[default]'"]),
        (("good.jsonl", "--out", "mine"), 1, ["mine", "not replaced"]),
        (("hf://datasets/a/b",), 1, ["hf://datasets/a/b lies elsewhere"]),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, run_cli: Any, words: tuple[str, ...], code: int, said: list[str]
) -> None:
    write(tmp_path / "good.jsonl", ["some text"])
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\nbad\n')
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    out = () if "--out" in words else ("--out", "out")
    run = run_cli("clean", *words, *out, cwd=tmp_path, env={"PATH": "/nowhere", "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert run.returncode == code, run.stderr
    assert all(word in run.stderr for word in said), run.stderr
    assert "Traceback" not in run.stderr
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "mine"


def test_text_is_never_cleaned_away_nor_read_twice(tmp_path: Path, passages: list[str]) -> None:
    (tmp_path / "texts").mkdir()
    write(tmp_path / "texts" / "a.jsonl", passages[:5])
    config = CleanConfig.model_validate({**LIGHT, "minhash": None})
    clean([str(tmp_path / "texts")], tmp_path / "out", config, Where())
    for source, out in (("out/kept", "out"), ("out/kept", "out/kept/again"), ("texts", "texts/clean")):
        with pytest.raises(UserError, match="lie in each other"):
            clean([str(tmp_path / source)], tmp_path / out, config, Where())
    assert kept(tmp_path / "out") == passages[:5]
    assert not (tmp_path / "texts" / "clean").exists()


def test_a_disk_that_is_too_small_is_refused_before(
    tmp_path: Path, passages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    path = write(tmp_path / "a.jsonl", passages)
    needed = needs(CleanConfig(), [path], "text")
    assert 0.9 * path.stat().st_size <= needed.text <= path.stat().st_size
    assert needed.disk > needed.text
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 10))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="are free"):
        clean([str(path)], tmp_path / "out", CleanConfig(), Where())


def test_a_memory_that_is_too_small_is_refused_before(
    tmp_path: Path, passages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", passages)
    one, three = (needs(CleanConfig(), [path], "text", workers).memory for workers in (1, 3))
    assert 3e8 <= one < three <= 3 * one
    monkeypatch.setattr("mini_llm.data.clean.plan.cpu_memory", lambda: one - 1)
    with pytest.raises(UserError, match=r"of memory, and this machine has 4\d\d MB"):
        clean([str(path)], tmp_path / "out", CleanConfig(), Where())


def test_words_and_sentences_are_cut_without_a_download() -> None:
    words = Words()
    assert words.word_tokenize("It's 3.5 well-known things, isn't it?") == [
        *("It's", "3", "5", "well-known"),
        *("things", "isn't", "it"),
    ]
    text = 'He said: "Go." Then he left! Why?\nNobody knows.'
    assert (
        words.sent_tokenize(text) == ['He said: "Go."', "Then he left!", "Why?", "Nobody knows."]
        or len(words.sent_tokenize(text)) == 4
    )
    assert all(text[a:b] == s for (a, b), s in zip(words.span_tokenize(text), words.sent_tokenize(text), strict=True))


@pytest.mark.parametrize("name", ["clean-web", "clean-light"])
def test_a_shipped_config_can_be_read(name: str) -> None:
    path = Path(__file__).parents[2] / "configs" / f"{name}.yaml"
    config = load_config(CleanConfig, path)
    assert config == (CleanConfig() if name == "clean-web" else CleanConfig(**LIGHT))  # type: ignore[arg-type]


def test_groups_depend_on_the_files_alone(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{i}.jsonl", ["x" * 6_000_000]) for i in range(5)]
    assert group(files) == [[str(f) for f in files[:3]], [str(f) for f in files[3:]]]
