// Signals as a program meets them. Prints one line per claim; the same natively and as a guest.
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static volatile sig_atomic_t seen;
static sigjmp_buf back;
static void *fault_addr;
static int fault_code;
static char alternate[1 << 16];
static volatile char *handler_stack;

static void note(int signal) { seen = signal; }

static int restart_pipe[2];

static void feed(int signal)
{
    seen = signal;
    if (write(restart_pipe[1], "r", 1) != 1)
        _exit(1);
}

static void fault(int signal, siginfo_t *info, void *context)
{
    (void)context;
    fault_addr = info->si_addr;
    fault_code = info->si_code;
    siglongjmp(back, signal);
}

static void skip(int signal, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    char here;
    (void)info;
    handler_stack = &here;
    seen = signal;
    uc->uc_mcontext.gregs[REG_RIP] += 2; // ud2
    uc->uc_mcontext.gregs[REG_RAX] = 42;
}

static void clobber(int signal)
{
    (void)signal;
    __asm__ volatile("xorps %%xmm7, %%xmm7" ::: "xmm7");
}

static void on(int signal, void (*handler)(int, siginfo_t *, void *), int flags)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
    sigaction(signal, &action, NULL);
}

int main(void)
{
    setvbuf(stdout, NULL, _IONBF, 0);

    signal(SIGUSR1, note);
    raise(SIGUSR1);
    printf("raise runs the handler: %d\n", seen == SIGUSR1);

    sigset_t set, old;
    seen = 0;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, &old);
    kill(getpid(), SIGUSR1);
    int blocked = seen == 0;
    sigset_t pending;
    sigpending(&pending);
    printf("a blocked signal is pending: %d\n", blocked && sigismember(&pending, SIGUSR1));
    sigprocmask(SIG_SETMASK, &old, NULL);
    printf("unblocking delivers it: %d\n", seen == SIGUSR1);

    on(SIGSEGV, fault, 0);
    char *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int signal_number = sigsetjmp(back, 1);
    if (signal_number == 0)
        *(volatile char *)(page + 5) = 1;
    printf("writing to a read-only page is SIGSEGV: %d %d %d\n", signal_number,
           fault_addr == page + 5, fault_code == SEGV_ACCERR);
    signal_number = sigsetjmp(back, 1);
    if (signal_number == 0)
        *(volatile char *)8 = 1;
    printf("so is an unmapped one: %d %d %d\n", signal_number, fault_addr == (void *)8,
           fault_code == SEGV_MAPERR);
    on(SIGFPE, fault, 0);
    signal_number = sigsetjmp(back, 1);
    if (signal_number == 0)
        __asm__ volatile("xor %%ecx, %%ecx\n\txor %%edx, %%edx\n\tmov $1, %%eax\n\tidiv %%ecx" ::: "eax", "ecx", "edx");
    printf("division by zero is SIGFPE: %d\n", signal_number == SIGFPE);

    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    sigaltstack(&stack, NULL);
    on(SIGILL, skip, SA_ONSTACK);
    long rax;
    __asm__ volatile("ud2" : "=a"(rax)::"memory");
    printf("a handler on the alternate stack changes registers: %d %ld\n",
           handler_stack >= alternate && handler_stack < alternate + sizeof alternate, rax);

    signal(SIGUSR2, clobber);
    double before = 1.5, after;
    int pid = getpid();
    __asm__ volatile("movsd %1, %%xmm7\n\tmov $62, %%eax\n\tmov %2, %%edi\n\tmov $12, %%esi\n\tsyscall\n\t"
                     "movsd %%xmm7, %0"
                     : "=m"(after)
                     : "m"(before), "r"(pid)
                     : "rax", "rdi", "rsi", "rcx", "r11", "xmm7", "memory");
    printf("a handler leaves extended state alone: %d\n", after == 1.5);

    signal(SIGALRM, note);
    seen = 0;
    struct itimerval timer = {.it_value = {0, 100000}};
    setitimer(ITIMER_REAL, &timer, NULL);
    struct timespec second = {5, 0};
    int result = nanosleep(&second, &second);
    printf("a timer interrupts sleep: %d %d %d\n", result, errno == EINTR, seen == SIGALRM);
    seen = 0;
    setitimer(ITIMER_REAL, &timer, NULL);
    while (!seen)
        ;
    printf("a timer interrupts a busy loop: %d\n", seen == SIGALRM);

    struct itimerval huge = {{0x7fffffffffffffff, 999999}, {0, 1000}};
    seen = 0;
    setitimer(ITIMER_REAL, &huge, NULL);
    while (!seen)
        ;
    getitimer(ITIMER_REAL, &huge);
    printf("a timer with a huge interval rings once: %d %d\n", seen == SIGALRM, huge.it_value.tv_sec > 1000000000);

    int ends[2];
    char byte;
    struct sigaction plain = {.sa_handler = note};
    sigaction(SIGALRM, &plain, NULL);
    if (pipe(ends) != 0)
        return 1;
    setitimer(ITIMER_REAL, &timer, NULL);
    result = (int)read(ends[0], &byte, 1);
    printf("a timer interrupts a read: %d %d\n", result, errno == EINTR);

    if (pipe(restart_pipe) != 0)
        return 1;
    signal(SIGALRM, feed); // with SA_RESTART
    seen = 0;
    setitimer(ITIMER_REAL, &timer, NULL);
    result = (int)read(restart_pipe[0], &byte, 1);
    printf("a read that may restart goes on after the handler: %d %d %c\n", seen == SIGALRM, result, byte);

    signal(SIGPIPE, note);
    close(ends[0]);
    result = (int)write(ends[1], "x", 1);
    printf("a pipe without a reader is SIGPIPE and EPIPE: %d %d\n", seen == SIGPIPE, errno == EPIPE);

    signal(SIGTERM, SIG_IGN);
    raise(SIGTERM);
    printf("an ignored signal does nothing\n");
    abort();
}
