/* Makes one operation on files below a folder fail, at the border between the process and the system.
 *
 * Loaded by LD_PRELOAD (see faults.py), so it is met by Python and by SQLite alike. It does nothing until
 * faults_arm(prefix, kinds, nth, error, is_lasting) is called: then the nth operation on a path below the prefix, of
 * the kinds asked for (writing, reading), fails with that error; with is_lasting each later one too, as on a disk that
 * is full or gone. A failing write of more than one byte has written its first half, as a disk does.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { READS = 1, WRITES = 2 };

static char prefix[4096];
static size_t prefix_length;
static int armed_kinds, error_number, lasting;
static long remaining, seen;

void faults_arm(const char *below, int kinds, long nth, int error, int is_lasting) {
    snprintf(prefix, sizeof prefix, "%s", below);
    prefix_length = strlen(prefix);
    error_number = error;
    lasting = is_lasting;
    remaining = nth;
    seen = 0;
    armed_kinds = kinds;
}

void faults_disarm(void) { armed_kinds = 0; }

long faults_seen(void) { return seen; }

static int fails(int kind, const char *path) {
    if (!(armed_kinds & kind) || path == NULL || strncmp(path, prefix, prefix_length) != 0) return 0;
    seen++;
    remaining--;
    return remaining == 0 || (lasting && remaining < 0);
}

static int fd_fails(int kind, int fd) {
    if (!(armed_kinds & kind)) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(kind, path);
}

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name)
#define FAIL do { errno = error_number; return -1; } while (0)

#define WRITE(name, offset_type) \
    ssize_t name(int fd, const void *data, size_t size, offset_type offset) { \
        REAL(ssize_t, name, int, const void *, size_t, offset_type); \
        if (fd_fails(WRITES, fd)) { if (size > 1) real(fd, data, size / 2, offset); FAIL; } \
        return real(fd, data, size, offset); \
    }
#define READ(name, offset_type) \
    ssize_t name(int fd, void *data, size_t size, offset_type offset) { \
        REAL(ssize_t, name, int, void *, size_t, offset_type); \
        if (fd_fails(READS, fd)) FAIL; \
        return real(fd, data, size, offset); \
    }
#define ON_FD(name) \
    int name(int fd) { REAL(int, name, int); if (fd_fails(WRITES, fd)) FAIL; return real(fd); }
#define ON_PATH(name) \
    int name(const char *path) { REAL(int, name, const char *); if (fails(WRITES, path)) FAIL; return real(path); }
#define TRUNCATE(name, length_type) \
    int name(int fd, length_type length) { \
        REAL(int, name, int, length_type); \
        if (fd_fails(WRITES, fd)) FAIL; \
        return real(fd, length); \
    }
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, name, const char *, int, ...); \
        va_list list; \
        va_start(list, flags); \
        mode_t mode = va_arg(list, mode_t); \
        va_end(list); \
        int is_new = (flags & O_CREAT) && access(path, F_OK) != 0; \
        if (fails(is_new ? WRITES : READS, path)) FAIL; \
        return real(path, flags, mode); \
    }

WRITE(pwrite, off_t)
WRITE(pwrite64, off64_t)
READ(pread, off_t)
READ(pread64, off64_t)
ON_FD(fsync)
ON_FD(fdatasync)
ON_PATH(unlink)
ON_PATH(rmdir)
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)
OPEN(open)
OPEN(open64)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    if (fd_fails(WRITES, fd)) { if (size > 1) real(fd, data, size / 2); FAIL; }
    return real(fd, data, size);
}

ssize_t read(int fd, void *data, size_t size) {
    REAL(ssize_t, read, int, void *, size_t);
    if (fd_fails(READS, fd)) FAIL;
    return real(fd, data, size);
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    if (fails(WRITES, path)) FAIL;
    return real(path, mode);
}

int rename(const char *old, const char *new) {
    REAL(int, rename, const char *, const char *);
    if (fails(WRITES, new)) FAIL;
    return real(old, new);
}
