package volume

import (
	"cmp"
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/slashacom/slasha-init/internal/wait"
)

// tryEvery is how often an instance tries a lock that another one holds.
const tryEvery = 100 * time.Millisecond

// Joining says how an instance joins. Only Ready is required.
type Joining struct {
	// Web says that this instance runs a web process, of which there is one at a time.
	Web bool

	// Patience is for how long the instance waits for another one to leave.
	Patience time.Duration

	// Due reports whether a restore was requested and is still to be made. An instance
	// with such a request waits until it can lead: a leader without the request would
	// ignore it. It is called again and again while the instance waits.
	Due func() bool

	// Ready reports whether the database is there and whole, so that this instance can
	// follow. A leader that died while it replaced the database leaves it without its
	// WAL, for example. It is called again and again while the instance waits.
	Ready func() bool

	// OnWaiting gets a sentence that says why this instance waits, each time when it
	// begins to wait, and "" when it goes on. It gets no "" when Join fails.
	OnWaiting func(sentence string)
}

// Join takes part in the volume. It returns when this instance leads, or when it
// follows and the database is ready. The error is a *HeldError when another instance
// did not leave within Patience, and context.Cause(ctx) when ctx ended. After an error
// there is nothing to leave.
//
// On a volume without locks, such as some network file systems, Join logs a warning
// and every instance leads.
func (v *Volume) Join(ctx context.Context, j Joining) (*Member, error) {
	if j.Due == nil {
		j.Due = func() bool { return false }
	}
	if j.OnWaiting == nil {
		j.OnWaiting = func(string) {}
	}
	// Without a folder there can be no locks, and two instances that start at once would
	// both lead. If the folder can't be made, the restore reports that.
	_ = MakeFolder(filepath.Dir(v.cfg.DBPath))
	m := &Member{v: v, role: unlocked{}}
	if err := m.join(ctx, j); err != nil {
		m.Leave()
		return nil, err
	}
	return m, nil
}

func (m *Member) join(ctx context.Context, j Joining) (err error) {
	if j.Web {
		if m.web, _, err = m.v.await(ctx, j, webLock, func() bool { return true }); err != nil {
			return err
		}
	}
	lock, held, err := m.v.await(ctx, j, leadLock, j.Due)
	if err != nil {
		return err
	}
	if held == nil {
		m.role = m.v.roleWith(lock)
		return nil
	}
	r, err := m.v.follow(ctx, j, held)
	if err == nil {
		m.role = r
	}
	return err
}

// await takes a lock, and waits for another instance that holds it as long as the lock
// is wanted. It returns the holder when the lock is not wanted (any more), and an error,
// a *HeldError, when the holder did not leave within j.Patience.
func (v *Volume) await(ctx context.Context, j Joining, name string, wanted func() bool) (*flock, *HeldError, error) {
	l, held := v.tryHeld(name)
	if held == nil || !wanted() {
		return l, held, nil
	}
	v.cfg.Logger.Warn("waiting for another instance to leave this database", "instance", held.By, "for", j.Patience)
	j.OnWaiting("waiting: " + held.Error())
	for deadline := time.Now().Add(j.Patience); time.Now().Before(deadline); {
		if err := pause(ctx); err != nil {
			return nil, nil, err
		}
		still := wanted()
		if l, held = v.tryHeld(name); held == nil || !still {
			j.OnWaiting("")
			return l, held, nil
		}
	}
	return nil, nil, held
}

// follow waits until the leader has brought the database, or until this instance can
// lead itself.
func (v *Volume) follow(ctx context.Context, j Joining, held *HeldError) (role, error) {
	v.cfg.Logger.Info("following: the database is restored and replicated by another instance", "leader", held.By)
	j.OnWaiting("waiting for the database: " + held.Error())
	for {
		if r, ok := v.use(j.Ready, held.By); ok {
			j.OnWaiting("")
			return r, nil
		}
		r, by := v.tryToLead()
		if r != nil {
			j.OnWaiting("")
			return r, nil
		}
		held.By = cmp.Or(by, held.By)
		if err := pause(ctx); err != nil {
			return nil, err
		}
	}
}

// use marks the database as in use by an instance that follows, if it is ready. The mark
// comes before the look at the database: a leader that is about to replace it holds the
// mark alone.
func (v *Volume) use(ready func() bool, leader string) (following, bool) {
	mark, err := v.open(followLock, lockShared)
	if isHeld(err) {
		return following{}, false
	}
	if !ready() {
		mark.release()
		return following{}, false
	}
	if err != nil {
		v.cfg.Logger.Warn("the leader will not notice this instance when it restores", "error", err)
	}
	return following{mark, leader}, true
}

// tryToLead makes the role of an instance that leads from now on, or returns nil and who
// leads instead. It does not wait. As long as the database's folder is gone, nobody can
// know who leads: apps replace their whole data folder by renames.
func (v *Volume) tryToLead() (r role, by string) {
	l, err := v.try(leadLock)
	if held, ok := errors.AsType[*HeldError](err); ok {
		return nil, held.By
	}
	if err != nil {
		return nil, ""
	}
	return v.roleWith(l), ""
}

// roleWith is the role of an instance that leads: with the lead lock, or nil where there
// are no locks.
func (v *Volume) roleWith(l *flock) role {
	if l == nil {
		return unlocked{}
	}
	v.makeFollowLock()
	return leading{v, l}
}

// pause waits until it is time to try again. The error is context.Cause(ctx).
func pause(ctx context.Context) error {
	if !wait.For(ctx, tryEvery) {
		return context.Cause(ctx)
	}
	return nil
}
