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
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slashacom/slasha-init/control"
	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/lease"
	"github.com/slashacom/slasha-init/replicate"
	"github.com/slashacom/slasha-init/restore"
	"github.com/slashacom/slasha-init/storage"
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
	out    *patientWriter
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
	out := newPatientWriter(os.Stderr)
	defer out.flush(500 * time.Millisecond)
	if err != nil {
		fmt.Fprintln(out, "slasha-init: "+err.Error())
		return exitSystem
	}

	cfg, err := Parse("run", args, environ)
	if err != nil {
		return tellConfig(out, err)
	}
	out.hide(cfg.Secrets())
	l := &life{cfg: cfg, sup: sup, out: out, log: newLogger(out, cfg)}
	slog.SetDefault(forLibrary(l.log, cfg.LogLevel))
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

// restore brings the right database to its path. When it returns false the
// app must not be started, and the container ends with the code.
func (l *life) restore() (code int, ok bool) {
	if l.client == nil || l.following.Load() {
		stopped := l.stopped(&code)
		return code, !stopped
	}
	_, err := l.bring(restore.Config{Request: l.cfg.RestoreRequest, Timestamp: l.cfg.RestoreTimestamp})
	switch {
	case l.stopped(&code):
		return code, false
	case err != nil:
		l.log.Error("the app is not started", "error", err)
		_ = l.health.Fail(err.Error())
		return exitRestore, false
	}
	l.health.Problem("")
	l.enter(healthz.Starting)
	return 0, true
}

// bring makes sure that the right database is at its path. What is asked for is
// in cfg.
func (l *life) bring(cfg restore.Config) (restore.Outcome, error) {
	ctx, cancel := l.untilStopped()
	defer cancel()
	progress := newProgress(l.log, os.Stderr)
	cfg = l.restoreConfig(cfg)
	cfg.OnProgress = func(p restore.Progress) {
		l.enter(healthz.Restoring)
		l.health.Problem("")
		l.health.Restoring(restoreStatus(healthz.RestoreRunning, p))
		progress.show(p)
	}
	out, err := restore.Run(ctx, cfg)
	progress.done()
	if out.Action == restore.Restore && ctx.Err() == nil {
		s := restoreStatus(healthz.RestoreDone, out.Progress)
		if err != nil {
			s.State = healthz.RestoreFailed
		}
		if out.Aside != "" {
			s.SetAside = &out.Aside
		}
		l.health.Restoring(s)
	}
	l.compared = out.Compared
	l.brought = err == nil && (out.Action == restore.Restore || out.Action == restore.Fresh)
	return out, err
}

// anchored notes that the replica has a snapshot of the line that is replicated.
func (l *life) anchored() {
	if err := restore.Anchored(l.cfg.StateDir()); err != nil {
		l.log.Warn("the next start will upload a snapshot that is there already", "error", err)
	}
}

// restoreConfig fills in what is the same for every restore of this container.
func (l *life) restoreConfig(cfg restore.Config) restore.Config {
	cfg.DBPath = l.cfg.DBPath
	cfg.StateDir = l.cfg.StateDir()
	cfg.Client = l.client
	cfg.Explain = l.explain
	cfg.Patience = restorePatience
	cfg.Check = l.cfg.RestoreCheck
	cfg.Seal = l.seal
	cfg.Reserve = l.reserve
	cfg.Compare = l.compare
	cfg.OnStale = l.cfg.OnStale
	cfg.Adopt = l.adopt
	cfg.Logger = l.log
	cfg.OnWaiting = l.health.Problem
	return cfg
}

// seal keeps what is newer than the point in time that was restored. Where that
// is damaged there is less to keep, which must not stand in the way.
func (l *life) seal(ctx context.Context) error {
	err := replicate.Seal(ctx, l.writer, slog.Default())
	if errors.Is(err, replicate.ErrUnsound) {
		l.log.Warn("not all of what is newer than the point in time can be kept for long", "error", err)
		return nil
	}
	return err
}

// restorePatience is for how long a replica that does not answer is asked again
// when the database is missing: long enough for a bucket that starts together
// with the app, short enough to be told of a mistake.
const restorePatience = 20 * time.Second

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
	return redact(p.Sentence, l.cfg.Secrets()), p.Temporary
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

// replication is the replicator at work, or nothing when backups are off.
type replication struct {
	*life
	cancel context.CancelFunc // nil when backups are off
	ended  chan struct{}

	endRest    context.CancelFunc    // ends all but the uploads
	leads      chan struct{}         // closed when this instance replicates
	replicator *replicate.Replicator // from then on
}

