"""Certificates of a certificate authority for tests."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_certificate(folder: Path) -> Path:
    """Write ca.crt, and tls.key and tls.crt for 127.0.0.1 and localhost that this authority signed; return the folder."""
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    authority = ["-x509", "-days", "2", "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.crt"]
    for command in (
        ["req", "-newkey", "rsa:2048", "-nodes", *authority],
        ["req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=gateway", "-keyout", "tls.key", "-out", "tls.csr"],
        ["x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
         "-extfile", "ext", "-out", "tls.crt"],
    ):  # fmt: skip
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)
    return folder
