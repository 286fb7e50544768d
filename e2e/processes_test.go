package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// Which processes run, as whom, and how they are asked to stop.

// runApp runs a command under slasha-init, without backups.
func runApp(t *testing.T, flags []string, command ...string) (code int, stdout, stderr string) {
	t.Helper()
	args := append([]string{"--health-addr=off"}, flags...)
	return testbed.Run(t, nil, 20*time.Second, testbed.SlashaInit(t), append(append(args, "--"), command...)...)
}

func TestStopSignal(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		stop string
		send syscall.Signal
		says string
	}{
		"TERM as QUIT":               {"QUIT", syscall.SIGTERM, "got 3"},
		"INT as a real-time signal":  {"SIGRTMIN+3", syscall.SIGINT, "got 37"},
		"the signal itself, by name": {"usr1", syscall.SIGUSR1, "got 10"},
		"the signal itself, as HUP":  {"1", syscall.SIGHUP, "got 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := testbed.Start(t, nil, testbed.SlashaInit(t), "--health-addr=off", "--stop-signal="+c.stop, "--stop-timeout=900ms", "--", testbed.Probe(t), "signals")
			testbed.WaitOutput(p, p.Stdout, "ready", 10*time.Second, testbed.Contains("ready"))
			p.Signal(c.send)
			// The probe knows only TERM as a request, so the stop's end comes by the budget.
			if code := p.Wait(10 * time.Second); code != 137 {
				t.Errorf("exit %d", code)
			}
			if out := p.Stdout.String(); !strings.Contains(out, c.says+"\n") || strings.Contains(out, "got 15") {
				t.Errorf("the app got %q", out)
			}
		})
	}
}

// The steps of a stop are in the log, in their order, with what is left of the
// budget.
func TestTheLogOfAStop(t *testing.T) {
	t.Parallel()
	p := supervised(t, []string{"--stop-timeout=3s"}, `trap "" TERM; setsid sh -c 'while :; do sleep 0.05; done' & trap - TERM; echo ready; while :; do sleep 0.05; done`)
	p.Signal(syscall.SIGTERM)
	p.Wait(10 * time.Second)
	log := p.Stderr.String()
	at := 0
	for _, step := range []string{`msg=stopping reason="signal SIGTERM" budget=3s app=2s`, "msg=ended process=web", "left=", "processes that were left behind", "budget=", "killing processes that were left behind", "msg=exiting code=143"} {
		i := strings.Index(log[at:], step)
		if i < 0 {
			t.Fatalf("%q is missing, or not in its place:\n%s", step, log)
		}
		at += i
	}
}

func TestSeveralProcesses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	procfile := filepath.Join(dir, "Procfile")
	probe := testbed.Probe(t)
	if err := os.WriteFile(procfile, fmt.Appendf(nil, "web: %s signals\nworker: %s signals\n", probe, probe), 0o644); err != nil {
		t.Fatal(err)
	}
	start := func(t *testing.T) *testbed.Container {
		c := testbed.Adopt(t, testbed.Start(t, nil, testbed.SlashaInit(t), "run", "--health-addr=127.0.0.1:0", "--procfile", procfile, "--formation", "web=1,worker=2"))
		testbed.WaitOutput(c.Process, c.Stdout, "three", 10*time.Second, func(s string) (struct{}, bool) { return struct{}{}, strings.Count(s, "ready") == 3 })
		c.WaitHealth(20*time.Second, inPhase(healthz.Running)) // and it knows that they run
		return c
	}
	t.Run("health shows them all", func(t *testing.T) {
		c := start(t)
		s, err := c.Health()
		if err != nil {
			t.Fatal(err)
		}
		var types []string
		for _, p := range s.Processes {
			types = append(types, p.Type)
		}
		if got := strings.Join(types, " "); got != "web worker worker" || s.Phase != "running" {
			t.Errorf("processes are %s, phase %s", got, s.Phase)
		}
	})
	t.Run("a signal goes to each once", func(t *testing.T) {
		c := start(t)
		c.Signal(syscall.SIGUSR1)
		testbed.WaitOutput(c.Process, c.Stdout, "three", 10*time.Second, func(s string) (struct{}, bool) { return struct{}{}, strings.Count(s, "got 10") == 3 })
		c.Signal(syscall.SIGTERM)
		if code := c.Wait(10 * time.Second); code != 7 || strings.Count(c.Stdout.String(), "got 15") != 3 || strings.Count(c.Stdout.String(), "got 10") != 3 {
			t.Errorf("exit %d, %q", code, c.Stdout)
		}
	})
	t.Run("one ends, all stop, and its code counts", func(t *testing.T) {
		c := start(t)
		s, err := c.Health()
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(s.Processes[1].PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if code := c.Wait(10 * time.Second); code != 137 || strings.Count(c.Stdout.String(), "got 15") != 2 {
			t.Errorf("exit %d, %q", code, c.Stdout)
		}
		if !strings.Contains(c.Stderr.String(), `reason="worker.1 ended"`) {
			t.Errorf("the log does not say who ended first: %s", c.Stderr)
		}
	})
	t.Run("one that can't be started stops those that were", func(t *testing.T) {
		if err := os.WriteFile(procfile, fmt.Appendf(nil, "web: %s signals\nworker: /no/such/file\n", probe), 0o644); err != nil {
			t.Fatal(err)
		}
		code, out, stderr := testbed.Run(t, nil, 10*time.Second, testbed.SlashaInit(t), "run", "--health-addr=off", "--procfile", procfile)
		if code != 127 || !strings.Contains(stderr, `"/no/such/file" does not exist`) {
			t.Errorf("exit %d, %q, %s", code, out, stderr)
		}
	})
}

