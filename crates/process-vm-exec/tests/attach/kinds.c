// Processes of kinds that need care: argv[1] says which. Each says "ready" when it is one, and from then on waits.
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void ready(void)
{
    if (write(STDOUT_FILENO, "ready\n", 6) != 6)
        _exit(1);
}

// In read(2), which strict seccomp allows, until the other end is closed. Returns the status to end with.
static int wait_quietly(void)
{
    char byte;

    return read(STDIN_FILENO, &byte, 1) == 0 ? 0 : 1;
}

static int wait_for_the_end(void)
{
    ready();
    return wait_quietly();
}

static void *outlive(void *main_thread)
{
    pthread_join(*(pthread_t *)main_thread, NULL);
    exit(wait_for_the_end());
}

static void without_main_thread(void)
{
    static pthread_t self;
    pthread_t other;

    self = pthread_self();
    if (pthread_create(&other, NULL, outlive, &self) != 0)
        exit(1);
    pthread_exit(NULL);
}

// Is back as soon as it has been stopped, or 2 ms have passed.
static void run_until_stopped(void)
{
    const long stopped = 20 * 1000, enough = 2 * 1000 * 1000;
    struct timespec before, now;
    long left = enough, gap;

    clock_gettime(CLOCK_MONOTONIC, &before);
    do {
        clock_gettime(CLOCK_MONOTONIC, &now);
        gap = (now.tv_sec - before.tv_sec) * 1000000000 + now.tv_nsec - before.tv_nsec;
        before = now;
        left -= gap;
    } while (gap < stopped && left > 0);
}

// Ends within milliseconds, when there is another one like it.
static void *pass_on(void *number)
{
    unsigned int seed = (unsigned int)(size_t)number * 2654435761u + 1;
    struct pollfd end = { .fd = STDIN_FILENO };
    pthread_attr_t detached;
    pthread_t next;

    if ((size_t)number % 2 == 0)
        run_until_stopped();
    else
        usleep(rand_r(&seed) % 2000);
    if (poll(&end, 1, 0) > 0)
        exit(0);
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    if (pthread_create(&next, &detached, pass_on, (char *)number + 1) != 0)
        exit(1);
    pthread_attr_destroy(&detached);
    return NULL;
}

static void without_a_lasting_thread(void)
{
    ready();
    pass_on(NULL);
    pthread_exit(NULL);
}

static void *stay(void *nothing)
{
    (void)nothing;
    exit(wait_quietly());
}

// Whose main thread ends after a while, and another does not.
static void leave_after(long microseconds)
{
    pthread_t other;
    struct timespec begin, now;

    if (pthread_create(&other, NULL, stay, NULL) != 0)
        exit(1);
    ready();
    clock_gettime(CLOCK_MONOTONIC, &begin);
    do
        clock_gettime(CLOCK_MONOTONIC, &now);
    while ((now.tv_sec - begin.tv_sec) * 1000000 + (now.tv_nsec - begin.tv_nsec) / 1000 < microseconds);
    pthread_exit(NULL);
}

// With a thread of the kernel's, which polls.
static void with_io_uring(void)
{
    struct io_uring_params params;

    memset(&params, 0, sizeof(params));
    params.flags = IORING_SETUP_SQPOLL;
    params.sq_thread_idle = 100000;
    if (syscall(SYS_io_uring_setup, 8, &params) < 0) {
        perror("io_uring_setup");
        exit(77);
    }
}

// As sanitizers do with their shadow.
static void with_the_region(void)
{
    void *wanted = (void *)0x700000000000;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE;

    if (mmap(wanted, 1ul << 40, PROT_NONE, flags, -1, 0) != wanted)
        exit(1);
}

// Takes a pipe of the process, if that is an executor and has one.
// With pages that look like a dead executor's, which nobody who reads them ever gets: they are waited for until this process
// brings them (userfaultfd(2)).
static void with_pages_held_back(void)
{
    const size_t len = 256 << 20;
    struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
    struct uffdio_api api = { .api = UFFD_API };
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    int file = memfd_create("pvx-executor", MFD_CLOEXEC);
    void *pages = (void *)0x700000000000;

    if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) != 0) {
        perror("userfaultfd");
        exit(1);
    }
    if (file < 0 || ftruncate(file, (off_t)len) != 0 ||
        mmap(pages, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, file, 0) != pages) {
        perror("mmap");
        exit(1);
    }
    range.range.start = (__u64)pages;
    range.range.len = len;
    if (ioctl(uffd, UFFDIO_REGISTER, &range) != 0) {
        perror("UFFDIO_REGISTER");
        exit(1);
    }
}

static int steals_a_pipe(int pid)
{
    char path[64], name[32] = "";
    struct stat file;
    int fd, pidfd, taken;
    FILE *comm;

    snprintf(path, sizeof(path), "/proc/%d/comm", pid);
    comm = fopen(path, "r");
    if (comm == NULL)
        return 0;
    if (fgets(name, sizeof(name), comm) == NULL)
        name[0] = 0;
    fclose(comm);
    if (strcmp(name, "pvx-executor\n") != 0 || (pidfd = (int)syscall(SYS_pidfd_open, pid, 0)) < 0)
        return 0;
    for (fd = 0; fd < 8; fd++) {
        taken = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
        if (taken >= 0 && fstat(taken, &file) == 0 && S_ISFIFO(file.st_mode))
            return 1;
        close(taken);
    }
    close(pidfd);
    return 0;
}

