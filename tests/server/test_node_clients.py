"""OpenAI's and Anthropic's clients for JavaScript, if Node.js and npm's registry are there."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.command import SECONDS

pytestmark = pytest.mark.slow

PACKAGES = ["openai@6", "@anthropic-ai/sdk@0"]
SCRIPT = """
import OpenAI from "openai";
import Anthropic from "@anthropic-ai/sdk";

const url = process.argv[2];
const messages = [{ role: "user", content: "What is 17 + 25?" }];
const asked = { model: "demo", messages, temperature: 0, max_tokens: 40 };
const found = {};

const openai = new OpenAI({ baseURL: url + "/v1", apiKey: "none" });
found.chat = (await openai.chat.completions.create(asked)).choices[0].message.content;
found.stream = "";
for await (const event of await openai.chat.completions.create({ ...asked, stream: true }))
  found.stream += event.choices[0]?.delta.content ?? "";
const input = messages[0].content;
const response = await openai.responses.create({ model: "demo", input, temperature: 0 });
found.responses = response.output_text;

const anthropic = new Anthropic({ baseURL: url, apiKey: "none" });
found.messages = (await anthropic.messages.create(asked)).content[0].text;
found.events = (await anthropic.messages.stream(asked).finalMessage()).content[0].text;
found.refused = await openai.chat.completions
  .create({ ...asked, model: "other" })
  .catch((error) => [error.status, error.code]);
console.log(JSON.stringify(found));
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("Node.js and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder)]
    try:
        subprocess.run([*command, *PACKAGES], check=True, timeout=120, capture_output=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip("npm cannot install the clients here")
    (folder / "ask.mjs").write_text(SCRIPT)
    return folder


def test_javascript_clients_get_the_same_answer_by_every_way(folder: Path, url: str) -> None:
    run = ["node", "ask.mjs", url]
    done = subprocess.run(
        run, cwd=folder, check=True, stdout=subprocess.PIPE, text=True, timeout=SECONDS
    )
    found = json.loads(done.stdout)
    assert found.pop("refused") == [404, "model_not_found"]
    assert set(found.values()) == {"17 + 25 = 42"}, found
