// SPDX-License-Identifier: GPL-2.0-only
/* What others see of a caller and do to it: ptrace, seccomp, /proc, perf, uprobes. */
#include "guests.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/kcmp.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/ptrace.h>
#include <sys/user.h>

GUEST(own_number, "1: mov $39, %eax; syscall; jmp 1b");
GUEST(probed, "lea 5(%rdi), %rbx; mov $7777, %eax; syscall; jmp probed");

static volatile uint64_t *counter;
static struct guest guest;
static uint64_t whose = 1;

static void make_counter(uint64_t mask)
{
	counter = shared_words();
	guest = new_guest(count_for_ever);
	guest.mask = mask;
	regs(&guest)->rdi = (uintptr_t)counter;
	/* The target has 1. */
	whose = 2;
}

/* A child that can be traced, and runs the guest for ever. */
static pid_t start_caller(void)
{
	pid_t child = fork();

	CHECK(child != -1);
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			run_raw(&guest);
	}
	wait_for_change(counter);
	return child;
}

/* Waits for the next stop of the tracee, which must come soon. */
static int next_stop(pid_t pid)
{
	int status;
	int64_t deadline = now_ns() + 5000000000LL * slowness();

	while (waitpid(pid, &status, WNOHANG | __WALL) != pid) {
		if (now_ns() > deadline)
			fail("the tracee does not stop");
		usleep(200);
	}
	if (!WIFSTOPPED(status))
		fail("the tracee has ended: %#x", status);
	return status;
}

#define ROUNDS 10

CLAIM(a_tracer_of_system_calls_sees_one_entry_and_one_exit_of_each_run)
{
	struct user_regs_struct registers;
	int round, status;
	pid_t child;

	guest = new_guest(own_number);
	child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		for (round = 0; round < ROUNDS; round++) {
			if (run_raw(&guest) != 0 || guest.info.si_syscall != SYS_getpid)
				_exit(1);
			regs(&guest)->rax = 5;
		}
		_exit(0);
	}
	next_stop(child);
	CHECK_EQ(ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL), 0);
	for (round = 0; round < ROUNDS; round++) {
		int side;

		for (side = 0; side < 2; side++) {
			CHECK_EQ(ptrace(PTRACE_SYSCALL, child, 0, 0), 0);
			status = next_stop(child);
			CHECK_EQ(WSTOPSIG(status), SIGTRAP | 0x80);
			CHECK_EQ(ptrace(PTRACE_GETREGS, child, 0, &registers), 0);
			/* The C library may do something of its own before the first run. */
			if (round == 0 && registers.orig_rax != __NR_process_vm_exec) {
				side--;
				continue;
			}
			CHECK_EQ(registers.orig_rax, __NR_process_vm_exec);
			CHECK_EQ((long)registers.rax, side == 0 ? -ENOSYS : 0);
			/* It is at home at both. */
			CHECK_EQ(registers.rdi, guest.target);
		}
	}
	CHECK_EQ(ptrace(PTRACE_SYSCALL, child, 0, 0), 0);
	next_stop(child);
	CHECK_EQ(ptrace(PTRACE_GETREGS, child, 0, &registers), 0);
	CHECK_EQ(registers.orig_rax, SYS_exit_group);
	CHECK_EQ(registers.rdi, 0);
}

CLAIM(a_tracer_that_interrupts_a_run_finds_the_caller_in_its_own_memory)
{
	struct user_regs_struct registers;
	int i, status;
	pid_t child;

	make_counter(SET(SIGUSR1));
	child = start_caller();
	CHECK_EQ(ptrace(PTRACE_SEIZE, child, 0, PTRACE_O_EXITKILL), 0);
	for (i = 0; i < 5; i++) {
		CHECK_EQ(ptrace(PTRACE_INTERRUPT, child, 0, 0), 0);
		status = next_stop(child);
		CHECK_EQ(status >> 16, PTRACE_EVENT_STOP);
		CHECK_EQ(ptrace(PTRACE_GETREGS, child, 0, &registers), 0);
		if (registers.rip >= (uintptr_t)count_for_ever && registers.rip < (uintptr_t)count_for_ever + 16)
			fail("the tracer sees the guest's registers");
		errno = 0;
		CHECK_EQ(ptrace(PTRACE_PEEKDATA, child, &whose, 0), 2);
		CHECK_EQ(errno, 0);
		CHECK_EQ(ptrace(PTRACE_CONT, child, 0, 0), 0);
		wait_for_change(counter);
	}
}