static void be_a_thief(void)
{
    struct dirent *entry;
    DIR *proc = opendir("/proc");

    if (proc == NULL)
        exit(77);
    ready();
    for (;;) {
        rewinddir(proc);
        while ((entry = readdir(proc)) != NULL)
            if (atoi(entry->d_name) > 0 && steals_a_pipe(atoi(entry->d_name))) {
                puts("stolen");
                fflush(stdout);
                pause();
            }
    }
}

// Makes of each call in the last page of the vDSO after which a jump goes back, as those do that are put there, a jump to
// itself.
static void *rewrite(void *page)
{
    const unsigned char call[] = { 0x0f, 0x05, 0xeb };
    // Which writes where the process itself may not.
    int memory = open("/proc/self/mem", O_WRONLY);
    unsigned char *found;

    for (;;) {
        // What is there changes, which the compiler does not know.
        __asm__ volatile("" : : : "memory");
        found = memmem(page, 4096, call, sizeof(call));
        if (found != NULL && pwrite(memory, "\xeb\xfe", 2, (off_t)found) != 2)
            exit(1);
    }
    return NULL;
}

static void with_a_rewriter(void)
{
    unsigned long start, end = 0;
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    pthread_t thread;

    while (maps && fgets(line, sizeof(line), maps))
        if (strstr(line, "[vdso]"))
            sscanf(line, "%lx-%lx", &start, &end);
    if (end == 0)
        exit(77);
    if (pthread_create(&thread, NULL, rewrite, (void *)(end - 4096)) != 0)
        exit(1);
}

// What `hold` says of the executor in the parent's memory: called for each there is until it says that it has it.
static void with_the_parents_executor(int (*hold)(int executor))
{
    int parent = getppid();

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
        DIR *processes = opendir("/proc");
        struct dirent *entry;

        while (processes && (entry = readdir(processes))) {
            int pid = atoi(entry->d_name), is_executor;
            char path[64], name[32] = "";
            FILE *comm;

            snprintf(path, sizeof(path), "/proc/%d/comm", pid);
            if (pid <= 0 || !(comm = fopen(path, "r")))
                continue;
            is_executor = fgets(name, sizeof(name), comm) && strncmp(name, "pvx-executor", 12) == 0;
            fclose(comm);
            if (is_executor && syscall(SYS_kcmp, parent, pid, 1 /* KCMP_VM */, 0, 0) == 0 && hold(pid)) {
                for (;;)
                    pause();
            }
        }
        if (processes)
            closedir(processes);
        usleep(500);
    }
}

// Traces a task of the executor's that runs contexts, and never waits for its end: nobody learns of the executor's then.
static int trace_a_thread(int executor)
{
    char path[64];
    struct dirent *entry;
    DIR *tasks;
    int traced = 0;

    snprintf(path, sizeof(path), "/proc/%d/task", executor);
    tasks = opendir(path);
    while (tasks && !traced && (entry = readdir(tasks))) {
        int tid = atoi(entry->d_name);

        traced = tid > 0 && tid != executor && ptrace(PTRACE_SEIZE, tid, 0, 0) == 0;
    }
    if (tasks)
        closedir(tasks);
    return traced;
}

// Takes the sockets by which descriptors come, and keeps them full.
static int fill_its_sockets(int executor)
{
    int pidfd = (int)syscall(SYS_pidfd_open, executor, 0), taken[2] = { -1, -1 };

    for (int fd = 0; fd < 2 && pidfd >= 0; fd++) {
        taken[fd] = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
        while (taken[fd] >= 0 && send(taken[fd], "full", 4, MSG_DONTWAIT) == 4)
            ;
        if (taken[fd] >= 0)
            close(taken[fd]);
    }
    if (pidfd >= 0)
        close(pidfd);
    return 0;
}

static void with_a_child_that(int (*hold)(int executor))
{
    if (fork() == 0) {
        with_the_parents_executor(hold);
        _exit(1);
    }
}

int main(int argc, char **argv)
{
    const char *kind = argc > 1 ? argv[1] : "";

    if (strcmp(kind, "strict") == 0) {
        if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0)
            return 77;
        // exit_group(2) is not allowed there.
        syscall(SYS_exit, wait_for_the_end());
    } else if (strcmp(kind, "tsc") == 0) {
        if (prctl(PR_SET_TSC, PR_TSC_SIGSEGV) != 0)
            return 1;
    } else if (strcmp(kind, "leaderless") == 0) {
        without_main_thread();
    } else if (strcmp(kind, "restless") == 0) {
        without_a_lasting_thread();
    } else if (strcmp(kind, "leaving") == 0) {
        leave_after(argc > 2 ? atol(argv[2]) : 0);
    } else if (strcmp(kind, "io_uring") == 0) {
        with_io_uring();
    } else if (strcmp(kind, "thief") == 0) {
        be_a_thief();
    } else if (strcmp(kind, "rewriter") == 0) {
        with_a_rewriter();
    } else if (strcmp(kind, "region") == 0) {
        with_the_region();
    } else if (strcmp(kind, "withholder") == 0) {
        with_pages_held_back();
    } else if (strcmp(kind, "tracer") == 0) {
        with_a_child_that(trace_a_thread);
    } else if (strcmp(kind, "filler") == 0) {
        with_a_child_that(fill_its_sockets);
    }
    return wait_for_the_end();
}
