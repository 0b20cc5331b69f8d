/*
 * A small kernel: runs a static program, argv[1], with its arguments; processes, pipes and memory are its own. Whatever it
 * does not know fails with ENOSYS.
 */
#include "spaces.h"

#include <asm/prctl.h>
#include <elf.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#define STACK_TOP 0x7fff0000ULL
#define STACK_SIZE 0x100000ULL
#define PAGE_UP(address) (((address) + PAGE - 1) & ~(uint64_t)(PAGE - 1))

enum { PROCESSES = 8, FILES = 16, WORDS = 64, ARGUMENTS = 16, SEGMENTS = 16 };

enum state { ABSENT, RUNS, WAITS /* in a system call */, ENDED };

struct process {
	enum state state;
	int parent, status;
	struct pvx_space *space;
	struct pvx_context *context;
	struct pvx_exit call;
	struct pvx_change change; /* goes with the next run */
	size_t changes;
	uint64_t brk;
	int files[FILES]; /* the host's numbers, or -1 */
};

static struct process processes[PROCESSES];

static void put(struct process *self, uint64_t address, const void *bytes, size_t length)
{
	CHECK(pvx_write(self->space, address, bytes, length) == 0);
}

static void map_memory(struct process *self, uint64_t start, uint64_t length)
{
	CHECK(pvx_map(self->space, start, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, PVX_ANONYMOUS, 0) ==
	      (int64_t)start);
}

static void load_segment(struct process *self, int fd, const Elf64_Phdr *segment)
{
	uint64_t start = segment->p_vaddr & ~(uint64_t)(PAGE - 1), end = PAGE_UP(segment->p_vaddr + segment->p_memsz);
	int protection = (segment->p_flags & PF_R ? PROT_READ : 0) | (segment->p_flags & PF_W ? PROT_WRITE : 0) |
			 (segment->p_flags & PF_X ? PROT_EXEC : 0);
	char *bytes = malloc(segment->p_filesz);

	map_memory(self, start, end - start);
	CHECK(bytes && pread(fd, bytes, segment->p_filesz, (off_t)segment->p_offset) == (ssize_t)segment->p_filesz);
	put(self, segment->p_vaddr, bytes, segment->p_filesz);
	free(bytes);
	CHECK(pvx_protect(self->space, start, end - start, protection) == 0);
	if (end > self->brk)
		self->brk = end;
}

/* Arguments and auxiliary vector; returns the stack pointer. */
static uint64_t build_stack(struct process *self, char **arguments, const Elf64_Ehdr *header, uint64_t headers_at)
{
	uint64_t words[WORDS], at = STACK_TOP, strings[ARGUMENTS], vdso = 0, length;
	size_t count = 0, used = 0;

	map_memory(self, STACK_TOP - STACK_SIZE, STACK_SIZE);
	for (; arguments[count] && count < ARGUMENTS; count++) {
		at -= strlen(arguments[count]) + 1;
		put(self, at, arguments[count], strlen(arguments[count]) + 1);
		strings[count] = at;
	}
	at = (at - 16) & ~15ULL; /* AT_RANDOM finds zeroes here */
	CHECK(pvx_space_vdso(self->space, &vdso, &length) == 0);
	{
		const uint64_t vector[] = { AT_PHDR,   headers_at,     AT_PHENT,        header->e_phentsize,
					    AT_PHNUM,  header->e_phnum, AT_PAGESZ,       PAGE,
					    AT_RANDOM, at,             AT_SYSINFO_EHDR, vdso,
					    AT_NULL,   0 };

		words[used++] = count;
		memcpy(words + used, strings, 8 * count);
		used += count;
		words[used++] = 0; /* the end of the arguments */
		words[used++] = 0; /* and of an empty environment */
		memcpy(words + used, vector, sizeof(vector));
		used += sizeof(vector) / sizeof(*vector);
	}
	at = (at - 8 * used) & ~15ULL;
	put(self, at, words, 8 * used);
	return at;
}

