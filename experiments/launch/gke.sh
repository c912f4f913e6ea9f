#!/usr/bin/env bash
# Trains on a TPU slice of a Kubernetes cluster: fills in gke_job.yaml, which says what the cluster must have, and applies it.
#
#   IMAGE=us-docker.pkg.dev/P/R/retree:1 BUCKET=gs://my-bucket experiments/launch/gke.sh --config configs/tree.py \
#     --config.data.source=folder:gs://my-bucket/eyes
#   DRY_RUN=1 ...       prints the job and checks nothing
#   ACTION=stop ...     deletes the job, after its pods have saved; the run stays in the bucket, and the same command resumes it
#
# The short way lets Cluster Toolkit write a job like this one (formerly `xpk workload create`):
#
#   gcluster job submit --name retree --cluster CLUSTER --compute-type v6e-16 --image IMAGE --restarts 20 \
#     --command 'python -m retree_jax.main --distributed=on --config configs/tree.py --workdir gs://my-bucket/retree'
set -euo pipefail

export NAME=${NAME:-retree}
export QUEUE=${QUEUE:-default-queue}
export SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}
ACTION=${ACTION:-train}
RUN=${RUN:-$NAME}                 # the run's folder in the bucket

if [ "$ACTION" = stop ]; then
  kubectl delete jobset "$NAME"
  exit
fi
export IMAGE=${IMAGE:?is missing: name an image with this package, IMAGE=us-docker.pkg.dev/PROJECT/REPOSITORY/retree:1}
case ${BUCKET:-} in
  gs://*) ;;
  *)
    echo "BUCKET=${BUCKET:-} is no bucket: write BUCKET=gs://NAME, all hosts share it" >&2
    exit 2
    ;;
esac
if [ $# = 0 ]; then
  echo "what to train is missing: add for example --config configs/tree.py" >&2
  exit 2
fi

# JSON is YAML, whatever the arguments hold.
ARGUMENTS=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' --distributed=on "--workdir=$BUCKET/$RUN" "$@")
export ARGUMENTS
# shellcheck disable=SC2016
job=$(python3 -c 'import os, string, sys; print(string.Template(sys.stdin.read()).substitute(os.environ))' \
  <"$(dirname "${BASH_SOURCE[0]}")/gke_job.yaml")
if [ "${DRY_RUN:-0}" = 1 ]; then
  printf '%s\n' "$job"
  exit
fi
# A finished job is cleared away; one that runs is not touched, and nothing is started beside it.
if state=$(kubectl get jobset "$NAME" '--output=jsonpath={.status.terminalState}' 2>&1); then
  if [ -z "$state" ]; then
    echo "the job $NAME is running: watch it with kubectl get pods, stop it with ACTION=stop, or choose another NAME" >&2
    exit 1
  fi
  kubectl delete jobset "$NAME"
elif [[ $state != *NotFound* ]]; then
  echo "$state" >&2
  exit 1
fi
kubectl apply --filename=- <<<"$job"
