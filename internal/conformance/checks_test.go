package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/creack/pty"

	"github.com/slashacom/slasha-init/internal/testbed"
)

// check is one sentence about an init, and how to find out whether it is true.
type check struct {
	name string
	why  string // what somebody loses where it is not true
	run  func(*rig)
	pid1 mode
}

// mode is where a check makes sense.
type mode int

const (
	both mode = iota
	onlyPID1
	onlyNotPID1
)

// forwards checks that the app gets signals exactly once each.
func forwards(signals ...syscall.Signal) func(*rig) {
	return func(r *rig) {
		p := r.start(options{}, testbed.Probe(r), "signals")
		p.says("ready")
		for _, sig := range signals {
			p.send(sig)
			p.says("got " + strconv.Itoa(int(sig)))
		}
		p.send(syscall.SIGTERM)
		p.ends(7)
		for _, sig := range signals {
			want := 1
			if n := count(p.Stdout.String(), "got "+strconv.Itoa(int(sig))); n != want {
				r.Errorf("signal %d arrived %d times", sig, n)
			}
		}
	}
}

// exits checks the exit code of an app.
func exits(want int, app ...string) func(*rig) {
	return func(r *rig) { r.start(options{}, app...).ends(want) }
}

// refuses checks the exit code and the message for an app that can't be started.
func refuses(want int, file func(r *rig) string, says func(file string) string) func(*rig) {
	return func(r *rig) {
		f := file(r)
		p := r.start(options{}, f)
		p.ends(want)
		if text := says(f); !strings.Contains(p.Stderr.String(), text) {
			r.Errorf("the message is %q, without %q", strings.TrimSpace(p.Stderr.String()), text)
		}
	}
}

func itself(file string) string { return file }

func words(text string) func(string) string { return func(string) string { return text } }

// file makes a file for the app to be.
func file(content string, perm os.FileMode) func(*rig) string {
	return func(r *rig) string {
		path := filepath.Join(r.TempDir(), "app")
		testbed.WriteProgram(r, path, strings.NewReader(content), perm)
		return path
	}
}

// foreign is the head of a program for RISC-V.
var foreign = "\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9) + "\x02\x00\xf3\x00\x01\x00\x00\x00" + strings.Repeat("\x00", 28) + "\x40\x00\x38\x00\x00\x00\x40\x00\x00\x00\x00\x00"

// defended waits until the process has blocked or caught a signal: its first
// instant as an init. An init that waits for signals by sigtimedwait shows them as
// not blocked; it is recognized by its child.
func (p *run) defended(sig syscall.Signal) {
	p.r.until("the init takes signals", func() error {
		if exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.init)); filepath.Base(exe) != filepath.Base(p.r.path) {
			return errors.New("not executed yet")
		}
		if len(testbed.Children(p.init)) > 0 || p.has("SigBlk", sig) || p.has("SigCgt", sig) {
			return nil
		}
		return errors.New("it does not")
	})
}

// has reports whether a signal is in a set of the init's. set is a name of
// proc_pid_status(5).
func (p *run) has(set string, sig syscall.Signal) bool {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.init))
	for line := range strings.Lines(string(b)) {
		if name, v, _ := strings.Cut(line, ":"); name == set {
			n, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return err == nil && n&(1<<(sig-1)) != 0
		}
	}
	return false
}

