// SPDX-License-Identifier: GPL-2.0-only
/* Extended state, segment bases and protection keys: each side keeps its own. */
#include "guests.h"

#include <asm/prctl.h>
#include <cpuid.h>

GUEST(add_to_xmm, "paddq %xmm0, %xmm0; mov $7777, %eax; syscall; jmp add_to_xmm");
/* Everything that a task has in vector, x87 and SSE control registers changes. */
GUEST(trash, "pcmpeqb %xmm0, %xmm0; movdqa %xmm0, %xmm1; movdqa %xmm0, %xmm6; movdqa %xmm0, %xmm15; fninit; fldpi; fldpi;"
	     "movl $0x7f80, -8(%rsp); ldmxcsr -8(%rsp); mov $7777, %eax; syscall; jmp trash");
GUEST(trash_ymm, "pcmpeqb %xmm0, %xmm0; vinsertf128 $1, %xmm0, %ymm0, %ymm0; vmovaps %ymm0, %ymm7; vmovaps %ymm0, %ymm15;"
		 "mov $7777, %eax; syscall; jmp trash_ymm");
GUEST(show_xmm, "movq %xmm0, %rbx; stmxcsr -8(%rsp); mov -8(%rsp), %ecx; mov %rcx, %r12; mov $7777, %eax; syscall;"
		"jmp show_xmm");
GUEST(show_ymm, "vextractf128 $1, %ymm3, %xmm0; movq %xmm0, %rbx; mov $7777, %eax; syscall; jmp show_ymm");
GUEST(keep_xmm, "movq %rdi, %xmm5; mov $7777, %eax; syscall; movq %xmm5, %rbx; mov $7777, %eax; syscall");
GUEST(swap_bases, "rdfsbase %rbx; rdgsbase %r12; wrfsbase %rdi; wrgsbase %rsi; mov $7777, %eax; syscall; jmp swap_bases");
GUEST(load_selectors, "mov $0x2b, %eax; mov %eax, %fs; mov %eax, %gs; mov %eax, %ds; mov %eax, %es; mov $7777, %eax; syscall;"
		      "jmp load_selectors");
GUEST(read_key_rights, "xor %ecx, %ecx; rdpkru; mov %rax, %rbx; mov $7777, %eax; syscall; jmp read_key_rights");
GUEST(write_key_rights, "xor %ecx, %ecx; xor %edx, %edx; mov %edi, %eax; wrpkru; mov (%rsi), %rbx; mov $7777, %eax; syscall");
GUEST(set_direction, "std; stc; mov $7777, %eax; syscall; jmp set_direction");

static bool has_fsgsbase(void)
{
	/* HWCAP2_FSGSBASE */
	unsigned long auxiliary[2];
	FILE *file = fopen("/proc/self/auxv", "r");
	bool found = false;

	while (file && fread(auxiliary, sizeof(auxiliary), 1, file) == 1)
		found |= auxiliary[0] == 26 && (auxiliary[1] & 2);
	return found;
}

/* The call itself, with nothing of the C library in between. */
#define CALL_REGISTERS(guest)                                                                    \
	"+a"(result) : "D"((guest)->target), "S"(&(guest)->context), "d"(EXTENDED), "r"(fourth), \
		"r"(fifth), "r"(sixth)

static long call_with_vectors(struct guest *guest, void *in, void *out)
{
	register void *fourth __asm__("r10") = &guest->info;
	register void *fifth __asm__("r8") = &guest->mask;
	register long sixth __asm__("r9") = SIZEMASK;
	register void *from __asm__("r12") = in;
	register void *to __asm__("r13") = out;
	long result = __NR_process_vm_exec;

	/* 16 XMM registers, MXCSR, x87 control word, in this order. */
	__asm__ volatile("movdqu (%%r12), %%xmm0; movdqu 16(%%r12), %%xmm1; movdqu 96(%%r12), %%xmm6; movdqu 240(%%r12), %%xmm15;"
			 "ldmxcsr 256(%%r12); fldcw 260(%%r12); syscall;"
			 "movdqu %%xmm0, (%%r13); movdqu %%xmm1, 16(%%r13); movdqu %%xmm6, 96(%%r13);"
			 "movdqu %%xmm15, 240(%%r13); stmxcsr 256(%%r13); fnstcw 260(%%r13)"
			 : CALL_REGISTERS(guest), "r"(from), "r"(to)
			 : "rcx", "r11", "memory", "xmm0", "xmm1", "xmm6", "xmm15");
	return result;
}

