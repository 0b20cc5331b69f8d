/* Both modes beside what ptrace(2) takes for the same: medians of batches that take turns. */
#include "support.h"
#include <sys/ptrace.h>
#include <sys/user.h>
#include <time.h>

#define BATCHES 61
#define ROUNDS 300

extern const char loop[];
__asm__(".pushsection .text\n"
	"loop: mov $39, %eax\n syscall\n jmp loop\n"
	".popsection");

static pid_t target, tracee;
static struct sigcontext guest;

static void run(void)
{
	siginfo_t info;

	CHECK(run_in(target, &guest, &info, SIGSEGV) == 0);
	CHECK(info.si_syscall == SYS_getpid);
	guest.rax = 0;
}

static void run_traced(void)
{
	struct user_regs_struct regs;
	int status;

	CHECK(ptrace(PTRACE_SYSEMU, tracee, NULL, NULL) == 0);
	CHECK(waitpid(tracee, &status, __WALL) == tracee && WIFSTOPPED(status));
	CHECK(ptrace(PTRACE_GETREGS, tracee, NULL, &regs) == 0);
	CHECK(regs.orig_rax == SYS_getpid);
	regs.rax = 0;
	CHECK(ptrace(PTRACE_SETREGS, tracee, NULL, &regs) == 0);
}

static void call(void)
{
	CHECK(syscall_in(target, SYS_getppid, 0, 0, 0) >= 0);
}

/* As a debugger does it: stop, set the registers, step over one instruction, set them back. */
static void call_traced(void)
{
	struct user_regs_struct before, regs;
	int status;

	CHECK(ptrace(PTRACE_SEIZE, target, NULL, NULL) == 0);
	CHECK(ptrace(PTRACE_INTERRUPT, target, NULL, NULL) == 0);
	CHECK(waitpid(target, &status, __WALL) == target && WIFSTOPPED(status));
	CHECK(ptrace(PTRACE_GETREGS, target, NULL, &before) == 0);
	regs = before;
	regs.rip = (unsigned long)loop + 5;
	regs.rax = SYS_getppid;
	regs.orig_rax = -1;
	CHECK(ptrace(PTRACE_SETREGS, target, NULL, &regs) == 0);
	CHECK(ptrace(PTRACE_SINGLESTEP, target, NULL, NULL) == 0);
	CHECK(waitpid(target, &status, __WALL) == target && WIFSTOPPED(status));
	CHECK(ptrace(PTRACE_SETREGS, target, NULL, &before) == 0);
	CHECK(ptrace(PTRACE_DETACH, target, NULL, NULL) == 0);
}

static double ns_of(void (*round)(void), int rounds)
{
	struct timespec start, end;
	int i;

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (i = 0; i < rounds; i++)
		round();
	clock_gettime(CLOCK_MONOTONIC, &end);
	return ((double)(end.tv_sec - start.tv_sec) * 1e9 + (double)(end.tv_nsec - start.tv_nsec)) / rounds;
}

static int by_value(const void *one, const void *other)
{
	double a = *(const double *)one, b = *(const double *)other;

	return (a > b) - (a < b);
}

static void compare(const char *mode, void (*ours)(void), void (*theirs)(void))
{
	double times[2][BATCHES];
	int i;

	for (i = 0; i < BATCHES; i++) {
		times[0][i] = ns_of(ours, ROUNDS);
		times[1][i] = ns_of(theirs, ROUNDS / 10);
	}
	for (i = 0; i < 2; i++)
		qsort(times[i], BATCHES, sizeof(times[i][0]), by_value);
	printf("%s: process_vm_exec %.0f ns, ptrace %.0f ns: %.1f times\n", mode, times[0][BATCHES / 2],
	       times[1][BATCHES / 2], times[1][BATCHES / 2] / times[0][BATCHES / 2]);
}

static pid_t start_tracee(void)
{
	struct user_regs_struct regs;
	int status;
	pid_t child = start_target();

	CHECK(ptrace(PTRACE_SEIZE, child, NULL, PTRACE_O_EXITKILL) == 0);
	CHECK(ptrace(PTRACE_INTERRUPT, child, NULL, NULL) == 0);
	CHECK(waitpid(child, &status, __WALL) == child && WIFSTOPPED(status));
	CHECK(ptrace(PTRACE_GETREGS, child, NULL, &regs) == 0);
	regs.rip = (unsigned long)loop;
	regs.orig_rax = -1;
	CHECK(ptrace(PTRACE_SETREGS, child, NULL, &regs) == 0);
	return child;
}

int main(void)
{
	need_targets();
	target = start_target();
	tracee = start_tracee();
	guest = context_at(loop);
	compare("run mode", run, run_traced);
	compare("system call mode", call, call_traced);
	end_target(tracee);
	end_target(target);
	return EXIT_SUCCESS;
}
