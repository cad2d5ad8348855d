"""Certificates by which the servers of the local store authenticate each other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .private_files import write_private

VALIDITY = timedelta(days=3650)
"""Longer than any process runs: new certificates are made at each start."""


def write_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """Write a certificate authority's certificate, and a certificate that it signed, with its key.

    The authority's key is not kept, so no other certificate can be signed with it. The files are for their owner only.

    Returns:
        The paths of the authority's certificate, the certificate and its key, in PEM form.
    """
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority_name, name = _name("local store authority"), _name("local store")
    authority = _builder(authority_name, authority_name, authority_key.public_key(), is_authority=True).sign(
        authority_key, hashes.SHA256()
    )
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    certificate = (
        _builder(name, authority_name, key.public_key(), is_authority=False)
        .add_extension(usage, critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    paths = folder / "ca.crt", folder / "tls.crt", folder / "tls.key"
    contents = (
        authority.public_bytes(serialization.Encoding.PEM),
        certificate.public_bytes(serialization.Encoding.PEM),
        private,
    )
    for path, data in zip(paths, contents, strict=True):
        write_private(path, data)
    return paths


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, is_authority: bool
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )
