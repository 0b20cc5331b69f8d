// Workers with children and pipes: wait(2) finds those children, no others, and a pipe ends with its last writer.

// One at a time has children: they all ask for any child.
static pthread_mutex_t children_lock = PTHREAD_MUTEX_INITIALIZER;

static void check_no_child(const char *when)
{
    int status;
    long result = waitpid(-1, &status, WNOHANG);
    CHECK(result == -1 && errno == ECHILD, "%s waitpid says %ld, errno %d, not ECHILD", when, result, errno);
    if (!options.wall)
        return;
    result = waitpid(-1, &status, WNOHANG | __WALL);
    CHECK(result == -1 && errno == ECHILD, "%s waitpid with __WALL says %ld, errno %d, not ECHILD", when, result, errno);
}

// SIGCHLD, blocked in all threads, is there for this child, and only once.
static void check_one_sigchld(pid_t child)
{
    sigset_t set;
    siginfo_t info;
    struct timespec none = {0};
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    CHECK(sigtimedwait(&set, &info, &none) == SIGCHLD, "no SIGCHLD for child %d: %d", child, errno);
    CHECK(info.si_pid == child, "a SIGCHLD for %d, not for child %d", info.si_pid, child);
    CHECK(sigtimedwait(&set, &info, &none) == -1, "a second SIGCHLD, for %d, after child %d", info.si_pid, child);
}

static void wait_for(pid_t child, int code)
{
    int status = -1;
    long result = waitpid(-1, &status, options.wall ? __WALL : 0);
    CHECK(result == child, "waitpid says %ld, errno %d, not child %d", result, errno, child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == code, "child %d has status %x, not %x", child, status, code << 8);
}

static void step_children(struct worker *w)
{
    int code = (int)(random_of(w) % 200) + 1;
    pthread_mutex_lock(&children_lock);
    promise(w, 0);
    check_no_child("before a fork");
    pid_t child = fork();
    CHECK(child >= 0, "fork: %d", errno);
    if (child == 0) {
        struct timespec time = timespec_of(code % 3 * NS_PER_MS);
        nanosleep(&time, NULL);
        _exit(code);
    }
    wait_for(child, code);
    check_one_sigchld(child);
    check_no_child("after a fork");
    pthread_mutex_unlock(&children_lock);
    struct timespec time = timespec_of(NS_PER_MS);
    check_result("nanosleep between children", nanosleep(&time, NULL), errno, 0, 0);
}

// The thread is in vfork for 20 ms: it does not run, and it cannot be stopped.
static void step_vfork(struct worker *w)
{
    static struct timespec time = {.tv_nsec = 20 * NS_PER_MS};
    pthread_mutex_lock(&children_lock);
    promise(w, 20 * NS_PER_MS);
    int64_t start = begin_ns();
    pid_t child = vfork();
    if (child == 0) {
        syscall(SYS_nanosleep, &time, NULL);
        _exit(7);
    }
    CHECK(child > 0, "vfork: %d", errno);
    check_took("vfork", start, 20 * NS_PER_MS, 0);
    wait_for(child, 7);
    check_one_sigchld(child);
    check_no_child("after a vfork");
    pthread_mutex_unlock(&children_lock);
    struct timespec pause = timespec_of(NS_PER_MS);
    check_result("nanosleep between children", nanosleep(&pause, NULL), errno, 0, 0);
}

// Without a child of another worker, which has copies of both ends until it has run: who has them then, is a stranger.
static void step_eof(struct worker *w)
{
    char bytes[2];
    pthread_mutex_lock(&children_lock);
    promise(w, 0);
    open_pipe(w);
    check_result("write", write(w->fds[1], "x", 1), errno, 1, 0);
    struct timespec time = timespec_of(NS_PER_MS);
    check_result("nanosleep with a pipe", nanosleep(&time, NULL), errno, 0, 0);
    check_result("read of a pipe", read(w->fds[0], bytes, 2), errno, 1, 0);
    close(w->fds[1]);
    struct pollfd end = {.fd = w->fds[0], .events = POLLIN};
    long result = poll(&end, 1, (int)(options.slack_ns / NS_PER_MS));
    CHECK(result == 1 && end.revents & POLLHUP, "a pipe without writer does not end: poll says %ld, errno %d", result,
          errno);
    check_result("read of an ended pipe", read(w->fds[0], bytes, 2), errno, 0, 0);
    close(w->fds[0]);
    // And the other way round.
    open_pipe(w);
    close(w->fds[0]);
    struct pollfd broken = {.fd = w->fds[1], .events = POLLOUT};
    result = poll(&broken, 1, (int)(options.slack_ns / NS_PER_MS));
    CHECK(result == 1, "poll of a pipe without reader says %ld, errno %d", result, errno);
    for (int64_t until = now_ns() + options.slack_ns; !(broken.revents & POLLERR);) {
        CHECK(now_ns() < until, "a pipe without reader is not broken");
        poll(&broken, 1, 1);
    }
    close(w->fds[1]);
    pthread_mutex_unlock(&children_lock);
}
