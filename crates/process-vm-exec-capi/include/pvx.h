/*
 * pvx: address spaces in which a supervisor runs code.
 *
 * The manual page pvx(3) describes all of this. x86-64 Linux only.
 *
 * Functions that return int or int64_t return a negative error number when they fail, as system calls do; pvx_error()
 * has the last failure of the calling thread in words. errno is not used.
 */
#ifndef PVX_H
#define PVX_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

struct pvx_space;
struct pvx_context;

/* ---- Address spaces ---- */

/* The best engine that works here, of those below; or the one that PROCESS_VM_EXEC_ENGINE names, if it is one of them. */
#define PVX_ENGINE_BEST 0
/* Each system call of a guest raises a signal there. */
#define PVX_ENGINE_TRAP 1
/* The same, and call sites that have trapped are replaced by jumps. */
#define PVX_ENGINE_REWRITE 2

/* Text of guests stays as it is, with PVX_ENGINE_REWRITE too. */
#define PVX_NO_REWRITING 0x1U
/* pvx_syscall() may make every system call, not only those about memory and those that only tell something. */
#define PVX_ALL_CALLS 0x2U
/* The caller rewrites text itself, by plans. */
#define PVX_PLANNED_REWRITING 0x4U

/* For spin_ns: sleep at once. */
#define PVX_NO_SPINNING UINT64_MAX

/* How a space is to be. All zeroes but the size are the defaults. */
struct pvx_options {
	size_t size;            /* sizeof(struct pvx_options) */
	uint32_t engine;        /* PVX_ENGINE_... */
	uint32_t flags;         /* PVX_NO_REWRITING, PVX_ALL_CALLS, PVX_PLANNED_REWRITING */
	uint64_t region;        /* start of the library's own 256 MiB: a multiple of 4 GiB; 0: 0x700000000000 */
	uint64_t spin_ns;       /* stay awake for so long before sleeping; 0: 50,000 */
	uint64_t time_limit_ns; /* kill a space that does not answer for so long; 0: no limit */
};

int pvx_space_create(const struct pvx_options *options, struct pvx_space **space);
int pvx_space_fork(struct pvx_space *space, struct pvx_space **fork);
int pvx_space_clear(struct pvx_space *space);
int pvx_space_kill(struct pvx_space *space);
void pvx_space_free(struct pvx_space *space);
pid_t pvx_space_pid(const struct pvx_space *space);
int pvx_space_region(const struct pvx_space *space, uint64_t *start, uint64_t *length);
int pvx_space_vdso(const struct pvx_space *space, uint64_t *start, uint64_t *length);

/* ---- Memory ---- */

/* Instead of the number of a registered file: memory of zeroes. */
#define PVX_ANONYMOUS (-1)

/* Gives the file to all spaces, those to come too, for good. Returns its number for pvx_map(). */
int pvx_register_file(int fd);

/* As mmap(2) there, of the registered file or PVX_ANONYMOUS (which adds MAP_ANONYMOUS). Returns the address. */
int64_t pvx_map(struct pvx_space *space, uint64_t address, uint64_t length, int protection, int flags, int file,
		uint64_t offset);
/* The same of any file, which is passed for the call: slower. */
int64_t pvx_map_fd(struct pvx_space *space, uint64_t address, uint64_t length, int protection, int flags, int fd,
		   uint64_t offset);
int pvx_unmap(struct pvx_space *space, uint64_t address, uint64_t length);
int pvx_protect(struct pvx_space *space, uint64_t address, uint64_t length, int protection);
int pvx_read(struct pvx_space *space, uint64_t address, void *buffer, size_t length);
int pvx_write(struct pvx_space *space, uint64_t address, const void *buffer, size_t length);

/* One system call there. Returns what the kernel returns. */
int64_t pvx_syscall(struct pvx_space *space, int64_t number, const uint64_t arguments[6]);

#define PVX_MAP 0
#define PVX_UNMAP 1
#define PVX_PROTECT 2

