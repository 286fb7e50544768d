package conformance

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/internal/testbed"
)

// subject is an init that is examined.
type subject struct {
	name    string
	path    string
	ours    bool
	command func(o options, pid1 bool) []string // the init's own words, before the app's
}

// options are what a check asks of an init, where the init has such an option.
type options struct {
	wrap    string   // a shell script that sets the scene and ends with exec "$@"
	env     []string // beside PATH
	child   bool     // signals go to the child alone
	stdin   io.Reader
	files   []*os.File // from descriptor 3 on
	dir     string
	user    bool // run as an ordinary user
	stderr  io.Writer
	initArg []string
}

// subjects lists the inits that are there. Peers are asked to treat the group
// of the app as ours does, which is their option and our default.
func subjects(t *testing.T) []subject {
	list := []subject{{
		name: "slasha-init", path: testbed.SlashaInit(t), ours: true,
		command: func(o options, _ bool) []string {
			words := []string{"--health-addr=off", "--log-level=warn", "--stop-timeout=3s"}
			if o.child {
				words = append(words, "--signal-scope=child")
			}
			return append(append(words, o.initArg...), "--")
		},
	}}
	peers := []subject{
		{name: "tini", command: func(o options, pid1 bool) []string {
			var words []string
			if !o.child {
				words = append(words, "-g")
			}
			if !pid1 {
				words = append(words, "-s")
			}
			return append(words, "--")
		}},
		{name: "dumb-init", command: func(o options, _ bool) []string {
			if o.child {
				return []string{"--single-child", "--"}
			}
			return []string{"--"}
		}},
		{name: "catatonit", command: func(o options, _ bool) []string {
			if o.child {
				return []string{"--"}
			}
			return []string{"-g", "--"}
		}},
	}
	for _, p := range peers {
		if path, err := exec.LookPath(p.name); err == nil {
			p.path = path
			list = append(list, p)
		}
	}
	return list
}

// rig runs one check against one init. It is a testing.TB of its own: a check
// that fails says so in the table, and does not end the test.
type rig struct {
	testing.TB
	subject
	pid1     bool
	patience time.Duration // for what should happen at once
	mark     string        // in the environment of everything that is started

	mu       sync.Mutex
	cleanups []func()
	failure  string
}

// examine runs a check and returns why it failed, or "".
func examine(t *testing.T, s subject, pid1 bool, check func(*rig)) string {
	r := &rig{TB: t, subject: s, pid1: pid1, patience: 20 * time.Second, mark: fmt.Sprintf("%s-%d", strings.ReplaceAll(t.Name(), "/", "-"), time.Now().UnixNano())}
	if !s.ours {
		r.patience = 1500 * time.Millisecond
	}
	done := make(chan struct{})
	go func() { // Fatalf ends the goroutine
		defer close(done)
		check(r)
	}()
	<-done
	r.killAll()
	for _, f := range r.cleanups {
		f()
	}
	return r.failure
}

func (r *rig) Helper() {}

func (r *rig) Cleanup(f func()) { r.cleanups = append([]func(){f}, r.cleanups...) }

func (r *rig) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failure == "" {
		r.failure = strings.TrimSpace(fmt.Sprintf(format, args...))
	}
}

func (r *rig) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

func (r *rig) Failed() bool { return false }

func (r *rig) Logf(string, ...any) {}

