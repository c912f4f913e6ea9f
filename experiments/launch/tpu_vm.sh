#!/usr/bin/env bash
# Trains on a Cloud TPU slice until the run is complete: makes the TPU VM, installs this folder's last commit on all its hosts,
# starts the same command on each of them and watches. A slice that was taken away is made again, and the run resumes.
#
#   NAME=retree ZONE=us-east5-b TYPE=v6e-16 BUCKET=gs://my-bucket experiments/launch/tpu_vm.sh --config configs/tree.py \
#     --config.data.source=folder:gs://my-bucket/eyes
#   DRY_RUN=1 ...       prints the commands and does nothing
#   ACTION=status ...   how the run is, on every host
#   ACTION=stop ...     SIGTERM to the run: it saves and ends
#   ACTION=delete ...   deletes the TPU VM; the run stays in the bucket
#
# The run does not need the connection: if this script is interrupted, the same command watches again. It ends when the run does.
# SERVICE_ACCOUNT=name@project.iam.gserviceaccount.com is the account that the hosts act as: it needs to read and write objects
# of the bucket (roles/storage.objectUser). Without it they act as the project's default account.
set -euo pipefail

NAME=${NAME:?is missing: choose a name for the TPU VM, NAME=retree}
ZONE=${ZONE:?is missing: name a zone that has the type, ZONE=us-east5-b}
BUCKET=${BUCKET:-}
TYPE=${TYPE:-v6e-8}
RUN=${RUN:-$NAME}                 # the run's folder in the bucket
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-}
SPOT=${SPOT:-1}                   # 1: cheaper, and may be taken away; that is what resuming is for
ACTION=${ACTION:-train}
POLL=${POLL:-60}                  # seconds between two looks
TRIES=${TRIES:-100}               # how often to start again, and how often to ask for a slice where there is none
DRY_RUN=${DRY_RUN:-0}
case $TYPE in                     # the image that goes with the type
  v6e*) image=v2-alpha-tpuv6e ;;
  v5p*) image=v2-alpha-tpuv5 ;;
  v5litepod* | v5e*) image=v2-alpha-tpuv5-lite ;;
  *) image=tpu-ubuntu2204-base ;;
esac
VERSION=${VERSION:-$image}
WORKER=retree_jax/experiments/launch/worker.sh

say() { echo "tpu_vm: $*" >&2; }

run() {
  printf '+ %s\n' "$(printf '%q ' "$@")"
  [ "$DRY_RUN" = 1 ] || "$@"
}

tpu() { run gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }

on_all() { tpu ssh "$NAME" --worker=all --command="$1"; }

# The state of the TPU VM, NONE where there is none; fails where it cannot be asked.
vm_state() {
  local answer
  if answer=$(gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" '--format=value(state)' 2>&1); then
    echo "$answer"
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo NONE
  else
    say "$answer"
    return 1
  fi
}

create() {
  local options=("--accelerator-type=$TYPE" "--version=$VERSION")
  [ "$SPOT" != 1 ] || options+=(--spot)
  [ -z "$SERVICE_ACCOUNT" ] ||
    options+=("--service-account=$SERVICE_ACCOUNT" --scopes=https://www.googleapis.com/auth/cloud-platform)
  tpu create "$NAME" "${options[@]}"
}

ensure_vm() {
  local attempt state
  for ((attempt = 0; attempt < TRIES; attempt++)); do
    [ "$attempt" = 0 ] || sleep "$POLL"
    state=$(vm_state) || continue
    case $state in
      READY) return ;;
      PREEMPTED | TERMINATED | STOPPED | FAILED)
        say "the TPU VM is $state: it is made again"
        tpu delete "$NAME" --quiet && create && return
        ;;
      NONE) create && return ;;
      *) say "the TPU VM is $state" ;;
    esac
  done
  say "there is no TPU VM after $TRIES attempts: try another ZONE or TYPE"
  return 1
}

