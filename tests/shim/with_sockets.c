/* A service manager in one page: hands listening sockets over as systemd does (sd_listen_fds(3)).
 *
 * Usage: with_sockets ARGUMENT…
 *
 * Connects to the Unix socket WITH_SOCKETS_FROM, takes one message with descriptors from it (SCM_RIGHTS), puts them at
 * 3, 4 and so on, sets LISTEN_PID and LISTEN_FDS, and becomes WITH_SOCKETS_RUN with these arguments. LISTEN_FDNAMES is
 * passed on as it is. The process id stays, so whoever started this can signal and await what it became.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define FIRST 3
#define MOST 8

static void fail(const char *what) {
    perror(what);
    exit(70);
}

static const char *setting(const char *name) {
    const char *value = getenv(name);
    if (value == NULL) {
        fprintf(stderr, "with_sockets: %s is not set\n", name);
        exit(70);
    }
    return value;
}

/* Takes the descriptors; gives their number. */
static int receive(const char *path, int into[MOST]) {
    struct sockaddr_un from = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof from.sun_path) {
        fprintf(stderr, "with_sockets: the path %s is too long\n", path);
        exit(70);
    }
    strcpy(from.sun_path, path);
    int channel = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (channel < 0 || connect(channel, (struct sockaddr *)&from, sizeof from) < 0) {
        fail(path);
    }
    char byte;
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(MOST * sizeof(int))];
    } control;
    struct iovec content = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &content,
                             .msg_iovlen = 1,
                             .msg_control = control.room,
                             .msg_controllen = sizeof control.room};
    if (recvmsg(channel, &message, MSG_CMSG_CLOEXEC) != 1) {
        fail("with_sockets: recvmsg");
    }
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (head == NULL || head->cmsg_type != SCM_RIGHTS || (message.msg_flags & MSG_CTRUNC) != 0) {
        fprintf(stderr, "with_sockets: expected 1 to %d descriptors\n", MOST);
        exit(70);
    }
    int count = (int)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    memcpy(into, CMSG_DATA(head), (size_t)count * sizeof(int));
    close(channel);
    return count;
}

int main(int argc, char **argv) {
    (void)argc;
    const char *run = setting("WITH_SOCKETS_RUN");
    int received[MOST];
    int count = receive(setting("WITH_SOCKETS_FROM"), received);
    /* First all out of the way of where they go, then there. */
    for (int i = 0; i < count; i++) {
        int high = fcntl(received[i], F_DUPFD, FIRST + MOST);
        if (high < 0) {
            fail("with_sockets: fcntl");
        }
        close(received[i]);
        received[i] = high;
    }
    for (int i = 0; i < count; i++) {
        if (dup2(received[i], FIRST + i) < 0) {
            fail("with_sockets: dup2");
        }
        close(received[i]);
    }
    char number[16];
    snprintf(number, sizeof number, "%d", (int)getpid());
    setenv("LISTEN_PID", number, 1);
    snprintf(number, sizeof number, "%d", count);
    setenv("LISTEN_FDS", number, 1);
    argv[0] = (char *)run;
    execv(run, argv);
    fail(run);
}
