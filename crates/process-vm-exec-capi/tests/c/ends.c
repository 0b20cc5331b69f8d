/* Targets that end or execute another program, and callers that fork. */
#include "support.h"
#include <sys/time.h>

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

/* Who has reaped it knows, whatever the library's own threads have seen. */
static void a_target_that_has_been_reaped(void)
{
	struct sigcontext uctx;
	siginfo_t info;
	pid_t child;
	int round;

	for (round = 0; round < 200; round++) {
		child = start_target();
		CHECK(is_executor(syscall_in(child, SYS_getpid, 0, 0, 0), child));
		end_target(child);
		uctx = context_at(spin);
		if (round % 2) {
			FAILS(run_in(child, &uctx, &info, SIGSEGV), ESRCH);
		} else {
			uctx.rax = SYS_getpid;
			FAILS(call_in(child, 0, &uctx), ESRCH);
		}
	}
}

static volatile sig_atomic_t interruptions;

/* The first child of a process; 0 if it has none. */
static pid_t child_of(pid_t pid)
{
	char path[64];
	pid_t child = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, pid);
	file = fopen(path, "r");
	if (file != NULL) {
		if (fscanf(file, "%d", &child) != 1)
			child = 0;
		fclose(file);
	}
	return child;
}

static void count(int signal)
{
	(void)signal;
	interruptions++;
}

/* While it is attached to, whatever comes of that, the caller blocks no signals: its handlers run. */
static void a_target_that_takes_its_time(void)
{
	struct sigaction action;
	struct itimerval often = { { 0, 1000 }, { 0, 1000 } }, never = { { 0, 0 }, { 0, 0 } };
	struct sigcontext uctx;
	sigset_t mask;
	pid_t child = fork(), vforked;

	CHECK(child != -1);
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		/* In an uninterruptible sleep, as long as the other lives. */
		vforked = vfork();
		if (vforked == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (;;)
				pause();
		}
		_exit(EXIT_FAILURE);
	}
	memset(&action, 0, sizeof(action));
	action.sa_handler = count;
	action.sa_flags = SA_RESTART;
	CHECK(sigaction(SIGALRM, &action, NULL) == 0);
	CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
	while ((vforked = child_of(child)) == 0)
		usleep(1000);
	interruptions = 0;
	memset(&uctx, 0, sizeof(uctx));
	uctx.rax = SYS_getpid;
	CHECK(call_in(child, 0, &uctx) == -1);
	/* One may have come just before or after. */
	CHECK(interruptions > 10);
	CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
	CHECK(pthread_sigmask(SIG_SETMASK, NULL, &mask) == 0 && sigisemptyset(&mask));
	kill(vforked, SIGKILL);
	end_target(child);
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
	a_target_that_has_been_reaped();
	a_target_that_takes_its_time();
	a_forked_caller();
	a_target_that_executes_another_program();
	return EXIT_SUCCESS;
}