CLAIM(a_tracer_sees_signals_that_end_a_run_by_their_usual_course)
{
	pid_t child;
	int status;

	make_counter(SET(SIGUSR1));
	child = start_caller();
	CHECK_EQ(ptrace(PTRACE_SEIZE, child, 0, PTRACE_O_EXITKILL), 0);
	kill(child, SIGUSR2);
	status = next_stop(child);
	CHECK_EQ(WSTOPSIG(status), SIGUSR2);
	CHECK_EQ(ptrace(PTRACE_PEEKDATA, child, &whose, 0), 2);
	/* Suppressed: the run goes on. */
	CHECK_EQ(ptrace(PTRACE_CONT, child, 0, 0), 0);
	wait_for_change(counter);
	/* Detached while inside. */
	CHECK_EQ(ptrace(PTRACE_INTERRUPT, child, 0, 0), 0);
	next_stop(child);
	CHECK_EQ(ptrace(PTRACE_DETACH, child, 0, 0), 0);
	wait_for_change(counter);
}

CLAIM(single_stepping_the_caller_steps_over_a_whole_run)
{
	struct user_regs_struct before, after;
	int step;
	pid_t child;

	guest = new_guest(own_number);
	child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		run_raw(&guest);
		_exit(guest.info.si_syscall == SYS_getpid ? 0 : 1);
	}
	next_stop(child);
	CHECK_EQ(ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_EXITKILL), 0);
	CHECK_EQ(ptrace(PTRACE_GETREGS, child, 0, &before), 0);
	for (step = 0; step < 2000; step++) {
		/* The next instruction is `syscall`? */
		long text;

		errno = 0;
		text = ptrace(PTRACE_PEEKTEXT, child, before.rip, 0);
		CHECK_EQ(errno, 0);
		CHECK_EQ(ptrace(PTRACE_SINGLESTEP, child, 0, 0), 0);
		CHECK_EQ(WSTOPSIG(next_stop(child)), SIGTRAP);
		CHECK_EQ(ptrace(PTRACE_GETREGS, child, 0, &after), 0);
		if ((text & 0xffff) == 0x050f && before.rax == __NR_process_vm_exec) {
			CHECK_EQ(after.rip, before.rip + 2);
			CHECK_EQ(after.rax, 0);
			break;
		}
		before = after;
	}
	CHECK(step < 2000);
	CHECK_EQ(ptrace(PTRACE_CONT, child, 0, 0), 0);
	CHECK_EQ(waitpid(child, &step, 0), child);
	CHECK_EQ(step, 0);
}

CLAIM(a_call_that_a_tracer_emulates_is_not_made)
{
	struct user_regs_struct registers;
	int status;
	pid_t child;

	guest = new_guest(own_number);
	child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		guest.info.si_signo = 0;
		run_raw(&guest);
		_exit(guest.info.si_signo == 0 ? 0 : 1);
	}
	next_stop(child);
	CHECK_EQ(ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL), 0);
	do {
		CHECK_EQ(ptrace(PTRACE_SYSEMU, child, 0, 0), 0);
		next_stop(child);
		CHECK_EQ(ptrace(PTRACE_GETREGS, child, 0, &registers), 0);
	} while (registers.orig_rax != __NR_process_vm_exec);
	registers.rax = 0;
	CHECK_EQ(ptrace(PTRACE_SETREGS, child, 0, &registers), 0);
	CHECK_EQ(ptrace(PTRACE_CONT, child, 0, 0), 0);
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
}

