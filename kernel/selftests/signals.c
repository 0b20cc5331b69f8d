// SPDX-License-Identifier: GPL-2.0-only
/* Signals for the caller while it is inside: reported, delivered, stopping, killing. */
#include "guests.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>

/* Sums up rcx numbers and multiplies on the way, so that a lost register or instruction shows. */
GUEST(compute, "1: imul $31, %rbx, %rbx; add %rcx, %rbx; rol $7, %r12; xor %rbx, %r12; lea (%r12, %rcx), %r13; add %r13, %r14;"
	       "dec %rcx; jnz 1b; mov $7777, %eax; syscall");
GUEST(fault, "xor %edi, %edi; mov (%rdi), %rax");

#define STEPS 30000000UL

static volatile uint64_t *counter;
static volatile int handled;
static struct guest guest;

static void handler(int signal)
{
	(void)signal;
	handled++;
}

static void handle(int signal, void (*function)(int), int flags)
{
	struct sigaction action = { .sa_handler = function, .sa_flags = flags };

	CHECK_EQ(sigaction(signal, &action, NULL), 0);
}

/* A guest that counts for ever. */
static void make_counter(uint64_t mask)
{
	counter = shared_words();
	guest = new_guest(count_for_ever);
	guest.mask = mask;
	regs(&guest)->rdi = (uintptr_t)counter;
}

/* Sends `signal` when the guest runs. */
static pid_t signal_when_inside(int signal)
{
	pid_t parent = getpid(), child = fork();

	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		wait_for_change(counter);
		sleep_ms(10);
		kill(parent, signal);
		_exit(EXIT_SUCCESS);
	}
	return child;
}

static bool pends(int signal)
{
	sigset_t set;

	CHECK_EQ(sigpending(&set), 0);
	return sigismember(&set, signal);
}

CLAIM(a_pending_signal_of_the_mask_is_reported_and_taken_before_the_guest_runs)
{
	union sigval value = { .sival_int = 4711 };

	make_counter(SET(SIGUSR1));
	block(SIGUSR1);
	CHECK_EQ(sigqueue(getpid(), SIGUSR1, value), 0);
	CHECK_EQ(run(&guest), SIGUSR1);
	CHECK_EQ(guest.info.si_code, SI_QUEUE);
	CHECK_EQ(guest.info.si_pid, getpid());
	CHECK_EQ(guest.info.si_value.sival_int, 4711);
	CHECK(!pends(SIGUSR1));
	CHECK_EQ(regs(&guest)->rip, count_for_ever);
	CHECK_EQ(*counter, 0);
}

CLAIM(a_signal_of_the_mask_ends_the_run_and_another_run_goes_on)
{
	uint64_t before;
	int i;

	make_counter(SET(SIGUSR1));
	block(SIGUSR1);
	for (i = 0; i < 5; i++) {
		pid_t sender = signal_when_inside(SIGUSR1);

		before = *counter;
		CHECK_EQ(run(&guest), SIGUSR1);
		CHECK_EQ(guest.info.si_code, SI_USER);
		CHECK_EQ(guest.info.si_pid, sender);
		CHECK(*counter > before);
		CHECK(!pends(SIGUSR1));
	}
}

CLAIM(a_signal_of_the_mask_is_reported_though_it_is_not_blocked)
{
	make_counter(SET(SIGUSR1));
	handle(SIGUSR1, handler, 0);
	signal_when_inside(SIGUSR1);
	CHECK_EQ(run(&guest), SIGUSR1);
	CHECK_EQ(handled, 0);
}

static void run_to_signal(void *argument)
{
	signal_when_inside(SIGUSR1);
	CHECK_EQ(run(argument), SIGUSR1);
}

CLAIM(a_signal_of_the_mask_is_reported_instead_of_killing)
{
	make_counter(SET(SIGUSR1));
	CHECK_EQ(status_of(run_to_signal, &guest), 0);
}

