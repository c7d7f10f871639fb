"""A headless Chromium, where this machine has one, to look at a page as people see it."""

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
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage")
# A window is never narrower than 500 pixels, but a frame in it may be; and the page itself forbids scripts.
_FRAME = """
<body><iframe src="page.html" style="border:0;width:{width}px;height:2000px"></iframe><pre></pre><script>
document.querySelector("iframe").onload = event => {{
  const page = event.target.contentDocument;
  document.querySelector("pre").textContent = JSON.stringify(({ask})(page));
}};
</script></body>"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def ask(html: str, question: str, width: int, folder: Path) -> Any:
    """Show a page in a frame of a width in pixels, and put a question to it: a JavaScript function of its document."""
    assert CHROMIUM
    (folder / "page.html").write_text(html, encoding="utf-8")
    (folder / "frame.html").write_text(_FRAME.format(width=width, ask=question), encoding="utf-8")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/frame.html"
        profile = f"--user-data-dir={folder / 'profile'}"
        ran = subprocess.run(
            [CHROMIUM, *_OPTIONS, profile, "--virtual-time-budget=5000", "--dump-dom", address],
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS_MAX,
            check=True,
        )
        server.shutdown()
    answer = re.search(r"<pre>(.*?)</pre>", ran.stdout, re.DOTALL)
    assert answer, ran.stdout[-1000:]
    return json.loads(unescape(answer[1]))