CLAIM(a_tracee_is_killed_inside_together_with_its_tracer)
{
	pid_t child, tracer;
	int status;

	make_counter(SET(SIGUSR1));
	child = start_caller();
	tracer = fork();
	if (tracer == 0) {
		if (ptrace(PTRACE_SEIZE, child, 0, PTRACE_O_EXITKILL) == -1)
			_exit(1);
		wait_for_change(counter);
		raise(SIGKILL);
	}
	CHECK_EQ(waitpid(tracer, &status, 0), tracer);
	CHECK(WIFSIGNALED(status));
	CHECK(wait_for(child, &status, 5));
	CHECK(WIFSIGNALED(status));
}

/* Has `action` for one system call, and allows all others. */
static void filter(long number, unsigned int action)
{
	struct sock_filter instructions[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned int)number, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, action),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(instructions) / sizeof(instructions[0]), instructions };

	CHECK_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) == -1)
		skip("no seccomp filters here");
}

CLAIM(a_filter_of_the_caller_refuses_the_call_itself)
{
	guest = new_guest(own_number);
	filter(__NR_process_vm_exec, SECCOMP_RET_ERRNO | EACCES);
	CHECK_FAILS(run_raw(&guest), EACCES);
}

CLAIM(a_filter_of_the_caller_is_not_asked_about_the_guests_calls)
{
	guest = new_guest(own_number);
	filter(SYS_getpid, SECCOMP_RET_KILL_PROCESS);
	run_to_call(&guest, SYS_getpid);
	run_to_call(&guest, SYS_getpid);
}

CLAIM(a_filter_of_the_caller_is_asked_in_system_call_mode)
{
	guest = new_guest(own_number);
	filter(SYS_getppid, SECCOMP_RET_ERRNO | EACCES);
	CHECK_EQ(call_in(guest.target, SYS_getppid), -EACCES);
	CHECK_EQ(call_in(guest.target, SYS_getuid), getuid());
}

static void call_what_kills(void *argument)
{
	guest = *(struct guest *)argument;
	filter(SYS_getppid, SECCOMP_RET_KILL_PROCESS);
	call_in(guest.target, SYS_getppid);
}

static void call_under_strict_seccomp(void *argument)
{
	guest = *(struct guest *)argument;
	CHECK_EQ(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT), 0);
	run_raw(&guest);
	syscall(SYS_exit, 0);
}

CLAIM(a_filter_that_kills_kills_in_system_call_mode_too)
{
	struct guest target = new_guest(own_number);
	int status = status_of(call_what_kills, &target);

	CHECK(WIFSIGNALED(status));
	CHECK_EQ(WTERMSIG(status), SIGSYS);
	status = status_of(call_under_strict_seccomp, &target);
	CHECK(WIFSIGNALED(status));
	CHECK_EQ(WTERMSIG(status), SIGKILL);
	CHECK_EQ(waitpid(target.target, &status, WNOHANG), 0);
}

static volatile bool has_come_back;

static void *call_what_kills_the_thread(void *argument)
{
	filter(SYS_getppid, SECCOMP_RET_KILL_THREAD);
	call_in(guest.target, SYS_getppid);
	has_come_back = true;
	return argument;
}