CLAIM(a_signal_for_the_thread_alone_is_reported_too)
{
	make_counter(SET(SIGUSR2));
	block(SIGUSR2);
	CHECK_EQ(syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR2), 0);
	CHECK_EQ(run(&guest), SIGUSR2);
	CHECK_EQ(guest.info.si_code, SI_TKILL);
}

CLAIM(queued_signals_are_reported_one_by_one_in_their_order)
{
	int i;

	make_counter(SET(SIGRTMIN) | SET(SIGRTMIN + 1));
	block(SIGRTMIN);
	block(SIGRTMIN + 1);
	for (i = 0; i < 3; i++)
		sigqueue(getpid(), SIGRTMIN, (union sigval){ .sival_int = i });
	sigqueue(getpid(), SIGRTMIN + 1, (union sigval){ .sival_int = 3 });
	for (i = 0; i < 4; i++) {
		CHECK_EQ(run(&guest), i < 3 ? SIGRTMIN : SIGRTMIN + 1);
		CHECK_EQ(guest.info.si_value.sival_int, i);
	}
}

CLAIM(a_blocked_signal_outside_the_mask_stays_pending)
{
	make_counter(SET(SIGUSR1));
	block(SIGUSR1);
	block(SIGUSR2);
	kill(getpid(), SIGUSR2);
	signal_when_inside(SIGUSR1);
	CHECK_EQ(run(&guest), SIGUSR1);
	CHECK(pends(SIGUSR2));
}

static uint64_t callers_variable = 1;
static uint64_t seen_variable, seen_rip, seen_count;

/* Is in the caller's memory, finds the registers stored, and may make the call itself. */
static void look_around(int signal)
{
	handler(signal);
	seen_variable = callers_variable;
	seen_rip = regs(&guest)->rip;
	seen_count = (uint64_t)call_in(guest.target, SYS_getpid);
}

CLAIM(a_handler_runs_in_the_callers_memory_and_the_call_is_interrupted)
{
	make_counter(0);
	callers_variable = 2;
	regs(&guest)->rip = (uintptr_t)count_for_ever;
	handle(SIGUSR1, look_around, 0);
	signal_when_inside(SIGUSR1);
	CHECK_FAILS(run_raw(&guest), EINTR);
	CHECK_EQ(handled, 1);
	CHECK_EQ(seen_variable, 2);
	CHECK_EQ(seen_count, getpid());
	CHECK(seen_rip >= (uintptr_t)count_for_ever && seen_rip < (uintptr_t)count_for_ever + 16);
	CHECK_EQ(seen_rip, regs(&guest)->rip);
	CHECK(*counter > 0);
}

CLAIM(a_handler_that_restarts_is_not_noticed_by_the_guest)
{
	struct itimerval interval = { { 0, 2000 }, { 0, 2000 } };
	unsigned long step;
	uint64_t rbx = 0, r12 = 1, r14 = 0;

	for (step = STEPS; step; step--) {
		rbx = rbx * 31 + step;
		r12 = (r12 << 7 | r12 >> 57) ^ rbx;
		r14 += r12 + step;
	}
	guest = new_guest(compute);
	guest.mask = FAULTS;
	handle(SIGALRM, handler, SA_RESTART);
	CHECK_EQ(setitimer(ITIMER_REAL, &interval, NULL), 0);
	regs(&guest)->rcx = STEPS;
	regs(&guest)->r12 = 1;
	run_to_call(&guest, NR_OURS);
	CHECK(handled > 5);
	CHECK_EQ(regs(&guest)->rbx, rbx);
	CHECK_EQ(regs(&guest)->r12, r12);
	CHECK_EQ(regs(&guest)->r14, r14);
}

CLAIM(a_guest_that_is_interrupted_and_called_again_computes_the_same)
{
	struct itimerval interval = { { 0, 2000 }, { 0, 2000 } };
	unsigned long step;
	uint64_t rbx = 0;
	int interrupted = 0;

	for (step = STEPS; step; step--)
		rbx = rbx * 31 + step;
	guest = new_guest(compute);
	guest.mask = SET(SIGALRM);
	block(SIGALRM);
	CHECK_EQ(setitimer(ITIMER_REAL, &interval, NULL), 0);
	regs(&guest)->rcx = STEPS;
	while (run(&guest) == SIGALRM)
		interrupted++;
	CHECK_EQ(guest.info.si_signo, SIGSYS);
	CHECK(interrupted > 5);
	CHECK_EQ(regs(&guest)->rbx, rbx);
}

