// SPDX-License-Identifier: GPL-2.0-only
/*
 * A storm: threads of several callers run in several targets, while signals arrive, memory is unmapped, and callers and
 * targets stop, end, and are replaced. All of it has to come to an end, and each caller has to be what it was.
 */
#include "guests.h"

#define TARGETS_COUNT 3
#define CALLERS 2
#define THREADS 3

GUEST(walk, "1: incq (%rdi); add $4096, %rdi; dec %rcx; jnz 1b; mov $7777, %eax; syscall");
GUEST(vectors, "pcmpeqb %xmm0, %xmm0; movdqa %xmm0, %xmm15; fninit; mov $7777, %eax; syscall; jmp vectors");

#define ARENA_PAGES 64

/* Shared by all processes. */
static struct {
	volatile pid_t targets[TARGETS_COUNT];
	volatile uint64_t runs;
	volatile uint64_t outcomes[8];
} *world;

static int64_t deadline;
static char *arena;
static const int signals[] = { SIGUSR1, SIGUSR2, SIGALRM };

static bool is_over(void)
{
	return now_ns() > deadline;
}

static uint64_t random_number(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void handler(int signal)
{
	(void)signal;
}

static void count(int outcome)
{
	__atomic_add_fetch(&world->outcomes[outcome], 1, __ATOMIC_RELAXED);
}

/* One run of a random kind in a random target. */
static void run_somewhere(uint64_t *random)
{
	static const char *const codes[] = { call_for_ever, spin, walk, vectors, spin };
	struct guest guest = { .mask = FAULTS | SET(SIGUSR1) };
	struct _fpstate state = { .mxcsr = 0x1f80 };
	uint64_t canary = random_number(random), copy = canary;
	int i;

	guest.target = world->targets[random_number(random) % TARGETS_COUNT];
	set_registers(&guest, codes[random_number(random) % 5]);
	regs(&guest)->rdi = (uintptr_t)arena;
	regs(&guest)->rcx = 1 + random_number(random) % (ARENA_PAGES + 8);
	if (random_number(random) % 4 == 0)
		regs(&guest)->fpstate = &state;
	for (i = 0; i < 20 && !is_over(); i++) {
		errno = 0;
		if (run_raw(&guest) == 0) {
			count(guest.info.si_signo == SIGSYS ? 0 : guest.info.si_signo == SIGUSR1 ? 1 : 2);
			if (guest.info.si_signo != SIGSYS && guest.info.si_signo != SIGUSR1)
				break;
		} else if (errno == EINTR) {
			count(3);
		} else if (errno == ESRCH) {
			count(4);
			break;
		} else {
			fail("errno %s", strerrorname_np(errno));
		}
		if (canary != copy)
			fail("the caller's stack has changed");
	}
}

static void call_somewhere(uint64_t *random)
{
	pid_t target = world->targets[random_number(random) % TARGETS_COUNT];
	long page = (long)arena + (long)(random_number(random) % ARENA_PAGES * PAGE);
	struct sigcontext uctx;
	long result = 0;

	switch (random_number(random) % 4) {
	case 0:
		result = call_raw(target, &uctx, SYS_munmap, (long[6]){ page, PAGE });
		break;
	case 1:
	case 2:
		result = call_raw(target, &uctx, SYS_mmap,
				  (long[6]){ page, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0 });
		break;
	case 3:
		result = call_raw(target, &uctx, SYS_madvise, (long[6]){ page, PAGE, MADV_DONTNEED });
		break;
	}
	if (result != 0 && errno != ESRCH && errno != EINTR)
		fail("errno %s", strerrorname_np(errno));
	count(5);
}

static volatile int running;

static void *storm(void *argument)
{
	uint64_t random = (uintptr_t)argument | 1;

	while (!is_over()) {
		if (random_number(&random) % 8 == 0)
			call_somewhere(&random);
		else
			run_somewhere(&random);
		__atomic_add_fetch(&world->runs, 1, __ATOMIC_RELAXED);
	}
	__atomic_sub_fetch(&running, 1, __ATOMIC_SEQ_CST);
	/* Threads that have ended cannot be sent a signal any more. */
	while (running)
		usleep(1000);
	return NULL;
}

/* A caller: some threads in the storm, and one that disturbs them. */
static void be_caller(uint64_t random)
{
	pthread_t threads[THREADS];
	size_t i;

	for (i = 0; i < 3; i++) {
		struct sigaction action = { .sa_handler = handler, .sa_flags = i == 1 ? SA_RESTART : 0 };

		CHECK_EQ(sigaction(signals[i], &action, NULL), 0);
	}
	running = THREADS;
	for (i = 0; i < THREADS; i++)
		threads[i] = start_thread(storm, (void *)(uintptr_t)random_number(&random));
	while (running) {
		usleep(1 + (unsigned int)(random_number(&random) % 3000));
		pthread_kill(threads[random_number(&random) % THREADS], signals[random_number(&random) % 3]);
		/* What spins when all is over needs a signal that ends the run. */
		for (i = 0; i < THREADS && is_over() && running; i++)
			pthread_kill(threads[i], SIGUSR1);
	}
	for (i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	_exit(EXIT_SUCCESS);
}

static void *have_own_life(void *argument)
{
	for (;;)
		usleep(100);
	return argument;
}

static pid_t start_stormy_target(void)
{
	pid_t child = fork();

	CHECK(child != -1);
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		start_thread(have_own_life, NULL);
		for (;;)
			pause();
	}
	return child;
}

static pid_t start_stormy_caller(uint64_t random)
{
	pid_t child = fork();

	CHECK(child != -1);
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		be_caller(random);
	}
	return child;
}

