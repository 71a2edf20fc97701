"""A pair of Envoys beside client and servers, in their pods, as sidecars are: mutual TLS between them.

Requests: the client's Envoy routes (weights, header) and speaks HTTP/2, or in a variant HTTP/1.1, to the servers' Envoy.
Bytes: a TCP proxy that tunnels over HTTP/2 CONNECT ("Tunneling TCP over HTTP" of Envoy's documentation). Left as it is
shipped where its documentation has no other advice for the case; circuit breakers are out of the way. The access log has
failures only, as Culvert's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path as File

from . import backend
from .certificates import Certificates
from .manifests import ROUTES, many_path
from .model import Path

# The servers' listeners of requests: where each of them leads.
ARRIVALS = {
    "v1": backend.V1,
    "v2": backend.V2,
    "v1-streams": backend.V1_STREAMS,
    "v2-streams": backend.V2_STREAMS,
    "grpc": backend.CALLS,
}
TUNNELLED = {Path.OPAQUE: backend.V1, Path.BULK: backend.BULK, Path.ECHO: backend.ECHO, Path.COLD: backend.V1}
COLD = "cold"  # the cluster whose connections carry one tunnelled connection each
STREAMS = ("v1-streams", "v2-streams", "grpc")
TYPE = "type.googleapis.com/envoy.extensions"


@dataclass(frozen=True)
class Variant:
    """How a pair is run. `upstream`: the version of HTTP between the two, `h2` or `h1`. `base`: the first of 100 ports."""

    name: str
    workers: int
    upstream: str
    base: int

    @property
    def admin(self) -> int:
        return self.base

    def listener(self, path: Path) -> int:
        """The client's."""
        return self.base + 1 + list(Path).index(path)

    def arrival(self, name: str) -> int:
        """The servers'."""
        return self.base + 51 + list(ARRIVALS).index(name)

    @property
    def tunnels(self) -> int:
        return self.base + 50


def write(directory: File, variant: Variant, certificates: Certificates, servers: str) -> tuple[File, File]:
    """The two configurations. `servers`: the address of the servers' pod."""
    directory.mkdir(parents=True, exist_ok=True)
    client, server = directory / f"{variant.name}-client.json", directory / f"{variant.name}-server.json"
    client.write_text(json.dumps(_bootstrap(variant, *_client(variant, certificates, servers, str(directory)))))
    server.write_text(json.dumps(_bootstrap(variant, *_server(variant, certificates, str(directory)))))
    return client, server


def _bootstrap(variant: Variant, listeners: list[dict], clusters: list[dict]) -> dict:
    return {
        "admin": {"address": _address("127.0.0.1", variant.admin)},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }


def _address(host: str, port: int) -> dict:
    return {"socket_address": {"address": host, "port_value": port}}


def _any(kind: str, **fields: object) -> dict:
    return {"@type": f"{TYPE}.{kind}", **fields}


def _listener(port: int, filters: list[dict], tls: dict | None = None) -> dict:
    chain: dict = {"filters": filters}
    if tls:
        chain["transport_socket"] = tls
    return {"name": f"on-{port}", "address": _address("0.0.0.0", port), "filter_chains": [chain]}


def _failures(directory: str) -> list[dict]:
    """Requests answered 500 and above, and those that Envoy itself cut."""
    either = [
        {"status_code_filter": {"comparison": {"op": "GE", "value": {"default_value": 500, "runtime_key": "unused"}}}},
        {"response_flag_filter": {}},
    ]
    log = _any("access_loggers.file.v3.FileAccessLog", path=f"{directory}/access.log")
    return [{"name": "file", "filter": {"or_filter": {"filters": either}}, "typed_config": log}]


def _requests(prefix: str, hosts: list[dict], directory: str, **more: object) -> dict:
    manager = _any(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=prefix,
        codec_type="AUTO",
        generate_request_id=True,
        access_log=_failures(directory),
        route_config={"name": prefix, "virtual_hosts": hosts},
        http_filters=[{"name": "router", "typed_config": _any("filters.http.router.v3.Router")}],
        **more,
    )
    return {"name": "requests", "typed_config": manager}


def _host(routes: list[dict]) -> list[dict]:
    return [{"name": "all", "domains": ["*"], "routes": routes}]


