/* A power cut, as a library for LD_PRELOAD.
 *
 * kill -9 alone loses nothing that a process handed to the kernel: the page cache survives. What a power cut loses is
 * what was not fsynced. This library keeps, beside a directory (the root), an image of what the disk would hold of it:
 *
 *   IMAGE/inodes/INO       the durable content of the file with that inode number
 *   IMAGE/dirs/INO/NAME    the durable entries of the directory with that inode number: for a file a hard link to its
 *                          content in inodes/, for a directory a symbolic link to "INO:MODE"
 *
 * The image changes in fsync and fdatasync only: of a file, the blocks written since its last one are copied; of a
 * directory, its entries are. What was written since then is known to the process's memory alone and dies with it, so
 * the image needs no journal: after kill -9 it is the disk after a power cut, and the harness puts it in the root's
 * place. A process killed inside an fsync leaves a part of it copied, as a power cut would.
 *
 * The rules:
 *   - What a write that had returned before an fsync began wrote is durable when that fsync returns.
 *   - What was written since a file's last fsync is lost, but for blocks that an fsync copied while they were written.
 *   - A created, renamed or removed entry is durable after an fsync of its directory (POWERCUT_ENTRIES=directory, all
 *     that POSIX promises), or also after an fsync of the file itself (POWERCUT_ENTRIES=file, as ext4 does).
 *   - A directory's fsync takes its entries one by one: cut off inside, it leaves a rename half done (both names).
 *   - A file first seen with content counts as written in whole: a process before this one may have written it.
 *   - Files whose names end in "-shm" are left out: SQLite writes them through mmap and rebuilds them after a crash.
 *
 * Environment: POWERCUT_ROOT and POWERCUT_IMAGE (absolute, without symbolic links), POWERCUT_ENTRIES (see above), and
 * POWERCUT_SKIP_FSYNC: on files and directories whose path contains this text, fsync and fdatasync do nothing and
 * return 0. That is a build that forgot to fsync; a power-cut test must fail on it.
 *
 * While IMAGE/failing exists, the disk fails: fsync and fdatasync below the root do nothing and return EIO.
 * While IMAGE/clock exists, the wall clock is so many seconds ahead as it says (behind, where that is negative).
 *
 * Not seen: raw system calls, stdio, mmap, io_uring, O_SYNC, sync and syncfs. What is written so is lost, which a test
 * notices; what copies inside the kernel (copy_file_range, sendfile, splice) is refused, and callers then write.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096
#define BUCKETS 4096

static struct {
    int on;
    char root[PATH_MAX - 512];
    size_t root_length;
    char image[PATH_MAX - 512];
    dev_t device;
    int entries_by_file;
    const char *skip;
} config;

/* A file below the root that has a name, or had one when it was last looked at. */
struct entry {
    ino_t inode;
    struct entry *next;
    /* One fsync at a time: a second one must not return before the first has copied what both promise. */
    pthread_mutex_t syncing;
    /* Held over a write and the question where it ended, for writes at the file position. */
    pthread_mutex_t position;
    /* One bit per block written since the last fsync; guarded by `table_lock`. */
    unsigned char *dirty;
    size_t dirty_bytes;
};

static struct entry *table[BUCKETS];
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
/* Held while names and the image's inodes/ change together. Taken before `table_lock`. */
static pthread_mutex_t names_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void die(const char *what, const char *path) {
    dprintf(2, "powercut: cannot %s %s: %s\n", what, path, strerror(errno));
    abort();
}

static void start(void) {
    const char *root = getenv("POWERCUT_ROOT"), *image = getenv("POWERCUT_IMAGE"), *entries = getenv("POWERCUT_ENTRIES");
    struct stat st;
    if (!root || !image) return;
    if (strlen(root) >= sizeof config.root || strlen(image) >= sizeof config.image) {
        errno = ENAMETOOLONG;
        die("use", root);
    }
    if (stat(root, &st) != 0) die("find", root);
    strcpy(config.root, root);
    strcpy(config.image, image);
    config.root_length = strlen(root);
    config.device = st.st_dev;
    config.entries_by_file = entries && strcmp(entries, "file") == 0;
    config.skip = getenv("POWERCUT_SKIP_FSYNC");
    config.on = 1;
}

