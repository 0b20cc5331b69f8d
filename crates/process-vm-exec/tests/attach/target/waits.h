// Workers that wait in one system call: it returns what it should, and when it should.

static void step_nanosleep(struct worker *w)
{
    int64_t asked = pick_ns(w), start = begin_ns();
    struct timespec time = timespec_of(asked);
    promise(w, asked);
    long result = nanosleep(&time, NULL);
    check_result("nanosleep", result, errno, 0, 0);
    check_took("nanosleep", start, asked, 0);
}

static void step_clock_nanosleep(struct worker *w)
{
    int64_t asked = pick_ns(w), start = begin_ns();
    struct timespec time = timespec_of(start + asked);
    promise(w, asked);
    int error = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
    check_result("clock_nanosleep", error, error, 0, 0);
    check_took("clock_nanosleep", start, asked, 0);
}

static void open_pipe(struct worker *w)
{
    CHECK(pipe2(w->fds, O_CLOEXEC) == 0, "pipe2: %d", errno);
}

static void close_pipe(struct worker *w)
{
    close(w->fds[0]);
    close(w->fds[1]);
}

static void step_poll(struct worker *w)
{
    struct pollfd fd = {.fd = w->fds[0], .events = POLLIN};
    int64_t asked = pick_ns(w), start = begin_ns();
    promise(w, asked);
    long result = poll(&fd, 1, (int)(asked / NS_PER_MS));
    check_result("poll", result, errno, 0, 0);
    check_took("poll", start, asked, 0);
}

static void step_ppoll(struct worker *w)
{
    struct pollfd fd = {.fd = w->fds[0], .events = POLLIN};
    int64_t asked = pick_ns(w), start = begin_ns();
    struct timespec time = timespec_of(asked);
    sigset_t all;
    sigfillset(&all);
    promise(w, asked);
    long result = ppoll(&fd, 1, &time, &all);
    check_result("ppoll", result, errno, 0, 0);
    check_took("ppoll", start, asked, 0);
}

static void step_select(struct worker *w)
{
    int64_t asked = pick_ns(w), start = begin_ns();
    struct timeval time = {.tv_sec = asked / NS_PER_S, .tv_usec = asked % NS_PER_S / NS_PER_US};
    fd_set set;
    FD_ZERO(&set);
    FD_SET(w->fds[0], &set);
    promise(w, asked);
    long result = select(w->fds[0] + 1, &set, NULL, NULL, &time);
    check_result("select", result, errno, 0, 0);
    check_took("select", start, asked, 0);
    CHECK(!FD_ISSET(w->fds[0], &set), "select says that an empty pipe is readable");
}

static void watch(struct worker *w, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0x1234567890abcdef};
    w->epoll = epoll_create1(EPOLL_CLOEXEC);
    CHECK(w->epoll >= 0, "epoll_create1: %d", errno);
    CHECK(epoll_ctl(w->epoll, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl: %d", errno);
}

static void open_epoll(struct worker *w)
{
    open_pipe(w);
    watch(w, w->fds[0]);
}

static void close_epoll(struct worker *w)
{
    close(w->epoll);
    close_pipe(w);
}

static void step_epoll(struct worker *w)
{
    struct epoll_event event;
    int64_t asked = pick_ns(w), start = begin_ns();
    promise(w, asked);
    long result = epoll_wait(w->epoll, &event, 1, (int)(asked / NS_PER_MS));
    check_result("epoll_wait", result, errno, 0, 0);
    check_took("epoll_wait", start, asked, 0);
}

static void open_epoll_forever(struct worker *w)
{
    w->fds[0] = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    CHECK(w->fds[0] >= 0, "timerfd_create: %d", errno);
    watch(w, w->fds[0]);
}

static void close_epoll_forever(struct worker *w)
{
    close(w->epoll);
    close(w->fds[0]);
}

// Without a timeout; a timerfd ends it.
static void step_epoll_forever(struct worker *w)
{
    struct epoll_event event = {0};
    uint64_t expirations = 0;
    int64_t asked = pick_ns(w), start = begin_ns();
    struct itimerspec when = {.it_value = timespec_of(asked)};
    CHECK(timerfd_settime(w->fds[0], 0, &when, NULL) == 0, "timerfd_settime: %d", errno);
    promise(w, asked);
    long result = epoll_wait(w->epoll, &event, 1, -1);
    check_result("epoll_wait without timeout", result, errno, 1, 0);
    check_took("epoll_wait without timeout", start, asked, 0);
    CHECK(event.data.u64 == 0x1234567890abcdef, "epoll_wait's data are %llx", (unsigned long long)event.data.u64);
    result = read(w->fds[0], &expirations, sizeof expirations);
    check_result("read of a timerfd", result, errno, 8, 0);
    CHECK(expirations == 1, "a timerfd expired %llu times", (unsigned long long)expirations);
}

static void step_futex(struct worker *w)
{
    static uint32_t word = 7;
    int64_t asked = pick_ns(w), start = begin_ns();
    struct timespec time = timespec_of(asked);
    promise(w, asked);
    long result = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 7, &time, NULL, 0);
    check_result("futex", result, errno, -1, ETIMEDOUT);
    check_took("futex", start, asked, 0);
}

