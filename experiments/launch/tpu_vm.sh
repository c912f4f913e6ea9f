#!/usr/bin/env bash
# Trains on a Cloud TPU slice: makes the TPU VM if there is none, installs this folder on all its hosts, and starts the same
# command on each of them. Run it again after a preemption or a lost connection: the run resumes from the bucket. The exit code is 0
# only where the run is finished.
#
#   NAME=retree ZONE=us-east5-b TYPE=v6e-16 BUCKET=gs://my-bucket experiments/launch/tpu_vm.sh --config configs/tree.py
#   DRY_RUN=1 ... prints the commands and does nothing.
#   ACTION=delete ... deletes the TPU VM; the run stays in the bucket.
#
# Data: --config.data.source=folder:/PATH must exist on every host (mount a bucket with gcsfuse, or copy it there).
set -euo pipefail

NAME=${NAME:?is missing: choose a name for the TPU VM, NAME=retree}
ZONE=${ZONE:?is missing: name a zone that has the type, ZONE=us-east5-b}
BUCKET=${BUCKET:-}
TYPE=${TYPE:-v6e-8}
VERSION=${VERSION:-v2-alpha-tpuv6e}   # the image that goes with the type
RUN=${RUN:-$NAME}                     # the run's folder in the bucket
SPOT=${SPOT:-1}                       # 1: cheaper, and may be taken away; that is what resuming is for
ACTION=${ACTION:-train}

run() {
  printf '+ %s\n' "$(printf '%q ' "$@")"
  [ "${DRY_RUN:-0}" = 1 ] || "$@"
}

on_all() { run gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"; }

if [ "$ACTION" = delete ]; then
  run gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE" --quiet
  exit
fi
case $BUCKET in gs://*) ;; *) echo "BUCKET=$BUCKET is no bucket: write BUCKET=gs://NAME, all hosts share it" >&2; exit 2 ;; esac
[ $# -gt 0 ] || { echo "what to train is missing: add for example --config configs/tree.py" >&2; exit 2; }

if [ "${DRY_RUN:-0}" = 1 ] || ! gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" >/dev/null 2>&1; then
  spot=(); [ "$SPOT" = 1 ] && spot=(--spot)
  run gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" --version="$VERSION" "${spot[@]}"
fi

# The package, without data and runs, in one archive per host.
archive=$(mktemp -d)/retree_jax.tar.gz
run git archive --format=tar.gz --output="$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "$NAME:retree_jax.tar.gz" --zone="$ZONE" --worker=all
on_all "mkdir -p retree_jax && tar xzf retree_jax.tar.gz -C retree_jax && cd retree_jax && python3 -m venv .venv && .venv/bin/pip install -q '.[tpu]' gcsfs"

# JAX finds the other hosts of the slice by itself. --workdir in the bucket makes this line the resume command too.
on_all "cd retree_jax && .venv/bin/python -m retree_jax.main --distributed=on --workdir=$BUCKET/$RUN $(printf '%q ' "$@")"
