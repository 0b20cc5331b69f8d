/* Arguments that a system call would refuse are refused in the same way; no target is attached to. */
#include "support.h"

/* It never runs. */
static const char code[1];

int main(void)
{
	siginfo_t info;
	sigset_t mask = set_of(SIGSEGV);
	struct sigcontext good = context_at(code), bad;
	struct sigcontext *unmapped;
	pid_t child = start_target();
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	void *memory = mmap(NULL, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pid_t gone;

	CHECK(memory != MAP_FAILED);
	unmapped = (struct sigcontext *)8;

	/* Flags and sizes. */
	FAILS(process_vm_exec(child, &good, 0x8, &info, &mask, 8), EINVAL);
	FAILS(process_vm_exec(child, &good, ~0UL, &info, &mask, 8), EINVAL);
	FAILS(process_vm_exec(child, &good, 0, &info, &mask, sizeof(mask)), EINVAL);
	FAILS(process_vm_exec(child, &good, 0, &info, &mask, 0), EINVAL);

	/* Targets. */
	FAILS(process_vm_exec(0, &good, 0, &info, &mask, 8), EINVAL);
	FAILS(process_vm_exec(-1, &good, 0, &info, &mask, 8), EINVAL);
	FAILS(process_vm_exec(getpid(), &good, 0, &info, &mask, 8), EINVAL);
	FAILS(process_vm_exec(-1, &good, PROCESS_VM_EXEC_PIDFD, &info, &mask, 8), EBADF);
	FAILS(process_vm_exec(12345, &good, PROCESS_VM_EXEC_PIDFD, &info, &mask, 8), EBADF);
	FAILS(process_vm_exec(STDIN_FILENO, &good, PROCESS_VM_EXEC_PIDFD, &info, &mask, 8), EBADF);
	gone = fork();
	CHECK(gone != -1);
	if (gone == 0)
		_exit(0);
	CHECK(waitpid(gone, NULL, 0) == gone);
	FAILS(process_vm_exec(gone, &good, 0, &info, &mask, 8), ESRCH);
	FAILS(call_in(gone, 0, &good), ESRCH);

	/* Pointers. */
	FAILS(process_vm_exec(child, NULL, 0, &info, &mask, 8), EFAULT);
	FAILS(process_vm_exec(child, &good, 0, NULL, &mask, 8), EFAULT);
	FAILS(process_vm_exec(child, &good, 0, &info, NULL, 8), EFAULT);
	FAILS(process_vm_exec(child, unmapped, 0, &info, &mask, 8), EFAULT);
	FAILS(process_vm_exec(child, memory, 0, &info, &mask, 8), EFAULT);
	FAILS(process_vm_exec(child, &good, 0, memory, &mask, 8), EFAULT);
	FAILS(process_vm_exec(child, &good, 0, &info, (sigset_t *)unmapped, 8), EFAULT);
	FAILS(call_in(child, 0, NULL), EFAULT);
	FAILS(call_in(child, 0, unmapped), EFAULT);
	bad = good;
	bad.fpstate = (void *)unmapped;
	FAILS(process_vm_exec(child, &bad, 0, &info, &mask, 8), EFAULT);

	/* Registers. */
	bad = good;
	bad.cs = 0x10;
	FAILS(process_vm_exec(child, &bad, 0, &info, &mask, 8), EINVAL);
	bad = good;
	bad.cs = 0;
	FAILS(process_vm_exec(child, &bad, 0, &info, &mask, 8), EINVAL);
	bad = good;
	bad.rip = 1UL << 47;
	FAILS(process_vm_exec(child, &bad, 0, &info, &mask, 8), EINVAL);
	bad.rip = 0xffffffff80000000;
	FAILS(process_vm_exec(child, &bad, 0, &info, &mask, 8), EINVAL);

	/* errno is set by failures only, and the context stays as it is. */
	CHECK(bad.rip == 0xffffffff80000000);
	end_target(child);
	return EXIT_SUCCESS;
}