/* One of several changes of memory that are made at once. */
struct pvx_change {
	uint32_t kind;          /* PVX_MAP, PVX_UNMAP, PVX_PROTECT */
	int32_t protection;     /* PVX_MAP, PVX_PROTECT */
	int32_t flags;          /* PVX_MAP */
	int32_t file;           /* PVX_MAP */
	uint64_t address;
	uint64_t length;
	uint64_t offset;        /* PVX_MAP */
	int64_t result;         /* out: the address, or 0, or a negative error number */
};

/* Makes the changes in order, each whatever came of those before. Returns 0 if all have been made. */
int pvx_change(struct pvx_space *space, struct pvx_change *changes, size_t count);

/* ---- Contexts ---- */

/* The registers of one flow of control. cs and ss of 0 mean the usual ones. */
struct pvx_registers {
	uint64_t rax, rdi, rsi, rdx, r10, r8, r9;
	uint64_t rip, cs, rflags, rsp, ss;
	uint64_t rbx, rbp, r12, r13, r14, r15, rcx, r11;
	uint64_t fs_base, gs_base;
};

int pvx_context_create(struct pvx_context **context);
int pvx_context_clone(struct pvx_context *context, struct pvx_context **clone);
void pvx_context_free(struct pvx_context *context);

int pvx_get_registers(struct pvx_context *context, struct pvx_registers *registers);
int pvx_set_registers(struct pvx_context *context, const struct pvx_registers *registers);
/* Sets rax alone, which costs less: the answer to a system call. */
int pvx_set_return(struct pvx_context *context, int64_t value);

/* Length in bytes of the extended state: x87, SSE, AVX and so on, as an XSAVE area in standard format. */
size_t pvx_xstate_size(void);
/* Copies the first bytes, as many as there is room for. */
int pvx_get_xstate(struct pvx_context *context, void *area, size_t length);
/* What is missing at the end is as in a processor that has just been initialised. */
int pvx_set_xstate(struct pvx_context *context, const void *area, size_t length);

/* ---- Runs ---- */

#define PVX_SYSCALL 0      /* a system call, which has not been executed */
#define PVX_FAULT 1        /* an instruction that could not complete */
#define PVX_SIGNAL 2       /* a signal from outside */
#define PVX_INTERRUPTED 3  /* pvx_interrupt() */
#define PVX_DIED 4         /* the space is gone */

#define PVX_ACCESS_NONE 0  /* the fault was no page fault */
#define PVX_ACCESS_READ 1
#define PVX_ACCESS_WRITE 2
#define PVX_ACCESS_EXECUTE 3

#define PVX_ARCH_X86_64 0  /* the syscall instruction */
#define PVX_ARCH_I386 1    /* int 0x80 */

/* Why a run came back. Which fields have a meaning depends on the kind; the others are unspecified. */
struct pvx_exit {
	int32_t kind;           /* PVX_SYSCALL, ... */
	int32_t arch;           /* PVX_SYSCALL: PVX_ARCH_... */
	uint64_t number;        /* PVX_SYSCALL */
	uint64_t arguments[6];  /* PVX_SYSCALL */
	int32_t access;         /* PVX_FAULT: PVX_ACCESS_... */
	uint32_t trap;          /* PVX_FAULT: the exception's vector; 14 is a page fault */
	uint32_t error_code;    /* PVX_FAULT */
	int32_t status;         /* PVX_DIED: as wait(2) has it */
	uint64_t address;       /* PVX_FAULT: as si_addr */
	int32_t rewritten;      /* PVX_SYSCALL: 1 if it came from a rewritten site, else 0 */
	int32_t reserved;
	siginfo_t info;         /* PVX_FAULT, PVX_SIGNAL */
};

/*
 * Runs the context in the space until something happens. Before that, the changes are made, if there are any: if one
 * cannot be made, nothing runs, and that one's error is returned.
 */
int pvx_run(struct pvx_space *space, struct pvx_context *context, struct pvx_change *changes, size_t count,
	    struct pvx_exit *exit);

/* Ends the run that goes on in the context, or else the next one. Signal handlers may call it. */
int pvx_interrupt(struct pvx_context *context);