static int on(void) {
    pthread_once(&once, start);
    return config.on;
}

/* This library's own calls, which must not come back to it. */

static int remove_name(int dirfd, const char *path) { return syscall(SYS_unlinkat, dirfd, path, 0); }

static void ensure_folder(const char *path) {
    if (syscall(SYS_mkdirat, AT_FDCWD, path, 0700) != 0 && errno != EEXIST) die("create", path);
}

/* ---- paths ---- */

static int below_root(const char *path) {
    return strncmp(path, config.root, config.root_length) == 0 &&
           (path[config.root_length] == '/' || path[config.root_length] == 0);
}

static int left_out(const char *path) {
    size_t n = strlen(path);
    return n >= 4 && strcmp(path + n - 4, "-shm") == 0;
}

/* The present path of an open file. */
static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return 1;
}

static void image_path(char *out, const char *kind, ino_t inode) {
    snprintf(out, PATH_MAX, "%s/%s/%llu", config.image, kind, (unsigned long long)inode);
}

/* ---- the table of files; callers hold `table_lock` ---- */

static struct entry *find(ino_t inode) {
    struct entry *e = table[inode % BUCKETS];
    while (e && e->inode != inode) e = e->next;
    return e;
}

static void mark(struct entry *e, off_t from, off_t to) {
    if (to <= from) return;
    size_t last = (size_t)((to - 1) / BLOCK), need = last / 8 + 1;
    if (need > e->dirty_bytes) {
        size_t room = need * 2;
        e->dirty = realloc(e->dirty, room);
        if (!e->dirty) die("remember writes to", config.root);
        memset(e->dirty + e->dirty_bytes, 0, room - e->dirty_bytes);
        e->dirty_bytes = room;
    }
    for (size_t block = (size_t)(from / BLOCK); block <= last; block++) e->dirty[block / 8] |= 1 << (block % 8);
}

static void mark_written(struct entry *e, off_t from, off_t to) {
    pthread_mutex_lock(&table_lock);
    mark(e, from, to);
    pthread_mutex_unlock(&table_lock);
}

/* ---- the image; callers hold `names_lock` ---- */

/* The inode's number will be another file's: forget the old one. Names in dirs/ keep its content. */
static void drop(ino_t inode) {
    char path[PATH_MAX];
    image_path(path, "inodes", inode);
    remove_name(AT_FDCWD, path);
    pthread_mutex_lock(&table_lock);
    struct entry **at = &table[inode % BUCKETS];
    while (*at && (*at)->inode != inode) at = &(*at)->next;
    /* Not freed: an fsync of a descriptor that is still open may be using it. */
    if (*at) *at = (*at)->next;
    pthread_mutex_unlock(&table_lock);
}

/* A file's content in the image, empty where there was none. */
static void ensure_content(const struct stat *st) {
    char path[PATH_MAX];
    image_path(path, "inodes", st->st_ino);
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
    if (fd < 0) {
        if (errno != EEXIST) die("create", path);
        return;
    }
    if (fchmod(fd, st->st_mode & 07777) != 0) die("change the mode of", path);
    close(fd);
}

static struct entry *look_at(const struct stat *st) {
    pthread_mutex_lock(&table_lock);
    struct entry *e = find(st->st_ino);
    if (!e) {
        e = calloc(1, sizeof *e);
        if (!e) die("remember", config.root);
        e->inode = st->st_ino;
        pthread_mutex_init(&e->syncing, NULL);
        pthread_mutex_init(&e->position, NULL);
        e->next = table[st->st_ino % BUCKETS];
        table[st->st_ino % BUCKETS] = e;
        mark(e, 0, st->st_size);
    }
    pthread_mutex_unlock(&table_lock);
    ensure_content(st);
    return e;
}