// replicate starts to stream the database to the replica.
func (l *life) replicate() *replication {
	if l.client == nil {
		return &replication{life: l}
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &replication{life: l, cancel: cancel, leads: make(chan struct{}), ended: make(chan struct{})}
	cfg := replicate.Config{
		DBPath:           l.cfg.DBPath,
		Client:           l.writer,
		SyncInterval:     l.cfg.SyncInterval,
		CheckInterval:    checkInterval,
		SnapshotInterval: l.cfg.SnapshotInterval,
		Retention:        l.cfg.Retention,
		Admit:            l.admit,
		Admitted:         l.compared,
		OnSync:           func(before time.Time, txid replicate.TXID) { l.health.Synced(before, txid.String()) },
		OnCapture:        func(txid replicate.TXID) { l.health.Captured(txid.String()) },
		OnPending:        l.health.Pending,
		OnError:          l.replicationError,
		Dropping:         l.dropping,
		Logger:           l.log,
	}
	if l.claim.lease != nil {
		cfg.CheckInterval = askLease
	}
	rest, endRest := context.WithCancel(ctx)
	r.endRest = endRest
	go func() {
		defer close(r.ended)
		if l.following.Load() && !l.takeOver(rest) {
			return
		}
		cfg.Anchor, cfg.OnAnchored = restore.OnNewLine(l.cfg.StateDir()), l.anchored
		cfg.OnNewLine = func() error { return restore.BeginNewLine(l.cfg.StateDir()) }
		r.replicator = replicate.New(cfg)
		l.replicator.Store(r.replicator)
		close(r.leads)
		var drills sync.WaitGroup
		drills.Go(func() { l.drills(rest) })
		r.replicator.Run(ctx)
		drills.Wait()
	}()
	return r
}

// smallHeap lets the heap grow by less than Go's 100 percent between two collections,
// with which a snapshot of 1 GiB took 135 MiB, of memory that is the app's; and what a
// restore keeps of each page would count twice.
const smallHeap = 40

// askLease is how often an idle database asks how the lease stands, which makes no
// request: a renewal that failed is told this soon.
const askLease = 10 * time.Second

// checkInterval is how often an idle replica is asked for a sign of life: at
// least every 30 s by contract, with room for a slow answer. It costs about
// 93,000 requests a month.
const checkInterval = 28 * time.Second

func (l *life) replicationError(err error) {
	if err == nil {
		l.health.Problem("")
		return
	}
	sentence, _ := l.explain(err)
	var dropped *replicate.DroppedError
	switch {
	case errors.Is(err, replicate.ErrStale), errors.Is(err, replicate.ErrBarred):
		sentence = err.Error()
	case errors.As(err, &dropped):
		sentence = (&replicate.DroppedError{Err: errors.New(sentence)}).Error()
	}
	l.health.Problem(sentence)
}

// finish makes the last upload, until the deadline or until somebody at the
// keyboard gives up on it.
func (r *replication) finish(deadline time.Time) error {
	if r.cancel == nil {
		return nil
	}
	defer r.cancel()
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	go func() {
		select {
		case <-r.sup.GaveUp():
			r.log.Warn("third interrupt: giving up the last upload")
			cancel()
		case <-ctx.Done():
		}
	}()
	if has, err := r.leaderHasIt(ctx); has || err != nil {
		r.endRest()
		r.cancel()
		<-r.ended
		if err != nil {
			r.log.Error(err.Error())
		}
		return err
	}
	r.log.Info("last upload", "budget", time.Until(deadline).Round(time.Millisecond))
	r.endRest()
	r.replicator.Stop()
	select {
	case <-r.ended:
	case <-ctx.Done():
		r.cancel()
		<-r.ended // its requests end with their context
	}
	err := r.replicator.Finish(ctx)
	r.life.replicator.Store(nil)
	if err != nil {
		r.log.Error(err.Error())
	}
	return err
}

// leaderHasIt returns true on an instance that follows, when the leader has
// uploaded what was written here, or goes on and will. It returns false on the one
// that leads, which this one may become meanwhile: two that stop at the same time
// must not both leave it to the other.
func (r *replication) leaderHasIt(ctx context.Context) (has bool, err error) {
	asked := make(chan struct{})
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	if r.following.Load() {
		go func() {
			defer close(asked)
			r.askLeader(asking)
		}()
	}
	select {
	case <-r.leads:
		return false, nil
	case <-asked:
	case <-ctx.Done():
	}
	select {
	case <-r.leads:
		return false, nil
	default:
	}
	switch {
	case ctx.Err() == nil:
		return true, nil
	case r.following.Load():
		r.log.Warn("what was written last is left to the leader, which has not said that it has it")
		return true, nil
	}
	return false, errNoTime
}

// errNoTime says that the container was stopped just when its leader was gone.
var errNoTime = errors.New("the last upload failed: the instance that replicated this database is gone, and there was no time to go on where it ended")

// askLeader returns when the leader has uploaded all that is committed now, or when
// ctx ends.
func (r *replication) askLeader(ctx context.Context) {
	leader := control.Client{Path: Config{DBPath: r.cfg.DBPath}.defaultSocket()}
	for ctx.Err() == nil {
		if _, err := leader.Sync(ctx); err == nil {
			r.log.Info("what was written last is in the replica, by the leader")
			return
		}
		wait(ctx, askAgain)
	}
}

// release lets go of the database after a last upload that failed, when the
// process goes on.
func (r *replication) release(ctx context.Context) {
	if r.replicator != nil {
		r.replicator.Release(ctx)
	}
}