var checks = []check{
	// How it ends.
	{name: "exit code 0", run: exits(0, "true")},
	{name: "exit code 42", run: exits(42, "sh", "-c", "exit 42")},
	{name: "exit code 255", run: exits(255, "sh", "-c", "exit 255")},
	{name: "128+n for an app that was killed", run: exits(137, "sh", "-c", "kill -KILL $$")},
	{name: "128+n for an app that crashed", run: exits(139, "sh", "-c", "kill -SEGV $$")},
	{name: "128+n for a real-time signal", run: exits(128+37, "sh", "-c", "kill -37 $$")},
	{name: "127 and the name, for a file that is not there", why: "the log does not say which file", run: refuses(127, func(*rig) string { return "/no/such/file" }, itself)},
	{name: "127 for a name that is not in PATH", why: "the code can't be distinguished from the app's", run: refuses(127, func(*rig) string { return "no-such-program" }, itself)},
	{name: "126 and the name, for a file without permission", why: "the code can't be distinguished from the app's", run: refuses(126, file("#!/bin/sh\n", 0o644), itself)},
	{name: "126 for a folder", why: "the code can't be distinguished from the app's", run: refuses(126, func(r *rig) string { return r.TempDir() }, itself)},
	{name: "a missing interpreter is named", why: "\"no such file\" about a file that is there costs people an afternoon", run: refuses(127, file("#!/no/such/shell\n", 0o755), words("/no/such/shell"))},
	{name: "126 and the reason, for another architecture", why: "\"exec format error\" does not say that the image is for another machine", run: refuses(126, file(foreign, 0o755), words("riscv"))},
	{name: "an orphan's code is not the app's", run: func(r *rig) {
		r.start(options{}, "sh", "-c", "(sh -c 'sleep 0.05; exit 9' &); (sh -c 'exit 8' &); sleep 0.15; exit 3").ends(3)
	}},
	{name: "the app's answer to TERM is the exit code", run: func(r *rig) {
		p := r.start(options{}, testbed.Probe(r), "signals")
		p.says("ready")
		p.send(syscall.SIGTERM)
		p.ends(7)
	}},

	// Signals.
	{name: "passes on TERM", run: forwards()},
	{name: "passes on HUP", run: forwards(syscall.SIGHUP)},
	{name: "passes on QUIT", run: forwards(syscall.SIGQUIT)},
	{name: "passes on INT", run: forwards(syscall.SIGINT)},
	{name: "passes on USR1 and USR2", run: forwards(syscall.SIGUSR1, syscall.SIGUSR2)},
	{name: "passes on ALRM and VTALRM", run: forwards(syscall.SIGALRM, syscall.SIGVTALRM)},
	{name: "passes on WINCH", run: forwards(syscall.SIGWINCH)},
	{name: "passes on CONT", run: forwards(syscall.SIGCONT)},
	{name: "passes on PIPE", run: forwards(syscall.SIGPIPE)},
	{name: "passes on URG", run: forwards(syscall.SIGURG)},
	{name: "passes on TSTP", run: forwards(syscall.SIGTSTP)},
	{name: "passes on TTIN and TTOU", why: "they are signals like others when a person sends them", run: forwards(syscall.SIGTTIN, syscall.SIGTTOU)},
	{name: "passes on PROF, XCPU and XFSZ", run: forwards(syscall.SIGPROF, syscall.SIGXCPU, syscall.SIGXFSZ)},
	{name: "passes on IO, PWR, STKFLT", run: forwards(syscall.SIGIO, syscall.SIGPWR, syscall.SIGSTKFLT)},
	{name: "passes on faults that a person sends", why: "kill -SEGV or -ABRT asks the app for a dump, and ends the init, or nothing", run: forwards(syscall.SIGSEGV, syscall.SIGBUS, syscall.SIGFPE, syscall.SIGILL, syscall.SIGABRT, syscall.SIGTRAP, syscall.SIGSYS)},
	{name: "passes on SIGRTMIN", run: forwards(34)},
	{name: "passes on every real-time signal", run: func(r *rig) {
		var all []syscall.Signal
		for n := syscall.Signal(34); n <= 64; n++ {
			all = append(all, n)
		}
		forwards(all...)(r)
	}},
	{name: "a real-time signal sent 200 times arrives 200 times", why: "real-time signals are queued; that is what they are for", run: func(r *rig) {
		p := r.start(options{}, testbed.Probe(r), "signals")
		p.says("ready")
		for range 200 {
			p.send(40)
		}
		p.saysTimes("got 40", 200)
		p.send(syscall.SIGTERM)
		p.ends(7)
		if n := count(p.Stdout.String(), "got 40"); n != 200 {
			r.Errorf("%d arrived", n)
		}
	}},
	{name: "a repeated TERM is passed on", run: func(r *rig) {
		p := r.start(options{}, testbed.Probe(r), "stubborn")
		p.says("ready")
		for n := range 3 {
			p.send(syscall.SIGTERM)
			p.saysTimes("got 15", n+1)
		}
	}},
	{name: "the whole group gets signals", run: func(r *rig) {
		p := r.start(options{}, "sh", "-c", testbed.Probe(r)+" signals & "+testbed.Probe(r)+" signals; wait")
		p.saysTimes("ready", 2)
		p.send(syscall.SIGUSR1)
		p.saysTimes("got 10", 2)
	}},
	{name: "or the child alone, where asked", run: func(r *rig) {
		p := r.start(options{child: true}, "sh", "-c", "trap 'echo shell' USR1; "+testbed.Probe(r)+" signals & wait; wait")
		p.says("ready")
		p.send(syscall.SIGUSR1)
		p.says("shell")
		if count(p.Stdout.String(), "got 10") != 0 {
			r.Errorf("the child's child got it too")
		}
	}},
	{name: "no signal that nobody sent", run: func(r *rig) {
		p := r.start(options{}, "sh", "-c", "(sh -c 'sleep 0.1' &); exec "+testbed.Probe(r)+" signals")
		p.says("ready")
		p.onlyTheApp() // an orphan has come and gone
		p.send(syscall.SIGTERM)
		p.ends(7)
		if got := strings.Count(p.Stdout.String(), "got") - count(p.Stdout.String(), "got 17"); got != 1 {
			r.Errorf("it got %q", p.Stdout)
		}
	}},
	{name: "TERM at the first instant ends it", why: "a container that is stopped right after its start hangs until it is killed: the signal went to a group that was not there yet", run: func(r *rig) {
		for range 30 {
			p := r.start(options{}, testbed.Probe(r), "signals")
			p.defended(syscall.SIGTERM)
			p.send(syscall.SIGTERM)
			if code := p.Wait(r.patience); code != 143 && code != 7 {
				r.Fatalf("exit code %d", code)
			}
		}
	}},
	{name: "USR1 at the first instant reaches the app", why: "what was sent before the app had its group is lost", run: func(r *rig) {
		for range 30 {
			p := r.start(options{}, testbed.Probe(r), "signals")
			p.defended(syscall.SIGUSR1)
			p.send(syscall.SIGUSR1)
			r.until("the signal", func() error {
				select {
				case <-p.Done(): // before the app's first line it means its end
					if code := p.Wait(time.Second); code != 128+10 {
						r.Fatalf("exit code %d", code)
					}
				default:
					if count(p.Stdout.String(), "got 10") == 0 {
						return errors.New("the app did not get it")
					}
				}
				return nil
			})
			p.Kill()
			r.killAll()
		}
	}},

	// Stopping.
	{name: "what ignores TERM is killed in the end", why: "it is left to the engine, whose KILL also ends what came after the app", run: func(r *rig) {
		p := r.start(options{}, testbed.Probe(r), "stubborn")
		p.says("ready")
		p.send(syscall.SIGTERM)
		r.patience = max(r.patience, 5*time.Second)
		p.ends(137)
	}},
	{name: "a second interrupt kills what ignores the first", why: "ctrl-C ctrl-C is what a person tries", run: func(r *rig) {
		p := r.start(options{}, testbed.Probe(r), "stubborn")
		p.says("ready")
		p.send(syscall.SIGINT)
		p.says("got 2")
		p.send(syscall.SIGINT)
		p.ends(137)
	}},
	{name: "helpers of an app that ended have time to finish", why: "they are killed in the middle of a write, or live on", run: helpers("")},
	{name: "and those in a session of their own too", why: "they are killed in the middle of a write, or live on", run: helpers("setsid ")},
	{name: "a leader that stops at once does not cost its children their grace", why: "the children are killed in the middle of a write", run: func(r *rig) {
		file := filepath.Join(r.TempDir(), "written")
		p := r.start(options{}, "sh", "-c", `trap "exit 4" TERM; (trap "sleep 0.3; echo done > `+file+`; exit 0" TERM; echo ready; while :; do sleep 0.01; done) & while :; do sleep 0.01; done`)
		p.says("ready")
		p.send(syscall.SIGTERM)
		p.ends(4)
		if b, _ := os.ReadFile(file); string(b) != "done\n" {
			r.Errorf("the child could not finish")
		}
	}},
	{name: "a helper gets one stop signal, not two", run: func(r *rig) {
		p := r.start(options{}, "sh", "-c", testbed.Probe(r)+` stubborn & trap "exit 0" TERM; echo trapped; while :; do sleep 0.01; done`)
		p.says("ready")
		p.says("trapped")
		p.send(syscall.SIGTERM)
		select {
		case <-p.Done():
		case <-time.After(6 * time.Second):
		}
		if n := count(p.Stdout.String(), "got 15"); n != 1 {
			r.Errorf("it got TERM %d times", n)
		}
	}},
	{name: "nothing is left when it has ended", why: "a helper goes on writing to a database that was uploaded already", pid1: onlyNotPID1, run: func(r *rig) {
		p := r.start(options{}, "sh", "-c", "setsid sleep 60 & (sleep 60 &) ; exit 5")
		p.gone()
		if left := r.marked(); len(left) > 0 {
			r.Errorf("%d processes live on", len(left))
			return
		}
		p.ends(5)
	}},
	{name: "its own death takes the app with it", why: "an app without its init goes on, unsupervised", pid1: onlyNotPID1, run: func(r *rig) {
		p := r.start(options{}, testbed.Probe(r), "signals")
		p.says("ready")
		p.send(syscall.SIGKILL)
		r.until("the app ends", func() error {
			if left := r.marked(); len(left) > 0 {
				return errors.New("the app lives on")
			}
			return nil
		})
	}},

	// Children that are not its own.
	{name: "an orphan is adopted", run: func(r *rig) {
		p := r.start(options{}, "sh", "-c", "(sh -c 'sleep 0.1; grep PPid /proc/$$/status' &); sleep 0.4")
		p.ends(0)
		want := strconv.Itoa(p.init)
		if r.pid1 {
			want = "1"
		}
		if got := strings.TrimSpace(strings.TrimPrefix(p.Stdout.String(), "PPid:")); got != want {
			r.Errorf("its parent is %s, not %s", got, want)
		}
	}},
	{name: "orphans are reaped", run: func(r *rig) {
		p := r.start(options{}, testbed.Probe(r), "orphans", "50")
		p.says("ready")
		p.noZombies()
		p.send(syscall.SIGTERM)
		p.ends(7)
	}},
	{name: "ten thousand orphans leave no zombie and the right exit code", run: func(r *rig) {
		r.patience = max(r.patience, 60*time.Second)
		p := r.start(options{}, testbed.Probe(r), "orphans", "10000")
		p.says("made 10000")
		p.noZombies()
		p.send(syscall.SIGTERM)
		p.ends(7)
	}},
	{name: "children it had before it was an init are reaped, and not taken for the app", run: func(r *rig) {
		p := r.start(options{wrap: `sh -c "sleep 0.1; exit 9" & exec "$@"`}, testbed.Probe(r), "signals")
		p.says("ready")
		p.onlyTheApp()
		p.send(syscall.SIGTERM)
		p.ends(7)
	}},

	{name: "a number that is used again is not taken for the app", pid1: onlyPID1, run: func(r *rig) {
		// A helper waits until the app has been reaped, makes the kernel give its
		// number to the next process, and leaves that one behind. A thread may be
		// quicker and take the number.
		for range 20 {
			p := r.start(options{}, "sh", "-c", `app=$$; setsid sh -c "trap '' TERM; echo ready; while kill -0 $app 2>/dev/null; do :; done; echo $((app-1)) >/proc/sys/kernel/ns_last_pid; sh -c 'echo used \$\$ again; sleep 0.1; exit 77' &" & echo app $app; sleep 0.1; exit 9`)
			p.ends(9)
			out := p.Stdout.String()
			_, rest, _ := strings.Cut(out, "app ")
			app, _, _ := strings.Cut(rest, "\n")
			if !r.ours || strings.Contains(out, "used "+app+" again") {
				return
			}
		}
		r.Errorf("it was never used again, so nothing is shown")
	}},

	// What the app gets.
	{name: "the app leads a process group of its own", run: func(r *rig) {
		s := r.state(options{})
		if value(s, "pid") != value(s, "group") {
			r.Errorf("pid %s, group %s", value(s, "pid"), value(s, "group"))
		}
	}},
	{name: "no signal is blocked", run: none("blocked ")},
	{name: "no signal is ignored", run: none("ignored ")},
	{name: "a signal that was ignored stays ignored", why: "nohup, and a shell's &, do not work", run: func(r *rig) {
		s := r.state(options{wrap: `trap "" HUP USR2; exec "$@"`})
		if !slices.Contains(s, "ignored 1") || !slices.Contains(s, "ignored 12") {
			r.Errorf("it is not")
		}
	}},
	{name: "and reaches an app that has a handler for it all the same", why: "a server under nohup can't be made to reload", run: func(r *rig) {
		p := r.start(options{wrap: `trap "" HUP; exec "$@"`}, testbed.Probe(r), "signals")
		p.says("ready")
		if r.ours { // While it starts its child it ignores what that is to ignore.
			r.until("it takes the signal", func() error {
				if p.has("SigIgn", syscall.SIGHUP) {
					return errors.New("it ignores it")
				}
				return nil
			})
		}
		p.send(syscall.SIGHUP)
		p.says("got 1")
		p.send(syscall.SIGTERM)
		p.ends(7)
	}},
	{name: "a signal that was blocked stays blocked", why: "what the init found is not its own to change", run: func(r *rig) {
		s := r.state(options{wrap: `exec ` + testbed.Probe(r) + ` block 10 "$@"`})
		if !slices.Contains(s, "blocked 10") || slices.Contains(s, "blocked 12") {
			r.Errorf("it is not")
		}
	}},
	{name: "umask", run: same("umask", "27", "umask 027")},
	{name: "working directory", run: func(r *rig) {
		dir := r.TempDir()
		if got := value(r.state(options{dir: dir}), "cwd"); got != dir {
			r.Errorf("%s", got)
		}
	}},
	{name: "limit of open files", run: same("limit 7", "333 444", "ulimit -Sn 333; ulimit -Hn 444")},
	{name: "limit of core files, and of processes", run: func(r *rig) {
		s := r.state(options{wrap: `ulimit -Sc 8; exec "$@"`})
		if !strings.HasPrefix(value(s, "limit 4"), "4096 ") && !strings.HasPrefix(value(s, "limit 4"), "8192 ") && !strings.HasPrefix(value(s, "limit 4"), "0 ") {
			r.Errorf("core %s", value(s, "limit 4"))
		}
	}},
	{name: "niceness", run: same("nice", "5", `exec nice -n 5 "$@"`)},
	{name: "arguments as they are", run: func(r *rig) {
		p := r.start(options{}, testbed.Probe(r), "args", "", "a b", "--db-path", "-x", "--", "$HOME", "ü\n")
		p.ends(0)
		if got := p.Stdout.String(); got != "[]\n[a b]\n[--db-path]\n[-x]\n[--]\n[$HOME]\n[ü\n]\n" {
			r.Errorf("%q", got)
		}
	}},
	{name: "environment as it is", run: func(r *rig) {
		s := r.state(options{env: []string{"A=1=2", "EMPTY=", "LINE=x y", "SLASHA_OF_THE_APP=z"}})
		for _, want := range []string{"env A=1=2", "env EMPTY=", "env LINE=x y", "env SLASHA_OF_THE_APP=z"} {
			if !slices.Contains(s, want) {
				r.Errorf("no %q", want)
			}
		}
	}},
	{name: "stdin and stdout untouched", run: func(r *rig) {
		data := bytes.Repeat([]byte("\x00\xff\r\nbinary"), 20000)
		p := r.start(options{stdin: bytes.NewReader(data)}, "cat")
		p.ends(0)
		if p.Stdout.String() != string(data) {
			r.Errorf("%d bytes of %d", len(p.Stdout.String()), len(data))
		}
	}},
	{name: "no descriptor but those it was given", run: func(r *rig) {
		for _, l := range r.state(options{}) {
			if strings.HasPrefix(l, "fd ") && l[3] > '2' || strings.HasSuffix(l, " 1") && strings.HasPrefix(l, "fd ") {
				r.Errorf("%s", l)
			}
		}
	}},
	{name: "descriptors it was given, as for socket activation", run: func(r *rig) {
		f, err := os.Open("/dev/null")
		if err != nil {
			r.Fatalf("%v", err)
		}
		defer func() { _ = f.Close() }()
		if value(r.state(options{files: []*os.File{f, f}}), "fd 4") == "" {
			r.Errorf("it is closed")
		}
	}},
	{name: "a closed stdin does not become another open file", run: func(r *rig) {
		s := r.state(options{wrap: `exec "$@" <&-`})
		if v := value(s, "fd 0"); v != "" && !strings.HasPrefix(v, "20000") {
			r.Errorf("it is %s", v)
		}
	}},
	{name: "an ordinary user can be its user", run: func(r *rig) {
		p := r.start(options{user: true}, "id", "-u")
		p.ends(0)
		if got := strings.TrimSpace(p.Stdout.String()); got != "12345" {
			r.Errorf("uid %s", got)
		}
	}},
	{name: "the app can't read the init's memory and environment", why: "the app can read the init's secrets when both run as one user", run: func(r *rig) {
		p := r.start(options{user: true}, "sh", "-c", "cat /proc/$PPID/environ >/dev/null 2>&1 && echo open; sleep 0")
		p.ends(0)
		if count(strings.ReplaceAll(p.Stdout.String(), "\x00", "\n"), "open") > 0 {
			r.Errorf("it can")
		}
	}},

	// Its own voice.
	{name: "works when nobody reads its stderr", run: func(r *rig) {
		reader, writer, err := os.Pipe()
		if err != nil {
			r.Fatalf("%v", err)
		}
		_ = reader.Close()
		defer func() { _ = writer.Close() }()
		p := r.start(options{stderr: writer, initArg: verbose(r)}, testbed.Probe(r), "signals")
		p.says("ready")
		p.send(syscall.SIGTERM)
		p.ends(7)
	}},
	{name: "works when its stderr is stuck", run: func(r *rig) {
		writer := fullPipe(r)
		p := r.start(options{stderr: writer, initArg: verbose(r)}, testbed.Probe(r), "signals")
		p.says("ready")
		p.send(syscall.SIGTERM)
		p.ends(7)
	}},
	{name: "says nothing by itself when all is well", run: func(r *rig) {
		p := r.start(options{}, "true")
		p.ends(0)
		if p.Stderr.String() != "" {
			r.Errorf("%q", p.Stderr)
		}
	}},

	// On a terminal.
	{name: "terminal: the app is in the foreground", why: "the app stops when it reads from the keyboard", run: func(r *rig) {
		p := r.onTerminal(testbed.Probe(r), "state")
		p.ends(0)
		s := strings.Split(strings.ReplaceAll(p.Stdout.String(), "\r", ""), "\n")
		if value(s, "foreground") != value(s, "group") || value(s, "group") == "" {
			r.Errorf("the foreground is %s, the app %s", value(s, "foreground"), value(s, "group"))
		}
	}},
	{name: "terminal: no signal is ignored or blocked there either", run: func(r *rig) {
		p := r.onTerminal(testbed.Probe(r), "state")
		p.ends(0)
		if out := p.Stdout.String(); strings.Contains(out, "ignored ") || strings.Contains(out, "blocked ") {
			r.Errorf("%s", out)
		}
	}},
	{name: "terminal: what is typed is read", run: func(r *rig) {
		p := r.onTerminal("sh", "-c", "echo ready; read line; echo you typed $line")
		p.says("ready")
		p.types("hello\n")
		p.says("you typed hello")
		p.ends(0)
	}},
	{name: "terminal: ctrl-C arrives once", run: func(r *rig) {
		p := r.onTerminal(testbed.Probe(r), "stubborn")
		p.says("ready")
		p.types("\x03")
		testbed.WaitOutput(p.Process, p.Stdout, "the signal", r.patience, testbed.Contains("got 2\r")) // behind an echoed ^C
		time.Sleep(100 * time.Millisecond)                                                             // no second one is to come
		if n := strings.Count(p.Stdout.String(), "got 2\r"); n != 1 {
			r.Errorf("%d times", n)
		}
	}},
	{name: "terminal: ctrl-C ends the app, with 130", run: func(r *rig) {
		p := r.onTerminal("sh", "-c", "echo ready; exec sleep 60")
		p.says("ready")
		r.until("sleep runs", func() error { return p.executed("sleep") })
		p.types("\x03")
		p.ends(130)
	}},
	{name: "terminal: a new size arrives once", run: func(r *rig) {
		p := r.onTerminal(testbed.Probe(r), "stubborn")
		p.says("ready")
		if err := pty.Setsize(p.master, &pty.Winsize{Rows: 33, Cols: 99}); err != nil {
			r.Fatalf("%v", err)
		}
		p.says("got 28")
		p.send(syscall.SIGUSR2) // a second one would come before it
		p.says("got 12")
		if n := strings.Count(p.Stdout.String(), "got 28"); n != 1 {
			r.Errorf("%d times", n)
		}
	}},
	{name: "terminal: ctrl-Z does not stop an app that nobody could continue", why: "docker run -it hangs for ever", run: func(r *rig) {
		p := r.onTerminal("sh", "-c", "echo ready; exec sleep 60")
		p.says("ready")
		r.until("sleep runs", func() error { return p.executed("sleep") })
		p.types("\x1a\x03") // stopped, it would not end by the second
		p.ends(130)
	}},
	{name: "terminal: a shell has job control", run: func(r *rig) {
		p := r.onTerminal("bash", "--norc", "--noprofile", "-i")
		p.types("sleep 60\n")
		r.until("sleep runs", func() error { return p.executed("sleep") })
		p.types("\x1a")
		p.types("jobs\n")
		testbed.WaitOutput(p.Process, p.Stdout, "Stopped", r.patience, testbed.Contains("Stopped"))
		p.types("kill %1; exit 6\n")
		p.types("exit 6\n")
		p.ends(6)
		if strings.Contains(p.Stdout.String(), "no job control") {
			r.Errorf("it says there is none")
		}
	}},
	{name: "terminal: its end ends the app", run: func(r *rig) {
		p := r.onTerminal("sh", "-c", "echo ready; exec sleep 60")
		p.says("ready")
		_ = p.master.Close()
		if code := p.Wait(r.patience); code != 129 {
			r.Errorf("exit code %d, not that of HUP", code)
		}
	}},
	{name: "terminal: ctrl-Z in a shell stops all, and fg goes on", why: "the shell does not get its terminal back, or the app not the keyboard", pid1: onlyNotPID1, run: func(r *rig) {
		p := r.shell()
		p.types(strings.Join(r.prepare(options{}, []string{"sh", "-c", "'echo ready; read line; echo you typed $line; exit 5'"}).Args, " ") + "\n")
		p.says("ready")
		p.types("\x1a")
		testbed.WaitOutput(p.Process, p.Stdout, "Stopped", r.patience, testbed.Contains("Stopped"))
		p.types("fg\n")
		p.types("hello\n")
		p.says("you typed hello")
		p.types("echo code $?\n")
		p.says("code 5")
		p.types("exit\n")
		_ = p.Wait(r.patience)
	}},
	{name: "terminal: bg and fg in a shell", why: "the app stops when it reads, and the shell does not know", pid1: onlyNotPID1, run: func(r *rig) {
		p := r.shell()
		p.types(strings.Join(r.prepare(options{}, []string{"sh", "-c", "'read line; echo you typed $line; exit 5'"}).Args, " ") + " &\n")
		testbed.WaitOutput(p.Process, p.Stdout, "prompt", r.patience, testbed.Contains("[1]"))
		r.until("it stops for the keyboard", func() error {
			p.types("jobs\n")
			time.Sleep(20 * time.Millisecond)
			if !strings.Contains(p.Stdout.String(), "Stopped") {
				return errors.New("it does not")
			}
			return nil
		})
		p.types("fg\n")
		p.types("hello\n")
		p.says("you typed hello")
		p.types("exit\n")
		_ = p.Wait(r.patience)
	}},
}

