"""llama.cpp's endpoints, with the demo pair."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from mlx_gemma_mtp import Engine


def test_clients_learn_the_context_and_the_abilities_of_the_model(
    client: TestClient, engine: Engine
) -> None:
    props = client.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == engine.context
    assert props["total_slots"] == engine.max_batch
    assert props["model_alias"] == "demo"
    assert props["modalities"] == {"vision": False, "audio": False}
    assert props["chat_template_caps"]["supports_tools"] is True
    assert engine.text is not None
    assert props["chat_template"] == engine.text.chat_template
    assert "model_path" not in props  # nothing of this machine


def test_a_slot_is_a_row_of_the_batch(client: TestClient, engine: Engine) -> None:
    slots = client.get("/slots").json()
    assert [slot["id"] for slot in slots] == [*range(engine.max_batch)]
    assert not any(slot["is_processing"] for slot in slots)


@pytest.mark.parametrize("text", ["", "Hello", "é 😀\n", "<|turn>user\nHi<turn|>", "x " * 20_000])
def test_text_becomes_tokens_and_back(client: TestClient, engine: Engine, text: str) -> None:
    tokens = client.post("/tokenize", json={"content": text}).json()["tokens"]
    assert tokens == engine.encode(text)
    assert client.post("/detokenize", json={"tokens": tokens}).json() == {"content": text}
    body = {"content": text, "add_special": True}
    assert engine.text is not None
    assert client.post("/tokenize", json=body).json()["tokens"] == [engine.text.bos, *tokens]


def test_pieces_are_text_or_the_bytes_of_a_part_of_a_character(client: TestClient) -> None:
    body = {"content": "Hi 😀", "with_pieces": True}
    tokens = client.post("/tokenize", json=body).json()["tokens"]
    pieces = [token["piece"] for token in tokens]
    assert any(isinstance(piece, list) for piece in pieces)
    raw = b"".join(bytes(one) if isinstance(one, list) else one.encode() for one in pieces)
    assert raw.decode() == "Hi 😀"
    plain = client.post("/tokenize", json={"content": "Hi 😀"}).json()["tokens"]
    assert [token["id"] for token in tokens] == plain


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": 5}, "content"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "Hi"}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [1, 10**8]}, "tokens"),
    ],
)
def test_a_wrong_body_is_refused_with_the_name_of_its_field(
    client: TestClient, path: str, body: object, field: str
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert field in answer.json()["error"]["message"]
