#!/bin/bash
# One search on many machines of a Slurm cluster: each task of the array is one more worker.
#
#     export NAS_STORAGE=postgresql://USER@HOST/DATABASE
#     sbatch --array=1-32 slurm.sh --space mnasnet:a1 --task image_folder:/data/photos \
#            --target cpu:threads=1 --budget-ms 4.5 --trials 2000 --study photos
#
# Two minutes before its time is over, and where it is preempted, a task gets SIGTERM: it gives its
# trial back and ends with 143. It is queued again then, and goes on with the same command.
#SBATCH --job-name=nas
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120

# Slurm signals this script alone (B), or all that it started: it tells the search.
command=(nas search "$@" --storage "$NAS_STORAGE")
"${command[@]}" &
search=$!
trap 'kill -TERM "$search"' TERM
wait "$search"
status=$?
while kill -0 "$search" 2>/dev/null; do # the signal ended the waiting, not the search
    wait "$search"
    status=$?
done
if [ "$status" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
