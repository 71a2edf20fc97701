# What Culvert needs on a Debian machine, for `deploy/demo` and `tests/run` to source.
# shellcheck shell=bash

# Debian keeps nft and iptables where ordinary users do not look.
PATH="$PATH:/usr/sbin:/sbin"
export PATH

# say TEXT...: to standard error; standard output belongs to results.
say() { printf '%s\n' "$*" >&2; }

# prerequisites demo|tests|fuzz|bench|cluster: installs what is missing, or says how to and fails.
prerequisites() {
  local wanted=() reasons=()
  want() { # COMMAND PACKAGES REASON
    command -v "$1" >/dev/null 2>&1 && return
    wanted+=($2)
    reasons+=("  $2: $3")
  }
  want_file() { # FILE PACKAGES REASON
    [ -e "$1" ] && return
    wanted+=($2)
    reasons+=("  $2: $3")
  }
  want cc "gcc libc6-dev" "the C compiler that builds the TLS library's cryptography and links the programs"
  want nft nftables "the packet filter that captures the pods' connections"
  if [ "$1" = tests ]; then
    want iptables iptables "the older packet filter; the tests run the mesh on both"
    want go golang-go "fetches the official conformance suite, whose manifests are translated, and builds helm"
    want jq jq "reads the list of images"
  fi
  if [ "$1" = bench ]; then
    want wrk wrk "requests over HTTP/1.1"
    want h2load nghttp2-client "requests over HTTP/2"
    want iperf3 iperf3 "bulk streams"
    want nginx nginx-light "the server that every contender leads to (run by the benchmarks themselves; its service is not needed)"
    want valgrind valgrind "counts instructions"
    want curl curl "looks at the contenders' answers and counters"
    want openssl openssl "the certificates of the pair of Envoys"
    python3 -c "import ensurepip" 2>/dev/null || {
      wanted+=(python3 python3-venv)
      reasons+=("  python3 python3-venv: runs the benchmarks; Envoy comes as a Python package")
    }
  fi
  if [ "$1" = cluster ]; then
    want iptables iptables "forwards host ports to pods"
    want busybox busybox-static "the commands in the test cluster's image of tools"
    want pkg-config pkg-config "finds the library that runc is built with"
    want_file /usr/lib/cni/bridge containernetworking-plugins "connects the pods of the test cluster"
    want_file /usr/include/seccomp.h libseccomp-dev "the library with which runc filters system calls"
  elif [ "$1" != demo ] && [ "$1" != bench ]; then
    want c++ "g++ libc6-dev" "the C++ compiler that builds the fuzzer"
  fi
  if [ "${#wanted[@]}" -gt 0 ]; then
    say "Missing Debian packages:"
    say "$(printf '%s\n' "${reasons[@]}")"
    install_packages "${wanted[@]}" || return 1
  fi
  require_cargo
}

install_packages() {
  local root=()
  if [ "$(id -u)" -ne 0 ]; then
    # Without a terminal nobody could type a password.
    if command -v sudo >/dev/null 2>&1 && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
      root=(sudo)
    else
      say "Install them as root, then run this again:"
      say "  apt-get update && apt-get install -y --no-install-recommends $*"
      return 1
    fi
  fi
  if ! command -v apt-get >/dev/null 2>&1; then
    say "There is no apt-get here; install the equivalents of: $*"
    return 1
  fi
  say "Installing them with apt-get ..."
  {
    "${root[@]}" apt-get update -q &&
      "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
  } >&2 || {
    say "apt-get failed; install these packages by hand, then run this again: $*"
    return 1
  }
}

require_cargo() {
  # A shell that was open while rustup was installed does not know it yet.
  command -v cargo >/dev/null 2>&1 || PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
  if ! command -v cargo >/dev/null 2>&1; then
    say "There is no Rust toolchain. Install rustup as https://rustup.rs describes, then run this again."
    say "The right version is named in rust-toolchain.toml; rustup fetches it by itself."
    return 1
  fi
}

# Everything that a mesh consists of.
CULVERT_PACKAGES=(-p culvert-cli -p culvert-echo -p culvert-ca -p culvert-controller -p culvert-node-proxy)
export CULVERT_PACKAGES
