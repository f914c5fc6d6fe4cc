"""The page as an application that talks to nobody else: no telemetry, no fonts or scripts of others, no kept files."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi import FastAPI

from oct_hf.inference.app.answers import MAX_UPLOAD

# What a browser may load for this page: what comes from here, and pictures inside it. Gradio compiles its templates in
# the browser, hence the two words "unsafe"; what a stranger named is escaped in `parts.py`.
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@contextmanager
def running_app(model: str) -> Iterator[FastAPI]:
    """The application of a model; dropped files pass through a folder that only this user can read, removed at the end.

    Args:
        model: a run, a model folder or a Hub id.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="oct-hf-app-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield create_app(model, Path(folder))
        finally:
            os.environ.pop("GRADIO_TEMP_DIR")
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


def create_app(model: str, folder: Path) -> FastAPI:
    """As `running_app`, with the folder through which files pass."""
    import gradio as gr

    from oct_hf.inference.app.page import CSS, SCRIPT, build, theme
    from oct_hf.inference.app.served import Served

    app = FastAPI(openapi_url=None)

    @app.middleware("http")
    async def closed(request, call_next):
        response = await call_next(request)
        for name, value in HEADERS.items():
            response.headers[name] = value
        return response

    return gr.mount_gradio_app(
        app,
        build(Served(model), folder),
        path="/",
        footer_links=[],
        run_history=False,  # it would keep B-scans in the browser
        max_file_size=MAX_UPLOAD,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        head=f"<style>{CSS}</style><script>{SCRIPT}</script>",  # as css=, a selector's commas inside brackets break
    )
