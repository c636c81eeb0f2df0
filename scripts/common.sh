# shellcheck shell=bash
# What the scripts share; sourced, never run. Sets ROOT, the checkout's path, and goes there; CALLED_FROM is where the
# caller was, for the paths on its command line. The script sets `usage`.

# shellcheck disable=SC2034 # for those who source this
CALLED_FROM=$PWD
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT" || exit

if [ -t 2 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\033[1m' red=$'\033[31m' yellow=$'\033[33m' plain=$'\033[0m'
else
    bold='' red='' yellow='' plain=''
fi

# Messages go to stderr: stdout is for data.
say() { printf '%s==>%s %s\n' "$bold" "$plain" "$*" >&2; }
warn() { printf '%swarning:%s %s\n' "$yellow" "$plain" "$*" >&2; }
die() {
    printf '%serror:%s %s\n' "$red" "$plain" "$1" >&2
    [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}
# A wrong command line: the usage line and exit code 2.
misused() {
    printf '%serror:%s %s\n%s\n' "$red" "$plain" "$1" "${usage:?}" >&2
    exit 2
}

need_root() {
    [ "$(id -u)" = 0 ] || die "$0 must run as root" "sudo $0 $*"
}

# Rust usually belongs to a user, and under sudo root has none: cargo is run as whoever called sudo if that user has
# it, which also keeps root's files out of that user's target/. Sets BUILDER and CARGO (its path).
find_cargo() {
    local home
    BUILDER=root CARGO=''
    if [ "$(id -u)" != 0 ]; then
        BUILDER=$(id -un)
    elif [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ] && runuser -u "$SUDO_USER" -- test -w "$ROOT"; then
        home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
        # A login shell knows what the user's profile adds to PATH.
        CARGO=$(runuser -u "$SUDO_USER" -- env HOME="$home" bash -lc 'command -v cargo' 2>/dev/null </dev/null | tail -n 1) || CARGO=''
        [ -n "$CARGO" ] || ! runuser -u "$SUDO_USER" -- test -x "$home/.cargo/bin/cargo" || CARGO=$home/.cargo/bin/cargo
        [ -z "$CARGO" ] || BUILDER=$SUDO_USER
    fi
    [ -n "$CARGO" ] || CARGO=$(type -P cargo) || CARGO=''
    [ -n "$CARGO" ] || [ ! -x "${HOME:-/root}/.cargo/bin/cargo" ] || CARGO=${HOME:-/root}/.cargo/bin/cargo
    [ -n "$CARGO" ] || die "no Rust on this machine: cargo is not in PATH${SUDO_USER:+ and $SUDO_USER has none}" \
        "install Rust $(msrv) or newer, see https://www.rust-lang.org/tools/install"
}

# Runs a command as BUILDER with cargo's folder in PATH; the directory and the environment stay, the home is BUILDER's.
as_builder() {
    local path
    path=$(dirname "$CARGO"):$PATH
    if [ "$BUILDER" = "$(id -un)" ]; then
        PATH=$path "$@"
    else
        runuser -u "$BUILDER" -- env -u XDG_RUNTIME_DIR -u XDG_CACHE_HOME -u XDG_CONFIG_HOME \
            HOME="$(getent passwd "$BUILDER" | cut -d: -f6)" USER="$BUILDER" LOGNAME="$BUILDER" PATH="$path" "$@"
    fi
}

cargo() { as_builder "$CARGO" "$@"; }

# tool NAME VERSION: a cargo subcommand from crates.io, kept in target/tools and in PATH from here on.
tool() {
    local tools=$ROOT/target/tools
    [[ $PATH == "$tools/bin:"* ]] || PATH=$tools/bin:$PATH
    ! command -v "$1" >/dev/null || return 0
    say "installing $1 $2 into target/tools (some minutes, once)"
    # From elsewhere: this checkout's .cargo/config.toml is for static programs of its own.
    (cd / && cargo install --quiet --locked --root "$tools" "$1@$2" >&2)
}

# The oldest Rust that builds this, from its one place.
msrv() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml"; }

# Reads `cargo --message-format=json` on stdin and prints the path of each program it made, one a line. The path can't
# be guessed: build.target, CARGO_TARGET_DIR and CARGO_BUILD_TARGET all move it.
executables() {
    sed -n 's/.*"reason":"compiler-artifact".*"executable":"\([^"]*\)".*/\1/p'
}