// helpers checks that the processes that an app leaves behind are asked to stop and
// waited for, and not killed in the middle of their work.
func helpers(how string) func(*rig) {
	return func(r *rig) {
		dir := r.TempDir()
		file, ready := filepath.Join(dir, "written"), filepath.Join(dir, "ready")
		helper := fmt.Sprintf(`trap "sleep 0.3; echo done > %s; exit 0" TERM; echo > %s; while :; do sleep 0.01; done`, file, ready)
		r.start(options{}, "sh", "-c", fmt.Sprintf(`%ssh -c '%s' & until [ -e %s ]; do sleep 0.01; done; exit 9`, how, helper, ready)).ends(9)
		if b, _ := os.ReadFile(file); string(b) != "done\n" {
			r.Errorf("the helper could not finish")
		}
	}
}

// none checks that the probe's state has no line of a kind.
func none(prefix string) func(*rig) {
	return func(r *rig) {
		for _, l := range r.state(options{}) {
			if strings.HasPrefix(l, prefix) {
				r.Errorf("%s", l)
			}
		}
	}
}

// same checks that the app has what the script set.
func same(key, want, script string) func(*rig) {
	return func(r *rig) {
		if !strings.Contains(script, `"$@"`) {
			script += `; exec "$@"`
		}
		if got := value(r.state(options{wrap: script}), key); got != want {
			r.Errorf("%s, not %s", got, want)
		}
	}
}