/* Makes one directory entry durable: by a link beside the image, then renamed into its place. */
static void put_name(ino_t directory, const char *name, const struct stat *st) {
    char folder[PATH_MAX], place[PATH_MAX + 256], source[PATH_MAX], fresh[PATH_MAX], old[64];
    struct stat there, content;
    image_path(folder, "dirs", directory);
    ensure_folder(folder);
    snprintf(place, sizeof place, "%s/%s", folder, name);
    snprintf(fresh, sizeof fresh, "%s/fresh", config.image);
    remove_name(AT_FDCWD, fresh); /* left by a process that was killed here */
    if (S_ISREG(st->st_mode)) {
        ensure_content(st);
        image_path(source, "inodes", st->st_ino);
        if (lstat(source, &content) != 0) die("find", source);
        if (lstat(place, &there) == 0 && there.st_ino == content.st_ino) return;
        if (linkat(AT_FDCWD, source, AT_FDCWD, fresh, 0) != 0) die("link", fresh);
    } else {
        char target[64];
        snprintf(target, sizeof target, "%llu:%o", (unsigned long long)st->st_ino, st->st_mode & 07777);
        ssize_t n = readlink(place, old, sizeof old - 1);
        if (n >= 0) {
            old[n] = 0;
            if (strcmp(old, target) == 0) return;
        }
        if (symlink(target, fresh) != 0) die("link", fresh);
    }
    if (syscall(SYS_renameat2, AT_FDCWD, fresh, AT_FDCWD, place, 0) != 0) die("name", place);
}

/* Makes the entries of a directory durable as they are. */
static void put_names(const char *path, ino_t directory) {
    char folder[PATH_MAX];
    struct stat st;
    struct dirent *item;
    DIR *real = opendir(path);
    if (!real) die("list", path);
    image_path(folder, "dirs", directory);
    ensure_folder(folder);
    while ((item = readdir(real))) {
        if (strcmp(item->d_name, ".") == 0 || strcmp(item->d_name, "..") == 0 || left_out(item->d_name)) continue;
        if (fstatat(dirfd(real), item->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0) continue;
        if (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)) put_name(directory, item->d_name, &st);
    }
    DIR *kept = opendir(folder);
    if (!kept) die("list", folder);
    while ((item = readdir(kept))) {
        if (strcmp(item->d_name, ".") == 0 || strcmp(item->d_name, "..") == 0) continue;
        if (fstatat(dirfd(real), item->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 && errno == ENOENT)
            remove_name(dirfd(kept), item->d_name);
    }
    closedir(kept);
    closedir(real);
}

/* Makes the names durable by which a path is reached from the root. */
static void put_way(char *path) {
    struct stat st, parent;
    while (strlen(path) > config.root_length) {
        char *slash = strrchr(path, '/');
        int there = lstat(path, &st) == 0;
        *slash = 0;
        if (there && lstat(path, &parent) == 0) put_name(parent.st_ino, slash + 1, &st);
    }
}

/* ---- fsync ---- */

static int failing(void) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/failing", config.image);
    return syscall(SYS_faccessat, AT_FDCWD, path, F_OK) == 0;
}

static void copy_blocks(int from, const struct stat *st, const unsigned char *dirty, size_t dirty_bytes) {
    char path[PATH_MAX], block[BLOCK];
    struct stat now;
    image_path(path, "inodes", st->st_ino);
    int to = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    if (to < 0) {
        if (errno == ENOENT) return; /* its last name went meanwhile */
        die("open", path);
    }
    /* The descriptor may be open for writing only. */
    char self[64];
    snprintf(self, sizeof self, "/proc/self/fd/%d", from);
    int source = syscall(SYS_openat, AT_FDCWD, self, O_RDONLY | O_CLOEXEC);
    if (source < 0) die("read", self);
    for (size_t i = 0; i < dirty_bytes * 8; i++) {
        if (!dirty[i / 8]) {
            i |= 7;
            continue;
        }
        if (!(dirty[i / 8] & 1 << (i % 8))) continue;
        ssize_t n = pread(source, block, BLOCK, (off_t)i * BLOCK);
        if (n < 0) die("read", self);
        if (n > 0 && syscall(SYS_pwrite64, to, block, n, (off_t)i * BLOCK) != n) die("write", path);
    }
    if (fstat(source, &now) != 0) die("look at", self);
    if (syscall(SYS_ftruncate, to, now.st_size) != 0) die("set the size of", path);
    if (fchmod(to, now.st_mode & 07777) != 0) die("change the mode of", path);
    close(source);
    close(to);
}

