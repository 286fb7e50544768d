package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

func docker(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command("docker", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// needDocker skips the test where no engine answers, unless one is promised.
func needDocker(t *testing.T) {
	t.Helper()
	if err := exec.Command("docker", "info").Run(); err != nil {
		if os.Getenv("SLASHA_REQUIRE_DOCKER") != "" {
			t.Fatalf("SLASHA_REQUIRE_DOCKER is set, but no Docker engine answers: %v", err)
		}
		t.Skip("no Docker engine answers")
	}
}

// image builds an image of our binaries, and of programs of this machine, for
// the time of the test.
func image(t *testing.T, programs ...string) string {
	t.Helper()
	needDocker(t)
	testbed.Released(t)
	testbed.Guestbook(t)
	name := fmt.Sprintf("slasha-init-test:%s-%d", strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")), os.Getpid())
	build := exec.Command(filepath.Join(testbed.Root(), "testdata", "image.sh"), append([]string{name}, programs...)...)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("image: %v\n%s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("docker", "rmi", "-f", name).Run() })
	return name
}

// inDocker prepares docker run, and returns the name of the container.
func inDocker(t *testing.T, image string, options []string, app ...string) (cmd *exec.Cmd, name string) {
	t.Helper()
	name = fmt.Sprintf("slasha-init-test-%d-%d", os.Getpid(), time.Now().UnixNano())
	args := append([]string{"run", "--network", "host", "--name", name}, options...)
	t.Cleanup(func() { _ = exec.Command("docker", "rm", "-f", name).Run() })
	cmd = exec.Command("docker", append(append(args, image), app...)...)
	return cmd, name
}

// running starts an app that says when it is ready, without backups.
func running(t *testing.T, image string, options []string, app ...string) (p *testbed.Process, name string) {
	t.Helper()
	cmd, name := inDocker(t, image, append([]string{"--rm", "--env", "SLASHA_HEALTH_ADDR=off"}, options...), app...)
	p = testbed.StartCmd(t, cmd)
	testbed.WaitOutput(p, p.Stdout, "ready", 30*time.Second, testbed.Contains("ready"))
	return p, name
}

func TestInDocker(t *testing.T) {
	t.Parallel()
	needDocker(t)
	s3, img := testbed.StartS3(t), image(t)
	settings := []string{"--rm", "--read-only", "--tmpfs", "/data:mode=1777"}
	for _, kv := range s3.Settings(s3.URL(), "/data/app.db") {
		settings = append(settings, "--env", kv)
	}
	run := func(app ...string) (*testbed.Container, string) {
		t.Helper()
		cmd, name := inDocker(t, img, settings, app...)
		return testbed.Adopt(t, testbed.StartCmd(t, cmd)), name
	}

	c, name := run("/guestbook", "worker", "--db", "/data/app.db", "--every", "5ms")
	c.WaitAcked(50, 30*time.Second)
	c.WaitHealth(10*time.Second, func(s healthz.Status) error {
		if len(s.Processes) != 1 {
			return errors.New("no process")
		}
		return healthy(s)
	})
	docker(t, "exec", name, "/slasha-init", "healthcheck", "--health-addr", c.HealthAddr)
	began := time.Now()
	docker(t, "stop", name) // docker's own 10 s
	if took := time.Since(began); took > 9500*time.Millisecond {
		t.Errorf("docker stop took %s", took)
	}
	if code := c.Wait(10 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	acked := c.Acked()

	// The tmpfs went with the container: the volume is lost.
	c, _ = run("/guestbook", "worker", "--db", "/data/app.db", "--count", "1")
	if code := c.Wait(30 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
	restored := restoreOfficially(t, s3)
	wantAll(t, testbed.Entries(t, restored), append(acked, c.Acked()...))
}

// A shell on a terminal, as docker run -it gives it: ctrl-C, ctrl-Z and the size
// of the window are the shell's.
func TestDockerTerminal(t *testing.T) {
	t.Parallel()
	img := image(t, "/bin/dash", "/bin/sleep", testbed.Probe(t))
	onTerminal := func(t *testing.T, app ...string) (*testbed.Process, *os.File, string) {
		cmd, name := inDocker(t, img, []string{"--rm", "-it", "--env", "SLASHA_HEALTH_ADDR=off", "--env", "SLASHA_LOG_LEVEL=error"}, app...)
		p, master := testbed.StartOnTerminal(t, cmd, true)
		return p, master, name
	}
	says := func(p *testbed.Process, text string) {
		t.Helper()
		testbed.WaitOutput(p, p.Stdout, text, 30*time.Second, testbed.Contains(text))
	}
	types := func(master *os.File, text string) {
		t.Helper()
		if _, err := master.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	runs := func(t *testing.T, name, command string) {
		t.Helper()
		testbed.Eventually(t, 20*time.Second, func() error {
			if out, _ := exec.Command("docker", "top", name).Output(); !strings.Contains(string(out), command) {
				return fmt.Errorf("%s does not run", command)
			}
			return nil
		})
	}
	t.Run("shell", func(t *testing.T) {
		t.Parallel()
		p, master, name := onTerminal(t, "/bin/dash", "-i")
		types(master, "echo $((6*7)) is ready\n")
		says(p, "42 is ready")
		types(master, "/bin/sleep 60\n")
		runs(t, name, "sleep 60")
		types(master, "\x1a")
		says(p, "Stopped")
		types(master, "/bin/sleep 61\n")
		runs(t, name, "sleep 61")
		types(master, "\x03")
		types(master, "kill -9 %1; wait; echo it is $((40+3))\n")
		says(p, "it is 43")
		types(master, "exit 6\nexit 6\n") // dash asks once more while it has not reported a job
		if code := p.Wait(20 * time.Second); code != 6 {
			t.Errorf("exit %d", code)
		}
		if strings.Contains(p.Stdout.String(), "job control turned off") {
			t.Error("the shell has no job control")
		}
	})
	t.Run("signals of the keyboard arrive once", func(t *testing.T) {
		t.Parallel()
		p, master, name := onTerminal(t, testbed.Probe(t), "signals")
		says(p, "ready")
		if err := pty.Setsize(master, &pty.Winsize{Rows: 33, Cols: 99}); err != nil {
			t.Fatal(err)
		}
		_ = p.Cmd.Process.Signal(syscall.SIGWINCH)
		says(p, "got 28")
		types(master, "\x03")
		says(p, "got 2\r")
		types(master, "\x1c")
		says(p, "got 3\r")
		if out := p.Stdout.String(); strings.Count(out, "got 2\r") != 1 || strings.Count(out, "got 3\r") != 1 {
			t.Errorf("%q", out)
		}
		docker(t, "stop", name)
		if code := p.Wait(20 * time.Second); code != 7 {
			t.Errorf("exit %d", code)
		}
	})
}

func TestDockerOptions(t *testing.T) {
	t.Parallel()
	probe := testbed.Probe(t)
	img := image(t, "/bin/dash", "/bin/sleep", probe)
	t.Run("kill -s", func(t *testing.T) {
		t.Parallel()
		p, name := running(t, img, nil, probe, "signals")
		for sig, number := range map[string]string{"USR1": "10", "SIGHUP": "1", "WINCH": "28", "RTMIN": "34", "RTMIN+3": "37", "64": "64"} {
			docker(t, "kill", "-s", sig, name)
			testbed.WaitOutput(p, p.Stdout, sig, 10*time.Second, testbed.Contains("got "+number+"\n"))
		}
		docker(t, "kill", "-s", "TERM", name)
		if code := p.Wait(10 * time.Second); code != 7 {
			t.Errorf("exit %d", code)
		}
	})
	t.Run("an image's own STOPSIGNAL", func(t *testing.T) {
		t.Parallel()
		p, name := running(t, img, []string{"--stop-signal", "SIGQUIT", "--env", "SLASHA_STOP_SIGNAL=QUIT", "--env", "SLASHA_STOP_TIMEOUT=3s"}, probe, "signals")
		docker(t, "stop", name)
		// The probe obeys only TERM: by our budget, and not by docker's.
		if code := p.Wait(10 * time.Second); code != 137 || !strings.Contains(p.Stdout.String(), "got 3\n") || !strings.Contains(p.Stderr.String(), "msg=exiting code=137") {
			t.Errorf("exit %d: %s%s", code, p.Stdout, p.Stderr)
		}
	})
	for name, options := range map[string][]string{
		"init":      {"--init"},
		"read-only": {"--read-only"},
		"user":      {"--user", "12345"},
		"all":       {"--init", "--read-only", "--user", "12345:678", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, container := running(t, img, options, probe, "orphans", "20")
			docker(t, "stop", container)
			if code := p.Wait(10 * time.Second); code != 7 {
				t.Errorf("exit %d", code)
			}
			_, out, _ := testbed.Run(t, nil, 30*time.Second, "docker", slices.Concat([]string{"run", "--rm", "--env", "SLASHA_HEALTH_ADDR=off"}, options, []string{img, probe, "state"})...)
			if slices.Contains(options, "12345") && !strings.Contains(out, "uid=12345\ngid=0\n") {
				t.Errorf("the app is somebody else: %s", out)
			}
		})
	}
	t.Run("pids-limit", func(t *testing.T) {
		t.Parallel()
		// The app takes all processes that there may be; the stop needs none.
		p, container := running(t, img, []string{"--pids-limit", "40", "--user", "0", "--env", "SLASHA_STOP_TIMEOUT=6s"}, "/bin/dash", "-c",
			`trap "exit 4" TERM; (while :; do /bin/sleep 60 & done) 2>/dev/null; echo ready; while :; do :; done`)
		docker(t, "stop", container)
		if code := p.Wait(10 * time.Second); code != 4 {
			t.Errorf("exit %d", code)
		}
	})
}

// A restart policy starts the same container again: with the database that it
// has, and without a restore.
func TestDockerRestartPolicy(t *testing.T) {
	t.Parallel()
	needDocker(t)
	s3, img := testbed.StartS3(t), image(t)
	options := []string{"--detach", "--restart", "on-failure:2", "--user", "0"}
	for _, kv := range s3.Settings(s3.URL(), "/data/app.db") {
		options = append(options, "--env", kv)
	}
	cmd, name := inDocker(t, img, options, "/guestbook", "worker", "--db", "/data/app.db", "--count", "5", "--exit", "3")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	inspect := func(what string) string {
		out, err := exec.Command("docker", "inspect", "--format", what, name).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	testbed.Eventually(t, 60*time.Second, func() error {
		if s := inspect("{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}"); s != "exited 3 2" {
			return errors.New(s)
		}
		return nil
	})
	out, err := exec.Command("docker", "logs", name).CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	log := string(out)
	if acked := strings.Count(log, "ack "); acked != 15 || strings.Contains(log, "msg=restored") {
		t.Errorf("%d commits; log:\n%s", acked, log)
	}
	restored := restoreOfficially(t, s3)
	if n := len(testbed.Entries(t, restored)); n != 15 {
		t.Errorf("%d entries in the replica", n)
	}
}
