#!/usr/bin/env bash
# Sets up a virtual environment and does one of two things in it:
#   ./setup.sh run [overrides]   the main job: pretrain on the embedded text, evaluate, draw
#   ./setup.sh test              lint, types, tests
# VENV names the environment's folder (default .venv); PYTHON the interpreter (default python3).
set -euo pipefail
cd "$(dirname "$0")"
VENV="${VENV:-.venv}"
PYTHON="${PYTHON:-python3}"

has_venv() { "$PYTHON" -c 'import sys, venv, ensurepip; assert sys.version_info >= (3, 11)' 2>/dev/null; }

if [ ! -x "$VENV/bin/python" ] && ! has_venv; then
  if ! command -v apt-get >/dev/null; then
    echo "setup.sh: needs $PYTHON >= 3.11 with venv; install it, or name another with PYTHON=..." >&2
    exit 2
  fi
  sudo="$([ "$(id -u)" = 0 ] || echo sudo)"
  $sudo apt-get update -qq
  $sudo apt-get install -y -qq python3 python3-venv
  has_venv || { echo "setup.sh: $PYTHON is older than 3.11; name another with PYTHON=..." >&2; exit 2; }
fi

install() { # $1: what to install, as pip names it
  [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
  local stamp="$VENV/.installed-${2}" want
  want="$(cat pyproject.toml constraints.txt | sha256sum)"
  [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && return
  # Python compiles a module when it is first imported, and most of these never are; where it may not keep what it compiled,
  # pip compiles all of them now, or each start would take three times as long.
  local compile=--no-compile
  [ -n "${PYTHONDONTWRITEBYTECODE:-}" ] && compile=--compile
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check $compile -c constraints.txt "$1"
  rm -rf build reslab.egg-info
  echo "$want" >"$stamp"
}

case "${1:-}" in
run)
  install '.[app]' run
  exec "$VENV/bin/python" run.py "${@:2}"
  ;;
test)
  unset PYTHONDONTWRITEBYTECODE # the processes of the tests share what one of them compiled
  install '.[dev]' dev
  "$VENV/bin/ruff" check .
  "$VENV/bin/ruff" format --check .
  # While types are checked, one process compiles the modules that all workers import.
  "$VENV/bin/python" -m pytest --collect-only -q "${@:2}" >/dev/null 2>&1 &
  trap 'kill $! 2>/dev/null' EXIT
  "$VENV/bin/mypy"
  wait
  export OMP_NUM_THREADS=1 # threads of several workers would wait for one another
  # Three workers for two cores: tests of signals, time limits and ranks wait for a good part of their time.
  exec "$VENV/bin/python" -m pytest -n 3 --dist loadfile --no-loadscope-reorder "${@:2}"
  ;;
*)
  sed -n '2,5p' "$0" | cut -c3-
  exit 2
  ;;
esac
