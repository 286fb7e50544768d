// Package testbed starts the real parts that the tests use: an S3 server, a
// proxy that breaks connections, our own binary, the sample app and the official
// litestream command. Everything listens on loopback, and whatever a test starts
// is gone when the test has ended. Only tests import it.
package testbed

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A test run that was started by nohup, or in the background of a script, has
// signals ignored, and its children would inherit that. What is caught becomes
// the default in a child.
func init() {
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT} {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
}

// Root returns the repository's folder: a test begins in that of its package.
func Root() string { return root }

var root = func() string {
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return dir
}()

var builds sync.Mutex

// makeTarget runs a target of the Makefile, so that a test that is run by itself has
// what it needs. make test has built it before, outside the tests' time limit.
func makeTarget(t testing.TB, target string) string {
	t.Helper()
	builds.Lock()
	defer builds.Unlock()
	file := filepath.Join(Root(), target)
	if _, err := os.Stat(file); err == nil {
		return file
	}
	t.Logf("building %s; make test does so beforehand", target)
	cmd := exec.Command("make", "--no-print-directory", target)
	cmd.Dir = Root()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make %s: %v\n%s", target, err, out)
	}
	return file
}

// Tool returns the path of a tool that is built from testdata/tools.
func Tool(t testing.TB, name string) string {
	t.Helper()
	return makeTarget(t, ".cache/bin/"+name)
}

// SlashaInit returns the path of our binary: that of SLASHA_TEST_BINARY, which
// may have been built with the race detector, or the released one.
func SlashaInit(t testing.TB) string {
	t.Helper()
	if bin := os.Getenv("SLASHA_TEST_BINARY"); bin != "" {
		return bin
	}
	return Released(t)
}

// Released returns the path of our binary as it is released, which is static.
func Released(t testing.TB) string {
	t.Helper()
	return makeTarget(t, "bin/slasha-init")
}

// Guestbook returns the path of the sample app.
func Guestbook(t testing.TB) string {
	t.Helper()
	return makeTarget(t, "bin/guestbook")
}

// Probe returns the path of the program that reports what it was given.
func Probe(t testing.TB) string {
	t.Helper()
	return makeTarget(t, "bin/probe")
}

// Output collects what a process writes, for any number of readers.
type Output struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	changed chan struct{}
}

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf.Write(p)
	if o.changed != nil {
		close(o.changed)
		o.changed = nil
	}
	return len(p), nil
}

// String returns what was written so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// wait returns the output so far and a channel that is closed by the next write.
func (o *Output) wait() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.changed == nil {
		o.changed = make(chan struct{})
	}
	return o.buf.String(), o.changed
}

// Process is a program that a test started.
type Process struct {
	Cmd            *exec.Cmd
	Stdout, Stderr *Output
	t              testing.TB
	done           chan struct{}
	err            error
}

// Start runs a program until the test ends. env is added to a nearly empty
// environment, so that nothing of the machine's own gets in.
func Start(t testing.TB, env []string, name string, args ...string) *Process {
	t.Helper()
	return StartCmd(t, Command(env, name, args...))
}

// Command prepares a program as Start does.
func Command(env []string, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}, env...)
	return cmd
}

// StartCmd runs a prepared command until the test ends, as the leader of a
// process group. Output that is not set is collected.
func StartCmd(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	return start(t, cmd, func() {})
}

// start is StartCmd. collect is called when the process has ended, and returns when
// all of its output is there.
func start(t testing.TB, cmd *exec.Cmd, collect func()) *Process {
	t.Helper()
	p := &Process{Cmd: cmd, Stdout: &Output{}, Stderr: &Output{}, t: t, done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = p.Stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.Stderr
	}
	name := cmd.Path
	// A child that keeps the pipes open must not keep Wait from returning.
	cmd.WaitDelay = 5 * time.Second
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		p.err = p.Cmd.Wait()
		collect()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.Kill()
		if strings.Contains(p.Stderr.String(), "WARNING: DATA RACE") {
			t.Errorf("a data race in %s", filepath.Base(name))
		}
		if t.Failed() {
			for where, o := range map[string]*Output{"stdout": p.Stdout, "stderr": p.Stderr} {
				if said := o.String(); said != "" {
					t.Logf("%s wrote on %s:\n%s", filepath.Base(name), where, tail(said))
				}
			}
		}
	})
	return p
}

