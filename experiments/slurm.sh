#!/usr/bin/env bash
# A sweep on a SLURM allocation: Ray starts on every node, and the first node drives the sweep.
#   sbatch experiments/slurm.sh experiments/paper.yaml
# Submitted again, or requeued, it goes on from the last checkpoints. A node that fails costs one checkpoint interval.
#SBATCH --job-name=sweep
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
export PATH="$PWD/.venv/bin:$PATH"

# Whoever reaches Ray's port can run code, so Ray asks for a token, which only this user can read.
umask 077
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$PWD/.ray-token-$SLURM_JOB_ID"
export FINISHED="$PWD/.finished-$SLURM_JOB_ID"
trap 'rm -f "$RAY_AUTH_TOKEN_PATH" "$FINISHED"' EXIT
python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH"

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address="$head:$((20000 + SLURM_JOB_ID % 20000))"
# Nodes that only work are ended soon after the sweep is, and srun calls that a failure: the file FINISHED tells of the sweep.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --wait=30 \
  ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" -- \
  bash -c 'python -m pipeline.sweep "$@" && touch "$FINISHED"' - "${@:-experiments/paper.yaml}" --address "$address" || true
[[ -e $FINISHED ]]
