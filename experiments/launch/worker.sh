#!/usr/bin/env bash
# What tpu_vm.sh has each host of a slice do, in the folder that this file was unpacked in:
#
#   worker.sh install                 a virtual environment with this package; Python 3.11 or newer is installed if there is none
#   worker.sh start RUN COMMAND...    starts COMMAND apart from the connection, unless RUN is running already
#   worker.sh status RUN              "retree: " and running, exit CODE, stopped, lost or none; then the end of the log
#   worker.sh interrupt RUN           SIGTERM: the run saves and ends
#   worker.sh stop RUN                the same, and the run counts as stopped until it is started again
#
# A run holds a lock as long as it lives: it goes on when the connection is lost, and is never started twice on a host. That two
# machines do not write to one workdir is what the lease in the workdir is for.
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
runs=${RUNS:-$HOME/retree_runs}

say() { echo "retree: $*"; }

find_python() {
  local name
  for name in python3.13 python3.12 python3.11 python3; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      echo "$name"
      return
    fi
  done
  return 1
}

install() {
  local python
  if ! python=$(find_python); then
    sudo apt-get -qq update
    sudo DEBIAN_FRONTEND=noninteractive apt-get -qq install -y python3.11 python3.11-venv
    if ! python=$(find_python); then
      echo "this image has no Python 3.11 and apt-get has none for it: choose a newer image with VERSION=..." >&2
      exit 2
    fi
  fi
  cd "$project"
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install -q '.[tpu,gcs]'
  say installed
}

running() { ! flock --nonblock "$1/lock" true; }

start() {
  local state=$runs/$1
  shift
  mkdir -p "$state"
  if running "$state"; then
    say running
    return
  fi
  rm -f "$state/exit" "$state/stopped"
  cd "$project"
  # A session of its own outlives the connection. The shell in it notes how the command ended, also after SIGTERM.
  # shellcheck disable=SC2016
  setsid nohup flock --nonblock --no-fork "$state/lock" bash -c '
    trap : TERM
    echo $$ >"$0/pid"
    "$@" # a signal that comes meanwhile is looked at when it has ended
    echo "$?" >"$0/exit.part" && mv "$0/exit.part" "$0/exit"
  ' "$state" "$@" >>"$state/log" 2>&1 </dev/null &
  say started
}

status() {
  local state=$runs/$1
  if [ ! -d "$state" ]; then
    say none
  elif running "$state"; then
    say running
  elif [ -f "$state/stopped" ]; then
    say stopped
  elif [ -f "$state/exit" ]; then
    say "exit $(cat "$state/exit")"
  else
    say lost
  fi
  [ ! -f "$state/log" ] || tail -n "${LINES_SHOWN:-3}" "$state/log"
}

interrupt() {
  local state=$runs/$1
  if [ -d "$state" ] && running "$state"; then
    kill -TERM -- "-$(cat "$state/pid")"
    say interrupted
  fi
}

stop() {
  mkdir -p "$runs/$1"
  touch "$runs/$1/stopped"
  interrupt "$1"
}

action=${1:-}
case $action in
  install | start | status | interrupt | stop)
    shift
    "$action" "$@"
    ;;
  *)
    echo "'$action' is unknown: use install, start, status, interrupt or stop" >&2
    exit 2
    ;;
esac
