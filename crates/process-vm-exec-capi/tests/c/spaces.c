/* Every function of pvx.h, and what each refuses. */
#include "spaces.h"
#include <sys/socket.h>

static void options_say_what_is_wrong_with_them(void)
{
	struct pvx_options options = options_with(PVX_ENGINE_TRAP);
	struct pvx_space *space = NULL;
	struct {
		struct pvx_options known;
		uint64_t unknown;
	} newer;
	char words[256], few[8];

	CHECK(pvx_space_create(&options, NULL) == -EFAULT);
	options.engine = 7;
	CHECK(pvx_space_create(&options, &space) == -EINVAL);
	CHECK(pvx_error(words, sizeof(words)) == strlen(words) && strstr(words, "PVX_ENGINE_BEST"));
	CHECK(pvx_error(few, sizeof(few)) == strlen(words));
	CHECK(strlen(few) == sizeof(few) - 1 && strncmp(few, words, sizeof(few) - 1) == 0);
	CHECK(pvx_error(NULL, 0) == strlen(words));
	options = options_with(PVX_ENGINE_TRAP);
	options.flags = 0x10;
	CHECK(pvx_space_create(&options, &space) == -EINVAL);
	options.flags = 0;
	options.region = 0x1000;
	CHECK(pvx_space_create(&options, &space) == -EINVAL);
	CHECK(pvx_error(words, sizeof(words)) && strstr(words, "4 GiB"));
	options.region = 0;
	options.size = 3;
	CHECK(pvx_space_create(&options, &space) == -EINVAL);
	memset(&newer, 0, sizeof(newer));
	newer.known = options_with(PVX_ENGINE_TRAP);
	newer.known.size = sizeof(newer);
	newer.unknown = 1;
	CHECK(pvx_space_create(&newer.known, &space) == -E2BIG);
	CHECK(space == NULL);
	newer.unknown = 0;
	CHECK(pvx_space_create(&newer.known, &space) == 0);
	pvx_space_free(space);
	/* An older header: fewer fields. */
	options = options_with(PVX_ENGINE_TRAP);
	options.size = offsetof(struct pvx_options, region);
	options.region = 0x1000;
	CHECK(pvx_space_create(&options, &space) == 0);
	pvx_space_free(space);
	CHECK(pvx_space_create(NULL, &space) == 0);
	pvx_space_free(space);
	pvx_space_free(NULL);
	pvx_context_free(NULL);
}

static void nobody_is_harmed_by_null(void)
{
	struct pvx_space *space = new_space(NULL), *made = NULL;
	struct pvx_context *context = new_context(CODE, 0), *copy = NULL;
	struct pvx_registers registers;
	struct pvx_exit why;
	uint64_t start, arguments[6] = { 0 };

	CHECK(pvx_space_fork(NULL, &made) == -EFAULT && pvx_space_fork(space, NULL) == -EFAULT);
	CHECK(pvx_space_clear(NULL) == -EFAULT && pvx_space_kill(NULL) == -EFAULT && pvx_space_pid(NULL) == -EFAULT);
	CHECK(pvx_space_region(NULL, &start, &start) == -EFAULT && pvx_space_region(space, NULL, &start) == -EFAULT);
	CHECK(pvx_space_vdso(space, &start, NULL) == -EFAULT);
	CHECK(pvx_map(NULL, 0, PAGE, 0, MAP_PRIVATE, PVX_ANONYMOUS, 0) == -EFAULT);
	CHECK(pvx_map_fd(NULL, 0, PAGE, 0, MAP_PRIVATE, 0, 0) == -EFAULT);
	CHECK(pvx_unmap(NULL, 0, PAGE) == -EFAULT && pvx_protect(NULL, 0, PAGE, 0) == -EFAULT);
	CHECK(pvx_read(NULL, 0, &start, 8) == -EFAULT && pvx_read(space, 0, NULL, 8) == -EFAULT);
	CHECK(pvx_write(NULL, 0, &start, 8) == -EFAULT && pvx_write(space, 0, NULL, 8) == -EFAULT);
	CHECK(pvx_read(space, 0, NULL, 0) == 0 && pvx_write(space, 0, NULL, 0) == 0);
	CHECK(pvx_syscall(NULL, SYS_getpid, arguments) == -EFAULT && pvx_syscall(space, SYS_getpid, NULL) == -EFAULT);
	CHECK(pvx_change(NULL, NULL, 0) == -EFAULT && pvx_change(space, NULL, 1) == -EFAULT);
	CHECK(pvx_change(space, NULL, 0) == 0);
	CHECK(pvx_context_create(NULL) == -EFAULT && pvx_context_clone(NULL, &copy) == -EFAULT);
	CHECK(pvx_context_clone(context, NULL) == -EFAULT);
	CHECK(pvx_get_registers(NULL, &registers) == -EFAULT && pvx_get_registers(context, NULL) == -EFAULT);
	CHECK(pvx_set_registers(NULL, &registers) == -EFAULT && pvx_set_registers(context, NULL) == -EFAULT);
	CHECK(pvx_set_return(NULL, 0) == -EFAULT);
	CHECK(pvx_get_xstate(NULL, &why, sizeof(why)) == -EFAULT && pvx_get_xstate(context, NULL, 8) == -EFAULT);
	CHECK(pvx_set_xstate(NULL, &why, 576) == -EFAULT && pvx_set_xstate(context, NULL, 576) == -EFAULT);
	CHECK(pvx_run(NULL, context, NULL, 0, &why) == -EFAULT && pvx_run(space, NULL, NULL, 0, &why) == -EFAULT);
	CHECK(pvx_run(space, context, NULL, 0, NULL) == -EFAULT && pvx_run(space, context, NULL, 1, &why) == -EFAULT);
	CHECK(pvx_interrupt(NULL) == -EFAULT);
	CHECK(made == NULL && copy == NULL);
	pvx_context_free(context);
	pvx_space_free(space);
}

