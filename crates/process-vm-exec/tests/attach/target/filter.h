// Seccomp filters (seccomp(2)): what the program itself needs, with more or less around it.

enum filter { FILTER_NONE, FILTER_OWN, FILTER_OPEN, FILTER_CLOSED };

// What every worker needs once it runs.
static const int needed[] = {
    SYS_read, SYS_write, SYS_close, SYS_openat, SYS_newfstatat, SYS_fstat, SYS_getdents64, SYS_poll, SYS_ppoll,
    SYS_select, SYS_pselect6, SYS_epoll_wait, SYS_epoll_pwait, SYS_epoll_create1, SYS_epoll_ctl, SYS_nanosleep,
    SYS_clock_nanosleep, SYS_clock_gettime, SYS_gettimeofday, SYS_futex, SYS_rt_sigtimedwait, SYS_rt_sigsuspend,
    SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_rt_sigqueueinfo, SYS_rt_tgsigqueueinfo, SYS_tgkill,
    SYS_sigaltstack, SYS_getpid, SYS_gettid, SYS_getuid, SYS_semget, SYS_semop, SYS_semtimedop, SYS_socketpair,
    SYS_setsockopt, SYS_recvfrom, SYS_pause, SYS_pipe2, SYS_timer_create, SYS_timer_settime, SYS_timer_delete,
    SYS_timerfd_create, SYS_timerfd_settime, SYS_setitimer, SYS_wait4, SYS_exit, SYS_exit_group, SYS_munmap,
    SYS_madvise, SYS_brk, SYS_restart_syscall, SYS_sched_yield, SYS_lseek,
};

// What it needs to start threads and children.
static const int starting[] = {
    SYS_clone, SYS_clone3, SYS_vfork, SYS_mmap, SYS_mprotect, SYS_set_robust_list, SYS_rseq, SYS_sched_getaffinity,
    SYS_prlimit64,
};

static size_t allow(struct sock_filter *code, size_t len, const int *calls, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        code[len++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)calls[i], 0, 1);
        code[len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    }
    return len;
}

// `FILTER_OWN` and `FILTER_OPEN` refuse the rest with EPERM, and differ in memfd_create; `FILTER_CLOSED` kills the
// process for it, and allows neither new tasks nor new memory.
static void install_filter(enum filter filter)
{
    struct sock_filter code[256] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    };
    static const int memory_files[] = {SYS_memfd_create};
    size_t len = allow(code, 4, needed, sizeof needed / sizeof *needed);
    if (filter != FILTER_CLOSED)
        len = allow(code, len, starting, sizeof starting / sizeof *starting);
    if (filter == FILTER_OPEN)
        len = allow(code, len, memory_files, 1);
    uint32_t rest = filter == FILTER_CLOSED ? SECCOMP_RET_KILL_PROCESS : SECCOMP_RET_ERRNO | EPERM;
    code[len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, rest);
    struct sock_fprog program = {.len = (unsigned short)len, .filter = code};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS: %d", errno);
    // For all threads, whichever are there.
    CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0, "seccomp: %d", errno);
}
