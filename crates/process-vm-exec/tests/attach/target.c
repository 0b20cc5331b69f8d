// A process to attach to, which checks itself all the time: at the first failed check it writes a line "FAIL ..."
// and exits with 1.
//
// On its standard input it takes lines: "report" is answered by one line of JSON, "fork" by "CHILD pid" of a child
// that waits, "exec" starts it anew, "exit N" ends it at once; "quit", or the end of the input, by a last check of
// everything, the report, and exit status 0.
//
//   --workers=LIST     the loops to run, by the names of `kinds`; all those that need nothing special by default
//   --threads=N        so many of them, in turn; with 1, the main thread does them all, and is the only one
//   --seccomp[=open|=closed]  a filter: see target/filter.h
//   --wall             children are waited for with __WALL too
//   --slack-ms=N       how late a wait may end (50)
//   --long-ms=N        how long one of 16 waits is (300)
//   --slack-task       /proc/self/task may have an entry too many
#define _GNU_SOURCE
#include <cpuid.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

// The longest period of the kernel's tick (HZ=100).
enum { JIFFY_NS = 10 * 1000 * 1000 };

#include "target/check.h"
#include "target/busy.h"
#include "target/waits.h"
#include "target/signals.h"
#include "target/children.h"
#include "target/rseq.h"
#include "target/filter.h"
#include "target/functions.h"

static const struct kind kinds[] = {
    {"spin", open_spin, step_spin, close_memory},
    {"nanosleep", nothing, step_nanosleep, nothing},
    {"clock_nanosleep", nothing, step_clock_nanosleep, nothing},
    {"poll", open_pipe, step_poll, close_pipe},
    {"ppoll", open_pipe, step_ppoll, close_pipe},
    {"select", open_pipe, step_select, close_pipe},
    {"epoll", open_epoll, step_epoll, close_epoll},
    {"epoll_forever", open_epoll_forever, step_epoll_forever, close_epoll_forever},
    {"futex", nothing, step_futex, nothing},
    {"read", open_read, step_read, close_read},
    {"sigtimedwait", nothing, step_sigtimedwait, nothing},
    {"sigsuspend", open_timed, step_sigsuspend, close_timed},
    {"semtimedop", open_semtimedop, step_semtimedop, nothing},
    {"recv", open_recv, step_recv, close_pipe},
    {"pause", open_timed, step_pause, close_timed},
    {"timer", open_timer, step_timer, close_timed},
    {"alarm", open_alarm, step_alarm, nothing},
    {"queue", open_queue, step_queue, nothing},
    {"children", nothing, step_children, nothing},
    {"eof", nothing, step_eof, nothing},
    {"tick", nothing, step_tick, nothing},
    // Only on demand: they take a processor for themselves, or all of the process's children.
    {"clock", nothing, step_clock, nothing},
    {"altstack", open_altstack, step_altstack, close_altstack},
    {"tiny", open_tiny, step_tiny, nothing},
    {"rseq", nothing, step_rseq, nothing},
    {"vfork", nothing, step_vfork, nothing},
    {"interrupted", open_interrupted, step_interrupted, close_interrupted},
};
enum { KINDS = sizeof kinds / sizeof *kinds, KINDS_BY_DEFAULT = KINDS - 6 };

static char **arguments;
static uint8_t fds_at_start[1024];

static void list_fds(uint8_t *open)
{
    pthread_mutex_lock(&looking);
    DIR *dir = opendir("/proc/self/fd");
    CHECK(dir, "opendir of /proc/self/fd: %d", errno);
    for (struct dirent *entry; (entry = readdir(dir));) {
        int fd = atoi(entry->d_name);
        if (entry->d_name[0] != '.' && fd < 1024 && fd != dirfd(dir))
            open[fd] = 1;
    }
    closedir(dir);
    pthread_mutex_unlock(&looking);
}

static void check_fds(void)
{
    uint8_t open[1024] = {0};
    list_fds(open);
    for (int fd = 0; fd < 1024; fd++)
        CHECK(open[fd] == fds_at_start[fd], "descriptor %d is %s", fd, open[fd] ? "open and should not be" : "closed");
}

static void check_tasks(void)
{
    int tasks = entries("/proc/self/task");
    CHECK(tasks == tasks_expected || (options.slack_task && tasks == tasks_expected + 1), "%d tasks, not %d", tasks,
          tasks_expected);
}

static void check_overdue(void)
{
    int64_t now = now_ns();
    for (int i = 0; i < options.workers && !options.single; i++) {
        int64_t deadline = workers[i].deadline_ns;
        CHECK(deadline == 0 || now < deadline, "%s, worker %d, hangs: overdue for %lld ns, after %llu rounds",
              workers[i].kind->name, i, (long long)(now - deadline), (unsigned long long)workers[i].rounds);
    }
}