CLAIM(a_thread_that_a_filter_kills_does_not_keep_the_targets_memory)
{
	int file = memfd_create("shared", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	guest = new_guest(own_number);
	CHECK_EQ(ftruncate(file, PAGE), 0);
	CHECK(call_in(guest.target, SYS_mmap, 0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) > 0);
	/* As long as somebody has mapped the file. */
	CHECK_FAILS(fcntl(file, F_ADD_SEALS, F_SEAL_WRITE), EBUSY);
	pthread_join(start_thread(call_what_kills_the_thread, NULL), NULL);
	CHECK(!has_come_back);
	end_target(guest.target);
	CHECK_EQ(fcntl(file, F_ADD_SEALS, F_SEAL_WRITE), 0);
}

static volatile int trapped;

static void note_trap(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	trapped = info->si_syscall;
}

CLAIM(a_filter_that_traps_traps_in_system_call_mode_too)
{
	struct sigaction action = { .sa_sigaction = note_trap, .sa_flags = SA_SIGINFO };
	const pid_t parent = getppid();
	struct sigcontext uctx;

	CHECK_EQ(sigaction(SIGSYS, &action, NULL), 0);
	guest = new_guest(own_number);
	filter(SYS_getppid, SECCOMP_RET_TRAP);
	call_raw(guest.target, &uctx, SYS_getppid, (long[6]){ 0 });
	CHECK_EQ(trapped, SYS_getppid);
	CHECK((long)uctx.rax != parent);
}

static void read_whole(pid_t pid, const char *name, char *text, size_t size)
{
	char path[64];
	ssize_t got, all = 0;
	int file;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	file = open(path, O_RDONLY);
	CHECK(file != -1);
	while ((got = read(file, text + all, size - 1 - (size_t)all)) > 0)
		all += got;
	CHECK_EQ(got, 0);
	text[all] = 0;
	close(file);
}

CLAIM(others_find_the_own_memory_of_a_task_that_is_inside)
{
	char before[16384], inside[16384], path[64];
	uint64_t value = 0;
	pid_t child;
	int memory, i;

	make_counter(FAULTS);
	/* Mapped in the caller only. */
	CHECK(mmap(NULL, 7 * PAGE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
	read_whole(getpid(), "maps", before, sizeof(before));
	child = start_caller();
	snprintf(path, sizeof(path), "/proc/%d/mem", child);
	memory = open(path, O_RDWR);
	CHECK(memory != -1);
	for (i = 0; i < 20; i++) {
		wait_for_change(counter);
		CHECK_EQ(TARGETS(child, whose), 2);
		CHECK_EQ(pread(memory, &value, sizeof(value), (off_t)(uintptr_t)&whose), sizeof(value));
		CHECK_EQ(value, 2);
		read_whole(child, "maps", inside, sizeof(inside));
		CHECK_EQ(strcmp(before, inside), 0);
	}
	value = 3;
	CHECK_EQ(pwrite(memory, &value, sizeof(value), (off_t)(uintptr_t)&whose), sizeof(value));
	CHECK_EQ(TARGETS(child, whose), 3);
	CHECK_EQ(TARGETS(guest.target, whose), 1);
	write_target(child, &whose, &(uint64_t){ 4 }, sizeof(whose));
	CHECK_EQ(TARGETS(child, whose), 4);
	CHECK_EQ(TARGETS(guest.target, whose), 1);
}

CLAIM(a_task_that_is_inside_is_not_taken_for_one_that_shares_the_targets_memory)
{
	pid_t child;
	int i;

	make_counter(FAULTS);
	child = start_caller();
	for (i = 0; i < 100; i++) {
		wait_for_change(counter);
		CHECK(syscall(SYS_kcmp, child, guest.target, KCMP_VM, 0, 0) > 0);
	}
}

static void read_program(pid_t pid, char *path, size_t size)
{
	char link[64];
	ssize_t length;

	snprintf(link, sizeof(link), "/proc/%d/exe", pid);
	length = readlink(link, path, size - 1);
	CHECK(length > 0);
	path[length] = 0;
}

CLAIM(others_find_the_own_program_of_a_task_that_is_inside)
{
	char own[256], theirs[256];
	int file = memfd_create("code and counter", MFD_CLOEXEC), i;
	char *pages;
	pid_t child;
	long page;

	CHECK_EQ(ftruncate(file, 2 * PAGE), 0);
	pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	CHECK(pages != MAP_FAILED);
	counter = (uint64_t *)pages;
	memcpy(pages + PAGE, count_for_ever, 64);
	read_program(getpid(), own, sizeof(own));
	guest.target = fork();
	if (guest.target == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execl("/bin/busybox", "busybox", "sleep", "1000", NULL);
		_exit(EXIT_FAILURE);
	}
	do {
		sleep_ms(10);
		read_program(guest.target, theirs, sizeof(theirs));
	} while (strcmp(own, theirs) == 0);
	page = call_in(guest.target, SYS_mmap, 0, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_SHARED, file, 0);
	CHECK(page > 0);
	set_registers(&guest, (char *)page + PAGE);
	regs(&guest)->rdi = (unsigned long)page;
	child = start_caller();
	for (i = 0; i < 20; i++) {
		wait_for_change(counter);
		read_program(child, theirs, sizeof(theirs));
		CHECK_EQ(strcmp(own, theirs), 0);
	}
}

CLAIM(everything_in_proc_can_be_read_of_a_task_that_is_inside)
{
	static const char *const names[] = { "stat",	"statm",   "status", "smaps",  "smaps_rollup", "syscall", "wchan", "stack",
					     "sched",	"environ", "cmdline", "auxv",  "limits",       "io",      "numa_maps",
					     "oom_score", "comm",  "personality" };
	static char text[1 << 16];
	char path[64];
	size_t i;
	pid_t child;
	int round, file;

	make_counter(FAULTS);
	child = start_caller();
	for (round = 0; round < 5; round++) {
		for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
			snprintf(path, sizeof(path), "/proc/%d/%s", child, names[i]);
			file = open(path, O_RDONLY);
			while (file != -1 && read(file, text, sizeof(text)) > 0)
				;
			close(file);
		}
		wait_for_change(counter);
	}
}

CLAIM(a_profiler_samples_a_task_that_is_inside)
{
	struct perf_event_attr attributes = {
		.type = PERF_TYPE_SOFTWARE,
		.size = sizeof(attributes),
		.config = PERF_COUNT_SW_CPU_CLOCK,
		.sample_period = 200000,
		.sample_type = PERF_SAMPLE_IP | PERF_SAMPLE_TID | PERF_SAMPLE_CALLCHAIN | PERF_SAMPLE_REGS_USER |
			       PERF_SAMPLE_STACK_USER,
		.sample_regs_user = 0xff0fff,
		.sample_stack_user = 256,
		.mmap = 1,
		.exclude_hv = 1,
	};
	struct perf_event_mmap_page *page;
	pid_t child;
	int event;

	make_counter(FAULTS);
	child = start_caller();
	event = (int)syscall(SYS_perf_event_open, &attributes, child, -1, -1, 0);
	if (event == -1)
		skip("perf_event_open: %s", strerror(errno));
	page = mmap(NULL, 17 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, event, 0);
	CHECK(page != MAP_FAILED);
	sleep_ms(300);
	wait_for_change(counter);
	CHECK(page->data_head > 0);
	close(event);
	wait_for_change(counter);
}

CLAIM(a_uprobe_in_the_targets_text_is_reported_as_a_breakpoint)
{
	struct perf_event_attr attributes = { .size = sizeof(attributes) };
	extern const char __executable_start[];
	char text[16] = "";
	int i, event, type = open("/sys/bus/event_source/devices/uprobe/type", O_RDONLY);

	if (type == -1 || read(type, text, sizeof(text) - 1) <= 0)
		skip("no uprobes here");
	attributes.type = (unsigned int)atoi(text);
	attributes.config1 = (uintptr_t)"/proc/self/exe";
	attributes.config2 = (uintptr_t)(probed - __executable_start);
	guest = new_guest(probed);
	/* For every process that has the file mapped. */
	event = (int)syscall(SYS_perf_event_open, &attributes, -1, 0, -1, 0);
	if (event == -1)
		skip("no uprobe can be set: %s", strerror(errno));
	for (i = 0; i < 20; i++) {
		set_registers(&guest, probed);
		CHECK_EQ(run(&guest), SIGTRAP);
		CHECK_EQ(regs(&guest)->rip, probed + 1);
	}
	close(event);
	/* Taken away again. */
	set_registers(&guest, probed);
	run_to_call(&guest, NR_OURS);
	CHECK_EQ(regs(&guest)->rbx, 5);
}
