#!/usr/bin/env bash
# peers.sh WHO prepare|up|down: one set-up in a lab (see lab.sh): the app behind a sidecar that filters, published at port
# 5000 of the host; or, for those that have no sidecar, the app alone. $TOOLS has `load`, which is the app, and root file
# systems of it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
who=$1 what=$2
app=172.31.0.23 sidecar=172.31.0.33 gateway=172.31.0.1
as_user() {
    (cd "$LAB/user" && exec setpriv --reuid 4711 --regid 4711 --init-groups --inh-caps=-all -- \
        env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME="$LAB/user" XDG_RUNTIME_DIR=/run/user "$@")
}
make_user() {
    mkdir -p "$LAB/user" /run/user
    chown 4711:4711 "$LAB/user" /run/user
    chmod 700 /run/user
}
# Starts what follows as a daemon, its id in /run/pids.
start() {
    "$@" </dev/null >>"$LAB/daemon.log" 2>&1 &
    echo $! >>/run/pids
}
stop_all() { xargs -r kill </run/pids; rm /run/pids; }
in_app() { nsenter --net=/run/netns/app setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs -- "$@"; }

direct_prepare() { :; }
direct_up() { start "$TOOLS/load" serve 5000; }
direct_down() { stop_all; }

# The same hops as lrpns has, host, sidecar, app, by routes only: no rule, no conntrack. The client asks for the app's address.
routed_prepare() { :; }
routed_up() {
    ip -batch - <<B
netns add sidecar
netns add app
link add up0 type veth peer name eth0 netns sidecar
addr add 172.30.0.1/24 dev up0
link set up0 up
route add 172.31.0.0/24 via 172.30.0.2
B
    ip -n sidecar -batch - <<B
link set lo up
addr add 172.30.0.2/24 dev eth0
link set eth0 up
route add default via 172.30.0.1
link add app0 type veth peer name eth0 netns app
addr add $sidecar/24 dev app0
link set app0 up
B
    nsenter --net=/run/netns/sidecar sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
    ip -n app -batch - <<B
link set lo up
addr add $app/24 dev eth0
link set eth0 up
route add default via $sidecar
B
    start in_app "$TOOLS/load" serve 5000
}
routed_down() { stop_all; ip link del up0; ip netns del app; ip netns del sidecar; }

# By hand, as fast as iproute2 and nftables can be told: one batch for each namespace.
iproute2_prepare() {
    nft -f - <<'R'
table ip host {
    map published { type inet_service : ipv4_addr . inet_service; }
    chain pre { type nat hook prerouting priority -100; fib daddr type local dnat to tcp dport map @published; }
    chain out { type nat hook output priority -100; ip daddr != 127.0.0.0/8 fib daddr type local dnat to tcp dport map @published; }
}
R
}
iproute2_up() {
    ip -batch - <<B
netns add sidecar
netns add app
link add br0 type bridge
addr add $gateway/24 dev br0
link set br0 up
link add side0 type veth peer name eth0 netns sidecar
link set side0 master br0 up
link add app0 type veth peer name eth0 netns app
link set app0 master br0 up
B
    ip -n app -batch - <<B
link set lo up
addr add $app/24 dev eth0
link set eth0 up
route add default via $gateway
B
    nsenter --net=/run/netns/sidecar sh -c "ip -batch - && echo 1 >/proc/sys/net/ipv4/ip_forward && exec nft -f $here/rules.nft" <<B
link set lo up
addr add $sidecar/24 dev eth0
link set eth0 up
route add default via $gateway
B
    nft add element ip host published "{ 5000 : $sidecar . 5000 }"
    start in_app "$TOOLS/load" serve 5000
}
iproute2_down() {
    stop_all
    nft delete element ip host published "{ 5000 : $sidecar . 5000 }"
    ip -batch - <<B
link del br0
link del side0
link del app0
netns del app
netns del sidecar
B
}

