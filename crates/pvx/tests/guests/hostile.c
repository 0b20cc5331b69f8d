// What would reach the supervisor if it were given. Prints one line per claim, which is for guests only: natively a
// program may write its own memory.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <linux/openat2.h>
#include "spellings.h"

#define CLAIM(text, truth) printf("%s: %d\n", text, !!(truth))

static const char *in(const char *directory, const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

static int openat2(int dir, const char *path, unsigned long flags, unsigned long resolve)
{
    struct open_how how = {.flags = flags, .resolve = resolve};
    return syscall(SYS_openat2, dir, path, &how, sizeof how);
}

// Opens again for writing what `fd` is, which was opened for less.
static int again(int fd)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return fd < 0 ? -1 : open(path, O_RDWR);
}

static int refused, reached, told;

// Whoever is there without being reached by a signal is a relative: none of its files must be.
static void try(int number)
{
    static const char *files[] = {"mem", "maps", "fd", "task", "environ", "root", "cwd", "exe", "fd/3", "status", ""};
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/%d/stat", number);
    if (syscall(SYS_kill, number, 0) == 0 || errno != ESRCH || open(path, O_RDONLY) >= 0 || errno != EACCES)
        return;
    refused++;
    for (size_t file = 0; file < sizeof files / sizeof *files; file++) {
        snprintf(path, sizeof path, "/proc/%d/%s", number, files[file]);
        reached += open(path, O_RDONLY) >= 0 || open(path, O_PATH) >= 0 || chdir(path) == 0;
        told += readlink(path, line, sizeof line) >= 0;
        snprintf(path, sizeof path, "/proc/self/../%d/task/%d/%s", number, number, files[file]);
        reached += open(path, O_RDONLY) >= 0 || open(path, O_PATH) >= 0;
    }
    for (int signal = 0; signal < 65; signal++)
        reached += syscall(SYS_kill, number, signal) == 0 || syscall(SYS_tkill, number, signal) == 0 ||
                   syscall(SYS_tgkill, getpid(), number, signal) == 0;
    reached += getpgid(number) >= 0 || getsid(number) >= 0 || setpgid(number, 0) == 0;
}

int main(void)
{
    // Files of a process by which it can be changed.
    static const char *written[] = {"mem", "clear_refs", "oom_score_adj", "oom_adj", "comm", "attr/current", "attr/exec",
        "coredump_filter", "timerslack_ns", "uid_map", "gid_map", "setgroups", "loginuid", "sched", "timens_offsets",
        "make-it-fail", "autogroup", "environ"};
    setvbuf(stdout, NULL, _IONBF, 0);
    char *region = (char *)0x700000000000, *there = mmap(region, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CLAIM("a hint at the library's pages is not heeded", there != MAP_FAILED && there != region);
    CLAIM("nothing is mapped over them",
          mmap(region, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED);
    make_spellings();
    for (int index = 0; index < spellings_count; index++) {
        const char *self = spellings[index];
        printf("spelling %d\n", index);
        int refused = 1, kept = 1;
        for (int file = 0; file < (int)(sizeof written / sizeof *written); file++) {
            const char *path = in(self, written[file]);
            refused &= open(path, O_RDWR) == -1 && open(path, O_WRONLY | O_TRUNC) == -1 &&
                       openat2(root, path, O_WRONLY, 0) == -1 && openat2(root, path, O_WRONLY, RESOLVE_IN_ROOT) == -1 &&
                       truncate(path, 0) == -1 && open(path, O_RDWR | O_CREAT, 0600) == -1;
            kept &= again(open(path, O_PATH)) == -1 && again(open(path, O_PATH | O_NOFOLLOW)) == -1;
        }
        CLAIM("nothing is opened for writing", refused);
        CLAIM("nor again by a descriptor", kept);
        CLAIM("mem says why", open(in(self, "mem"), O_RDWR) == -1 && errno == EACCES);
        CLAIM("memory is not opened as a file", opendir(in(self, "map_files")) == NULL);
        CLAIM("registers are nobody's business", open(in(self, "syscall"), O_RDONLY) == -1);
    }
    CLAIM("from a directory", openat(own, "mem", O_RDWR) == -1 && openat(proc, "self/mem", O_RDWR) == -1);
    CLAIM("from above", openat(open("/proc/self/task", O_PATH), "../mem", O_RDWR) == -1);
    CLAIM("by a hard link", linkat(AT_FDCWD, "/proc/self/mem", AT_FDCWD, "mem", 0) == -1);
    if (chdir("/proc/self") != 0)
        return 1;
    CLAIM("from within", open("mem", O_RDWR) == -1 && open("./mem", O_RDWR) == -1 && open("../self/mem", O_RDWR) == -1);

    // Processes are listed; threads are not, but their numbers come soon after that of their process.
    int numbers[1 << 15], count = 0;
    struct dirent *entry;
    DIR *listing = opendir("/proc");
    while ((entry = readdir(listing)) != NULL && count < 1 << 14)
        if (atoi(entry->d_name) > 0 && atoi(entry->d_name) != getpid())
            numbers[count++] = atoi(entry->d_name);
    for (int next = 1; next < 256; next++)
        numbers[count++] = getpid() + next;
    for (int index = 0; index < count; index++)
        try(numbers[index]);
    CLAIM("there are relatives", refused > 0);
    CLAIM("none of them is reached", reached == 0);
    CLAIM("their links say nothing", told == 0);
    return 0;
}
