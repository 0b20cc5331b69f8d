// SPDX-License-Identifier: GPL-2.0-only
/* System call mode: the caller's own files, credentials and numbers, with the target's memory. */
#include "guests.h"

#include <asm/prctl.h>
#include <fcntl.h>
#include <linux/futex.h>

static uint64_t variable = 1;
static char buffer[64] = "the caller's";

CLAIM(only_rax_changes)
{
	pid_t target = start_target();
	struct process_vm_exec_context before, after;

	memset(&before, 0x5a, sizeof(before));
	before.context.rax = SYS_getppid;
	after = before;
	CHECK_EQ(process_vm_exec(target, &after.context, PROCESS_VM_EXEC_SYSCALL, NULL, NULL, SIZEMASK), 0);
	CHECK_EQ(after.context.rax, getppid());
	after.context.rax = SYS_getppid;
	CHECK_EQ(memcmp(&before, &after, sizeof(before)), 0);
	CHECK_EQ(process_vm_exec(target, &after, PROCESS_VM_EXEC_SYSCALL | EXTENDED, NULL, NULL, SIZEMASK), 0);
	CHECK_EQ(after.context.rax, getppid());
	after.context.rax = SYS_getppid;
	CHECK_EQ(memcmp(&before, &after, sizeof(before)), 0);
}

CLAIM(numbers_and_credentials_are_the_callers)
{
	pid_t target = start_target();

	CHECK_EQ(call_in(target, SYS_getpid), getpid());
	CHECK_EQ(call_in(target, SYS_gettid), syscall(SYS_gettid));
	CHECK_EQ(call_in(target, SYS_getuid), getuid());
	CHECK_EQ(call_in(target, SYS_getpgid, 0), getpgid(0));
}