// noZombies waits until the init has no zombie.
func (p *run) noZombies() {
	p.r.until("no zombie", func() error {
		n := 0
		for _, pid := range testbed.Children(p.init) {
			if testbed.Stat(pid, 3) == "Z" {
				n++
			}
		}
		if n > 0 {
			return fmt.Errorf("%d zombies", n)
		}
		return nil
	})
}

// onlyTheApp waits until the init has one child left, and no zombie.
func (p *run) onlyTheApp() {
	p.r.until("only the app is left", func() error {
		if list := testbed.Children(p.init); len(list) != 1 {
			return fmt.Errorf("%d children", len(list))
		}
		return nil
	})
}

// executed reports whether a program of that name runs below the init.
func (p *run) executed(name string) error {
	for _, pid := range p.r.marked() {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && filepath.Base(exe) == name {
			return nil
		}
	}
	return errors.New("it does not run yet")
}

// gone waits until the init itself has ended, whoever lives on.
func (p *run) gone() {
	p.r.until("the init ends", func() error {
		if state := testbed.Stat(p.init, 3); state != "" && state != "Z" {
			return errors.New("it does not")
		}
		return nil
	})
}

// verbose makes ours write.
func verbose(r *rig) []string {
	if r.ours {
		return []string{"--log-level=debug"}
	}
	return nil
}

// fullPipe returns the end of a pipe to which nothing more can be written.
func fullPipe(r *rig) *os.File {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		r.Fatalf("%v", err)
	}
	for err := error(nil); err == nil; {
		_, err = syscall.Write(fds[1], make([]byte, 4096))
	}
	if err := syscall.SetNonblock(fds[1], false); err != nil {
		r.Fatalf("%v", err)
	}
	w := os.NewFile(uintptr(fds[1]), "full pipe")
	r.Cleanup(func() { _ = w.Close(); _ = syscall.Close(fds[0]) })
	return w
}

// shell starts a shell with job control on a terminal, from which the init is
// run.
func (r *rig) shell() *run {
	cmd := r.prepare(options{}, nil)
	shell := *cmd
	path, err := exec.LookPath("bash")
	if err != nil {
		r.Fatalf("%v", err)
	}
	shell.Path, shell.Args, shell.Err = path, []string{"bash", "--norc", "--noprofile", "-i"}, nil
	shell.Env = append(shell.Env, "PS1=$ ")
	return r.startOn(&shell)
}
