// The app that is measured, and its clients, in one static program. The server is as small as one can be, so that what is
// measured is the way to it.
//   load serve PORT                           HTTP (1 KiB an answer), bulk and UDP, at PORT or at the socket it is handed
//   load first NETNS HOST PORT -- COMMAND...  runs COMMAND, then asks from NETNS until the answer is 200: MS_OF_COMMAND MS_OF_ANSWER
//   load gone NETNS HOST PORT -- COMMAND...   runs COMMAND, then connects until it is refused: MS_OF_COMMAND MS_OF_REFUSAL
//   load closers HOST PORT SECONDS COUNT SOURCE...  a connection for each request, closed by the client first, 32 at a time,
//                                             until COUNT or SECONDS are over: a line for each second, ANSWERED FAILED
//   load bulk HOST PORT SECONDS               one connection, as much as it carries: Gbit/s that the server has read
//   load udp HOST PORT RATE SECONDS           datagrams of 1,200 bytes, then round trips of 100 for a second: SENT_A_SECOND ARRIVED_OF_A_MILLION ROUND_TRIPS
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void need(int good, const char *what) {
    if (!good) {
        fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
        exit(1);
    }
}

static struct sockaddr_in address(const char *host, const char *port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    inet_pton(AF_INET, host, &a.sin_addr);
    return a;
}

// ---- the server

enum { CONNECTIONS = 65536 };
// Of each connection, by its descriptor: 0 new, 1 HTTP, 2 bulk; and how much was read of bulk.
static char kind[CONNECTIONS];
static uint64_t got[CONNECTIONS];

static void readable(int c) {
    static char buffer[1 << 18], answer[2][1400];
    static int length[2];
    if (!length[0])
        for (int close = 0; close < 2; close++) {
            length[close] = sprintf(answer[close], "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n%s\r\n",
                                    close ? "Connection: close\r\n" : "");
            memset(answer[close] + length[close], 'x', 1024);
            length[close] += 1024;
        }
    ssize_t n = read(c, buffer, kind[c] == 2 ? sizeof buffer : 4096);
    if (n < 0 && errno == EAGAIN) return;
    if (n > 0 && kind[c] == 0) kind[c] = buffer[0] == 'B' ? 2 : 1;
    if (kind[c] == 2) {
        if (n > 0) {
            got[c] += n;
            return;
        }
        if (n == 0 && write(c, &got[c], 8) != 8) perror("write");
    } else if (n >= 4 && !memcmp(buffer + n - 4, "\r\n\r\n", 4)) {
        int last = memmem(buffer, n, "close", 5) != NULL;
        if (write(c, answer[last], length[last]) == length[last] && !last) return;
    } else if (n > 0) {
        return;
    }
    close(c);
}

static void datagrams(int s) {
    static char m[2000];
    static uint64_t count;
    struct sockaddr_in from;
    for (int k = 0; k < 256; k++) {
        socklen_t l = sizeof from;
        ssize_t n = recvfrom(s, m, sizeof m, MSG_DONTWAIT, (void *)&from, &l);
        if (n < 1) return;
        if (m[0] == 'D') {
            count++;
        } else {
            if (m[0] == 'E') {
                memcpy(m, &count, 8);
                n = 8;
                count = 0;
            }
            sendto(s, m, n, 0, (void *)&from, l);
        }
    }
}

