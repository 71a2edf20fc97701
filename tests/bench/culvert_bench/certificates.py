"""Keys and certificates of the Envoys, as a mesh would give them: P-256, TLS 1.3 only, peers known by SPIFFE ID."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path as File

from .sandbox import run

TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
DOMAIN = "spiffe://cluster.local/ns/plain/sa/"


@dataclass(frozen=True)
class Certificates:
    directory: File

    def _common(self, name: str, peer: str, protocols: list[str]) -> dict:
        def file(end: str) -> dict:
            return {"filename": str(self.directory / end)}

        return {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "alpn_protocols": protocols,
            "tls_certificates": [{"certificate_chain": file(f"{name}.pem"), "private_key": file(f"{name}.key")}],
            "validation_context": {
                "trusted_ca": file("root.pem"),
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": DOMAIN + peer}}],
            },
        }

    def client_socket(self, protocol: str, more: dict | None = None) -> dict:
        offered = {"h2": ["h2"], "h1": ["http/1.1"]}[protocol]
        config = {
            "@type": f"{TYPE}.UpstreamTlsContext",
            "common_tls_context": self._common("client", "backend", offered),
            **(more or {}),
        }
        return {"name": "tls", "typed_config": config}

    @property
    def server_socket(self) -> dict:
        config = {
            "@type": f"{TYPE}.DownstreamTlsContext",
            "require_client_certificate": True,
            "common_tls_context": self._common("backend", "client", ["h2", "http/1.1"]),
        }
        return {"name": "tls", "typed_config": config}


def make(directory: File) -> Certificates:
    """A root and the two leaves, valid for a day."""
    directory.mkdir(parents=True, exist_ok=True)

    def openssl(*arguments: str) -> None:
        run(["openssl", *arguments], deadline=30)

    def path(name: str) -> str:
        return str(directory / name)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl(
        "req", "-x509", *key, "-days", "1", "-subj", "/CN=bench", "-keyout", path("root.key"), "-out", path("root.pem")
    )
    for name in ("client", "backend"):
        openssl("req", *key, "-subj", f"/CN={name}", "-keyout", path(f"{name}.key"), "-out", path(f"{name}.csr"))
        (directory / f"{name}.ext").write_text(f"subjectAltName=URI:{DOMAIN}{name}\n")
        signed = ["-CA", path("root.pem"), "-CAkey", path("root.key"), "-CAcreateserial", "-days", "1"]
        openssl(
            "x509",
            "-req",
            "-in",
            path(f"{name}.csr"),
            *signed,
            "-extfile",
            path(f"{name}.ext"),
            "-out",
            path(f"{name}.pem"),
        )
    return Certificates(directory)
