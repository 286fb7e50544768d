package volume

import (
	"context"
	"errors"
	"sync"
)

// Member is an instance that has joined a volume. It is safe for concurrent use: a
// follower takes over in the background.
type Member struct {
	v   *Volume
	web *flock // nil for other process types

	mu   sync.Mutex
	role role
}

// role is how a member takes part: leading, following or unlocked.
type role interface {
	leads() bool
	leader() string // "" for one that leads itself
	canLock() bool
	reserve() (release func(), err error)
	leave()
}

func (m *Member) is() role {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.role
}

func (m *Member) become(r role) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.role = r
}

// Leads reports whether this instance restores and replicates the database.
func (m *Member) Leads() bool { return m.is().leads() }

// Leader describes the instance that leads, while this one follows; else it is "".
func (m *Member) Leader() string { return m.is().leader() }

// CanLock reports whether the instances on this volume notice one another. Where they
// don't, a note on the volume about the lease may be another instance's.
func (m *Member) CanLock() bool { return m.is().canLock() }

// AwaitLead waits until the leader is gone and this instance, a follower, leads. Until then
// onLeader gets who leads, several times a second: it may be another instance by now.
// The error is context.Cause(ctx) when ctx ended first. If this instance leads already,
// AwaitLead returns nil at once.
func (m *Member) AwaitLead(ctx context.Context, onLeader func(by string)) error {
	f, follows := m.is().(following)
	if !follows {
		return nil
	}
	for {
		r, by := m.v.tryToLead()
		if r != nil {
			f.leave()
			m.become(r)
			return nil
		}
		if by != "" {
			f.by = by
			m.become(f)
			onLeader(by)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// Reserve keeps instances that follow off the database until release is called. The
// error says why the database must not be replaced: one of them has it open, and would
// go on writing to the file that was set aside.
func (m *Member) Reserve() (release func(), err error) { return m.is().reserve() }

// Leave lets the next instance lead. It comes after the last upload.
func (m *Member) Leave() {
	m.is().leave()
	m.web.release()
	m.v.folder.removeEmpty()
}

// leading is an instance that holds the lead lock.
type leading struct {
	v    *Volume
	lock *flock // leadLock
}

func (leading) leads() bool    { return true }
func (leading) leader() string { return "" }
func (leading) canLock() bool  { return true }

func (l leading) reserve() (release func(), err error) {
	alone, err := l.v.alone(l.v.folder.file(followLock))
	if isHeld(err) {
		return nil, errors.New("another instance on this volume, like a worker, has the database open; stop it first")
	}
	if err != nil {
		l.v.cfg.Logger.Warn("instances that follow will not be noticed", "error", err)
		return func() {}, nil
	}
	return func() {
		alone.release()
		l.v.makeFollowLock()
	}, nil
}

func (l leading) leave() {
	if alone, err := l.v.alone(l.v.folder.file(followLock)); err == nil {
		alone.release() // removes the file, which no follower uses
	}
	l.lock.release()
}

// following is an instance that uses the database of a leader.
type following struct {
	mark *flock // shared with the other followers; nil where it can't be had
	by   string
}

func (following) leads() bool      { return false }
func (f following) leader() string { return f.by }
func (following) canLock() bool    { return true }

func (following) reserve() (release func(), err error) {
	return nil, errors.New("another instance on this volume leads, and this one follows it; ask that one")
}

func (f following) leave() { f.mark.release() }

// unlocked is an instance on a volume without locks. Each one leads there.
type unlocked struct{}

func (unlocked) leads() bool                          { return true }
func (unlocked) leader() string                       { return "" }
func (unlocked) canLock() bool                        { return false }
func (unlocked) reserve() (release func(), err error) { return func() {}, nil }
func (unlocked) leave()                               {}
