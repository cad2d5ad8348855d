"""Start of the demo: the process of `python -m lora_trainer demo` is replaced by Streamlit."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

READ_ONLY = "--read-only"
OPTIONS = {
    "server.headless": "true",
    "browser.gatherUsageStats": "false",
    # Without this option, Streamlit requests the public address of this machine from the internet.
    "browser.serverAddress": "localhost",
    "server.maxUploadSize": "100",
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "client.showErrorLinks": "false",
    "server.fileWatcherType": "none",
    # A color for each scheme, because a single theme.primaryColor would turn off dark mode.
    "theme.light.primaryColor": "#b4472b",
    # White text on this color, and text in this color on the dark background, both have a contrast ratio of 4.2.
    "theme.dark.primaryColor": "#cc5730",
}
LOOPBACK = "127.0.0.1"
ALLOWED_HOSTS = "STREAMLIT_SERVER_ALLOWED_HOSTS"
"""Streamlit's environment variable for the names that the page answers to, for a proxy in front of this machine."""


def main(options: Sequence[str]) -> NoReturn:
    """Replace this process with Streamlit, which serves the page.

    Args:
        options: `--read-only` to forbid changes of captions and new jobs, and Streamlit options such as `--server.port 8501`,
            which override the defaults.
    """
    if READ_ONLY in options:
        os.environ["LORA_READ_ONLY"] = "true"
    page = Path(__file__).with_name("app.py")
    defaults = [f"--{name}={value}" for name, value in OPTIONS.items()]
    others = [option for option in options if option != READ_ONLY]
    if LOOPBACK in others and ALLOWED_HOSTS not in os.environ:
        # A website can let its own name resolve to this machine (DNS rebinding). For the browser it is then one origin
        # with the page.
        defaults += [f"--server.allowedHosts={host}" for host in ("localhost", LOOPBACK)]
    command = [sys.executable, "-m", "streamlit", "run", str(page), *defaults, *others]
    os.execv(sys.executable, command)  # noqa: S606 - signals then reach Streamlit itself
