/* What the programs about spaces have in common: a failed claim says where, and ends the program. */
#ifndef SPACES_H
#define SPACES_H

#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <pvx.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The harness knows this status: the program has said why it skips. */
#define SKIPPED 77

#define CHECK(claim)                                                                             \
	do {                                                                                     \
		if (!(claim)) {                                                                  \
			char words_[512];                                                        \
			pvx_error(words_, sizeof(words_));                                       \
			fprintf(stderr, "%s:%d: not true: %s (last error: %s)\n", __FILE__, __LINE__, #claim, \
				words_);                                                         \
			exit(EXIT_FAILURE);                                                      \
		}                                                                                \
	} while (0)

enum { PAGE = 4096 };

#define CODE 0x400000ULL
#define DATA 0x500000ULL

/* Machine code as a string. */
#define LOOP_OF_CALLS "\xb8\x27\0\0\0" /* mov $39, %eax */ "\x0f\x05" /* syscall */ "\xeb\xf7" /* jmp back */
#define SPIN "\xeb\xfe"
#define STORE "\x48\x89\x07" /* mov %rax, (%rdi) */

static inline struct pvx_options options_with(uint32_t engine)
{
	struct pvx_options options;

	memset(&options, 0, sizeof(options));
	options.size = sizeof(options);
	options.engine = engine;
	return options;
}

static inline struct pvx_space *new_space(const struct pvx_options *options)
{
	struct pvx_space *space = NULL;

	CHECK(pvx_space_create(options, &space) == 0);
	CHECK(space != NULL);
	return space;
}

static inline struct pvx_context *new_context(uint64_t rip, uint64_t rsp)
{
	struct pvx_context *context = NULL;
	struct pvx_registers registers;

	CHECK(pvx_context_create(&context) == 0);
	memset(&registers, 0, sizeof(registers));
	registers.rip = rip;
	registers.rsp = rsp;
	CHECK(pvx_set_registers(context, &registers) == 0);
	return context;
}

static inline void put_code(struct pvx_space *space, const char *code, size_t length)
{
	CHECK(pvx_map(space, CODE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, PVX_ANONYMOUS, 0) ==
	      (int64_t)CODE);
	CHECK(pvx_write(space, CODE, code, length) == 0);
	CHECK(pvx_protect(space, CODE, PAGE, PROT_READ | PROT_EXEC) == 0);
}

#define PUT_CODE(space, code) put_code(space, code, sizeof(code) - 1)

#endif
