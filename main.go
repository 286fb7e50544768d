// Command slasha-init is a container's entrypoint and PID 1: it restores the
// app's SQLite database from an S3-compatible bucket when it is missing, starts
// the app, streams its WAL to the bucket, answers the platform's health poller,
// and on stop uploads what the app wrote last before it exits with the app's own
// code.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slashacom/slasha-init/config"
	"github.com/slashacom/slasha-init/internal/exit"
	"github.com/slashacom/slasha-init/internal/logs"
	"github.com/slashacom/slasha-init/internal/text"
	"github.com/slashacom/slasha-init/supervisor"
)

func main() {
	keepPrivate()
	os.Exit(dispatch(os.Args[1:], os.Environ()))
}

// keepPrivate closes our memory, environment and open files, under /proc, to
// other processes of our user: the app often runs as the same one, and the
// bucket's keys are not for it. See prctl(2), PR_SET_DUMPABLE.
func keepPrivate() {
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}

// dispatch runs the command that the first argument names. Only the first can:
// everything behind -- belongs to the app.
func dispatch(args, environ []string) int {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return run(args, environ)
	}
	name, args := args[0], args[1:]
	switch name {
	case "run":
		return run(args, environ)
	case "version":
		fmt.Printf("slasha-init %s %s/%s %s\n", version, runtime.GOOS, runtime.GOARCH, runtime.Version())
		return 0
	case "help":
		config.Help(os.Stdout)
		return 0
	}
	out := logs.NewWriter(os.Stderr)
	defer out.Flush(500 * time.Millisecond)
	command, ok := commands[name]
	if !ok {
		return conclude(out, exit.With(exit.Usage, fmt.Errorf("there is no command %s; to run it as the app, write: slasha-init -- %s", text.Quote(name), text.Word(name))))
	}
	cfg, err := config.Parse(name, args, environ)
	if err == nil {
		out.Hide(cfg.Secrets())
		err = command(cfg, out)
	}
	return conclude(out, err)
}

// run is the life of a container, from top to bottom. Each return ends the container:
// conclude, when the container can't even be watched; refuse, when its app can't be
// started, or started again; exit, when the app has ended, with the app's own code. The
// other codes are those of the errors. A replication that fails ends nothing: health
// reports it until it works again.
func run(args, environ []string) int {
	// Signals and reaping first: no signal is lost from now on. A stop signal ends ctx,
	// and with it whatever is done before the app starts; after that it stops the app.
	parent := os.Getppid()
	sup, err := supervisor.New()
	out := logs.NewWriter(os.Stderr)
	defer out.Flush(500 * time.Millisecond)
	if err != nil {
		return conclude(out, exit.With(exit.System, err))
	}
	cfg, err := config.Parse("run", args, environ)
	if err != nil {
		return conclude(out, err)
	}
	c := newContainer(cfg, sup, out)
	ctx, cancel := c.untilStopped(parent)
	defer cancel()
	keep, err := newKeeper(c)
	if err != nil {
		return conclude(out, err)
	}

	// The health page before everything that can take long, so that it can be watched.
	// It is the last to go.
	if err := c.openPage(); err != nil {
		return conclude(out, err)
	}
	defer c.closePage()

	// One instance leads on a volume, the others follow it.
	if err := keep.join(ctx); err != nil {
		return c.refuse(err)
	}
	defer keep.leave()

	// The leader takes the lease, so that one volume writes the replica, puts the right
	// database at its path, and opens the control socket. A follower's database is ready
	// when it has joined.
	defer c.closeControl()
	if err := keep.begin(ctx); err != nil {
		return c.refuse(err)
	}

	for {
		// Replicate, then start the app. When supervise returns, nobody writes any
		// more.
		keep.replicate()
		res := c.supervise()

		// The last upload: whatever the app's code and however short its life. A
		// follower has the leader make it; without the lease there is none.
		unsynced := keep.finish(res.Began.Add(cfg.StopTimeout))

		// The end, unless the app was stopped for a request: to restore, because the
		// database is stale, or because the lease is lost. Then it begins again, if it can.
		request := c.requests.Take(res.Aborted)
		if request == nil {
			return c.exit(res, unsynced)
		}
		if err := keep.comply(ctx, request); err != nil {
			return c.refuse(err)
		}
	}
}

// conclude prints why a command could not do what it was asked to, and returns the exit
// code.
func conclude(out io.Writer, err error) int {
	var wrong *config.Error
	switch {
	case err == nil:
		return 0
	case errors.Is(err, config.ErrHelp):
		config.Help(os.Stdout)
		return 0
	case errors.Is(err, errNo):
	case errors.As(err, &wrong):
		fmt.Fprintln(out, wrong) // a line for each problem
	default:
		fmt.Fprintln(out, "slasha-init:", err)
	}
	return exit.Code(err)
}
