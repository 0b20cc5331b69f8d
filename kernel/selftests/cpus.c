// SPDX-License-Identifier: GPL-2.0-only
/* What the scheduler keeps in user memory, and what orders memory across processors: rseq, mm_cid, membarrier. */
#include "guests.h"

#include <linux/membarrier.h>
#include <linux/rseq.h>
#include <sys/rseq.h>

#define ROUNDS 20000
#define POISON 0x5eed5eed

/* The other side of `order`, below: rdi is the round, rsi ours, rdx theirs, r12 what we saw. */
GUEST(other_side, "mov $1, %ebx; 1: cmp %rbx, (%rdi); jb 1b; mov %rbx, (%rsi); mov (%rdx), %rax; mov %rax, (%r12);"
		  "mov %rbx, 8(%r12); inc %rbx; cmp $20001, %rbx; jb 1b; mov $7777, %eax; syscall");

/* The C library has registered it. */
static struct rseq *area(void)
{
	return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

/* mm_cid stands behind what this header may know of. */
static int concurrency_id(void)
{
	return ((volatile int *)area())[6];
}

static void need_rseq(void)
{
	if (__rseq_size == 0)
		skip("the C library has not registered rseq");
}

static void pin(pid_t thread, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	CHECK_EQ(sched_setaffinity(thread, sizeof(set), &set), 0);
}

static pid_t caller;
static int cpus;

/* Has the caller migrated all the time, and preempted: there are more of us than processors. */
static void *disturb(void *argument)
{
	int i;

	for (i = 0; i < 40; i++) {
		pin(caller, i % cpus);
		usleep(2000);
	}
	kill(getpid(), SIGUSR1);
	return argument;
}

static void run_disturbed(struct guest *guest)
{
	pthread_t thread;

	cpus = (int)sysconf(_SC_NPROCESSORS_ONLN);
	caller = (pid_t)syscall(SYS_gettid);
	block(SIGUSR1);
	guest->mask |= SET(SIGUSR1);
	thread = start_thread(disturb, NULL);
	CHECK_EQ(run(guest), SIGUSR1);
	pthread_join(thread, NULL);
}

CLAIM(the_callers_rseq_area_is_never_written_in_the_targets_memory)
{
	struct guest guest = new_guest(spin);
	unsigned int poison = POISON;
	volatile uint64_t *words = shared_words();

	need_rseq();
	/* The target's own thread must not write its area either. */
	end_target(guest.target);
	guest.target = fork();
	if (guest.target == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (syscall(SYS_rseq, area(), 32, RSEQ_FLAG_UNREGISTER, RSEQ_SIG) == 0)
			words[0] = 1;
		for (;;)
			pause();
	}
	wait_until_set(&words[0]);
	write_target(guest.target, (void *)&area()->cpu_id_start, &poison, sizeof(poison));
	write_target(guest.target, (void *)&area()->cpu_id, &poison, sizeof(poison));
	run_disturbed(&guest);
	CHECK_EQ(TARGETS(guest.target, area()->cpu_id_start), POISON);
	CHECK_EQ(TARGETS(guest.target, area()->cpu_id), POISON);
}

CLAIM(the_callers_rseq_area_is_right_when_it_comes_back)
{
	struct guest guest = new_guest(spin);
	unsigned int now, noted, before;
	int i;

	need_rseq();
	for (i = 0; i < 3; i++) {
		run_disturbed(&guest);
		do {
			before = (unsigned int)sched_getcpu();
			noted = *(volatile unsigned int *)&area()->cpu_id;
			syscall(SYS_getcpu, &now, NULL, NULL);
		} while (now != before);
		CHECK_EQ(noted, now);
	}
}

CLAIM(a_target_without_memory_where_the_callers_rseq_area_is_kills_nobody)
{
	struct guest guest = { .mask = FAULTS };
	volatile uint64_t *words = shared_words();
	uintptr_t page = (uintptr_t)area() & ~(PAGE - 1);

	need_rseq();
	set_registers(&guest, spin);
	guest.target = fork();
	if (guest.target == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		syscall(SYS_rseq, area(), 32, RSEQ_FLAG_UNREGISTER, RSEQ_SIG);
		/* Nothing that needs thread-local storage after this: munmap(page, 4096), words[0] = 1, pause() */
		__asm__ volatile("mov $11, %%eax; syscall; movq $1, (%%rbx); 1: mov $34, %%eax; syscall; jmp 1b"
				 :
				 : "D"(page), "S"(PAGE), "b"(words)
				 : "rax", "rcx", "r11", "memory");
		__builtin_unreachable();
	}
	wait_until_set(&words[0]);
	run_disturbed(&guest);
	CHECK(*(volatile unsigned int *)&area()->cpu_id < (unsigned int)cpus);
}

static struct guest shared_guest;
static volatile bool stop;
/* How many threads have each concurrency id right now, as far as we can see. */
static int bad_ids;

static void *run_and_look(void *argument)
{
	struct guest guest = shared_guest;
	int limit = *(int *)argument;

	while (!stop) {
		run_to_call(&guest, NR_OURS);
		if (concurrency_id() < 0 || concurrency_id() >= limit)
			__atomic_add_fetch(&bad_ids, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

CLAIM(concurrency_ids_of_threads_that_come_back_stay_within_bounds)
{
	/* No more than processors, and no more than threads: sched/mm_cid. */
	int limit = (int)sysconf(_SC_NPROCESSORS_CONF), i;
	pthread_t threads[4];

	need_rseq();
	shared_guest = new_guest(call_for_ever);
	for (i = 0; i < 4; i++)
		threads[i] = start_thread(run_and_look, &limit);
	sleep_ms(500);
	stop = true;
	for (i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	CHECK_EQ(bad_ids, 0);
}

struct order {
	/* On lines of their own. */
	volatile uint64_t round __attribute__((aligned(128)));
	volatile uint64_t ours __attribute__((aligned(128)));
	volatile uint64_t theirs __attribute__((aligned(128)));
	/* What the guest saw of ours, and in which round. */
	volatile uint64_t seen[2] __attribute__((aligned(128)));
};

/*
 * Each side stores its own word and looks at the other's. The guest has no barrier in between; membarrier(2), called
 * by a thread that has the same memory, has to make up for it. If both see the old value, it has missed the guest.
 */
static uint64_t missed(volatile struct order *order)
{
	uint64_t round, saw, count = 0;

	if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) != 0)
		return 0;
	for (round = 1; round <= ROUNDS; round++) {
		order->round = round;
		order->ours = round;
		syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
		saw = order->theirs;
		while (order->seen[1] < round)
			__builtin_ia32_pause();
		count += saw != round && order->seen[0] != round;
	}
	return count;
}

CLAIM_WITHIN(a_membarrier_of_the_target_reaches_the_task_that_is_inside, 60)
{
	volatile struct order *order = (volatile struct order *)shared_words();
	volatile uint64_t *result = shared_words();
	struct guest guest = { .mask = FAULTS };

	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		skip("one processor");
	set_registers(&guest, other_side);
	regs(&guest)->rdi = (uintptr_t)&order->round;
	regs(&guest)->rsi = (uintptr_t)&order->theirs;
	regs(&guest)->rdx = (uintptr_t)&order->ours;
	regs(&guest)->r12 = (uintptr_t)&order->seen;
	guest.target = fork();
	if (guest.target == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		result[1] = missed(order);
		result[0] = 1;
		for (;;)
			pause();
	}
	run_to_call(&guest, NR_OURS);
	while (!result[0])
		sched_yield();
	CHECK_EQ(result[1], 0);
}

static void *barriers(void *argument)
{
	static const int commands[] = { MEMBARRIER_CMD_GLOBAL_EXPEDITED, MEMBARRIER_CMD_PRIVATE_EXPEDITED,
					MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ };
	int i;

	for (i = 0; i < 400; i++)
		CHECK_EQ(syscall(SYS_membarrier, commands[i % 4], 0, 0), 0);
	stop = true;
	return argument;
}

CLAIM(membarriers_of_the_caller_work_while_its_threads_go_in_and_out)
{
	struct guest guest = new_guest(call_for_ever);
	static const int registrations[] = { MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED,
					     MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED,
					     MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE,
					     MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ };
	pthread_t thread;
	int i;

	for (i = 0; i < 4; i++)
		CHECK_EQ(syscall(SYS_membarrier, registrations[i], 0, 0), 0);
	thread = start_thread(barriers, NULL);
	while (!stop)
		run_to_call(&guest, NR_OURS);
	pthread_join(thread, NULL);
}