static void check_not_traced(void)
{
    char line[256];
    FILE *status = fopen("/proc/self/status", "re");
    CHECK(status, "fopen of /proc/self/status: %d", errno);
    while (fgets(line, sizeof line, status))
        CHECK(strncmp(line, "TracerPid:", 10) != 0 || atoi(line + 10) == 0, "traced at the end: %s", line);
    fclose(status);
}

static void open_worker(struct worker *w)
{
    me = w;
    w->tid = (pid_t)syscall(SYS_gettid);
    thread_number = MAGIC + (uint64_t)w->number;
    w->kind->open(w);
}

static void step_worker(struct worker *w)
{
    me = w;
    w->kind->step(w);
    kept(w);
    w->rounds++;
}

static pthread_barrier_t opened;

static void *run(void *argument)
{
    struct worker *w = argument;
    open_worker(w);
    pthread_barrier_wait(&opened);
    while (!stopping)
        step_worker(w);
    w->kind->close(w);
    return NULL;
}

static void report_gaps(const char *kind)
{
    struct gaps sum = {0};
    for (int i = 0; i < options.workers; i++) {
        struct gaps *gaps = &workers[i].gaps;
        if (strcmp(workers[i].kind->name, kind) != 0)
            continue;
        if (gaps->max_ns > sum.max_ns)
            sum.max_ns = gaps->max_ns;
        sum.looks += gaps->looks;
        for (int bucket = 0; bucket < HISTOGRAM; bucket++)
            sum.buckets[bucket] += gaps->buckets[bucket];
    }
    printf(",\"%s_gap_max_ns\":%lld,\"%s_looks\":%llu,\"%s_gaps_log2_us\":[", kind, (long long)sum.max_ns, kind,
           (unsigned long long)sum.looks, kind);
    for (int bucket = 0; bucket < HISTOGRAM; bucket++)
        printf("%s%llu", bucket ? "," : "", (unsigned long long)sum.buckets[bucket]);
    printf("]");
}

static int64_t started_ns;

static void report(void)
{
    uint64_t total = 0;
    if (rseq_done)
        check_rseq();
    printf("{\"pid\":%d,\"elapsed_ns\":%lld", getpid(), (long long)(now_ns() - started_ns));
    for (int kind = 0; kind < KINDS; kind++) {
        uint64_t rounds = 0;
        for (int i = 0; i < options.workers; i++)
            rounds += workers[i].kind == &kinds[kind] ? workers[i].rounds : 0;
        if (rounds)
            printf(",\"%s\":%llu", kinds[kind].name, (unsigned long long)rounds);
        total += rounds;
    }
    printf(",\"rounds\":%llu", (unsigned long long)total);
    report_gaps("clock");
    report_gaps("tick");
    printf(",\"rseq_done\":%llu,\"rseq_aborts\":%llu", (unsigned long long)rseq_done, (unsigned long long)rseq_aborts);
    printf(",\"rseq_area\":%llu,\"alternate_stack\":%llu,\"alternate_stack_tid\":%d", (unsigned long long)rseq_area(),
           (unsigned long long)alternate_stack, alternate_stack_tid);
    printf(",\"word\":%llu,\"magic\":%llu,\"fs_base\":%llu,\"handler\":%llu", (unsigned long long)&target_word,
           (unsigned long long)target_tls(), (unsigned long long)target_fs(), (unsigned long long)target_handler);
    printf(",\"add\":%llu,\"tls\":%llu,\"fs\":%llu,\"getpid\":%llu,\"stack\":%llu,\"fault\":%llu}\n",
           (unsigned long long)target_add, (unsigned long long)target_tls, (unsigned long long)target_fs,
           (unsigned long long)target_getpid, (unsigned long long)target_stack, (unsigned long long)target_fault);
    fflush(stdout);
}

static _Noreturn void quit(void)
{
    stopping = true;
    for (int i = 0; i < options.workers; i++) {
        if (options.single)
            workers[i].kind->close(&workers[i]);
        else
            pthread_join(workers[i].thread, NULL);
    }
    me = NULL;
    check_no_child("at the end");
    check_not_traced();
    check_fds();
    report();
    exit(0);
}

static void fork_child(void)
{
    pid_t child = fork();
    CHECK(child >= 0, "fork: %d", errno);
    if (child == 0)
        for (;;)
            pause();
    printf("CHILD %d\n", child);
    fflush(stdout);
}

