// SPDX-License-Identifier: GPL-2.0-only
/* Faults of guest code: reported if the mask has the signal, raised for the caller if not. */
#include "guests.h"

#include <fcntl.h>

MARK(the_load);
GUEST(load, "the_load: mov (%rdi), %rax; mov %rax, %rbx; mov $7777, %eax; syscall");
MARK(the_store);
GUEST(store, "the_store: movq $42, (%rdi); mov $7777, %eax; syscall");
GUEST(jump, "jmp *%rdi");
GUEST(divide, "xor %ecx, %ecx; div %ecx; ud2");
GUEST(undefined, "ud2");
GUEST(breakpoint, "int3; mov $7777, %eax; syscall");
GUEST(privileged, "cli; ud2");
GUEST(port, "in $0x80, %al; ud2");
GUEST(faults_for_ever, "1: mov (%rdi), %rax; inc %rbx; jmp 1b");
/* Adds up a byte of each page. */
GUEST(touch_pages, "xor %ebx, %ebx; 1: movb $1, (%rdi); movzbl (%rdi), %eax; add %rax, %rbx; add $4096, %rdi; dec %rcx;"
		   "jnz 1b; mov $7777, %eax; syscall");

static char *const nowhere = (char *)0x10000000;

static void *map(int protection)
{
	void *page = mmap(NULL, PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(page != MAP_FAILED);
	return page;
}

static void check_page_fault(struct guest *guest, const void *address, int code, unsigned long error)
{
	CHECK_EQ(run(guest), SIGSEGV);
	CHECK_EQ(guest->info.si_code, code);
	CHECK_EQ(guest->info.si_addr, address);
	CHECK_EQ(regs(guest)->cr2, address);
	CHECK_EQ(regs(guest)->trapno, 14);
	CHECK_EQ(regs(guest)->err & 0x17, error);
}

CLAIM(a_load_from_unmapped_memory_is_reported_with_its_address)
{
	struct guest guest = new_guest(load);

	regs(&guest)->rdi = (uintptr_t)nowhere + 8;
	check_page_fault(&guest, nowhere + 8, SEGV_MAPERR, 4);
	CHECK_EQ(regs(&guest)->rip, the_load);
}

CLAIM(a_store_to_read_only_memory_is_reported_as_a_write)
{
	char *page = map(PROT_READ);
	struct guest guest = new_guest(store);

	CHECK_EQ(page[0], 0);
	regs(&guest)->rdi = (uintptr_t)page;
	CHECK_EQ(run(&guest), SIGSEGV);
	CHECK_EQ(guest.info.si_code, SEGV_ACCERR);
	CHECK_EQ(regs(&guest)->err & 6, 6);
	CHECK_EQ(regs(&guest)->cr2, page);
}

CLAIM(a_jump_into_data_is_reported_as_an_instruction_fetch)
{
	char *page = map(PROT_READ | PROT_WRITE);
	struct guest guest;

	page[0] = 1;
	guest = new_guest(jump);
	regs(&guest)->rdi = (uintptr_t)page;
	CHECK_EQ(run(&guest), SIGSEGV);
	CHECK_EQ(guest.info.si_code, SEGV_ACCERR);
	CHECK_EQ(regs(&guest)->err & 0x14, 0x14);
	CHECK_EQ(regs(&guest)->rip, page);
}

CLAIM(kernel_addresses_are_page_faults_like_others)
{
	struct guest guest = new_guest(load);

	regs(&guest)->rdi = 0xffffffff81000000;
	CHECK_EQ(run(&guest), SIGSEGV);
	CHECK_EQ(regs(&guest)->rip, the_load);
	set_registers(&guest, jump);
	regs(&guest)->rdi = 0xffffffff81000000;
	CHECK_EQ(run(&guest), SIGSEGV);
}

CLAIM(addresses_that_are_not_canonical_are_general_protection_faults)
{
	struct guest guest = new_guest(load);

	regs(&guest)->rdi = 1UL << 63;
	CHECK_EQ(run(&guest), SIGSEGV);
	CHECK_EQ(guest.info.si_code, SI_KERNEL);
	CHECK_EQ(regs(&guest)->trapno, 13);
	CHECK_EQ(regs(&guest)->rip, the_load);
	set_registers(&guest, jump);
	regs(&guest)->rdi = 1UL << 63;
	CHECK_EQ(run(&guest), SIGSEGV);
}

CLAIM(other_exceptions_are_reported_as_their_signals)
{
	static const struct {
		const char *code;
		int signal;
		unsigned long trapno;
	} cases[] = {
		{ divide, SIGFPE, 0 },	    { undefined, SIGILL, 6 }, { breakpoint, SIGTRAP, 3 },
		{ privileged, SIGSEGV, 13 }, { port, SIGSEGV, 13 },
	};
	struct guest guest = new_guest(divide);
	size_t i;

	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		set_registers(&guest, cases[i].code);
		CHECK_EQ(run(&guest), cases[i].signal);
		CHECK_EQ(regs(&guest)->trapno, cases[i].trapno);
	}
}

CLAIM(a_guest_goes_on_behind_a_breakpoint)
{
	struct guest guest = new_guest(breakpoint);

	CHECK_EQ(run(&guest), SIGTRAP);
	CHECK_EQ(regs(&guest)->rip, breakpoint + 1);
	run_to_call(&guest, NR_OURS);
}