static void load(struct process *self, char **arguments)
{
	int fd = open(arguments[0], O_RDONLY | O_CLOEXEC);
	Elf64_Phdr segments[SEGMENTS];
	struct pvx_registers registers;
	Elf64_Ehdr header;

	CHECK(fd >= 0 && read(fd, &header, sizeof(header)) == sizeof(header));
	CHECK(header.e_type == ET_EXEC && header.e_phnum > 0 && header.e_phnum <= SEGMENTS);
	CHECK(pread(fd, segments, sizeof(*segments) * header.e_phnum, (off_t)header.e_phoff) > 0);
	for (int i = 0; i < header.e_phnum; i++)
		if (segments[i].p_type == PT_LOAD)
			load_segment(self, fd, &segments[i]);
	close(fd);
	memset(&registers, 0, sizeof(registers));
	registers.rip = header.e_entry;
	registers.rsp = build_stack(self, arguments, &header, segments[0].p_vaddr - segments[0].p_offset + header.e_phoff);
	CHECK(pvx_set_registers(self->context, &registers) == 0);
}

static int64_t spawn(struct process *self, uint64_t flags, uint64_t tid_address)
{
	for (int i = 0; i < PROCESSES; i++) {
		struct process *child = &processes[i];
		int tid = i + 1;

		if (child->state != ABSENT)
			continue;
		*child = *self;
		child->state = RUNS;
		child->parent = (int)(self - processes);
		for (int fd = 0; fd < FILES; fd++)
			child->files[fd] = self->files[fd] < 0 ? -1 : dup(self->files[fd]);
		CHECK(pvx_space_fork(self->space, &child->space) == 0);
		CHECK(pvx_context_clone(self->context, &child->context) == 0);
		CHECK(pvx_set_return(child->context, 0) == 0);
		if (flags & CLONE_CHILD_SETTID)
			put(child, tid_address, &tid, sizeof(tid));
		return tid;
	}
	return -EAGAIN;
}

static void end(struct process *self, int status)
{
	self->state = ENDED;
	self->status = status;
	for (int fd = 0; fd < FILES; fd++)
		if (self->files[fd] >= 0)
			close(self->files[fd]);
	pvx_context_free(self->context);
	pvx_space_free(self->space);
}

/* The number of a child that has ended, 0 if none has, or -ECHILD. */
static int64_t reap(struct process *self, uint64_t status_address)
{
	int64_t result = -ECHILD;

	for (int i = 1; i < PROCESSES; i++) {
		struct process *child = &processes[i];

		if (child->state == ABSENT || child->parent != self - processes)
			continue;
		result = 0;
		if (child->state == ENDED) {
			if (status_address)
				put(self, status_address, &child->status, sizeof(child->status));
			child->state = ABSENT;
			return i + 1;
		}
	}
	return result;
}

static int new_file(struct process *self, int host)
{
	for (int fd = 0; fd < FILES; fd++) {
		if (self->files[fd] < 0) {
			self->files[fd] = host;
			return fd;
		}
	}
	return -EMFILE;
}

static int is_ready(int host, short events)
{
	return poll(&(struct pollfd){ host, events, 0 }, 1, 0) > 0;
}

static int64_t read_or_write(struct process *self, int writes, int host, uint64_t address, uint64_t length)
{
	char bytes[PAGE];
	ssize_t done;

	length = length > sizeof(bytes) ? sizeof(bytes) : length;
	if (writes) {
		CHECK(pvx_read(self->space, address, bytes, length) == 0);
		done = write(host, bytes, length);
	} else {
		done = read(host, bytes, length);
		if (done > 0)
			put(self, address, bytes, (size_t)done);
	}
	return done < 0 ? -errno : done;
}

/* Has the call something to wait for? */
static int must_wait(struct process *self, const uint64_t *a)
{
	int host = a[0] < FILES ? self->files[a[0]] : -1;
	struct pollfd wanted;

	switch (self->call.number) {
	case SYS_read:
		return host >= 0 && !is_ready(host, POLLIN);
	case SYS_write:
		return host >= 0 && !is_ready(host, POLLOUT);
	case SYS_poll: /* of one file, as the shell's */
		CHECK(a[1] == 1 && pvx_read(self->space, a[0], &wanted, sizeof(wanted)) == 0);
		return !is_ready(self->files[wanted.fd], wanted.events);
	case SYS_wait4:
		if (a[2] & WNOHANG)
			return 0;
		for (int i = 1, children = 0;; i++) {
			if (i == PROCESSES)
				return children > 0;
			if (processes[i].state == ABSENT || processes[i].parent != self - processes)
				continue;
			if (processes[i].state == ENDED)
				return 0;
			children++;
		}
	default:
		return 0;
	}
}

