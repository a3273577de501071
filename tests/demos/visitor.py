"""A visitor of the demo without a browser: what a page sends and is told, over plain HTTP."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

PICTURES = Path(__file__).resolve().parents[2] / "eval" / "data" / "tiny" / "pictures"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Visitor:
    """One open page.

    Args:
        address: of the demo. source: the address of this machine that it comes from, 127.0.0.1 to 127.255.255.254.
    """

    def __init__(self, address: str, source: str = "127.0.0.1") -> None:
        transport = httpx.HTTPTransport(local_address=source)
        self.client = httpx.Client(base_url=address, transport=transport, timeout=200)
        self.page = secrets.token_hex(6)
        self.config: dict[str, Any] = self.client.get("/config").json()
        self.told: dict[int, str] = {}  # texts of fields that an event has changed

    def event(self, target: str) -> dict[str, Any]:
        """The event whose first trigger is `target`: "load" asks, "upload" takes a file."""
        return next(d for d in self.config["dependencies"] if d["targets"] and d["targets"][0][1] == target)

    def join(self, target: str, question: str | None = None, path: str | None = None) -> httpx.Response:
        """Trigger an event with the values that the page opens with, but for those given, and no methods."""
        event, parts = self.event(target), {part["id"]: part for part in self.config["components"]}

        def value(part: dict[str, Any]) -> Any:
            if part["type"] == "file":
                return {"path": path, "meta": {"_type": "gradio.FileData"}}
            if part["type"] == "checkboxgroup":
                return []
            if part["type"] == "textbox" and part["props"].get("label") == "Question" and question is not None:
                return question
            if part["id"] in self.told:
                return self.told[part["id"]]
            held = part["props"].get("value") if part["type"] != "state" else None
            if isinstance(held, str) and '"methods"' in held:  # what is chosen, as JSON
                return json.dumps(json.loads(held) | {"methods": []})
            return held

        data = [value(parts[number]) for number in event["inputs"]]
        job = {"fn_index": event["id"], "data": data, "session_hash": self.page, "trigger_id": None, "event_data": None}
        return self.client.post("/gradio_api/queue/join", json=job)

    def news(self) -> Iterator[dict[str, Any]]:
        """What the page is told until nothing of its is under way any more."""
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.page}) as lines:
            for line in lines.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    if message["msg"] == "close_stream":
                        return
                    yield message

    def end_of(self, target: str, question: str | None = None, path: str | None = None) -> dict[str, Any]:
        """Trigger an event and return the message that it ends with."""
        joined = self.join(target, question, path)
        assert joined.status_code == 200, joined.text
        return next(message for message in self.news() if message["msg"] == "process_completed")

    def send(self, name: str, content: bytes) -> httpx.Response:
        return self.client.post("/gradio_api/upload", files={"files": (name, content)})

    def take(self, file: Path | str, content: bytes | None = None) -> str:
        """Upload a file and put it in place; returns what the page then says."""
        name = Path(file).name
        sent = self.send(name, Path(file).read_bytes() if content is None else content)
        assert sent.status_code == 200, sent.text
        ended = self.end_of("upload", path=sent.json()[0])
        assert ended["success"], ended
        texts = {part["id"] for part in self.config["components"] if part["type"] == "textbox"}
        for number, value in zip(self.event("upload")["outputs"], ended["output"]["data"], strict=True):
            if number in texts and isinstance(value, str):
                self.told[number] = value
        return json.dumps(ended, ensure_ascii=False)

    def ask(self, question: str) -> str:
        """What the page is told about the answer with all tokens."""
        joined = self.join("load", question)
        assert joined.status_code == 200, joined.text
        told = [message for message in self.news() if message["msg"].startswith("process_")]
        assert told[-1]["success"], told[-1]
        return json.dumps([message["output"] for message in told if message.get("output")], ensure_ascii=False)

    def leave(self) -> None:
        self.client.close()