func tail(s string) string {
	const most = 6000
	if len(s) > most {
		return "..." + s[len(s)-most:]
	}
	return s
}

// Signal sends a signal to the process.
func (p *Process) Signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.Cmd.Process.Signal(sig); err != nil {
		p.t.Fatalf("signal %s: %v", sig, err)
	}
}

// Kill ends the process and its group at once, and waits for it.
func (p *Process) Kill() {
	select {
	case <-p.done:
		return
	default:
	}
	_ = syscall.Kill(-p.Cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait returns the exit code, as a shell would have it, and fails the test when
// the process does not end in time.
func (p *Process) Wait(atMost time.Duration) int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(atMost):
		p.t.Fatalf("%s did not end within %s", filepath.Base(p.Cmd.Path), atMost)
	}
	if st, ok := p.Cmd.ProcessState.Sys().(syscall.WaitStatus); ok && st.Signaled() {
		return 128 + int(st.Signal())
	}
	return p.Cmd.ProcessState.ExitCode()
}

// WaitOutput waits until the process has written something that ok accepts, on
// stdout or stderr, and returns what ok made of it.
func WaitOutput[T any](p *Process, o *Output, what string, atMost time.Duration, ok func(string) (T, bool)) T {
	p.t.Helper()
	timeout := time.After(atMost)
	for {
		s, changed := o.wait()
		if v, found := ok(s); found {
			return v
		}
		select {
		case <-changed:
		case <-p.done:
			if v, found := ok(o.String()); found {
				return v
			}
			p.t.Fatalf("%s ended before %s", filepath.Base(p.Cmd.Path), what)
		case <-timeout:
			p.t.Fatalf("%s: no %s within %s", filepath.Base(p.Cmd.Path), what, atMost)
		}
	}
}

// Contains is for WaitOutput: the output holds the text.
func Contains(text string) func(string) (struct{}, bool) {
	return func(s string) (struct{}, bool) { return struct{}{}, strings.Contains(s, text) }
}

// Eventually calls ok until it returns nil, and fails the test with its last
// error when it does not in time. It is for conditions that nothing reports.
func Eventually(t testing.TB, atMost time.Duration, ok func() error) {
	t.Helper()
	deadline := time.NewTimer(atMost)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("not within %s: %v", atMost, err)
		case <-tick.C:
		}
	}
}

// FreeAddr returns a loopback address where nothing listens, and that no other test
// gets. It is not one that the kernel gives to whoever asks for any (Linux: from
// 32768 on), which could be anybody's before it is used.
func FreeAddr(t testing.TB) string {
	t.Helper()
	const from, to = 10000, 32000
	for range 1000 {
		port := from + int(nextPort.Add(1))%(to-from)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		addr := l.Addr().String()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return addr
	}
	t.Fatal("no port is free")
	return ""
}

// nextPort begins elsewhere in each test binary: several run at once.
var nextPort = func() *atomic.Uint32 {
	n := new(atomic.Uint32)
	n.Store(uint32(os.Getpid()) * 131)
	return n
}()

// waitAnswer waits until an HTTP server answers at all.
func waitAnswer(t testing.TB, p *Process, url string) {
	t.Helper()
	Eventually(t, 30*time.Second, func() error {
		select {
		case <-p.done:
			t.Fatalf("%s ended: %s", filepath.Base(p.Cmd.Path), p.Stderr)
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, res.Body)
		return res.Body.Close()
	})
}

// Run runs a program to its end and returns its exit code and output.
func Run(t testing.TB, env []string, atMost time.Duration, name string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	p := Start(t, env, name, args...)
	code = p.Wait(atMost)
	return code, p.Stdout.String(), p.Stderr.String()
}

// MustRun is Run for a program that has to succeed; it returns its stdout.
func MustRun(t testing.TB, env []string, atMost time.Duration, name string, args ...string) string {
	t.Helper()
	code, stdout, stderr := Run(t, env, atMost, name, args...)
	if code != 0 {
		t.Fatalf("%s %s: exit %d\n%s\n%s", filepath.Base(name), strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}
