// probe is the app in the tests of PID 1: it reports exactly what it was given and
// which signals reached it. It is C because a Go program has signals, threads and
// descriptors of its own.
//
//   probe signals          say "got N" for each signal; exit with 7 on SIGTERM
//   probe stubborn         the same, and go on after SIGTERM
//   probe state            say what was inherited
//   probe orphans N        leave N orphans that exit with all kinds of codes, say
//                          "made N", and wait for SIGTERM as above
//   probe clock            say the monotonic clock, in nanoseconds
//   probe args ARG...      say each argument, in brackets
//   probe block N CMD...   become CMD, with signal N blocked
//   probe nolocks CMD...   become CMD, for whom flock(2) fails as it does on a file
//                          system that has no locks
#define _GNU_SOURCE
#include <fcntl.h>
#include <errno.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static void block_all(void) {
	sigset_t all;
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
}

static int signals(int stubborn) {
	sigset_t all;
	sigfillset(&all);
	printf("ready %d\n", getpid());
	for (;;) {
		int number = sigwaitinfo(&all, NULL);
		if (number <= 0)
			continue;
		printf("got %d\n", number);
		if (number == SIGTERM && !stubborn)
			return 7;
	}
}

static void limits(void) {
	struct rlimit l;
	for (int i = 0; i < RLIM_NLIMITS; i++)
		if (getrlimit(i, &l) == 0)
			printf("limit %d=%llu %llu\n", i, (unsigned long long)l.rlim_cur, (unsigned long long)l.rlim_max);
}

static void descriptors(void) {
	for (int fd = 0; fd < 200; fd++) {
		struct stat st;
		if (fstat(fd, &st) == 0)
			printf("fd %d=%o %d\n", fd, st.st_mode & S_IFMT, (fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
	}
}

static int state(void) {
	sigset_t mask;
	struct sigaction a;
	gid_t groups[64];
	mode_t u = umask(0);
	char dir[4096];
	sigprocmask(SIG_SETMASK, NULL, &mask);
	for (int n = 1; n < 65; n++) {
		if (sigismember(&mask, n) == 1)
			printf("blocked %d\n", n);
		if (n != SIGKILL && n != SIGSTOP && sigaction(n, NULL, &a) == 0 && a.sa_handler != SIG_DFL)
			printf("ignored %d\n", n);
	}
	printf("pid=%d\nppid=%d\ngroup=%d\nsession=%d\nforeground=%d\n", getpid(), getppid(), getpgrp(), getsid(0), tcgetpgrp(0));
	printf("umask=%o\ncwd=%s\nuid=%d\ngid=%d\neuid=%d\n", u, getcwd(dir, sizeof dir) ? dir : "?", getuid(), getgid(), geteuid());
	printf("groups=");
	for (int i = 0, n = getgroups(64, groups); i < n; i++)
		printf("%s%d", i ? "," : "", groups[i]);
	printf("\nnonewprivs=%d\nnice=%d\n", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), getpriority(PRIO_PROCESS, 0));
	limits();
	descriptors();
	for (char **e = environ; *e; e++)
		printf("env %s\n", *e);
	return 0;
}

static int orphans(int n) {
	for (int i = 0; i < n; i++) {
		pid_t child = fork();
		if (child == 0) {
			if (fork() == 0)
				usleep(1000);
			_exit(i % 256);
		}
		if (child > 0)
			waitpid(child, NULL, 0);
	}
	printf("made %d\n", n);
	return signals(0);
}

static int no_locks(void) {
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_flock, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOLCK),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = {sizeof code / sizeof *code, code};
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		return -1;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
}

int main(int argc, char **argv) {
	const char *what = argc > 1 ? argv[1] : "";
	struct timespec now;
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (strcmp(what, "clock") == 0) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		printf("%lld\n", now.tv_sec * 1000000000LL + now.tv_nsec);
		return 0;
	}
	if (strcmp(what, "state") == 0)
		return state();
	if (strcmp(what, "args") == 0) {
		for (int i = 2; i < argc; i++)
			printf("[%s]\n", argv[i]);
		return 0;
	}
	if (strcmp(what, "block") == 0 && argc > 3) {
		sigset_t mask;
		sigemptyset(&mask);
		sigaddset(&mask, atoi(argv[2]));
		sigprocmask(SIG_SETMASK, &mask, NULL);
		execvp(argv[3], argv + 3);
		perror("probe");
		return 127;
	}
	if (strcmp(what, "nolocks") == 0 && argc > 2) {
		if (no_locks() == 0)
			execvp(argv[2], argv + 2);
		perror("probe");
		return 127;
	}
	block_all();
	if (strcmp(what, "signals") == 0)
		return signals(0);
	if (strcmp(what, "stubborn") == 0)
		return signals(1);
	if (strcmp(what, "orphans") == 0 && argc > 2)
		return orphans(atoi(argv[2]));
	fprintf(stderr, "probe: what?\n");
	return 64;
}