CLAIM_WITHIN(callers_and_targets_come_through_a_storm, 30)
{
	pid_t callers[CALLERS];
	uint64_t random = storm_seed | 1;
	unsigned int i, killed = 0, replaced = 0;
	int status;

	note("seed %#lx, %u s", storm_seed, storm_seconds);
	deadline = now_ns() + storm_seconds * 1000000000LL;
	world = (void *)shared_words();
	/* Nothing of ours may be behind it, where guests walk on. */
	arena = mmap(NULL, 2 * ARENA_PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(arena != MAP_FAILED);
	CHECK_EQ(mprotect(arena, ARENA_PAGES * PAGE, PROT_READ | PROT_WRITE), 0);
	for (i = 0; i < TARGETS_COUNT; i++)
		world->targets[i] = start_stormy_target();
	for (i = 0; i < CALLERS; i++)
		callers[i] = start_stormy_caller(random_number(&random));
	while (!is_over()) {
		usleep(20000);
		i = (unsigned int)(random_number(&random) % TARGETS_COUNT);
		switch (random_number(&random) % 6) {
		case 0:
			kill(world->targets[i], SIGSTOP);
			usleep(2000);
			kill(world->targets[i], SIGCONT);
			break;
		case 1:
			end_target(world->targets[i]);
			world->targets[i] = start_stormy_target();
			replaced++;
			break;
		case 2:
			i %= CALLERS;
			kill(callers[i], SIGSTOP);
			usleep(2000);
			kill(callers[i], SIGCONT);
			break;
		case 3:
			i %= CALLERS;
			/* It may have come to its end, as of now. */
			if (is_over())
				break;
			kill(callers[i], SIGKILL);
			if (!wait_for(callers[i], &status, 10 * slowness()))
				fail("a caller cannot be killed");
			if (!is_over() && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL))
				fail("a caller has ended: %#x", status);
			callers[i] = start_stormy_caller(random_number(&random));
			killed++;
			break;
		default:
			break;
		}
	}
	for (i = 0; i < CALLERS; i++) {
		if (!wait_for(callers[i], &status, 20 * slowness()))
			fail("a caller does not end");
		if (status != 0)
			fail("a caller has ended: %#x", status);
	}
	note("%llu rounds: %llu calls, %llu signals, %llu faults, %llu interrupted, %llu without target, %llu system calls;"
	     " %u callers and %u targets killed",
	     (unsigned long long)world->runs, (unsigned long long)world->outcomes[0], (unsigned long long)world->outcomes[1],
	     (unsigned long long)world->outcomes[2], (unsigned long long)world->outcomes[3],
	     (unsigned long long)world->outcomes[4], (unsigned long long)world->outcomes[5], killed, replaced);
	CHECK(world->outcomes[0] > 0);
}
