// SPDX-License-Identifier: GPL-2.0-only
/* Targets that end, or change, while somebody is inside; tasks that share memory; work that waits for the caller. */
#include "guests.h"

#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/sched.h>
#include <sys/stat.h>

GUEST(end_at_once, "mov $7777, %eax; syscall");
/* Touches page after page from rdi on, for ever. */
GUEST(eat, "1: lock incq (%rsi); movb $1, (%rdi); add $4096, %rdi; jmp 1b");

static volatile uint64_t *counter;
static struct guest guest;

static void make_counter(uint64_t mask)
{
	counter = shared_words();
	guest = new_guest(count_for_ever);
	guest.mask = mask;
	regs(&guest)->rdi = (uintptr_t)counter;
}

/* A child that does something when the guest runs, and then sends SIGUSR1. */
static void when_inside(void (*body)(void))
{
	pid_t parent = getpid(), child = fork();

	CHECK(child != -1);
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		wait_for_change(counter);
		body();
		kill(parent, SIGUSR1);
		_exit(EXIT_SUCCESS);
	}
}

static void kill_target(void)
{
	kill(guest.target, SIGKILL);
	/* Long enough for what the kernel has to do now and then in the caller, such as for concurrency ids. */
	sleep_ms(300);
}

CLAIM(a_target_that_is_killed_ends_and_a_run_in_its_memory_goes_on)
{
	int status;

	make_counter(SET(SIGUSR1));
	block(SIGUSR1);
	when_inside(kill_target);
	CHECK_EQ(run(&guest), SIGUSR1);
	/* It has ended in spite of us. */
	CHECK_EQ(waitpid(guest.target, &status, 0), guest.target);
	CHECK(WIFSIGNALED(status));
	CHECK_FAILS(run_raw(&guest), ESRCH);
	CHECK_FAILS(call_raw(guest.target, regs(&guest), SYS_getpid, (long[6]){ 0 }), ESRCH);
}

static volatile uint64_t *proceed;

/* A target that executes another program when it is told to. */
static pid_t start_executing_target(void)
{
	pid_t child = fork();

	CHECK(child != -1);
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (!*proceed)
			sched_yield();
		execl("/bin/busybox", "busybox", "sleep", "100", NULL);
		_exit(EXIT_FAILURE);
	}
	return child;
}

static void have_target_exec(void)
{
	*proceed = 1;
	sleep_ms(300);
}