static void serve(const char *port) {
    struct sockaddr_in a = address("0.0.0.0", port);
    int one = 1, large = 8 << 20, listener = 3, udp = -1;
    signal(SIGPIPE, SIG_IGN);
    if (!getenv("LISTEN_FDS")) {
        listener = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        need(!bind(listener, (void *)&a, sizeof a) && !listen(listener, 4096), "listen");
        udp = socket(AF_INET, SOCK_DGRAM, 0);
        setsockopt(udp, SOL_SOCKET, SO_RCVBUF, &large, sizeof large);
        setsockopt(udp, SOL_SOCKET, SO_RCVBUFFORCE, &large, sizeof large);
        need(!bind(udp, (void *)&a, sizeof a), "bind UDP");
    }
    fcntl(listener, F_SETFL, O_NONBLOCK);
    int e = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[256];
    epoll_ctl(e, EPOLL_CTL_ADD, listener, &event);
    event.data.fd = udp;
    if (udp >= 0) epoll_ctl(e, EPOLL_CTL_ADD, udp, &event);
    for (;;) {
        int n = epoll_wait(e, events, 256, -1);
        for (int k = 0; k < n; k++) {
            int fd = events[k].data.fd, c;
            if (fd == udp) {
                datagrams(udp);
            } else if (fd != listener) {
                readable(fd);
            } else {
                for (int many = 0; many < 64 && (c = accept4(listener, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0; many++) {
                    if (c >= CONNECTIONS) {
                        close(c);
                        continue;
                    }
                    kind[c] = 0;
                    got[c] = 0;
                    setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    event.data.fd = c;
                    epoll_ctl(e, EPOLL_CTL_ADD, c, &event);
                }
            }
        }
    }
}

// ---- a command, and what a client sees of it

// 1: answered with 200; 0: refused; -1: anything else.
static int ask(struct sockaddr_in *a) {
    int s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), result = -1, error = 0;
    struct pollfd f = {s, POLLOUT, 0};
    struct linger reset = {1, 0};
    socklen_t l = sizeof error;
    char b[64] = {0};
    setsockopt(s, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    const char *request = "GET / HTTP/1.0\r\n\r\n";
    if (connect(s, (void *)a, sizeof *a) && errno != EINPROGRESS) result = errno == ECONNREFUSED ? 0 : -1;
    else if (poll(&f, 1, 20) > 0) {
        getsockopt(s, SOL_SOCKET, SO_ERROR, &error, &l);
        f.events = POLLIN;
        if (error) result = error == ECONNREFUSED ? 0 : -1;
        else if (send(s, request, strlen(request), MSG_NOSIGNAL) > 0 && poll(&f, 1, 200) > 0 && recv(s, b, sizeof b - 1, 0) > 12 &&
                 !strncmp(b, "HTTP/1.", 7) && !strncmp(b + 9, "200", 3))
            result = 1;
    }
    close(s);
    return result;
}

static int around(int wanted, char **v) {
    struct sockaddr_in a = address(v[1], v[2]);
    int status, there = open(v[0], O_RDONLY | O_CLOEXEC);
    double start = now();
    pid_t child = fork();
    if (!child) {
        dup2(2, 1);
        execvp(v[4], v + 4);
        _exit(127);
    }
    need(there >= 0 && !setns(there, CLONE_NEWNET), v[0]);
    waitpid(child, &status, 0);
    double ended = now();
    need(WIFEXITED(status) && !WEXITSTATUS(status), "the command has failed");
    while (ask(&a) != wanted) {
        if (now() > start + 30) {
            fprintf(stderr, "load: not within 30 seconds\n");
            return 1;
        }
        usleep(200);
    }
    printf("%.3f %.3f\n", (ended - start) * 1e3, (now() - start) * 1e3);
    return 0;
}

// ---- clients that close first

static int closers(int c, char **v) {
    struct sockaddr_in to = address(v[0], v[1]), from[64];
    double seconds = atof(v[2]), start = now(), second = start + 1, since[CONNECTIONS];
    long left = atol(v[3]), ok = 0, bad = 0, running = 0, next = 0;
    int sources = c - 4, one = 1, e = epoll_create1(0), open_[CONNECTIONS] = {0}, over = 0, highest = 0;
    for (int k = 0; k < sources && k < 64; k++) from[k] = address(v[4 + k], "0");
    const char *request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    struct epoll_event event, events[64];
    char b[2048];
    while (!over || running) {
        double t = now();
        if (t > start + seconds || left <= 0) over = 1;
        if (over && t > start + seconds + 6) break;
        while (!over && running < 32 && left > 0) {
            int s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
            setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
            setsockopt(s, IPPROTO_IP, 24 /* IP_BIND_ADDRESS_NO_PORT */, &one, sizeof one);
            if (sources && bind(s, (void *)&from[next++ % sources], sizeof *from)) need(0, "bind");
            left--;
            if (connect(s, (void *)&to, sizeof to) && errno != EINPROGRESS) {
                bad++;
                close(s);
                break;
            }
            since[s] = t;
            open_[s] = 1;
            if (s > highest) highest = s;
            running++;
            event.events = EPOLLOUT;
            event.data.fd = s;
            epoll_ctl(e, EPOLL_CTL_ADD, s, &event);
        }
        int n = epoll_wait(e, events, 64, 100);
        for (int k = 0; k < n; k++) {
            int s = events[k].data.fd, good = 0;
            if (open_[s] == 1 && !(events[k].events & (EPOLLERR | EPOLLHUP))) {
                if (send(s, request, strlen(request), MSG_NOSIGNAL) > 0) {
                    open_[s] = 2;
                    event.events = EPOLLIN;
                    event.data.fd = s;
                    epoll_ctl(e, EPOLL_CTL_MOD, s, &event);
                    continue;
                }
            } else if (open_[s] == 2) {
                ssize_t r = recv(s, b, sizeof b, 0);
                good = r > 12 && !strncmp(b, "HTTP/1.1 200", 12);
            }
            good ? ok++ : bad++;
            open_[s] = 0;
            running--;
            close(s);
        }
        t = now();
        if (t >= second) {
            // Who has had no answer for 5 seconds gives up.
            for (int s = 0; s <= highest; s++)
                if (open_[s] && t - since[s] > 5) {
                    open_[s] = 0;
                    running--;
                    bad++;
                    close(s);
                }
            printf("%ld %ld\n", ok, bad);
            fflush(stdout);
            ok = bad = 0;
            second += 1;
        }
    }
    return 0;
}

static int bulk(char **v) {
    struct sockaddr_in a = address(v[0], v[1]);
    static char m[1 << 17];
    int s = socket(AF_INET, SOCK_STREAM, 0);
    uint64_t arrived = 0;
    memset(m, 'B', sizeof m);
    need(!connect(s, (void *)&a, sizeof a), "connect");
    double start = now(), end = start + atof(v[2]);
    while (now() < end) need(write(s, m, sizeof m) > 0, "write");
    shutdown(s, SHUT_WR);
    need(read(s, &arrived, 8) == 8, "read how much has arrived");
    printf("%.3f\n", arrived * 8 / (now() - start) / 1e9);
    return 0;
}

static int udp(char **v) {
    struct sockaddr_in a = address(v[0], v[1]);
    static char m[1200];
    double rate = atof(v[2]), seconds = atof(v[3]), start, t;
    uint64_t sent = 0, arrived = 0;
    int s = socket(AF_INET, SOCK_DGRAM, 0), trips = 0, asked = 0;
    struct timeval second = {1, 0};
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
    need(!connect(s, (void *)&a, sizeof a), "connect");
    // What an earlier run has left is not counted.
    m[0] = 'E';
    send(s, m, 1, 0);
    recv(s, m, sizeof m, 0);
    m[0] = 'D';
    start = now();
    while ((t = now() - start) < seconds) {
        if (sent > rate * t) continue;
        if (send(s, m, sizeof m, 0) > 0) sent++;
    }
    usleep(300000);
    for (; asked < 3; asked++) {
        m[0] = 'E';
        send(s, m, 1, 0);
        if (recv(s, m, sizeof m, 0) == 8) break;
    }
    need(asked < 3, "no answer");
    memcpy(&arrived, m, 8);
    for (start = now(); now() - start < 1;) {
        m[0] = 'P';
        send(s, m, 100, 0);
        if (recv(s, m, sizeof m, 0) > 0) trips++;
    }
    printf("%.0f %lu %d\n", sent / seconds, (unsigned long)(arrived * 1e6 / (sent ? sent : 1)), trips);
    return 0;
}

int main(int c, char **v) {
    const char *what = c > 1 ? v[1] : "";
    if (!strcmp(what, "serve") && c == 3) serve(v[2]);
    if (!strcmp(what, "first") && c > 6) return around(1, v + 2);
    if (!strcmp(what, "gone") && c > 6) return around(0, v + 2);
    if (!strcmp(what, "closers") && c >= 6) return closers(c - 2, v + 2);
    if (!strcmp(what, "bulk") && c == 5) return bulk(v + 2);
    if (!strcmp(what, "udp") && c == 6) return udp(v + 2);
    fprintf(stderr, "load: see its source for the usage\n");
    return 2;
}