CLAIM(the_callers_vector_registers_and_control_words_survive_any_guest)
{
	static unsigned char before[264], after[264];
	const unsigned int controls[2] = { 0x3f80, 0x0a7f }, standard[2] = { 0x1f80, 0x037f };
	struct guest guest = new_guest(trash);
	int i, round;

	for (i = 0; i < 256; i++)
		before[i] = after[i] = (unsigned char)i;
	memcpy(before + 256, controls, 8);
	for (round = 0; round < 200; round++) {
		CHECK_EQ(call_with_vectors(&guest, before, after), 0);
		CHECK_EQ(guest.info.si_syscall, NR_OURS);
		__asm__ volatile("ldmxcsr %0; fldcw %1" : : "m"(standard[0]), "m"(standard[1]));
		CHECK_EQ(memcmp(before, after, 256), 0);
		CHECK_EQ(memcmp(before + 256, after + 256, 6), 0);
	}
}

CLAIM(the_upper_halves_of_the_callers_vector_registers_survive)
{
	struct guest guest = new_guest(trash_ymm);
	static unsigned char before[32], after[32];
	register void *fourth __asm__("r10") = &guest.info;
	register void *fifth __asm__("r8") = &guest.mask;
	register long sixth __asm__("r9") = SIZEMASK;
	int i;

	if (!__builtin_cpu_supports("avx"))
		skip("this processor has no AVX");
	for (i = 0; i < 32; i++)
		before[i] = (unsigned char)i;
	for (i = 0; i < 100; i++) {
		long result = __NR_process_vm_exec;

		__asm__ volatile("vmovdqu (%%r12), %%ymm7; syscall; vmovdqu %%ymm7, (%%r13); vzeroupper"
				 : "+a"(result)
				 : "D"(guest.target), "S"(&guest.context), "d"(EXTENDED), "r"(fourth), "r"(fifth),
				   "r"(sixth), "r"(({ register void *r12 __asm__("r12") = before; r12; })),
				   "r"(({ register void *r13 __asm__("r13") = after; r13; }))
				 : "rcx", "r11", "memory", "xmm7");
		CHECK_EQ(result, 0);
		CHECK_EQ(memcmp(before, after, 32), 0);
	}
}

CLAIM(a_guest_begins_with_the_initial_extended_state)
{
	struct guest guest = new_guest(show_xmm);
	static unsigned char before[264] = { 1, 2, 3, 4, 5, 6, 7, 8 }, after[264];
	const unsigned int controls[2] = { 0x1f80, 0x037f };

	memcpy(before + 256, controls, 8);
	CHECK_EQ(call_with_vectors(&guest, before, after), 0);
	CHECK_EQ(guest.info.si_signo, SIGSYS);
	CHECK_EQ(regs(&guest)->rbx, 0);
	CHECK_EQ(regs(&guest)->r12, 0x1f80);
}

CLAIM(a_guest_without_fpstate_finds_its_extended_state_again)
{
	struct guest guest = new_guest(keep_xmm);
	static unsigned char before[264], after[264];
	const unsigned int controls[2] = { 0x1f80, 0x037f };

	memset(before, 0x77, 256);
	memcpy(before + 256, controls, 8);
	regs(&guest)->rdi = 0x123456789abc;
	run_to_call(&guest, NR_OURS);
	CHECK_EQ(call_with_vectors(&guest, before, after), 0);
	CHECK_EQ(regs(&guest)->rbx, 0x123456789abc);
}

CLAIM(a_second_flow_of_control_brings_its_own_state)
{
	struct guest guests[2] = { new_guest(keep_xmm) };
	struct _fpstate states[2];
	int i, round;

	guests[1] = guests[0];
	for (round = 0; round < 20; round++) {
		for (i = 0; i < 2; i++) {
			states[i] = (struct _fpstate){ .mxcsr = 0x1f80, .cwd = 0x37f };
			set_registers(&guests[i], keep_xmm);
			regs(&guests[i])->rdi = (unsigned long)(1000 * i + round);
			regs(&guests[i])->fpstate = &states[i];
			run_to_call(&guests[i], NR_OURS);
		}
		for (i = 0; i < 2; i++) {
			run_to_call(&guests[i], NR_OURS);
			CHECK_EQ(regs(&guests[i])->rbx, 1000 * i + round);
		}
	}
}

