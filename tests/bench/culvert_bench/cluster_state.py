"""The state of a cluster of some size, as manifests on a directory: pods, Services and routes of nodes that nobody runs.

Two real nodes are beside them, whose proxies get all of it; so what it costs to know of a cluster is measured without a cluster.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path as File

from . import manifests
from .manifests import MESHED

NAMESPACES = 10
PODS_PER_NODE = 250
PORT = 8080
# Requests with it are redirected to where the rule's route says: whoever asks sees which one decided.
PROBE = "x-bench-probe"


@dataclass(frozen=True)
class Size:
    pods: int
    services: int
    routes: int

    def __str__(self) -> str:
        return f"{self.pods:,} pods, {self.services:,} Services, {self.routes:,} routes"


FULL = Size(10_000, 1_000, 5_000)
QUICK = Size(1_000, 100, 500)


def namespace_of(number: int) -> str:
    return f"scale-{number % NAMESPACES}"


def pod_address(number: int) -> str:
    """Of the cluster's pod range; the sandbox's own nodes have its first hundred /24."""
    node, place = divmod(number, PODS_PER_NODE)
    return f"10.244.{101 + node}.{2 + place}"


def service_address(number: int) -> str:
    high, low = divmod(number, 250)
    return f"10.96.{16 + high}.{1 + low}"


def service_name(number: int) -> str:
    return f"service-{number}"


def route_path(number: int) -> str:
    return f"/shop-{number}"


def service_of(route: int, size: Size) -> int:
    return route % size.services


def documents(size: Size) -> Iterator[dict]:
    for number in range(NAMESPACES):
        labels = {"culvert.dev/mesh": "enabled"}
        yield _object("v1", "Namespace", namespace_of(number), None, labels=labels)
    for number in range(-(-size.pods // PODS_PER_NODE)):
        yield _object("v1", "Node", f"far-{number}", None, labels={"topology.kubernetes.io/zone": f"zone{number % 3}"})
    for number in range(size.pods):
        yield _pod(number, size)
    for number in range(size.services):
        yield _service(number)
        yield _slice(number, size)
    for number in range(size.routes):
        yield _route(number, size)


def _object(
    version: str, kind: str, name: str, namespace: str | None, labels: dict | None = None, **body: object
) -> dict:
    metadata: dict = {
        "name": name,
        "uid": f"uid-{kind}-{namespace}-{name}",
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    if namespace:
        metadata["namespace"] = namespace
    if labels:
        metadata["labels"] = labels
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **body}


def _pod(number: int, size: Size) -> dict:
    name = f"pod-{number}"
    ready = [{"type": kind, "status": "True"} for kind in ("Initialized", "ContainersReady", "Ready")]
    spec = {
        "serviceAccountName": service_name(number % size.services),
        "nodeName": f"far-{number // PODS_PER_NODE}",
        "containers": [{"name": "app", "image": "app", "ports": [{"name": "http", "containerPort": PORT}]}],
    }
    address = pod_address(number)
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": ready}
    labels = {"app": service_name(number % size.services), "version": f"v{number % 2}"}
    return _object("v1", "Pod", name, _namespace_of_pod(number, size), labels=labels, spec=spec, status=status)


def _namespace_of_pod(number: int, size: Size) -> str:
    return namespace_of(number % size.services)


def _service(number: int) -> dict:
    name, address = service_name(number), service_address(number)
    spec = {
        "type": "ClusterIP",
        "clusterIP": address,
        "clusterIPs": [address],
        "ipFamilies": ["IPv4"],
        "selector": {"app": name},
        "ports": [{"name": "http", "port": 80, "targetPort": PORT, "protocol": "TCP"}],
    }
    return _object("v1", "Service", name, namespace_of(number), spec=spec)


def _slice(number: int, size: Size) -> dict:
    members = range(number, size.pods, size.services)
    endpoints = [endpoint(f"pod-{pod}", namespace_of(number), pod_address(pod)) for pod in members]
    return endpoint_slice(service_name(number), namespace_of(number), endpoints, PORT)


def endpoint(pod: str, namespace: str, address: str) -> dict:
    """A pod that is ready."""
    return {
        "addresses": [address],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "targetRef": {"kind": "Pod", "namespace": namespace, "name": pod},
    }


def endpoint_slice(service: str, namespace: str, endpoints: list[dict], port: int) -> dict:
    return _object(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        f"{service}-1",
        namespace,
        labels={"kubernetes.io/service-name": service},
        addressType="IPv4",
        endpoints=endpoints,
        ports=[{"name": "http", "protocol": "TCP", "port": port}],
    )


def _route(number: int, size: Size) -> dict:
    """Two rules of the kind that most routes have: by path and header, and by path to two backends by weight."""
    own = service_of(number, size)
    # In the same namespace, so that no grant is needed.
    other = (own + NAMESPACES) % size.services
    path = {"path": {"type": "PathPrefix", "value": route_path(number)}}
    target = {"path": {"type": "ReplaceFullPath", "replaceFullPath": f"/route-{number}"}, "statusCode": 302}
    probed = {
        "matches": [{**path, "headers": [{"name": PROBE, "value": "yes"}]}],
        "filters": [{"type": "RequestRedirect", "requestRedirect": target}],
    }
    shares = {
        "matches": [path],
        "backendRefs": [manifests.to(service_name(own), 90), manifests.to(service_name(other), 10)],
    }
    parent = {"group": "", "kind": "Service", "name": service_name(own), "port": 80}
    spec = {"parentRefs": [parent], "rules": [probed, shares]}
    version = "gateway.networking.k8s.io/v1"
    return _object(version, "HTTPRoute", f"route-{number}", namespace_of(own), spec=spec)


# What is edited while clients call it: a route, by the header that its answers have; an endpoint, by who answers.
EDITED, MOVING = "edited", "moving"
EDIT_HEADER = "x-bench-edit"


def edited_route(edit: str) -> dict:
    header = {"name": EDIT_HEADER, "value": edit}
    rule = {
        "filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [header]}}],
        "backendRefs": [manifests.to(EDITED)],
    }
    spec = {"parentRefs": [{"group": "", "kind": "Service", "name": EDITED, "port": 80}], "rules": [rule]}
    return _object("gateway.networking.k8s.io/v1", "HTTPRoute", EDITED, MESHED, spec=spec)


class Directory:
    """Objects as files, in the layout of the sandbox's own: KIND/NAMESPACE/NAME.json."""

    def __init__(self, root: File) -> None:
        self.root = root

    def path(self, document: dict) -> File:
        metadata = document["metadata"]
        return self.root / document["kind"] / metadata.get("namespace", "_cluster") / f"{metadata['name']}.json"

    def prepare(self, document: dict) -> File:
        """Written, under a name that readers ignore."""
        path = self.path(document)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.stem}.new")
        draft.write_text(json.dumps(document))
        return draft

    def put(self, document: dict) -> None:
        os.replace(self.prepare(document), self.path(document))

    def known(self, kind: str) -> int:
        return sum(1 for _ in (self.root / kind).glob("*/*.json"))
