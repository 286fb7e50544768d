// Signals, from the first instant of the process.
//
// Go's runtime and the initialisers of a hundred packages run before main does.
// A signal that arrives in that time meets Go's default: TERM ends the process
// with a code that is nobody's, and so do HUP, USR1 and the rest, although no app
// has had a chance to see them. So a constructor, which the C library calls before
// Go's runtime begins, blocks them all: the kernel keeps them (for PID 1 too, for
// which it drops a signal that has no handler and is not blocked), real-time
// ones in their number and order.
//
// Later New installs one handler for all, which writes down what came in a pipe
// (the self-pipe trick), and opens one thread's mask. os/signal would not do: it
// merges real-time signals of one number, leaves out SIGRTMIN, which then ends
// the process, and does not tell who sent a signal, so that its own SIGURG can't
// be told from one that was sent.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "early.h"

static sigset_t apps_mask;        // as we found it: the app's to inherit
static sigset_t ignored;          // as we found them, likewise
static struct sigaction gos[65];  // Go's own handlers
static int inbox = -1;

// A process that only runs a short command keeps the defaults, so that ctrl-C
// ends it. So does a test of a Go package.
static int supervises(int argc, char **argv) {
#ifdef __GLIBC__ // others don't hand the arguments to constructors
	if (argc < 2)
		return 0;
	if (argv[1][0] == '-')
		return strncmp(argv[1], "-test.", 6) != 0;
	return strcmp(argv[1], "run") == 0;
#else
	return 0;
#endif
}

// The signals by which the kernel reports a fault of our own code. Blocked, a
// fault would end us without a trace.
static int is_fault(int number) {
	switch (number) {
	case SIGSEGV: case SIGBUS: case SIGFPE: case SIGILL: case SIGTRAP: case SIGSYS: case SIGABRT:
		return 1;
	}
	return 0;
}

__attribute__((constructor)) static void early(int argc, char **argv) {
	struct sigaction was;
	sigset_t all;
	int number, fd;

	sigemptyset(&ignored);
	sigfillset(&all);
	for (number = 1; number < 65; number++) {
		if (sigaction(number, NULL, &was) == 0 && was.sa_handler == SIG_IGN)
			sigaddset(&ignored, number);
		if (is_fault(number) || number == SIGURG || number == SIGPROF)
			sigdelset(&all, number); // Go's runtime uses these two on itself
	}
	pthread_sigmask(SIG_SETMASK, NULL, &apps_mask);
	if (supervises(argc, argv))
		pthread_sigmask(SIG_BLOCK, &all, NULL);

	// Without the first three descriptors, files that we open would become the
	// app's stdin or stdout. Go makes them /dev/null, and gives up in an image
	// that has none.
	for (fd = 0; fd < 3; fd++) {
		if (fcntl(fd, F_GETFD) == -1 && errno == EBADF && open("/dev/null", O_RDWR) == -1 && open("/", O_PATH) == -1)
			continue;
	}
}

int slasha_was_ignored(int number) { return sigismember(&ignored, number) == 1; }

// What is not for the app: faults and Go's signals to itself. SIGPIPE is
// raised here by connections that end, with ourselves as the sender.
static int is_for_go(int number, const siginfo_t *info) {
	if (info->si_code == SI_TKILL && info->si_pid == getpid())
		return 1;
	if (number == SIGPROF)
		return info->si_code == SI_KERNEL || info->si_code == SI_TIMER;
	return is_fault(number) && info->si_code > 0;
}

static void on_signal(int number, siginfo_t *info, void *context) {
	int saved = errno;

	if (is_for_go(number, info)) {
		if (gos[number].sa_flags & SA_SIGINFO)
			gos[number].sa_sigaction(number, info, context);
	} else if (number != SIGPIPE || info->si_pid != getpid()) {
		struct slasha_signal s = {number, info->si_code};
		// Atomic, as it is shorter than PIPE_BUF. Nobody can be told if it fails.
		if (write(inbox, &s, sizeof s) == -1)
			errno = saved;
	}
	errno = saved;
}

// slasha_inbox names the pipe. It comes before the first slasha_catch.
void slasha_inbox(int fd) { inbox = fd; }

// slasha_catch installs the handler. Go's own stays behind it.
void slasha_catch(int number) {
	struct sigaction ours;

	memset(&ours, 0, sizeof ours);
	ours.sa_sigaction = on_signal;
	// Go's threads have small stacks, and an alternate one for signals.
	ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
	sigfillset(&ours.sa_mask);
	if (sigaction(number, NULL, &gos[number]) == 0)
		sigaction(number, &ours, NULL);
}

// slasha_open_mask lets this thread take all signals.
void slasha_open_mask(void) {
	sigset_t none;

	sigemptyset(&none);
	pthread_sigmask(SIG_SETMASK, &none, NULL);
}

// slasha_apps_mask gives this thread the mask that the app is to inherit.
void slasha_apps_mask(void) { pthread_sigmask(SIG_SETMASK, &apps_mask, NULL); }