static int sync_file(int fd, int call, const struct stat *st, char *path) {
    pthread_mutex_lock(&names_lock);
    struct entry *e = look_at(st);
    pthread_mutex_unlock(&names_lock);
    pthread_mutex_lock(&e->syncing);
    pthread_mutex_lock(&table_lock);
    unsigned char *dirty = e->dirty;
    size_t dirty_bytes = e->dirty_bytes;
    e->dirty = NULL;
    e->dirty_bytes = 0;
    pthread_mutex_unlock(&table_lock);
    int result = syscall(call, fd);
    if (result == 0) {
        copy_blocks(fd, st, dirty, dirty_bytes);
    } else {
        int why = errno;
        mark_written(e, 0, st->st_size + (off_t)dirty_bytes * 8 * BLOCK);
        errno = why;
    }
    free(dirty);
    pthread_mutex_unlock(&e->syncing);
    if (result == 0 && config.entries_by_file) {
        pthread_mutex_lock(&names_lock);
        put_way(path);
        pthread_mutex_unlock(&names_lock);
    }
    return result;
}

static int sync_directory(int fd, int call, const struct stat *st, char *path) {
    int result = syscall(call, fd);
    if (result != 0) return result;
    pthread_mutex_lock(&names_lock);
    put_names(path, st->st_ino);
    if (config.entries_by_file) put_way(path);
    pthread_mutex_unlock(&names_lock);
    return 0;
}

static int sync_fd(int fd, int call) {
    char path[PATH_MAX];
    struct stat st;
    if (!on() || fstat(fd, &st) != 0 || st.st_dev != config.device || !path_of(fd, path) || !below_root(path))
        return syscall(call, fd);
    if (config.skip && strstr(path, config.skip)) return 0;
    if (failing()) {
        errno = EIO;
        return -1;
    }
    if (S_ISDIR(st.st_mode)) return sync_directory(fd, call, &st, path);
    if (S_ISREG(st.st_mode) && st.st_nlink > 0 && !left_out(path)) return sync_file(fd, call, &st, path);
    return syscall(call, fd);
}

int fsync(int fd) { return sync_fd(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_fd(fd, SYS_fdatasync); }

/* ---- clock ---- */

static time_t ahead(void) {
    char path[PATH_MAX], text[32];
    snprintf(path, sizeof path, "%s/clock", config.image);
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t length = syscall(SYS_read, fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    if (length < 0) return 0;
    text[length] = 0;
    return strtoll(text, NULL, 10);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && clock == CLOCK_REALTIME && config.on) {
        int before = errno;
        now->tv_sec += ahead();
        errno = before;
    }
    return result;
}

/* ---- open ---- */

/* What a truncation took away must not come back with the file's next growth. */
static void mark_truncated(struct entry *e, off_t from) {
    char path[PATH_MAX];
    struct stat st;
    image_path(path, "inodes", e->inode);
    pthread_mutex_lock(&e->syncing);
    if (lstat(path, &st) == 0) mark_written(e, from, st.st_size);
    pthread_mutex_unlock(&e->syncing);
}

static struct entry *opened(int fd, int created) {
    char path[PATH_MAX];
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_dev != config.device) return NULL;
    if (!path_of(fd, path) || !below_root(path) || left_out(path)) return NULL;
    if (created) drop(st.st_ino);
    return look_at(&st);
}

static int open_it(int dirfd, const char *path, int flags, mode_t mode) {
    if (!on()) return syscall(SYS_openat, dirfd, path, flags, mode);
    int creates = flags & O_CREAT, fd, created = (flags & O_TMPFILE) == O_TMPFILE;
    struct entry *e = NULL;
    /* No fsync of the directory may see a new file before it is known to be new. */
    if (creates) pthread_mutex_lock(&names_lock);
    if (!creates || flags & O_EXCL) {
        fd = syscall(SYS_openat, dirfd, path, flags, mode);
        created = created || creates;
    } else {
        for (int tries = 0;; tries++) {
            fd = syscall(SYS_openat, dirfd, path, flags | O_EXCL, mode);
            created = fd >= 0;
            if (fd >= 0 || errno != EEXIST) break;
            fd = syscall(SYS_openat, dirfd, path, flags & ~O_CREAT);
            if (fd >= 0 || errno != ENOENT || tries == 100) break;
        }
    }
    int why = errno;
    if (!creates) pthread_mutex_lock(&names_lock);
    if (fd >= 0) e = opened(fd, created);
    pthread_mutex_unlock(&names_lock);
    if (e && flags & O_TRUNC) mark_truncated(e, 0);
    errno = why;
    return fd;
}

