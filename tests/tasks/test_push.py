"""Upload to the hub, against a local server that answers as the hub does."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from src.errors import UserError
from src.tasks import push

REPO = "reslab-tests/mhc"


class Hub(ThreadingHTTPServer):
    """Server with the repositories that were created and the files of their commits."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.created: dict[str, bool] = {}  # whether private, by name
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.status = 200


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.status != 200:
            return self.answer({"error": "not allowed"}, self.server.status)
        if self.path.endswith("/repos/create"):
            asked = json.loads(raw)
            name = f"{asked['organization']}/{asked['name']}"
            # By version of huggingface_hub: {"private": true} or {"visibility": "private"}.
            self.server.created[name] = asked.get("private", asked.get("visibility") == "private")
            return self.answer({"url": f"https://huggingface.co/{name}"})
        if "/preupload/" in self.path:
            kinds = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(raw)["files"]
            ]
            return self.answer({"files": kinds})
        for line in raw.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return self.answer(
            {"commitUrl": f"https://huggingface.co/{REPO}/commit/1", "commitOid": "1" * 40, "pullRequestUrl": None}
        )

    def do_GET(self) -> None:
        self.answer({"siblings": [], "sha": "1" * 40, "id": REPO}, self.server.status)

    def answer(self, tree: Any, status: int = 200) -> None:
        data = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Print nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(push, "HfApi", lambda: huggingface_hub.HfApi(endpoint=address, token="hf_of_the_test"))
        monkeypatch.setattr(push, "get_token", lambda: "hf_of_the_test")
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/config.json").write_text("{}\n")
    (tmp_path / "hub/modeling_reslab.py").write_text("x = 1\n")
    return tmp_path / "hub"


def test_a_folder_becomes_one_commit_of_a_private_repository(hub: Hub, folder: Path) -> None:
    push.require_pushable(REPO)
    address = push.push_folder(folder, REPO, private=True, message="step 3")
    assert address.endswith(REPO)
    assert hub.created == {REPO: True}
    assert hub.files == {"config.json": b"{}\n", "modeling_reslab.py": b"x = 1\n"}
    assert hub.tokens == {"Bearer hf_of_the_test"}


def test_a_public_repository_is_asked_for(hub: Hub, folder: Path) -> None:
    push.push_folder(folder, REPO, private=False, message="step 3")
    assert hub.created == {REPO: False}


def test_a_rejected_upload_is_one_sentence_that_names_the_export(hub: Hub, folder: Path) -> None:
    hub.status = 403
    with pytest.raises(UserError, match=rf"push_to={REPO} failed: .*403.*; set HF_TOKEN.*; the export is in {folder}$"):
        push.push_folder(folder, REPO, private=True, message="step 3")


def test_what_cannot_be_pushed_is_rejected_before_the_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "get_token", lambda: None)
    with pytest.raises(UserError, match="needs a token of the Hugging Face hub; set HF_TOKEN"):
        push.require_pushable(REPO)
    for name in ("alone", "a/b/c", "some one/name", "a--b/name", "team/"):
        with pytest.raises(UserError, match=f"push_to must be <organisation or user>/<name> .*, got {name}$"):
            push.require_pushable(name)