/* ---- Plans of rewritten call sites, for PVX_PLANNED_REWRITING ---- */

struct pvx_planner;

/* Length of a page of stubs. */
#define PVX_STUBS_LENGTH 0x10000
/* How many bytes of text on either side of a call are of use. */
#define PVX_WINDOW 192

#define PVX_FORMS_ALL 0     /* a jump before the syscall instruction, or else in its place */
#define PVX_FORMS_BEHIND 1  /* in its place: for sites that go on trapping */

/*
 * A call site, and what takes its place. The stub is written first. Then each step of apply[] is written to address; after each, and
 * before the next, all processors that may execute the text have to fetch their instructions anew (membarrier(2)).
 */
struct pvx_plan {
	uint64_t site;           /* the address behind the syscall instruction */
	uint64_t address;        /* of the first byte that changes */
	uint64_t stub;           /* where the stub goes */
	uint32_t length;         /* how many bytes change */
	uint32_t stub_length;
	uint8_t apply[3][8];     /* the bytes after each step */
	uint8_t undo[3][8];      /* the same when the plan is taken back */
	uint8_t stub_bytes[128];
};

/* One planner is used by one thread at a time. The region is that of the space. */
int pvx_planner_create(uint64_t region, struct pvx_planner **planner);
int pvx_planner_clone(struct pvx_planner *planner, struct pvx_planner **clone);
void pvx_planner_free(struct pvx_planner *planner);

/*
 * Plans to rewrite the site of a call that has trapped with these registers. The text is what the guest has at start.
 * -ENOENT: it cannot be rewritten. -EAGAIN: a page of stubs has to be added at one of pvx_planner_places().
 * -EEXIST: it has a plan, which has to be taken back first.
 */
int pvx_plan(struct pvx_planner *planner, const struct pvx_registers *registers, uint64_t start, const void *text,
	     size_t length, uint32_t forms, struct pvx_plan *plan);
/* The best places for text that is mapped from mapping on, count at most. Returns how many there are. */
int pvx_planner_places(struct pvx_planner *planner, uint64_t mapping, uint64_t *places, size_t count);
/* There is a page of stubs at start from now on. It has to begin with *first_word. -EINVAL: none can be there. */
int pvx_planner_add_stubs(struct pvx_planner *planner, uint64_t start, uint64_t *first_word);
/* The plan that was made last has been applied. */
int pvx_planner_commit(struct pvx_planner *planner);
/* Takes back one plan that changes something in the range. Returns 1, or 0 if there is none. */
int pvx_planner_take_back(struct pvx_planner *planner, uint64_t start, uint64_t length, struct pvx_plan *plan);

/* Makes the registers after a run what they would be in the guest's own text. */
int pvx_planner_original(struct pvx_planner *planner, struct pvx_registers *registers);
/* The rip to run with, of one in the guest's own text. */
uint64_t pvx_planner_present(struct pvx_planner *planner, uint64_t rip);
/* What the address of a fault is about that is no page fault. */
uint64_t pvx_planner_original_address(struct pvx_planner *planner, uint64_t address);
/* Makes bytes that the guest has at start its own: what it is to read. */
int pvx_planner_undo_in(struct pvx_planner *planner, uint64_t start, void *text, size_t length);

#define PVX_BREAKPOINT_UNKNOWN 0  /* no plan's; the context goes on at rip - 1 if none is there any more */
#define PVX_BREAKPOINT_GUESTS 1   /* the guest's own */
#define PVX_BREAKPOINT_PLANNED 2  /* a plan's: the context goes on at pvx_planner_present(rip - 1) */

/* Whose breakpoint a context has met whose fault's vector is 3. */
int pvx_planner_breakpoint(struct pvx_planner *planner, uint64_t rip);

/* All plans of the space have been taken back, and there will be no more: GS is the guest's. */
int pvx_space_stop_plans(struct pvx_space *space);

/* ---- Errors ---- */

/* Copies the last failure of the calling thread in words, with a null byte; returns its length as snprintf(3) does. */
size_t pvx_error(char *buffer, size_t size);

#ifdef __cplusplus
}
#endif

#endif
