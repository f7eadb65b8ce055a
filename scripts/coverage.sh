#!/bin/sh
# Runs the stock filters' tests (wasm-filters/*) with counters, prints how many lines of each file they run and which they
# do not, and fails where there is one. Tests themselves and the SDK are not counted: the SDK is half glue of Wasm, which no
# native test runs, and has its own tests.
#
# Needs llvm-profdata and llvm-cov as new as the compiler: rustup's component llvm-tools, or Debian's package llvm-N.
set -eu
cd "$(dirname "$0")/../wasm-filters"
cargo="${CARGO:-cargo}"

. ../scripts/llvm.sh
needed="$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')"
if ! cov="$(llvm_tool llvm-cov "$needed")" || ! profdata="$(llvm_tool llvm-profdata "$needed")"; then
    echo "coverage: error: there is no llvm-cov and llvm-profdata of LLVM $needed: rustup component add llvm-tools, or Debian's llvm-$needed" >&2
    exit 1
fi

target="$PWD/target/coverage"
rm -rf "$target/raw"
mkdir -p "$target/raw"
echo "==> running the stock filters' tests with counters"
# Counters in what is of this workspace alone: with them, dependencies that calculate are too slow.
printf '#!/bin/sh\nexec "$@" -Cinstrument-coverage\n' >"$target/rustc"
chmod +x "$target/rustc"
build() {
    RUSTC_WORKSPACE_WRAPPER="$target/rustc" LLVM_PROFILE_FILE="$target/raw/%p-%m.profraw" \
        "$cargo" test --workspace --exclude beamline-sdk --lib --target-dir "$target" "$@"
}
build --no-run --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | sort -u >"$target/binaries"
build --quiet
"$profdata" merge --sparse -o "$target/all.profdata" "$target"/raw/*.profraw

objects="$(sed 's/^/--object=/' "$target/binaries")"
# shellcheck disable=SC2086 # one argument for each word
"$cov" export --format=lcov --instr-profile="$target/all.profdata" $objects \
    --ignore-filename-regex='(/sdk/|/\.cargo/|/rustc/|/tests\.rs$|/build\.rs$)' >"$target/lcov.info"

# Every file's lines that hold code, and those that nothing ran. A file's tests at its end are not counted.
awk -v root="$PWD/" '
    /^SF:/ { file = substr($0, 4); name = file; sub("^" root, "", name); tests = 0; n = 0
             while ((getline line < file) > 0) { n++; if (line ~ /^#\[cfg\(test\)\]/) { getline line < file; n++; if (line ~ /^mod tests \{/ && !tests) tests = n } }
             close(file); next }
    /^DA:/ { split(substr($0, 4), part, ","); if (tests && part[1] >= tests) next
             key = name ":" part[1]; if (!(key in hits)) { order[++count] = key; hits[key] = 0 } hits[key] += part[2] }
    END { for (i = 1; i <= count; i++) { split(order[i], part, ":"); print part[1], part[2], hits[order[i]] } }
' "$target/lcov.info" | sort -k1,1 -k2,2n >"$target/lines"

awk '$3 == 0 { print $1, $2 }' "$target/lines" | while read -r file line; do
    printf 'not run: %s:%s: %s\n' "$file" "$line" "$(sed -n "${line}p" "$file")"
done

awk '
    { all[$1]++; total++; if ($3 > 0) { run[$1]++; total_run++ } if (!($1 in seen)) { seen[$1] = 1; order[++count] = $1 } }
    END { printf "%-36s %6s %6s %8s\n", "file", "lines", "run", "percent"
          for (i = 1; i <= count; i++) printf "%-36s %6d %6d %7.2f%%\n", order[i], all[order[i]], run[order[i]], 100 * run[order[i]] / all[order[i]]
          printf "%-36s %6d %6d %7.2f%%\n", "all", total, total_run, 100 * total_run / total
          exit total_run < total }
' "$target/lines" || { echo "coverage: error: each line of a stock filter's logic is to be run by a test" >&2; exit 1; }
