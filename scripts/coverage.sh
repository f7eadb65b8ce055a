#!/bin/sh
# Runs the stock filters' tests (wasm-filters/*) with counters, prints how many lines of each file they run and which they
# do not, and fails where there is one. Tests themselves and the SDK are not counted: the SDK is half glue of Wasm, which no
# native test runs, and has its own tests.
#
# Needs llvm-profdata and llvm-cov as new as the compiler: rustup's component llvm-tools, or Debian's package llvm-N.
set -eu
cd "$(dirname "$0")/../wasm-filters"
cargo="${CARGO:-cargo}"

# Lines that no test can run, by file, as a pattern of their text: none so far. Each needs its reason here.
excluded() {
    case $1:$2 in
    *) return 1 ;;
    esac
}

host="$(rustc -vV | sed -n 's/^host: //p')"
needed="$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')"

# The tool of this name that reads what this compiler writes.
find_tool() {
    for tool in "$(rustc --print sysroot)/lib/rustlib/$host/bin/$1" "$1" "$1-$needed" "$1-$((needed + 1))"; do
        found="$(command -v "$tool" 2>/dev/null)" || continue
        major="$("$found" --version 2>/dev/null | sed -n 's/.*LLVM version \([0-9]*\).*/\1/p')"
        [ "${major:-0}" -ge "$needed" ] && echo "$found" && return
    done
    return 1
}

if ! find_tool llvm-cov >/dev/null; then
    echo "==> looking for llvm-cov"
    timeout 60 rustup component add llvm-tools >/dev/null 2>&1 || true
fi
if ! cov="$(find_tool llvm-cov)" || ! profdata="$(find_tool llvm-profdata)"; then
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

missing=0
awk '$3 == 0 { print $1, $2 }' "$target/lines" >"$target/not-run"
: >"$target/excluded"
while read -r file line; do
    text="$(sed -n "${line}p" "$file")"
    if excluded "$file" "$text"; then
        echo "$file $line" >>"$target/excluded"
    else
        printf 'not run: %s:%s: %s\n' "$file" "$line" "$text"
        missing=1
    fi
done <"$target/not-run"

awk -v excluded_file="$target/excluded" '
    BEGIN { while ((getline line < excluded_file) > 0) left_out[line] = 1 }
    { if (($1 " " $2) in left_out) next; all[$1]++; total++; if ($3 > 0) { run[$1]++; total_run++ } if (!($1 in seen)) { seen[$1] = 1; order[++count] = $1 } }
    END { printf "%-36s %6s %6s %8s\n", "file", "lines", "run", "percent"
          for (i = 1; i <= count; i++) printf "%-36s %6d %6d %7.2f%%\n", order[i], all[order[i]], run[order[i]], 100 * run[order[i]] / all[order[i]]
          printf "%-36s %6d %6d %7.2f%%\n", "all", total, total_run, 100 * total_run / total }
' "$target/lines"
[ "$missing" -eq 0 ] || { echo "coverage: error: each line of a stock filter's logic is to be run by a test" >&2; exit 1; }
