// SPDX-License-Identifier: GPL-2.0-only
/* Bad input: the documented error, nothing changed, and no complaint of the kernel. */
#include "guests.h"

#include <elf.h>
#include <fcntl.h>
#include <sys/io.h>

GUEST(read_flags, "pushf; pop %rax; ud2");
GUEST(no_interrupts, "cli; ud2");
GUEST(push, "mov $7777, %eax; syscall; push %rax; ud2");
GUEST(end_at_once, "mov $7777, %eax; syscall");

/* Fails with this error, and leaves context and siginfo as they are. */
static void check_refused(const struct guest *guest, unsigned long flags, int number)
{
	struct guest copy = *guest;
	long result;

	memset(&copy.info, 0x5a, sizeof(copy.info));
	errno = 0;
	result = process_vm_exec(copy.target, &copy.context, flags, &copy.info, &copy.mask, SIZEMASK);
	if (result != -1 || errno != number)
		fail("result %ld, errno %s, expected %s; rip %#llx cs %#x ss %#x", result, strerrorname_np(errno),
		     strerrorname_np(number), (unsigned long long)copy.context.context.rip,
		     copy.context.context.cs, copy.context.context.ss);
	CHECK_EQ(memcmp(&copy.context, &guest->context, sizeof(copy.context)), 0);
	CHECK_EQ(((char *)&copy.info)[0], 0x5a);
}

static void check_still_runs(struct guest *guest)
{
	set_registers(guest, end_at_once);
	run_to_call(guest, NR_OURS);
}

CLAIM(unknown_flags_are_invalid)
{
	struct guest guest = new_guest(end_at_once);
	int bit;

	for (bit = 3; bit < 64; bit++) {
		check_refused(&guest, 1UL << bit, EINVAL);
		check_refused(&guest, 1UL << bit | EXTENDED, EINVAL);
	}
	check_refused(&guest, ~0UL, EINVAL);
	check_still_runs(&guest);
}

CLAIM(a_wrong_size_of_the_mask_is_invalid)
{
	static const size_t sizes[] = { 0, 1, 4, 7, 9, 16, 128, 1UL << 32 | 8, ~0UL };
	struct guest guest = new_guest(end_at_once);
	struct sigcontext uctx = { .rax = SYS_getpid };
	size_t i;

	for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		CHECK_FAILS(process_vm_exec(guest.target, &guest.context, EXTENDED, &guest.info, &guest.mask, sizes[i]),
			    EINVAL);
	CHECK_FAILS(process_vm_exec(guest.target, &uctx, PROCESS_VM_EXEC_SYSCALL, NULL, NULL, 0), EINVAL);
	check_still_runs(&guest);
}

static void *wait_for_ever(void *argument)
{
	*(volatile pid_t *)argument = (pid_t)syscall(SYS_gettid);
	pause();
	return NULL;
}

CLAIM(the_caller_is_no_target)
{
	struct guest guest = { .target = getpid(), .mask = FAULTS };
	volatile pid_t thread = 0;

	set_registers(&guest, end_at_once);
	check_refused(&guest, EXTENDED, EINVAL);
	start_thread(wait_for_ever, (void *)&thread);
	while (!thread)
		sched_yield();
	guest.target = thread;
	check_refused(&guest, EXTENDED, EINVAL);
	guest.target = (pid_t)syscall(SYS_pidfd_open, getpid(), 0);
	check_refused(&guest, EXTENDED | PROCESS_VM_EXEC_PIDFD, EINVAL);
	CHECK_FAILS(call_raw(getpid(), regs(&guest), SYS_getpid, (long[6]){ 0 }), EINVAL);
}

CLAIM(a_process_that_does_not_exist_is_no_target)
{
	struct guest guest = new_guest(end_at_once);
	pid_t target = guest.target;
	int descriptor = (int)syscall(SYS_pidfd_open, target, 0);

	guest.target = 0;
	check_refused(&guest, EXTENDED, EINVAL);
	guest.target = -1;
	check_refused(&guest, EXTENDED, EINVAL);
	guest.target = -target;
	check_refused(&guest, EXTENDED, EINVAL);
	guest.target = 1 << 22;
	check_refused(&guest, EXTENDED, ESRCH);
	/* Dead, then gone. */
	guest.target = target;
	kill(target, SIGKILL);
	CHECK_EQ(waitid(P_PID, (id_t)target, &guest.info, WEXITED | WNOWAIT), 0);
	check_refused(&guest, EXTENDED, ESRCH);
	CHECK_EQ(waitpid(target, NULL, 0), target);
	check_refused(&guest, EXTENDED, ESRCH);
	guest.target = descriptor;
	check_refused(&guest, EXTENDED | PROCESS_VM_EXEC_PIDFD, ESRCH);
}

