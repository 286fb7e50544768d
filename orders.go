package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/slashacom/slasha-init/control"
	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/restore"
	"github.com/slashacom/slasha-init/supervisor"
)

// orders are the restores that somebody asks for while the app runs: one at a
// time, and only as long as the app could still be stopped for it.
type orders struct {
	mu    sync.Mutex
	abort chan struct{} // closed by an order; nil while none is taken
	order *order        // under way
}

// order is a restore that was asked for, or one that the replica asks for: the
// database has turned out to be stale. Or it is the end: the lease is lost.
type order struct {
	control.Order
	stale bool
	lost  bool      // all that is wanted is the end
	done  chan done // has room for one
}

type done struct {
	control.Restored
	err error
}

func newOrder(o control.Order) *order { return &order{Order: o, done: make(chan done, 1)} }

// open lets orders come in. The channel is closed by the first.
func (o *orders) open() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.abort = make(chan struct{})
	return o.abort
}

// acceptOrders lets orders come in, from the one that came too early on.
func (l *life) acceptOrders() <-chan struct{} {
	abort := l.orders.open()
	l.stopForLost()
	return abort
}

// place hands an order in, and reports whether it was accepted.
func (o *orders) place(asked *order) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.abort == nil || o.order != nil {
		return false
	}
	o.order = asked
	close(o.abort)
	return true
}

// close lets no more orders in, and reports whether there is one after which the
// app is started again.
func (o *orders) close() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.abort = nil
	return o.order != nil && !o.order.lost
}

// client is the pid of who gave the order, or 0.
func (o *orders) client() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.order == nil {
		return 0
	}
	return o.order.PID
}

// take returns the order that the app was stopped for, or nil.
func (o *orders) take(res supervisor.Result) *order {
	o.close()
	o.mu.Lock()
	defer o.mu.Unlock()
	taken := o.order
	o.order = nil
	if taken != nil && !res.Aborted {
		taken.done <- done{err: &control.Refusal{Why: "the container is stopping; nothing was restored"}}
		return nil
	}
	return taken
}

// openControl opens the control socket, on the instance that leads. A container
// without it still does what it is for, so where it can't be had that is told, and
// no more.
func (l *life) openControl() {
	if l.cfg.ControlSocket == "" || l.following.Load() {
		return
	}
	cfg := control.Config{
		Path:    l.cfg.ControlSocket,
		Sync:    l.sync,
		Restore: l.restoreNow,
		Status:  l.health.Handler(),
		Logger:  l.log,
	}
	cfg.May = l.mayAsk
	err := openStateDir(l.cfg)
	if err == nil {
		l.socket, err = control.Listen(context.Background(), cfg)
	}
	if err != nil {
		l.log.Warn("there is no control socket: sync and restore --now don't work in this container", "error", err)
	}
}

// mayAsk lets the app's user ask, and those who can put another file in the
// database's place anyway: instances on this volume can be of several users.
func (l *life) mayAsk(uid, gid uint32) bool {
	if u := l.cfg.Processes.User; u != nil && u.UID == uid {
		return true
	}
	fi, err := os.Stat(filepath.Dir(l.cfg.DBPath))
	if err != nil {
		return false
	}
	may := writers(fi)
	owner, ok := fi.Sys().(*syscall.Stat_t)
	return may&0o002 != 0 || ok && (may&0o020 != 0 && owner.Gid == gid || may&0o200 != 0 && owner.Uid == uid)
}

// writers are the bits of those who may put a file into the place of another's in a
// folder. In one like /tmp, with the sticky bit, only owners may.
func writers(fi os.FileInfo) os.FileMode {
	if fi.Mode()&os.ModeSticky != 0 {
		return fi.Mode() & 0o200
	}
	return fi.Mode() & 0o222
}

// openStateDir makes our folder, and lets the app's user pass through it to the
// socket. Whoever may write the folder around it may write this one too: an instance
// of another user takes over from the one that made it.
func openStateDir(cfg Config) error {
	if !cfg.Enabled() {
		return nil
	}
	mode := os.FileMode(0o711)
	if fi, err := os.Stat(filepath.Dir(cfg.StateDir())); err == nil {
		for _, class := range []os.FileMode{0o070, 0o007} {
			if writers(fi)&class != 0 {
				mode |= class
			}
		}
	}
	if err := os.MkdirAll(cfg.StateDir(), mode); err != nil {
		return err
	}
	if err := os.Chmod(cfg.StateDir(), mode); err != nil && !errors.Is(err, os.ErrPermission) {
		return err // and if it is another user's, that one has done it
	}
	return nil
}

