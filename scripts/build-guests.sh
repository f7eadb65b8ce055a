#!/bin/sh
# Builds every guest module: the stock filters (wasm-filters/*) and those of the tests (tests/guests/*).
#
#   scripts/build-guests.sh [OUT_DIR]        OUT_DIR is target/guests if it is not given
#
# This script alone chooses the toolchain for wasm32-unknown-unknown, in this order:
#   1. the rustc on the PATH, where it has the target;
#   2. the same after `rustup target add`;
#   3. Debian's packages rustc-web, cargo-web and rust-web-src, which build the target's standard library from source
#      (a minute, once), for machines where rustup cannot download.
# BEAMLINE_GUEST_TOOLCHAIN=rustup takes 1 or 2 alone, BEAMLINE_GUEST_TOOLCHAIN=debian takes 3.
set -eu

target=wasm32-unknown-unknown
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

say() { printf 'build-guests: %s\n' "$*"; }

fail() {
    printf 'build-guests: error: %s\n' "$1" >&2
    shift
    [ $# -eq 0 ] || printf '  %s\n' "$@" >&2
    exit 1
}

has_target() {
    libdir=$(rustc --print target-libdir --target "$target" 2>/dev/null) || return 1
    for core in "$libdir"/libcore-*.rlib; do
        [ -e "$core" ] && return 0
    done
    return 1
}

add_target() {
    command -v rustup >/dev/null || return 1
    say "the target $target is not installed: rustup target add $target"
    rustup target add "$target" && has_target
}

has_debian() {
    [ -x /usr/bin/rustc ] && [ -x /usr/bin/cargo ] || return 1
    [ -e "$(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library/std/Cargo.toml" ]
}

# Debian's rustc brings no linker for Wasm: rustup's rust-lld or the package lld does.
find_linker() {
    if command -v rustc >/dev/null; then
        host=$(rustc -vV | sed -n 's/^host: //p')
        linker=$(rustc --print sysroot)/lib/rustlib/$host/bin/rust-lld
        [ -x "$linker" ] && return 0
    fi
    for name in rust-lld wasm-ld /usr/bin/wasm-ld-*; do
        linker=$(command -v "$name") && return 0
    done
    return 1
}

use_rustup() { has_target || add_target; }

use_debian() { has_debian && find_linker; }

install_hint() {
    fail "no toolchain for $target was found. Install one of:" \
        "- the target, where rustup can download:  rustup target add $target" \
        "- Debian's packages:  apt-get install --no-install-recommends rustc-web cargo-web rust-web-src lld" \
        "then run this again."
}

choose_toolchain() {
    case ${BEAMLINE_GUEST_TOOLCHAIN:-} in
    rustup) use_rustup || install_hint && toolchain=rustup ;;
    debian) use_debian || install_hint && toolchain=debian ;;
    '')
        if use_rustup; then
            toolchain=rustup
        elif use_debian; then
            toolchain=debian
        else
            install_hint
        fi
        ;;
    *) fail "BEAMLINE_GUEST_TOOLCHAIN: expected rustup or debian, found '$BEAMLINE_GUEST_TOOLCHAIN'" ;;
    esac
}

# Each workspace has its linker flags in .cargo/config.toml, which cargo looks for in the working folder.
build() (
    cd "$1"
    if [ "$toolchain" = rustup ]; then
        cargo build --release --target "$target" --target-dir "$2"
    else
        RUSTC_BOOTSTRAP=1 RUSTC=/usr/bin/rustc CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=$linker \
            /usr/bin/cargo build --release --target "$target" --target-dir "$2" -Z build-std=std,panic_abort
    fi
)

# A module is named as its folder. It appears at once or not at all, and an unchanged one keeps its time.
install_module() {
    if cmp -s "$1" "$2"; then
        change=unchanged
    else
        cp "$1" "$2.$$"
        mv "$2.$$" "$2"
        change=new
    fi
    say "$2 ($(wc -c <"$2" | tr -d ' ') bytes, $change)"
}

case ${1:-} in
-h | --help)
    sed -n '2,/^set -eu/{/^set -eu/d;s/^# \{0,1\}//;p;}' "$0"
    exit 0
    ;;
esac
[ $# -le 1 ] || fail "expected at most one argument, OUT_DIR; found $#"
out=${1:-$root/target/guests}

# A caller's own build settings are for its own target; RUSTFLAGS would even replace the linker flags.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_RUSTFLAGS CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS
unset CARGO_TARGET_DIR CARGO_BUILD_TARGET_DIR CARGO_BUILD_TARGET CARGO_INCREMENTAL

choose_toolchain
# Both workspaces build into one folder: what they share (all but a few crates) is built once.
target_dir=$root/wasm-filters/target
case $toolchain in
rustup)
    say "toolchain: $(rustc --version) with its target $target"
    ;;
debian)
    target_dir=$target_dir/build-std
    say "toolchain: $(/usr/bin/rustc --version), standard library from source, linker $linker"
    ;;
esac

mkdir -p "$out"
out=$(CDPATH='' cd -- "$out" && pwd)
for workspace in wasm-filters tests/guests; do
    say "building $workspace"
    build "$root/$workspace" "$target_dir"
    for manifest in "$root/$workspace"/*/Cargo.toml; do
        grep -q '"cdylib"' "$manifest" || continue
        name=$(basename "$(dirname "$manifest")")
        built=$target_dir/$target/release/$(printf %s "$name" | tr - _).wasm
        [ -e "$built" ] || fail "$workspace/$name was built, but $built is not there" \
            "a guest's folder, package and library have one name"
        install_module "$built" "$out/$name.wasm"
    done
done