CLAIM(a_target_that_execs_leaves_a_run_its_memory_and_has_a_new_one_for_the_next_call)
{
	make_counter(SET(SIGUSR1) | FAULTS);
	end_target(guest.target);
	proceed = shared_words();
	guest.target = start_executing_target();
	block(SIGUSR1);
	when_inside(have_target_exec);
	CHECK_EQ(run(&guest), SIGUSR1);
	/* The next call gets the new memory. */
	CHECK_EQ(call_in(guest.target, SYS_getpid), getpid());
	/* What was mapped is not there any more. */
	CHECK_EQ(call_in(guest.target, SYS_mmap, (long)counter, PAGE, PROT_READ,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
		 counter);
}

static void *be_there(void *argument)
{
	volatile uint64_t *words = argument;

	words[1]++;
	for (;;)
		words[0]++;
	return NULL;
}

CLAIM(threads_of_the_target_may_end_while_somebody_is_inside)
{
	volatile uint64_t *words;
	int i;

	make_counter(SET(SIGUSR1));
	words = shared_words();
	end_target(guest.target);
	guest.target = fork();
	if (guest.target == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		/* The main thread ends, and another goes on. */
		start_thread(be_there, (void *)words);
		syscall(SYS_exit, 0);
	}
	wait_for_change(&words[0]);
	sleep_ms(20);
	block(SIGUSR1);
	for (i = 0; i < 3; i++) {
		signal_later(SIGUSR1, 20);
		errno = 0;
		/* The thread group's leader has no memory any more, which is what /proc/PID/mem says too. */
		if (run_raw(&guest) == 0)
			CHECK_EQ(guest.info.si_signo, SIGUSR1);
		else
			CHECK_EQ(errno, ESRCH);
	}
	wait_for_change(&words[0]);
}

static char child_stack[16 * PAGE] __attribute__((aligned(16)));

static int sleep_for_ever(void *argument)
{
	while (!argument)
		pause();
	return EXIT_FAILURE;
}

CLAIM(a_process_that_shares_the_targets_memory_keeps_it_when_the_target_ends)
{
	volatile uint64_t *words;
	pid_t second;

	make_counter(SET(SIGUSR1));
	words = shared_words();
	end_target(guest.target);
	guest.target = fork();
	if (guest.target == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		second = clone(sleep_for_ever, child_stack + sizeof(child_stack), CLONE_VM | SIGCHLD, NULL);
		words[1] = (uint64_t)second;
		words[0] = 1;
		for (;;)
			pause();
	}
	wait_until_set(&words[0]);
	second = (pid_t)words[1];
	block(SIGUSR1);
	when_inside(kill_target);
	CHECK_EQ(run(&guest), SIGUSR1);
	waitpid(guest.target, NULL, 0);
	CHECK_FAILS(run_raw(&guest), ESRCH);
	guest.target = second;
	signal_later(SIGUSR1, 20);
	CHECK_EQ(run(&guest), SIGUSR1);
	kill(second, SIGKILL);
}

static int run_as_child(void *argument)
{
	(void)argument;
	set_registers(&guest, end_at_once);
	return process_vm_exec(guest.target, &guest.context, EXTENDED, &guest.info, &guest.mask, SIZEMASK) == 0 ? 7 : 8;
}

CLAIM(a_child_that_shares_the_callers_memory_makes_calls_of_its_own)
{
	int status, i;
	pid_t child;

	guest = new_guest(end_at_once);
	for (i = 0; i < 20; i++) {
		/* As vfork does it, and side by side. */
		child = clone(run_as_child, child_stack + sizeof(child_stack), CLONE_VM | (i % 2 ? CLONE_VFORK : 0) | SIGCHLD,
			      NULL);
		CHECK(child != -1);
		CHECK_EQ(waitpid(child, &status, 0), child);
		CHECK(WIFEXITED(status));
		CHECK_EQ(WEXITSTATUS(status), 7);
		CHECK_EQ(guest.info.si_syscall, NR_OURS);
	}
	CHECK_EQ(call_in(guest.target, SYS_getpid), getpid());
}

static int count_as_child(void *argument)
{
	while (!argument)
		run_raw(&guest);
	return EXIT_FAILURE;
}

CLAIM(a_child_that_shares_the_callers_memory_may_be_killed_inside)
{
	pid_t child;
	int i;

	for (i = 0; i < 10; i++) {
		make_counter(FAULTS);
		child = clone(count_as_child, child_stack + sizeof(child_stack), CLONE_VM | SIGCHLD, NULL);
		CHECK(child != -1);
		wait_for_change(counter);
		kill(child, SIGKILL);
		CHECK_EQ(waitpid(child, NULL, 0), child);
		CHECK_EQ(call_in(guest.target, SYS_getpid), getpid());
		end_target(guest.target);
	}
}

CLAIM(two_processes_run_in_each_others_memory)
{
	volatile uint64_t *words = shared_words();
	struct guest there = { .mask = SET(SIGUSR1) }, here = { .mask = SET(SIGUSR1), .target = getpid() };
	int i;

	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
	set_registers(&there, count_for_ever);
	set_registers(&here, count_for_ever);
	regs(&there)->rdi = (uintptr_t)&words[0];
	regs(&here)->rdi = (uintptr_t)&words[1];
	block(SIGUSR1);
	there.target = fork();
	if (there.target == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (i = 0; i < 5; i++)
			run(&here);
		for (;;)
			pause();
	}
	wait_for_change(&words[1]);
	for (i = 0; i < 5; i++) {
		signal_later(SIGUSR1, 20);
		CHECK_EQ(run(&there), SIGUSR1);
		kill(there.target, SIGUSR1);
	}
	CHECK(words[0] > 0);
}

CLAIM(who_runs_in_a_task_that_is_inside_gets_that_tasks_own_memory)
{
	static uint64_t whose = 1;
	pid_t middle;

	/* The innermost target says 1, the task inside it says 2. */
	make_counter(FAULTS);
	whose = 2;
	middle = fork();
	if (middle == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			run_raw(&guest);
	}
	wait_for_change(counter);
	whose = 3;
	CHECK_EQ(TARGETS(guest.target, whose), 1);
	CHECK_EQ(TARGETS(middle, whose), 2);
	{
		int ends[2];
		uint64_t value = 0;

		CHECK_EQ(pipe(ends), 0);
		CHECK_EQ(call_in(middle, SYS_write, ends[1], (long)&whose, sizeof(whose)), sizeof(whose));
		CHECK_EQ(read(ends[0], &value, sizeof(value)), sizeof(value));
		CHECK_EQ(value, 2);
	}
}

/* io_uring without a library: one entry at a time. */
struct ring {
	int descriptor;
	struct io_uring_params params;
	char *rings;
	struct io_uring_sqe *entries;
};

static struct ring make_ring(void)
{
	struct ring ring = { 0 };

	ring.descriptor = (int)syscall(SYS_io_uring_setup, 4, &ring.params);
	if (ring.descriptor == -1)
		skip("no io_uring here");
	ring.rings = mmap(NULL, ring.params.sq_off.array + 4 * ring.params.sq_entries + PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
			  ring.descriptor, IORING_OFF_SQ_RING);
	ring.entries = mmap(NULL, ring.params.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE, MAP_SHARED,
			    ring.descriptor, IORING_OFF_SQES);
	CHECK(ring.rings != MAP_FAILED && ring.entries != MAP_FAILED);
	return ring;
}

static void submit_read(struct ring *ring, int file, void *buffer, unsigned int size)
{
	volatile unsigned int *tail = (void *)(ring->rings + ring->params.sq_off.tail);
	unsigned int *array = (void *)(ring->rings + ring->params.sq_off.array);
	unsigned int index = *tail & (ring->params.sq_entries - 1);

	memset(&ring->entries[index], 0, sizeof(ring->entries[index]));
	ring->entries[index].opcode = IORING_OP_READ;
	ring->entries[index].fd = file;
	ring->entries[index].addr = (uintptr_t)buffer;
	ring->entries[index].len = size;
	array[index] = index;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	CHECK_EQ(syscall(SYS_io_uring_enter, ring->descriptor, 1, 0, 0, NULL, 0), 1);
}

static unsigned int completions(struct ring *ring)
{
	return __atomic_load_n((unsigned int *)(void *)(ring->rings + ring->params.cq_off.tail), __ATOMIC_ACQUIRE);
}

static int ends[2];
static char buffer[16];

static void write_to_pipe(void)
{
	if (write(ends[1], "completed", 10) != 10)
		_exit(EXIT_FAILURE);
	sleep_ms(50);
}

CLAIM(io_uring_completes_into_the_callers_memory_while_the_caller_is_inside)
{
	struct ring ring = make_ring();
	int i;

	for (i = 1; i <= 5; i++) {
		memset(buffer, 0, sizeof(buffer));
		make_counter(SET(SIGUSR1));
		block(SIGUSR1);
		CHECK_EQ(pipe(ends), 0);
		submit_read(&ring, ends[0], buffer, sizeof(buffer));
		CHECK_EQ(completions(&ring), i - 1);
		when_inside(write_to_pipe);
		CHECK_EQ(run(&guest), SIGUSR1);
		syscall(SYS_io_uring_enter, ring.descriptor, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
		CHECK_EQ(completions(&ring), i);
		CHECK_EQ(strcmp(buffer, "completed"), 0);
		CHECK_EQ(TARGETS(guest.target, buffer[0]), 0);
		end_target(guest.target);
		close(ends[0]);
		close(ends[1]);
	}
}

static void write_to(const char *path, const char *text)
{
	int file = open(path, O_WRONLY);

	if (file == -1 || write(file, text, strlen(text)) != (ssize_t)strlen(text))
		skip("cannot write \"%s\" to %s: %s", text, path, strerror(errno));
	close(file);
}

CLAIM_WITHIN(a_target_that_runs_out_of_memory_dies_and_the_caller_lives, 40)
{
	const char *const group = "/sys/fs/cgroup/small";
	char *memory = mmap(NULL, 1UL << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char path[64], number[16];
	int status;

	CHECK(memory != MAP_FAILED);
	write_to("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	if (mkdir(group, 0755) == -1 && errno != EEXIST)
		skip("no control groups here");
	snprintf(path, sizeof(path), "%s/memory.max", group);
	write_to(path, "16M");
	make_counter(FAULTS | SET(SIGUSR1));
	set_registers(&guest, eat);
	regs(&guest)->rsi = (uintptr_t)counter;
	regs(&guest)->rdi = (uintptr_t)memory;
	snprintf(path, sizeof(path), "%s/cgroup.procs", group);
	snprintf(number, sizeof(number), "%d", guest.target);
	write_to(path, number);
	block(SIGUSR1);
	signal_later(SIGUSR1, 15000);
	CHECK_EQ(run(&guest), SIGBUS);
	note("%llu pages", (unsigned long long)*counter);
	CHECK(wait_for(guest.target, &status, 10));
	CHECK(WIFSIGNALED(status));
	CHECK_EQ(WTERMSIG(status), SIGKILL);
	CHECK_FAILS(run_raw(&guest), ESRCH);
	rmdir(group);
}

static void run_out_of_memory(void *argument)
{
	char *memory = argument;
	unsigned long i;

	write_to("/sys/fs/cgroup/small2/cgroup.procs", "0");
	for (i = 0;; i += PAGE)
		memory[i] = 1;
}

static void *stay_inside(void *argument)
{
	run_raw(&guest);
	return argument;
}

static void run_out_of_memory_with_a_thread_inside(void *argument)
{
	start_thread(stay_inside, NULL);
	wait_for_change(counter);
	run_out_of_memory(argument);
}

CLAIM_WITHIN(a_caller_that_runs_out_of_memory_dies_though_a_thread_of_it_is_inside, 40)
{
	char *memory = mmap(NULL, 1UL << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int status;

	write_to("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	if (mkdir("/sys/fs/cgroup/small2", 0755) == -1 && errno != EEXIST)
		skip("no control groups here");
	write_to("/sys/fs/cgroup/small2/memory.max", "16M");
	make_counter(FAULTS);
	status = status_of(run_out_of_memory_with_a_thread_inside, memory);
	CHECK(WIFSIGNALED(status));
	CHECK_EQ(WTERMSIG(status), SIGKILL);
	CHECK_EQ(waitpid(guest.target, &status, WNOHANG), 0);
	CHECK_EQ(call_in(guest.target, SYS_getpid), getpid());
	rmdir("/sys/fs/cgroup/small2");
}

CLAIM(a_caller_that_has_been_inside_forks_and_execs_as_ever)
{
	int status;
	pid_t child;

	guest = new_guest(call_for_ever);
	run_to_call(&guest, NR_OURS);
	child = fork();
	if (child == 0) {
		/* A copy of the caller has nothing of the caller's business, and can have its own. */
		run_to_call(&guest, NR_OURS);
		execl("/bin/busybox", "busybox", "true", NULL);
		_exit(EXIT_FAILURE);
	}
	CHECK(wait_for(child, &status, 10));
	CHECK_EQ(status, 0);
	run_to_call(&guest, NR_OURS);
}
