package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/slashacom/slasha-init/config"
	"github.com/slashacom/slasha-init/control"
	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/exit"
	"github.com/slashacom/slasha-init/internal/logs"
	"github.com/slashacom/slasha-init/internal/text"
	"github.com/slashacom/slasha-init/supervisor"
)

// version is set by the build.
var version = "v0.0.0-dev"

// container is what the steps of its life share: its processes, its health page, and
// what others ask of it. See keeper for its databases.
type container struct {
	cfg    config.Config
	sup    *supervisor.Supervisor
	out    *logs.Writer
	log    *slog.Logger
	health *healthz.Health
	page   *healthz.Server // nil with --health-addr=off

	requests control.Requests // what others ask for while the app runs
	socket   *control.Server  // nil where there is none
	started  bool             // the app has been started at least once
}

func newContainer(cfg config.Config, sup *supervisor.Supervisor, out *logs.Writer) *container {
	out.Hide(cfg.Secrets())
	c := &container{
		cfg: cfg, sup: sup, out: out, log: logs.New(out, cfg.Log),
		health: healthz.New(healthz.Config{Enabled: cfg.Enabled(), MaxLag: cfg.Health.MaxLag, Version: version}),
	}
	slog.SetDefault(logs.ForLibrary(c.log, cfg.Log.Level))
	if len(cfg.Idle) > 0 {
		c.log.Warn("backups are off, as neither --db-path nor --bucket is set; some settings have no effect", "settings", strings.Join(cfg.Idle, ", "))
	}
	return c
}

// untilStopped returns a context that a stop signal ends, with an *exit.Stopped as its
// cause. parent is the pid of our parent at the start.
func (c *container) untilStopped(parent int) (context.Context, context.CancelFunc) {
	p := c.cfg.Processes
	if p.StopSignal != 0 {
		c.sup.StopAs(p.StopSignal)
	}
	if p.ParentDeath != 0 {
		if err := c.sup.DieWithParent(p.ParentDeath, parent); err != nil {
			c.log.Warn("the parent's death will not be noticed", "error", err)
		}
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() {
		select {
		case <-c.sup.Stopping():
			cancel(c.stopped())
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// stopped returns an *exit.Stopped if a stop signal has come, else nil.
func (c *container) stopped() error {
	if sig := c.sup.StopSignal(); sig != 0 {
		return &exit.Stopped{Signal: sig}
	}
	return nil
}

// openPage opens the health page, unless it is off.
func (c *container) openPage() error {
	if c.cfg.Health.Addr == "" {
		return nil
	}
	page, err := healthz.Listen(context.Background(), c.cfg.Health.Addr, c.health, c.log)
	if err != nil {
		return exit.With(exit.Config, fmt.Errorf("--health-addr %s: cannot listen there: %w; choose a free address, port 0, or off", text.Quote(c.cfg.Health.Addr), errors.Unwrap(err)))
	}
	c.page = page
	c.log.Info("health page", "addr", page.Addr(), "version", version)
	return nil
}

func (c *container) closePage() {
	if c.page != nil {
		if err := c.page.Close(); err != nil {
			c.log.Debug("closing the health page", "error", err)
		}
	}
}

// enter moves the health to a phase. A step that is not in healthz's table is a bug of
// ours, which is logged and does not stop a container.
func (c *container) enter(p healthz.Phase) {
	if err := c.health.Enter(p); err != nil {
		c.log.Error("a bug in slasha-init, please report it", "error", err)
	}
}

// waiting reports why the start waits, or, with "", that it goes on.
func (c *container) waiting(sentence string) {
	c.health.Problem(sentence)
	if sentence == "" {
		c.enter(healthz.Starting)
	} else {
		c.enter(healthz.Waiting)
	}
}

// openControl opens the control socket, where requests are carried out as cfg says. A
// container still does its work without a socket, so openControl only warns if it
// can't make one.
func (c *container) openControl(cfg control.Config) {
	if c.cfg.ControlSocket == "" {
		return
	}
	cfg.Path, cfg.Requests, cfg.Status, cfg.Logger = c.cfg.ControlSocket, &c.requests, c.health.Handler(), c.log
	socket, err := control.Listen(context.Background(), cfg)
	if err != nil {
		c.log.Warn("there is no control socket: sync and restore --now don't work in this container", "error", err)
		return
	}
	c.socket = socket
}

// isApp reports whether the app runs as a user.
func (c *container) isApp(uid uint32) bool {
	user := c.cfg.Processes.User
	return user != nil && user.UID == uid
}

func (c *container) closeControl() {
	if c.socket != nil {
		if err := c.socket.Close(); err != nil {
			c.log.Debug("closing the control socket", "error", err)
		}
	}
}

// supervise runs the app until it ends, is stopped, or is stopped for a request.
func (c *container) supervise() supervisor.Result {
	c.started = true
	p := c.cfg.Processes
	cfg := supervisor.Config{
		StopTimeout: c.cfg.StopTimeout,
		Scope:       p.Scope,
		User:        p.User,
		NoNewPrivs:  p.NoNewPrivs,
		Logger:      c.log,
		OnStart:     func(p supervisor.Process) { c.health.Process(processStatus(p), false) },
		OnReady: func() {
			c.health.Ready(true)
			c.enter(healthz.Running)
		},
		OnExit: func(p supervisor.Process, _ supervisor.Exit) { c.health.Process(processStatus(p), true) },
		OnStopping: func(string) {
			c.health.Ready(false)
			if c.requests.Close() {
				c.enter(healthz.Restoring)
			} else {
				c.enter(healthz.Stopping)
			}
		},
		Abort: c.requests.Open(),
		Spare: c.requests.PID,
	}
	if p.LogPrefix {
		cfg.Prefix = &supervisor.Prefix{Stdout: os.Stdout, Stderr: os.Stderr}
	}
	return c.sup.Run(cfg, p.Commands)
}

func processStatus(p supervisor.Process) healthz.Process {
	return healthz.Process{Type: p.Type, PID: p.PID, StartedAt: healthz.Time(p.StartedAt)}
}

// refuse ends a container whose app can't be started, or started again. It logs why,
// and returns the exit code.
func (c *container) refuse(err error) int {
	var stopped *exit.Stopped
	if errors.As(err, &stopped) {
		c.log.Info("stopped before the app was started", "signal", stopped.Signal.String())
		return exit.Code(err)
	}
	switch {
	case c.started:
		c.log.Error("the app is not started again", "error", err)
	case exit.Code(err) == exit.Held:
		c.log.Error("the app is not started", "error", err, "waited", c.cfg.LockTimeout)
	default:
		c.log.Error("the app is not started", "error", err)
	}
	_ = c.health.Fail(err.Error())
	return exit.Code(err)
}

// exit logs how the container ended, and returns the exit code: the app's own, unless
// that would hide that the last upload failed.
func (c *container) exit(res supervisor.Result, unsynced error) int {
	code := res.Exit.Code
	if res.Exit.Err != nil {
		fmt.Fprintln(c.out, "slasha-init: "+res.Exit.Err.Error())
	}
	if unsynced != nil && endedWell(res) {
		code = exit.Code(unsynced)
	}
	c.log.Info("exiting", "code", code, "app", res.Exit.String())
	return code
}

// endedWell reports whether the app's exit says nothing that a failed upload
// would hide: it exited with 0, or by the signal that stopped the container, or with
// the code of that, as shells and Java do it.
func endedWell(res supervisor.Result) bool {
	return res.Exit.Code == 0 || res.StopSignal != 0 &&
		(res.Exit.Signal == res.StopSignal || res.Exit.Code == 128+int(res.StopSignal))
}