// Reads what has come and obeys it.
static void obey(void)
{
    static char lines[256];
    static size_t len;
    ssize_t got = read(0, lines + len, sizeof lines - len - 1);
    CHECK(got >= 0, "read of the standard input: %d", errno);
    if (got == 0)
        quit();
    len += (size_t)got;
    lines[len] = 0;
    for (char *end; (end = strchr(lines, '\n'));) {
        *end = 0;
        if (strcmp(lines, "report") == 0)
            report();
        else if (strcmp(lines, "quit") == 0)
            quit();
        else if (strcmp(lines, "fork") == 0)
            fork_child();
        else if (strcmp(lines, "exec") == 0)
            execv("/proc/self/exe", arguments);
        else if (strncmp(lines, "exit ", 5) == 0)
            _exit(atoi(lines + 5));
        else
            fail("what is \"%s\"?", lines);
        len -= (size_t)(end + 1 - lines);
        memmove(lines, end + 1, len + 1);
    }
}

// Is there something on the standard input within this time?
static bool wait_for_input(int ms)
{
    struct pollfd input = {.fd = 0, .events = POLLIN};
    int64_t start = begin_ns();
    int result = poll(&input, 1, ms);
    CHECK(result >= 0, "poll of the standard input: errno %d (%s)", errno, strerror(errno));
    if (result == 0)
        check_took("poll of the standard input", start, ms * (int64_t)NS_PER_MS, 0);
    return result > 0;
}

static const struct kind *kind_named(const char *name, size_t len)
{
    for (int i = 0; i < KINDS; i++)
        if (strlen(kinds[i].name) == len && strncmp(kinds[i].name, name, len) == 0)
            return &kinds[i];
    fail("there is no worker called %.*s", (int)len, name);
}

static int parse_workers(const char *list, const struct kind **chosen)
{
    int count = 0;
    while (*list) {
        size_t len = strcspn(list, ",");
        CHECK(count < MAX_WORKERS, "too many workers");
        chosen[count++] = kind_named(list, len);
        list += len + (list[len] == ',');
    }
    return count;
}

static void start_workers(void)
{
    pthread_barrier_init(&opened, NULL, (unsigned)options.workers + 1);
    for (int i = 0; i < options.workers; i++) {
        CHECK(pthread_create(&workers[i].thread, NULL, run, &workers[i]) == 0, "pthread_create");
        tasks_expected++;
    }
    pthread_barrier_wait(&opened);
}

int main(int argc, char **argv)
{
    const struct kind *chosen[MAX_WORKERS];
    enum filter filter = FILTER_NONE;
    int count = KINDS_BY_DEFAULT, threads = 0;
    arguments = argv;
    started_ns = now_ns();
    for (int i = 0; i < count; i++)
        chosen[i] = &kinds[i];
    for (int i = 1; i < argc; i++) {
        const char *argument = argv[i];
        if (strncmp(argument, "--workers=", 10) == 0)
            count = parse_workers(argument + 10, chosen);
        else if (strncmp(argument, "--threads=", 10) == 0)
            threads = atoi(argument + 10);
        else if (strncmp(argument, "--slack-ms=", 11) == 0)
            options.slack_ns = atoll(argument + 11) * NS_PER_MS;
        else if (strncmp(argument, "--long-ms=", 10) == 0)
            options.long_ns = atoll(argument + 10) * NS_PER_MS;
        else if (strcmp(argument, "--seccomp") == 0)
            filter = FILTER_OWN;
        else if (strcmp(argument, "--seccomp=open") == 0)
            filter = FILTER_OPEN;
        else if (strcmp(argument, "--seccomp=closed") == 0)
            filter = FILTER_CLOSED;
        else if (strcmp(argument, "--wall") == 0)
            options.wall = true;
        else if (strcmp(argument, "--slack-task") == 0)
            options.slack_task = true;
        else
            fail("what is %s?", argument);
    }
    // With one thread, that does what all would.
    options.single = threads == 1;
    options.workers = threads > 1 ? threads : count;
    CHECK(options.workers <= MAX_WORKERS, "at most %d threads", MAX_WORKERS);
    for (int i = 0; i < options.workers; i++) {
        workers[i].kind = chosen[i % count];
        workers[i].number = i;
        workers[i].random = mix((uint64_t)i + 1) | 1;
        CHECK(strcmp(workers[i].kind->name, "rseq") != 0 || rseq_works(), "no rseq here");
    }
    list_fds(fds_at_start);
    thread_number = MAGIC;
    start_rseq();
    // Workers unblock what they want, where they want it.
    sigset_t all;
    sigfillset(&all);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    sigprocmask(SIG_SETMASK, &all, NULL);
    signal(SIGUSR2, target_handler);
    for (int i = 0; i < options.workers && options.single; i++)
        open_worker(&workers[i]);
    if (!options.single)
        start_workers();
    thread_number = MAGIC;
    if (filter != FILTER_NONE)
        install_filter(filter);
    report();
    for (;;) {
        for (int i = 0; i < options.workers && options.single; i++)
            step_worker(&workers[i]);
        me = NULL;
        if (wait_for_input(options.single ? 0 : 20))
            obey();
        check_tasks();
        check_overdue();
    }
}
