#!/usr/bin/env bash
# A real Slurm for tests and for trying `engine=slurm`: root, Debian or Ubuntu, no systemd, no accounting.
#
#   scripts/slurm_on_this_machine.sh start [CPUS] [GPUS] [NODES]   install the packages if needed, configure, start: by default
#                                                                  one node with 8 CPUs and 2 pretended GPUs
#   eval "$(scripts/slurm_on_this_machine.sh env)"                 let squeue, sbatch and overpaint find it
#   scripts/slurm_on_this_machine.sh status | stop
#
# The nodes are node-1, node-2 ... Those from node-2 on have a host name of their own, so that their processes count as another
# machine's. Everything except the packages and munge's key lies under $SLURM_LAB (default: /tmp/slurm-lab). Only processes that
# this script started are stopped.
set -euo pipefail

lab=${SLURM_LAB:-/tmp/slurm-lab}
port=${SLURM_LAB_PORT:-6817}
export SLURM_CONF=$lab/slurm.conf

running() { [[ -s $lab/$1.pid ]] && kill -0 "$(<"$lab/$1.pid")" 2>/dev/null; }

until_true() { # SECONDS COMMAND...
    local end=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || { echo "gave up waiting for: $*" >&2; return 1; }
        sleep 0.2
    done
}

install_packages() {
    local packages=(slurmctld slurmd slurm-client munge)
    dpkg -s "${packages[@]}" >/dev/null 2>&1 && return
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >"$lab/apt.log" 2>&1
}

configure() { # CPUS GPUS NODES
    local memory gpu gres=()
    memory=$(awk '/^MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
    mkdir -p "$lab"/{state,devices}
    echo "$3" >"$lab/nodes"
    echo "CgroupPlugin=disabled" >"$lab/cgroup.conf"
    echo "AutoDetect=off" >"$lab/gres.conf"
    for ((gpu = 0; gpu < $2; gpu++)); do # a device file each; copies of /dev/null will do
        [[ -e $lab/devices/gpu$gpu ]] || mknod "$lab/devices/gpu$gpu" c 1 3
        echo "NodeName=node-[1-$3] Name=gpu File=$lab/devices/gpu$gpu" >>"$lab/gres.conf"
    done
    (($2)) && gres=("Gres=gpu:$2")
    cat >"$SLURM_CONF" <<CONF
ClusterName=single
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmctldPort=$port
# a node that does not answer for so many seconds is down, and its jobs are requeued
SlurmdTimeout=10
AuthType=auth/munge
CredType=cred/munge
# a requeued job may not start again before its old credential has expired
AuthInfo=cred_expire=5
StateSaveLocation=$lab/state
SlurmdSpoolDir=$lab/spool-%n
SlurmctldPidFile=$lab/slurmctld.pid
SlurmdPidFile=$lab/slurmd-%n.pid
SlurmctldLogFile=$lab/slurmctld.log
SlurmdLogFile=$lab/slurmd-%n.log
# without cgroups and without accounting
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
# more CPUs than the machine has
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
KillWait=10
JobRequeue=1
# jobs of partition urgent preempt those of partition main, which get their notice (--signal) first
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PreemptParameters=send_user_signal
NodeName=node-[1-$3] NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + $3))] CPUs=$1 Boards=1 SocketsPerBoard=1 CoresPerSocket=$1 ThreadsPerCore=1 RealMemory=$memory ${gres[*]:-}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=10 GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=100 PreemptMode=OFF
CONF
}

start_munge() {
    munge -n >/dev/null 2>&1 && return
    install -d -o munge -g munge -m 755 /run/munge
    if [[ ! -s /etc/munge/munge.key ]]; then
        (umask 077 && head -c 128 /dev/urandom >/etc/munge/munge.key)
        chown munge:munge /etc/munge/munge.key
    fi
    runuser -u munge -- /usr/sbin/munged --pid-file=/run/munge/munged.pid
    until_true 10 munge -n
    cp /run/munge/munged.pid "$lab/munged.pid"
}

start() {
    local node number
    mkdir -p "$lab"
    install_packages
    running slurmctld || configure "${1:-8}" "${2:-2}" "${3:-1}"
    start_munge
    running slurmctld || /usr/sbin/slurmctld -f "$SLURM_CONF"
    until_true 20 scontrol ping
    for number in $(seq "$(<"$lab/nodes")"); do
        node=node-$number
        running "slurmd-$node" && continue
        mkdir -p "$lab/spool-$node"
        if ((number == 1)); then
            /usr/sbin/slurmd -f "$SLURM_CONF" -N "$node"
        else
            unshare --uts sh -c "hostname $node && exec /usr/sbin/slurmd -f '$SLURM_CONF' -N $node"
        fi
    done
    until_true 30 sh -c "sinfo --noheader --partition=main --states=idle,mixed,allocated --format=%D | grep -qx $(<"$lab/nodes")"
    echo "Slurm is ready: export SLURM_CONF=$SLURM_CONF" >&2
}

stop() {
    local file daemon pid
    for file in "$lab"/{slurmd-*,slurmctld,munged}.pid; do
        daemon=$(basename "$file" .pid)
        running "$daemon" || continue
        pid=$(<"$file") # a daemon that ends removes the file
        kill "$pid"
        until_true 10 sh -c "! kill -0 $pid" || true
        rm -f "$file"
    done
}

case ${1:-} in
    start) shift; start "$@" ;;
    stop) stop ;;
    status) scontrol ping; sinfo --Node --partition=main --format='%N %t %c CPUs %G'; squeue ;;
    env) echo "export SLURM_CONF=$SLURM_CONF" ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
