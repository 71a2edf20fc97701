"""The cluster of a run: two namespaces with the same pods, one of them enrolled, with Services and routes.

Client on one node, servers on the other, so that every request crosses the link between them.
"""

from __future__ import annotations

import json
from pathlib import Path as File

from . import backend
from .model import Path

PLAIN, MESHED = "plain", "meshed"
CLIENT, BACKEND = "client", "backend"
ROUTES = 5_000
# Between each caller and each callee there is one connection, and so one tunnel.
CALLERS, CALLEES = 16, 32
CALLER, CALLEE = "caller", "callee"


def write(documents: list[dict], file: File) -> None:
    # JSON is YAML, so a stream of documents needs no library.
    file.write_text("\n---\n".join(json.dumps(one) for one in documents))


def cluster(directory: File, others: tuple[str, ...] = ()) -> list[dict]:
    """`others`: more namespaces with the same pods, of contenders that cannot share those of `plain`."""
    found = []
    for namespace, labels in ((PLAIN, {}), (MESHED, {"culvert.dev/mesh": "enabled"}), *((one, {}) for one in others)):
        found += [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}},
            *pod(namespace, CLIENT, "node1", [{"name": "idle", "command": ["sleep", "infinity"]}]),
            *pod(namespace, BACKEND, "node2", backend.containers(directory / namespace)),
        ]
    return found + _services() + _routes()


def many_pods(directory: File, namespaces: tuple[str, ...]) -> list[dict]:
    """Callers and callees, each with an account of its own. They are made only when a case asks for them."""
    found = []
    for namespace in namespaces:
        idle = [{"name": "idle", "command": ["sleep", "infinity"]}]
        for number in range(CALLERS):
            found += pod(namespace, f"{CALLER}-{number}", "node1", idle)
        for number in range(CALLEES):
            own = directory / namespace / f"{CALLEE}-{number}"
            backend.write_nginx(own)
            found += pod(namespace, f"{CALLEE}-{number}", "node2", backend.containers(own)[:1])
    return found


def pod(namespace: str, name: str, node: str, containers: list[dict]) -> list[dict]:
    metadata = {"name": name, "namespace": namespace}
    spec = {"serviceAccountName": name, "nodeName": node, "containers": containers}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {**metadata, "labels": {"app": name}}, "spec": spec},
    ]


def _services() -> list[dict]:
    ports = {
        "v1": ("http", 80, backend.V1),
        "v2": ("http", 80, backend.V2),
        "v1-streams": ("http2", 80, backend.V1_STREAMS),
        "v2-streams": ("http2", 80, backend.V2_STREAMS),
        Path.WEIGHTED.value: ("http", 80, backend.V1),
        Path.STREAMS.value: ("http2", 80, backend.V1_STREAMS),
        Path.REGEX.value: ("http", 80, backend.V1),
        Path.MANY.value: ("http", 80, backend.V1),
        Path.CALLS.value: ("grpc", 80, backend.CALLS),
        Path.OPAQUE.value: ("tcp", 80, backend.V1),
        Path.BULK.value: ("tcp", backend.BULK, backend.BULK),
        Path.ECHO.value: ("tcp", backend.ECHO, backend.ECHO),
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": MESHED},
            "spec": {
                "selector": {"app": BACKEND},
                "ports": [{"name": kind, "port": port, "targetPort": target}],
            },
        }
        for name, (kind, port, target) in ports.items()
    ]


def _routes() -> list[dict]:
    by_version = {"headers": [{"name": backend.VERSION, "value": "v2"}]}

    def weighted(suffix: str) -> list[dict]:
        return [
            {"matches": [by_version], "backendRefs": [to(f"v2{suffix}")]},
            {"backendRefs": [to(f"v1{suffix}", 90), to(f"v2{suffix}", 10)]},
        ]

    regex = {
        "matches": [
            {
                "path": {"type": "RegularExpression", "value": "/orders/[0-9]+/items(/.*)?"},
                **by_version,
            }
        ],
        "filters": [
            {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplaceFullPath", "replaceFullPath": "/items"}}},
            {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "v1", "port": 80}}},
        ],
        "backendRefs": [to("v2")],
    }
    calls = {
        "matches": [
            {
                "method": {"service": "grpc.health.v1.Health", "method": "Check"},
                **by_version,
            }
        ],
        "backendRefs": [to(Path.CALLS.value)],
    }
    return [
        _route("HTTPRoute", "web", Path.WEIGHTED, weighted("")),
        _route("HTTPRoute", "streams", Path.STREAMS, weighted("-streams")),
        _route("HTTPRoute", "regex", Path.REGEX, [regex]),
        _route("GRPCRoute", "grpc", Path.CALLS, [calls]),
    ]


def many_routes() -> list[dict]:
    """5,000 routes of one Service. They are applied only when a case asks for them."""
    return [_route("HTTPRoute", f"many-{number}", Path.MANY, [_rule(number)]) for number in range(ROUTES)]


def _rule(number: int) -> dict:
    return {
        "matches": [{"path": {"type": "PathPrefix", "value": many_path(number)}}],
        # Only the last route leads to v2: whoever answers tells which rule it was.
        "backendRefs": [to("v2" if number == ROUTES - 1 else "v1")],
    }


def many_path(number: int) -> str:
    return f"/tenant-{number}/shop"


def _route(kind: str, name: str, parent: Path, rules: list[dict]) -> dict:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": MESHED},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": parent.value, "port": 80}],
            "rules": rules,
        },
    }


def to(name: str, weight: int = 1) -> dict:
    return {"name": name, "port": 80, "weight": weight}
