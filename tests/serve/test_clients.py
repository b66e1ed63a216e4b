"""Other people's clients: LangChain's, litellm, the Vercel AI SDK; each asks as its users do."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from running_server import RunningServer

ROOT = Path(__file__).resolve().parents[2]
NODE_FOLDER = ROOT / ".pytest_cache" / "ai-sdk"  # ignored by git, kept between runs
LITELLM_FOLDER, LITELLM = ROOT / ".pytest_cache" / "litellm", "litellm==1.110.0"
LITELLM_SCRIPT = """
import json, sys
import litellm
here = {"api_base": sys.argv[1], "api_key": "none", "max_tokens": 6}
messages = [{"role": "user", "content": "Hi"}]
whole = litellm.completion(model="openai/tiny", messages=messages, seed=1, **here)
parts = litellm.completion(model="openai/tiny", messages=messages, seed=1, stream=True, **here)
plain = litellm.text_completion(model="text-completion-openai/tiny", prompt="Hi", **here)
last = litellm.responses(model="openai/tiny", input="Hi", api_base=sys.argv[1], api_key="none", max_output_tokens=6)
print(json.dumps({
    "chat": whole.choices[0].message.content, "usage": whole.usage.completion_tokens,
    "streamed": "".join(part.choices[0].delta.content or "" for part in parts),
    "completion": plain.choices[0].text, "responses": last.output[0].content[0].text,
}))
"""
PACKAGES = ("ai@6", "@ai-sdk/openai@3", "@ai-sdk/openai-compatible@2")
SCRIPT = """
import { generateText, streamText } from "ai";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
const baseURL = process.argv[2], out = {};
const plain = createOpenAICompatible({ name: "mini", baseURL, includeUsage: true });
const whole = await generateText({ model: plain("tiny"), prompt: "Hi", maxOutputTokens: 8, seed: 1 });
out.chat = whole.text; out.usage = whole.usage.outputTokens;
const stream = streamText({ model: plain("tiny"), prompt: "Hi", maxOutputTokens: 8, seed: 1 });
out.streamed = ""; for await (const part of stream.textStream) out.streamed += part;
out.completion = (await generateText({ model: plain.completionModel("tiny"), prompt: "Hi", maxOutputTokens: 8 })).text;
const responses = createOpenAI({ baseURL, apiKey: "none" });
out.responses = (await generateText({ model: responses("tiny"), prompt: "Hi", maxOutputTokens: 8 })).text;
const last = streamText({ model: responses("tiny"), prompt: "Hi", maxOutputTokens: 8 });
out.events = ""; for await (const part of last.textStream) out.events += part;
console.log(JSON.stringify(out));
"""


def test_langchain(server: RunningServer) -> None:
    from langchain_openai import ChatOpenAI, OpenAI

    chat = ChatOpenAI(base_url=server.url, api_key="none", model="tiny", max_tokens=6, seed=1, stream_usage=True)
    whole = chat.invoke("Hi")
    streamed = list(chat.stream("Hi"))
    assert "".join(str(part.content) for part in streamed) == whole.content
    assert whole.usage_metadata["output_tokens"] == 6
    plain = OpenAI(base_url=server.url, api_key="none", model="tiny", max_tokens=6)
    assert len(plain.batch(["a", "b"])) == 2


@pytest.fixture(scope="module")
def litellm_python() -> Path:
    """Return a Python that has litellm, in an environment of its own: its pins are not ours. Installed once."""
    python = LITELLM_FOLDER / "bin" / "python"
    if not python.exists() or subprocess.run([python, "-c", "import litellm"], capture_output=True).returncode:
        venv.create(LITELLM_FOLDER, clear=True)  # without a pip of its own, and what is not used stays uncompiled
        pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
        command = [*pip, "install", "-q", "--no-compile", LITELLM]
        installed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if installed.returncode:
            pytest.skip(f"pip cannot install litellm here: {installed.stderr[-200:]}")
    return python


def test_litellm(server: RunningServer, litellm_python: Path) -> None:
    command = [litellm_python, "-c", LITELLM_SCRIPT, server.url]
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it asks the network for prices
    asked = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert asked.returncode == 0, asked.stderr[-3000:]
    found = json.loads(asked.stdout.splitlines()[-1])
    assert found["chat"] == found["streamed"]
    assert found["usage"] == 6
    assert all(found[kind] for kind in ("chat", "completion", "responses"))


@pytest.fixture(scope="module")
def ai_sdk() -> Path:
    """Return a folder with the AI SDK, installed by npm once."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no node and npm here: they run the Vercel AI SDK")
    NODE_FOLDER.mkdir(parents=True, exist_ok=True)
    (NODE_FOLDER / "package.json").write_text('{"private": true, "type": "module"}')
    if not (NODE_FOLDER / "node_modules" / "ai").is_dir():
        command = ["npm", "install", "--no-audit", "--no-fund", "--silent", *PACKAGES]
        installed = subprocess.run(command, cwd=NODE_FOLDER, capture_output=True, text=True, timeout=300, check=False)
        if installed.returncode:
            pytest.skip(f"npm cannot install the AI SDK here: {installed.stderr[-200:]}")
    return NODE_FOLDER


def test_vercel_ai_sdk(server: RunningServer, ai_sdk: Path) -> None:
    (ai_sdk / "ask.js").write_text(SCRIPT, encoding="utf-8")
    command = ["node", "ask.js", server.url]
    asked = subprocess.run(command, cwd=ai_sdk, capture_output=True, text=True, timeout=120, check=False)
    assert asked.returncode == 0, asked.stderr[-3000:]
    found = json.loads(asked.stdout)
    assert found["chat"] == found["streamed"]
    assert found["usage"] == 8
    assert all(found[kind] for kind in ("completion", "responses", "events"))


def test_the_javascript_of_the_documentation(server: RunningServer, repository: Path, tmp_path: Path) -> None:
    """Each block alone, with the server's address as its argument, writes an answer."""
    if shutil.which("node") is None:
        pytest.skip("no node here: it runs the examples")
    pages = [*repository.glob("*.md"), *repository.glob("docs/*.md"), *repository.glob("mini_llm/**/*.md")]
    found = [part.split("```")[0] for page in pages for part in page.read_text(encoding="utf-8").split("```js\n")[1:]]
    assert found
    for script in found:
        (tmp_path / "ask.mjs").write_text(script, encoding="utf-8")
        command = ["node", "ask.mjs", server.url]
        asked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert asked.returncode == 0, asked.stderr[-3000:]
        assert asked.stdout.strip()
