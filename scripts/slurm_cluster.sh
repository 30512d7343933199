#!/usr/bin/env bash
# Starts a SLURM cluster on this machine to try sweeps (Debian: apt-get install slurm-wlm munge). It needs root, because
# slurmd does, but neither systemd nor accounting. All its files are in one folder:
#
#   scripts/slurm_cluster.sh start FOLDER && export SLURM_CONF=FOLDER/slurm.conf
#   python scripts/train.py -m ... hydra/launcher=submitit_slurm
#   scripts/slurm_cluster.sh stop FOLDER
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin

usage() {
    echo "usage: $0 start|stop FOLDER" >&2
    exit 2
}

start() {
    local folder=$1 user port try
    for program in munged slurmctld slurmd sbatch; do
        command -v "$program" > /dev/null || { echo "$program is not installed" >&2; exit 3; }
    done
    mkdir -p "$folder/state" "$folder/spool"
    folder=$(realpath "$folder")
    user=$(id -un)
    port=$(shuf -i 20000-29999 -n 1)
    (umask 077; head -c 1024 /dev/urandom > "$folder/munge.key")
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.sock" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munge.seed" 2> "$folder/munged.err"
    cat > "$folder/slurm.conf" <<-CONF
		ClusterName=qohort
		SlurmctldHost=$(hostname)(127.0.0.1)
		SlurmUser=$user
		SlurmdUser=$user
		SlurmctldPort=$port
		SlurmdPort=$((port + 1))
		SlurmctldPidFile=$folder/slurmctld.pid
		SlurmdPidFile=$folder/slurmd.pid
		SlurmctldLogFile=$folder/slurmctld.log
		SlurmdLogFile=$folder/slurmd.log
		StateSaveLocation=$folder/state
		SlurmdSpoolDir=$folder/spool
		# a requeued job waits until its credential expires, by default 120 seconds
		AuthInfo=socket=$folder/munge.sock,cred_expire=5
		AuthType=auth/munge
		CredType=cred/munge
		ProctrackType=proctrack/linuxproc
		TaskPlugin=task/none
		SelectType=select/cons_tres
		SelectTypeParameters=CR_Core
		ReturnToService=2
		JobRequeue=1
		SchedulerParameters=sched_interval=5
		AccountingStorageType=accounting_storage/none
		JobAcctGatherType=jobacct_gather/none
		MpiDefault=none
		NodeName=$(hostname) NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
		PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
	CONF
    export SLURM_CONF=$folder/slurm.conf
    slurmctld -c
    slurmd
    for try in $(seq 60); do
        [ "$(sinfo --noheader --format=%t 2> /dev/null)" = idle ] && exit 0
        sleep 0.5
    done
    echo "the node did not start, see $folder/*.log" >&2
    stop "$folder"
    exit 1
}

stop() {
    local folder=$1 name pid
    for name in slurmd slurmctld munged; do
        pid=$(cat "$folder/$name.pid" 2> /dev/null) || continue
        kill "$pid" 2> /dev/null || continue
        while kill -0 "$pid" 2> /dev/null; do sleep 0.1; done
    done
}

[ $# = 2 ] || usage
case $1 in
    start) start "$2" ;;
    stop) stop "$2" ;;
    *) usage ;;
esac
