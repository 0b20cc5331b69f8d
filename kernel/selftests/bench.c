// SPDX-License-Identifier: GPL-2.0-only
/* Round trips into another address space: this call beside PTRACE_SYSEMU, measured by turns in one boot. */
#include "guests.h"

#include <sys/ptrace.h>
#include <sys/user.h>

#define BATCHES 25
#define ROUNDS 200

GUEST(fault_for_ever, "1: mov (%rdi), %rax; jmp 1b");
#define FAULT_LENGTH 3

static int compare(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *numbers)
{
	qsort(numbers, BATCHES, sizeof(*numbers), compare);
	return numbers[BATCHES / 2];
}

/* A tracee that jumps to the code as soon as it is let go. */
static pid_t start_tracee(const char *code)
{
	struct user_regs_struct registers;
	pid_t child = fork();
	int status;

	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		_exit(EXIT_FAILURE);
	}
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_EXITKILL), 0);
	CHECK_EQ(ptrace(PTRACE_GETREGS, child, 0, &registers), 0);
	registers.rip = (uintptr_t)code;
	registers.rdi = 8;
	/* The tracee is at the end of a system call, which must not be restarted. */
	registers.orig_rax = (unsigned long)-1;
	CHECK_EQ(ptrace(PTRACE_SETREGS, child, 0, &registers), 0);
	return child;
}

/* One batch each; the time of a round trip in ns. */

static double native(void)
{
	int64_t start = now_ns();
	int i;

	for (i = 0; i < 10 * ROUNDS; i++)
		syscall(SYS_getppid);
	return (double)(now_ns() - start) / (10 * ROUNDS);
}

static double calls(struct guest *guest)
{
	int64_t start = now_ns();
	int i;

	for (i = 0; i < ROUNDS; i++) {
		if (process_vm_exec(guest->target, &guest->context, 0, &guest->info, &guest->mask, SIZEMASK) != 0 ||
		    guest->info.si_syscall != NR_OURS)
			fail("the run is not what it should be");
		regs(guest)->rax = 0;
	}
	return (double)(now_ns() - start) / ROUNDS;
}

static double faults(struct guest *guest)
{
	int64_t start = now_ns();
	int i;

	for (i = 0; i < ROUNDS; i++) {
		if (process_vm_exec(guest->target, &guest->context, 0, &guest->info, &guest->mask, SIZEMASK) != 0 ||
		    guest->info.si_signo != SIGSEGV)
			fail("the run is not what it should be");
		regs(guest)->rip += FAULT_LENGTH;
	}
	return (double)(now_ns() - start) / ROUNDS;
}

static double traced(pid_t child, int request, int signal)
{
	struct user_regs_struct registers;
	int64_t start = now_ns();
	int i, status;

	for (i = 0; i < ROUNDS; i++) {
		if (ptrace(request, child, 0, 0) != 0 || waitpid(child, &status, 0) != child || !WIFSTOPPED(status) ||
		    WSTOPSIG(status) != signal || ptrace(PTRACE_GETREGS, child, 0, &registers) != 0)
			fail("the tracee does not do what it should");
		if (signal == SIGSEGV)
			registers.rip += FAULT_LENGTH;
		else
			registers.rax = 0;
		if (ptrace(PTRACE_SETREGS, child, 0, &registers) != 0)
			fail("the tracee does not do what it should");
	}
	return (double)(now_ns() - start) / ROUNDS;
}

static void pin(pid_t task, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	CHECK_EQ(sched_setaffinity(task, sizeof(set), &set), 0);
}

/* Where the tracee is; the tracer, who is also the one to make our call, is on the first CPU. */
enum placement {
	ON_THE_SAME_CPU,
	/* ptrace has to wake it up there. */
	ON_ANOTHER_CPU,
};

static void place(pid_t tracee, enum placement placement)
{
	if (placement == ON_ANOTHER_CPU && sysconf(_SC_NPROCESSORS_ONLN) < 2)
		skip("one processor");
	pin(0, 0);
	pin(tracee, placement == ON_ANOTHER_CPU);
}

/* The goals are told, and are not the claim: under emulation they move with the host. */
static void check_ratio(const char *what, enum placement placement, double ours, double theirs, double goal)
{
	note("%s: %.0f ns by this call, %.0f ns by ptrace with the tracee on %s CPU, ratio %.2f, goal %.1f", what, ours,
	     theirs, placement == ON_ANOTHER_CPU ? "another" : "the same", theirs / ours, goal);
	if (slowness() > 1)
		skip("a kernel with checks is not measured");
	CHECK(theirs / ours >= 1.3);
}

static void compare_calls(enum placement placement, double goal)
{
	double own[BATCHES], ours[BATCHES], theirs[BATCHES];
	struct guest guest = new_guest(call_for_ever);
	pid_t tracee = start_tracee(call_for_ever);
	int i;

	place(tracee, placement);
	for (i = 0; i < BATCHES; i++) {
		own[i] = native();
		ours[i] = calls(&guest);
		theirs[i] = traced(tracee, PTRACE_SYSEMU, SIGTRAP);
	}
	note("native getppid: %.0f ns", median(own));
	check_ratio("system call", placement, median(ours), median(theirs), goal);
}

static void compare_faults(enum placement placement)
{
	double ours[BATCHES], theirs[BATCHES];
	struct guest guest = new_guest(fault_for_ever);
	pid_t tracee = start_tracee(fault_for_ever);
	int i;

	place(tracee, placement);
	regs(&guest)->rdi = 8;
	for (i = 0; i < BATCHES; i++) {
		ours[i] = faults(&guest);
		theirs[i] = traced(tracee, PTRACE_CONT, SIGSEGV);
	}
	check_ratio("fault", placement, median(ours), median(theirs), 2);
}

CLAIM_WITHIN(a_system_call_of_a_guest_takes_less_time_than_by_ptrace_on_one_cpu, 60)
{
	compare_calls(ON_THE_SAME_CPU, 2.7);
}

CLAIM_WITHIN(a_system_call_of_a_guest_takes_less_time_than_by_ptrace_on_two_cpus, 60)
{
	compare_calls(ON_ANOTHER_CPU, 4.5);
}

CLAIM_WITHIN(a_fault_of_a_guest_takes_less_time_than_by_ptrace_on_one_cpu, 60)
{
	compare_faults(ON_THE_SAME_CPU);
}

CLAIM_WITHIN(a_fault_of_a_guest_takes_less_time_than_by_ptrace_on_two_cpus, 60)
{
	compare_faults(ON_ANOTHER_CPU);
}