static void memory_is_mapped_changed_and_copied(uint32_t engine)
{
	struct pvx_options options = options_with(engine);
	struct pvx_space *space, *late = new_space(&options), *fork = NULL;
	struct pvx_change changes[3];
	uint64_t arguments[6] = { 0 }, start, length;
	char bytes[8];
	int fd = memfd_create("memory", MFD_CLOEXEC), file;

	CHECK(fd >= 0 && ftruncate(fd, 4 * PAGE) == 0 && pwrite(fd, "in file", 8, PAGE) == 8);
	CHECK(pvx_register_file(-1) == -EBADF && pvx_register_file(1000000) == -EBADF);
	file = pvx_register_file(fd);
	CHECK(file >= 0);
	options.region = 0x600000000000;
	space = new_space(&options);
	CHECK(pvx_space_region(space, &start, &length) == 0 && start == options.region && length == 256 << 20);
	CHECK(pvx_space_vdso(space, &start, &length) == 0 && start != 0 && length >= PAGE);
	CHECK(pvx_space_pid(space) > 0 && pvx_space_pid(space) != getpid());
	CHECK(pvx_syscall(space, SYS_getpid, arguments) == pvx_space_pid(space));
	CHECK(pvx_syscall(space, -1, arguments) == -ENOSYS && pvx_syscall(space, 100000, arguments) == -ENOSYS);
	CHECK(pvx_syscall(space, SYS_open, arguments) == -EPERM);

	CHECK(pvx_map(space, DATA, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, 1000, 0) == -EBADF);
	CHECK(pvx_map(space, DATA, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, -2, 0) == -EBADF);
	CHECK(pvx_map(space, options.region, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, PVX_ANONYMOUS, 0) == -EINVAL);
	CHECK(pvx_map(space, DATA, 0, PROT_READ, MAP_PRIVATE, PVX_ANONYMOUS, 0) == -EINVAL);
	CHECK(pvx_map(space, DATA, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, file, PAGE) == (int64_t)DATA);
	CHECK(pvx_read(space, DATA, bytes, 8) == 0 && strcmp(bytes, "in file") == 0);
	CHECK(pvx_write(space, DATA, "x", 1) == -EFAULT);
	CHECK(pvx_protect(space, DATA, PAGE, PROT_READ | PROT_WRITE) == 0);
	CHECK(pvx_write(space, DATA, "shared!", 8) == 0);
	CHECK(pread(fd, bytes, 8, PAGE) == 8 && strcmp(bytes, "shared!") == 0);
	/* A space from before the file was registered. */
	CHECK(pvx_map(late, DATA, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, file, PAGE) == (int64_t)DATA);
	CHECK(pvx_read(late, DATA, bytes, 8) == 0 && strcmp(bytes, "shared!") == 0);
	CHECK(pvx_map_fd(space, DATA + PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, PAGE) == DATA + PAGE);
	CHECK(pvx_map_fd(space, DATA, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, -1, 0) == -EBADF);
	CHECK(pvx_read(space, DATA + PAGE, bytes, 8) == 0 && strcmp(bytes, "shared!") == 0);

	memset(changes, 0, sizeof(changes));
	changes[0] = (struct pvx_change){ PVX_MAP, PROT_READ, MAP_SHARED | MAP_FIXED, file, DATA + 8 * PAGE, PAGE, PAGE, 1 };
	changes[1] = (struct pvx_change){ PVX_PROTECT, PROT_READ, 0, 0, 0x123456000, PAGE, 0, 1 };
	changes[2] = (struct pvx_change){ PVX_UNMAP, 0, 0, 0, DATA + PAGE, PAGE, 0, 1 };
	CHECK(pvx_change(space, changes, 3) == -ENOMEM);
	CHECK(changes[0].result == DATA + 8 * PAGE && changes[1].result == -ENOMEM && changes[2].result == 0);
	CHECK(pvx_read(space, DATA + 8 * PAGE, bytes, 8) == 0 && pvx_read(space, DATA + PAGE, bytes, 8) == -EFAULT);
	changes[1].kind = 99;
	CHECK(pvx_change(space, changes, 3) == -EINVAL);

	CHECK(pvx_space_fork(space, &fork) == 0);
	CHECK(pvx_read(fork, DATA, bytes, 8) == 0 && strcmp(bytes, "shared!") == 0);
	CHECK(pvx_unmap(space, DATA, PAGE) == 0 && pvx_read(space, DATA, bytes, 8) == -EFAULT);
	CHECK(pvx_space_clear(fork) == 0 && pvx_read(fork, DATA, bytes, 8) == -EFAULT);
	CHECK(pvx_space_kill(fork) == 0);
	for (int i = 0; pvx_space_pid(fork) > 0 && i < 1000; i++)
		usleep(10000);
	CHECK(pvx_space_pid(fork) == -ESRCH && pvx_unmap(fork, DATA, PAGE) == -ESRCH);
	pvx_space_free(fork);
	pvx_space_free(late);
	pvx_space_free(space);
	close(fd);
}