func (l *life) closeControl() {
	if l.socket != nil {
		if err := l.socket.Close(); err != nil {
			l.log.Debug("closing the control socket", "error", err)
		}
	}
}

// errNoBackups refuses what only a container with backups can do.
var errNoBackups = &control.Refusal{Why: "backups are off in this container: neither --db-path nor --bucket is set"}

// sync returns when everything that is committed now is in the replica.
func (l *life) sync(ctx context.Context) (control.Synced, error) {
	if l.client == nil {
		return control.Synced{}, errNoBackups
	}
	r := l.replicator.Load()
	if r == nil {
		return control.Synced{}, &control.Refusal{Why: fmt.Sprintf("the container is %s: nothing is replicated now", l.health.Status().Phase)}
	}
	txid, err := r.Sync(ctx)
	if err != nil || txid == 0 {
		return control.Synced{}, err
	}
	return control.Synced{TXID: txid.String()}, nil
}

// foreseeing is for how long the replica is asked whether a restore is possible
// before the app is stopped for it.
const foreseeing = 20 * time.Second

// restoreNow hands a restore to the container's life and returns with its
// outcome. It refuses what is known not to work while the app still runs.
func (l *life) restoreNow(ctx context.Context, asked control.Order) (control.Restored, error) {
	if l.client == nil {
		return control.Restored{}, errNoBackups
	}
	if phase := l.health.Status().Phase; phase != healthz.Running {
		return control.Restored{}, &control.Refusal{Why: fmt.Sprintf("the container is %s; a restore can be made while it runs", phase)}
	}
	if l.following.Load() {
		return control.Restored{}, &control.Refusal{Why: "another instance on this volume leads; ask that one"}
	}
	release, err := l.reserve()
	if err != nil {
		return control.Restored{}, &control.Refusal{Why: err.Error() + "; the app goes on"}
	}
	release()
	look, cancel := context.WithTimeout(ctx, foreseeing)
	defer cancel()
	if _, err := restore.Foresee(look, l.restoreConfig(restore.Config{Timestamp: asked.Timestamp})); err != nil {
		if look.Err() != nil {
			err = errors.New("the replica does not answer")
		}
		return control.Restored{}, &control.Refusal{Why: "this can't be restored: " + err.Error() + "; the app goes on"}
	}
	o := newOrder(asked)
	if !l.orders.place(o) {
		return control.Restored{}, &control.Refusal{Why: "another restore is under way, or the container is stopping"}
	}
	to := "newest"
	if !asked.Timestamp.IsZero() {
		to = asked.Timestamp.UTC().Format(time.RFC3339Nano)
	}
	l.log.Info("a restore was asked for on the control socket: the app is stopped for it, and started again", "to", to, "pid", asked.PID)
	outcome := <-o.done
	return outcome.Restored, outcome.err
}

// comply restores as ordered. No process of the app runs, and what it wrote is
// in the replica; unsynced is why not. Whatever comes of it, the app is started
// again, on what was restored or on what it had, as long as the container is not
// to stop.
func (l *life) comply(o *order, r *replication, unsynced error) (code int, ok bool) {
	switch {
	case o.lost:
		return l.lostLease()
	case o.stale:
		return l.restore() // decides by the facts, as at a start
	}
	if unsynced != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		r.release(ctx)
		o.done <- done{err: fmt.Errorf("what the app wrote last can't be uploaded, so nothing was restored and the app goes on: %w", unsynced)}
		return l.restore()
	}
	out, err := l.bring(restore.Config{Force: true, Timestamp: o.Timestamp})
	restored := done{Restored: control.Restored{
		TXID: out.Progress.TXID.String(), Bytes: out.Progress.BytesDone,
		TookSeconds: out.Progress.Took.Seconds(), SetAside: out.Aside,
	}}
	switch {
	case l.stopped(&code) && out.Restored:
		o.done <- restored
		return code, false
	case code != 0:
		o.done <- done{err: &control.Refusal{Why: "the container was stopped; the database is as it was"}}
		return code, false
	case err != nil:
		l.log.Error("the restore that was asked for failed: the app goes on with the database that it had", "error", err)
		o.done <- done{err: fmt.Errorf("%w; the app goes on with the database that it had", err)}
		return l.restore() // ends what was begun, and looks at the facts again
	}
	l.enter(healthz.Starting)
	o.done <- restored
	return 0, true
}