CLAIM(extended_state_goes_in_and_out_by_fpstate)
{
	struct guest guest = new_guest(add_to_xmm);
	struct _fpstate state = { .mxcsr = 0x1f80, .cwd = 0x37f };
	uint64_t number = 1;
	int i;

	memcpy(state.xmm_space, &number, sizeof(number));
	for (i = 0; i < 20; i++) {
		regs(&guest)->fpstate = &state;
		run_to_call(&guest, NR_OURS);
		memcpy(&number, state.xmm_space, sizeof(number));
		CHECK_EQ(number, 2UL << i);
		CHECK_EQ(state.mxcsr, 0x1f80);
	}
}

CLAIM(the_whole_xsave_area_goes_in_by_fpstate)
{
	static struct {
		struct _fpstate legacy;
		uint64_t header[8];
		uint64_t upper[32];
		char rest[16384];
	} frame __attribute__((aligned(64)));
	struct guest guest = new_guest(show_ymm);
	unsigned int size, a, c, d;

	if (!__builtin_cpu_supports("avx"))
		skip("this processor has no AVX");
	__cpuid_count(13, 0, a, size, c, d);
	if (size + 4 > sizeof(frame))
		skip("this processor has too much state");
	frame.legacy.mxcsr = 0x1f80;
	frame.legacy.cwd = 0x37f;
	frame.legacy.sw_reserved.magic1 = FP_XSTATE_MAGIC1;
	frame.legacy.sw_reserved.xfeatures = 7;
	frame.legacy.sw_reserved.xstate_size = size;
	frame.legacy.sw_reserved.extended_size = size + FP_XSTATE_MAGIC2_SIZE;
	*(unsigned int *)((char *)&frame + size) = FP_XSTATE_MAGIC2;
	frame.header[0] = 7;
	frame.upper[3 * 2] = 0xabcdef;
	regs(&guest)->fpstate = &frame.legacy;
	run_to_call(&guest, NR_OURS);
	CHECK_EQ(regs(&guest)->rbx, 0xabcdef);
	CHECK_EQ(frame.header[0] & 4, 4);
	CHECK_EQ(frame.upper[3 * 2], 0xabcdef);
	CHECK_EQ(*(unsigned int *)((char *)&frame + size), FP_XSTATE_MAGIC2);
}

CLAIM(segment_bases_go_in_and_out_and_the_callers_stay)
{
	struct guest guest = new_guest(swap_bases);
	unsigned long fs, gs, fs_after, gs_after;
	int i;

	if (!has_fsgsbase())
		skip("this kernel or processor has no FSGSBASE");
	CHECK_EQ(syscall(SYS_arch_prctl, ARCH_SET_GS, 0x12345000), 0);
	CHECK_EQ(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs), 0);
	CHECK_EQ(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs), 0);
	for (i = 0; i < 100; i++) {
		guest.context.fs_base = 0x1000UL + (unsigned long)i;
		guest.context.gs_base = 0x2000UL + (unsigned long)i;
		regs(&guest)->rdi = 0x3000UL + (unsigned long)i;
		regs(&guest)->rsi = 0x7fffffffe000;
		run_to_call(&guest, NR_OURS);
		CHECK_EQ(regs(&guest)->rbx, 0x1000 + i);
		CHECK_EQ(regs(&guest)->r12, 0x2000 + i);
		CHECK_EQ(guest.context.fs_base, 0x3000 + i);
		CHECK_EQ(guest.context.gs_base, 0x7fffffffe000);
		__asm__ volatile("rdfsbase %0; rdgsbase %1" : "=r"(fs_after), "=r"(gs_after));
		CHECK_EQ(fs_after, fs);
		CHECK_EQ(gs_after, gs);
		sched_yield();
		__asm__ volatile("rdfsbase %0; rdgsbase %1" : "=r"(fs_after), "=r"(gs_after));
		CHECK_EQ(fs_after, fs);
		CHECK_EQ(gs_after, gs);
	}
}

CLAIM(without_the_extended_context_a_guest_finds_the_callers_bases)
{
	struct guest guest = new_guest(swap_bases);
	unsigned long fs;

	if (!has_fsgsbase())
		skip("this kernel or processor has no FSGSBASE");
	CHECK_EQ(syscall(SYS_arch_prctl, ARCH_SET_GS, 0x12345000), 0);
	CHECK_EQ(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs), 0);
	guest.context.fs_base = 7;
	CHECK_EQ(process_vm_exec(guest.target, &guest.context, 0, &guest.info, &guest.mask, SIZEMASK), 0);
	CHECK_EQ(guest.info.si_syscall, NR_OURS);
	CHECK_EQ(regs(&guest)->rbx, fs);
	CHECK_EQ(regs(&guest)->r12, 0x12345000);
	/* Nothing is written behind the sigcontext. */
	CHECK_EQ(guest.context.fs_base, 7);
	__asm__ volatile("rdfsbase %0" : "=r"(fs));
	CHECK_EQ(process_vm_exec(guest.target, &guest.context, 0, &guest.info, &guest.mask, SIZEMASK), 0);
	CHECK_EQ(regs(&guest)->rbx, fs);
}

