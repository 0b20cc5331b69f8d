/* Targets that end or execute another program, and callers that fork. */
#include "support.h"

extern const char spin[];
__asm__(".pushsection .text\nspin: jmp spin\n.popsection");

static void *kill_later(void *child)
{
	usleep(50000);
	kill(*(pid_t *)child, SIGKILL);
	return NULL;
}

static void a_target_that_dies_in_the_middle(void)
{
	struct sigcontext uctx = context_at(spin);
	siginfo_t info;
	pthread_t thread;
	pid_t child = start_target();

	CHECK(pthread_create(&thread, NULL, kill_later, &child) == 0);
	FAILS(run_in(child, &uctx, &info, SIGSEGV), ESRCH);
	CHECK(uctx.rip == (unsigned long)spin);
	CHECK(pthread_join(thread, NULL) == 0);
	CHECK(waitpid(child, NULL, 0) == child);
	FAILS(run_in(child, &uctx, &info, SIGSEGV), ESRCH);
}

static void a_forked_caller(void)
{
	pid_t child = start_target(), forked;
	int status;

	CHECK(is_executor(syscall_in(child, SYS_getpid, 0, 0, 0), child));
	forked = fork();
	CHECK(forked != -1);
	if (forked == 0) {
		struct sigcontext uctx;

		/* It may attach by itself, or not be let; what is its parent's it leaves alone. */
		memset(&uctx, 0, sizeof(uctx));
		uctx.rax = SYS_getpid;
		if (call_in(child, 0, &uctx) == 0)
			CHECK(is_executor((long)uctx.rax, child));
		exit(EXIT_SUCCESS);
	}
	CHECK(waitpid(forked, &status, 0) == forked && status == 0);
	CHECK(is_executor(syscall_in(child, SYS_getpid, 0, 0, 0), child));
	end_target(child);
}

static void a_target_that_executes_another_program(void)
{
	static char before[] = "old memory";
	int go[2], there[2];
	char byte;
	pid_t child;

	CHECK(pipe(go) == 0 && pipe(there) == 0);
	child = fork();
	CHECK(child != -1);
	if (child == 0) {
		close(there[0]);
		CHECK(read(go[0], &byte, 1) == 1);
		dup2(there[1], STDOUT_FILENO);
		execlp("sh", "sh", "-c", "echo; exec sleep 1000", (char *)NULL);
		_exit(127);
	}
	close(there[1]);
	CHECK(is_executor(syscall_in(child, SYS_getpid, 0, 0, 0), child));
	CHECK(write(go[1], "", 1) == 1 && read(there[0], &byte, 1) == 1);
	usleep(50000);
	/* The executor that we had is in memory that is not the child's any more. */
	CHECK(is_executor(syscall_in(child, SYS_getpid, 0, 0, 0), child));
	CHECK(syscall_in(child, SYS_write, go[1], (long)before, sizeof(before)) == -EFAULT);
	end_target(child);
}

int main(void)
{
	need_targets();
	a_target_that_dies_in_the_middle();
	a_forked_caller();
	a_target_that_executes_another_program();
	return EXIT_SUCCESS;
}