#define MODE(last)                                                      \
    mode_t mode = 0;                                                    \
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {          \
        va_list list;                                                   \
        va_start(list, last);                                           \
        mode = va_arg(list, mode_t);                                    \
        va_end(list);                                                   \
    }

int open(const char *path, int flags, ...) { MODE(flags) return open_it(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_it(AT_FDCWD, path, flags, mode); }
int openat(int dirfd, const char *path, int flags, ...) { MODE(flags) return open_it(dirfd, path, flags, mode); }
int openat64(int dirfd, const char *path, int flags, ...) { MODE(flags) return open_it(dirfd, path, flags, mode); }
int creat(const char *path, mode_t mode) { return open_it(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open_it(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
/* What a hardened build calls. */
int __open_2(const char *path, int flags) { return open_it(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return open_it(AT_FDCWD, path, flags, 0); }
int __openat_2(int dirfd, const char *path, int flags) { return open_it(dirfd, path, flags, 0); }
int __openat64_2(int dirfd, const char *path, int flags) { return open_it(dirfd, path, flags, 0); }

/* ---- writes ---- */

static struct entry *entry_of(int fd) {
    struct stat st;
    if (!on() || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_dev != config.device) return NULL;
    pthread_mutex_lock(&table_lock);
    struct entry *e = find(st.st_ino);
    pthread_mutex_unlock(&table_lock);
    return e;
}

/* Marked after the write: were it before, an fsync in between would take the mark and copy the old bytes. */
static ssize_t wrote_at(int fd, ssize_t n, off_t offset) {
    int why = errno;
    struct entry *e = n > 0 ? entry_of(fd) : NULL;
    if (e) mark_written(e, offset, offset + n);
    errno = why;
    return n;
}

static ssize_t write_here(struct entry *e, int fd, const struct iovec *parts, int count) {
    pthread_mutex_lock(&e->position);
    ssize_t n = syscall(SYS_writev, fd, parts, count);
    int why = errno;
    if (n > 0) {
        off_t end = lseek(fd, 0, SEEK_CUR);
        mark_written(e, end - n, end);
    }
    pthread_mutex_unlock(&e->position);
    errno = why;
    return n;
}

ssize_t write(int fd, const void *bytes, size_t n) {
    struct iovec part = {(void *)bytes, n};
    struct entry *e = entry_of(fd);
    return e ? write_here(e, fd, &part, 1) : syscall(SYS_write, fd, bytes, n);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    struct entry *e = entry_of(fd);
    return e ? write_here(e, fd, parts, count) : syscall(SYS_writev, fd, parts, count);
}

ssize_t pwrite(int fd, const void *bytes, size_t n, off_t offset) {
    return wrote_at(fd, syscall(SYS_pwrite64, fd, bytes, n, offset), offset);
}
ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t offset) {
    return wrote_at(fd, syscall(SYS_pwrite64, fd, bytes, n, offset), offset);
}
/* The offset goes in two halves, of which a 64-bit kernel takes the first. */
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    return wrote_at(fd, syscall(SYS_pwritev, fd, parts, count, offset, 0), offset);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
    return wrote_at(fd, syscall(SYS_pwritev, fd, parts, count, offset, 0), offset);
}
ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
    struct entry *e = offset == -1 ? entry_of(fd) : NULL;
    if (e) return write_here(e, fd, parts, count);
    return wrote_at(fd, syscall(SYS_pwritev2, fd, parts, count, offset, 0, flags), offset);
}
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags) {
    return pwritev2(fd, parts, count, offset, flags);
}

static int truncate_it(int fd, off_t length) {
    int result = syscall(SYS_ftruncate, fd, length), why = errno;
    struct entry *e = result == 0 ? entry_of(fd) : NULL;
    if (e) mark_truncated(e, length);
    errno = why;
    return result;
}

int ftruncate(int fd, off_t length) { return truncate_it(fd, length); }
int ftruncate64(int fd, off64_t length) { return truncate_it(fd, length); }

/* Only what changes no byte: the size is looked at in fsync. */
static int allocate(int fd, int mode, off_t offset, off_t length) {
    if (mode & ~FALLOC_FL_KEEP_SIZE && entry_of(fd)) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return syscall(SYS_fallocate, fd, mode, offset, length);
}

int fallocate(int fd, int mode, off_t offset, off_t length) { return allocate(fd, mode, offset, length); }
int fallocate64(int fd, int mode, off64_t offset, off64_t length) { return allocate(fd, mode, offset, length); }

/* Copies inside the kernel: refused as an old kernel would, so that the caller writes. */
#define REFUSED(fd)         \
    if (entry_of(fd)) {     \
        errno = EINVAL;     \
        return -1;          \
    }

ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t n, unsigned flags) {
    REFUSED(out)
    return syscall(SYS_copy_file_range, in, in_at, out, out_at, n, flags);
}
ssize_t sendfile(int out, int in, off_t *at, size_t n) {
    REFUSED(out)
    return syscall(SYS_sendfile, out, in, at, n);
}
ssize_t sendfile64(int out, int in, off64_t *at, size_t n) {
    REFUSED(out)
    return syscall(SYS_sendfile, out, in, at, n);
}
ssize_t splice(int in, off64_t *in_at, int out, off64_t *out_at, size_t n, unsigned flags) {
    REFUSED(out)
    return syscall(SYS_splice, in, in_at, out, out_at, n, flags);
}

