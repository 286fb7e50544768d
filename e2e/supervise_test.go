package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/internal/testbed"
)

// supervised starts a shell script under slasha-init, without backups, and waits
// until it says "ready".
func supervised(t *testing.T, flags []string, script string) *testbed.Process {
	t.Helper()
	args := append([]string{"--health-addr=off"}, flags...)
	p := testbed.Start(t, nil, testbed.SlashaInit(t), append(args, "--", "sh", "-c", script)...)
	testbed.WaitOutput(p, p.Stdout, "ready", 10*time.Second, testbed.Contains("ready"))
	return p
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		testbed.WriteProgram(t, path, strings.NewReader(content), mode)
		return path
	}
	for name, c := range map[string]struct {
		command []string
		code    int
		says    string
	}{
		"zero":                {[]string{"true"}, 0, ""},
		"its own":             {[]string{"sh", "-c", "exit 42"}, 42, ""},
		"a signal":            {[]string{"sh", "-c", "kill -9 $$"}, 137, ""},
		"a segfault":          {[]string{"sh", "-c", "kill -SEGV $$"}, 139, ""},
		"not in PATH":         {[]string{"no-such-program"}, 127, `"no-such-program" was not found in PATH`},
		"no such file":        {[]string{"/no/such/file"}, 127, `"/no/such/file" does not exist`},
		"no permission":       {[]string{write("plain", "#!/bin/sh\n", 0o644)}, 126, "is not executable (permission denied)"},
		"a folder":            {[]string{dir}, 126, "is a folder"},
		"missing interpreter": {[]string{write("script", "#!/no/such/shell -e\n", 0o755)}, 127, `needs the interpreter "/no/such/shell"`},
		"no format":           {[]string{write("odd", "hello\n", 0o755)}, 126, "a script needs a first line"},
		"wrong architecture":  {[]string{write("elf", "\x7fELF\x02\x01\x01"+strings.Repeat("\x00", 9)+"\x02\x00\xf3\x00\x01\x00\x00\x00"+strings.Repeat("\x00", 28)+"\x40\x00\x38\x00\x00\x00\x40\x00\x00\x00\x00\x00", 0o755)}, 126, "it is built for riscv"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, _, stderr := testbed.Run(t, nil, 10*time.Second, testbed.SlashaInit(t), append([]string{"--health-addr=off", "--"}, c.command...)...)
			if code != c.code || !strings.Contains(stderr, c.says) {
				t.Errorf("exit %d, want %d; stderr: %s", code, c.code, stderr)
			}
		})
	}
}

func TestSignalsReachTheGroupOnce(t *testing.T) {
	t.Parallel()
	// The shell and its child both count; sleep in short steps lets traps run.
	p := supervised(t, nil, "child="+filepath.Join(t.TempDir(), "child")+`
		(trap 'echo child-usr1' USR1; trap 'echo child-hup' HUP; trap 'echo child-rt' RTMIN+3; trap 'echo child-term; exit 0' TERM; echo > $child; while :; do sleep 0.01; done) &
		trap 'echo parent-usr1' USR1; trap 'echo parent-hup' HUP; trap 'echo parent-rt' RTMIN+3; trap 'echo parent-term; wait; exit 5' TERM
		until [ -e $child ]; do sleep 0.01; done; echo ready; while :; do sleep 0.01; done`)
	for _, s := range []struct {
		sig  syscall.Signal
		says []string
	}{
		{syscall.SIGUSR1, []string{"child-usr1", "parent-usr1"}},
		{syscall.SIGHUP, []string{"child-hup", "parent-hup"}},
		{syscall.Signal(37), []string{"child-rt", "parent-rt"}},
	} {
		p.Signal(s.sig)
		for _, says := range s.says {
			testbed.WaitOutput(p, p.Stdout, says, 5*time.Second, testbed.Contains(says))
		}
	}
	p.Signal(syscall.SIGTERM)
	if code := p.Wait(10 * time.Second); code != 5 {
		t.Errorf("exit %d", code)
	}
	for says, want := range map[string]int{"child-usr1": 1, "parent-usr1": 1, "parent-hup": 1, "parent-rt": 1, "child-term": 1, "parent-term": 1} {
		if n := strings.Count(p.Stdout.String(), says); n != want {
			t.Errorf("%s came %d times", says, n)
		}
	}
}

func TestStopKillsWhatIgnoresIt(t *testing.T) {
	t.Parallel()
	p := supervised(t, []string{"--stop-timeout=3s"}, `trap "" TERM; (trap "" TERM; while :; do sleep 0.1; done) & echo ready; while :; do sleep 0.1; done`)
	began := time.Now()
	p.Signal(syscall.SIGTERM)
	p.Signal(syscall.SIGTERM) // a repeated one changes nothing
	if code := p.Wait(10 * time.Second); code != 137 {
		t.Errorf("exit %d", code)
	}
	if took := time.Since(began); took < 1900*time.Millisecond || took > 6*time.Second {
		t.Errorf("the app had %s of 2 s", took)
	}
	noneLeft(t, p)
}

