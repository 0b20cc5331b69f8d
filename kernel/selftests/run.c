// SPDX-License-Identifier: GPL-2.0-only
/* Run mode: what ends a run, and what the caller learns of it. */
#include "guests.h"

#include <sys/pidfd.h>

MARK(behind_the_call);
GUEST(one_call, "mov $39, %eax; syscall; behind_the_call: mov %rax, %rbx; mov $7777, %eax; syscall");
GUEST(store, "movq $42, (%rdi); mov $7777, %eax; syscall");
GUEST(count_down, "1: mov $7777, %eax; syscall; add %rax, %rbx; dec %r12; jnz 1b; mov $7778, %eax; syscall");
/* Each register has its complement afterwards. */
GUEST(complement, "not %rax; not %rbx; not %rcx; not %rdx; not %rsi; not %rdi; not %rbp; not %rsp; not %r8; not %r9;"
		  "not %r10; not %r11; not %r12; not %r13; not %r14; not %r15; ud2");
MARK(behind_int80);
GUEST(int80, "mov $20, %eax; int $0x80; behind_int80: ud2");
GUEST(nested, "mov $511, %eax; syscall");
GUEST(x32, "mov $0x40000027, %eax; syscall");
GUEST(vsyscall_time, "mov $0xffffffffff600400, %rax; xor %edi, %edi; call *%rax; ud2");
GUEST(code32_int80, ".code32; mov $20, %eax; int $0x80; ud2; .code64");
GUEST(code32_sysenter, ".code32; mov $20, %eax; mov %esp, %ebp; sysenter; ud2; .code64");
GUEST(code32_syscall, ".code32; mov $20, %eax; syscall; ud2; .code64");
GUEST(three_steps, "nop; nop; nop; mov $7777, %eax; syscall; ud2");
GUEST(add_atomically, "1: lock incq (%rdi); dec %r12; jnz 1b; mov $7777, %eax; syscall");

static uint64_t variable;

CLAIM(a_query_tells_the_flags_and_takes_no_arguments)
{
	const unsigned long query = PROCESS_VM_EXEC_QUERY;

	CHECK_EQ(process_vm_exec(0, NULL, query, NULL, NULL, 0), query | 7);
	CHECK_FAILS(process_vm_exec(1, NULL, query, NULL, NULL, 0), EINVAL);
	CHECK_FAILS(process_vm_exec(0, &variable, query, NULL, NULL, 0), EINVAL);
	CHECK_FAILS(process_vm_exec(0, NULL, query | 1, NULL, NULL, 0), EINVAL);
	CHECK_FAILS(process_vm_exec(0, NULL, query, &variable, NULL, 0), EINVAL);
	CHECK_FAILS(process_vm_exec(0, NULL, query, NULL, &variable, 0), EINVAL);
	CHECK_FAILS(process_vm_exec(0, NULL, query, NULL, NULL, 8), EINVAL);
}

CLAIM(a_call_of_the_guest_is_reported_and_not_made)
{
	struct guest guest = new_guest(one_call);

	regs(&guest)->rdi = 1;
	regs(&guest)->rsi = 2;
	regs(&guest)->rdx = 3;
	regs(&guest)->r10 = 4;
	regs(&guest)->r8 = 5;
	regs(&guest)->r9 = 6;
	run_to_call(&guest, SYS_getpid);
	CHECK_EQ(guest.info.si_code, 2);
	CHECK_EQ(guest.info.si_errno, 0);
	CHECK_EQ(guest.info.si_arch, AUDIT_ARCH_X86_64);
	CHECK_EQ(guest.info.si_call_addr, behind_the_call);
	CHECK_EQ(regs(&guest)->rip, behind_the_call);
	CHECK_EQ(regs(&guest)->rax, SYS_getpid);
	CHECK_EQ(regs(&guest)->rdi, 1);
	CHECK_EQ(regs(&guest)->rsi, 2);
	CHECK_EQ(regs(&guest)->rdx, 3);
	CHECK_EQ(regs(&guest)->r10, 4);
	CHECK_EQ(regs(&guest)->r8, 5);
	CHECK_EQ(regs(&guest)->r9, 6);
	regs(&guest)->rax = 4711;
	run_to_call(&guest, NR_OURS);
	CHECK_EQ(regs(&guest)->rbx, 4711);
}