CLAIM(memory_is_mapped_protected_and_unmapped_in_the_target)
{
	pid_t target = start_target();
	long page = call_in(target, SYS_mmap, 0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long value = 4711;
	struct iovec ours = { &value, sizeof(value) }, theirs = { (void *)page, sizeof(value) };

	CHECK(page > 0);
	write_target(target, (void *)page, &value, sizeof(value));
	CHECK_EQ(call_in(target, SYS_mprotect, page, PAGE, PROT_READ), 0);
	CHECK_FAILS(process_vm_writev(target, &ours, 1, &theirs, 1, 0), EFAULT);
	CHECK_EQ(call_in(target, SYS_munmap, page, PAGE), 0);
	CHECK_FAILS(process_vm_readv(target, &ours, 1, &theirs, 1, 0), EFAULT);
	/* And not here. */
	CHECK_FAILS(madvise((void *)page, PAGE, MADV_NORMAL), ENOMEM);
}

CLAIM(the_break_that_moves_is_the_targets)
{
	pid_t target = start_target();
	void *ours = sbrk(0);
	long theirs = call_in(target, SYS_brk, 0);

	CHECK_EQ(call_in(target, SYS_brk, theirs + (long)PAGE), theirs + PAGE);
	CHECK_EQ(sbrk(0), ours);
}

CLAIM(descriptors_are_the_callers_and_buffers_are_the_targets)
{
	pid_t target = start_target();
	char got[sizeof(buffer)] = "";
	int ends[2];

	/* The target does not have this pipe. */
	CHECK_EQ(pipe(ends), 0);
	write_target(target, buffer, "the target's", 13);
	CHECK_EQ(call_in(target, SYS_write, ends[1], (long)buffer, 13), 13);
	CHECK_EQ(read(ends[0], got, sizeof(got)), 13);
	CHECK_EQ(strcmp(got, "the target's"), 0);
	CHECK_EQ(write(ends[1], "from a pipe", 12), 12);
	CHECK_EQ(call_in(target, SYS_read, ends[0], (long)buffer, 12), 12);
	CHECK_EQ(strcmp(buffer, "the caller's"), 0);
	read_target(target, buffer, got, 12);
	CHECK_EQ(strcmp(got, "from a pipe"), 0);
}

CLAIM(an_opened_file_is_the_callers)
{
	pid_t target = start_target();
	long file;

	write_target(target, buffer, "/proc/self/stat", 16);
	file = call_in(target, SYS_openat, AT_FDCWD, (long)buffer, O_RDONLY);
	CHECK(file >= 0);
	CHECK(fcntl((int)file, F_GETFD) != -1);
}

CLAIM(errors_of_the_call_are_in_rax)
{
	pid_t target = start_target();

	CHECK_EQ(call_in(target, SYS_close, -1), -EBADF);
	CHECK_EQ(call_in(target, SYS_uname, 8), -EFAULT);
	CHECK_EQ(call_in(target, NR_OURS), -ENOSYS);
	CHECK_EQ(call_in(target, -1), -ENOSYS);
	CHECK_EQ(call_in(target, 0x7fffffff), -ENOSYS);
}

CLAIM(numbers_of_other_abis_are_no_way_around)
{
	pid_t target = start_target();
	long result = call_in(target, 0x40000000 | SYS_exit_group, 3);

	CHECK(result == -ENOSYS || result == -EOPNOTSUPP);
	/* Only 32 bits of a number count, elsewhere. */
	result = call_in(target, 0x100000000 | SYS_exit_group, 3);
	CHECK(result == -ENOSYS || result == -EOPNOTSUPP);
	result = call_in(target, 0x100000000 | SYS_execve);
	CHECK(result == -ENOSYS || result == -EOPNOTSUPP);
}

CLAIM(what_cannot_be_right_with_borrowed_memory_is_refused)
{
	static const long refused[] = { SYS_execve, SYS_execveat, SYS_clone, SYS_clone3,       SYS_fork,
					SYS_vfork,  SYS_exit,	  SYS_exit_group, SYS_rt_sigreturn, __NR_process_vm_exec };
	pid_t target = start_target();
	size_t i;

	for (i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
		long result = call_in(target, refused[i], 0, 0, 0, 0, 0, 0);

		if (result != -EOPNOTSUPP)
			fail("call %ld: %ld", refused[i], result);
	}
}

CLAIM(calls_about_the_caller_do_not_take_the_targets_memory_for_its_own)
{
	/* Each would keep an address in the target's memory, change the caller's registers, or its credentials. */
	static const struct {
		long number;
		long arguments[3];
	} calls[] = {
		{ SYS_rseq, { (long)buffer, 32, 0 } },
		{ SYS_set_robust_list, { (long)buffer, 24, 0 } },
		{ SYS_set_tid_address, { (long)buffer, 0, 0 } },
		{ SYS_sigaltstack, { (long)buffer, 0, 0 } },
		{ SYS_rt_sigaction, { SIGUSR1, (long)buffer, 0 } },
		{ SYS_arch_prctl, { ARCH_SET_FS, 0, 0 } },
		{ SYS_arch_prctl, { ARCH_SET_GS, 0, 0 } },
		{ SYS_prctl, { PR_SET_SYSCALL_USER_DISPATCH, 0, 0 } },
		{ SYS_restart_syscall, { 0, 0, 0 } },
		{ SYS_io_uring_setup, { 1, (long)buffer, 0 } },
		{ SYS_setresuid, { -1, -1, -1 } },
		{ SYS_unshare, { 0, 0, 0 } },
	};
	pid_t target = start_target();
	size_t i;

	for (i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		long result = call_in(target, calls[i].number, calls[i].arguments[0], calls[i].arguments[1],
				      calls[i].arguments[2]);

		if (result != -EOPNOTSUPP)
			fail("call %ld with %#lx: %ld", calls[i].number, calls[i].arguments[0], result);
	}
}

CLAIM(a_private_futex_of_the_target_is_woken)
{
	volatile uint64_t *words = shared_words();
	static uint32_t futex;
	pid_t target = fork();

	CHECK(target != -1);
	if (target == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		words[0] = 1;
		syscall(SYS_futex, &futex, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
		words[1] = 1;
		for (;;)
			pause();
	}
	wait_until_set(&words[0]);
	while (call_in(target, SYS_futex, (long)&futex, FUTEX_WAKE_PRIVATE, 1) == 0)
		sched_yield();
	wait_until_set(&words[1]);
}

static volatile int handled;

static void note_signal(int signal)
{
	handled = signal;
}

CLAIM(a_call_that_blocks_is_interrupted_by_a_handler)
{
	struct sigaction action = { .sa_handler = note_signal };
	pid_t target = start_target();
	struct sigcontext uctx;
	int ends[2];

	CHECK_EQ(pipe(ends), 0);
	CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
	signal_later(SIGUSR1, 50);
	errno = 0;
	if (call_raw(target, &uctx, SYS_read, (long[6]){ ends[0], (long)buffer, 1 }) == 0)
		CHECK_EQ(uctx.rax, -EINTR);
	else
		CHECK_EQ(errno, EINTR);
	CHECK_EQ(handled, SIGUSR1);
}

CLAIM(a_sleep_that_is_interrupted_shows_no_restart_of_the_kernel)
{
	struct sigaction action = { .sa_handler = note_signal };
	pid_t target = start_target();
	struct timespec second = { 1, 0 };
	struct sigcontext uctx;

	CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
	write_target(target, buffer, &second, sizeof(second));
	signal_later(SIGUSR1, 50);
	errno = 0;
	if (call_raw(target, &uctx, SYS_nanosleep, (long[6]){ (long)buffer, 0 }) == 0)
		CHECK_EQ(uctx.rax, -EINTR);
	else
		CHECK_EQ(errno, EINTR);
	CHECK_EQ(handled, SIGUSR1);
	/* And nothing of it is left over. */
	CHECK_EQ(syscall(SYS_restart_syscall), -1);
	CHECK_EQ(errno, EINTR);
}

static void read_for_ever(void *argument)
{
	int ends[2];

	CHECK_EQ(pipe(ends), 0);
	block(SIGUSR1);
	signal_later(SIGKILL, 50);
	call_in(*(pid_t *)argument, SYS_read, ends[0], (long)buffer, 1);
}

CLAIM(a_call_that_blocks_ends_when_the_caller_is_killed)
{
	pid_t target = start_target();
	int status = status_of(read_for_ever, &target);

	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	CHECK_EQ(waitpid(target, &status, WNOHANG), 0);
}

CLAIM(siginfo_and_sigmask_are_not_looked_at)
{
	pid_t target = start_target();
	struct sigcontext uctx = { .rax = SYS_getpid };

	CHECK_EQ(process_vm_exec(target, &uctx, PROCESS_VM_EXEC_SYSCALL, NULL, NULL, SIZEMASK), 0);
	CHECK_EQ(uctx.rax, getpid());
}

CLAIM(thousands_of_calls_leave_both_memories_alone)
{
	pid_t target = start_target();
	int i;

	for (i = 0; i < 2000; i++) {
		variable = (uint64_t)i;
		CHECK_EQ(call_in(target, SYS_getpid), getpid());
		CHECK_EQ(variable, i);
	}
	CHECK_EQ(TARGETS(target, variable), 1);
}
