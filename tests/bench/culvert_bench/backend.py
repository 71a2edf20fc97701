"""The servers that every contender leads to: nginx as v1 and v2, iperf3, the echo server."""

from __future__ import annotations

from pathlib import Path as File

V1, V2 = 8081, 8082
V1_STREAMS, V2_STREAMS = 8083, 8084  # HTTP/2
BULK, ECHO, CALLS = 5201, 9001, 9002
LARGE = "/large"  # 1 MiB
VERSION = "x-version"  # the header whose value `v2` a rule sends to v2

# A connection is never closed by the server for its age: that would be a cost of the case, not of the contender.
NGINX = """
worker_processes 1;
worker_rlimit_nofile 20000;
daemon off;
error_log {directory}/nginx.log;
pid {directory}/nginx.pid;
events {{ worker_connections 9000; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    sendfile on;
    tcp_nopush on;
    default_type text/plain;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
{servers}
}}
"""
SERVER = """
    server {{
        listen {port}{options} backlog=4096;
        location = /large {{ root {directory}; }}
        location = /items {{ return 200 "{rewritten}"; }}
        location / {{ return 200 "{answer}"; }}
    }}
"""


def answer(words: str) -> str:
    """48 bytes that begin with these words."""
    return f"{words} ".ljust(48, ".")


def write_nginx(directory: File) -> File:
    """The configuration and the file it serves. Everything is below `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "large").write_bytes(b"." * 2**20)
    listeners = [(V1, "", "v1"), (V2, "", "v2"), (V1_STREAMS, " http2", "v1"), (V2_STREAMS, " http2", "v2")]
    servers = [
        SERVER.format(
            port=port,
            options=options,
            directory=directory,
            answer=answer(version),
            rewritten=answer(f"{version} items"),
        )
        for port, options, version in listeners
    ]
    written = directory / "nginx.conf"
    written.write_text(NGINX.format(directory=directory, servers="".join(servers)))
    return written


def containers(directory: File) -> list[dict]:
    """Of the pod on the second node."""
    return [
        {"name": "nginx", "command": ["nginx", "-e", f"{directory}/nginx.log", "-c", str(directory / "nginx.conf")]},
        {"name": "iperf3", "command": ["iperf3", "-s", "-p", str(BULK)]},
        {"name": "echo", "command": ["culvert-echo", "serve", "--tcp", str(ECHO), "--grpc", str(CALLS)]},
    ]
