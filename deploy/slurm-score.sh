#!/bin/bash
# Scores many archives, one a task:  sbatch --array=0-99%20 deploy/slurm-score.sh archives.txt
# archives.txt names one archive a line; task number K scores the archive of line K + 1. Twenty run at a time.
# A task that was cut off is simply submitted again: finished shards are kept, finished outputs are the same to the byte.
#SBATCH --job-name=syscall-lm-score
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=02:00:00
#SBATCH --output=score-%A-%a.log
#SBATCH --requeue

archive=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "${1:?name the list of archives}")
output=$HOME/scores/$SLURM_ARRAY_TASK_ID-$(basename "$archive" .parquet).parquet # archives of two folders may share a name
exec syscall-lm score --model="$HOME/models/adfa" --archive="$archive" --output="$output" --far=0.01
