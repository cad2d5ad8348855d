"""`python -m lora_trainer demo`: Streamlit on the page, with its own answer to every question it might ask."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

OPTIONS = {
    "server.headless": "true",
    "browser.gatherUsageStats": "false",
    # Only said at the start; without it Streamlit asks the internet for this machine's address.
    "browser.serverAddress": "localhost",
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "client.showErrorLinks": "false",
    "server.fileWatcherType": "none",
    "theme.primaryColor": "#b4472b",
}


def main(options: Sequence[str]) -> NoReturn:
    """Become Streamlit's process, which serves the page until it is stopped.

    Args:
        options: Streamlit's own, for example `--server.port 8501`; they come after ours and win.
    """
    page = Path(__file__).with_name("app.py")
    ours = [f"--{name}={value}" for name, value in OPTIONS.items()]
    command = [sys.executable, "-m", "streamlit", "run", str(page), *ours, *options]
    os.execv(sys.executable, command)  # noqa: S606 - no process between the page and who stops it
