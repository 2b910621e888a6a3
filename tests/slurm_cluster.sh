#!/usr/bin/env bash
# A whole Slurm of two nodes, n1 and n2, on this one machine, to test launch/slurm with. Run as root, after
# `apt-get install -y slurm-wlm munge`; nothing need be configured or running.
#
#   tests/slurm_cluster.sh start DIR    # keys, configuration, logs and pid files go to DIR, a short path
#   export SLURM_CONF=DIR/slurm.conf    # then sbatch, squeue, scontrol ... speak to it
#   tests/slurm_cluster.sh stop DIR
set -euo pipefail

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }

free_ports() { # HOW_MANY
    python3 -c 'import socket, sys
sockets = [socket.create_server(("", 0)) for _ in range(int(sys.argv[1]))]
print(*(s.getsockname()[1] for s in sockets))' "$1"
}

resolves() { getent hosts "$1" >/dev/null; }

wait_for() { # SECONDS COMMAND...
    local seconds=$1; shift
    for ((i = 0; i < 5 * seconds; i++)); do
        if "$@"; then return; fi
        sleep 0.2
    done
    return 1
}

# A pid file can outlive its process, and another process can get the number: ours names DIR in its command line.
running() { # PIDFILE
    local pid
    pid=$(cat "$1" 2>/dev/null) && tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "$DIR/"
}

gone() { ! running "$1"; }

both_idle() { [[ $(sinfo --noheader --Node --format=%t 2>/dev/null | sort -u) == idle ]]; }

no_jobs() { [[ -z $(squeue --noheader 2>/dev/null) ]]; }

start() {
    if running "$DIR/slurmctld.pid"; then
        echo "$DIR: its Slurm runs already" >&2
        return 1
    fi
    rm -rf "$DIR/state" # jobs of the last time
    mkdir -p "$DIR"/{state,n1,n2}
    # Slurm gives the nodes' names to jobs, and those who run on them look the head node up.
    for node in n1 n2; do resolves $node || echo "127.0.0.1 $node" >>/etc/hosts; done

    # Our own munge beside any that the machine has: --force, because DIR need not be as private as /run/munge.
    (umask 077; head -c 1024 /dev/urandom >"$DIR/munge.key")
    munged --force --key-file="$DIR/munge.key" --socket="$DIR/munge.socket" --pid-file="$DIR/munged.pid" \
        --seed-file="$DIR/munge.seed" --log-file="$DIR/munged.log"

    read -r port port1 port2 <<<"$(free_ports 3)"
    cat >"$DIR/slurm.conf" <<END
ClusterName=vitas-test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
# A requeued job waits until its credential has expired: 120 s, were it not said here.
AuthInfo=socket=$DIR/munge.socket,cred_expire=10
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/%n
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd.%n.pid
SlurmctldLogFile=$DIR/slurmctld.log
SlurmdLogFile=$DIR/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
NodeName=n1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$port1 CPUs=1
NodeName=n2 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$port2 CPUs=1
PartitionName=test Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
END
    slurmctld -f "$DIR/slurm.conf"
    for node in n1 n2; do slurmd -f "$DIR/slurm.conf" -N $node; done
    wait_for 30 both_idle || { tail -n 20 "$DIR"/*.log >&2; stop; return 1; }
}

stop() {
    if running "$DIR/slurmctld.pid"; then # what runs in jobs is not in our pid files
        scancel --user=root --quiet || true
        wait_for 60 no_jobs || echo "$DIR: jobs do not end: $(squeue)" >&2
    fi
    for name in slurmd.n1 slurmd.n2 slurmctld munged; do
        if running "$DIR/$name.pid"; then
            kill "$(cat "$DIR/$name.pid")"
            wait_for 20 gone "$DIR/$name.pid" || kill -KILL "$(cat "$DIR/$name.pid")"
        fi
    done
}

[[ $# == 2 && $1 =~ ^(start|stop)$ ]] || usage
DIR=$(realpath -m "$2")
export SLURM_CONF=$DIR/slurm.conf
"$1"
