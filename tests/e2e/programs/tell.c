/* For each HOST PORT: what a blocking connect() gives, and a non-blocking one with poll(); and both names of the
   socket. Built dynamic and static. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void name(const char *whose, int (*get)(int, struct sockaddr *, socklen_t *), int fd, int with_port) {
    struct sockaddr_storage found;
    socklen_t size = sizeof found;
    char host[64], port[16];
    if (get(fd, (struct sockaddr *) &found, &size)) {
        printf(" %s=%s", whose, strerrorname_np(errno));
        return;
    }
    getnameinfo((struct sockaddr *) &found, size, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV);
    printf(" %s=%s", whose, host);
    if (with_port) printf(",%s,%d", port, (int) size);
}

static int wait_for(int fd) {
    struct pollfd one = {.fd = fd, .events = POLLOUT};
    int error = 0;
    socklen_t size = sizeof error;
    poll(&one, 1, 20000);
    /* Of the others the kernel tells more or fewer, as it happens to be asked before it is done with the error. */
    printf(" error=%d", !!(one.revents & POLLERR));
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    return error;
}

int main(int count, char **word) {
    for (int at = 1; at + 1 < count; at += 2) {
        struct addrinfo hint = {.ai_socktype = SOCK_STREAM, .ai_family = AF_UNSPEC}, *all;
        int failed = getaddrinfo(word[at], word[at + 1], &hint, &all);
        if (failed) {
            printf("%s %s\n", word[at], gai_strerror(failed));
            continue;
        }
        for (struct addrinfo *one = all; one; one = one->ai_next) {
            for (int blocking = 1; blocking >= 0; blocking--) {
                int fd = socket(one->ai_family, SOCK_STREAM | (blocking ? 0 : SOCK_NONBLOCK), 0);
                struct sockaddr_storage before;
                memcpy(&before, one->ai_addr, one->ai_addrlen);
                int error = connect(fd, one->ai_addr, one->ai_addrlen) ? errno : 0;
                printf("%s %s %s", word[at], word[at + 1], blocking ? "blocking" : "polled");
                if (memcmp(&before, one->ai_addr, one->ai_addrlen)) printf(" the address was written to");
                if (error == EINPROGRESS) error = wait_for(fd);
                printf(" %s", error ? strerrorname_np(error) : "connected");
                name("peer", getpeername, fd, 1);
                if (!error) name("own", getsockname, fd, 0);
                puts("");
                close(fd);
            }
        }
        freeaddrinfo(all);
    }
    return 0;
}