# Debian's: another `docker` may come first in PATH.
docker=/usr/bin/docker
docker_prepare() {
    start /usr/sbin/dockerd --data-root "$LAB/data" --exec-root "$LAB/exec" -p "$LAB/dockerd.pid" -H "unix://$LAB/docker.sock" \
        --cgroup-parent "$(basename "$LAB")"
    rm /run/pids
    for _ in $(seq 300); do ! $docker version >/dev/null 2>&1 || break; sleep 0.1; done
    $docker import "$TOOLS/app.tar" bench/app
    $docker import "$TOOLS/sidecar.tar" bench/sidecar
}
docker_up() {
    $docker network create --subnet=172.31.0.0/24 -d bridge bench
    $docker run -d --pull=never --cap-add NET_ADMIN --read-only --sysctl net.ipv4.ip_forward=1 --net bench --ip $sidecar --name sidecar \
        -p 0.0.0.0:5000:5000 bench/sidecar /rules "$LAST" $app $sidecar
    $docker run -d --pull=never --net bench --ip $app --name app bench/app /load serve 5000
}
docker_down() { $docker rm -f app sidecar; $docker network rm bench; }
DOCKER_HOST=unix://$LAB/docker.sock
export DOCKER_HOST

podman_() { podman --root "$LAB/images" --runroot /run/podman --network-config-dir "$LAB/networks" --cgroup-manager=cgroupfs --runtime=crun --events-backend=none "$@"; }
podman_prepare() {
    mkdir -p "$LAB/networks"
    podman_ import "$TOOLS/app.tar" localhost/app:1
    podman_ import "$TOOLS/sidecar.tar" localhost/sidecar:1
}
podman_up() {
    podman_ network create --disable-dns --subnet=172.31.0.0/24 -d bridge bench
    podman_ run -d --pull=never --cap-add NET_ADMIN,NET_RAW --read-only --sysctl net.ipv4.ip_forward=1 --net bench --ip $sidecar --name sidecar \
        -p 0.0.0.0:5000:5000 localhost/sidecar:1 /rules "$LAST" $app $sidecar
    podman_ run -d --pull=never --net bench --ip $app --name app localhost/app:1 /load serve 5000
}
podman_down() { podman_ rm -f -t 0 app sidecar; podman_ network rm bench; }

user_podman() { as_user podman --root "$LAB/user/images" --runroot /run/user/podman --cgroup-manager=cgroupfs --events-backend=file --runtime=crun "$@"; }
# What these programs need of a machine: a tun device that everybody may open, and a default route (to nowhere here).
tun() {
    mknod "$LAB/tun" c 10 200
    chmod 666 "$LAB/tun"
    mount --bind "$LAB/tun" /dev/net/tun
    ip route add default via 10.99.0.2
}
rootlessport_prepare() { make_user; tun; user_podman import "$TOOLS/app.tar" localhost/app:1; }
rootlessport_up() {
    user_podman run -d --pull=never --cgroups=disabled --name app --net slirp4netns:port_handler=rootlesskit -p 0.0.0.0:5000:5000 \
        localhost/app:1 /load serve 5000
}
rootlessport_down() { user_podman rm -f -t 0 app; }
pasta_prepare() { make_user; tun; }
pasta_up() { start as_user pasta -f --config-net -i ext0 -t 5000 -u none -T none -U none -- "$TOOLS/load" serve 5000; }
pasta_down() { stop_all; }
rootlesskit_prepare() { make_user; tun; }
rootlesskit_up() {
    start as_user rootlesskit --net=slirp4netns --disable-host-loopback --port-driver=builtin -p 0.0.0.0:5000:5000/tcp "$TOOLS/load" serve 5000
}
rootlesskit_down() { stop_all; }

lrpns() { if [ -n "${USER_RUN:-}" ]; then as_user "$TOOLS/lrpns" "$@"; else "$TOOLS/lrpns" "$@"; fi; }
lrpns_prepare() {
    [ -z "${USER_RUN:-}" ] || make_user
    cat >"$LAB/bench.toml" <<T
name = "bench"
[network]
subnet = "172.31.0.0/24"
[sidecar]
address = "$sidecar"
log = "connections"
[app]
address = "$app"
rootfs = "dir:$TOOLS/app"
command = ["/load", "serve", "5000"]
publish = ["0.0.0.0:5000:5000"${UDP:+, \"0.0.0.0:5000:5000/udp\"}]
via = "$VIA"
${SOURCE:+source = \"$SOURCE\"}
${EGRESS:+egress = [\"$EGRESS\"]}
T
}
lrpns_up() { lrpns up -d -f "$LAB/bench.toml"; }
lrpns_down() { lrpns down -f "$LAB/bench.toml"; }

"${who}_$what"
