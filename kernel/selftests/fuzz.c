// SPDX-License-Identifier: GPL-2.0-only
/*
 * A random caller, without rights: random arguments, contexts and system calls, while another thread changes the memory
 * that they point to, kills targets and sends signals. Nothing is expected but that the kernel survives, does not
 * complain, and can end the caller.
 *
 *	fuzz SECONDS [SEED]
 *
 * tells the seed of each caller that leads to a failure. What the threads do to each other is not repeated by a seed.
 */
#include "guests.h"

#include <fcntl.h>
#include <sys/resource.h>

#define NOBODY 65534
#define TARGETS_COUNT 2
#define ROUNDS 400
/* A caller that takes longer has put itself to sleep. */
#define CALLER_SECONDS 3

GUEST(read_data, "1: mov (%rdi), %rax; add $4096, %rdi; jmp 1b");
GUEST(write_data, "1: mov %rax, (%rdi); add $4096, %rdi; jmp 1b");
GUEST(odd_instructions, "int3; ud2; int $0x80; hlt; iretq; wrfsbase %rdi; wrgsbase %rsi; popf; int1");
GUEST(segments, "mov %eax, %fs; mov %ebx, %gs; mov %ecx, %ds; mov %edx, %es; mov $7777, %eax; syscall; jmp segments");
GUEST(state, "fninit; pcmpeqb %xmm3, %xmm3; ldmxcsr (%rdi); xor %ecx, %ecx; xor %edx, %edx; wrpkru; syscall; jmp state");
GUEST(vsyscalls, "mov $0xffffffffff600000, %rax; call *%rax; mov $0xffffffffff600800, %rax; call *%rax; jmp vsyscalls");
GUEST(code32, ".code32; mov %esp, %ebp; sysenter; int $0x80; syscall; .code64");

static const char *const codes[] = { call_for_ever, spin,     read_data, write_data, odd_instructions,
				     segments,	    state, vsyscalls, code32 };
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const uint64_t numbers[] = { 0, 1, 2, 3, 7, 8, 0x10, 0x23, 0x2b, 0x33, 0x53, 0xff, 0x100, 0x202, 0x3000, 0x4000, 0x20000, 0xffff, 0x10000,
				    0x7fffffff, 0x80000000, 0xffffffff, 1UL << 32, (1UL << 47) - PAGE, (1UL << 47) - 1, 1UL << 47,
				    1UL << 63, 0xffff800000000000, 0xffffffff81000000, 0xffffffffff600000, -8UL, ~0UL };

static uint64_t random_state;
static volatile pid_t targets[TARGETS_COUNT];
/* Calls that all callers have made. */
static volatile uint64_t *calls_made;
/* What arguments point into, and the other thread changes. */
static char *memory;
#define MEMORY_PAGES 8