# The package, without data and runs, in one archive per host. What is not committed stays at home.
install() {
  local archive
  archive=$(mktemp -d)/retree_jax.tar.gz
  run git archive --format=tar.gz --output="$archive" HEAD &&
    tpu scp "$archive" "$NAME:retree_jax.tar.gz" --worker=all &&
    on_all "mkdir -p retree_jax && tar xzf retree_jax.tar.gz -C retree_jax && bash $WORKER install"
}

# Hosts find each other by themselves. With --workdir in the bucket, this line resumes the run too.
start() {
  local command=(.venv/bin/python -m retree_jax.main --distributed=on "--workdir=$BUCKET/$RUN" "$@")
  on_all "bash $WORKER start $(printf '%q ' "$RUN" "${command[@]}")"
}

# Watches the run until it ends. Returns 0 when it is complete, 1 when it failed, 75 when it has to be started again.
watch() {
  local state answer ended mixed=0 silent=0
  while :; do
    sleep "$POLL"
    state=$(vm_state) || continue # this machine's network: the run does not need it
    if [ "$state" != READY ]; then
      say "the TPU VM is $state"
      return 75
    fi
    if ! answer=$(on_all "bash $WORKER status $(printf '%q' "$RUN")" 2>&1); then
      silent=$((silent + 1))
      say "the hosts do not answer ($silent)"
      [ "$silent" -lt 10 ] || return 75
      continue
    fi
    silent=0
    ended=$(grep -oE '^retree: (exit [0-9]+|stopped|lost|none)' <<<"$answer" | sort -u || true)
    if grep -q '^retree: running' <<<"$answer"; then
      # Hosts that go on without one that has ended wait for it for ever.
      if [ -n "$(grep -v 'exit 0$' <<<"$ended" || true)" ]; then
        mixed=$((mixed + 1))
        [ "$mixed" -lt 3 ] || on_all "bash $WORKER interrupt $(printf '%q' "$RUN")" || true
      fi
      grep -v '^[+]' <<<"$answer" | tail -n 1 >&2
      continue
    fi
    case $ended in
      'retree: exit 0') return 0 ;;
      *stopped*)
        say "the run was stopped; the same command resumes it"
        return 1
        ;;
      # 143: stopped by SIGTERM before the end. Above 128: ended by a signal, or because another host was.
      *lost* | *none* | *"exit "1[2-9][0-9]*)
        say "the run was interrupted (${ended//$'\n'/, })"
        return 75
        ;;
      *)
        printf '%s\n' "$answer" >&2
        say "the run failed (${ended//$'\n'/, }): mend what the lines above say and run the same command again"
        return 1
        ;;
    esac
  done
}

train() {
  local attempt code
  for ((attempt = 0; attempt < TRIES; attempt++)); do
    [ "$DRY_RUN" = 1 ] || ensure_vm || exit 1
    [ "$DRY_RUN" = 0 ] || create
    if install && start "$@"; then
      [ "$DRY_RUN" = 0 ] || exit 0
      code=0
      watch || code=$?
      [ "$code" = 75 ] || exit "$code"
    elif [ "$(vm_state || echo UNKNOWN)" = READY ]; then
      say "the hosts cannot be set up: see the lines above"
      exit 1
    fi
  done
  say "the run is not complete after $TRIES starts"
  exit 1
}

case $ACTION in
  delete) tpu delete "$NAME" --quiet ;;
  status | stop) on_all "bash $WORKER $ACTION $(printf '%q' "$RUN")" ;;
  train)
    case $BUCKET in
      gs://*) ;;
      *)
        echo "BUCKET=$BUCKET is no bucket: write BUCKET=gs://NAME, all hosts share it" >&2
        exit 2
        ;;
    esac
    if [ $# = 0 ]; then
      echo "what to train is missing: add for example --config configs/tree.py" >&2
      exit 2
    fi
    train "$@"
    ;;
  *)
    echo "ACTION=$ACTION is unknown: use train, status, stop or delete" >&2
    exit 2
    ;;
esac
