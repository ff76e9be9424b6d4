/* A disk that now and then does less than it was asked: loaded into a hub before libc, see disk.rs. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum fault { NONE, INTERRUPTED, SHORT, FULL };
enum call { WRITE, SYNC, RESIZE, READ };

/* Shared with the test: which fault befalls which call on the store's file, after how many more; how often it did. */
static struct {
    atomic_int fault, call, left, struck;
} *orders;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("MOORLINE_DISK_ORDERS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *at = mmap(NULL, sizeof *orders, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at != MAP_FAILED) orders = at;
    close(fd);
}

static enum fault ordered(int fd, enum call call) {
    if (!orders || orders->fault == NONE || orders->call != (int)call) return NONE;
    char link[64], name[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0) return NONE;
    name[length] = 0;
    if (!strstr(name, "/hub.redb")) return NONE;
    int left = atomic_fetch_sub(&orders->left, 1);
    if (left > 0) return NONE;
    enum fault fault = orders->fault;
    orders->struck++;
    /* The last blocks are still given, and then none. */
    if (fault == FULL) return left == 0 ? SHORT : FULL;
    orders->fault = NONE;
    return fault;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define BEFALL(fd, call)                                                            \
    switch (ordered(fd, call)) {                                                    \
    case INTERRUPTED: errno = EINTR; return -1;                                     \
    case FULL: errno = ENOSPC; return -1;

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    BEFALL(fd, WRITE)
    case SHORT: count = count > 1 ? count / 2 : count;
    case NONE: break;
    }
    return REAL(pwrite64)(fd, bytes, count, at);
}

ssize_t pread64(int fd, void *bytes, size_t count, off64_t at) {
    BEFALL(fd, READ)
    case SHORT: count = count > 1 ? count / 2 : count;
    case NONE: break;
    }
    return REAL(pread64)(fd, bytes, count, at);
}

int fdatasync(int fd) {
    BEFALL(fd, SYNC)
    default: break;
    }
    return REAL(fdatasync)(fd);
}

int ftruncate64(int fd, off64_t length) {
    BEFALL(fd, RESIZE)
    default: break;
    }
    return REAL(ftruncate64)(fd, length);
}