CLAIM(ignored_signals_do_not_end_a_run)
{
	pid_t pid = getpid(), child;

	make_counter(SET(SIGUSR1));
	block(SIGUSR1);
	handle(SIGUSR2, SIG_IGN, 0);
	child = fork();
	if (child == 0) {
		int i;

		wait_for_change(counter);
		for (i = 0; i < 20; i++) {
			kill(pid, SIGUSR2);
			/* Ignored by default. */
			kill(pid, SIGWINCH);
			kill(pid, SIGURG);
			wait_for_change(counter);
		}
		kill(pid, SIGUSR1);
		_exit(EXIT_SUCCESS);
	}
	CHECK_EQ(run(&guest), SIGUSR1);
}

static void run_for_ever(void *argument)
{
	(void)argument;
	run_raw(&guest);
}

static pid_t start_caller(void)
{
	pid_t child;

	CHECK_EQ(*counter, 0);
	child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		run_for_ever(NULL);
		_exit(guest.info.si_signo);
	}
	wait_for_change(counter);
	return child;
}

static char state_of(pid_t pid)
{
	char path[64], text[512] = "", *after;
	int file;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	file = open(path, O_RDONLY);
	CHECK(read(file, text, sizeof(text) - 1) > 0);
	close(file);
	after = strrchr(text, ')');
	return after ? after[2] : '?';
}

CLAIM(a_caller_stops_and_continues_inside)
{
	pid_t child;
	int status, i;
	uint64_t before;

	make_counter(SET(SIGUSR1));
	child = start_caller();
	for (i = 0; i < 3; i++) {
		kill(child, SIGSTOP);
		CHECK_EQ(waitpid(child, &status, WUNTRACED), child);
		CHECK(WIFSTOPPED(status));
		CHECK_EQ(state_of(child), 'T');
		before = *counter;
		sleep_ms(20);
		CHECK_EQ(*counter, before);
		kill(child, SIGCONT);
		wait_for_change(counter);
	}
	kill(child, SIGUSR1);
	CHECK(wait_for(child, &status, 5));
	CHECK(WIFEXITED(status));
	CHECK_EQ(WEXITSTATUS(status), SIGUSR1);
}

CLAIM(a_caller_is_killed_inside_and_the_target_lives_on)
{
	static const int signals[] = { SIGKILL, SIGTERM, SIGKILL };
	pid_t child;
	int status, i;

	for (i = 0; i < 3; i++) {
		/* All signals but SIGTERM, and SIGKILL cannot be had. */
		make_counter(~SET(SIGTERM));
		child = start_caller();
		kill(child, signals[i]);
		CHECK(wait_for(child, &status, 5 * slowness()));
		CHECK(WIFSIGNALED(status));
		CHECK_EQ(WTERMSIG(status), signals[i]);
		CHECK_EQ(waitpid(guest.target, &status, WNOHANG), 0);
		CHECK_EQ(call_in(guest.target, SYS_getpid), getpid());
		end_target(guest.target);
	}
}

/* Does the file have these bytes? */
static bool contains(const char *path, const char *words)
{
	int file = open(path, O_RDONLY);
	struct stat status;
	char *content;
	bool found;

	CHECK(file != -1);
	CHECK_EQ(fstat(file, &status), 0);
	content = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
	CHECK(content != MAP_FAILED);
	found = memmem(content, (size_t)status.st_size, words, strlen(words)) != NULL;
	munmap(content, (size_t)status.st_size);
	close(file);
	return found;
}

/* What only the target has, or only the caller. The words stand nowhere else as a whole. */
static char secret[32];

