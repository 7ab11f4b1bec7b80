/* Preloaded into a process: counts what it changes below a folder, and breaks off at the n-th change.

   fault_arm(folder, n, how) begins to count; n = 0 only counts. HOW: the process is killed before
   the change, half-way through it (a write) or behind it (anything else); or from there on the disk
   is full, a write that meets it ending half-way. fault_count() says how many changes there were. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { BEFORE, HALF, FULL };
enum { ON, PART_THEN_DIE, PART_THEN_FAIL, FAIL };

static char folder[PATH_MAX];
static size_t length;
static long at, count;
static int how;

void fault_arm(const char *where, long n, int kind)
{
    snprintf(folder, sizeof folder, "%s", where);
    length = strlen(folder);
    at = n;
    how = kind;
    count = 0;
}

long fault_count(void) { return count; }

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static int below(const char *path) { return length && strncmp(path, folder, length) == 0; }

/* Whether a path, relative to the open folder `in` or to the current one, lies in the folder. */
static int path_below(int in, const char *path)
{
    char from[PATH_MAX], link[64], whole[2 * PATH_MAX];
    ssize_t n;
    if (!length || path == NULL)
        return 0;
    if (path[0] == '/')
        return below(path);
    if (in == AT_FDCWD) {
        if (getcwd(from, sizeof from) == NULL)
            return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", in);
        if ((n = syscall(SYS_readlinkat, AT_FDCWD, link, from, sizeof from - 1)) < 0)
            return 0;
        from[n] = 0;
    }
    snprintf(whole, sizeof whole, "%s/%s", from, path);
    return below(whole);
}

static int file_below(int file)
{
    char link[64], path[PATH_MAX];
    ssize_t n;
    if (!length)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    if ((n = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1)) < 0)
        return 0;
    path[n] = 0;
    return below(path);
}

/* What becomes of the next change; `needs_room`: whether a full disk refuses it. */
static int next_change(int needs_room)
{
    long number = __sync_add_and_fetch(&count, 1);
    if (at == 0 || number < at)
        return ON;
    if (how == FULL) {
        if (!needs_room)
            return ON;
        return number == at ? PART_THEN_FAIL : FAIL;
    }
    if (number > at)
        return ON;
    if (how == BEFORE)
        die();
    return PART_THEN_DIE;
}

static int no_room(void)
{
    errno = ENOSPC;
    return -1;
}

#define REAL(type, name, ...)                                                                      \
    static type (*real)(__VA_ARGS__);                                                              \
    if (real == NULL)                                                                              \
        real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

/* A change of `size` bytes, of which `part` does the first half. */
#define WRITE(file, size, all, part)                                                               \
    if (!file_below(file))                                                                         \
        return all;                                                                                \
    switch (next_change(1)) {                                                                      \
    case PART_THEN_DIE:                                                                            \
        if ((size) > 1)                                                                            \
            (void)!part;                                                                           \
        die();                                                                                     \
    case PART_THEN_FAIL:                                                                           \
        if ((size) > 1)                                                                            \
            return part;                                                                           \
        return no_room();                                                                          \
    case FAIL:                                                                                     \
        return no_room();                                                                          \
    }                                                                                              \
    return all

/* A change that is done or not. */
#define CHANGE(is_below, needs_room, failure, type, all)                                           \
    if (is_below)                                                                                  \
        switch (next_change(needs_room)) {                                                         \
        case PART_THEN_DIE:                                                                        \
            (void)!(all);                                                                          \
            die();                                                                                 \
        case PART_THEN_FAIL:                                                                       \
        case FAIL:                                                                                 \
            no_room();                                                                             \
            return failure;                                                                        \
        }                                                                                          \
    return all

ssize_t write(int file, const void *from, size_t size)
{
    REAL(ssize_t, write, int, const void *, size_t);
    WRITE(file, size, real(file, from, size), real(file, from, size / 2));
}

ssize_t pwrite64(int file, const void *from, size_t size, off64_t where)
{
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    WRITE(file, size, real(file, from, size, where), real(file, from, size / 2, where));
}

ssize_t pwrite(int file, const void *from, size_t size, off_t where)
{
    return pwrite64(file, from, size, where);
}

ssize_t writev(int file, const struct iovec *from, int parts)
{
    REAL(ssize_t, writev, int, const struct iovec *, int);
    WRITE(file, parts, real(file, from, parts), real(file, from, parts / 2));
}

ssize_t copy_file_range(int in, off64_t *a, int out, off64_t *b, size_t size, unsigned flags)
{
    REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned);
    WRITE(out, size, real(in, a, out, b, size, flags), real(in, a, out, b, size / 2, flags));
}

ssize_t sendfile64(int out, int in, off64_t *where, size_t size)
{
    REAL(ssize_t, sendfile64, int, int, off64_t *, size_t);
    WRITE(out, size, real(out, in, where, size), real(out, in, where, size / 2));
}

ssize_t sendfile(int out, int in, off_t *where, size_t size)
{
    return sendfile64(out, in, where, size);
}

int openat64(int in, const char *path, int flags, ...)
{
    REAL(int, openat64, int, const char *, int, ...);
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int);
    va_end(rest);
    CHANGE((flags & (O_CREAT | O_TRUNC)) && path_below(in, path), 1, -1, int,
           real(in, path, flags, mode));
}

int openat(int in, const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int);
    va_end(rest);
    return openat64(in, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int);
    va_end(rest);
    return openat64(AT_FDCWD, path, flags, mode);
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int);
    va_end(rest);
    return openat64(AT_FDCWD, path, flags, mode);
}

FILE *fopen64(const char *path, const char *mode)
{
    REAL(FILE *, fopen64, const char *, const char *);
    CHANGE(strpbrk(mode, "wa+") != NULL && path_below(AT_FDCWD, path), 1, NULL, FILE *,
           real(path, mode));
}

FILE *fopen(const char *path, const char *mode) { return fopen64(path, mode); }

int mkdirat(int in, const char *path, mode_t mode)
{
    REAL(int, mkdirat, int, const char *, mode_t);
    CHANGE(path_below(in, path), 1, -1, int, real(in, path, mode));
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int renameat(int in, const char *from, int out, const char *to)
{
    REAL(int, renameat, int, const char *, int, const char *);
    CHANGE(path_below(out, to) || path_below(in, from), 0, -1, int, real(in, from, out, to));
}

int rename(const char *from, const char *to)
{
    return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

int unlinkat(int in, const char *path, int flags)
{
    REAL(int, unlinkat, int, const char *, int);
    CHANGE(path_below(in, path), 0, -1, int, real(in, path, flags));
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int ftruncate64(int file, off64_t size)
{
    REAL(int, ftruncate64, int, off64_t);
    CHANGE(file_below(file), 0, -1, int, real(file, size));
}

int ftruncate(int file, off_t size) { return ftruncate64(file, size); }

int fsync(int file)
{
    REAL(int, fsync, int);
    CHANGE(file_below(file), 1, -1, int, real(file));
}
