/* Signals for the caller: those of the mask end the run and are taken, others have their handlers run. */
#include "support.h"

extern const char spin[];
__asm__(".pushsection .text\nspin: jmp spin\n.popsection");

static volatile sig_atomic_t handled;
static pthread_t caller;
static pid_t child;

static void handler(int signal)
{
	(void)signal;
	handled++;
}

static void *send(void *to_process)
{
	usleep(50000);
	if (to_process)
		kill(getpid(), SIGUSR1);
	else
		pthread_kill(caller, SIGUSR1);
	return NULL;
}

static void *send_both(void *unused)
{
	(void)unused;
	usleep(50000);
	pthread_kill(caller, SIGUSR2);
	usleep(50000);
	CHECK(handled == 1);
	pthread_kill(caller, SIGUSR1);
	return NULL;
}

static void ends_a_run(void *(*sender)(void *), void *argument)
{
	struct sigcontext uctx = context_at(spin);
	siginfo_t info;
	pthread_t thread;

	CHECK(pthread_create(&thread, NULL, sender, argument) == 0);
	CHECK(run_in(child, &uctx, &info, SIGUSR1) == 0);
	CHECK(info.si_signo == SIGUSR1 && info.si_pid == getpid() && uctx.rip == (unsigned long)spin);
	CHECK(pthread_join(thread, NULL) == 0);
}

int main(void)
{
	struct sigaction action;
	sigset_t usr1 = set_of(SIGUSR1), pending;

	need_targets();
	child = start_target();
	caller = pthread_self();
	CHECK(pthread_sigmask(SIG_BLOCK, &usr1, NULL) == 0);
	memset(&action, 0, sizeof(action));
	action.sa_handler = handler;
	CHECK(sigaction(SIGUSR2, &action, NULL) == 0);

	ends_a_run(send, NULL);
	ends_a_run(send, &caller);
	ends_a_run(send_both, NULL);
	CHECK(sigpending(&pending) == 0 && !sigismember(&pending, SIGUSR1));
	end_target(child);
	return EXIT_SUCCESS;
}
