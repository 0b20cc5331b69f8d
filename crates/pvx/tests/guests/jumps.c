// Registers that no processor takes, by ways that only a kernel has. Each way is a process of its own.
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

static char stack[1 << 16];
static void *bad = (void *)0x8000000000000000;

static void say(int signal, siginfo_t *info, void *context)
{
    (void)context;
    printf("signal %d, code %d, address %p\n", signal, info->si_code, info->si_addr);
    _exit(3);
}

static void lose_way(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] = (long)bad;
}

static void lose_state(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info;
    ((ucontext_t *)context)->uc_mcontext.fpregs->mxcsr = 0xffffffff;
}

static void on(int signal, void *handler, int flags)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
    sigaction(signal, &action, NULL);
}

int main(int argc, char **argv)
{
    int way = atoi(argv[1]);
    sigset_t set;
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    setvbuf(stdout, NULL, _IONBF, 0);
    sigaltstack(&alternate, NULL);
    sigemptyset(&set);
    sigaddset(&set, SIGSEGV);
    // 0: by default; 1: with a handler; 2: blocked; 3: ignored; then the same by the other ways
    if (way % 4 == 1)
        on(SIGSEGV, say, SA_ONSTACK);
    if (way % 4 == 2)
        on(SIGSEGV, say, SA_ONSTACK), sigprocmask(SIG_BLOCK, &set, NULL);
    if (way % 4 == 3)
        signal(SIGSEGV, SIG_IGN);
    switch (way / 4) {
    case 0: // a handler that is nowhere
        on(SIGUSR1, bad, 0);
        break;
    case 1: // a frame that leads nowhere
        on(SIGUSR1, lose_way, 0);
        break;
    case 2: // a frame with extended state that there is not
        on(SIGUSR1, lose_state, 0);
        break;
    case 3: // no room for a frame
        on(SIGUSR1, lose_way, 0);
        __asm__ volatile("mov %0, %%edi; mov $10, %%esi; mov $62, %%eax; mov $0x10, %%rsp; syscall; ud2" ::"r"(getpid()));
        break;
    case 4: // no frame
        __asm__ volatile("mov $0x10, %rsp; mov $15, %eax; syscall; ud2");
        break;
    case 5: // the handler of SIGSEGV itself is nowhere
        on(SIGSEGV, bad, way % 4 == 1 ? SA_NODEFER : 0);
        raise(SIGSEGV);
        break;
    case 6: // thread-local storage where there is none
        printf("%ld\n", syscall(SYS_arch_prctl, 0x1001, 0x7ffffffff000));
        printf("%ld\n", syscall(SYS_arch_prctl, 0x1001, -1l));
        return 0;
    }
    raise(SIGUSR1);
    printf("not reached\n");
    return 0;
}
