"""Where checkpoints are, and what is said where there is none: soon, and in one sentence."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from fewstep.core import source
from fewstep.core.source import ASSETS, folder_of, read_json

COMMIT = "0" * 40


def find(name: str | Path) -> Path:
    return folder_of(name, "diffusers folder", bundled="teacher")


def test_a_folder_is_itself(tmp_path) -> None:
    assert find(tmp_path) == find(str(tmp_path)) == tmp_path
    assert find("bundled") == ASSETS / "teacher"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("model.pkl", "holds a pickle, and reading it would run the code in it"),
        ("model.PKL", "holds a pickle"),
        ("model.pt", "holds weights or a training state without the network"),
        ("model.pth", "holds weights or a training state without the network"),
        ("model.ckpt", "holds weights or a training state without the network"),
        ("model.safetensors", "holds weights without the network they belong to; give the folder they came in"),
        ("model.gguf", "holds weights quantised for llama.cpp"),
        ("model.zip", "is not a folder; give a diffusers folder"),
    ],
)
def test_a_file_is_called_what_it_is(tmp_path, name: str, sentence: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{name} {sentence}") as refused:
        find(tmp_path / name)
    assert "diffusers folder" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("runs/model.pkl", "there is no file runs/model.pkl"),
        ("https://huggingface.co/owner/name", "is a URL; download it"),
        (Path("https://huggingface.co/owner/name"), "is a URL"),
        ("missing", "is not a folder"),
        ("./runs/missing", "is not a folder"),
        ("/runs/missing", "is not a folder"),
        ("a/b/c", "is not a folder"),
    ],
)
def test_what_is_not_there_is_not_asked_for(monkeypatch, name: str, sentence: str) -> None:
    monkeypatch.setattr(source, "_snapshot", None)
    with pytest.raises(ValueError, match=sentence):
        find(name)


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[type[BaseHTTPRequestHandler]]:
    """A hub that answers with the status of its class, and counts the questions."""

    class Hub(BaseHTTPRequestHandler):
        status, headers_sent, asked = 503, {}, 0

        def do_GET(self) -> None:
            type(self).asked += self.path.startswith("/api/models")
            self.send_response(self.status)
            for name, value in {"Content-Length": "0", **self.headers_sent}.items():
                self.send_header(name, value)
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=[0.01])  # seconds, after which it sees the end
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


def refusal(name: str = "owner/name") -> str:
    with pytest.raises(ValueError, match="is no folder and was not fetched before") as refused:
        find(name)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_hub_in_trouble_is_asked_once(hub) -> None:
    assert "503" in refusal() and hub.asked == 1


def test_a_repository_that_is_not_there(hub) -> None:
    hub.status, hub.headers_sent = 404, {"X-Error-Code": "RepoNotFound"}
    assert "the hub has no such repository" in refusal()


def test_a_hub_that_never_answers(monkeypatch, hub) -> None:
    """It is asked once, for as long as we say."""
    waited, ask = [], HfApi.model_info
    monkeypatch.setattr(HfApi, "model_info", lambda *a, **o: (waited.append(o["timeout"]), ask(*a, **o))[1])
    monkeypatch.setattr(source, "HUB_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "the hub cannot be asked" in refusal()
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()
    assert waited == [0.1]


def test_no_network_at_all(monkeypatch, hub) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    assert "the hub cannot be asked" in refusal()


def test_no_name_of_a_repository(hub) -> None:
    assert "owner/na me" in refusal("owner/na me") and hub.asked == 0


def test_offline_is_respected(monkeypatch, hub) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids" in refusal() and hub.asked == 0


@pytest.mark.parametrize("offline", [True, False])
def test_what_was_fetched_before_is_found(monkeypatch, tmp_path, hub, offline: bool) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    cached = tmp_path / "models--owner--name"
    (cached / "snapshots" / COMMIT).mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    assert find("owner/name") == cached / "snapshots" / COMMIT


def test_json_of_any_encoding_that_json_allows(tmp_path) -> None:
    for encoding in ("utf-8", "utf-16", "utf-8-sig"):
        (tmp_path / "x.json").write_text('{"name": "é", "low": -Infinity}', encoding=encoding)
        assert read_json(tmp_path / "x.json", "why") == {"name": "é", "low": float("-inf")}
