// SPDX-License-Identifier: GPL-2.0-only
/*
 * How many instructions some calls take, from user mode back to user mode: to compare kernels with and without the
 * patches. The machine's time stamp counter has to count instructions, as QEMU's does with "-icount shift=0".
 */
#define NEEDS_THE_CALL false
#include "claims.h"

#include <x86intrin.h>

#define BATCHES 200
/*
 * How often a batch does it. Most batches should see no timer interrupt, nor the parent, which looks whether we are
 * done after each 500000 instructions.
 */
#define ROUNDS 50
#define ROUNDS_OF_PROCESSES 2

static pid_t self;
static char *page;
static int pipe_ends[2];

/* A system call and nothing else. */
static inline long call(long number, long first, long second, long third)
{
	long result = number;

	asm volatile("syscall"
		     : "+a"(result)
		     : "D"(first), "S"(second), "d"(third)
		     : "rcx", "r11", "memory");
	return result;
}

/* What is counted. */

static void nothing(void)
{
}

static void call_getppid(void)
{
	call(SYS_getppid, 0, 0, 0);
}

static void call_sched_yield(void)
{
	call(SYS_sched_yield, 0, 0, 0);
}

static void write_and_read_pipe(void)
{
	char byte = 0;

	call(SYS_write, pipe_ends[1], (long)&byte, 1);
	call(SYS_read, pipe_ends[0], (long)&byte, 1);
}

static void drop_and_touch_page(void)
{
	call(SYS_madvise, (long)page, 4096, MADV_DONTNEED);
	*(volatile char *)page = 1;
}

static void signal_self(void)
{
	call(SYS_kill, self, SIGUSR1, 0);
}

static void handle(int signal)
{
	(void)signal;
}

static void fork_and_wait(void)
{
	pid_t child = (pid_t)call(SYS_fork, 0, 0, 0);

	if (child == 0)
		call(SYS_exit_group, 0, 0, 0);
	call(SYS_wait4, child, 0, 0);
}

/* Not to be made part of its caller, so that the loop is the same for all bodies. */
__attribute__((noipa)) static uint64_t batch(void (*body)(void), int rounds)
{
	const uint64_t start = __rdtsc();
	int i;

	for (i = 0; i < rounds; i++)
		body();
	return __rdtsc() - start;
}

static int compare(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* The lower quartile: what comes in between makes a batch longer, and seldom shorter. */
static uint64_t quartile(void (*body)(void), int rounds)
{
	uint64_t counts[BATCHES];
	int i;

	for (i = 0; i < BATCHES; i++)
		counts[i] = batch(body, rounds);
	qsort(counts, BATCHES, sizeof(*counts), compare);
	return counts[BATCHES / 4];
}

static void tell(const char *what, void (*body)(void), int rounds)
{
	const uint64_t count = quartile(body, rounds) - quartile(nothing, rounds);

	note("%s: %.2f instructions", what, (double)count / rounds);
}

/* The time of a loop with two instructions. */
static uint64_t time_of_loop(long turns)
{
	const uint64_t start = __rdtsc();

	asm volatile("1: dec %0; jnz 1b" : "+r"(turns));
	return __rdtsc() - start;
}

CLAIM(time_counts_instructions)
{
	int i;

	/* Interrupts come in between at times. */
	for (i = 0; i < 20; i++) {
		if (time_of_loop(2000) - time_of_loop(1000) == 2 * 1000)
			return;
	}
	fail("the time stamp counter does not count instructions: QEMU needs -icount shift=0");
}

CLAIM(getppid_is_counted)
{
	CHECK_EQ(call(SYS_getppid, 0, 0, 0), getppid());
	tell("getppid", call_getppid, ROUNDS);
}

CLAIM(sched_yield_is_counted)
{
	CHECK_EQ(call(SYS_sched_yield, 0, 0, 0), 0);
	tell("sched_yield", call_sched_yield, ROUNDS);
}

CLAIM(pipe_is_counted)
{
	char byte = 0;

	CHECK_EQ(pipe(pipe_ends), 0);
	CHECK_EQ(call(SYS_write, pipe_ends[1], (long)&byte, 1), 1);
	CHECK_EQ(call(SYS_read, pipe_ends[0], (long)&byte, 1), 1);
	tell("pipe, write and read", write_and_read_pipe, ROUNDS);
}

CLAIM(page_fault_is_counted)
{
	page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(page != MAP_FAILED);
	CHECK_EQ(call(SYS_madvise, (long)page, 4096, MADV_DONTNEED), 0);
	tell("madvise and page fault", drop_and_touch_page, ROUNDS);
}

CLAIM(signal_is_counted)
{
	self = getpid();
	CHECK(signal(SIGUSR1, handle) != SIG_ERR);
	CHECK_EQ(call(SYS_kill, self, SIGUSR1, 0), 0);
	tell("signal and handler", signal_self, ROUNDS);
}

CLAIM(process_is_counted)
{
	fork_and_wait();
	CHECK_EQ(call(SYS_wait4, -1, 0, 0), -ECHILD);
	tell("fork, exit and wait", fork_and_wait, ROUNDS_OF_PROCESSES);
}
