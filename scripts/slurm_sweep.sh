#!/usr/bin/env bash
# One sweep as one Slurm job, one rank a GPU: the same results.json and results.h5 as one process writes.
#
#   sbatch --nodes 2 --gpus-per-node 4 --time 4:00:00 scripts/slurm_sweep.sh eval \
#     --config configs/tables/ranks.json --out results/ranks
#
# A job that ran out of time goes on where it ended: submit the same command again. S2O names the
# program, where it is not build/cuda/s2o.
#SBATCH --job-name=s2o
#SBATCH --output=%x-%j.log
#SBATCH --signal=B:TERM@120
set -euo pipefail

if [ $# -lt 2 ] || { [ "$1" != eval ] && [ "$1" != prefill ]; }; then
  echo "usage: sbatch [--nodes N] --gpus-per-node G $0 eval|prefill --config FILE --out FOLDER ..." >&2
  exit 2
fi
if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "$0: not inside a Slurm job; submit it with sbatch, or on one machine: mpirun -n GPUS s2o $*" >&2
  exit 2
fi
program=${S2O:-$SLURM_SUBMIT_DIR/build/cuda/s2o}
if [ ! -x "$program" ]; then
  echo "$program: no program; build it on the cluster (cmake --preset cuda), or name it with S2O=" >&2
  exit 2
fi
gpus=${SLURM_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
gpus=${gpus##*:} # "h200:4" names the kind too
# A rank computes in a child process: one that dies costs its row, and --kill-on-bad-exit would end
# the others with it. The MPI of the build decides the plug-in: pmix for Open MPI 4 and newer, pmi2 for
# MPICH (S2O_MPI_TYPE).
srun --mpi="${S2O_MPI_TYPE:-pmix}" --ntasks-per-node="$gpus" --kill-on-bad-exit=0 --cpu-bind=none \
  "$program" "$@" --resume &
step=$!
# Slurm warns the script two minutes before the end: rank 0 writes what there is.
trap 'kill -TERM $step' TERM
wait $step || { code=$?; wait $step 2>/dev/null || true; exit "$code"; }