CLAIM(a_descriptor_of_something_else_is_bad)
{
	struct guest guest = { .mask = FAULTS };
	const unsigned long flags = EXTENDED | PROCESS_VM_EXEC_PIDFD;

	set_registers(&guest, end_at_once);
	guest.target = -1;
	check_refused(&guest, flags, EBADF);
	guest.target = 12345;
	check_refused(&guest, flags, EBADF);
	guest.target = open("/dev/null", O_RDONLY);
	check_refused(&guest, flags, EBADF);
	guest.target = open("/proc/self", O_PATH);
	check_refused(&guest, flags, EBADF);
}

CLAIM(a_kernel_thread_is_no_target)
{
	/* kthreadd; the first of its children is one too. */
	struct guest guest = { .target = 2, .mask = FAULTS };

	set_registers(&guest, end_at_once);
	check_refused(&guest, EXTENDED, ESRCH);
}

static void run_as_nobody(void *argument)
{
	CHECK_EQ(setuid(NOBODY), 0);
	check_refused(argument, EXTENDED, EPERM);
	CHECK_FAILS(call_raw(((struct guest *)argument)->target, regs(argument), SYS_getpid, (long[6]){ 0 }), EPERM);
}

static void run_in_undumpable(void *argument)
{
	struct guest guest = *(struct guest *)argument;
	volatile uint64_t *words = shared_words();
	pid_t child;

	CHECK_EQ(setuid(NOBODY), 0);
	child = fork();
	if (child == 0) {
		prctl(PR_SET_DUMPABLE, 0);
		words[0] = 1;
		for (;;)
			pause();
	}
	wait_until_set(&words[0]);
	guest.target = child;
	check_refused(&guest, EXTENDED, EPERM);
	end_target(child);
}

CLAIM(who_may_not_trace_the_target_may_not_use_its_memory)
{
	struct guest guest = new_guest(end_at_once);

	CHECK_EQ(status_of(run_as_nobody, &guest), 0);
	CHECK_EQ(status_of(run_in_undumpable, &guest), 0);
	check_still_runs(&guest);
}

/* A program of 32 bits: pause() for ever. */
static const unsigned char code32[] = { 0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7 };

static pid_t start_32_bit_target(void)
{
	struct {
		Elf32_Ehdr file;
		Elf32_Phdr segment;
		unsigned char code[sizeof(code32)];
	} image = {
		.file = { .e_ident = { ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS32, ELFDATA2LSB, EV_CURRENT },
			  .e_type = ET_EXEC,
			  .e_machine = EM_386,
			  .e_version = EV_CURRENT,
			  .e_entry = 0x10000 + sizeof(Elf32_Ehdr) + sizeof(Elf32_Phdr),
			  .e_phoff = sizeof(Elf32_Ehdr),
			  .e_ehsize = sizeof(Elf32_Ehdr),
			  .e_phentsize = sizeof(Elf32_Phdr),
			  .e_phnum = 1 },
		.segment = { .p_type = PT_LOAD,
			     .p_vaddr = 0x10000,
			     .p_filesz = sizeof(image),
			     .p_memsz = sizeof(image),
			     .p_flags = PF_R | PF_X,
			     .p_align = PAGE },
	};
	int file = memfd_create("program32", MFD_CLOEXEC), status;
	char *const none[] = { NULL };
	pid_t child;

	memcpy(image.code, code32, sizeof(code32));
	CHECK_EQ(write(file, &image, sizeof(image)), sizeof(image));
	child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fexecve(file, none, none);
		_exit(EXIT_FAILURE);
	}
	sleep_ms(200);
	if (waitpid(child, &status, WNOHANG) == child)
		skip("no programs of 32 bits run here");
	return child;
}

CLAIM(a_32_bit_process_is_no_target)
{
	struct guest guest = { .mask = FAULTS };

	set_registers(&guest, end_at_once);
	guest.target = start_32_bit_target();
	check_refused(&guest, EXTENDED, EOPNOTSUPP);
	CHECK_FAILS(call_raw(guest.target, regs(&guest), SYS_getpid, (long[6]){ 0 }), EOPNOTSUPP);
}

