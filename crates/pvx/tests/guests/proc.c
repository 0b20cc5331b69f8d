// The own directory in /proc by many names. Prints one line per claim; the same natively and as a guest.
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <linux/openat2.h>
#include "spellings.h"

#define CLAIM(text, truth) printf("%s: %d\n", text, !!(truth))

static char buffer[1 << 16], exe[256];

static int is_exe(int fd)
{
    struct stat one, other;
    int same = fd >= 0 && fstat(fd, &one) == 0 && stat(exe, &other) == 0 && one.st_ino == other.st_ino && one.st_dev == other.st_dev;
    close(fd);
    return same;
}

static const char *contents(int fd)
{
    size_t len = 0;
    ssize_t more;
    while (fd >= 0 && (more = read(fd, buffer + len, sizeof buffer - 1 - len)) > 0)
        len += more;
    buffer[len] = 0;
    close(fd);
    return buffer;
}

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

int main(int argc, char **argv)
{
    if (argc > 1)
        return 7;
    setvbuf(stdout, NULL, _IONBF, 0);
    exe[readlink("/proc/self/exe", exe, sizeof exe - 1)] = 0;
    CLAIM("this is the program", strcmp(strrchr(exe, '/'), "/proc") == 0);
    int file = open("file", O_RDWR | O_CREAT, 0600);
    if (write(file, "hello", 5) != 5)
        return 1;
    make_spellings();

    for (int index = 0; index < spellings_count; index++) {
        const char *self = spellings[index];
        char name[64], link[256] = "";
        struct stat status;
        printf("spelling %d\n", index);
        CLAIM("exe is the program", is_exe(open(in(self, "exe"), O_RDONLY)));
        CLAIM("and a link to it", readlink(in(self, "exe"), link, sizeof link - 1) > 0 && strcmp(link, exe) == 0 &&
              lstat(in(self, "exe"), &status) == 0 && S_ISLNK(status.st_mode));
        CLAIM("and may be executed", access(in(self, "exe"), X_OK) == 0);
        CLAIM("maps are the program's", strstr(contents(open(in(self, "maps"), O_RDONLY)), exe) != NULL);
        CLAIM("and no other's", strstr(buffer, "/pvx\n") == NULL);
        CLAIM("cmdline is its own", strcmp(contents(open(in(self, "cmdline"), O_RDONLY)), argv[0]) == 0);
        snprintf(name, sizeof name, "fd/%d", file);
        CLAIM("a descriptor is the file", stat(in(self, name), &status) == 0 && status.st_size == 5);
        CLAIM("its link says so", readlink(in(self, name), link, sizeof link - 1) > 0 && strstr(link, "/file") != NULL);
        CLAIM("it opens anew", strcmp(contents(open(in(self, name), O_RDONLY)), "hello") == 0);
        snprintf(name, sizeof name, "fdinfo/%d", file);
        CLAIM("its position is told", strstr(contents(open(in(self, name), O_RDONLY)), "pos:\t5\n") != NULL);
        int right = 1;
        for (int fd = 0; fd < 60; fd++) {
            snprintf(name, sizeof name, "fd/%d", fd);
            right &= (fcntl(fd, F_GETFD) >= 0) == (lstat(in(self, name), &status) == 0);
            snprintf(name, sizeof name, "fd/%d/", fd);
            right &= (fcntl(fd, F_GETFD) >= 0) == (stat(in(self, name), &status) == 0 || errno == ENOTDIR);
        }
        CLAIM("other descriptors are not there", right);
        CLAIM("the current directory is the program's", stat(in(self, "cwd/file"), &status) == 0 && status.st_size == 5);
    }

    CLAIM("a directory's descriptor leads to it", is_exe(openat(proc, "self/exe", O_RDONLY)));
    CLAIM("the own directory's, too", is_exe(openat(own, "exe", O_RDONLY)));
    CLAIM("from there, too", is_exe(openat(own, "../self/task/../exe", O_RDONLY)));
    CLAIM("a link has no way", openat(proc, "self/exe", O_RDONLY | O_NOFOLLOW) == -1 && errno == ELOOP);
    int link = openat(own, "exe", O_PATH | O_NOFOLLOW);
    char target[256] = "";
    CLAIM("a link can be held", readlinkat(link, "", target, sizeof target - 1) > 0 && strcmp(target, exe) == 0);
    CLAIM("no magic", openat2(proc, "self/exe", O_RDONLY, RESOLVE_NO_MAGICLINKS) == -1 && errno == ELOOP);
    CLAIM("no links", openat2(proc, "self/cmdline", O_RDONLY, RESOLVE_NO_SYMLINKS) == -1 && errno == ELOOP);
    CLAIM("beneath", strcmp(contents(openat2(proc, "self/cmdline", O_RDONLY, RESOLVE_BENEATH)), argv[0]) == 0);
    CLAIM("not above", openat2(own, "../self/cmdline", O_RDONLY, RESOLVE_BENEATH) == -1 && errno == EXDEV);
    CLAIM("in a root", strcmp(contents(openat2(proc, "/self/cmdline", O_RDONLY, RESOLVE_IN_ROOT)), argv[0]) == 0);
    mkdir("d", 0700);
    close(open("d/inside", O_CREAT, 0600));
    int d = open("d", O_RDONLY | O_DIRECTORY);
    CLAIM("an absolute path means the root", openat2(d, "/inside", O_RDONLY, RESOLVE_IN_ROOT) >= 0);
    CLAIM("and nothing else", openat2(d, "/etc/passwd", O_RDONLY, RESOLVE_IN_ROOT) == -1 && errno == ENOENT);
    CLAIM("nor beneath", openat2(d, "/inside", O_RDONLY, RESOLVE_BENEATH) == -1 && errno == EXDEV);
    CLAIM("a mode without a file to make", syscall(SYS_openat2, d, "inside", &(struct open_how){.mode = 0600}, 24) == -1 && errno == EINVAL);
    CLAIM("what is new in openat2", syscall(SYS_openat2, d, "inside", &(struct { struct open_how how; long more; }){.more = 1}, 32) == -1 && errno == E2BIG);

    CLAIM("made through a link", close(open("/proc/self/cwd/made", O_CREAT | O_EXCL, 0600)) == 0 && access("made", F_OK) == 0);
    CLAIM("moved through a link", rename("here/made", "/proc/./self/cwd/moved") == 0 && access("moved", F_OK) == 0);
    char number[64];
    snprintf(number, sizeof number, "/proc/self/fd/%d", file);
    CLAIM("a file is linked by its descriptor", linkat(AT_FDCWD, number, AT_FDCWD, "linked", AT_SYMLINK_FOLLOW) == 0);
    struct stat changed;
    CLAIM("and changed", truncate(number, 2) == 0 && chmod(number, 0640) == 0 && fstat(file, &changed) == 0 &&
          changed.st_size == 2 && (changed.st_mode & 0777) == 0640 && changed.st_nlink == 2);
    if (chdir("/proc/self") != 0)
        return 1;
    CLAIM("the current directory can be there", is_exe(open("exe", O_RDONLY)) && strcmp(contents(open("../self/cmdline", O_RDONLY)), argv[0]) == 0);
    snprintf(number, sizeof number, "/proc/%d", getpid());
    CLAIM("and is called so", getcwd(target, sizeof target) != NULL && strcmp(target, number) == 0);
    execve("./exe", (char *[]){argv[0], "again", NULL}, NULL);
    return 2;
}
