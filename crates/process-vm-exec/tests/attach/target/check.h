// What all parts of the target share: workers, clocks, gaps, and the end at the first failed check.

enum { MAX_WORKERS = 32, HISTOGRAM = 24 };
enum { NS_PER_US = 1000, NS_PER_MS = 1000 * 1000, NS_PER_S = 1000 * 1000 * 1000 };

struct worker;

// A kind of loop: `step` is done again and again, between `open` and `close`.
struct kind {
    const char *name;
    void (*open)(struct worker *);
    void (*step)(struct worker *);
    void (*close)(struct worker *);
};

// Gaps between two looks at the clock: how many in each power of two of microseconds, and the largest.
struct gaps {
    int64_t last_ns;
    _Atomic int64_t max_ns;
    _Atomic uint64_t looks;
    _Atomic uint64_t buckets[HISTOGRAM];
};

struct worker {
    const struct kind *kind;
    int number;
    pthread_t thread;
    pid_t tid;
    uint64_t random;
    _Atomic uint64_t rounds;
    // When it is overdue; 0 while nothing is promised.
    _Atomic int64_t deadline_ns;
    int fds[2];
    int epoll;
    uint64_t sequence;
    timer_t timer;
    pthread_t partner;
    void *memory;
    struct gaps gaps;
};

static struct {
    int64_t slack_ns;
    int64_t long_ns;
    int workers;
    bool single;
    bool wall;
    bool slack_task;
} options = {.slack_ns = 50 * NS_PER_MS, .long_ns = 300 * NS_PER_MS};

static struct worker workers[MAX_WORKERS];
static _Atomic bool stopping;
// How many entries /proc/self/task is to have.
static _Atomic int tasks_expected = 1;
static __thread struct worker *me;
// Signals that arrived for this thread's own timer, or that it sent itself.
static __thread volatile uint64_t arrived;

// Writes one line and ends the process.
static _Noreturn __attribute__((format(printf, 1, 2))) void fail(const char *format, ...)
{
    char line[1024];
    int len = snprintf(line, sizeof line, "FAIL %s: ", me ? me->kind->name : "main");
    va_list args;
    va_start(args, format);
    len += vsnprintf(line + len, sizeof line - (size_t)len - 1, format, args);
    va_end(args);
    if (len > (int)sizeof line - 2)
        len = sizeof line - 2;
    line[len++] = '\n';
    if (write(1, line, (size_t)len) < 0)
        _exit(2);
    _exit(1);
}

#define CHECK(condition, ...)  \
    do {                       \
        if (!(condition))      \
            fail(__VA_ARGS__); \
    } while (0)

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * (int64_t)NS_PER_S + now.tv_nsec;
}

// Held while something below /proc is open that the list of descriptors is not to show.
static pthread_mutex_t looking = PTHREAD_MUTEX_INITIALIZER;
static __thread int64_t waited_before_ns;

// How long this thread has been ready to run without a processor, all in all (proc(5), schedstat). That others compute is not
// the supervisor's doing; that the thread was stopped is not in it.
static int64_t waited_ns(void)
{
    char line[128] = "";
    long long waited = 0;
    pthread_mutex_lock(&looking);
    int fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        char *second = read(fd, line, sizeof line - 1) > 0 ? strchr(line, ' ') : NULL;
        waited = second ? strtoll(second, NULL, 10) : 0;
        close(fd);
    }
    pthread_mutex_unlock(&looking);
    return waited;
}

// Now something begins whose time is checked.
static int64_t begin_ns(void)
{
    waited_before_ns = waited_ns();
    return now_ns();
}

static struct timespec timespec_of(int64_t ns)
{
    return (struct timespec){.tv_sec = ns / NS_PER_S, .tv_nsec = ns % NS_PER_S};
}

// xorshift64*
static uint64_t random_of(struct worker *w)
{
    w->random ^= w->random >> 12;
    w->random ^= w->random << 25;
    w->random ^= w->random >> 27;
    return w->random * 0x2545f4914f6cdd1d;
}

// How long to wait next, in whole milliseconds: 1 to 20 ms, and now and then long.
static int64_t pick_ns(struct worker *w)
{
    uint64_t number = random_of(w) >> 8;
    if (number % 16 == 0)
        return options.long_ns;
    return (int64_t)(1 + number / 16 % 20) * NS_PER_MS;
}

// Promises the main thread to be done in `ns` and the slack.
static void promise(struct worker *w, int64_t ns)
{
    // Twice the slack: the check of the duration, which knows more, comes first.
    w->deadline_ns = now_ns() + ns + 2 * options.slack_ns + NS_PER_S;
}

static void kept(struct worker *w)
{
    w->deadline_ns = 0;
}

// Something that should have taken `asked_ns` has: not less (but for `early_ns`), and not more than the slack and the time
// that there was no processor for it.
static void check_took(const char *what, int64_t start_ns, int64_t asked_ns, int64_t early_ns)
{
    int64_t took_ns = now_ns() - start_ns;
    CHECK(took_ns >= asked_ns - early_ns, "%s came back early: asked %lld ns, took %lld ns", what,
          (long long)asked_ns, (long long)took_ns);
    if (took_ns <= asked_ns + options.slack_ns)
        return;
    int64_t waited = waited_ns() - waited_before_ns;
    CHECK(took_ns <= asked_ns + options.slack_ns + waited, "%s came back late: asked %lld ns, took %lld ns, %lld of it ready to run",
          what, (long long)asked_ns, (long long)took_ns, (long long)waited);
}

// A call returned what it has to.
static void check_result(const char *what, long result, int error, long expected, int expected_error)
{
    CHECK(result == expected && (result >= 0 || error == expected_error),
          "%s returned %ld, errno %d (%s); not %ld, errno %d", what, result, result < 0 ? error : 0,
          result < 0 ? strerror(error) : "none", expected, expected_error);
}

static void look(struct gaps *gaps)
{
    int64_t now = now_ns();
    int64_t gap = now - gaps->last_ns;
    if (gaps->last_ns != 0) {
        int bucket = 0;
        for (int64_t us = gap / NS_PER_US; us != 0 && bucket < HISTOGRAM - 1; us /= 2)
            bucket++;
        gaps->buckets[bucket]++;
        if (gap > gaps->max_ns)
            gaps->max_ns = gap;
    }
    gaps->last_ns = now;
    gaps->looks++;
}

static void set_mask(int how, int signal)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    CHECK(pthread_sigmask(how, &set, NULL) == 0, "pthread_sigmask");
}

static void handle(int signal, int flags, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
    sigfillset(&action.sa_mask);
    CHECK(sigaction(signal, &action, NULL) == 0, "sigaction of %d", signal);
}

static void nothing(struct worker *w)
{
    (void)w;
}

// A timer that sends `signal` to this thread, or to the process.
static timer_t timer_for(int notify, int signal)
{
    struct sigevent event = {.sigev_notify = notify, .sigev_signo = signal};
    timer_t timer;
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0, "timer_create: %d", errno);
    return timer;
}

static void set_timer(timer_t timer, int64_t first_ns, int64_t interval_ns)
{
    struct itimerspec when = {.it_value = timespec_of(first_ns), .it_interval = timespec_of(interval_ns)};
    CHECK(timer_settime(timer, 0, &when, NULL) == 0, "timer_settime: %d", errno);
}

static int entries(const char *path)
{
    DIR *dir = opendir(path);
    int count = 0;
    CHECK(dir, "opendir of %s: %d", path, errno);
    for (struct dirent *entry; (entry = readdir(dir));)
        count += entry->d_name[0] != '.';
    closedir(dir);
    return count;
}
