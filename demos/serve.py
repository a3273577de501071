"""Serving the page: one address, nothing from outside, nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vtc.checks import check_number

PORT = 7860
MOST_METHODS = 5  # side by side
_INSTALL = 'the demo needs gradio: pip install "vtc-vlm[demo]"'
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' ws: wss:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'"
)
_SYSTEM_FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
_MONO_FONT = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


_STYLE = Path(__file__).with_name("style.css")  # goes into the head: gradio would rewrite its selectors


class OwnOrigin:
    """ASGI middleware: tells browsers to load nothing that this server does not serve."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = [
                    (b"content-security-policy", _POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        await self.app(scope, receive, guarded if scope["type"] == "http" else send)


def serve(
    models: list[str],
    port: int = PORT,
    host: str = "127.0.0.1",
    share: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    methods: Sequence[str] = (),
) -> None:
    """Load the first model, open the page, and stay until Ctrl-C.

    Raises:
        ImportError: gradio is not installed. OSError: the port is taken. Whatever `vtc.load` raises.
    """
    with running(models, port, host, share, device, dtype, methods) as address:
        print(f"vtc demo: {address} (Ctrl-C stops it)", flush=True)
        for ending in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(ending) is not signal.SIG_IGN:  # as nohup wants it
                signal.signal(ending, signal.default_int_handler)  # tidies up, as Ctrl-C does
        while True:
            time.sleep(3600)


@contextmanager
def running(
    models: list[str],
    port: int = PORT,
    host: str = "127.0.0.1",
    share: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    methods: Sequence[str] = (),
) -> Iterator[str]:
    """The demo at an address, for the length of a with block; afterwards uploads are deleted."""
    _check_port(host, port)
    with (
        tempfile.TemporaryDirectory(prefix="vtc-demo-", ignore_cleanup_errors=True) as folder,
        # gradio reads these when it is imported, when parts of the page are made, and at every upload
        _environment(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1"),
    ):
        try:
            import gradio  # noqa: F401, says whether it is here
        except ImportError as error:
            raise ImportError(_INSTALL) from error
        from gradio.themes import Base
        from starlette.middleware import Middleware

        from vtc.demos.app import build
        from vtc.demos.media import MAX_BYTES
        from vtc.demos.studio import Studio

        studio = Studio(models, device, dtype, methods)
        studio.load(studio.names[0])
        page = build(studio)
        try:
            _, local, public = page.launch(
                server_name=host,
                server_port=port,
                share=share,
                prevent_thread_lock=True,
                quiet=True,
                show_error=False,
                max_file_size=MAX_BYTES,
                state_session_capacity=200,
                app_kwargs={"middleware": [Middleware(OwnOrigin)]},
                theme=Base(primary_hue="indigo", font=_SYSTEM_FONT, font_mono=_MONO_FONT),
                head=f"<style>{_STYLE.read_text(encoding='utf-8')}</style>",
                footer_links=[],
                ssr_mode=False,
                enable_monitoring=False,
                mcp_server=False,
                pwa=False,
                run_history=False,
            )
            yield public or local
        finally:
            page.close(verbose=False)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ |= values
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _check_port(host: str, port: int) -> None:
    check_number(port, "--port", 1, 65535, integer=True)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = "is in use" if error.errno in (98, 48, 10048) else f"cannot be had ({error.strerror})"
            raise OSError(
                f"port {port} of {host} {reason}: give another one, such as --port {port % 65535 + 1}"
            ) from error