def _client(
    variant: Variant, certificates: Certificates, servers: str, directory: str
) -> tuple[list[dict], list[dict]]:
    tls = certificates.client_socket
    clusters = [
        _cluster("tunnels", servers, variant.tunnels, "h2", tls("h2")),
        # Between pods that have not met there is neither a connection nor a session to resume.
        _cluster(
            COLD, servers, variant.tunnels, "h2", tls("h2", {"max_session_keys": 0}), {"max_requests_per_connection": 1}
        ),
    ]
    for name in ARRIVALS:
        protocol = "h2" if name in STREAMS else variant.upstream
        clusters.append(_cluster(name, servers, variant.arrival(name), protocol, tls(protocol)))
    routes = {
        Path.WEIGHTED: _weighted(""),
        Path.STREAMS: _weighted("-streams"),
        Path.REGEX: _regex(),
        Path.MANY: _many(),
        Path.CALLS: [_to("grpc", match={"path": "/grpc.health.v1.Health/Check", "headers": [_by_version()]})],
    }
    listeners = [
        _listener(variant.listener(path), [_requests(path.value, _host(found), directory)])
        for path, found in routes.items()
    ]
    for path, port in TUNNELLED.items():
        proxy = _any(
            "filters.network.tcp_proxy.v3.TcpProxy",
            stat_prefix=path.value,
            cluster=COLD if path is Path.COLD else "tunnels",
            access_log=_failures(directory),
            tunneling_config={"hostname": f"{path.value}:{port}"},
        )
        listeners.append(_listener(variant.listener(path), [{"name": "bytes", "typed_config": proxy}]))
    return listeners, clusters


def _server(variant: Variant, certificates: Certificates, directory: str) -> tuple[list[dict], list[dict]]:
    listeners, clusters = [], []
    for name, target in ARRIVALS.items():
        routes = _host([_to(f"local-{name}", match={"prefix": "/"})])
        requests = _requests(name, routes, directory)
        listeners.append(_listener(variant.arrival(name), [requests], certificates.server_socket))
        clusters.append(_cluster(f"local-{name}", "127.0.0.1", target, "h2" if name in STREAMS else "h1"))
    hosts = []
    for path, target in TUNNELLED.items():
        clusters.append(_cluster(f"local-{path.value}", "127.0.0.1", target, "bytes"))
        route = {
            "match": {"connect_matcher": {}},
            "route": {
                "cluster": f"local-{path.value}",
                "timeout": "0s",
                "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
            },
        }
        hosts.append({"name": path.value, "domains": [f"{path.value}:{target}"], "routes": [route]})
    tunnels = _requests("tunnels", hosts, directory, upgrade_configs=[{"upgrade_type": "CONNECT"}])
    listeners.append(_listener(variant.tunnels, [tunnels], certificates.server_socket))
    return listeners, clusters


def _cluster(
    name: str, host: str, port: int, protocol: str, tls: dict | None = None, connections: dict | None = None
) -> dict:
    made: dict = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(host, port)}}]}],
        },
        "circuit_breakers": {
            "thresholds": [{"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000}]
        },
    }
    if protocol != "bytes":
        options = {"http2_protocol_options": {}} if protocol == "h2" else {"http_protocol_options": {}}
        kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        made["typed_extension_protocol_options"] = {
            kind: _any("upstreams.http.v3.HttpProtocolOptions", explicit_http_config=options)
        }
        if connections:
            made["typed_extension_protocol_options"][kind]["common_http_protocol_options"] = connections
    if tls:
        made["transport_socket"] = tls
    return made


def _by_version() -> dict:
    return {"name": backend.VERSION, "string_match": {"exact": "v2"}}


def _to(cluster: str, match: dict, **action: object) -> dict:
    return {"match": match, "route": {"cluster": cluster, "timeout": "0s", **action}}


def _weighted(suffix: str) -> list[dict]:
    shares = [{"name": f"v1{suffix}", "weight": 90}, {"name": f"v2{suffix}", "weight": 10}]
    return [
        _to(f"v2{suffix}", match={"prefix": "/", "headers": [_by_version()]}),
        {"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": shares}, "timeout": "0s"}},
    ]


def _regex() -> list[dict]:
    match = {"safe_regex": {"regex": "/orders/[0-9]+/items(/.*)?"}, "headers": [_by_version()]}
    rewrite = {"pattern": {"regex": "^.*$"}, "substitution": "/items"}
    return [_to("v2", match=match, regex_rewrite=rewrite, request_mirror_policies=[{"cluster": "v1"}])]


def _many() -> list[dict]:
    return [
        _to("v2" if number == ROUTES - 1 else "v1", match={"path_separated_prefix": many_path(number)})
        for number in range(ROUTES)
    ]