// The prefix stands before whole lines, also before one that has no end, and the
// app's pipes are as blocking as a terminal.
func TestLogPrefix(t *testing.T) {
	t.Parallel()
	code, out, stderr := runApp(t, []string{"--log-prefix", "--log-level=error", "--process-type=api"}, "sh", "-c", `printf 'one\ntwo\n\nno end'; echo wrong >&2; `+testbed.Probe(t)+` state | grep '^fd 2'`)
	if code != 0 || out != "api | one\napi | two\napi | \napi | no endfd 2=10000 0\n" || stderr != "api | wrong\n" {
		t.Errorf("exit %d, %q, %q", code, out, stderr)
	}
	long := 200 << 10
	_, out, _ = runApp(t, []string{"--log-prefix"}, "sh", "-c", fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x", long))
	if n := strings.Count(out, "x"); n != long {
		t.Errorf("%d of %d bytes", n, long)
	}
}

func TestUser(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	// Not every user may enter the repository's folder.
	dir := openDir(t)
	probe := filepath.Join(dir, "probe")
	testbed.CopyFile(t, testbed.Probe(t), probe)
	names := strings.Fields(testbed.MustRun(t, nil, 5*time.Second, "sh", "-c", "id -u nobody; id -g nobody; getent group daemon | cut -d: -f3"))
	for user, want := range map[string][3]string{
		"12345":         {"12345", "0", ""},
		"12345:678":     {"12345", "678", ""},
		"nobody":        {names[0], names[1], names[1]},
		names[0]:        {names[0], names[1], names[1]},
		"nobody:daemon": {names[0], names[2], ""},
		"0:0":           {"0", "0", ""},
	} {
		code, out, stderr := runApp(t, []string{"--user=" + user}, probe, "state")
		if code != 0 {
			t.Errorf("%s: exit %d, %s", user, code, stderr)
		}
		for i, key := range []string{"uid", "gid", "groups"} {
			if !strings.Contains(out, "\n"+key+"="+want[i]+"\n") {
				t.Errorf("%s: no %s=%s in %s", user, key, want[i], out)
			}
		}
	}
	for user, says := range map[string]string{
		"no-such-user": "is not in this image's /etc/passwd",
		"-1":           "is not a user; write",
		"4294967295":   "is not a user; write",
		"nobody:":      "has no group behind the colon",
	} {
		code, _, stderr := runApp(t, []string{"--user=" + user}, "true")
		if code != 78 || !strings.Contains(stderr, says) {
			t.Errorf("%s: exit %d, %s", user, code, stderr)
		}
	}
}

// As an ordinary user we can't become somebody else, and can stay who we are.
func TestUserWithoutRoot(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	dir := openDir(t)
	binary := filepath.Join(dir, "slasha-init")
	testbed.CopyFile(t, testbed.SlashaInit(t), binary)
	as := func(user string) (int, string, string) {
		return testbed.Run(t, nil, 10*time.Second, "setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", binary, "--health-addr=off", "--user="+user, "--", "id", "-u")
	}
	for _, self := range []string{"12345", "12345:12345"} {
		if code, out, stderr := as(self); code != 0 || out != "12345\n" {
			t.Errorf("%s: exit %d, %q, %s", self, code, out, stderr)
		}
	}
	if code, _, stderr := as("0"); code != 78 || !strings.Contains(stderr, `--user "0": needs root, but slasha-init runs as uid 12345`) {
		t.Errorf("exit %d, %s", code, stderr)
	}
}

func TestNoNewPrivs(t *testing.T) {
	t.Parallel()
	for flag, want := range map[string]string{"--no-new-privs": "1", "--no-new-privs=false": "0"} {
		if _, out, stderr := runApp(t, []string{flag}, testbed.Probe(t), "state"); !strings.Contains(out, "nonewprivs="+want) {
			t.Errorf("%s: %s%s", flag, out, stderr)
		}
	}
}

func TestKillOnParentDeath(t *testing.T) {
	t.Parallel()
	for flag, want := range map[string]string{"--kill-on-parent-death": "got 15", "--kill-on-parent-death=INT": "got 2", "--log-level=info": ""} {
		t.Run(flag, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			out := filepath.Join(dir, "out")
			// The shell is the parent; it must not replace itself by its last command.
			parent := testbed.Start(t, nil, "sh", "-c", fmt.Sprintf("%s --health-addr=off --stop-timeout=1s %s -- %s signals >%s 2>&1; true", testbed.SlashaInit(t), flag, testbed.Probe(t), out))
			read := func() string { b, _ := os.ReadFile(out); return string(b) }
			testbed.Eventually(t, 10*time.Second, func() error {
				if !strings.Contains(read(), "ready") {
					return fmt.Errorf("not ready: %s", read())
				}
				return nil
			})
			ours := childOf(t, parent.Cmd.Process.Pid)
			t.Cleanup(func() { _ = syscall.Kill(ours, syscall.SIGKILL) })
			parent.Signal(syscall.SIGKILL)
			parent.Wait(5 * time.Second)
			if want == "" {
				if err := syscall.Kill(ours, 0); err != nil || strings.Contains(read(), "got") {
					t.Errorf("it did not go on: %v, %s", err, read())
				}
				return
			}
			testbed.Eventually(t, 10*time.Second, func() error {
				if testbed.Lives(ours) {
					return fmt.Errorf("it lives on")
				}
				return nil
			})
			if !strings.Contains(read(), want) {
				t.Errorf("the app got %s", read())
			}
		})
	}
}
