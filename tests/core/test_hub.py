"""Pushing to the hub, against a hub of our own on this machine that speaks as much of its language as one commit takes."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from huggingface_hub import constants

from fewstep.core.hub import push

FILES = {"README.md": b"# mine", "model_index.json": b"{}", "unet/weights.safetensors": b"numbers", "fewstep.json": b"{}"}


class Hub(BaseHTTPRequestHandler):
    """Keeps what is committed; answers `status` to the question who is there."""

    status = 200
    kept: ClassVar[dict[str, bytes]] = {}
    made: ClassVar[list[dict[str, object]]] = []

    def do_GET(self) -> None:
        self.answer({"name": "owner", "type": "user", "auth": {}}, self.status)

    def do_POST(self) -> None:
        raw = self.read()
        if self.path == "/api/repos/create":
            self.made.append(json.loads(raw))
            self.answer({"url": f"{constants.ENDPOINT}/owner/name"})
        elif "/preupload/" in self.path:
            files = json.loads(raw)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/commit/" not in self.path:
            self.answer({"errors": [], "warnings": []})  # of the card
        else:
            lines = [json.loads(line) for line in raw.splitlines()]
            self.kept.update(
                {v["value"]["path"]: base64.b64decode(v["value"]["content"]) for v in lines if v["key"] == "file"}
            )
            self.answer({"commitUrl": f"{constants.ENDPOINT}/owner/name/commit/1", "commitOid": "1"})

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(parts)

    def answer(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    class Own(Hub):
        kept, made = {}, []

    server = HTTPServer(("127.0.0.1", 0), Own)
    thread = threading.Thread(target=server.serve_forever, args=[0.01])  # seconds, after which it sees the end
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield Own
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        file = tmp_path / "export" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return tmp_path / "export"


def test_an_exported_folder_is_one_commit(hub: type[Hub], folder: Path) -> None:
    (folder / "state.pt").write_bytes(b"a pickle")
    (folder / "model.py").write_bytes(b"code")
    assert push(folder, "owner/name", private=True) == f"{constants.ENDPOINT}/owner/name"
    assert hub.kept == FILES
    asked = hub.made[0]
    assert asked["name"] == "name" and (asked.get("visibility") == "private" or asked.get("private") is True)


@pytest.mark.parametrize("status", [401, 403])
def test_a_hub_that_forbids_it(hub: type[Hub], folder: Path, status: int) -> None:
    hub.status = status
    with pytest.raises(ValueError, match="hf auth login"):
        push(folder, "owner/name")
    assert not hub.kept


def test_nobody_is_logged_in(hub: type[Hub], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="hf auth login"):
        push(folder, "owner/name")


def test_a_hub_that_is_away(hub: type[Hub], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ValueError, match=r"the hub did not take .*so try again"):
        push(folder, "owner/name")


@pytest.mark.parametrize("name", ["name", "a b/c", "a/b/c"])
def test_names_that_are_none(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no name on the hub; give owner/name"):
        push(folder, name)


def test_what_was_not_exported_is_not_pushed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="export the student first"):
        push(tmp_path, "owner/name")
    (tmp_path / "4-step").mkdir()
    (tmp_path / "4-step" / "README.md").touch()
    with pytest.raises(ValueError, match=r"push one of them, such as .*4-step"):
        push(tmp_path, "owner/name")
