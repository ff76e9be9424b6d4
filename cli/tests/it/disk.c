/* A disk that now and then does less than it was asked, or a machine whose power goes as it is asked: loaded into a hub
   before libc, see disk.rs. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum fault { NONE, INTERRUPTED, SHORT, FULL, READ_ONLY, KILLED, TORN, LOST, BROKEN };
enum call { WRITE, SYNC, RESIZE, READ, ANY };

/* What a disk writes whole or not at all. */
enum { SECTOR = 512 };

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

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

static int is_store(int fd) {
    char link[64], name[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0) return 0;
    name[length] = 0;
    return strstr(name, "/hub.redb") != NULL;
}

/* What stood where something was written since the last sync, the newest first. One thread writes. */
static struct before {
    struct before *older;
    off64_t length, at;
    size_t count;
    char bytes[];
} *befores;

static void remember(int fd, off64_t at, size_t count) {
    struct stat64 now;
    if (!orders || !is_store(fd) || fstat64(fd, &now)) return;
    size_t there = at < now.st_size ? now.st_size - at : 0;
    count = count < there ? count : there;
    struct before *one = malloc(sizeof *one + count);
    if (!one || REAL(pread64)(fd, one->bytes, count, at) != (ssize_t)count) abort();
    *one = (struct before){befores, now.st_size, at, count};
    befores = one;
}

static void forget(void) {
    while (befores) {
        struct before *older = befores->older;
        free(befores);
        befores = older;
    }
}

/* All that no sync has brought to the disk is lost. */
static void lose(int fd) {
    for (struct before *one = befores; one; one = one->older) {
        if (REAL(pwrite64)(fd, one->bytes, one->count, one->at) != (ssize_t)one->count) abort();
        if (REAL(ftruncate64)(fd, one->length)) abort();
    }
}

static _Noreturn void power_goes(void) {
    for (;;) raise(SIGKILL);
}

static enum fault ordered(int fd, enum call call) {
    if (!orders || orders->fault == NONE || (orders->call != (int)call && orders->call != ANY)) return NONE;
    if (!is_store(fd)) return NONE;
    int left = atomic_fetch_sub(&orders->left, 1);
    if (left > 0) return NONE;
    enum fault fault = orders->fault;
    orders->struck++;
    /* The last blocks are still given, and then none. */
    if (fault == FULL) return left == 0 ? SHORT : FULL;
    if (fault == READ_ONLY) return call == READ ? NONE : READ_ONLY;
    orders->fault = NONE;
    if (fault == LOST) lose(fd);
    if (fault == LOST || fault == KILLED) power_goes();
    return fault;
}

#define BEFALL(fd, call)                                                            \
    switch (ordered(fd, call)) {                                                    \
    case INTERRUPTED: errno = EINTR; return -1;                                     \
    case FULL: errno = ENOSPC; return -1;                                           \
    case READ_ONLY: errno = EROFS; return -1;                                       \
    case BROKEN: errno = EIO; return -1;

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    BEFALL(fd, WRITE)
    case TORN:
        REAL(pwrite64)(fd, bytes, count / 2 / SECTOR * SECTOR, at);
        power_goes();
    case SHORT: count = count > 1 ? count / 2 : count;
    default: break;
    }
    remember(fd, at, count);
    return REAL(pwrite64)(fd, bytes, count, at);
}

ssize_t pread64(int fd, void *bytes, size_t count, off64_t at) {
    BEFALL(fd, READ)
    case SHORT: count = count > 1 ? count / 2 : count;
    default: break;
    }
    return REAL(pread64)(fd, bytes, count, at);
}

int fdatasync(int fd) {
    BEFALL(fd, SYNC)
    default: break;
    }
    int failed = REAL(fdatasync)(fd);
    if (!failed && is_store(fd)) forget();
    return failed;
}

int ftruncate64(int fd, off64_t length) {
    BEFALL(fd, RESIZE)
    default: break;
    }
    remember(fd, length, SIZE_MAX);
    return REAL(ftruncate64)(fd, length);
}

/* On a disk that only reads nothing is opened that is to be written. */
int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    int writes = (flags & O_ACCMODE) != O_RDONLY || flags & O_CREAT;
    if (orders && orders->fault == READ_ONLY && writes && strstr(path, "/hub.redb")) {
        orders->struck++;
        errno = EROFS;
        return -1;
    }
    return REAL(open64)(path, flags, mode);
}
