/* Threads with the smallest stacks that there are, and a timer whose handler interrupts the run that it finds. */
#include "spaces.h"

#include <stdatomic.h>
#include <sys/time.h>

enum { THREADS = 3, RUNS = 400 };

static __thread struct pvx_context *running;
static atomic_int done;

static void interrupt(int signal)
{
	(void)signal;
	if (running)
		pvx_interrupt(running);
}

static void *work(void *engine)
{
	struct pvx_options options = options_with(*(uint32_t *)engine);
	struct pvx_change change = { PVX_MAP, PROT_READ, MAP_PRIVATE | MAP_FIXED, PVX_ANONYMOUS, DATA, PAGE, 0, 0 };
	struct pvx_space *calls = new_space(&options), *spins = new_space(&options);
	struct pvx_context *context = new_context(CODE, 0);
	struct pvx_registers registers;
	struct pvx_exit why;
	int interrupts = 0;

	PUT_CODE(calls, LOOP_OF_CALLS);
	PUT_CODE(spins, SPIN);
	memset(&registers, 0, sizeof(registers));
	running = context;
	for (int i = 0; i < RUNS; i++) {
		struct pvx_space *fork = NULL;

		/* From one space to the other, each time. */
		registers.rip = CODE;
		CHECK(pvx_set_registers(context, &registers) == 0);
		CHECK(pvx_run(calls, context, &change, 1, &why) == 0);
		CHECK(why.kind == PVX_SYSCALL || why.kind == PVX_INTERRUPTED);
		CHECK(pvx_set_registers(context, &registers) == 0);
		CHECK(pvx_run(spins, context, NULL, 0, &why) == 0 && why.kind == PVX_INTERRUPTED);
		interrupts++;
		if (i % 50 == 0) {
			CHECK(pvx_space_fork(calls, &fork) == 0);
			pvx_space_free(fork);
		}
	}
	running = NULL;
	CHECK(interrupts == RUNS);
	pvx_context_free(context);
	pvx_space_free(calls);
	pvx_space_free(spins);
	done++;
	return NULL;
}

static void *interrupt_all(void *threads)
{
	for (;;) {
		for (int i = 0; i < THREADS; i++)
			pthread_kill(((pthread_t *)threads)[i], SIGALRM);
		usleep(300);
		pthread_testcancel();
	}
	return NULL;
}

int main(void)
{
	static uint32_t engines[] = { PVX_ENGINE_TRAP, PVX_ENGINE_REWRITE };
	const struct itimerval often = { { 0, 500 }, { 0, 500 } };
	pthread_t threads[THREADS], storm;
	struct sigaction action;
	pthread_attr_t small;

	memset(&action, 0, sizeof(action));
	action.sa_handler = interrupt;
	CHECK(sigaction(SIGALRM, &action, NULL) == 0);
	CHECK(pthread_attr_init(&small) == 0 && pthread_attr_setstacksize(&small, 16384) == 0);
	for (size_t e = 0; e < sizeof(engines) / sizeof(*engines); e++) {
		for (int i = 0; i < THREADS; i++)
			CHECK(pthread_create(&threads[i], &small, work, &engines[e]) == 0);
		/* The process's timer hits any thread; the other one each. */
		CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
		CHECK(pthread_create(&storm, NULL, interrupt_all, threads) == 0);
		/* It needs threads that have not been joined. */
		while (done < THREADS)
			usleep(1000);
		CHECK(pthread_cancel(storm) == 0 && pthread_join(storm, NULL) == 0);
		for (int i = 0; i < THREADS; i++)
			CHECK(pthread_join(threads[i], NULL) == 0);
		done = 0;
	}
	return EXIT_SUCCESS;
}
