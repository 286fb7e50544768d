// Signals, from the first instant of the process.
//
// Go's runtime and the initialisers of a hundred packages run before main does.
// A signal that arrives in that time meets Go's default: TERM ends the process
// with a code that nobody chose, and so do HUP, USR1 and the rest, although no app
// has had a chance to see them. It would not help to block them: Go's threads
// unblock HUP, INT, QUIT and TERM.
//
// So a constructor, which the C library calls before Go's runtime begins,
// installs one handler for all, which writes down what comes in a pipe (the
// self-pipe trick). When the runtime installs its own handlers, our sigaction,
// which stands before the C library's as those of the sanitizers do, keeps them
// for the signals that are Go's own: faults, and those to itself.
//
// os/signal would not do even later: it merges real-time signals of one number,
// leaves out SIGRTMIN, which then ends the process, and does not say who sent a
// signal, so that the runtime's own SIGURG can't be distinguished from one that
// was sent.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "early.h"

enum { SIGNALS = 65 };

static sigset_t apps_mask;            // as we found it: the app's to inherit
static sigset_t ignored;              // as we found them, likewise
static sigset_t caught;               // those that the handler takes
static struct sigaction gos[SIGNALS]; // what Go wanted for these
static int inbox[2] = {-1, -1};

// The C library's, under its other name.
extern int __sigaction(int number, const struct sigaction *act, struct sigaction *old);

// A process that only runs a short command keeps the defaults, so that ctrl-C
// ends it. So does a test of a Go package.
static int supervises(int argc, char **argv) {
#ifdef __GLIBC__ // others don't hand the arguments to constructors
	const char *name = argc > 0 ? argv[0] : "";
	size_t n = strlen(name);
	if (n > 5 && strcmp(name + n - 5, ".test") == 0)
		return 0;
	return argc < 2 || argv[1][0] == '-' || strcmp(argv[1], "run") == 0;
#else
	return argc < 0 && argv == NULL;
#endif
}

// The C library keeps 32 and 33 to itself.
static int catchable(int number) {
	return number != SIGKILL && number != SIGSTOP && number != 32 && number != 33;
}

// The signals by which the kernel reports a fault of our own code.
static int is_fault(int number) {
	switch (number) {
	case SIGSEGV: case SIGBUS: case SIGFPE: case SIGILL: case SIGTRAP: case SIGSYS: case SIGABRT:
		return 1;
	}
	return 0;
}

// What is not for the app: faults, and the runtime's signals to itself.
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
		if (gos[number].sa_flags & SA_SIGINFO) {
			gos[number].sa_sigaction(number, info, context);
		} else if (is_fault(number)) { // before there is a runtime
			struct sigaction fatal;
			memset(&fatal, 0, sizeof fatal);
			__sigaction(number, &fatal, NULL);
		}
	} else if (number != SIGPIPE || info->si_pid != getpid()) {
		// A SIGPIPE with ourselves as the sender is raised by a connection that
		// ended. A record is shorter than PIPE_BUF, so a write is whole or not at
		// all; the latter can't be reported to anybody.
		struct slasha_signal s = {number, info->si_code};
		if (write(inbox[1], &s, sizeof s) == -1)
			errno = saved;
	}
	errno = saved;
}

// slasha_catch installs the handler. What Go had stays behind it.
void slasha_catch(int number) {
	struct sigaction ours, old;

	memset(&ours, 0, sizeof ours);
	ours.sa_sigaction = on_signal;
	// Go's threads have small stacks, and an alternate one for signals.
	ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
	sigfillset(&ours.sa_mask);
	if (__sigaction(number, &ours, &old) == 0 && old.sa_sigaction != on_signal)
		gos[number] = old;
	sigaddset(&caught, number);
}

// sigaction takes the place of the C library's, which Go's runtime calls in a
// program with C. A handler for a signal that is caught is kept behind ours;
// what ignores it, or ends the process by it, is done.
int sigaction(int number, const struct sigaction *act, struct sigaction *old) {
	if (number <= 0 || number >= SIGNALS || sigismember(&caught, number) != 1)
		return __sigaction(number, act, old);
	struct sigaction wanted = gos[number];
	int result = 0;
	if (act != NULL) {
		if (act->sa_handler == SIG_DFL || act->sa_handler == SIG_IGN)
			result = __sigaction(number, act, NULL);
		gos[number] = *act;
	}
	if (old != NULL)
		*old = wanted;
	return result;
}

__attribute__((constructor)) static void early(int argc, char **argv) {
	struct sigaction was;
	sigset_t terminal;
	int number, fd;

	sigemptyset(&ignored);
	sigemptyset(&caught);
	for (number = 1; number < SIGNALS; number++)
		if (__sigaction(number, NULL, &was) == 0 && was.sa_handler == SIG_IGN)
			sigaddset(&ignored, number);
	pthread_sigmask(SIG_SETMASK, NULL, &apps_mask);

	// Without the first three descriptors, files that we open would become the
	// app's stdin or stdout. Go makes them /dev/null, and gives up in an image
	// that has none.
	for (fd = 0; fd < 3; fd++)
		if (fcntl(fd, F_GETFD) == -1 && errno == EBADF && open("/dev/null", O_RDWR) == -1 && open("/", O_PATH) == -1)
			break;

	if (pipe2(inbox, O_CLOEXEC | O_NONBLOCK) == -1 || !supervises(argc, argv))
		return;
	// A write to our terminal from the background must not stop us, and a
	// handler for that would be called again and again.
	sigemptyset(&terminal);
	sigaddset(&terminal, SIGTTOU);
	sigaddset(&terminal, SIGTTIN);
	pthread_sigmask(SIG_BLOCK, &terminal, NULL);
	for (number = 1; number < SIGNALS; number++)
		if (catchable(number))
			slasha_catch(number);
}

// slasha_was_ignored reports whether a signal was ignored when we began, as nohup
// and a shell's & ask. An ignored SIGCHLD would reap our children.
int slasha_was_ignored(int number) {
	return number != SIGCHLD && sigismember(&ignored, number) == 1;
}

// slasha_inbox returns the pipe's end to read from, or -1.
int slasha_inbox(void) { return inbox[0]; }

// slasha_open_mask lets this thread take all signals.
void slasha_open_mask(void) {
	sigset_t none;

	sigemptyset(&none);
	pthread_sigmask(SIG_SETMASK, &none, NULL);
}

// slasha_before_fork makes this thread, and for the moment of a fork the process,
// what the app is to inherit: the mask and the ignored signals. A handler becomes
// the default by itself when a program is executed.
void slasha_before_fork(void) {
	struct sigaction ignore;
	int number;

	memset(&ignore, 0, sizeof ignore);
	ignore.sa_handler = SIG_IGN;
	for (number = 1; number < SIGNALS; number++)
		if (slasha_was_ignored(number))
			__sigaction(number, &ignore, NULL);
	pthread_sigmask(SIG_SETMASK, &apps_mask, NULL);
}

// slasha_after_fork takes the signals again.
void slasha_after_fork(void) {
	int number;

	for (number = 1; number < SIGNALS; number++)
		if (slasha_was_ignored(number) && catchable(number))
			slasha_catch(number);
	slasha_open_mask();
}
