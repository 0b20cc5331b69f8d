/* A target in a pid namespace of its own, where the executor has another number than here. */
#include "support.h"
#include <sched.h>
#include <time.h>

static pid_t child;

/* Also after a failed claim: it would keep the output open. */
static void end_child(void)
{
	if (child > 0)
		kill(child, SIGKILL);
}

/* The target's number here, by way of a process that has another namespace for its children. 0 if there can be none. */
static pid_t start_in_namespace(void)
{
	int ends[2];
	pid_t maker, made = 0;

	CHECK(pipe(ends) == 0);
	maker = fork();
	CHECK(maker != -1);
	if (maker == 0) {
		if (unshare(CLONE_NEWPID) == 0 || unshare(CLONE_NEWUSER | CLONE_NEWPID) == 0) {
			made = fork();
			if (made == 0)
				for (;;)
					pause();
		}
		CHECK(write(ends[1], &made, sizeof(made)) == sizeof(made));
		_exit(EXIT_SUCCESS);
	}
	CHECK(read(ends[0], &made, sizeof(made)) == sizeof(made));
	waitpid(maker, NULL, 0);
	return made;
}

static long elapsed_ms(const struct timespec *start)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (now.tv_sec - start->tv_sec) * 1000 + (now.tv_nsec - start->tv_nsec) / 1000000;
}

int main(void)
{
	struct timespec start;
	long executor;

	need_targets();
	atexit(end_child);
	child = start_in_namespace();
	if (child <= 0) {
		printf("SKIP: a pid namespace: %s\n", strerror(errno));
		return SKIPPED;
	}
	/* It stays the same over many looks at whether it is still in the target's memory. */
	executor = syscall_in(child, SYS_getpid, 0, 0, 0);
	clock_gettime(CLOCK_MONOTONIC, &start);
	while (elapsed_ms(&start) < 200)
		CHECK(syscall_in(child, SYS_getpid, 0, 0, 0) == executor);
	return EXIT_SUCCESS;
}
