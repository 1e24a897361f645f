#!/bin/bash
# Trains one ensemble on several nodes:  sbatch deploy/slurm-train.sh
# The archive and the model directory must lie on a file system that all nodes see.
#SBATCH --job-name=syscall-lm-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
# With GPUs: one task a GPU, for instance --ntasks-per-node=4 --gpus-per-node=4 (each task takes the one of its number).
#SBATCH --time=04:00:00
#SBATCH --output=train-%j.log
#SBATCH --requeue
# SIGTERM two minutes before the time is up: a checkpoint is written, and the processes leave with exit code 75.
#SBATCH --signal=TERM@120

# srun tells every process of the others; no --coordinator is needed. If one is lost, the others leave by themselves.
srun syscall-lm train \
  --archive="$HOME/adfa.parquet" --model="$HOME/models/adfa" --members=1x200,1x400,2x400
code=$?

# 2 is a mistake in the flags or the data, which does not go away by itself. Anything else ended the processes from
# outside (75; 137 where one was killed, which srun tells for all), and the same command goes on, at most 20 times. The
# job may come back with another number of nodes.
case $code in
  0 | 2) ;;
  *) if [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then scontrol requeue "$SLURM_JOB_ID"; fi ;;
esac
exit "$code"