static uint64_t random_number(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static uint64_t below(uint64_t limit)
{
	return random_number() % limit;
}

static bool one_in(uint64_t count)
{
	return below(count) == 0;
}

static uint64_t any_number(void)
{
	switch (below(4)) {
	case 0:
		return random_number();
	case 1:
		return (uintptr_t)memory + below(MEMORY_PAGES * PAGE);
	default:
		return numbers[below(COUNT(numbers))] + (one_in(4) ? below(16) - 8 : 0);
	}
}

/* Memory for something of this size: good in most cases, at the edge in some. */
static void *any_place(size_t size)
{
	if (one_in(12))
		return (void *)any_number();
	if (one_in(4))
		return memory + (1 + below(MEMORY_PAGES)) * PAGE - below(size + 1);
	return memory + below(MEMORY_PAGES - 1) * PAGE + below(8) * 64;
}

static void write_somewhere(void *place, const void *content, size_t size)
{
	struct iovec from = { (void *)content, size }, to = { place, size };

	/* Unlike memcpy, it does not mind if that is not there. */
	process_vm_writev(getpid(), &from, 1, &to, 1, 0);
}

struct frame {
	struct _fpstate legacy;
	uint64_t header[8];
	char rest[2048];
};

static void *any_fpstate(void)
{
	static struct frame frame;
	void *place = any_place(sizeof(frame));
	unsigned int a = 13, size, c = 0, d;
	int i;

	__asm__("cpuid" : "+a"(a), "=b"(size), "+c"(c), "=d"(d));
	memset(&frame, 0, sizeof(frame));
	frame.legacy.mxcsr = one_in(4) ? (unsigned int)any_number() : 0x1f80;
	if (!one_in(3)) {
		frame.legacy.sw_reserved.magic1 = FP_XSTATE_MAGIC1;
		frame.legacy.sw_reserved.xstate_size = one_in(4) ? (unsigned int)any_number() : size;
		frame.legacy.sw_reserved.extended_size = one_in(4) ? (unsigned int)any_number() : size + 4;
		frame.legacy.sw_reserved.xfeatures = one_in(4) ? any_number() : 7;
		frame.header[0] = one_in(3) ? any_number() : below(8);
		if (one_in(4))
			frame.header[below(8)] = any_number();
		if (size + 4 <= sizeof(frame) && !one_in(4))
			*(unsigned int *)((char *)&frame + size) = FP_XSTATE_MAGIC2;
	}
	for (i = 0; i < 4 && one_in(3); i++)
		((uint64_t *)&frame)[below(sizeof(frame) / 8)] = any_number();
	write_somewhere(place, &frame, sizeof(frame));
	return place;
}

/*
 * Is there something like a far call or return in what an instruction here may consist of? QEMU before 9.1 has their
 * stack accesses made by the kernel: any program that executes lretq with a bad stack pointer is then the kernel's end.
 */
static bool may_be_far(const unsigned char *code)
{
	int i;

	for (i = 0; i < 15; i++) {
		unsigned char field = code[i + 1] >> 3 & 7;

		if (code[i] == 0xca || code[i] == 0xcb || code[i] == 0xcf || code[i] == 0x9a)
			return true;
		if (code[i] == 0xff && (field == 3 || field == 5))
			return true;
	}
	return false;
}

/* Somewhere in this program, and more often than not in the middle of an instruction. */
static const unsigned char *any_code(void)
{
	const unsigned char *code;

	do
		code = (const unsigned char *)call_for_ever + below(65536);
	while (may_be_far(code));
	return code;
}

static void *any_context(bool system_call)
{
	/* No call by which a caller ends the fuzzing for others, or puts itself to sleep most of the time. */
	static const long calls[] = { SYS_mmap,	  SYS_munmap,	 SYS_mprotect,	SYS_madvise, SYS_mremap, SYS_brk,      SYS_getpid,
				      SYS_read,	  SYS_write,	 SYS_futex,	SYS_execve,  SYS_clone,	 SYS_exit,     SYS_rt_sigreturn,
				      SYS_rseq,	  SYS_arch_prctl, SYS_membarrier, SYS_mlock, SYS_mincore, SYS_process_vm_readv,
				      SYS_userfaultfd, SYS_memfd_create, SYS_shmat, SYS_io_uring_setup, SYS_get_robust_list,
				      SYS_sigaltstack, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_set_robust_list, SYS_prctl,
				      SYS_io_setup, SYS_perf_event_open, SYS_remap_file_pages, SYS_mlockall, SYS_modify_ldt };
	struct process_vm_exec_context context = { 0 };
	void *place = any_place(sizeof(context));
	uint64_t *words = (uint64_t *)&context;
	int i;

	context.context.rip = (uintptr_t)codes[below(COUNT(codes))];
	context.context.rsp = (uintptr_t)guest_stack + sizeof(guest_stack) - 256;
	context.context.rdi = (uintptr_t)memory;
	context.context.cs = one_in(8) ? USER32_CS : USER_CS;
	context.context.ss = USER_SS;
	context.context.eflags = 0x202 | (one_in(10) ? 0x100 : 0) | (one_in(10) ? 0x40000 : 0);
	if (system_call) {
		context.context.rax = one_in(4) ? below(512) : (uint64_t)calls[below(COUNT(calls))];
		context.context.rdi = any_number();
		context.context.rsi = any_number();
		context.context.rdx = any_number();
		context.context.r10 = any_number();
		context.context.r8 = any_number();
		context.context.r9 = any_number();
	}
	if (one_in(3))
		context.context.fpstate = any_fpstate();
	for (i = 0; i < 3 && one_in(2); i++)
		words[below(sizeof(context) / 8)] = any_number();
	if (one_in(10)) {
		/* With TF: no more than this instruction. */
		context.context.rip = (uintptr_t)any_code();
		context.context.eflags |= 0x100;
	}
	write_somewhere(place, &context, sizeof(context));
	return place;
}

static void call_at_random(void)
{
	static const unsigned long flag_sets[] = { 0, 0, EXTENDED, EXTENDED, PROCESS_VM_EXEC_SYSCALL,
						   PROCESS_VM_EXEC_SYSCALL | EXTENDED, PROCESS_VM_EXEC_QUERY };
	unsigned long flags = flag_sets[below(COUNT(flag_sets))];
	pid_t pid = targets[below(TARGETS_COUNT)];
	uint64_t mask = one_in(3) ? random_number() : FAULTS | SET(SIGUSR1) | SET(SIGALRM);
	void *mask_place = any_place(sizeof(mask));
	static const pid_t odd_targets[] = { 0, -1, 2, 1 << 22 };
	void *context;

	if (one_in(20))
		flags ^= 1UL << below(64);
	context = any_context(flags & PROCESS_VM_EXEC_SYSCALL);
	if (one_in(20))
		pid = one_in(2) ? getpid() : odd_targets[below(COUNT(odd_targets))];
	if (one_in(8)) {
		pid = (pid_t)syscall(SYS_pidfd_open, pid, 0);
		flags |= PROCESS_VM_EXEC_PIDFD;
	}
	write_somewhere(mask_place, &mask, sizeof(mask));
	process_vm_exec(pid, context, flags, any_place(sizeof(siginfo_t)), mask_place, one_in(20) ? any_number() : SIZEMASK);
	if (flags & PROCESS_VM_EXEC_PIDFD)
		close(pid);
}

static pid_t start_fuzzed_target(void)
{
	pid_t child = fork();

	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		alarm(4 * CALLER_SECONDS);
		for (;;)
			pause();
	}
	return child;
}