static void all_calls_are_made_but_those_that_end_their_task(uint32_t engine)
{
	struct pvx_options options = options_with(engine);
	uint64_t arguments[6] = { AF_UNIX, SOCK_STREAM };
	struct pvx_space *space;
	char words[256];

	options.flags = PVX_ALL_CALLS;
	space = new_space(&options);
	CHECK(pvx_syscall(space, SYS_socket, arguments) >= 0);
	CHECK(pvx_syscall(space, SYS_exit, arguments) == -EOPNOTSUPP);
	CHECK(pvx_error(words, sizeof(words)) && strstr(words, "exit"));
	CHECK(pvx_syscall(space, SYS_fork, arguments) == -EOPNOTSUPP);
	CHECK(pvx_syscall(space, SYS_getpid, arguments) == pvx_space_pid(space));
	pvx_space_free(space);
}

static void runs_say_why_they_come_back(uint32_t engine)
{
	struct pvx_options options = options_with(engine);
	struct pvx_space *space, *other;
	struct pvx_context *context = new_context(CODE, 0), *copy = NULL;
	struct pvx_registers registers;
	struct pvx_change change = { PVX_MAP, PROT_READ, MAP_PRIVATE | MAP_FIXED, PVX_ANONYMOUS, DATA, PAGE, 0, 1 };
	struct pvx_exit why;
	size_t length = pvx_xstate_size();
	unsigned char *area = calloc(1, length);

	options.flags = PVX_NO_REWRITING;
	options.spin_ns = PVX_NO_SPINNING;
	options.time_limit_ns = 60000000000;
	space = new_space(&options);
	PUT_CODE(space, LOOP_OF_CALLS);
	for (int i = 0; i < 4; i++) {
		CHECK(pvx_run(space, context, NULL, 0, &why) == 0);
		CHECK(why.kind == PVX_SYSCALL && why.number == SYS_getpid && why.arch == PVX_ARCH_X86_64);
		CHECK(pvx_set_return(context, -ENOSYS) == 0);
		CHECK(pvx_get_registers(context, &registers) == 0);
		CHECK(registers.rax == (uint64_t)-ENOSYS && registers.rip == CODE + 7 && registers.cs == 0x33);
	}
	registers.rdi = 77;
	registers.cs = registers.ss = 0;
	CHECK(pvx_set_registers(context, &registers) == 0);
	CHECK(pvx_run(space, context, NULL, 0, &why) == 0 && why.kind == PVX_SYSCALL && why.arguments[0] == 77);
	registers.rip = ~0ULL;
	CHECK(pvx_set_registers(context, &registers) == 0 && pvx_run(space, context, NULL, 0, &why) == -EINVAL);

	/* The extended state goes along, also to a clone. */
	CHECK(area && pvx_get_xstate(context, area, length) == 0);
	memcpy(area + 160, "in xmm0", 8);
	area[512] |= 3;
	CHECK(pvx_set_xstate(context, area, 575) == -EINVAL && pvx_set_xstate(context, area, length + 1) == -EINVAL);
	CHECK(pvx_set_xstate(context, area, length) == 0);
	CHECK(pvx_context_clone(context, &copy) == 0);
	memset(area, 0, length);
	CHECK(pvx_get_xstate(copy, area, 168) == 0 && memcmp(area + 160, "in xmm0", 8) == 0);
	area[520] = 1;
	CHECK(pvx_set_xstate(copy, area, 576) == -EINVAL);
	pvx_context_free(copy);

	/* A fault; then the change that mends it, which travels with the run. */
	other = new_space(&options);
	PUT_CODE(other, STORE SPIN);
	CHECK(pvx_get_registers(context, &registers) == 0);
	registers.rip = CODE;
	registers.rdi = DATA + 8;
	CHECK(pvx_set_registers(context, &registers) == 0);
	CHECK(pvx_run(other, context, NULL, 0, &why) == 0 && why.kind == PVX_FAULT);
	CHECK(why.trap == 14 && why.address == DATA + 8 && why.access == PVX_ACCESS_WRITE && (why.error_code & 2));
	CHECK(why.info.si_signo == SIGSEGV && why.info.si_code == SEGV_MAPERR &&
	      (uint64_t)why.info.si_addr == DATA + 8);
	CHECK(pvx_run(other, context, &change, 1, &why) == 0 && change.result == DATA && why.kind == PVX_FAULT);
	CHECK(why.info.si_code == SEGV_ACCERR);
	change.length = 0;
	CHECK(pvx_run(other, context, &change, 1, &why) == -EINVAL && change.result == -EINVAL);
	CHECK(pvx_protect(other, DATA, PAGE, PROT_READ | PROT_WRITE) == 0);
	CHECK(pvx_interrupt(context) == 0);
	CHECK(pvx_run(other, context, NULL, 0, &why) == 0 && why.kind == PVX_INTERRUPTED);
	CHECK(kill(pvx_space_pid(other), SIGUSR1) == 0);
	do
		CHECK(pvx_run(other, context, NULL, 0, &why) == 0);
	while (why.kind == PVX_INTERRUPTED);
	CHECK(why.kind == PVX_SIGNAL && why.info.si_signo == SIGUSR1 && why.info.si_pid == getpid());
	CHECK(pvx_space_kill(other) == 0);
	CHECK(pvx_run(other, context, NULL, 0, &why) == 0 && why.kind == PVX_DIED && why.status == SIGKILL);
	free(area);
	pvx_context_free(context);
	pvx_space_free(space);
	pvx_space_free(other);
}

