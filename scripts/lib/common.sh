# Sourced by the scripts of this folder: where things are, how to speak, and which of the
# two ways builds guests. Never changes anything by being sourced.

# The root of the clone, and the one target directory of host and guests.
TESSERA_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$TESSERA_ROOT/target}
case $CARGO_TARGET_DIR in
    /*) ;;
    *) CARGO_TARGET_DIR=$TESSERA_ROOT/$CARGO_TARGET_DIR ;;
esac

# Host crates need what wasmtime needs; the Debian packages for guests bring a std whose
# wasm32-wasip2 target is complete since 1.87.
MIN_RUST=1.95
MIN_RUST_WEB=1.87

GUEST_TARGET=wasm32-wasip2
GUEST_TARGET_DIR=$CARGO_TARGET_DIR/guests
GUEST_WASM_DIR=$GUEST_TARGET_DIR/$GUEST_TARGET/release

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# version_at_least HAVE WANT
version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# The version of the given compiler, e.g. 1.95.0; empty when it does not run.
rust_version_of() { "$1" --version 2>/dev/null | awk '{ print $2; exit }'; }

# Whether the toolchain that plain `cargo` uses here has the standard library for guests.
has_rustup_guest_target() {
    local sysroot
    sysroot=$(cd "$TESSERA_ROOT" && rustc --print sysroot 2>/dev/null) || return 1
    compgen -G "$sysroot/lib/rustlib/$GUEST_TARGET/lib/libstd-*.rlib" >/dev/null
}

# Whether Debian's compiler, library sources and wasi-libc can build guests.
has_debian_guest_toolchain() {
    local version
    version=$(rust_version_of /usr/bin/rustc)
    [ -n "$version" ] && version_at_least "$version" "$MIN_RUST_WEB" &&
        [ -x /usr/bin/cargo ] && [ -e /usr/lib/wasm32-wasi/libc.a ] && rust_lld_dir >/dev/null
}

# The folder of wasm-component-ld and rust-lld, which come with every rustup toolchain.
rust_lld_dir() {
    local sysroot host dir
    sysroot=$(cd "$TESSERA_ROOT" && rustc --print sysroot 2>/dev/null) || return 1
    host=$(rustc -vV | awk '/^host:/ { print $2 }')
    dir=$sysroot/lib/rustlib/$host/bin
    [ -x "$dir/wasm-component-ld" ] && [ -x "$dir/rust-lld" ] && printf '%s\n' "$dir"
}

# Prints `rustup` or `debian`; fails when neither way is open. TESSERA_GUEST_TOOLCHAIN
# asks for one of them.
guest_toolchain() {
    local wanted=${TESSERA_GUEST_TOOLCHAIN:-}
    case $wanted in
        '' | rustup | debian) ;;
        *) die "TESSERA_GUEST_TOOLCHAIN is '$wanted': it must be rustup or debian" ;;
    esac
    if [ "$wanted" != debian ] && has_rustup_guest_target; then
        echo rustup
    elif [ "$wanted" != rustup ] && has_debian_guest_toolchain; then
        echo debian
    else
        return 1
    fi
}