func TestSecondInterruptKills(t *testing.T) {
	t.Parallel()
	p := supervised(t, []string{"--stop-timeout=60s"}, `trap "" INT TERM; echo ready; while :; do sleep 0.1; done`)
	p.Signal(syscall.SIGINT)
	testbed.WaitOutput(p, p.Stderr, "stopping", 5*time.Second, testbed.Contains("msg=stopping"))
	p.Signal(syscall.SIGINT)
	if code := p.Wait(5 * time.Second); code != 137 {
		t.Errorf("exit %d", code)
	}
}

// noneLeft fails the test when a process of the supervised group lives on.
func noneLeft(t *testing.T, p *testbed.Process) {
	t.Helper()
	if out, err := exec.Command("pgrep", "-a", "-P", fmt.Sprint(p.Cmd.Process.Pid)).Output(); err == nil {
		t.Errorf("children live on: %s", out)
	}
}

// A leader that exits must not cost its helpers their grace: the helper needs a
// moment to write what it has.
func TestHelpersHaveTimeToFinish(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]string{"in the group": "", "in a session of their own": "setsid "} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file, ready := filepath.Join(t.TempDir(), "written"), filepath.Join(t.TempDir(), "ready")
			helper := fmt.Sprintf(`trap "sleep 0.3; echo done > %s; exit 0" TERM; echo > %s; while :; do sleep 0.01; done`, file, ready)
			p := testbed.Start(t, nil, testbed.SlashaInit(t), "--health-addr=off", "--", "sh", "-c",
				fmt.Sprintf(`%ssh -c '%s' & until [ -e %s ]; do sleep 0.01; done; exit 9`, how, helper, ready))
			if code := p.Wait(10 * time.Second); code != 9 {
				t.Errorf("exit %d", code)
			}
			if b, err := os.ReadFile(file); err != nil || string(b) != "done\n" {
				t.Errorf("the helper wrote %q, %v", b, err)
			}
		})
	}
}

func TestOrphansAreReaped(t *testing.T) {
	t.Parallel()
	// Each subshell leaves an orphan that ends a little later.
	p := supervised(t, nil, `i=0; while [ $i -lt 300 ]; do (sh -c 'sleep 0.05' &) ; i=$((i+1)); done; sleep 0.5; echo ready; while :; do sleep 0.1; done`)
	zombies := 0
	testbed.Eventually(t, 5*time.Second, func() error {
		zombies = 0
		out, _ := exec.Command("ps", "-o", "stat=", "--ppid", fmt.Sprint(p.Cmd.Process.Pid)).Output()
		for _, line := range strings.Fields(string(out)) {
			if strings.HasPrefix(line, "Z") {
				zombies++
			}
		}
		if zombies > 0 {
			return fmt.Errorf("%d zombies", zombies)
		}
		return nil
	})
	p.Signal(syscall.SIGTERM)
	if code := p.Wait(5 * time.Second); code != 143 {
		t.Errorf("exit %d", code)
	}
}

func TestOurDeathTakesTheAppWithIt(t *testing.T) {
	t.Parallel()
	p := supervised(t, nil, `echo pid $$; echo ready; while :; do sleep 0.1; done`)
	var pid int
	if _, err := fmt.Sscanf(p.Stdout.String(), "pid %d", &pid); err != nil {
		t.Fatal(err)
	}
	p.Signal(syscall.SIGKILL) // us alone, not the group
	p.Wait(5 * time.Second)
	testbed.Eventually(t, 5*time.Second, func() error {
		if testbed.Lives(pid) {
			return fmt.Errorf("the app lives on: %s", testbed.Stat(pid, 3))
		}
		return nil
	})
}

func TestTheAppSeesItsOwnEnvironment(t *testing.T) {
	t.Parallel()
	env := []string{"SLASHA_LOG_LEVEL=debug", "LITESTREAM_SECRET_ACCESS_KEY=wrong-secret", "SLASHA_APP=1", "AWS_REGION=x", "SLASHA_SECRET_ACCESS_KEY_FILE="}
	out := testbed.MustRun(t, env, 10*time.Second, testbed.SlashaInit(t), "--health-addr=off", "--", "env")
	for _, want := range []string{"SLASHA_APP=1", "AWS_REGION=x"} {
		if !strings.Contains(out, want) {
			t.Errorf("%s is missing", want)
		}
	}
	for _, bad := range []string{"SLASHA_LOG_LEVEL", "LITESTREAM_", "_FILE", "AWS_IGNORE"} {
		if strings.Contains(out, bad) {
			t.Errorf("the app sees %s:\n%s", bad, out)
		}
	}
}

func TestALogThatNobodyReads(t *testing.T) {
	t.Parallel()
	// A full pipe, so that every write to it blocks.
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	for err := error(nil); err == nil; {
		_, err = syscall.Write(fds[1], make([]byte, 4096))
	}
	if err := syscall.SetNonblock(fds[1], false); err != nil {
		t.Fatal(err)
	}
	w := os.NewFile(uintptr(fds[1]), "full pipe")
	defer func() { _ = w.Close(); _ = syscall.Close(fds[0]) }()
	cmd := exec.Command(testbed.SlashaInit(t), "--health-addr=off", "--", "sh", "-c", "exec 2>&-; exit 6")
	cmd.Stderr = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		_ = cmd.Process.Kill()
		t.Fatal("stuck with its log")
	}
	if code := cmd.ProcessState.ExitCode(); code != 6 {
		t.Errorf("exit %d", code)
	}
}