func (r *rig) TempDir() string {
	dir, err := os.MkdirTemp("", "conformance-")
	if err != nil {
		r.Fatalf("%v", err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		r.Fatalf("%v", err)
	}
	r.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// killAll ends whatever the check has started and left.
func (r *rig) killAll() {
	procs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, file := range procs {
		if b, err := os.ReadFile(file); err == nil && strings.Contains(string(b), r.mark) {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && pid != os.Getpid() {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
}

// run is an init at work.
type run struct {
	*testbed.Process
	r      *rig
	init   int // its pid, as seen from here
	master *os.File
}

// start runs the app under the init.
func (r *rig) start(o options, app ...string) *run {
	cmd := r.prepare(o, app)
	return r.adopt(testbed.StartCmd(r, cmd))
}

func (r *rig) prepare(o options, app []string) *exec.Cmd {
	words := append([]string{r.path}, r.command(o, r.pid1)...)
	words = append(words, app...)
	if o.wrap != "" {
		words = append([]string{"/bin/sh", "-c", o.wrap, "sh"}, words...)
	}
	if o.user {
		words = append([]string{"setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"}, words...)
	}
	if r.pid1 {
		words = append([]string{"unshare", "--pid", "--fork", "--mount-proc", "--kill-child"}, words...)
	}
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "CHECK=" + r.mark}, o.env...)
	cmd.Stdin, cmd.ExtraFiles, cmd.Dir, cmd.Stderr = o.stdin, o.files, o.dir, o.stderr
	return cmd
}

// adopt finds the init among what was started.
func (r *rig) adopt(p *testbed.Process) *run {
	run := &run{Process: p, r: r, init: p.Cmd.Process.Pid}
	if r.pid1 {
		r.until("PID 1 is there", func() error {
			children := testbed.Children(p.Cmd.Process.Pid)
			if len(children) == 0 {
				select {
				case <-p.Done():
					return nil // it was a short life
				default:
				}
				return errors.New("no child of unshare")
			}
			run.init = children[0]
			return nil
		})
	}
	return run
}

// until waits for something that the kernel does not report.
func (r *rig) until(what string, ok func() error) {
	end := time.Now().Add(r.patience)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			r.Fatalf("%s: %v", what, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// says waits until the app has said something.
func (p *run) says(text string) { p.saysTimes(text, 1) }

func (p *run) saysTimes(text string, n int) {
	testbed.WaitOutput(p.Process, p.Stdout, strconv.Quote(text), p.r.patience, func(s string) (struct{}, bool) {
		return struct{}{}, count(s, text) >= n
	})
}

// count counts the lines that are the text.
func count(s, text string) int {
	n := 0
	for _, line := range strings.Split(strings.ReplaceAll(s, "\r", ""), "\n") {
		if line == text || (strings.HasPrefix(line, text) && strings.HasPrefix(text, "ready")) {
			n++
		}
	}
	return n
}

// send sends a signal to the init.
func (p *run) send(sig syscall.Signal) {
	if err := syscall.Kill(p.init, sig); err != nil {
		p.r.Fatalf("the init is gone: %v", err)
	}
}

// ends waits for the end and wants a code.
func (p *run) ends(want int) {
	if code := p.Wait(p.r.patience); code != want {
		p.r.Errorf("exit code %d, not %d", code, want)
	}
}

// marked lists the live processes that the check has started.
func (r *rig) marked() []int {
	procs, _ := filepath.Glob("/proc/[0-9]*/environ")
	var list []int
	for _, file := range procs {
		b, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(b), r.mark) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && testbed.Stat(pid, 3) != "Z" {
			list = append(list, pid)
		}
	}
	return list
}

// state runs the probe and returns what it was given.
func (r *rig) state(o options) []string {
	p := r.start(o, testbed.Probe(r), "state")
	p.ends(0)
	return strings.Split(strings.TrimSpace(p.Stdout.String()), "\n")
}

// value finds the line of a key.
func value(lines []string, key string) string {
	for _, l := range lines {
		if v, ok := strings.CutPrefix(l, key+"="); ok {
			return v
		}
	}
	return ""
}

// onTerminal runs the app on a terminal of its own, as docker run -it does: the
// init is the leader of the session.
func (r *rig) onTerminal(app ...string) *run {
	cmd := r.prepare(options{}, app)
	if r.pid1 {
		// unshare is the leader otherwise: PID 1 makes the session.
		cmd.Args = append(cmd.Args[:5:5], append([]string{"setsid", "--ctty"}, cmd.Args[5:]...)...)
	}
	return r.startOn(cmd)
}

// startOn runs a command on a new terminal.
func (r *rig) startOn(cmd *exec.Cmd) *run {
	// As PID 1 it makes the session itself.
	p, master := testbed.StartOnTerminal(r, cmd, !r.pid1 || cmd.Args[0] != "unshare")
	run := r.adopt(p)
	run.master = master
	return run
}

// types types on the terminal.
func (p *run) types(text string) {
	if _, err := p.master.WriteString(text); err != nil {
		p.r.Fatalf("the terminal: %v", err)
	}
}
