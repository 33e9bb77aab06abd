#!/usr/bin/env bash
# A run on several nodes of Slurm: a Ray cluster for the length of the job, and the run in it.
#   RUNS=/shared/runs sbatch --nodes=2 docs/deploy/slurm.sh configs/recipes/two-nodes.yaml [KEY=VALUE ...]
# RUNS is a folder that the next job sees, too: the same command again goes on with what is committed, and so does Slurm
# itself where it requeues the job. `online-dpo` and `ray` must be on the PATH of every node; each downloads what the
# config names by hub id into HF_HOME, or shares one.
#SBATCH --job-name=online-dpo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the time is over the run is told to stop; what it has committed stays in any case.
#SBATCH --signal=B:TERM@120
set -euo pipefail

config=${1:?the config is missing: sbatch docs/deploy/slurm.sh CONFIG [KEY=VALUE ...]}
shift
: "${RUNS:?set RUNS to the folder for run directories, such as /shared/runs}"
mapfile -t nodes < <(scontrol show hostnames "${SLURM_JOB_NODELIST:?start this with sbatch}")
num_nodes=${#nodes[@]}

# Several jobs may share a node's network, and Ray asks each process for the token of its cluster.
port=$((20000 + SLURM_JOB_ID % 20000))
head=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address)
export RAY_ADDRESS="${head%% *}:$port"
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN

steps=()
# shellcheck disable=SC2317,SC2329  # the trap calls it
cleanup() {
    # Slurm ends what a step started when the step's srun is told to stop, on every node.
    for step in "${steps[@]}"; do kill -TERM "$step" 2>/dev/null || true; done
    wait || true
}
trap cleanup EXIT

srun --overlap --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" \
    ray start --head --node-ip-address="${head%% *}" --port="$port" --block &
steps+=($!)
if [ "$num_nodes" -gt 1 ]; then
    srun --overlap --nodes=$((num_nodes - 1)) --ntasks=$((num_nodes - 1)) --exclude="${nodes[0]}" \
        bash -c "until ray health-check --address \"\$RAY_ADDRESS\" 2>/dev/null; do sleep 2; done
                 exec ray start --address=\"\$RAY_ADDRESS\" --block" &
    steps+=($!)
fi

# The run counts the cluster's GPUs when it begins, so every node must have joined.
alive='import sys, ray; ray.init(log_to_driver=False); sys.exit(sum(n["Alive"] for n in ray.nodes()) < int(sys.argv[1]))'
deadline=$((SECONDS + ${JOIN_TIMEOUT_S:-300}))
until python -c "$alive" "$num_nodes" >/dev/null 2>&1; do
    if [ "$SECONDS" -ge "$deadline" ]; then
        echo "not all of the $num_nodes nodes joined Ray at $RAY_ADDRESS in time; see the output of ray start above" >&2
        exit 1
    fi
    sleep 2
done

# In the background, so that a signal to this script is answered at once and handed on.
online-dpo run "$config" run.dir="$RUNS" "$@" &
run=$!
trap 'kill -TERM "$run" 2>/dev/null || true' TERM INT
code=0
wait "$run" || code=$?
# A signal ends the first wait before the run has ended.
while kill -0 "$run" 2>/dev/null; do code=0; wait "$run" || code=$?; done
exit "$code"