static void make_secret(char *place, const char *whose)
{
	snprintf(place, sizeof(secret), "%s-%s-%s", "secret", whose, "memory");
}

static void need_core_dumps(void)
{
	const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	int file = open("/proc/sys/kernel/core_pattern", O_WRONLY);

	if (file == -1 || write(file, "/tmp/core.%p", 12) != 12)
		skip("no core dumps here");
	close(file);
	CHECK_EQ(setrlimit(RLIMIT_CORE, &unlimited), 0);
}

/* A child that runs the guest and has the caller's secret, while the target has the other one. */
static pid_t start_caller_with_secret(const char *code, uint64_t mask)
{
	pid_t child;

	counter = shared_words();
	make_secret(secret, "target");
	guest = new_guest(code);
	guest.mask = mask;
	regs(&guest)->rdi = (uintptr_t)counter;
	make_secret(secret, "caller");
	child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		run_raw(&guest);
		_exit(EXIT_SUCCESS);
	}
	return child;
}

static void check_core(pid_t child, int signal)
{
	char path[64], callers[sizeof(secret)], targets[sizeof(secret)];
	int status;

	CHECK(wait_for(child, &status, 10 * slowness()));
	CHECK(WIFSIGNALED(status));
	CHECK_EQ(WTERMSIG(status), signal);
	CHECK(WCOREDUMP(status));
	snprintf(path, sizeof(path), "/tmp/core.%d", child);
	make_secret(callers, "caller");
	make_secret(targets, "target");
	CHECK(contains(path, callers));
	CHECK(!contains(path, targets));
	unlink(path);
	CHECK_EQ(waitpid(guest.target, &status, WNOHANG), 0);
}

CLAIM(a_core_dump_of_a_caller_that_is_killed_inside_has_its_own_memory)
{
	pid_t child;

	need_core_dumps();
	child = start_caller_with_secret(count_for_ever, FAULTS);
	wait_for_change(counter);
	kill(child, SIGQUIT);
	check_core(child, SIGQUIT);
}

CLAIM(a_core_dump_after_a_fault_inside_has_the_callers_memory)
{
	need_core_dumps();
	check_core(start_caller_with_secret(fault, 0), SIGSEGV);
}

static void *run_in_thread(void *argument)
{
	run_raw(&guest);
	return argument;
}

static void exit_with_a_thread_inside(void *argument)
{
	start_thread(run_in_thread, NULL);
	wait_for_change(counter);
	_exit(*(int *)argument);
}

CLAIM(a_process_exits_while_one_of_its_threads_is_inside)
{
	int status, number = 7;

	make_counter(FAULTS);
	status = status_of(exit_with_a_thread_inside, &number);
	CHECK(WIFEXITED(status));
	CHECK_EQ(WEXITSTATUS(status), 7);
}

static void exec_with_a_thread_inside(void *argument)
{
	start_thread(run_in_thread, NULL);
	wait_for_change(counter);
	execl("/bin/busybox", "busybox", "true", NULL);
	_exit(*(int *)argument);
}

CLAIM(a_process_execs_while_one_of_its_threads_is_inside)
{
	int status, number = 7;

	make_counter(FAULTS);
	status = status_of(exec_with_a_thread_inside, &number);
	CHECK(WIFEXITED(status));
	CHECK_EQ(WEXITSTATUS(status), 0);
}

CLAIM(a_thread_is_inside_while_another_handles_the_signals_of_the_process)
{
	pthread_t thread;
	int i;

	make_counter(SET(SIGUSR2));
	handle(SIGUSR1, handler, SA_RESTART);
	block(SIGUSR2);
	thread = start_thread(run_in_thread, NULL);
	wait_for_change(counter);
	for (i = 0; i < 100; i++) {
		kill(getpid(), SIGUSR1);
		usleep(200);
	}
	CHECK(handled > 0);
	wait_for_change(counter);
	pthread_kill(thread, SIGUSR2);
	pthread_join(thread, NULL);
	CHECK_EQ(guest.info.si_signo, SIGUSR2);
}
