// Files, descriptors and the process itself. Prints one line per claim; the same natively and as a guest.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define CLAIM(text, truth) printf("%s: %d\n", text, !!(truth))

int main(int argc, char **argv)
{
    char buffer[256], *volatile nowhere = (char *)16;
    if (argc > 1) {
        int fd = open("/dev/null", O_RDONLY);
        printf("after execve: argument %s, lowest descriptor %d, %s\n", argv[1], fd, getenv("KEPT"));
        return 9;
    }
    if (mkdir("d", 0700) != 0 || chdir("d") != 0)
        return 1;

    int fd = open("f", O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    umask(027);
    int other = open("g", O_RDWR | O_CREAT, 0666);
    struct stat status;
    fstat(other, &status);
    CLAIM("umask holds", (status.st_mode & 0777) == 0640);
    struct iovec parts[2] = {{"hello ", 6}, {"world", 5}};
    CLAIM("writev writes all parts", writev(fd, parts, 2) == 11);
    CLAIM("pread reads at an offset", pread(fd, buffer, 5, 6) == 5 && memcmp(buffer, "world", 5) == 0);
    int copy = dup(fd);
    lseek(copy, 0, SEEK_SET);
    CLAIM("duplicates share an offset", lseek(fd, 0, SEEK_CUR) == 0);
    CLAIM("dup clears close-on-exec", fcntl(copy, F_GETFD) == 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
    CLAIM("dup2 onto a number", dup2(fd, 77) == 77 && fcntl(77, F_GETFD) == 0);
    close(77);
    CLAIM("a closed descriptor is EBADF", read(77, buffer, 1) == -1 && errno == EBADF);
    CLAIM("a bad address is EFAULT", write(fd, nowhere, 1) == -1 && errno == EFAULT);
    CLAIM("a bad path is EFAULT", open(nowhere, O_RDONLY) == -1 && errno == EFAULT);

    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 3, .l_len = 4};
    CLAIM("a range can be locked", fcntl(fd, F_SETLK, &lock) == 0);

    char *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    shared[0] = 'J';
    CLAIM("a shared mapping writes the file", pread(fd, buffer, 1, 0) == 1 && buffer[0] == 'J');
    char *grown = mremap(shared, 4096, 8192, MREMAP_MAYMOVE);
    CLAIM("mremap grows a mapping", grown != MAP_FAILED && grown[1] == 'e');
    long heap = syscall(SYS_brk, 0), top = syscall(SYS_brk, heap + (1 << 20));
    memset((char *)heap, 1, 1 << 20);
    CLAIM("the heap grows and shrinks", top == heap + (1 << 20) && syscall(SYS_brk, heap) == heap);

    CLAIM("rename, link, symlink and unlink",
          rename("g", "h") == 0 && link("h", "i") == 0 && symlink("i", "j") == 0 && unlink("h") == 0);
    CLAIM("readlink", readlink("j", buffer, sizeof buffer) == 1 && buffer[0] == 'i');
    CLAIM("access by a link", access("j", R_OK) == 0 && access("h", F_OK) == -1 && errno == ENOENT);
    int entries = 0;
    DIR *directory = opendir(".");
    while (readdir(directory) != NULL)
        entries++;
    CLAIM("a directory lists its entries", entries == 5);
    closedir(directory);
    CLAIM("getcwd ends in d", getcwd(buffer, sizeof buffer) != NULL && strcmp(strrchr(buffer, '/'), "/d") == 0);

    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return 1;
    int lowest = dup(0), gone[2];
    close(lowest);
    CLAIM("a pipe needs a place for its numbers", pipe2((int *)nowhere, 0) == -1 && errno == EFAULT);
    CLAIM("and a pair of sockets", socketpair(AF_UNIX, SOCK_STREAM, 0, (int *)nowhere) == -1 && errno == EFAULT);
    CLAIM("which leave nothing open", pipe(gone) == 0 && gone[0] == lowest);
    close(gone[0]);
    close(gone[1]);
    struct pollfd polled = {.fd = ends[0], .events = POLLIN};
    CLAIM("an empty pipe is not ready", poll(&polled, 1, 5) == 0);
    if (write(ends[1], "abc", 3) != 3)
        return 1;
    CLAIM("a full one is", poll(&polled, 1, -1) == 1 && polled.revents == POLLIN);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(ends[0], &set);
    CLAIM("select says so too", select(ends[0] + 1, &set, NULL, NULL, NULL) == 1 && FD_ISSET(ends[0], &set));
    int epoll = epoll_create1(0), event = eventfd(0, EFD_NONBLOCK);
    struct epoll_event wanted = {.events = EPOLLIN, .data.u64 = 0x1234567890}, got;
    epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted);
    CLAIM("epoll waits", epoll_wait(epoll, &got, 1, 0) == 0);
    eventfd_write(event, 3);
    CLAIM("epoll tells what is ready", epoll_wait(epoll, &got, 1, 1000) == 1 && got.data.u64 == 0x1234567890);

    int pair[2];
    CLAIM("a pair of sockets talks", socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 &&
          send(pair[0], "x", 1, 0) == 1 && recv(pair[1], buffer, 9, 0) == 1 && buffer[0] == 'x');
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "socket"};
    int server = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0);
    CLAIM("a socket has a name here", bind(server, (void *)&name, sizeof name) == 0 && listen(server, 1) == 0 &&
          access("socket", F_OK) == 0 && connect(client, (void *)&name, sizeof name) == 0);

    struct rlimit limit = {8, 8};
    setrlimit(RLIMIT_NOFILE, &limit);
    CLAIM("descriptors have a limit", dup(0) == -1 && errno == EMFILE);

    ssize_t len = readlink("/proc/self/exe", buffer, sizeof buffer - 1);
    buffer[len < 0 ? 0 : len] = 0;
    CLAIM("/proc/self/exe is this program", strstr(buffer, "files") != NULL);
    setenv("KEPT", "kept", 1);
    char *again[] = {"again", "two", NULL};
    fflush(stdout);
    close(copy);
    for (int number = 3; number < 64; number++)
        fcntl(number, F_SETFD, FD_CLOEXEC);
    execv("/proc/self/exe", again);
    return 2;
}