/* ---- names ---- */

static int is_last_name(const struct stat *st) {
    return S_ISREG(st->st_mode) && st->st_dev == config.device && st->st_nlink == 1;
}

static int unlink_it(int dirfd, const char *path, int flags) {
    struct stat st;
    if (!on() || flags & AT_REMOVEDIR) return syscall(SYS_unlinkat, dirfd, path, flags);
    pthread_mutex_lock(&names_lock);
    int there = fstatat(dirfd, path, &st, AT_SYMLINK_NOFOLLOW) == 0;
    int result = syscall(SYS_unlinkat, dirfd, path, flags), why = errno;
    if (result == 0 && there && is_last_name(&st)) drop(st.st_ino);
    pthread_mutex_unlock(&names_lock);
    errno = why;
    return result;
}

int unlink(const char *path) { return unlink_it(AT_FDCWD, path, 0); }
int unlinkat(int dirfd, const char *path, int flags) { return unlink_it(dirfd, path, flags); }

static int rename_it(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    struct stat source, target;
    if (!on()) return syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
    pthread_mutex_lock(&names_lock);
    int replaces = !(flags & RENAME_EXCHANGE) && fstatat(from_dir, from, &source, AT_SYMLINK_NOFOLLOW) == 0 &&
                   fstatat(to_dir, to, &target, AT_SYMLINK_NOFOLLOW) == 0 && source.st_ino != target.st_ino;
    int result = syscall(SYS_renameat2, from_dir, from, to_dir, to, flags), why = errno;
    if (result == 0 && replaces && is_last_name(&target)) drop(target.st_ino);
    pthread_mutex_unlock(&names_lock);
    errno = why;
    return result;
}

int rename(const char *from, const char *to) { return rename_it(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    return rename_it(from_dir, from, to_dir, to, 0);
}
int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    return rename_it(from_dir, from, to_dir, to, flags);
}

/* A new directory with an old one's inode number has none of its entries. */
static int make_directory(int at, const char *path, mode_t mode) {
    char folder[PATH_MAX];
    struct stat st;
    struct dirent *item;
    int result = syscall(SYS_mkdirat, at, path, mode), why = errno;
    if (result == 0 && on() && fstatat(at, path, &st, 0) == 0 && st.st_dev == config.device) {
        image_path(folder, "dirs", st.st_ino);
        pthread_mutex_lock(&names_lock);
        DIR *stale = opendir(folder);
        while (stale && (item = readdir(stale))) remove_name(dirfd(stale), item->d_name);
        if (stale) closedir(stale);
        pthread_mutex_unlock(&names_lock);
    }
    errno = why;
    return result;
}

int mkdir(const char *path, mode_t mode) { return make_directory(AT_FDCWD, path, mode); }
int mkdirat(int dirfd, const char *path, mode_t mode) { return make_directory(dirfd, path, mode); }
