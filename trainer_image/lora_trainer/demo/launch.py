"""`python -m lora_trainer demo`: Streamlit on the page, with its own answer to every question it might ask."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

OPTIONS = {
    "server.headless": "true",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "client.showErrorLinks": "false",
    "server.fileWatcherType": "none",
    "theme.primaryColor": "#b4472b",
}


def main(options: Sequence[str]) -> int:
    """Serve the page until it is stopped.

    Args:
        options: Streamlit's own, for example `--server.port 8501`; they come after ours and win.
    """
    page = Path(__file__).with_name("app.py")
    ours = [f"--{name}={value}" for name, value in OPTIONS.items()]
    try:
        return subprocess.call([sys.executable, "-m", "streamlit", "run", str(page), *ours, *options])
    except KeyboardInterrupt:
        return 0
