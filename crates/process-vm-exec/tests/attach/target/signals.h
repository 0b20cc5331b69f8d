// Workers that get signals: queued ones, and those of timers. Each arrives, once, and in order.

enum { QUEUED = 8 };
static __thread uint64_t next_value;

static void queued_arrived(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    (void)context;
    CHECK(info->si_code == SI_QUEUE, "a signal that nobody sent: si_code %d", info->si_code);
    CHECK((uint64_t)info->si_value.sival_ptr == next_value, "queued signal %llu came instead of %llu",
          (unsigned long long)info->si_value.sival_ptr, (unsigned long long)next_value);
    next_value++;
    arrived++;
}

static void open_queue(struct worker *w)
{
    (void)w;
    handle(SIGRTMIN + 1, 0, queued_arrived);
}

// Sends some to itself, first while they are blocked.
static void step_queue(struct worker *w)
{
    promise(w, 0);
    for (int turn = 0; turn < 2; turn++) {
        uint64_t before = arrived;
        if (turn == 1)
            set_mask(SIG_UNBLOCK, SIGRTMIN + 1);
        for (int i = 0; i < QUEUED; i++) {
            union sigval value = {.sival_ptr = (void *)w->sequence++};
            int error = pthread_sigqueue(pthread_self(), SIGRTMIN + 1, value);
            CHECK(error == 0, "pthread_sigqueue: %d", error);
        }
        if (turn == 0)
            set_mask(SIG_UNBLOCK, SIGRTMIN + 1);
        CHECK(arrived == before + QUEUED, "%llu of %d queued signals came", (unsigned long long)(arrived - before), QUEUED);
        set_mask(SIG_BLOCK, SIGRTMIN + 1);
    }
    struct timespec time = timespec_of(NS_PER_MS / 5);
    check_result("nanosleep between signals", nanosleep(&time, NULL), errno, 0, 0);
}

static int timer_signal(const struct worker *w)
{
    return SIGRTMIN + 4 + w->number % 24;
}

static void open_timer(struct worker *w)
{
    w->timer = timer_for(SIGEV_SIGNAL, timer_signal(w));
}

static uint64_t take_timer_signal(struct worker *w, int64_t wait_ns)
{
    sigset_t set;
    siginfo_t info;
    struct timespec time = timespec_of(wait_ns);
    sigemptyset(&set);
    sigaddset(&set, timer_signal(w));
    if (sigtimedwait(&set, &info, &time) < 0) {
        check_result("sigtimedwait of a timer", -1, errno, -1, EAGAIN);
        return 0;
    }
    CHECK(info.si_code == SI_TIMER, "a signal that no timer sent: si_code %d", info.si_code);
    return 1 + (uint64_t)info.si_overrun;
}

// A timer of the whole process: signals and overruns are as many as its periods.
static void step_timer(struct worker *w)
{
    const int64_t interval = NS_PER_MS, length = 20 * NS_PER_MS;
    uint64_t total = 0;
    promise(w, length);
    int64_t before = now_ns();
    set_timer(w->timer, interval, interval);
    int64_t start = now_ns(), end;
    while (now_ns() < start + length)
        total += take_timer_signal(w, length);
    end = now_ns();
    total += take_timer_signal(w, 0);
    set_timer(w->timer, 0, 0);
    int64_t after = now_ns();
    while (take_timer_signal(w, 0) != 0)
        total++;
    int64_t least = (end - start) / interval - 1, most = (after - before) / interval + 1;
    CHECK((int64_t)total >= least && (int64_t)total <= most, "a timer expired %llu times, not %lld to %lld",
          (unsigned long long)total, (long long)least, (long long)most);
}

static struct worker *_Atomic alarm_owner;

static void open_alarm(struct worker *w)
{
    struct worker *nobody = NULL;
    if (atomic_compare_exchange_strong(&alarm_owner, &nobody, w))
        handle(SIGALRM, SA_RESTART, timer_arrived);
}

static void set_alarm(int64_t interval_ns)
{
    struct timeval interval = {.tv_usec = interval_ns / NS_PER_US};
    struct itimerval when = {.it_value = interval, .it_interval = interval};
    CHECK(setitimer(ITIMER_REAL, &when, NULL) == 0, "setitimer: %d", errno);
}

// The interval timer that each process has one of: at least one signal, and not more than there are periods.
static void step_alarm(struct worker *w)
{
    const int64_t interval = 2 * NS_PER_MS, length = 20 * NS_PER_MS;
    if (alarm_owner != w)
        return step_nanosleep(w);
    uint64_t before = arrived;
    int64_t start = now_ns();
    promise(w, length);
    set_mask(SIG_UNBLOCK, SIGALRM);
    set_alarm(interval);
    while (now_ns() < start + length)
        ;
    set_alarm(0);
    int64_t periods = (now_ns() - start) / interval + 1;
    uint64_t count = arrived - before;
    set_mask(SIG_BLOCK, SIGALRM);
    CHECK(count >= 1 && (int64_t)count <= periods, "%llu alarms in %lld periods", (unsigned long long)count,
          (long long)periods);
}
