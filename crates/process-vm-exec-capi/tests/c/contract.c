/*
 * The host calls that the library makes once it has started: no others. And no /proc, no directory, no rights: a supervisor
 * may confine itself as it likes.
 */
#include "spaces.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/prctl.h>

/* The manual page has this list, with the purpose of each. */
static const int contract[] = {
	SYS_futex,      SYS_sched_yield,     SYS_tgkill,         SYS_kill,          SYS_mmap,     SYS_munmap,
	SYS_madvise,    SYS_fallocate,       SYS_getrandom,      SYS_process_vm_readv, SYS_process_vm_writev,
	SYS_pidfd_open, SYS_pidfd_getfd,     SYS_sendmsg,        SYS_close,         SYS_fcntl,    SYS_clock_nanosleep,
	SYS_getpid,     SYS_wait4,           SYS_exit,           SYS_exit_group,    SYS_restart_syscall,
	SYS_rt_sigreturn,
};

/* What this program itself needs besides: memory of the C library, threads, and to say what is wrong. */
static const int own[] = { SYS_write, SYS_brk, SYS_mprotect, SYS_mremap, SYS_clone, SYS_clone3, SYS_rseq,
			   SYS_set_robust_list, SYS_rt_sigprocmask, SYS_newfstatat, SYS_fstat };

enum { CALLS = sizeof(contract) / sizeof(*contract), OWN = sizeof(own) / sizeof(*own) };

static void confine(void)
{
	struct sock_filter filter[2 * (CALLS + OWN) + 5];
	struct sock_fprog program = { 0, filter };

	filter[program.len++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (int i = 0; i < CALLS + OWN; i++) {
		unsigned int call = (unsigned int)(i < CALLS ? contract[i] : own[i - CALLS]);

		filter[program.len++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1);
		filter[program.len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	}
	filter[program.len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	/* The library's threads, too. */
	CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0);
}

/* Several interrupts may count as one: there are some until there have been enough runs. */
static atomic_int is_enough;

static void *interrupt(void *context)
{
	while (!atomic_load(&is_enough)) {
		usleep(500);
		pvx_interrupt(context);
	}
	return NULL;
}

/* All that a kernel does with its guests. */
static void work(uint32_t engine, int file)
{
	struct pvx_options options = options_with(engine);
	struct pvx_change change = { PVX_MAP, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, DATA, PAGE, 0, 0 };
	struct pvx_space *space, *fork = NULL;
	struct pvx_context *context = new_context(CODE, 0), *copy = NULL;
	struct pvx_exit why;
	pthread_t thread;
	char byte = 'x', area[4096];

	/* The library rewrites by /proc/PID/maps and /proc/PID/mem. */
	options.flags = PVX_NO_REWRITING;
	options.time_limit_ns = 20000000000;
	space = new_space(&options);
	PUT_CODE(space, LOOP_OF_CALLS);
	for (int i = 0; i < 1000; i++) {
		CHECK(pvx_run(space, context, &change, i % 100 == 0, &why) == 0 && why.kind == PVX_SYSCALL);
		CHECK(pvx_set_return(context, 0) == 0);
	}
	CHECK(pvx_write(space, DATA, &byte, 1) == 0 && pvx_read(space, DATA, &byte, 1) == 0);
	CHECK(pvx_map_fd(space, DATA, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, 0, 0) == (int64_t)DATA);
	CHECK(pvx_get_xstate(context, area, sizeof(area)) == 0);
	CHECK(pvx_space_fork(space, &fork) == 0 && pvx_context_clone(context, &copy) == 0);
	CHECK(pvx_run(fork, copy, NULL, 0, &why) == 0 && why.kind == PVX_SYSCALL);
	CHECK(pvx_space_clear(fork) == 0);
	PUT_CODE(fork, SPIN);
	pvx_context_free(copy);
	copy = new_context(CODE, 0);
	atomic_store(&is_enough, 0);
	CHECK(pthread_create(&thread, NULL, interrupt, copy) == 0);
	for (int i = 0; i < 10; i++)
		CHECK(pvx_run(fork, copy, NULL, 0, &why) == 0 && why.kind == PVX_INTERRUPTED);
	atomic_store(&is_enough, 1);
	CHECK(pthread_join(thread, NULL) == 0);
	CHECK(pvx_space_kill(fork) == 0);
	CHECK(pvx_run(fork, copy, NULL, 0, &why) == 0);
	pvx_context_free(copy);
	pvx_context_free(context);
	pvx_space_free(fork);
	pvx_space_free(space);
}

int main(void)
{
	const uint32_t engines[] = { PVX_ENGINE_TRAP, PVX_ENGINE_REWRITE };
	int memory = memfd_create("memory", MFD_CLOEXEC), file;
	char directory[] = "/tmp/contract-XXXXXX";

	CHECK(memory >= 0 && ftruncate(memory, PAGE) == 0);
	/* It starts: once with each region and each kind of space. */
	pvx_space_free(new_space(NULL));
	file = pvx_register_file(memory);
	CHECK(file >= 0 && dup2(memory, 0) == 0);
	/* Into a directory that is there no more, with nothing in it. Without root's rights it takes a user namespace. */
	if (geteuid() == 0 || unshare(CLONE_NEWUSER) == 0) {
		CHECK(mkdtemp(directory) && chdir(directory) == 0 && rmdir(directory) == 0 && chroot(".") == 0);
		CHECK(access("/proc", F_OK) == -1);
	} else {
		printf("SKIP: without /proc: no right to chroot here\n");
	}
	confine();
	for (int i = 0; i < 2; i++)
		work(engines[i], file);
	return EXIT_SUCCESS;
}
