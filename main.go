// Command slasha-init is a container's entrypoint and PID 1: it restores the
// app's SQLite database from an S3-compatible bucket when it is missing, starts
// the app, streams its WAL to the bucket, answers the platform's health poller,
// and on stop uploads what the app wrote last before it exits with the app's own
// code.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slashacom/slasha-init/control"
	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/logs"
	"github.com/slashacom/slasha-init/replica/lease"
	"github.com/slashacom/slasha-init/replica/storage"
	"github.com/slashacom/slasha-init/replicate"
	"github.com/slashacom/slasha-init/supervisor"
)

// version is set by the build.
var version = "v0.0.0-dev"

// Our own exit codes, beside the app's. From sysexits.h, where they fit.
const (
	exitUsage   = 64 // bad flag
	exitSystem  = 71 // the system refuses us what every program needs
	exitUpload  = 70 // the app ended well, but the last upload did not
	exitRestore = 74 // restore failed; the database is as it was
	exitConfig  = 78 // bad configuration
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

// life is a container's life: what its steps share.
type life struct {
	cfg    Config
	sup    *supervisor.Supervisor
	out    *logs.Writer
	log    *slog.Logger
	health *healthz.Health
	client *storage.Client // nil when backups are off
	writer replica         // the same, as it may be written
	claim  claim           // to write it

	compared  bool          // the database is known to continue the replica
	continues atomic.Uint64 // its newest transaction then

	locks     locks
	following atomic.Bool // another instance leads
	brought   bool        // the replica was asked for the database, and answered
	started   bool        // the app
	unsynced  bool        // the last upload failed

	orders     orders
	socket     *control.Server                      // nil when there is none
	replicator atomic.Pointer[replicate.Replicator] // nil while nothing is replicated
}

// run is the life of a container, from top to bottom.
func run(args, environ []string) int {
	// Signals and reaping first: whatever comes from now on is not lost.
	parent := os.Getppid()
	sup, err := supervisor.New()
	out := logs.NewWriter(os.Stderr)
	defer out.Flush(500 * time.Millisecond)
	if err != nil {
		fmt.Fprintln(out, "slasha-init: "+err.Error())
		return exitSystem
	}

	cfg, err := Parse("run", args, environ)
	if err != nil {
		return tellConfig(out, err)
	}
	out.Hide(cfg.Secrets())
	l := &life{cfg: cfg, sup: sup, out: out, log: logs.New(out, cfg.Log)}
	slog.SetDefault(logs.ForLibrary(l.log, cfg.Log.Level))
	l.takeOrders(parent)
	if len(cfg.Idle) > 0 {
		l.log.Warn("backups are off, as neither --db-path nor --bucket is set; some settings have no effect", "settings", strings.Join(cfg.Idle, ", "))
	}

	// The health page before everything that can take long, so that it can be
	// watched.
	if err := l.openStorage(); err != nil {
		return l.refuse(err.Error())
	}
	page, err := l.serveHealth()
	if err != nil {
		return l.refuse(err.Error())
	}
	defer l.closePage(page)

	// One instance leads on a volume, and one volume's writes the replica.
	defer l.unlock()
	if code, ok := l.lead(); !ok {
		return code
	}
	l.openLease()
	defer l.giveBack()
	if code, ok := l.takeLease(); !ok {
		return code
	}

	// The right database, or none of our doing.
	if code, ok := l.restore(); !ok {
		return code
	}
	if code, ok := l.settleLease(); !ok {
		return code
	}

	l.openControl()
	defer l.closeControl()

	for {
		// Replicate, then start the app; when supervise returns, nobody writes any
		// more.
		replication := l.replicate()
		res := l.supervise()

		// The last upload: always, whatever the app's code and however short it
		// lived.
		unsynced := replication.finish(res.Began.Add(cfg.StopTimeout))
		l.unsynced = unsynced != nil

		// The end, unless the app was stopped for a restore. Then it begins again.
		order := l.orders.take(res)
		if order == nil {
			return l.exit(res, unsynced)
		}
		if code, ok := l.comply(order, replication, unsynced); !ok {
			return code
		}
	}
}

// takeOrders tells the supervisor what is a stop for this container.
func (l *life) takeOrders(parent int) {
	p := l.cfg.Processes
	if p.StopSignal != 0 {
		l.sup.StopAs(p.StopSignal)
	}
	if p.ParentDeath != 0 {
		if err := l.sup.DieWithParent(p.ParentDeath, parent); err != nil {
			l.log.Warn("the parent's death will not be noticed", "error", err)
		}
	}
}

// refuse ends a start that can't be made as configured.
func (l *life) refuse(why string) int {
	fmt.Fprintln(l.out, "slasha-init: "+why)
	return exitConfig
}

// openStorage readies the replica's client. It makes no request.
func (l *life) openStorage() error {
	enabled := l.cfg.Enabled()
	health := healthz.Config{Enabled: enabled, MaxLag: l.cfg.MaxLag, DBPath: l.cfg.DBPath, Version: version}
	if enabled {
		storage.IsolateEnvironment(l.cfg.AccessKeyID != "")
		sc := l.cfg.Storage()
		sc.Logger = l.log
		sc.OnResult = func(r storage.Result) {
			outcome := "ok"
			if r.Err == nil {
				l.health.Checked(r.At)
			} else {
				outcome = string(l.client.Explain(r.Err).Class)
			}
			l.health.Requested(r.Op, r.Took, outcome)
		}
		debug.SetGCPercent(smallHeap)
		client, err := storage.Open(sc)
		if err != nil {
			return err
		}
		l.client = client
		health.Replica = client.String()
	}
	l.health = healthz.New(health)
	return nil
}

// smallHeap lets the heap grow by less than Go's 100 percent between two collections,
// with which a snapshot of 1 GiB took 135 MiB, of memory that is the app's; and what a
// restore keeps of each page would count twice.
const smallHeap = 40

// serveHealth opens the health page, unless it is off.
func (l *life) serveHealth() (*healthz.Server, error) {
	if l.cfg.HealthAddr == "" {
		return nil, nil
	}
	page, err := healthz.Listen(context.Background(), l.cfg.HealthAddr, l.health, l.log)
	if err != nil {
		return nil, fmt.Errorf("--health-addr %s: cannot listen there: %w; choose a free address, port 0, or off", quote(l.cfg.HealthAddr), errors.Unwrap(err))
	}
	l.log.Info("health page", "addr", page.Addr(), "version", version)
	return page, nil
}

func (l *life) closePage(page *healthz.Server) {
	if page != nil {
		if err := page.Close(); err != nil {
			l.log.Debug("closing the health page", "error", err)
		}
	}
}

// enter moves the health to a phase. A step that can't be is a bug of ours; it
// is told, and does not stop a container.
func (l *life) enter(p healthz.Phase) {
	if err := l.health.Enter(p); err != nil {
		l.log.Error("a bug in slasha-init, please report it", "error", err)
	}
}

// stopped reports whether a stop signal has come, and then sets the exit code.
func (l *life) stopped(code *int) bool {
	sig := l.sup.StopSignal()
	if sig == 0 {
		return false
	}
	l.log.Info("stopped before the app was started", "signal", sig.String())
	*code = 128 + int(sig)
	return true
}

// untilStopped returns a context that a stop signal ends.
func (l *life) untilStopped() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		select {
		case <-l.sup.Stopping():
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

func (l *life) explain(err error) (string, bool) {
	var held *lease.NotHeldError
	if errors.As(err, &held) && held.Err != nil {
		sentence, temporary := l.explain(held.Err)
		return (&lease.NotHeldError{Err: errors.New(sentence)}).Error(), temporary
	}
	p := l.client.Explain(err)
	return logs.Redact(p.Sentence, l.cfg.Secrets()), p.Temporary
}

// supervise runs the app until it ends or is told to.
func (l *life) supervise() supervisor.Result {
	l.started = true
	p := l.cfg.Processes
	cfg := supervisor.Config{
		StopTimeout: l.cfg.StopTimeout,
		Scope:       p.Scope,
		User:        p.User,
		NoNewPrivs:  p.NoNewPrivs,
		Logger:      l.log,
		OnStart:     func(p supervisor.Process) { l.health.Process(processStatus(p), false) },
		OnReady: func() {
			l.health.Ready(true)
			l.enter(healthz.Running)
		},
		OnExit: func(p supervisor.Process, _ supervisor.Exit) { l.health.Process(processStatus(p), true) },
		OnStopping: func(string) {
			l.health.Ready(false)
			if l.orders.close() {
				l.enter(healthz.Restoring)
			} else {
				l.enter(healthz.Stopping)
			}
		},
		Abort: l.acceptOrders(),
		Spare: l.orders.client,
	}
	if p.LogPrefix {
		cfg.Prefix = &supervisor.Prefix{Stdout: os.Stdout, Stderr: os.Stderr}
	}
	return l.sup.Run(cfg, p.Commands)
}

func processStatus(p supervisor.Process) healthz.Process {
	return healthz.Process{Type: p.Type, PID: p.PID, StartedAt: healthz.Time(p.StartedAt)}
}

// exit tells how it ended, and returns the exit code: the app's own, unless that
// would hide that the last upload failed.
func (l *life) exit(res supervisor.Result, unsynced error) int {
	code := res.Exit.Code
	if res.Exit.Err != nil {
		fmt.Fprintln(l.out, "slasha-init: "+res.Exit.Err.Error())
	}
	if unsynced != nil && endedWell(res) {
		code = exitUpload
	}
	l.log.Info("exiting", "code", code, "app", res.Exit.String())
	return code
}

// endedWell reports whether the app's exit says nothing that a failed upload
// would hide: it exited with 0, or by the signal that stopped the container, or with
// the code of that, as shells and Java have it.
func endedWell(res supervisor.Result) bool {
	return res.Exit.Code == 0 || res.StopSignal != 0 &&
		(res.Exit.Signal == res.StopSignal || res.Exit.Code == 128+int(res.StopSignal))
}