CLAIM(access_behind_the_end_of_a_file_is_a_bus_error)
{
	int file = memfd_create("file", 0);
	char *pages;
	struct guest guest;

	CHECK_EQ(ftruncate(file, PAGE), 0);
	pages = mmap(NULL, 2 * PAGE, PROT_READ, MAP_SHARED, file, 0);
	CHECK(pages != MAP_FAILED);
	guest = new_guest(load);
	regs(&guest)->rdi = (uintptr_t)pages + PAGE;
	CHECK_EQ(run(&guest), SIGBUS);
	CHECK_EQ(guest.info.si_code, BUS_ADRERR);
	CHECK_EQ(guest.info.si_addr, pages + PAGE);
}

CLAIM(a_fault_is_answered_by_mapping_memory_in_the_target)
{
	const long number = 0x123456789;
	struct guest guest = new_guest(load);

	regs(&guest)->rdi = (uintptr_t)nowhere;
	check_page_fault(&guest, nowhere, SEGV_MAPERR, 4);
	CHECK_EQ(call_in(guest.target, SYS_mmap, (long)nowhere, PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
		 nowhere);
	write_target(guest.target, nowhere, &number, sizeof(number));
	run_to_call(&guest, NR_OURS);
	CHECK_EQ(regs(&guest)->rbx, number);
}

CLAIM(a_loop_of_faults_is_answered_by_stepping_over_them)
{
	struct guest guest = new_guest(faults_for_ever);
	int i;

	regs(&guest)->rdi = (uintptr_t)nowhere;
	for (i = 0; i < 1000; i++) {
		CHECK_EQ(run(&guest), SIGSEGV);
		CHECK_EQ(regs(&guest)->rip, faults_for_ever);
		CHECK_EQ(regs(&guest)->rbx, i);
		regs(&guest)->rip += 3;
	}
}

CLAIM(the_targets_memory_appears_on_demand_while_the_guest_runs)
{
	const unsigned long pages = 512;
	char *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct guest guest;
	unsigned long i;

	CHECK(memory != MAP_FAILED);
	for (i = 0; i < pages; i += 2)
		memory[i * PAGE] = 5;
	guest = new_guest(touch_pages);
	regs(&guest)->rdi = (uintptr_t)memory;
	regs(&guest)->rcx = pages;
	run_to_call(&guest, NR_OURS);
	CHECK_EQ(regs(&guest)->rbx, pages);
	for (i = 0; i < pages; i++) {
		CHECK_EQ(TARGETS(guest.target, memory[i * PAGE]), 1);
		CHECK_EQ(memory[i * PAGE], i % 2 ? 0 : 5);
	}
}

static struct guest handlers_guest;
static volatile int handled;
static void *volatile handled_address;

static void step_over(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	handled++;
	handled_address = info->si_addr;
}

/* Runs in the caller's memory, and may use the call itself. */
static void map_there(int signal, siginfo_t *info, void *context)
{
	step_over(signal, info, context);
	if (call_in(handlers_guest.target, SYS_mmap, (long)nowhere, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
		    -1, 0) != (long)nowhere)
		_exit(EXIT_FAILURE);
}

static void handle(int signal, void (*handler)(int, siginfo_t *, void *), int flags)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = flags | SA_SIGINFO };

	CHECK_EQ(sigaction(signal, &action, NULL), 0);
}

CLAIM(a_fault_that_the_mask_does_not_have_is_raised_for_the_caller)
{
	handlers_guest = new_guest(load);
	handlers_guest.mask = 0;
	regs(&handlers_guest)->rdi = (uintptr_t)nowhere + 16;
	handle(SIGSEGV, step_over, 0);
	CHECK_FAILS(run_raw(&handlers_guest), EINTR);
	CHECK_EQ(handled, 1);
	CHECK_EQ(handled_address, nowhere + 16);
	CHECK_EQ(regs(&handlers_guest)->rip, the_load);
}

CLAIM(the_guest_goes_on_after_a_handler_that_restarts)
{
	handlers_guest = new_guest(load);
	handlers_guest.mask = 0;
	regs(&handlers_guest)->rdi = (uintptr_t)nowhere;
	handle(SIGSEGV, map_there, SA_RESTART);
	run_to_call(&handlers_guest, NR_OURS);
	CHECK_EQ(handled, 1);
	CHECK_EQ(regs(&handlers_guest)->rbx, 0);
}

static void fault_with_signal_blocked(void *guest)
{
	block(SIGSEGV);
	run_raw(guest);
}

static void fault_without_handler(void *guest)
{
	run_raw(guest);
}

CLAIM(a_fault_whose_signal_is_blocked_or_has_no_handler_kills_the_caller)
{
	struct guest guest = new_guest(load);
	int status;

	guest.mask = 0;
	regs(&guest)->rdi = (uintptr_t)nowhere;
	status = status_of(fault_with_signal_blocked, &guest);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
	status = status_of(fault_without_handler, &guest);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
	/* The target has noticed nothing. */
	CHECK_EQ(waitpid(guest.target, &status, WNOHANG), 0);
	guest.mask = FAULTS;
	check_page_fault(&guest, nowhere, SEGV_MAPERR, 4);
}
