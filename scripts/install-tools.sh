#!/bin/sh
# Installs, from Debian's or Ubuntu's packages, the programs that the tests drive a node with. Does nothing where
# they are all there.
set -eu

missing=""
need() { # program, package
    command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing="$missing $2"
}
need cc gcc
need curl curl
need nginx nginx-light
need wrk wrk
need taskset util-linux
[ -z "$missing" ] && exit 0

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