// The other end of a pipe: numbers, every few milliseconds. The last one is written when all are to stop: the reader
// may have begun to wait just before.
static void *feed(void *argument)
{
    struct worker *w = argument;
    bool last = false;
    me = w;
    for (uint64_t sequence = 0; !last; sequence++) {
        struct timespec time = timespec_of(3 * NS_PER_MS);
        check_result("the feeder's nanosleep", nanosleep(&time, NULL), errno, 0, 0);
        last = stopping;
        check_result("the feeder's write", write(w->fds[1], &sequence, sizeof sequence), errno, 8, 0);
    }
    return NULL;
}

static void open_read(struct worker *w)
{
    open_pipe(w);
    if (options.single)
        return;
    tasks_expected++;
    CHECK(pthread_create(&w->partner, NULL, feed, w) == 0, "pthread_create");
}

static void step_read(struct worker *w)
{
    uint64_t sequence = ~0ull;
    if (options.single)
        check_result("write", write(w->fds[1], &w->sequence, 8), errno, 8, 0);
    promise(w, 3 * NS_PER_MS);
    long result = read(w->fds[0], &sequence, sizeof sequence);
    check_result("read of a pipe", result, errno, 8, 0);
    CHECK(sequence == w->sequence, "read of a pipe: number %llu, not %llu", (unsigned long long)sequence,
          (unsigned long long)w->sequence);
    w->sequence++;
}

static void close_read(struct worker *w)
{
    if (!options.single)
        pthread_join(w->partner, NULL);
    close_pipe(w);
}

// For a signal that nobody sends.
static void step_sigtimedwait(struct worker *w)
{
    int64_t asked = pick_ns(w), start = begin_ns();
    struct timespec time = timespec_of(asked);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 2);
    promise(w, asked);
    long result = sigtimedwait(&set, NULL, &time);
    check_result("sigtimedwait", result, errno, -1, EAGAIN);
    check_took("sigtimedwait", start, asked, 0);
}

// The set is the same for all targets and never removed: a target that is killed would leave one each.
static void open_semtimedop(struct worker *w)
{
    w->fds[0] = semget(0x70766d78, 1, IPC_CREAT | 0666);
    CHECK(w->fds[0] >= 0, "semget: %d", errno);
}

static void step_semtimedop(struct worker *w)
{
    struct sembuf down = {.sem_op = -1};
    int64_t asked = pick_ns(w), start = begin_ns();
    struct timespec time = timespec_of(asked);
    promise(w, asked);
    long result = semtimedop(w->fds[0], &down, 1, &time);
    check_result("semtimedop", result, errno, -1, EAGAIN);
    check_took("semtimedop", start, asked, JIFFY_NS);
}

static void open_recv(struct worker *w)
{
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, w->fds) == 0, "socketpair: %d", errno);
}

// The timeout of a socket counts jiffies, the first of which may be nearly over.
static void step_recv(struct worker *w)
{
    char byte;
    int64_t asked = pick_ns(w) + JIFFY_NS;
    struct timeval time = {.tv_sec = asked / NS_PER_S, .tv_usec = asked % NS_PER_S / NS_PER_US};
    CHECK(setsockopt(w->fds[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time) == 0, "setsockopt: %d", errno);
    int64_t start = begin_ns();
    promise(w, asked);
    long result = recv(w->fds[0], &byte, 1, 0);
    check_result("recv with a timeout", result, errno, -1, EAGAIN);
    check_took("recv with a timeout", start, asked, JIFFY_NS);
}

static void timer_arrived(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    (void)info;
    (void)context;
    arrived++;
}

static void open_timed(struct worker *w)
{
    handle(SIGRTMIN, 0, timer_arrived);
    w->timer = timer_for(SIGEV_THREAD_ID, SIGRTMIN);
}

static void close_timed(struct worker *w)
{
    timer_delete(w->timer);
}

// The timer goes on until the wait is over: the first signal may come before pause does.
static void step_pause(struct worker *w)
{
    int64_t asked = pick_ns(w), start = begin_ns();
    uint64_t before = arrived;
    promise(w, asked);
    set_timer(w->timer, asked, 10 * NS_PER_MS);
    set_mask(SIG_UNBLOCK, SIGRTMIN);
    long result = pause();
    int error = errno;
    uint64_t after = arrived;
    set_timer(w->timer, 0, 0);
    set_mask(SIG_BLOCK, SIGRTMIN);
    check_result("pause", result, error, -1, EINTR);
    CHECK(after > before, "pause came back, and no signal had come");
    check_took("pause", start, asked, 0);
}

static void step_sigsuspend(struct worker *w)
{
    int64_t asked = pick_ns(w), start = begin_ns();
    uint64_t before = arrived;
    sigset_t set;
    sigfillset(&set);
    sigdelset(&set, SIGRTMIN);
    promise(w, asked);
    set_timer(w->timer, asked, 0);
    long result = sigsuspend(&set);
    check_result("sigsuspend", result, errno, -1, EINTR);
    CHECK(arrived == before + 1, "sigsuspend came back after %llu signals", (unsigned long long)(arrived - before));
    check_took("sigsuspend", start, asked, 0);
    CHECK(pthread_sigmask(0, NULL, &set) == 0 && sigismember(&set, SIGRTMIN) == 1,
          "sigsuspend left the signal mask changed");
}
