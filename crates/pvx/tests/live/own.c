// A process whose threads have things of their own, which it writes to the file "own": one line of JSON. Then it sleeps.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));

static char stacks[2][1 << 16];
static FILE *own;

static void set(int number, int signal)
{
    stack_t stack = {.ss_sp = stacks[number], .ss_size = sizeof *stacks - 4096 * (size_t)number};
    int has_rseq = &__rseq_size != NULL && __rseq_size != 0;
    sigaltstack(&stack, NULL);
    prctl(PR_SET_PDEATHSIG, signal);
    prctl(PR_SET_TIMERSLACK, 1000 + number);
    fprintf(own, "%s\"%ld\":{\"address\":\"%p\",\"size\":%zu,\"rseq\":\"%#zx\"}", number ? "," : "{",
            syscall(SYS_gettid), stack.ss_sp, stack.ss_size,
            has_rseq ? (size_t)__builtin_thread_pointer() + (size_t)__rseq_offset : 0);
}

static void *other(void *barrier)
{
    set(1, 0);
    pthread_barrier_wait(barrier);
    for (;;)
        pause();
}

int main(void)
{
    struct itimerval real = {{0, 0}, {5000, 0}}, virtual = {{2, 500}, {1000, 0}};
    pthread_barrier_t barrier;
    pthread_t thread;
    own = fopen("own", "w");
    set(0, SIGTERM);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    setitimer(ITIMER_REAL, &real, NULL);
    setitimer(ITIMER_VIRTUAL, &virtual, NULL);
    pthread_barrier_init(&barrier, NULL, 2);
    pthread_create(&thread, NULL, other, &barrier);
    pthread_barrier_wait(&barrier);
    fprintf(own, "}\n");
    fclose(own);
    sleep(1000);
    return 1;
}
