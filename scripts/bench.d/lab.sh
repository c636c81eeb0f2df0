#!/usr/bin/env bash
# lab.sh DIR BINARIES COMMAND...: runs COMMAND in network, mount, process, UTS and IPC namespaces of its own. Beside them is a
# second network namespace, the client's, at the end of one veth pair; neither has a way to anywhere else:
#     client (10.99.0.2, /run/netns/client)  <-- veth -->  host (10.99.0.1)
# /run, /var/log and the accounts' files are the lab's own. DIR/ready is made when COMMAND has ended, with its exit code; the lab
# lives until its first process is killed, and all that was started in it ends with that.
set -eu
if [ "$1" != --inside ]; then
    exec unshare --net --mount --pid --uts --ipc --fork --kill-child --mount-proc --propagation private bash "$0" --inside "$@"
fi
export LAB=$2 TOOLS=$3
shift 3
# A sysfs of this network namespace, with the cgroups below it. crun takes version 1 or 2, and no mixture.
mkdir -p "$LAB/cgroup"
mount --rbind /sys/fs/cgroup "$LAB/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$LAB/cgroup" /sys/fs/cgroup
umount -l "$LAB/cgroup"
umount /sys/fs/cgroup/unified 2>/dev/null || true
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/netns
mount -t tmpfs -o mode=755 tmpfs /var/log
# An ordinary user, with ids of its own, whom the machine does not know.
for file in passwd group subuid subgid; do
    cat "/etc/$file" >"$LAB/$file" 2>/dev/null || : >"$LAB/$file"
    case $file in
    passwd) echo 'lrpnsbench:x:4711:4711::/nonexistent:/usr/sbin/nologin' ;;
    group) echo 'lrpnsbench:x:4711:' ;;
    *) echo 'lrpnsbench:1500000000:65536' ;;
    esac >>"$LAB/$file"
    [ ! -e "/etc/$file" ] || mount --bind "$LAB/$file" "/etc/$file"
done
ip link set lo up
ip netns add client
ip link add ext0 type veth peer name eth0 netns client
ip addr add 10.99.0.1/24 dev ext0
ip link set ext0 up
ip -n client link set lo up
for k in $(seq 2 17); do echo "addr add 10.99.0.$k/24 dev eth0"; done | ip -n client -batch -
ip -n client link set eth0 up
ip -n client route add default via 10.99.0.1
# So that a client does not run out of ports by itself.
nsenter --net=/run/netns/client sh -c 'cd /proc/sys/net/ipv4 && echo 1024 65000 >ip_local_port_range && echo 1 >tcp_tw_reuse'
echo 1 >/proc/sys/net/ipv4/ip_forward
code=0
"$@" >"$LAB/log" 2>&1 || code=$?
echo "$code" >"$LAB/ready.new"
mv "$LAB/ready.new" "$LAB/ready"
# This shell stays, as the first process, to reap.
sleep infinity &
wait
