/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A self-test is a list of claims. Each runs in a process of its own, with a time limit, and becomes one line of TAP.
 *
 *	CLAIM(a_child_has_another_number)
 *	{
 *		CHECK(fork() != getpid());
 *	}
 *
 * Called with the name of a claim, a program tests that one alone. A storm is called with its seconds, and maybe with a
 * number from which it makes its random ones.
 */
#ifndef CLAIMS_H
#define CLAIMS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
/* The kernel's struct sigcontext is used, and not that of the C library. */
#define _BITS_SIGCONTEXT_H 1
#include <asm/sigcontext.h>
#include <linux/process_vm_exec.h>

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef __NR_process_vm_exec
#define __NR_process_vm_exec 511
#endif

/* A program that is for kernels without the call too says false. */
#ifndef NEEDS_THE_CALL
#define NEEDS_THE_CALL true
#endif

#define MAX_CLAIMS 128
/* What a skipped test exits with, here as in the kernel's own self-tests. */
#define STATUS_SKIPPED 4
/* Seconds that a claim may take, on a plain kernel. */
#define CLAIM_SECONDS 20

struct claim {
	const char *name;
	void (*body)(void);
	unsigned int seconds;
};

static struct claim claims[MAX_CLAIMS];
static unsigned int claim_count;
/* What storms get as their arguments: how long they take, and a number to start from. */
static unsigned int storm_seconds;
static unsigned long storm_seed;
/* Shared with the processes that check claims. */
static char *skip_reason;

#define CLAIM(claim_name) CLAIM_WITHIN(claim_name, CLAIM_SECONDS)
#define CLAIM_WITHIN(claim_name, limit)                                                   \
	static void claim_name(void);                                                     \
	__attribute__((constructor)) static void register_##claim_name(void)              \
	{                                                                                 \
		claims[claim_count++] = (struct claim){ #claim_name, claim_name, limit }; \
	}                                                                                 \
	static void claim_name(void)

#define CHECK(condition)                                                                       \
	do {                                                                                   \
		if (!(condition))                                                              \
			fail("%s:%d: not true: %s (errno: %s)", __FILE_NAME__, __LINE__, #condition, \
			     strerror(errno));                                                 \
	} while (0)

/* Two numbers are equal; if not, both are told. */
#define CHECK_EQ(left, right)                                                                    \
	do {                                                                                     \
		long long left_value = (long long)(left), right_value = (long long)(right);      \
		if (left_value != right_value)                                                   \
			fail("%s:%d: %s is %lld (%#llx), and not %s, which is %lld (%#llx) (errno: %s)", \
			     __FILE_NAME__, __LINE__, #left, left_value, left_value, #right, right_value, \
			     right_value, strerror(errno));                                      \
	} while (0)

/* The call fails in this way. */
#define CHECK_FAILS(call, number)                                                                \
	do {                                                                                     \
		long fails_result;                                                               \
		errno = 0;                                                                       \
		fails_result = (call);                                                           \
		if (fails_result != -1 || errno != (number))                                     \
			fail("%s:%d: %s: result %ld, errno %s, expected -1 and %s", __FILE_NAME__, __LINE__, \
			     #call, fails_result, strerrorname_np(errno), strerrorname_np(number)); \
	} while (0)

/* A line of diagnostics, written at once so that those of several processes do not mix. */
__attribute__((format(printf, 1, 2))) static inline void note(const char *format, ...)
{
	char line[512] = "# ";
	va_list arguments;
	size_t length;

	va_start(arguments, format);
	vsnprintf(line + 2, sizeof(line) - 3, format, arguments);
	va_end(arguments);
	length = strlen(line);
	line[length++] = '\n';
	if (write(STDOUT_FILENO, line, length) < 0)
		_exit(EXIT_FAILURE);
}

#define fail(...)                    \
	do {                         \
		note(__VA_ARGS__);   \
		_exit(EXIT_FAILURE); \
	} while (0)

#define skip(...)                                               \
	do {                                                    \
		snprintf(skip_reason, 256, __VA_ARGS__);        \
		_exit(STATUS_SKIPPED);                          \
	} while (0)

/* How much longer things take on this kernel than on a plain one. */
static inline unsigned int slowness(void)
{
	const char *text = getenv("PVX_SLOWNESS");
	int number = text ? atoi(text) : 1;

	return number > 0 ? (unsigned int)number : 1;
}

static inline int64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static inline void sleep_ms(long ms)
{
	struct timespec time = { ms / 1000, ms % 1000 * 1000000 };

	while (nanosleep(&time, &time) == -1 && errno == EINTR)
		;
}

/* Waits for the process, but not for ever. Returns false if it has not ended till then. */
static inline bool wait_for(pid_t pid, int *status, unsigned int seconds)
{
	int64_t deadline = now_ns() + (int64_t)seconds * 1000000000LL;

	for (;;) {
		pid_t ended = waitpid(pid, status, WNOHANG | __WALL);

		if (ended == pid)
			return true;
		if ((ended == -1 && errno != EINTR) || now_ns() > deadline)
			return false;
		usleep(500);
	}
}

/* Returns whether the claim is not false. */
static inline bool run_claim(const struct claim *claim, unsigned int number)
{
	const unsigned int seconds = claim->seconds * slowness() + storm_seconds;
	bool holds = false;
	int status = 0;
	pid_t pid;

	skip_reason[0] = 0;
	pid = fork();
	if (pid == 0) {
		setpgid(0, 0);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		claim->body();
		_exit(EXIT_SUCCESS);
	}
	setpgid(pid, pid);
	if (!wait_for(pid, &status, seconds)) {
		note("not done after %u s", seconds);
		kill(-pid, SIGKILL);
		if (!wait_for(pid, &status, 5))
			note("and cannot be killed");
	} else if (WIFSIGNALED(status)) {
		note("ended by signal %d", WTERMSIG(status));
	} else if (WEXITSTATUS(status) == EXIT_SUCCESS || WEXITSTATUS(status) == STATUS_SKIPPED) {
		holds = true;
	}
	kill(-pid, SIGKILL);
	printf("%s %u - %s", holds ? "ok" : "not ok", number, claim->name);
	if (skip_reason[0])
		printf(" # SKIP %s", skip_reason);
	printf("\n");
	return holds;
}

int main(int argc, char **argv)
{
	bool is_there = !NEEDS_THE_CALL || syscall(__NR_process_vm_exec, 0, 0, PROCESS_VM_EXEC_QUERY, 0, 0, 0) != -1;
	unsigned int number, planned = claim_count, failed = 0;
	const char *only = argc > 1 ? argv[1] : NULL;

	if (only && only[0] >= '0' && only[0] <= '9') {
		storm_seconds = (unsigned int)atoi(only);
		storm_seed = argc > 2 ? strtoul(argv[2], NULL, 0) : (unsigned long)now_ns();
	} else if (only) {
		planned = 0;
		for (number = 0; number < claim_count; number++) {
			if (strcmp(claims[number].name, only) == 0)
				claims[planned++] = claims[number];
		}
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("TAP version 13\n1..%u\n", planned);
	skip_reason = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (number = 0; number < planned; number++) {
		if (!is_there) {
			printf("# this kernel has no process_vm_exec\nnot ok %u - %s\n", number + 1,
			       claims[number].name);
			failed++;
			continue;
		}
		failed += !run_claim(&claims[number], number + 1);
	}
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
