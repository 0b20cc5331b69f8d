/* Run mode: system calls, faults, segment bases and floating-point state come out as they should. */
#include "support.h"

extern const char two_calls[], bad_write[], use_xmm0[], read_bases[];
__asm__(".pushsection .text\n"
	"two_calls: mov $39, %eax\n syscall\n mov %eax, %ebx\n mov $110, %eax\n syscall\n hlt\n"
	"bad_write: mov %eax, 0x10\n"
	"use_xmm0: movq %xmm0, %rax\n mov $7, %ebx\n movq %rbx, %xmm0\n syscall\n movq %xmm0, %rax\n syscall\n"
	"read_bases: rdfsbase %rbx\n syscall\n"
	".popsection");

static volatile sig_atomic_t handled;

static void handler(int signal, siginfo_t *info, void *context)
{
	(void)context;
	if (signal == SIGSEGV && info->si_addr == (void *)0x10)
		handled++;
}

int main(void)
{
	struct sigcontext uctx;
	struct process_vm_exec_context extended;
	/* fpstate is a struct _fpstate *: the state as FXSAVE has it. */
	struct _fpstate fp;
	struct sigaction action;
	sigset_t mask = set_of(SIGSEGV);
	siginfo_t info;
	pid_t child;

	need_targets();
	child = start_target();

	uctx = context_at(two_calls);
	CHECK(run_in(child, &uctx, &info, SIGSEGV) == 0);
	CHECK(info.si_signo == SIGSYS && info.si_syscall == SYS_getpid && uctx.rax == SYS_getpid);
	CHECK(info.si_call_addr == two_calls + 7 && info.si_arch == 0xc000003e);
	uctx.rax = 1234;
	CHECK(run_in(child, &uctx, &info, SIGSEGV) == 0);
	CHECK(info.si_syscall == SYS_getppid && uctx.rbx == 1234);
	CHECK(run_in(child, &uctx, &info, SIGSEGV) == 0);
	CHECK(info.si_signo == SIGSEGV && uctx.trapno == 13);

	uctx = context_at(bad_write);
	CHECK(run_in(child, &uctx, &info, SIGSEGV) == 0);
	CHECK(info.si_signo == SIGSEGV && info.si_code == SEGV_MAPERR && info.si_addr == (void *)0x10);
	CHECK(uctx.rip == (unsigned long)bad_write && uctx.trapno == 14 && uctx.err == 6 && uctx.cr2 == 0x10);

	/* Not in the mask: it is our own handler's. */
	memset(&action, 0, sizeof(action));
	action.sa_sigaction = handler;
	action.sa_flags = SA_SIGINFO;
	CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
	FAILS(run_in(child, &uctx, &info, SIGUSR1), EINTR);
	CHECK(handled == 1 && uctx.cr2 == 0x10);

	/* Floating-point state: kept without fpstate, exchanged with it. */
	uctx = context_at(use_xmm0);
	CHECK(run_in(child, &uctx, &info, SIGSEGV) == 0);
	CHECK(run_in(child, &uctx, &info, SIGSEGV) == 0);
	CHECK(uctx.rax == 7);
	memset(&fp, 0, sizeof(fp));
	fp.mxcsr = 0x1f80;
	fp._xmm[0].element[0] = 99;
	uctx = context_at(use_xmm0);
	uctx.fpstate = &fp;
	CHECK(run_in(child, &uctx, &info, SIGSEGV) == 0);
	CHECK(uctx.rax == 99 && fp._xmm[0].element[0] == 7 && uctx.fpstate == &fp);

	/* Segment bases. */
	memset(&extended, 0, sizeof(extended));
	extended.context = context_at(read_bases);
	extended.fs_base = 0x12345000;
	CHECK(process_vm_exec(child, &extended.context, PROCESS_VM_EXEC_EXTENDED, &info, &mask, 8) == 0);
	CHECK(extended.context.rbx == 0x12345000 && extended.fs_base == 0x12345000);
	extended.context = context_at(read_bases);
	CHECK(run_in(child, &extended.context, &info, SIGSEGV) == 0);
	CHECK(extended.context.rbx == (unsigned long)pthread_self());
	end_target(child);
	return EXIT_SUCCESS;
}
