"""Headless Chromium, if it is installed, to test a page as users see it."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import threading
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
RUN_SECONDS_MAX = 60
# Turn off Chromium's sandbox, which needs rights that a container lacks, and its own requests to the network.
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Show the page in a frame, because a Chromium window is at least 500 pixels wide. The script that asks the question
# is outside the frame, because the page forbids foreign scripts.
_FRAME = """
<body><iframe src="page.html" {sandbox} style="border:0;width:{width}px;height:2000px"></iframe><pre></pre><script>
document.querySelector("iframe").onload = async event => {{
  const answer = await ({ask})(event.target.contentDocument);
  document.querySelector("pre").textContent = JSON.stringify(answer);
}};
</script></body>"""
_WITHOUT_SCRIPTS = 'sandbox="allow-same-origin"'
_DARK = "--blink-settings=preferredColorScheme=0"


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Log nothing."""


def ask(html: str, question: str, width: int, folder: Path, *, scripts: bool = True, dark: bool = False) -> Any:
    """Show a page in a frame, call a JavaScript function with the page's document, and return the result.

    Args:
        html: The page.
        question: The function, which may be async.
        width: The width of the frame in pixels.
        folder: Where files are written.
        scripts: Whether the page's own scripts run.
        dark: Whether the reader prefers a dark page.
    """
    assert CHROMIUM
    frame = _FRAME.format(width=width, ask=question, sandbox="" if scripts else _WITHOUT_SCRIPTS)
    (folder / "page.html").write_text(html, encoding="utf-8")
    (folder / "frame.html").write_text(frame, encoding="utf-8")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_QuietHandler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/frame.html"
        profile = f"--user-data-dir={folder / 'profile'}"
        ran = subprocess.run(
            [
                CHROMIUM,
                *_OPTIONS,
                *([_DARK] if dark else []),
                profile,
                "--virtual-time-budget=5000",
                "--dump-dom",
                address,
            ],
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS_MAX,
            check=True,
        )
        server.shutdown()
    answer = re.search(r"<pre>(.*?)</pre>", ran.stdout, re.DOTALL)
    assert answer, ran.stdout[-1000:]
    return json.loads(unescape(answer[1]))
