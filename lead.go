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
	"github.com/slashacom/slasha-init/restore"
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
// The first instance leads. Where it replaces the database, it has follow for itself
// as long as that takes. A second web process waits for the first to leave; any
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
	if l.client == nil {
		return 0, true
	}
	ctx, cancel := l.untilStopped()
	defer cancel()
	// Without a folder there can be no locks, and two that start at once would both
	// lead. What is wrong with it is told by the restore.
	_ = restore.MakeFolder(filepath.Dir(l.cfg.DBPath))
	if isWeb(l.cfg.Processes.Commands) {
		if code, ok := l.await(ctx, "web", func() bool { return true }); !ok {
			return code, false
		}
	}
	// What was asked for must not silently not happen: a restore that is still to be
	// made is waited for, and not left to the leader.
	if code, ok := l.await(ctx, "lead", l.restoreIsDue); !ok {
		return code, false
	}
	if held := l.tryLock("lead"); held != nil {
		l.log.Info("following: the database is restored and replicated by another instance", "leader", held.By)
		return l.follow(ctx, held)
	}
	l.keepFollowLock()
	return 0, true
}

// restoreIsDue reports whether a restore was asked for that has not been made.
func (l *life) restoreIsDue() bool {
	return restore.IsDue(l.restoreConfig(restore.Config{Request: l.cfg.RestoreRequest}))
}

// lockVolume keeps containers off the volume while a person restores into the place
// of the database. The error is a *lock.HeldError when one runs.
func lockVolume(cfg Config) (unlock func(), err error) {
	if err := restore.MakeFolder(filepath.Dir(cfg.DBPath)); err != nil {
		return nil, err
	}
	if err := openStateDir(cfg); err != nil {
		return nil, err
	}
	mine, err := lock.Try(filepath.Join(cfg.StateDir(), "lead.lock"), "slasha-init restore, "+whoWeAre())
	var held *lock.HeldError
	switch {
	case errors.As(err, &held):
		return nil, err
	case err != nil:
		return func() {}, nil //nolint:nilerr // a volume without locks
	}
	return func() {
		_ = mine.Release()
		_ = os.Remove(cfg.StateDir()) // if it is empty
	}, nil
}

// keepFollowLock makes the file that followers share, as the leader: their user may
// be one that can't make files here.
func (l *life) keepFollowLock() {
	if l.locks.none.Load() {
		return
	}
	f, err := os.OpenFile(l.lockFile("follow"), os.O_RDONLY|os.O_CREATE, 0o644)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		l.log.Debug("the followers' lock", "error", err)
	}
}

// await takes a lock that another instance may have, for at most --lock-timeout and
// as long as it is wanted.
func (l *life) await(ctx context.Context, name string, wanted func() bool) (code int, ok bool) {
	if !wanted() {
		return 0, true
	}
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
		if !wanted() {
			held = nil
		} else {
			held = l.tryLock(name)
		}
		if held == nil {
			l.health.Problem("")
			l.enter(healthz.Starting)
			return 0, true
		}
	}
	l.log.Error("the app is not started", "error", held, "waited", l.cfg.LockTimeout)
	_ = l.health.Fail(held.Error())
	return exitHeld, false
}

// following is what health says of the lease of an instance that follows.
const following = "following"

// follow waits until the leader has brought the database, or until this instance
// can lead itself.
func (l *life) follow(ctx context.Context, held *lock.HeldError) (code int, ok bool) {
	l.enter(healthz.Waiting)
	l.health.Problem("waiting for the database: " + held.Error())
	for !l.followed() {
		there := l.tryLock("lead")
		if there == nil {
			l.keepFollowLock()
			break
		}
		held = there
		wait(ctx, askAgain)
		if l.stopped(&code) {
			return code, false
		}
	}
	l.health.Problem("")
	l.health.Following(l.following.Load())
	if l.following.Load() {
		l.health.Lease(healthz.Lease{State: following, Holder: held.By})
	}
	l.enter(healthz.Starting)
	return 0, true
}

// followed reports whether the database is there to be followed, and then marks it
// as in use. That comes before the look at it: a leader that is about to replace it
// has the mark for itself.
func (l *life) followed() bool {
	shared, err := lock.Share(l.lockFile("follow"))
	var held *lock.HeldError
	if errors.As(err, &held) {
		return false
	}
	// A leader that died while it replaced the database leaves it without its WAL.
	if fi, statErr := os.Stat(l.cfg.DBPath); statErr != nil || fi.Size() == 0 || restore.Interrupted(l.cfg.DBPath, l.cfg.StateDir()) {
		if shared != nil {
			_ = shared.Release()
		}
		return false
	}
	if err != nil {
		l.log.Warn("a restore by the leader will not notice this instance", "error", err)
	}
	l.following.Store(true)
	l.locks.add("follow", shared)
	return true
}

func (l *life) lockFile(name string) string { return filepath.Join(l.cfg.StateDir(), name+".lock") }

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

// reserve keeps instances that follow off the database until it is released, or
// says why it must not be replaced: one of them has it open, and would go on
// writing to the file that was set aside.
func (l *life) reserve() (release func(), err error) {
	if l.locks.none.Load() {
		return func() {}, nil
	}
	if !l.locks.has("lead") {
		return nil, errors.New("another instance on this volume leads, and this one follows it; ask that one")
	}
	alone, err := lock.Try(l.lockFile("follow"), whoWeAre())
	var held *lock.HeldError
	switch {
	case errors.As(err, &held):
		return nil, errors.New("another instance on this volume, like a worker, has the database open; stop it first")
	case err != nil:
		l.log.Warn("instances that follow will not be noticed", "error", err)
		return func() {}, nil
	}
	return func() {
		_ = alone.Release()
		l.keepFollowLock()
	}, nil
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
	if l.locks.has("lead") {
		if alone, err := lock.Try(l.lockFile("follow"), ""); err == nil {
			_ = alone.Release() // and its file with it
		}
	}
	for _, name := range []string{"follow", "lead", "web"} {
		l.locks.release(name)
	}
	_ = os.Remove(l.cfg.StateDir()) // if it is empty: nothing has happened here
}

// takeOver waits until the leader is gone, and reports whether this instance leads
// then. A commit between the two is in the WAL, and is captured from there.
func (l *life) takeOver(ctx context.Context) bool {
	for {
		held := l.tryLock("lead")
		if held == nil {
			break
		}
		l.health.Lease(healthz.Lease{State: following, Holder: held.By}) // it may be another one by now
		if wait(ctx, askAgain); ctx.Err() != nil {
			return false
		}
	}
	l.locks.release("follow")
	l.keepFollowLock()
	l.following.Store(false)
	l.log.Info("the leader has left: replicating from here now")
	l.health.Following(false)
	if l.claim.lease != nil {
		l.health.LeaseBy(l.leaseStatus)
		// Where another host has taken it meanwhile, replication begins all the same:
		// it says that nothing is uploaded, and why.
		taking, cancel := context.WithTimeout(ctx, answering)
		defer cancel()
		_ = l.claim.lease.Take(taking)
		l.keepLease()
	} else {
		l.health.Lease(healthz.Lease{State: "off"})
	}
	l.openControl()
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