CLAIM(a_process_with_another_time_namespace_is_no_target)
{
	struct guest guest = { .mask = FAULTS };

	set_registers(&guest, end_at_once);
	if (unshare(CLONE_NEWTIME) != 0)
		skip("no time namespaces here");
	guest.target = start_target();
	check_refused(&guest, EXTENDED, EOPNOTSUPP);
	CHECK_FAILS(call_raw(guest.target, regs(&guest), SYS_getpid, (long[6]){ 0 }), EOPNOTSUPP);
}

CLAIM(a_caller_that_may_use_io_ports_does_not_lend_them)
{
	struct guest guest = new_guest(end_at_once);

	if (ioperm(0x80, 1, 1) != 0)
		skip("no I/O ports here");
	check_refused(&guest, EXTENDED, EOPNOTSUPP);
	CHECK_EQ(ioperm(0x80, 1, 0), 0);
}

/* Pointers to nothing, to the kernel, to nowhere, and to the last bytes of a page before nothing. */
static void *bad_pointers[8];

static size_t make_bad_pointers(void)
{
	char *pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *closed = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	void *pointers[] = { (void *)8,
			     closed,
			     pages + PAGE - 4,
			     (void *)0xffffffff81000000,
			     (void *)0xffff888000001000,
			     (void *)0x8000000000000000,
			     (void *)0x7ffffffffff0,
			     (void *)-8 };

	CHECK(pages != MAP_FAILED && closed != MAP_FAILED);
	CHECK_EQ(munmap(pages + PAGE, PAGE), 0);
	memcpy(bad_pointers, pointers, sizeof(pointers));
	return sizeof(pointers) / sizeof(pointers[0]);
}

CLAIM(bad_pointers_are_faults_of_the_call)
{
	struct guest guest = new_guest(end_at_once), copy;
	size_t count = make_bad_pointers(), i;
	pid_t target = guest.target;

	CHECK_FAILS(process_vm_exec(target, NULL, 0, &guest.info, &guest.mask, SIZEMASK), EFAULT);
	CHECK_FAILS(process_vm_exec(target, &guest.context, EXTENDED, NULL, &guest.mask, SIZEMASK), EFAULT);
	CHECK_FAILS(process_vm_exec(target, &guest.context, EXTENDED, &guest.info, NULL, SIZEMASK), EFAULT);
	CHECK_FAILS(process_vm_exec(target, NULL, PROCESS_VM_EXEC_SYSCALL, NULL, NULL, SIZEMASK), EFAULT);
	for (i = 0; i < count; i++) {
		void *bad = bad_pointers[i];

		note("%p", bad);
		CHECK_FAILS(process_vm_exec(target, bad, 0, &guest.info, &guest.mask, SIZEMASK), EFAULT);
		CHECK_FAILS(process_vm_exec(target, bad, EXTENDED, &guest.info, &guest.mask, SIZEMASK), EFAULT);
		CHECK_FAILS(process_vm_exec(target, bad, PROCESS_VM_EXEC_SYSCALL, NULL, NULL, SIZEMASK), EFAULT);
		CHECK_FAILS(process_vm_exec(target, &guest.context, EXTENDED, &guest.info, bad, SIZEMASK), EFAULT);
		copy = guest;
		copy.context.context.fpstate = bad;
		CHECK_FAILS(process_vm_exec(target, &copy.context, EXTENDED, &copy.info, &copy.mask, SIZEMASK), EFAULT);
		/* siginfo is written at the end, maybe; the guest has run then, maybe. */
		copy = guest;
		CHECK_FAILS(process_vm_exec(target, &copy.context, EXTENDED, bad, &copy.mask, SIZEMASK), EFAULT);
	}
	check_still_runs(&guest);
}

CLAIM(a_context_that_cannot_be_written_is_a_fault_of_the_call)
{
	struct guest guest = new_guest(end_at_once);
	void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	memcpy(page, &guest.context, sizeof(guest.context));
	CHECK_EQ(mprotect(page, PAGE, PROT_READ), 0);
	CHECK_FAILS(process_vm_exec(guest.target, page, EXTENDED, &guest.info, &guest.mask, SIZEMASK), EFAULT);
	CHECK_FAILS(process_vm_exec(guest.target, &guest.context, EXTENDED, page, &guest.mask, SIZEMASK), EFAULT);
	check_still_runs(&guest);
}