static struct {
	struct pvx_space *space;
	struct pvx_context *context;
} shared;

static void *run(void *unused)
{
	struct pvx_exit why;

	(void)unused;
	CHECK(pvx_run(shared.space, shared.context, NULL, 0, &why) == 0 && why.kind == PVX_INTERRUPTED);
	return NULL;
}

static void a_context_has_one_user_at_a_time(uint32_t engine)
{
	struct pvx_options options = options_with(engine);
	struct pvx_registers registers;
	struct pvx_exit why;
	pthread_t thread;

	shared.space = new_space(&options);
	shared.context = new_context(CODE, 0);
	PUT_CODE(shared.space, SPIN);
	CHECK(pthread_create(&thread, NULL, run, NULL) == 0);
	while (pvx_get_registers(shared.context, &registers) == 0)
		usleep(1000);
	CHECK(pvx_get_registers(shared.context, &registers) == -EBUSY);
	CHECK(pvx_run(shared.space, shared.context, NULL, 0, &why) == -EBUSY);
	CHECK(pvx_interrupt(shared.context) == 0);
	CHECK(pthread_join(thread, NULL) == 0);
	CHECK(pvx_get_registers(shared.context, &registers) == 0 && registers.rip == CODE);
	pvx_context_free(shared.context);
	pvx_space_free(shared.space);
}

int main(void)
{
	static const uint32_t engines[] = { PVX_ENGINE_BEST, PVX_ENGINE_TRAP, PVX_ENGINE_REWRITE };

	options_say_what_is_wrong_with_them();
	nobody_is_harmed_by_null();
	for (size_t i = 0; i < sizeof(engines) / sizeof(*engines); i++) {
		memory_is_mapped_changed_and_copied(engines[i]);
		all_calls_are_made_but_those_that_end_their_task(engines[i]);
		runs_say_why_they_come_back(engines[i]);
		a_context_has_one_user_at_a_time(engines[i]);
	}
	return EXIT_SUCCESS;
}
