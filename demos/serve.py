"""Serving the page: one address, nothing from outside, nothing left behind."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vtc.checks import check_number
from vtc.cli import mistakes
from vtc.demos import ending
from vtc.demos.folder import temporary_folder

PORT = 7860
MOST_METHODS = 5  # side by side
UPLOADS, MEMORY = 512, 1024  # MB
WAITING = 24  # questions of one address
MOST_SESSIONS = 500
_INSTALL = 'the demo needs gradio: pip install "vtc-vlm[demo]"'
_SYSTEM_FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
_MONO_FONT = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


_STYLE = Path(__file__).with_name("style.css")  # goes into the head: gradio would rewrite its selectors


def serve(
    models: list[str],
    port: int = PORT,
    host: str = "127.0.0.1",
    share: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    methods: Sequence[str] = (),
    **more: Any,
) -> None:
    """Load the first model, open the page, and stay until Ctrl-C or SIGTERM; `more`: as for `running`.

    Raises:
        ImportError: gradio is not installed. OSError: the port is taken. Whatever `vtc.load` raises.
    """
    try:
        with ending.listening(), running(models, port, host, share, device, dtype, methods, **more) as address:
            print(f"vtc demo: {address} (Ctrl-C stops it)", flush=True)
            while True:
                time.sleep(3600)
    except BaseException as error:  # imports that a signal broke may fail in any way
        if mistakes.was_interrupted():
            ending.leave(error)
        raise


@contextmanager
def running(
    models: list[str],
    port: int = PORT,
    host: str = "127.0.0.1",
    share: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    methods: Sequence[str] = (),
    allow_hosts: Sequence[str] = (),
    allow_frames: Sequence[str] = (),
    uploads: int = UPLOADS,
    waiting: int = WAITING,
    memory: int = MEMORY,
) -> Iterator[str]:
    """The demo at an address, for the length of a with block; afterwards uploads are deleted.

    Args:
        models: of which visitors choose; the first is loaded.
        allow_hosts: names under which browsers may ask for the page, besides those of this machine; "*" = any.
        allow_frames: origins whose pages may show it in a frame.
        uploads: MB that uploads may take on the disk. memory: MB for what sessions hold.
        waiting: questions of one address that may wait.

    Raises:
        ValueError: a number or a name will not do. Otherwise as `serve`.
    """
    from vtc.demos.guard import Door, Guard, Limits

    door = Door.of(host, allow_hosts, allow_frames)
    for name, value, least in (("--uploads", uploads, 64), ("--memory", memory, 64), ("--waiting", waiting, 1)):
        check_number(value, name, least, 100_000, integer=True)
    _check_port(host, port)
    with (
        temporary_folder() as folder,
        # gradio reads these when it is imported, when parts of the page are made, and at every upload
        _environment(GRADIO_TEMP_DIR=str(folder), GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1"),
    ):
        try:
            import gradio  # noqa: F401, says whether it is here
        except ImportError as error:
            raise ImportError(_INSTALL) from error
        from gradio.themes import Base
        from starlette.middleware import Middleware

        from vtc.demos.app import build
        from vtc.demos.media import MAX_BYTES
        from vtc.demos.presence import PRESENCE
        from vtc.demos.sessions import Sessions
        from vtc.demos.store import Store
        from vtc.demos.studio import Studio

        studio = Studio(models, device, dtype, methods)
        studio.load(studio.names[0])
        page = build(studio)
        limits = Limits(upload=MAX_BYTES + 2**16, waiting=max(64, waiting), waiting_of_one=waiting)
        page.queue(max_size=limits.waiting, api_open=False)
        sessions = Sessions(memory * 2**20, MOST_SESSIONS)
        parts = (door, limits, Store(folder, uploads * 2**20), sessions, PRESENCE)
        try:
            _, local, public = page.launch(
                server_name=host,
                server_port=port,
                share=share,
                prevent_thread_lock=True,
                quiet=True,
                show_error=False,
                max_file_size=MAX_BYTES,
                state_session_capacity=2 * MOST_SESSIONS,  # of which `sessions` keeps fewer, and says so
                app_kwargs={"middleware": [Middleware(Guard, *parts)]},
                theme=Base(primary_hue="indigo", font=_SYSTEM_FONT, font_mono=_MONO_FONT),
                head=f"<style>{_STYLE.read_text(encoding='utf-8')}</style>",
                footer_links=[],
                ssr_mode=False,
                enable_monitoring=False,
                mcp_server=False,
                pwa=False,
                run_history=False,
            )
            PRESENCE.queue, sessions.holder = page._queue, page.state_holder
            if public:
                door.hosts.add(urlsplit(public).hostname or "")
            yield public or local
        finally:
            PRESENCE.stop_all()
            PRESENCE.queue = None
            _close(page)


def _close(page: Any) -> None:
    """Stop the server, without waiting for streams that are open, and the tunnel of --share."""
    if getattr(page, "server", None) is not None:
        page.server.force_exit = True
    log = logging.getLogger("uvicorn.error")  # which would tell of each stream that is cut
    log.disabled = True
    try:
        page.close(verbose=False)
    finally:
        log.disabled = False
    from gradio.tunneling import CURRENT_TUNNELS

    for tunnel in [tunnel for tunnel in CURRENT_TUNNELS if tunnel.local_port == page.server_port]:
        if tunnel.proc is not None:
            tunnel.proc.terminate()
            tunnel.proc = None


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
