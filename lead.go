package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/lock"
	"github.com/slashacom/slasha-init/supervisor"
)

// exitHeld says that another instance holds this database, and did not leave in
// time.
const exitHeld = 75

// askAgain is how often a lock that another instance has is tried.
const askAgain = 100 * time.Millisecond

// What instances on one volume agree on, by locks in our folder:
//
//	web     one web process at a time: SQLite has one writer, and deploys overlap
//	lead    who restores and replicates the database
//	follow  shared by those who use the database and do not lead
//
// The first instance leads. A second web process waits for the first to leave; any
// other type, and a web process beside one that leads, follows: it waits for the
// database, and leaves the rest to the leader until that is gone.

// locks are those that this instance has, by name. They are safe for concurrent
// use: a follower takes over in the background.
type locks struct {
	mu   sync.Mutex
	held map[string]*lock.Lock
	none atomic.Bool // this volume has no locks
}

func (l *locks) has(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held[name] != nil
}

func (l *locks) add(name string, mine *lock.Lock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held == nil {
		l.held = make(map[string]*lock.Lock)
	}
	l.held[name] = mine
}

func (l *locks) release(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if mine := l.held[name]; mine != nil {
		_ = mine.Release()
		delete(l.held, name)
	}
}

// lead makes this the leader of its volume, or a follower. When it returns false
// the container ends with the code.
func (l *life) lead() (code int, ok bool) {
	if l.client == nil || l.following || l.locks.has("lead") {
		return 0, true
	}
	ctx, cancel := l.untilStopped()
	defer cancel()
	if isWeb(l.cfg.Processes.Commands) {
		if code, ok := l.await(ctx, "web"); !ok {
			return code, false
		}
	}
	held := l.tryLock("lead")
	switch {
	case held == nil:
	case l.cfg.RestoreRequest != "":
		// What was asked for must not silently not happen.
		if code, ok := l.await(ctx, "lead"); !ok {
			return code, false
		}
	default:
		l.log.Info("following: the database is restored and replicated by another instance", "leader", held.By)
		return l.follow(ctx, held)
	}
	return 0, true
}

// await takes a lock that another instance may have, for at most --lock-timeout.
func (l *life) await(ctx context.Context, name string) (code int, ok bool) {
	held := l.tryLock(name)
	if held == nil {
		return 0, true
	}
	l.log.Warn("waiting for another instance to leave this database", "instance", held.By, "for", l.cfg.LockTimeout)
	l.enter(healthz.Waiting)
	l.health.Problem("waiting: " + held.Error())
	deadline := time.Now().Add(l.cfg.LockTimeout)
	for time.Now().Before(deadline) {
		wait(ctx, askAgain)
		if l.stopped(&code) {
			return code, false
		}
		if held = l.tryLock(name); held == nil {
			l.health.Problem("")
			l.enter(healthz.Starting)
			return 0, true
		}
	}
	l.log.Error("the app is not started", "error", held, "waited", l.cfg.LockTimeout)
	_ = l.health.Fail(held.Error())
	return exitHeld, false
}

// follow waits until the leader has brought the database, or until this instance
// can lead itself.
func (l *life) follow(ctx context.Context, held *lock.HeldError) (code int, ok bool) {
	l.enter(healthz.Waiting)
	l.health.Problem("waiting for the database: " + held.Error())
	for {
		// Before the look at the database: a leader that is about to replace it
		// asks whether anybody uses it.
		shared, err := l.share()
		if err != nil {
			l.log.Warn("a restore by the leader will not notice this instance", "error", err)
		}
		if fi, err := os.Stat(l.cfg.DBPath); err == nil && fi.Size() > 0 {
			l.following = true
			l.locks.add("follow", shared)
			break
		}
		if shared != nil {
			_ = shared.Release()
		}
		if l.tryLock("lead") == nil {
			break
		}
		wait(ctx, askAgain)
		if l.stopped(&code) {
			return code, false
		}
	}
	l.health.Problem("")
	l.health.Following(l.following)
	l.enter(healthz.Starting)
	return 0, true
}

func (l *life) lockFile(name string) string { return filepath.Join(l.cfg.StateDir(), name+".lock") }

func (l *life) share() (*lock.Lock, error) { return lock.Share(l.lockFile("follow")) }

// tryLock tries to take a lock, and returns who has it when that is another
// instance. Where there can be none, that is told once, and everybody has it.
func (l *life) tryLock(name string) *lock.HeldError {
	if l.locks.has(name) {
		return nil
	}
	if _, err := os.Stat(filepath.Dir(l.cfg.DBPath)); errors.Is(err, os.ErrNotExist) {
		return nil // a restore makes the folder; nobody else is there yet
	}
	var mine *lock.Lock
	err := os.ErrNotExist
	for n := 0; errors.Is(err, os.ErrNotExist) && n < 100; n++ { // who leaves removes an empty folder
		if err = openStateDir(l.cfg); err == nil {
			mine, err = lock.Try(l.lockFile(name), whoWeAre())
		}
	}
	var held *lock.HeldError
	switch {
	case err == nil:
		l.locks.add(name, mine)
	case errors.As(err, &held):
		return held
	case l.locks.none.CompareAndSwap(false, true):
		l.log.Warn("this volume can't be locked: a second instance on it will not be noticed", "error", err)
	}
	return nil
}

// inUse says why the database must not be replaced: an instance that follows has
// it open, and would go on writing to the file that was set aside.
func (l *life) inUse() error {
	if !l.locks.has("lead") {
		return nil // there are no locks
	}
	alone, err := lock.Try(l.lockFile("follow"), "")
	var held *lock.HeldError
	if errors.As(err, &held) {
		return errors.New("another instance on this volume, like a worker, has the database open; stop it first")
	}
	if err == nil {
		_ = alone.Release()
	}
	return nil
}

func whoWeAre() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("host %s, pid %d, since %s", host, os.Getpid(), time.Now().UTC().Format(time.RFC3339))
}

// unlock lets the next one lead. It comes after the last upload.
func (l *life) unlock() {
	if l.client == nil {
		return
	}
	for _, name := range []string{"follow", "lead", "web"} {
		l.locks.release(name)
	}
	_ = os.Remove(l.cfg.StateDir()) // if it is empty: nothing has happened here
}

// takeOver waits until the leader is gone, and reports whether this instance leads
// then. A commit between the two is in the WAL, and is captured from there.
func (l *life) takeOver(ctx context.Context) bool {
	for l.tryLock("lead") != nil {
		if wait(ctx, askAgain); ctx.Err() != nil {
			return false
		}
	}
	l.locks.release("follow")
	l.log.Info("the leader has left: replicating from here now")
	l.health.Following(false)
	return true
}

func isWeb(commands []supervisor.Command) bool {
	return slices.ContainsFunc(commands, func(c supervisor.Command) bool { return c.Type == web })
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