/* What the caller has to bear while it makes its calls. */
static void *disturb(void *argument)
{
	const pid_t caller = *(pid_t *)argument, process = getpid();
	uint64_t own = random_state * 3 | 1;

	for (;;) {
		char *page;
		size_t i;

		own = own * 6364136223846793005UL + 1442695040888963407UL;
		page = memory + (own >> 33) % MEMORY_PAGES * PAGE;
		i = (own >> 40) % TARGETS_COUNT;
		switch ((own >> 50) % 10) {
		case 0:
			munmap(page, PAGE);
			break;
		case 1:
			mprotect(page, PAGE, PROT_READ);
			break;
		case 2:
		case 3:
		case 4:
			mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
			break;
		case 5:
			if ((own >> 20) % 8 == 0 && targets[i] > 0) {
				kill(targets[i], SIGKILL);
				waitpid(targets[i], NULL, 0);
				targets[i] = start_fuzzed_target();
			}
			break;
		case 6:
			syscall(SYS_tgkill, process, caller, SIGUSR1);
			break;
		default:
			syscall(SYS_tgkill, process, caller, SIGUSR2);
			break;
		}
		usleep((unsigned int)(own >> 35) % 500);
	}
	return NULL;
}

static void handler(int signal)
{
	(void)signal;
}

static void be_caller(uint64_t seed)
{
	const struct rlimit files = { 200, 200 }, processes = { 100, 100 }, space = { 1UL << 32, 1UL << 32 }, core = { 0, 0 };
	struct sigaction action = { .sa_handler = handler, .sa_flags = seed & 2 ? SA_RESTART : 0 };
	static pid_t caller;
	sigset_t nothing_blocked;
	int i, nothing = open("/dev/null", O_RDWR);

	/* No target may outlive us, or be harmed by us that is somebody else's. */
	setsid();
	/* Nor write into the test's output. */
	dup2(nothing, STDIN_FILENO);
	dup2(nothing, STDOUT_FILENO);
	dup2(nothing, STDERR_FILENO);
	setrlimit(RLIMIT_NOFILE, &files);
	setrlimit(RLIMIT_NPROC, &processes);
	setrlimit(RLIMIT_AS, &space);
	setrlimit(RLIMIT_CORE, &core);
	if (setgid(NOBODY) != 0 || setuid(NOBODY) != 0)
		_exit(EXIT_FAILURE);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_DUMPABLE, 1);
	/* Guests write everywhere. */
	munmap(skip_reason, PAGE);
	sigaction(SIGUSR1, &action, NULL);
	sigaction(SIGUSR2, &action, NULL);
	/* Faults that are not reported are survived, too, as long as nobody blocks them. */
	action.sa_flags = 0;
	for (i = 1; i < 32; i++) {
		if (FAULTS & SET(i))
			sigaction(i, &action, NULL);
	}
	sigaction(SIGSYS, &action, NULL);
	sigemptyset(&nothing_blocked);
	random_state = seed;
	memory = mmap(NULL, 2 * MEMORY_PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mprotect(memory, MEMORY_PAGES * PAGE, PROT_READ | PROT_WRITE);
	for (i = 0; i < TARGETS_COUNT; i++)
		targets[i] = start_fuzzed_target();
	caller = (pid_t)syscall(SYS_gettid);
	start_thread(disturb, &caller);
	for (i = 0; i < ROUNDS; i++) {
		if (one_in(16))
			alarm(1);
		call_at_random();
		++*calls_made;
		sigprocmask(SIG_SETMASK, &nothing_blocked, NULL);
	}
	_exit(EXIT_SUCCESS);
}

CLAIM_WITHIN(the_kernel_survives_a_random_caller, 40)
{
	int64_t deadline = now_ns() + storm_seconds * 1000000000LL;
	uint64_t seed = storm_seed * 2654435761UL | 1;
	unsigned int callers = 0, slept = 0, done = 0;
	struct guest guest;

	note("seed %#lx, %u s", storm_seed, storm_seconds);
	calls_made = shared_words();
	while (now_ns() < deadline) {
		pid_t child = fork();
		int status;

		CHECK(child != -1);
		if (child == 0)
			be_caller(seed);
		callers++;
		if (!wait_for(child, &status, CALLER_SECONDS * slowness())) {
			slept++;
			kill(child, SIGKILL);
			if (!wait_for(child, &status, 10 * slowness()))
				fail("the caller with seed %#llx cannot be killed", (unsigned long long)seed);
		}
		done += WIFEXITED(status);
		/* Its targets and whatever else it has left. */
		kill(-child, SIGKILL);
		seed = (seed * 6364136223846793005UL + 1442695040888963407UL) | 1;
	}
	note("%u callers made %llu calls; %u came to their end, %u had to be killed", callers, (unsigned long long)*calls_made,
	     done, slept);
	/* The machine is as good as before. */
	guest = new_guest(call_for_ever);
	run_to_call(&guest, NR_OURS);
}
