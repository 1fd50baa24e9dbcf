"""Talk to a running ComfyUI: submit prompts, follow them on the websocket, fetch what they made."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiohttp

COLOURS = re.compile(r"\x1b\[[0-9;]*m")


__all__ = [
    "Event",
    "HostClient",
    "HostError",
    "Interrupted",
    "NodeError",
    "PromptError",
    "Submission",
]

Prompt = dict[str, dict[str, Any]]
Outputs = dict[str, dict[str, Any]]

PREVIEW_MESSAGE, TEXT_MESSAGE = 1, 3  # the host's numbers for binary messages


class Interrupted(Exception):
    """The prompt was interrupted or taken off the queue."""


class HostError(Exception):
    """The host did not start, could not load the pack, or stopped."""


@dataclass(frozen=True)
class NodeError:
    """One complaint of the host about one node."""

    node: str
    class_type: str
    message: str
    input: str = ""

    def __str__(self) -> str:
        return (
            f"node {self.node} ({self.class_type}){f', {self.input}' if self.input else ''}: {self.message}"
        )


class PromptError(Exception):
    """The host refused a prompt, or a node of it failed.

    Attributes:
        stage: "validation" or "execution".
        errors: every complaint; `node`, `class_type` and `message` are those of the first.
        traceback: of an execution error, as the host reports it.
    """

    def __init__(
        self, stage: Literal["validation", "execution"], errors: list[NodeError], traceback: str = ""
    ) -> None:
        super().__init__("; ".join(str(error) for error in errors))
        self.stage = stage
        self.errors = errors
        self.node = errors[0].node
        self.class_type = errors[0].class_type
        self.message = errors[0].message
        self.traceback = traceback


@dataclass(frozen=True)
class Event:
    """Something the host said while it ran a prompt.

    kind:
        "node": `node` starts. "progress": `node` is at `value` of `max`. "text": `node` shows `text`.
        "preview": an image, encoded in `data`. "output": `node` ended and left `data` for the user.
        "cached": the nodes in `data` need not run.
    """

    kind: Literal["node", "progress", "text", "preview", "output", "cached"]
    node: str = ""
    value: float = 0
    max: float = 0
    text: str = ""
    data: Any = None


class HostClient:
    """A ComfyUI server seen over HTTP.

    Args:
        address: such as "http://127.0.0.1:8188".
        log: the host's log file, if known; its tail explains a lost connection.
    """

    def __init__(self, address: str, *, log: Path | None = None) -> None:
        self.address = address.rstrip("/")
        self.log = log
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({})
        )  # a loopback address needs no proxy

    def request(self, path: str, body: object = None, **query: str) -> bytes:
        """Send a GET request, or with a `body` a POST request of it as JSON, and return the answer.

        Raises:
            HostError: the host does not answer.
            urllib.error.HTTPError: it answers with an error status.
        """
        url = f"{self.address}{path}{f'?{urllib.parse.urlencode(query)}' if query else ''}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
        try:
            with self._opener.open(request, timeout=60) as response:
                return response.read()
        except urllib.error.HTTPError:
            raise
        except OSError as error:
            raise self.lost(str(getattr(error, "reason", error))) from error

    def json(self, path: str, body: object = None, **query: str) -> Any:
        return json.loads(self.request(path, body, **query) or b"null")

    def system_stats(self) -> dict[str, Any]:
        return self.json("/system_stats")

    def object_info(self, class_type: str = "") -> dict[str, Any]:
        """Return the host's description of all node types, or of one."""
        return self.json(f"/object_info/{class_type}" if class_type else "/object_info")

    def templates(self) -> dict[str, list[str]]:
        """Return the titles of the workflow templates of each pack."""
        return self.json("/api/workflow_templates")

    def history(self, prompt_id: str) -> dict[str, Any]:
        return self.json(f"/history/{prompt_id}").get(prompt_id, {})

    def view(self, filename: str, subfolder: str = "", type: str = "output") -> bytes:
        """Return a file that a node made, as its output names it."""
        return self.request("/view", filename=filename, subfolder=subfolder, type=type)

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Interrupt what runs; with a prompt's id only that, and take it off the queue if it waits there."""
        if prompt_id is not None:
            self.request("/queue", {"delete": [prompt_id]})
        self.request("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def free(self) -> None:
        """Let the host forget its models and cached results."""
        self.request("/free", {"unload_models": True, "free_memory": True})

    def submit(self, prompt: Prompt, *, workflow: dict[str, Any] | None = None) -> Submission:
        """Queue a prompt in API format; iterate over the answer for its events.

        Args:
            workflow: the graph in UI format, to be stored in saved images.

        Raises:
            PromptError: the host refused it.
        """
        return Submission(self, prompt, workflow)

    def run(
        self,
        prompt: Prompt,
        *,
        workflow: dict[str, Any] | None = None,
        on_event: Callable[[Event], object] | None = None,
        timeout: float | None = None,
    ) -> Outputs:
        """Queue a prompt, wait for its end and return what its output nodes left, by node id.

        `on_event` may raise anything: the prompt is interrupted then. So it is after `timeout` seconds.

        Raises:
            PromptError: the host refused it, or a node failed.
            Interrupted: someone interrupted it.
            TimeoutError: it took longer than `timeout`.
        """
        with self.submit(prompt, workflow=workflow) as submission:
            for event in submission.events(timeout):
                if on_event is not None:
                    on_event(event)
            return submission.outputs

    def lost(self, reason: str) -> HostError:
        """Return the error that says that the host is gone, with the tail of its log."""
        tail = ""
        if self.log is not None and self.log.exists():
            text = COLOURS.sub("", self.log.read_text(encoding="utf-8", errors="replace"))
            tail = "\n" + "\n".join(text.rstrip().splitlines()[-30:])
        return HostError(f"the host at {self.address} does not answer ({reason}){tail}")


@dataclass
class Submission:
    """One queued prompt: iterate for its events, then read `outputs`. Leaving `with` early interrupts it."""

    client: HostClient
    prompt: Prompt
    workflow: dict[str, Any] | None = None
    outputs: Outputs = field(default_factory=dict, init=False)
    seconds: float = field(default=0.0, init=False)
    done: bool = field(default=False, init=False)
    _node: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.prompt_id = str(uuid.uuid4())
        self._client_id = uuid.uuid4().hex  # the host addresses events to it
        self._runner = asyncio.Runner()
        self._errors: list[NodeError] = []
        self._traceback = ""
        self._interrupted = False
        self._started = time.monotonic()
        try:
            self._runner.run(self._connect())
            self._queue()
        except BaseException:
            self.close()
            raise

    async def _connect(self) -> None:
        self._session = aiohttp.ClientSession()
        try:
            url = f"{self.client.address}/ws?clientId={self._client_id}"
            self._socket = await self._session.ws_connect(url, max_msg_size=0)
        except aiohttp.ClientError as error:
            raise self.client.lost(str(error)) from error

    def _queue(self) -> None:
        body: dict[str, Any] = {
            "prompt": self.prompt,
            "prompt_id": self.prompt_id,
            "client_id": self._client_id,
        }
        if self.workflow is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": self.workflow}}
        try:
            answer = self.client.json("/prompt", body)
        except urllib.error.HTTPError as error:
            self.done = True
            raise PromptError("validation", _validation_errors(json.loads(error.read()))) from None
        if answer["node_errors"]:  # some outputs are valid, and the host would run those
            raise PromptError("validation", _validation_errors(answer))

    def __enter__(self) -> Submission:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Event]:
        return self.events()

    def interrupt(self) -> None:
        self.client.interrupt(self.prompt_id)

    def close(self) -> None:
        """Interrupt the prompt if it has not ended, and close the connection."""
        if not self.done:
            self.done = True
            with contextlib.suppress(HostError, urllib.error.HTTPError):
                self.interrupt()
        if hasattr(self, "_session") and not self._session.closed:
            self._runner.run(self._session.close())
        self._runner.close()

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """Yield what the host says until the prompt has ended; raises like `HostClient.run`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.done:
            yield from self._read(self._receive(deadline, timeout))
        self.close()
        self.seconds = time.monotonic() - self._started
        if self._interrupted:
            raise Interrupted(f"prompt {self.prompt_id} was interrupted")
        if self._errors:
            raise PromptError("execution", self._errors, self._traceback)

    def _receive(self, deadline: float | None, timeout: float | None) -> aiohttp.WSMessage:
        """Return the next message; look after a prompt that left the queue without a word."""
        while True:
            left = 2.0 if deadline is None else min(2.0, deadline - time.monotonic())
            try:
                if left <= 0:
                    raise TimeoutError(f"the prompt did not end in {timeout:g} seconds")
                message = self._runner.run(self._socket.receive(timeout=left))
            except TimeoutError:
                if deadline is not None and time.monotonic() >= deadline:
                    self.close()
                    raise TimeoutError(f"the prompt did not end in {timeout:g} seconds") from None
                if self._was_dropped():
                    return aiohttp.WSMessage(aiohttp.WSMsgType.TEXT, '{"type": "dropped", "data": {}}', None)
                continue
            if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                self.done = True
                self.close()
                raise self.client.lost("it closed the connection")
            return message

    def _was_dropped(self) -> bool:
        queue = self.client.json("/queue")
        waiting = {item[1] for part in ("queue_running", "queue_pending") for item in queue[part]}
        return self.prompt_id not in waiting and not self.client.history(self.prompt_id)

    def _read(self, message: aiohttp.WSMessage) -> Iterator[Event]:
        if message.type == aiohttp.WSMsgType.BINARY:
            yield from self._read_binary(message.data)
            return
        content = json.loads(message.data)
        kind, data = content["type"], content.get("data") or {}
        if kind == "dropped":
            self._interrupted = self.done = True
        if data.get("prompt_id") != self.prompt_id:
            return
        if kind == "executing" and data["node"] is None:  # comes last, when the history is written
            self.outputs = self.client.history(self.prompt_id).get("outputs", {})
            self.done = True
        elif kind == "executing":
            self._node = data["node"]
            yield Event("node", self._node)
        elif kind == "progress":
            yield Event("progress", data["node"] or self._node, data["value"], data["max"])
        elif kind == "executed":
            yield Event("output", data["node"], data=data["output"])
        elif kind == "execution_cached":
            yield Event("cached", data=data["nodes"])
        elif kind == "execution_interrupted":
            self._interrupted = True
        elif kind == "execution_error":
            text = f"{data['exception_type']}: {data['exception_message']}".strip()
            self._errors.append(NodeError(data["node_id"], data["node_type"], text))
            self._traceback = self._traceback or "".join(data.get("traceback") or ())

    def _read_binary(self, data: bytes) -> Iterator[Event]:
        (kind,) = struct.unpack_from(">I", data)
        if kind == TEXT_MESSAGE:
            (length,) = struct.unpack_from(">I", data, 4)
            node, text = data[8 : 8 + length], data[8 + length :]
            yield Event("text", node.decode(), text=text.decode())
        elif kind == PREVIEW_MESSAGE:
            yield Event("preview", self._node, data=data[8:])


def _validation_errors(answer: dict[str, Any]) -> list[NodeError]:
    """Turn the host's answer to an invalid prompt into errors; the prompt is to blame where no node is."""
    errors = [
        NodeError(
            node,
            complaint["class_type"],
            _sentence(error),
            error.get("extra_info", {}).get("input_name") or "",
        )
        for node, complaint in answer.get("node_errors", {}).items()
        for error in complaint["errors"]
    ]
    if errors:
        return errors
    error: dict[str, Any] = answer.get("error") or {"message": "the host refused the prompt"}
    extra = error.get("extra_info", {})
    return [NodeError(str(extra.get("node_id", "")), str(extra.get("class_type", "")), _sentence(error))]


def _sentence(error: dict[str, Any]) -> str:
    return f"{error['message']}: {error['details']}" if error.get("details") else error["message"]
