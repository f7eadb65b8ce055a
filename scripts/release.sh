#!/bin/sh
# Builds the binary that ships, target/release/beamline: fat LTO and, where LLVM's profile tool is to be had, with a
# profile of the mix of `bench train`, which takes 7% off what a request costs. Needs the guests (`make guests`).
# BEAMLINE_PGO=no leaves the profile out: a third of the time.
set -eu
cd "$(dirname "$0")/.."
cargo="${CARGO:-cargo}"
target="$(rustc -vV | sed -n 's/^host: //p')"
work="$PWD/target/pgo"

. scripts/llvm.sh

plain() {
    echo "==> building the release without a profile: $1"
    exec "$cargo" build --release -p beamline --bin beamline
}

[ "${BEAMLINE_PGO:-yes}" = no ] && plain "BEAMLINE_PGO=no"
tool="$(llvm_tool llvm-profdata 19)" ||
    plain "there is no llvm-profdata 19 or later (rustup component add llvm-tools, or Debian's llvm-19)"

echo "==> 1 of 3: building with counters"
RUSTFLAGS="-Cprofile-generate=$work/raw" \
    "$cargo" build --release --target "$target" --target-dir "$work/counting" -p beamline --bin beamline
counting="$work/counting/$target/release/beamline"
if [ "$work/beamline.profdata" -nt "$counting" ]; then
    echo "==> 2 of 3: trained already"
else
    echo "==> 2 of 3: training"
    rm -rf "$work/raw"
    "$cargo" build --profile ci --workspace --bin bench
    BEAMLINE_BIN="$counting" target/ci/bench train
    "$tool" merge -o "$work/beamline.profdata" "$work"/raw/*.profraw
    # Another profile is another build, which cargo does not see.
    rm -rf "$work/trained"
fi
echo "==> 3 of 3: building with the profile"
RUSTFLAGS="-Cprofile-use=$work/beamline.profdata" \
    "$cargo" build --release --target "$target" --target-dir "$work/trained" -p beamline --bin beamline
mkdir -p target/release
cp "$work/trained/$target/release/beamline" target/release/beamline
echo "==> target/release/beamline"