CLAIM(a_loop_of_calls_gets_all_answers)
{
	struct guest guest = new_guest(count_down);
	uint64_t round, sum = 0;

	regs(&guest)->r12 = 1000;
	for (round = 0; round < 1000; round++) {
		run_to_call(&guest, NR_OURS);
		regs(&guest)->rax = round * round;
		sum += round * round;
	}
	run_to_call(&guest, NR_OURS + 1);
	CHECK_EQ(regs(&guest)->rbx, sum);
}

CLAIM(the_guest_writes_the_targets_memory_and_not_the_callers)
{
	struct guest guest = new_guest(store);

	regs(&guest)->rdi = (uintptr_t)&variable;
	run_to_call(&guest, NR_OURS);
	CHECK_EQ(TARGETS(guest.target, variable), 42);
	CHECK_EQ(variable, 0);
}

CLAIM(all_general_registers_go_in_and_come_out)
{
	struct guest guest = new_guest(complement);
	struct sigcontext *after = regs(&guest);
	/* So that the stack pointer and its complement are addresses that a processor can have. */
	const uint64_t x = 0x0000123456789abc;

	after->rax = x;
	after->rbx = x + 1;
	after->rcx = x + 2;
	after->rdx = x + 3;
	after->rsi = x + 4;
	after->rdi = x + 5;
	after->rbp = x + 6;
	after->rsp = x + 7;
	after->r8 = x + 8;
	after->r9 = x + 9;
	after->r10 = x + 10;
	after->r11 = x + 11;
	after->r12 = x + 12;
	after->r13 = x + 13;
	after->r14 = x + 14;
	after->r15 = x + 15;
	CHECK_EQ(run(&guest), SIGILL);
	CHECK_EQ(after->rax, ~x);
	CHECK_EQ(after->rbx, ~(x + 1));
	CHECK_EQ(after->rcx, ~(x + 2));
	CHECK_EQ(after->rdx, ~(x + 3));
	CHECK_EQ(after->rsi, ~(x + 4));
	CHECK_EQ(after->rdi, ~(x + 5));
	CHECK_EQ(after->rbp, ~(x + 6));
	CHECK_EQ(after->rsp, ~(x + 7));
	CHECK_EQ(after->r8, ~(x + 8));
	CHECK_EQ(after->r9, ~(x + 9));
	CHECK_EQ(after->r10, ~(x + 10));
	CHECK_EQ(after->r11, ~(x + 11));
	CHECK_EQ(after->r12, ~(x + 12));
	CHECK_EQ(after->r13, ~(x + 13));
	CHECK_EQ(after->r14, ~(x + 14));
	CHECK_EQ(after->r15, ~(x + 15));
	CHECK_EQ(after->cs, USER_CS);
	CHECK_EQ(after->ss, USER_SS);
}

CLAIM(int_0x80_is_reported_as_a_32_bit_call)
{
	struct guest guest = new_guest(int80);

	run_to_call(&guest, 20);
	CHECK_EQ(guest.info.si_arch, AUDIT_ARCH_I386);
	CHECK_EQ(guest.info.si_call_addr, behind_int80);
	CHECK_EQ(regs(&guest)->rax, 20);
	CHECK_EQ(run(&guest), SIGILL);
}

CLAIM(calls_of_32_bit_code_are_reported_or_undefined_instructions)
{
	const char *const codes[] = { code32_int80, code32_sysenter, code32_syscall };
	size_t i;

	for (i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
		struct guest guest = new_guest(codes[i]);

		regs(&guest)->cs = USER32_CS;
		run(&guest);
		if (i > 0 && guest.info.si_signo == SIGILL)
			continue;
		CHECK_EQ(guest.info.si_signo, SIGSYS);
		CHECK_EQ(guest.info.si_syscall, 20);
		CHECK_EQ(guest.info.si_arch, AUDIT_ARCH_I386);
		CHECK_EQ(regs(&guest)->cs, USER32_CS);
	}
}