struct unmapping {
	volatile uint64_t *word;
	void *page;
};

/* As soon as the guest runs, takes the page away, and ends the run. */
static void *unmap_soon(void *argument)
{
	struct unmapping *unmapping = argument;

	wait_for_change(unmapping->word);
	CHECK_EQ(munmap(unmapping->page, PAGE), 0);
	kill(getpid(), SIGUSR1);
	return NULL;
}

static void check_unmapped_while_inside(struct process_vm_exec_context *context, siginfo_t *info, struct _fpstate *fpstate,
					void *page)
{
	struct unmapping unmapping = { .word = shared_words(), .page = page };
	struct guest guest = new_guest(count_for_ever);
	const uint64_t mask = SET(SIGUSR1);
	pthread_t thread;

	*context = guest.context;
	context->context.rdi = (uintptr_t)unmapping.word;
	context->context.fpstate = (void *)fpstate;
	thread = start_thread(unmap_soon, &unmapping);
	errno = 0;
	CHECK_FAILS(process_vm_exec(guest.target, context, EXTENDED, info, &mask, SIZEMASK), EFAULT);
	pthread_join(thread, NULL);
	check_still_runs(&guest);
	end_target(guest.target);
}

CLAIM(pointers_that_become_bad_half_way_are_faults_of_the_call)
{
	struct process_vm_exec_context context;
	siginfo_t info;
	struct _fpstate fpstate;
	int i;

	block(SIGUSR1);
	for (i = 0; i < 3; i++) {
		void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		sigset_t set;

		note("pointer %d", i);
		memset(&fpstate, 0, sizeof(fpstate));
		fpstate.mxcsr = 0x1f80;
		if (i == 0)
			check_unmapped_while_inside(page, &info, NULL, page);
		else if (i == 1)
			check_unmapped_while_inside(&context, page, NULL, page);
		else {
			memcpy(page, &fpstate, sizeof(fpstate));
			check_unmapped_while_inside(&context, &info, page, page);
		}
		/* Taken, or still there. */
		sigemptyset(&set);
		sigaddset(&set, SIGUSR1);
		sigtimedwait(&set, NULL, &(struct timespec){ 0, 0 });
	}
}

CLAIM(addresses_that_a_program_cannot_have_are_invalid)
{
	static const unsigned long addresses[] = { 1UL << 47, 1UL << 63, ~0UL, 0xffffffff81000000, 0xffff888000000000 };
	struct guest guest = new_guest(end_at_once), copy;
	size_t i;

	for (i = 0; i < sizeof(addresses) / sizeof(addresses[0]); i++) {
		copy = guest;
		regs(&copy)->rip = addresses[i];
		check_refused(&copy, EXTENDED, EINVAL);
		copy = guest;
		copy.context.fs_base = addresses[i];
		check_refused(&copy, EXTENDED, EINVAL);
		copy = guest;
		copy.context.gs_base = addresses[i];
		check_refused(&copy, EXTENDED, EINVAL);
	}
	check_still_runs(&guest);
}

CLAIM(any_stack_pointer_is_the_guests_own_problem)
{
	static const unsigned long pointers[] = { 0, 1, 1UL << 47, 1UL << 63, ~0UL, 0xffffffff81000000, 0xfffffe0000000ff8 };
	struct guest guest = new_guest(push);
	size_t i;

	for (i = 0; i < sizeof(pointers) / sizeof(pointers[0]); i++) {
		set_registers(&guest, push);
		regs(&guest)->rsp = pointers[i];
		run(&guest);
		CHECK_EQ(guest.info.si_signo, SIGSYS);
		CHECK_EQ(regs(&guest)->rsp, pointers[i]);
		run(&guest);
		CHECK(guest.info.si_signo == SIGSEGV || guest.info.si_signo == SIGBUS);
		CHECK_EQ(regs(&guest)->rsp, pointers[i]);
	}
	check_still_runs(&guest);
}

