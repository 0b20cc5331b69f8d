// SPDX-License-Identifier: GPL-2.0-only
/* A right that was there at the last call is not taken for granted at the next one. */
#include "guests.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <sched.h>

/* What the target has been told to do next, and how much of that it has done. */
static volatile uint64_t *order, *done;

/* A target that does one thing after another, each when it is told to. */
static pid_t start_obedient_target(void (*const *things)(void), unsigned int count)
{
	volatile uint64_t *words = shared_words();
	unsigned int i;
	pid_t child;

	order = &words[0];
	done = &words[1];
	child = fork();
	CHECK(child != -1);
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (i = 0; i < count; i++) {
			while (*order <= i)
				sched_yield();
			things[i]();
			*done = i + 1;
		}
		for (;;)
			pause();
	}
	return child;
}

static void have_it_do_the_next_thing(void)
{
	const uint64_t before = *done;

	*order = before + 1;
	wait_while(done, before);
}

static void check_allowed(pid_t target)
{
	CHECK_EQ(call_in(target, SYS_getpid), getpid());
}

static void check_refused(pid_t target, int number)
{
	struct sigcontext uctx;

	CHECK_FAILS(call_raw(target, &uctx, SYS_getpid, (long[6]){ 0 }), number);
}

static void forbid(void)
{
	CHECK_EQ(prctl(PR_SET_DUMPABLE, 0), 0);
}

static void allow(void)
{
	CHECK_EQ(prctl(PR_SET_DUMPABLE, 1), 0);
}

/* Both become it; then nobody has a capability. */
static void become_nobody(void)
{
	CHECK_EQ(setgid(NOBODY), 0);
	CHECK_EQ(setuid(NOBODY), 0);
	allow();
}

CLAIM(a_target_that_forbids_it_is_refused_from_then_on)
{
	pid_t target;

	become_nobody();
	target = start_obedient_target((void (*const[])(void)){ forbid, allow }, 2);
	check_allowed(target);
	have_it_do_the_next_thing();
	check_refused(target, EPERM);
	have_it_do_the_next_thing();
	check_allowed(target);
}

static void capabilities(uint32_t effective, uint32_t permitted)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct sets[2] = { { effective, permitted, 0 } };

	CHECK_EQ(syscall(SYS_capset, &header, sets), 0);
}

static void become_somebody_else(void)
{
	capabilities(1U << CAP_SETUID, 1U << CAP_SETUID);
	CHECK_EQ(setresuid(NOBODY - 1, NOBODY - 1, NOBODY - 1), 0);
	allow();
}

CLAIM(a_target_that_becomes_another_user_is_refused_from_then_on)
{
	pid_t target;

	CHECK_EQ(prctl(PR_SET_KEEPCAPS, 1), 0);
	become_nobody();
	/* The target's capabilities must be among the caller's. */
	capabilities(0, 1U << CAP_SETUID);
	target = start_obedient_target((void (*const[])(void)){ become_somebody_else }, 1);
	check_allowed(target);
	have_it_do_the_next_thing();
	check_refused(target, EPERM);
}

CLAIM(a_caller_that_becomes_another_user_is_refused_from_then_on)
{
	pid_t target = start_target();

	check_allowed(target);
	become_nobody();
	check_refused(target, EPERM);
}

/* Who may not read it, may not look at who runs it. */
static const char secret_program[] = "/tmp/secret";

static void execute_secret_program(void)
{
	*done = 1;
	execl(secret_program, "busybox", "sleep", "100", NULL);
	_exit(EXIT_FAILURE);
}

static void copy_file(const char *from, const char *to, mode_t mode)
{
	int input = open(from, O_RDONLY), output = open(to, O_WRONLY | O_CREAT | O_EXCL, mode);
	char bytes[PAGE];
	ssize_t length;

	CHECK(input >= 0 && output >= 0);
	while ((length = read(input, bytes, sizeof(bytes))) > 0)
		CHECK_EQ(write(output, bytes, length), length);
	CHECK_EQ(length, 0);
	close(input);
	close(output);
}

CLAIM(a_target_that_executes_what_the_caller_may_not_read_is_refused_from_then_on)
{
	struct sigcontext uctx;
	int64_t deadline;
	pid_t target;

	unlink(secret_program);
	copy_file("/bin/busybox", secret_program, 0711);
	become_nobody();
	target = start_obedient_target((void (*const[])(void)){ execute_secret_program }, 1);
	check_allowed(target);
	have_it_do_the_next_thing();
	deadline = now_ns() + 5000000000LL * slowness();
	while (call_raw(target, &uctx, SYS_getpid, (long[6]){ 0 }) == 0 && now_ns() < deadline)
		sched_yield();
	check_refused(target, EPERM);
}

static void join_another_time_namespace(void)
{
	int namespace;

	CHECK_EQ(unshare(CLONE_NEWTIME), 0);
	namespace = open("/proc/self/ns/time_for_children", O_RDONLY);
	CHECK(namespace >= 0);
	CHECK_EQ(setns(namespace, CLONE_NEWTIME), 0);
}

CLAIM(a_target_that_joins_another_time_namespace_is_refused_from_then_on)
{
	pid_t target;

	if (access("/proc/self/ns/time", F_OK) != 0)
		skip("no time namespaces here");
	target = start_obedient_target((void (*const[])(void)){ join_another_time_namespace }, 1);
	check_allowed(target);
	have_it_do_the_next_thing();
	check_refused(target, EOPNOTSUPP);
}

static uint64_t generation = 1;

/* A target with this number, which nobody has. */
static void start_target_with_number(pid_t number)
{
	struct clone_args arguments = { .exit_signal = SIGCHLD, .set_tid = (uintptr_t)&number, .set_tid_size = 1 };
	long child = syscall(SYS_clone3, &arguments, sizeof(arguments));

	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	CHECK_EQ(child, number);
}

/* What the process with this number has in `generation`. */
static uint64_t generation_of(pid_t target)
{
	uint64_t word = 0;
	int ends[2];

	CHECK_EQ(pipe(ends), 0);
	CHECK_EQ(call_in(target, SYS_write, ends[1], (long)&generation, sizeof(generation)), sizeof(generation));
	CHECK_EQ(read(ends[0], &word, sizeof(word)), sizeof(word));
	close(ends[0]);
	close(ends[1]);
	return word;
}

CLAIM(a_number_means_the_process_that_has_it_now)
{
	pid_t target = start_target();

	CHECK_EQ(generation_of(target), 1);
	end_target(target);
	check_refused(target, ESRCH);
	generation = 2;
	start_target_with_number(target);
	CHECK_EQ(generation_of(target), 2);
	/* Now without a call in between that is refused. */
	end_target(target);
	generation = 3;
	start_target_with_number(target);
	CHECK_EQ(generation_of(target), 3);
}
