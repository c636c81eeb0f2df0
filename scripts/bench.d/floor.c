// floor RULES: what the kernel itself takes for two network namespaces behind a bridge, by system calls and rtnetlink in one
// process, and one `nft -f RULES` in the sidecar's. No app, no confinement. Prints: MS_TO_MAKE MS_TO_REMOVE
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

struct request {
    struct nlmsghdr n;
    union {
        struct ifinfomsg link;
        struct ifaddrmsg address;
        struct rtmsg route;
    } u;
    char rest[1024];
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static int need(int result, const char *what) {
    if (result >= 0) return result;
    perror(what);
    exit(1);
}

static struct request begin(int type, int size, int flags) {
    struct request q;
    memset(&q, 0, sizeof q);
    q.n.nlmsg_len = NLMSG_LENGTH(size);
    q.n.nlmsg_type = type;
    q.n.nlmsg_flags = flags | NLM_F_REQUEST | NLM_F_ACK;
    return q;
}

static struct rtattr *add(struct request *q, int type, const void *data, int length) {
    struct rtattr *r = (void *)((char *)q + NLMSG_ALIGN(q->n.nlmsg_len));
    r->rta_type = type;
    r->rta_len = RTA_LENGTH(length);
    if (length) memcpy(RTA_DATA(r), data, length);
    q->n.nlmsg_len = NLMSG_ALIGN(q->n.nlmsg_len) + RTA_ALIGN(r->rta_len);
    return r;
}

static void end(struct request *q, struct rtattr *r) { r->rta_len = (char *)q + NLMSG_ALIGN(q->n.nlmsg_len) - (char *)r; }

static int netlink(void) { return need(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE), "netlink"); }

static void talk(int s, struct request *q) {
    char b[4096];
    need(send(s, q, q->n.nlmsg_len, 0), "send");
    need(recv(s, b, sizeof b, 0), "recv");
    struct nlmsghdr *h = (void *)b;
    struct nlmsgerr *e = NLMSG_DATA(h);
    if (h->nlmsg_type == NLMSG_ERROR && e->error) {
        fprintf(stderr, "netlink message %d: %s\n", q->n.nlmsg_type, strerror(-e->error));
        exit(1);
    }
}

static void up(int s, int index) {
    struct request q = begin(RTM_NEWLINK, sizeof q.u.link, 0);
    q.u.link.ifi_index = index;
    q.u.link.ifi_flags = q.u.link.ifi_change = IFF_UP;
    talk(s, &q);
}

static void give_address(int s, int index, const char *text) {
    struct request q = begin(RTM_NEWADDR, sizeof q.u.address, NLM_F_CREATE);
    struct in_addr a;
    inet_pton(AF_INET, text, &a);
    q.u.address.ifa_family = AF_INET;
    q.u.address.ifa_prefixlen = 24;
    q.u.address.ifa_index = index;
    add(&q, IFA_LOCAL, &a, 4);
    add(&q, IFA_ADDRESS, &a, 4);
    talk(s, &q);
}

static void default_route(int s, const char *gateway) {
    struct request q = begin(RTM_NEWROUTE, sizeof q.u.route, NLM_F_CREATE);
    struct in_addr a;
    inet_pton(AF_INET, gateway, &a);
    q.u.route.rtm_family = AF_INET;
    q.u.route.rtm_table = RT_TABLE_MAIN;
    q.u.route.rtm_protocol = RTPROT_STATIC;
    q.u.route.rtm_type = RTN_UNICAST;
    add(&q, RTA_GATEWAY, &a, 4);
    talk(s, &q);
}

static void bridge(int s, const char *name) {
    struct request q = begin(RTM_NEWLINK, sizeof q.u.link, NLM_F_CREATE | NLM_F_EXCL);
    add(&q, IFLA_IFNAME, name, strlen(name));
    struct rtattr *info = add(&q, IFLA_LINKINFO, 0, 0);
    add(&q, IFLA_INFO_KIND, "bridge", 7);
    end(&q, info);
    talk(s, &q);
}

static void veth(int s, const char *name, int there, int master) {
    struct request q = begin(RTM_NEWLINK, sizeof q.u.link, NLM_F_CREATE | NLM_F_EXCL);
    add(&q, IFLA_IFNAME, name, strlen(name));
    struct rtattr *info = add(&q, IFLA_LINKINFO, 0, 0);
    add(&q, IFLA_INFO_KIND, "veth", 5);
    struct rtattr *data = add(&q, IFLA_INFO_DATA, 0, 0), *peer = add(&q, VETH_INFO_PEER, 0, 0);
    q.n.nlmsg_len += sizeof(struct ifinfomsg);
    add(&q, IFLA_IFNAME, "eth0", 5);
    add(&q, IFLA_NET_NS_FD, &there, 4);
    end(&q, peer);
    end(&q, data);
    end(&q, info);
    add(&q, IFLA_MASTER, &master, 4);
    talk(s, &q);
    up(s, if_nametoindex(name));
}

int main(int c, char **v) {
    int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), s = netlink(), space[2], inside[2], status;
    if (c != 2) return 2;
    double start = now();
    for (int k = 0; k < 2; k++) {
        need(unshare(CLONE_NEWNET), "unshare");
        space[k] = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
        inside[k] = netlink();
        need(setns(home, CLONE_NEWNET), "setns");
    }
    bridge(s, "floor");
    int index = if_nametoindex("floor");
    give_address(s, index, "172.31.0.1");
    up(s, index);
    veth(s, "floor0", space[0], index);
    veth(s, "floor1", space[1], index);
    for (int k = 0; k < 2; k++) {
        up(inside[k], 1);
        give_address(inside[k], 2, k ? "172.31.0.23" : "172.31.0.33");
        up(inside[k], 2);
        default_route(inside[k], "172.31.0.1");
    }
    need(setns(space[0], CLONE_NEWNET), "setns");
    int f = need(open("/proc/sys/net/ipv4/ip_forward", O_WRONLY | O_CLOEXEC), "ip_forward");
    need(write(f, "1", 1), "ip_forward");
    char *nft[] = {"nft", "-f", v[1], 0};
    pid_t child;
    if (posix_spawnp(&child, "nft", 0, 0, nft, environ)) need(-1, "nft");
    waitpid(child, &status, 0);
    if (status) return 1;
    need(setns(home, CLONE_NEWNET), "setns");
    double made = now();
    for (int k = 0; k < 2; k++) {
        close(inside[k]);
        close(space[k]);
    }
    double removed = now();
    printf("%.3f %.3f\n", made - start, removed - made);
    // The links go with their namespaces, on the kernel's own time: the next run must not meet them.
    while (if_nametoindex("floor0") || if_nametoindex("floor1")) usleep(1000);
    struct request q = begin(RTM_DELLINK, sizeof q.u.link, 0);
    q.u.link.ifi_index = index;
    talk(s, &q);
    return 0;
}