static int64_t execute(struct process *self, const uint64_t *a)
{
	int host = a[0] < FILES ? self->files[a[0]] : -1, pair[2];
	uint64_t from = PAGE_UP(self->brk), to = PAGE_UP(a[0]);
	struct pvx_registers registers;
	struct utsname name;
	struct pollfd wanted;

	switch (self->call.number) {
	case SYS_read:
	case SYS_write:
		return host < 0 ? -EBADF : read_or_write(self, self->call.number == SYS_write, host, a[1], a[2]);
	case SYS_poll:
		CHECK(pvx_read(self->space, a[0], &wanted, sizeof(wanted)) == 0);
		wanted.revents = wanted.events;
		put(self, a[0], &wanted, sizeof(wanted));
		return 1;
	case SYS_close:
		if (host < 0)
			return -EBADF;
		self->files[a[0]] = -1;
		return close(host);
	case SYS_dup2:
		if (host < 0 || a[1] >= FILES)
			return -EBADF;
		if (self->files[a[1]] >= 0)
			close(self->files[a[1]]);
		self->files[a[1]] = dup(host);
		return (int64_t)a[1];
	case SYS_pipe2:
		CHECK(pipe(pair) == 0);
		for (int i = 0; i < 2; i++)
			pair[i] = new_file(self, pair[i]);
		return pvx_write(self->space, a[0], pair, sizeof(pair));
	case SYS_clone:
		return spawn(self, a[0], a[3]);
	case SYS_wait4:
		return reap(self, a[1]);
	case SYS_brk:
		if (a[0] > self->brk) {
			self->brk = a[0];
			self->change = (struct pvx_change){ PVX_MAP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
							    PVX_ANONYMOUS, from, to - from, 0, 0 };
			self->changes = to > from;
		}
		return (int64_t)self->brk;
	case SYS_mmap:
		return a[3] & MAP_ANONYMOUS ? pvx_map(self->space, a[0], a[1], (int)a[2], (int)a[3], PVX_ANONYMOUS, 0) :
					      -ENODEV;
	case SYS_munmap:
		return pvx_unmap(self->space, a[0], a[1]);
	case SYS_mprotect:
		return pvx_protect(self->space, a[0], a[1], (int)a[2]);
	case SYS_arch_prctl:
		CHECK(a[0] == ARCH_SET_FS && pvx_get_registers(self->context, &registers) == 0);
		registers.fs_base = a[1];
		return pvx_set_registers(self->context, &registers);
	case SYS_uname:
		uname(&name);
		return pvx_write(self->space, a[0], &name, sizeof(name));
	case SYS_getpid:
	case SYS_gettid:
	case SYS_set_tid_address:
		return self - processes + 1;
	case SYS_getppid:
		return self->parent + 1;
	case SYS_getuid:
	case SYS_geteuid:
	case SYS_getgid:
	case SYS_getegid:
	case SYS_rt_sigaction:
	case SYS_rt_sigprocmask:
	case SYS_set_robust_list:
		return 0;
	default:
		return -ENOSYS;
	}
}

/* Goes on with a process until it waits or ends; says whether it came any further. */
static int go_on(struct process *self)
{
	for (int moved = 0;; moved = 1) {
		const uint64_t *arguments = self->call.arguments;

		if (self->state == WAITS) {
			if (must_wait(self, arguments))
				return moved;
			CHECK(pvx_set_return(self->context, execute(self, arguments)) == 0);
		}
		self->state = WAITS;
		CHECK(pvx_run(self->space, self->context, &self->change, self->changes, &self->call) == 0);
		self->changes = 0;
		if (self->call.kind != PVX_SYSCALL) {
			end(self, self->call.kind == PVX_FAULT ? self->call.info.si_signo : SIGKILL);
			return 1;
		}
		if (self->call.number == SYS_exit_group || self->call.number == SYS_exit) {
			end(self, (int)(arguments[0] & 0xff) << 8);
			return 1;
		}
	}
}

int main(int count, char **arguments)
{
	struct process *first = &processes[0];

	CHECK(count > 1);
	first->space = new_space(NULL);
	CHECK(pvx_context_create(&first->context) == 0);
	for (int fd = 0; fd < FILES; fd++)
		first->files[fd] = fd < 3 ? dup(fd) : -1;
	load(first, arguments + 1);
	first->state = RUNS;
	while (first->state != ENDED) {
		int moved = 0;

		for (int i = 0; i < PROCESSES; i++)
			if (processes[i].state == RUNS || processes[i].state == WAITS)
				moved |= go_on(&processes[i]);
		CHECK(moved); /* otherwise all wait for each other */
	}
	return WIFEXITED(first->status) ? WEXITSTATUS(first->status) : 128 + WTERMSIG(first->status);
}