CLAIM(a_guest_that_loads_segment_selectors_leaves_the_callers_alone)
{
	struct guest guest = new_guest(load_selectors);
	unsigned int fs, gs, ds, es;
	int i;

	for (i = 0; i < 20; i++) {
		run_to_call(&guest, NR_OURS);
		__asm__ volatile("mov %%fs, %0; mov %%gs, %1; mov %%ds, %2; mov %%es, %3" : "=r"(fs), "=r"(gs), "=r"(ds), "=r"(es));
		CHECK_EQ(fs | gs | ds | es, 0);
		/* errno lies behind FS. */
		CHECK_FAILS(close(-1), EBADF);
		sched_yield();
	}
}

static unsigned int key_rights(void)
{
	unsigned int rights, d, c = 0;

	__asm__ volatile("rdpkru" : "=a"(rights), "=d"(d) : "c"(c));
	return rights;
}

static void set_key_rights(unsigned int rights)
{
	__asm__ volatile("wrpkru" : : "a"(rights), "c"(0), "d"(0));
}

CLAIM(each_side_has_its_own_rights_of_protection_keys)
{
	void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int key = pkey_alloc(0, 0);
	unsigned int ours;
	struct guest guest;

	if (key == -1)
		skip("this kernel or processor has no protection keys");
	CHECK_EQ(pkey_mprotect(page, PAGE, PROT_READ | PROT_WRITE, key), 0);
	ours = (key_rights() & ~(3U << 2 * key)) | 2U << 2 * key | 1U << 2 * 15;
	guest = new_guest(write_key_rights);
	set_key_rights(ours);
	/* Denied to the guest, by the guest. */
	regs(&guest)->rdi = 3U << 2 * key;
	regs(&guest)->rsi = (uintptr_t)page;
	CHECK_EQ(run(&guest), SIGSEGV);
	CHECK_EQ(guest.info.si_code, SEGV_PKUERR);
	CHECK_EQ(guest.info.si_pkey, key);
	CHECK_EQ(key_rights(), ours);
	/* Allowed. */
	set_registers(&guest, write_key_rights);
	regs(&guest)->rsi = (uintptr_t)page;
	run_to_call(&guest, NR_OURS);
	CHECK_EQ(key_rights(), ours);
	sched_yield();
	CHECK_EQ(key_rights(), ours);
	/* What the guest has set stays with the guest, and is not what we have. */
	set_registers(&guest, read_key_rights);
	run_to_call(&guest, NR_OURS);
	CHECK_EQ(regs(&guest)->rbx, 0);
}

CLAIM(the_callers_flags_stay)
{
	struct guest guest = new_guest(set_direction);
	unsigned long flags;
	int i;

	for (i = 0; i < 10; i++) {
		run_to_call(&guest, NR_OURS);
		CHECK_EQ(regs(&guest)->eflags & 0x401, 0x401);
		__asm__ volatile("pushf; pop %0" : "=r"(flags));
		CHECK_EQ(flags & 0x400, 0);
	}
}

CLAIM(a_caller_with_a_shadow_stack_is_refused)
{
	unsigned int a, b, c, d;

	__cpuid_count(7, 0, a, b, c, d);
	if (!(c & 1 << 7))
		skip("this processor has no shadow stacks");
	/* ARCH_SHSTK_ENABLE: a function that returns after that would fault, so everything is in line. */
	struct guest guest = new_guest(add_to_xmm);
	long result = SYS_arch_prctl;

	__asm__ volatile("syscall" : "+a"(result) : "D"(0x5001), "S"(1) : "rcx", "r11", "memory");
	if (result != 0)
		skip("this kernel has no shadow stacks");
	register void *fourth __asm__("r10") = &guest.info;
	register void *fifth __asm__("r8") = &guest.mask;
	register long sixth __asm__("r9") = SIZEMASK;

	result = __NR_process_vm_exec;
	__asm__ volatile("syscall" : CALL_REGISTERS(&guest) : "rcx", "r11", "memory");
	/* ARCH_SHSTK_DISABLE */
	long disabled = SYS_arch_prctl;

	__asm__ volatile("syscall" : "+a"(disabled) : "D"(0x5002), "S"(1) : "rcx", "r11", "memory");
	CHECK_EQ(disabled, 0);
	CHECK(result < 0);
}
