# For scripts to source: steps, failures, and the programs that a script needs, installed where that is allowed.
#
# Who sources it has set `this`, the script's own name, and `tools`: what it needs, each as
# command:package for apt-get:package for dnf:package for brew ("-": not to be had there).
# shellcheck shell=bash disable=SC2154

# Servers are often installed where only root looks, and cargo where only a login shell does.
PATH="$PATH:${HOME-}/.cargo/bin:/usr/local/sbin:/usr/sbin:/sbin"

step() { printf '\n== %s\n' "$*"; }
fail() { printf '%s: %s\n' "$this" "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# Lines of `tools` whose command is not there.
missing_tools() {
  local line
  for line in $tools; do
    have "${line%%:*}" || printf '%s\n' "$line"
  done
}

# The packages of those lines, by the number of the package manager's column.
packages() {
  missing_tools | cut -d: -f"$1" | grep -vx -e - | tr '\n' ' '
}

provide_tools() {
  have cargo || fail "cargo is missing: install Rust as https://rustup.rs says (a distribution's is often too old)"
  [ -n "$(missing_tools)" ] || return 0

  step "tools: missing $(missing_tools | cut -d: -f1 | tr '\n' ' ')"
  local update="" install=""
  if have apt-get; then
    update="apt-get update"
    install="apt-get install -y --no-install-recommends $(packages 2)"
  elif have dnf; then
    install="dnf install -y $(packages 3)"
  elif have brew; then
    install="brew install $(packages 4)"
  else
    fail "no apt-get, dnf or brew here: install those yourself (nats-server: https://nats.io/download)"
  fi

  local become=""
  if have apt-get || have dnf; then
    if [ "$(id -u)" -ne 0 ]; then
      if have sudo && sudo -n true 2>/dev/null; then become="sudo -n"; else become="none"; fi
    fi
  fi
  if [ "$become" = none ]; then
    printf 'Not allowed to install here. Please run:\n'
    [ -z "$update" ] || printf '    sudo %s\n' "$update"
    printf '    sudo %s\n' "$install"
    exit 1
  fi

  # The words of these commands are meant to be split.
  # shellcheck disable=SC2086
  {
    [ -z "$update" ] || $become $update
    $become env DEBIAN_FRONTEND=noninteractive $install
  } || fail "could not install; please run: $install"
  hash -r
  [ -z "$(missing_tools)" ] || fail "still missing: $(missing_tools | cut -d: -f1 | tr '\n' ' ')"
}
