#!/usr/bin/env bash
# Installs what the build needs and the machine lacks, where that is allowed (root or password-less sudo, and apt); otherwise says
# what is missing, with the command that installs it. Says nothing when all is there.
set -euo pipefail

# Each need: how to see that it is there, and the Debian or Ubuntu package that brings it.
missing=()
need() {
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}
need build-essential sh -c 'command -v cc && command -v c++ && command -v make'
need cmake command -v cmake
need pkg-config command -v pkg-config
# The Kafka client links OpenSSL.
need libssl-dev sh -c 'pkg-config --exists openssl || test -e /usr/include/openssl/ssl.h'
# librdkafka's CMake build includes curl's header though it is built without curl.
need libcurl4-openssl-dev sh -c "echo '#include <curl/curl.h>' | cc -E -"
# The development ClickHouse comes by the npm client.
need npm command -v npm

if [ ${#missing[@]} -gt 0 ]; then
    install="apt-get install -y --no-install-recommends ${missing[*]}"
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo -n)
    if command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; then
        echo "installing ${missing[*]}" >&2
        log=$(mktemp)
        if ! { "${as_root[@]}" apt-get update && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive $install; } >"$log" 2>&1; then
            tail -5 "$log" >&2
            echo "error: could not install ${missing[*]}; see $log, or install by hand: sudo $install" >&2
            exit 1
        fi
        rm -f "$log"
    else
        echo "error: missing ${missing[*]}; install with: sudo apt-get update && sudo $install" >&2
        exit 1
    fi
fi

if ! command -v cargo >/dev/null; then
    echo "error: there is no Rust; install with: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y" >&2
    exit 1
fi
needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../../Cargo.toml")
found=$(cargo --version | cut -d' ' -f2)
if [ "$(printf '%s\n' "$needed" "${found%%-*}" | sort -V | head -1)" != "$needed" ]; then
    echo "error: Rust $found is too old, $needed or newer is needed; update with: rustup update stable" >&2
    exit 1
fi
