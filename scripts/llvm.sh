# To be sourced: finds LLVM's tools.

# The tool of this name, of the least major version that is given. Rustup's component llvm-tools has the version that fits
# the compiler; where it is missing, it is asked for once. Later versions read earlier ones' profiles, from LLVM 19 on.
llvm_tool() { # name, version
    llvm_find "$1" "$2" && return
    echo "==> looking for $1" >&2
    timeout 60 rustup component add llvm-tools >/dev/null 2>&1 || true
    llvm_find "$1" "$2"
}

llvm_find() {
    libraries="$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin"
    for tool in "$libraries/$1" "$1" "$1-23" "$1-22" "$1-21" "$1-20" "$1-19"; do
        found="$(command -v "$tool" 2>/dev/null)" || continue
        major="$("$found" --version 2>/dev/null | sed -n 's/.*LLVM version \([0-9]*\).*/\1/p')"
        [ "${major:-0}" -ge "$2" ] && echo "$found" && return
    done
    return 1
}
