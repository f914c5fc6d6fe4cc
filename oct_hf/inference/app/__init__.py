"""The page to drop B-scans on: `serve()` answers in a browser what `oct-hf predict` writes to a table.

Gradio draws the page. It runs on this machine alone: nothing is fetched from or told to others, no answer is stored,
and dropped files are deleted once they are answered.
"""

import signal
from collections.abc import Callable
from importlib.util import find_spec

from oct_hf.errors import OCTError

LAST_SECONDS = 2  # an open tab keeps its connection for good, so the end doesn't wait for it


def serve(
    model: str, port: int = 7860, host: str = "127.0.0.1", ready: Callable[[str], None] = lambda address: None
) -> int:
    """Serves the page until SIGINT or SIGTERM, and gives the signal's number.

    Args:
        model: a run, a model folder or a Hub id.
        port: 0 takes a free one.
        host: address to listen on.
        ready: called with the page's address once it can be opened.

    Raises:
        OCTError: Gradio is missing, or the port is taken.
        ModelError: the model can't be loaded.
    """
    if find_spec("gradio") is None:
        raise OCTError('the app needs Gradio: pip install "oct-hf[app]"')
    from oct_hf import serving

    taken = serving.take_port(port, host)
    from oct_hf.inference.app.server import running_app

    stopped = signal.SIGINT  # while it was still loading
    with running_app(model) as app:
        address = f"http://{host}:{taken.getsockname()[1]}"
        stopped = serving.run_until_stopped(app, taken, lambda: ready(address), LAST_SECONDS)
    return stopped