CLAIM(segments_that_a_program_does_not_have_are_invalid)
{
	struct guest guest = new_guest(end_at_once), copy;
	unsigned int selector;

	for (selector = 0; selector < 0x100; selector++) {
		copy = guest;
		regs(&copy)->cs = (unsigned short)selector;
		if (selector != USER_CS && selector != USER32_CS)
			check_refused(&copy, EXTENDED, EINVAL);
		copy = guest;
		regs(&copy)->ss = (unsigned short)selector;
		if (selector != USER_SS && selector != 0)
			check_refused(&copy, EXTENDED, EINVAL);
	}
	copy = guest;
	regs(&copy)->cs = 0xffff;
	check_refused(&copy, EXTENDED, EINVAL);
	copy = guest;
	regs(&copy)->ss = 0;
	run_to_call(&copy, NR_OURS);
	check_still_runs(&guest);
}

CLAIM(flags_that_a_program_cannot_have_are_ignored)
{
	/* IOPL, NT, VM, VIF, VIP; IF missing. */
	static const unsigned long flags[] = { 0x3000, 0x4000, 0x20000, 0x80000, 0x100000, ~0x100UL & 0xffffffff, ~0x100UL, 0 };
	struct guest guest = new_guest(read_flags);
	size_t i;

	for (i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
		set_registers(&guest, read_flags);
		regs(&guest)->eflags = flags[i];
		CHECK_EQ(run(&guest), SIGILL);
		CHECK_EQ(regs(&guest)->rax & 0x1a7000, 0);
		CHECK_EQ(regs(&guest)->rax & 0x200, 0x200);
		CHECK_EQ(regs(&guest)->eflags & 0x1a7000, 0);
		set_registers(&guest, no_interrupts);
		regs(&guest)->eflags = flags[i];
		CHECK_EQ(run(&guest), SIGSEGV);
	}
}

/* What a signal frame has at the end of the FXSAVE area. */
struct frame {
	struct _fpstate legacy;
	unsigned long header[8];
	char rest[16384];
} __attribute__((aligned(64)));

static struct frame frame;

static unsigned int xsave_size(void)
{
	unsigned int a = 13, b, c = 0, d;

	__asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	return b;
}

static void set_frame(void)
{
	unsigned int size = xsave_size();

	memset(&frame, 0, sizeof(frame));
	frame.legacy.mxcsr = 0x1f80;
	frame.legacy.sw_reserved.magic1 = FP_XSTATE_MAGIC1;
	frame.legacy.sw_reserved.xfeatures = 3;
	frame.legacy.sw_reserved.xstate_size = size;
	frame.legacy.sw_reserved.extended_size = size + FP_XSTATE_MAGIC2_SIZE;
	frame.header[0] = 3;
	*(unsigned int *)((char *)&frame + size) = FP_XSTATE_MAGIC2;
}

CLAIM(extended_state_that_the_processor_cannot_have_is_invalid)
{
	struct guest guest = new_guest(end_at_once);

	if (xsave_size() + FP_XSTATE_MAGIC2_SIZE > sizeof(frame))
		skip("this processor has too much state");
	regs(&guest)->fpstate = &frame.legacy;
	/* It would be right like this. */
	set_frame();
	run_to_call(&guest, NR_OURS);
	set_registers(&guest, end_at_once);
	regs(&guest)->fpstate = &frame.legacy;

	set_frame();
	frame.legacy.mxcsr = 0xffffffff;
	check_refused(&guest, EXTENDED, EINVAL);
	memset(&frame.legacy.sw_reserved, 0, sizeof(frame.legacy.sw_reserved));
	check_refused(&guest, EXTENDED, EINVAL);
	set_frame();
	frame.header[0] = ~0UL;
	frame.legacy.sw_reserved.xfeatures = ~0UL;
	check_refused(&guest, EXTENDED, EINVAL);
	set_frame();
	frame.header[1] = 1UL << 63;
	check_refused(&guest, EXTENDED, EINVAL);
	set_frame();
	frame.header[3] = 1;
	check_refused(&guest, EXTENDED, EINVAL);
	set_frame();
	frame.legacy.sw_reserved.xstate_size = 0xffffffff;
	frame.legacy.sw_reserved.extended_size = 0xffffffff;
	check_refused(&guest, EXTENDED, EINVAL);
	set_frame();
	frame.legacy.sw_reserved.xstate_size = 513;
	check_refused(&guest, EXTENDED, EINVAL);
	set_frame();
	*(unsigned int *)((char *)&frame + xsave_size()) = 0;
	check_refused(&guest, EXTENDED, EINVAL);
	check_still_runs(&guest);
}
