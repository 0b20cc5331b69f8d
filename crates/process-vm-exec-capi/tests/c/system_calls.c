/* System call mode: calls are executed in the target, with the caller's descriptors. */
#include "support.h"

int main(void)
{
	static char text[] = "as we have it";
	struct sigcontext uctx;
	char copy[sizeof(text)] = "";
	int pipe_ends[2], pidfd;
	pid_t child;
	long at;

	need_targets();
	child = start_target();
	CHECK(is_executor(syscall_in(child, SYS_getpid, 0, 0, 0), child));
	CHECK(syscall_in(child, SYS_getppid, 0, 0, 0) != getpid());

	/* Errors are results. */
	CHECK(syscall_in(child, SYS_close, 9999, 0, 0) == -EBADF);
	CHECK(syscall_in(child, 100000, 0, 0, 0) == -ENOSYS);
	CHECK(syscall_in(child, -1, 0, 0, 0) == -ENOSYS);
	CHECK(syscall_in(child, SYS_fork, 0, 0, 0) == -EOPNOTSUPP && syscall_in(child, SYS_exit, 0, 0, 0) == -EOPNOTSUPP);

	/* Only rax changes. */
	memset(&uctx, 0x55, sizeof(uctx));
	uctx.rax = SYS_getpid;
	CHECK(call_in(child, PROCESS_VM_EXEC_EXTENDED, &uctx) == 0);
	CHECK(is_executor((long)uctx.rax, child) && uctx.rdi == 0x5555555555555555 && uctx.rcx == 0x5555555555555555);

	/* By descriptor too. */
	pidfd = (int)syscall(SYS_pidfd_open, child, 0);
	CHECK(pidfd != -1);
	memset(&uctx, 0, sizeof(uctx));
	uctx.rax = SYS_getpid;
	CHECK(call_in(pidfd, PROCESS_VM_EXEC_PIDFD, &uctx) == 0);
	CHECK(is_executor((long)uctx.rax, child));

	/* Addresses are the target's, descriptors ours: the pipe is younger than the child. */
	CHECK(pipe(pipe_ends) == 0);
	strcpy(text, "as we chang");
	CHECK(syscall_in(child, SYS_write, pipe_ends[1], (long)text, sizeof(text)) == (long)sizeof(text));
	CHECK(read(pipe_ends[0], copy, sizeof(copy)) == (ssize_t)sizeof(copy));
	CHECK(strcmp(copy, "as we have it") == 0);

	/* What is mapped there is not mapped here. */
	memset(&uctx, 0, sizeof(uctx));
	uctx.rax = SYS_mmap;
	uctx.rsi = 4096;
	uctx.rdx = PROT_READ | PROT_WRITE;
	uctx.r10 = MAP_PRIVATE | MAP_ANONYMOUS;
	uctx.r8 = (unsigned long)-1;
	CHECK(call_in(child, 0, &uctx) == 0);
	at = (long)uctx.rax;
	CHECK(at > 0);
	CHECK(syscall_in(child, SYS_munmap, at, 4096, 0) == 0);

	end_target(child);
	memset(&uctx, 0, sizeof(uctx));
	uctx.rax = SYS_getpid;
	FAILS(call_in(child, 0, &uctx), ESRCH);
	FAILS(call_in(pidfd, PROCESS_VM_EXEC_PIDFD, &uctx), ESRCH);
	return EXIT_SUCCESS;
}
