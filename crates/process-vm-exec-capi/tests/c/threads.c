/* Two threads run in one target at the same time, each in a context of its own. */
#include "support.h"

#define ROUNDS 1000

extern const char count[];
__asm__(".pushsection .text\ncount: inc %rbx\n mov %rbx, %rax\n syscall\n jmp count\n.popsection");

static pid_t child;

static void *run(void *start)
{
	struct sigcontext uctx = context_at(count);
	siginfo_t info;
	unsigned long i, first = (unsigned long)start;

	uctx.rbx = first;
	for (i = 1; i <= ROUNDS; i++) {
		CHECK(run_in(child, &uctx, &info, SIGSEGV) == 0);
		CHECK(info.si_signo == SIGSYS && uctx.rax == first + i);
		uctx.rax = 0;
	}
	return NULL;
}

int main(void)
{
	pthread_t threads[2];

	need_targets();
	child = start_target();
	CHECK(pthread_create(&threads[0], NULL, run, (void *)10000) == 0);
	CHECK(pthread_create(&threads[1], NULL, run, (void *)50000) == 0);
	CHECK(pthread_join(threads[0], NULL) == 0);
	CHECK(pthread_join(threads[1], NULL) == 0);
	CHECK(is_executor(syscall_in(child, SYS_getpid, 0, 0, 0), child));
	end_target(child);
	return EXIT_SUCCESS;
}
