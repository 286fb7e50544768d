// Command bench compares slasha-init with other inits and with litestream's own
// -exec, in turn, in one run: absolute times do not hold for another machine, and not
// even for another hour of this one, but ratios do.
//
//	start     from exec of the init to the first line of the app
//	to exit   from exec of the init to its end, with an app that ends at once
//	idle      resident memory while the app sleeps
package main

import (
	"bytes"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// contender is a way to run an app.
type contender struct {
	name    string
	command func(app ...string) []string
	env     []string
}

// figures are the medians of one contender.
type figures struct {
	start, exit time.Duration
	idle        int // KiB
	there       bool
}

var (
	rounds = flag.Int("rounds", 100, "how many times each is run")
	root   = flag.String("root", ".", "the repository's folder")
	out    = flag.String("o", "", "write the table to this file too")
)

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	dir, err := os.MkdirTemp("", "slasha-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	bin := func(name string) string { return filepath.Join(*root, "bin", name) }
	probe := bin("probe")
	ours := func(app ...string) []string {
		return append([]string{bin("slasha-init"), "--health-addr=off", "--"}, app...)
	}
	db := func(name string) string { return filepath.Join(dir, name, "app.db") }
	for _, name := range []string{"ours", "theirs"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
		if b, err := exec.Command(bin("guestbook"), "worker", "--db", db(name), "--count", "10", "--every", "0").CombinedOutput(); err != nil {
			return fmt.Errorf("guestbook: %w\n%s", err, b)
		}
	}
	list := []contender{
		{name: "tini", command: func(app ...string) []string { return append([]string{"tini", "-g", "--"}, app...) }},
		{name: "dumb-init", command: func(app ...string) []string { return append([]string{"dumb-init", "--"}, app...) }},
		{name: "slasha-init, no backups", command: ours},
		{name: "slasha-init, file replica", command: ours, env: []string{"SLASHA_DB_PATH=" + db("ours"), "SLASHA_ENDPOINT=file://" + filepath.Join(dir, "replica-ours")}},
		{name: "litestream replicate -exec", command: func(app ...string) []string {
			return []string{filepath.Join(*root, ".cache", "bin", "litestream"), "replicate", "-exec", strings.Join(app, " "), db("theirs"), "file://" + filepath.Join(dir, "replica-theirs")}
		}},
	}
	results := make([]figures, len(list))
	starts, exits := make([][]time.Duration, len(list)), make([][]time.Duration, len(list))
	for n := range *rounds {
		for i, c := range list {
			if _, err := exec.LookPath(c.command("x")[0]); err != nil {
				continue
			}
			results[i].there = true
			start, err := c.start(probe)
			if err != nil {
				return err
			}
			exit, err := c.exit()
			if err != nil {
				return err
			}
			starts[i], exits[i] = append(starts[i], start), append(exits[i], exit)
		}
		if (n+1)%20 == 0 {
			fmt.Fprintf(os.Stderr, "round %d of %d\n", n+1, *rounds)
		}
	}
	for i, c := range list {
		if !results[i].there {
			continue
		}
		results[i].start, results[i].exit = median(starts[i]), median(exits[i])
		if results[i].idle, err = c.idle(probe); err != nil {
			return err
		}
	}
	table := write(list, results)
	fmt.Print(table)
	if *out != "" {
		return os.WriteFile(*out, []byte(table), 0o644)
	}
	return nil
}

func (c contender) cmd(app ...string) *exec.Cmd {
	words := c.command(app...)
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, c.env...)
	return cmd
}

func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // can't fail for this clock
	return ts.Nano()
}

// start is the time until the app, which prints its clock, runs.
func (c contender) start(probe string) (time.Duration, error) {
	var out, stderr bytes.Buffer
	cmd := c.cmd(probe, "clock")
	cmd.Stdout, cmd.Stderr = &out, &stderr
	began := monotonic()
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("%s: %w\n%s", c.name, err, stderr.String())
	}
	for _, line := range strings.Split(out.String(), "\n") { // litestream logs on stdout
		if n, err := strconv.ParseInt(line, 10, 64); err == nil {
			return time.Duration(n - began), nil
		}
	}
	return 0, fmt.Errorf("%s: no clock in %q", c.name, out.String())
}

// exit is the time until it has ended, with an app that ends at once.
func (c contender) exit() (time.Duration, error) {
	cmd := c.cmd("/bin/true")
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("%s: %w", c.name, err)
	}
	return time.Since(began), nil
}

// idle is the resident memory after some seconds of nothing to do.
func (c contender) idle(probe string) (kib int, err error) {
	cmd := c.cmd(probe, "signals")
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait() // the probe exits with 7
	}()
	time.Sleep(5 * time.Second)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strconv.Atoi(strings.Fields(v)[0])
		}
	}
	return 0, fmt.Errorf("%s: no VmRSS", c.name)
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func write(list []contender, results []figures) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s/%s, %d CPUs, %s, %d rounds in turn, medians, %s\n\n", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), kernel(), *rounds, time.Now().UTC().Format(time.DateOnly))
	b.WriteString("| | start, ms | to exit, ms | of tini's | idle, MiB |\n|---|---|---|---|---|\n")
	tini := results[0]
	for i, c := range list {
		f := results[i]
		if !f.there {
			fmt.Fprintf(&b, "| %s | not installed | | | |\n", c.name)
			continue
		}
		ratio := "-"
		if tini.there {
			ratio = fmt.Sprintf("%.1f, %.1f", f.start.Seconds()/tini.start.Seconds(), f.exit.Seconds()/tini.exit.Seconds())
		}
		fmt.Fprintf(&b, "| %s | %.1f | %.1f | %s | %.1f |\n", c.name, ms(f.start), ms(f.exit), ratio, math.Round(float64(f.idle)/102.4)/10)
	}
	return b.String()
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "?"
	}
	return "Linux " + unix.ByteSliceToString(u.Release[:])
}