CLAIM(a_call_through_the_vsyscall_page_is_reported)
{
	struct guest guest = new_guest(vsyscall_time);

	run_to_call(&guest, SYS_time);
	CHECK_EQ(guest.info.si_arch, AUDIT_ARCH_X86_64);
}

CLAIM(a_guest_that_calls_process_vm_exec_is_reported_like_any_other)
{
	struct guest guest = new_guest(nested);

	run_to_call(&guest, __NR_process_vm_exec);
}

CLAIM(a_number_of_the_x32_abi_is_reported_as_it_is)
{
	struct guest guest = new_guest(x32);

	run_to_call(&guest, 0x40000027);
}

CLAIM(a_guest_is_single_stepped_by_its_trap_flag)
{
	struct guest guest = new_guest(three_steps);
	int step;

	regs(&guest)->eflags |= 0x100;
	for (step = 1; step <= 3; step++) {
		CHECK_EQ(run(&guest), SIGTRAP);
		CHECK_EQ(guest.info.si_code, TRAP_TRACE);
		CHECK_EQ(regs(&guest)->rip, three_steps + step);
		CHECK(regs(&guest)->eflags & 0x100);
	}
	CHECK_EQ(run(&guest), SIGTRAP);
	/* The call is next; its report may be followed by the step behind it, but nothing executes. */
	if (run(&guest) == SIGTRAP)
		run(&guest);
	CHECK_EQ(guest.info.si_signo, SIGSYS);
	CHECK_EQ(guest.info.si_syscall, NR_OURS);
	regs(&guest)->eflags &= ~0x100UL;
	CHECK_EQ(run(&guest), SIGILL);
}

CLAIM(a_target_is_named_by_its_descriptor_too)
{
	struct guest guest = new_guest(call_for_ever);
	int descriptor = pidfd_open(guest.target, 0);

	CHECK(descriptor != -1);
	CHECK_EQ(process_vm_exec(descriptor, &guest.context, PROCESS_VM_EXEC_PIDFD, &guest.info, &guest.mask, SIZEMASK), 0);
	CHECK_EQ(guest.info.si_syscall, NR_OURS);
}

static void *add(void *argument)
{
	struct guest *guest = argument;

	run_to_call(guest, NR_OURS);
	return NULL;
}

CLAIM(threads_of_the_caller_run_in_one_target_at_the_same_time)
{
	struct guest guests[4] = { new_guest(add_atomically) };
	pthread_t threads[4];
	int i;

	regs(&guests[0])->rdi = (uintptr_t)&variable;
	regs(&guests[0])->r12 = 100000;
	for (i = 1; i < 4; i++)
		guests[i] = guests[0];
	for (i = 0; i < 4; i++)
		threads[i] = start_thread(add, &guests[i]);
	for (i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	CHECK_EQ(TARGETS(guests[0].target, variable), 400000);
	CHECK_EQ(variable, 0);
}

CLAIM(one_thread_runs_in_many_targets_by_turns)
{
	struct guest guests[8];
	int i, round;

	for (i = 0; i < 8; i++) {
		guests[i] = new_guest(count_down);
		regs(&guests[i])->r12 = 50;
	}
	for (round = 0; round < 50; round++) {
		for (i = 0; i < 8; i++) {
			run_to_call(&guests[i], NR_OURS);
			regs(&guests[i])->rax = (unsigned long)i;
		}
	}
	for (i = 0; i < 8; i++) {
		run_to_call(&guests[i], NR_OURS + 1);
		CHECK_EQ(regs(&guests[i])->rbx, 50 * i);
	}
}

CLAIM(the_targets_own_threads_run_on_meanwhile)
{
	struct guest guest = { .mask = SET(SIGUSR1) };
	volatile uint64_t *words = shared_words();

	set_registers(&guest, count_for_ever);
	regs(&guest)->rdi = (uintptr_t)&words[0];
	guest.target = fork();
	if (guest.target == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;) {
			words[1]++;
			sched_yield();
		}
	}
	block(SIGUSR1);
	signal_later(SIGUSR1, 50);
	wait_for_change(&words[1]);
	CHECK_EQ(run(&guest), SIGUSR1);
	CHECK(words[0] > 0);
	wait_for_change(&words[1]);
}
