// Package lease keeps a second uploader off a replica. SQLite has one writer, and
// its replica must have one too: two that upload at the same time, or one that was
// thought dead and wakes up, make a replica that restores to what neither had.
//
// A lease is a small record in the replica that is written only on the condition
// that it is still the one that was read. Its holder writes it anew every third of
// its time to live (TTL), and stops uploading before the TTL has passed since the
// last time that this worked. An instance that wants it waits until the record has not
// changed for a whole TTL, on a clock of its own: no two clocks are ever compared,
// so they may be minutes apart.
//
// A lease can't stop an upload that was handed to the network while the lease was
// valid and arrives only when the TTL is over. The last sixth of the TTL is left free
// for such an upload to arrive.
package lease

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/slashacom/slasha-init/internal/durable"
	"github.com/slashacom/slasha-init/internal/exit"
)

// Store keeps the record. Both methods are asked by one goroutine at a time.
type Store interface {
	// Read returns the record, a tag that stands for this content, and how long ago
	// it was written, by the clock of the one who keeps it (0: not known). The error
	// is os.ErrNotExist when there is none.
	Read(ctx context.Context) (data []byte, tag string, age time.Duration, err error)
	// Write writes the record if it has the tag, or with an empty tag if there is
	// none. The error is os.ErrExist when that is not so, and errors.ErrUnsupported
	// when the place does not support conditions.
	Write(ctx context.Context, data []byte, ifTag string) (tag string, err error)
}

// Config is what a Lease needs. Store and TTL are required.
type Config struct {
	Store Store
	TTL   time.Duration

	// Host names this instance for people.
	Host string
	// Replica names the place for the memory (see RememberIn): where conditions have
	// been seen to work.
	Replica string

	// OnState is called with each new state, by the goroutine that found it. It must
	// neither block nor ask the lease. Optional.
	OnState func(State)

	Logger *slog.Logger // default: slog.Default()
}

// Name is what a lease is in. The words stand in the health page.
type Name string

// The states of a lease.
const (
	Unknown     Name = "unknown"     // the replica has not answered yet
	Waiting     Name = "waiting"     // another instance holds it
	Held        Name = "held"        // ours
	Lapsed      Name = "lapsed"      // ours, but not renewed in time: nothing is uploaded
	Lost        Name = "lost"        // another instance has taken it, for good
	Unsupported Name = "unsupported" // the replica does not support conditions, so there is no lease
	Released    Name = "released"    // given back
)

// State is a lease at a moment.
type State struct {
	Name   Name
	Epoch  uint64 // ours; 0 before we had it
	Holder string // of Waiting and Lost: who has it
}

// HeldError says that another instance has the lease.
type HeldError struct{ By string }

func (e *HeldError) Error() string {
	return "another instance holds this replica's lease: " + e.By
}

// ExitCode is exit.Held.
func (e *HeldError) ExitCode() int { return exit.Held }

// LostError says that another instance has taken the lease that was ours.
type LostError struct{ By string }

func (e *LostError) Error() string {
	return "another instance has taken this replica's lease: " + e.By
}

// ExitCode is exit.Held.
func (e *LostError) ExitCode() int { return exit.Held }

// Final is true: this instance may never write the replica again.
func (e *LostError) Final() bool { return true }

// NotHeldError says that nothing may be written, for now.
type NotHeldError struct {
	Err error // why it could not be had, or not be renewed; nil if nobody has tried yet
}

func (e *NotHeldError) Error() string {
	if e.Err == nil {
		return "the replica's lease is not held yet: nothing is uploaded until it is"
	}
	return "the replica's lease is not held, so nothing is uploaded: " + e.Err.Error()
}

func (e *NotHeldError) Unwrap() error { return e.Err }

// Lease is one start's claim on a replica. Take, Keep, Check and Release are safe
// for concurrent use, and so is Do.
type Lease struct {
	cfg   Config
	clock func() at
	fence fence

	turn chan struct{} // has room for one: the goroutine that has put into it may use the store

	mu       sync.Mutex
	p        protocol
	note     *durable.Note // of the memory; nil where there is none
	memory   memory
	state    State
	failure  error // of the newest try, nil when it worked
	answered at    // when the newest try that worked was made
}

// New returns a lease that is not held. It makes no request.
func New(cfg Config) *Lease { return newLease(cfg, clock) }

func newLease(cfg Config, clock func() at) *Lease {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	l := &Lease{
		cfg:   cfg,
		clock: clock,
		turn:  make(chan struct{}, 1),
		p: protocol{
			me:     rand.Text(),
			ttl:    cfg.TTL,
			margin: cfg.TTL / margins,
			poll:   min(time.Second, cfg.TTL/margins),
			retry:  min(2*time.Second, cfg.TTL/margins/2),
		},
		state: State{Name: Unknown},
	}
	l.p.rec = record{Owner: l.p.me, TTLSeconds: cfg.TTL.Seconds(), Host: cfg.Host}
	l.fence.init(l.isOpen)
	return l
}

// RememberIn says where the memory lies: a note on the volume whose lock we hold. What
// this volume's last start held is taken back at once then. Call it before Take and
// Keep. A nil note is for a volume that can't be locked: it remembers nothing.
func (l *Lease) RememberIn(note *durable.Note) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.note = note
}

// Take returns when the lease is held, or can't be: the error is a *HeldError when
// ctx has ended while another instance had it, and errors.ErrUnsupported when no
// instance can ever have it here. Any other is that of the store, when it did not
// answer at first, or of ctx.
func (l *Lease) Take(ctx context.Context) error {
	l.recall()
	for {
		if err := l.settled(); err != nil || l.State().Name == Held {
			return err
		}
		err := l.step(ctx)
		switch s := l.State(); {
		case err == nil:
		case s.Name != Waiting:
			return err
		case ctx.Err() != nil:
			return &HeldError{By: s.Holder}
		}
		// That the store is away for a while does not mean that the holder is gone.
	}
}

// Keep renews the lease until ctx ends, and takes it first where it is not held
// yet. It returns the error of ctx, a *LostError, errors.ErrUnsupported, or a
// *HeldError: another instance has had it for longer than patience, and this one
// never.
func (l *Lease) Keep(ctx context.Context, patience time.Duration) error {
	l.recall()
	var since at // of another's holding it
	for {
		if err := l.settled(); err != nil {
			return err
		}
		// What fails is in the state, and the protocol knows when to try again.
		_ = l.step(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s := l.State()
		switch {
		case s.Name != Waiting:
			since = 0
		case since == 0:
			since = l.clock()
		case l.clock()-since > patience:
			return &HeldError{By: s.Holder}
		}
	}
}

// settled returns the error of a state that does not change any more.
func (l *Lease) settled() error {
	switch s := l.State(); s.Name {
	case Lost:
		return &LostError{By: s.Holder}
	case Unsupported:
		return fmt.Errorf("%w: the replica ignores conditions", errors.ErrUnsupported)
	case Released:
		return errors.New("the lease was given back")
	}
	return nil
}

// recall reads what the volume's last start left, once, and notes there that this
// one is about to write its name. Where that can't be noted, the next start has to
// wait for this one's lease.
func (l *Lease) recall() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.p.mine != nil || l.note == nil {
		return
	}
	m, err := load(*l.note)
	if err != nil {
		l.cfg.Logger.Warn("can't read which lease the last start here held, so this start waits for it", "error", err)
	}
	if err := m.with(l.p.me).save(*l.note); err != nil {
		l.cfg.Logger.Warn("the next start here will have to wait for this one's lease", "error", err)
	}
	l.memory = m
	l.p.mine = append([]string{}, m.Owners...)
	l.p.epochs = max(l.p.epochs, m.Epoch)
}

// longestAsk is how long one request may take. Requests are small, so one that takes
// longer is better made again.
const longestAsk = 5 * time.Second

// step does the next thing that is due, or rests until it is.
func (l *Lease) step(ctx context.Context) error {
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-l.turn }()

	m, known, first := l.next()
	ask, cancel := context.WithTimeout(ctx, min(max(l.cfg.TTL/margins, time.Second), longestAsk))
	defer cancel()
	switch m.kind {
	case stop:
		return nil
	case rest:
		if !l.pause(ctx, m.until-l.clock()) {
			return ctx.Err()
		}
		return nil
	case read:
		f, err := l.read(ask)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		l.saw(f, err)
		return err
	case write:
		tag, err := l.write(ask, m.rec, m.ifTag)
		if err == nil && first && !known {
			err = l.probe(ask, m.rec)
			if errors.Is(err, errors.ErrUnsupported) {
				// No instance should wait for a lease that keeps nobody off.
				gone := m.rec
				gone.Released = true
				_, _ = l.write(ask, gone, tag)
			}
		}
		l.wrote(m.rec, tag, err)
		if errors.Is(err, os.ErrExist) || errors.Is(err, errors.ErrUnsupported) {
			return nil
		}
		return err
	}
	return nil
}

// next returns the protocol's next move, whether conditions are known to work here, and
// whether the lease would be ours for the first time.
func (l *Lease) next() (m move, known, first bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m = l.p.next(l.clock())
	return m, l.note != nil && l.memory.Replica == l.cfg.Replica, !l.p.owned
}

func (l *Lease) read(ctx context.Context) (*found, error) {
	data, tag, age, err := l.cfg.Store.Read(ctx)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return &found{rec: decode(data), tag: tag, age: age}, nil
}

func (l *Lease) write(ctx context.Context, rec record, ifTag string) (string, error) {
	rec.RenewedAt = time.Now().UTC()
	return l.cfg.Store.Write(ctx, rec.encode(), ifTag)
}

// noTag is a tag that no content has.
const noTag = `"00000000000000000000000000000000"`

// probe makes writes that must be refused, now that the record is ours to spoil. Some
// services ignore a condition that they don't know.
func (l *Lease) probe(ctx context.Context, rec record) error {
	for _, wrong := range []string{"", noTag} {
		_, err := l.write(ctx, rec, wrong)
		switch {
		case err == nil:
			return fmt.Errorf("%w: conditions are ignored", errors.ErrUnsupported)
		case !errors.Is(err, os.ErrExist):
			return err
		}
	}
	return nil
}

func (l *Lease) saw(f *found, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failure = err
	if err != nil {
		l.p.failedToRead(l.clock())
		l.judge()
		return
	}
	l.answered = l.p.sent
	l.p.saw(l.clock(), f)
	l.judge()
}

func (l *Lease) wrote(rec record, tag string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failure = nil
	now := l.clock()
	switch {
	case err == nil:
		l.answered = l.p.sent
		first := !l.p.owned
		l.p.wrote(now, written, tag)
		l.fence.opened()
		if first {
			l.remember(memory{Owners: []string{l.p.me}, Epoch: rec.Epoch, Replica: l.cfg.Replica})
		}
	case errors.Is(err, os.ErrExist):
		l.p.wrote(now, conflict, "")
	case errors.Is(err, errors.ErrUnsupported):
		l.cfg.Logger.Warn("the replica's service does not support conditional writes: a second instance on another volume will not be noticed", "error", err)
		l.set(State{Name: Unsupported})
		return
	default:
		l.failure = err
		l.p.wrote(now, failed, "")
	}
	l.judge()
}

func (l *Lease) remember(m memory) {
	if l.note == nil {
		return
	}
	if err := m.save(*l.note); err != nil {
		l.cfg.Logger.Warn("the next start here will probe the replica's service again", "error", err)
	}
	l.memory = m
}

// judge sets the state that the protocol is in now.
func (l *Lease) judge() {
	now := l.clock()
	switch {
	case l.p.phase == lost:
		l.set(State{Name: Lost, Epoch: l.p.rec.Epoch, Holder: l.p.seen.rec.holder()})
		l.fence.close()
	case l.p.open(now):
		l.set(State{Name: Held, Epoch: l.p.rec.Epoch})
	case l.p.owned:
		l.set(State{Name: Lapsed, Epoch: l.p.rec.Epoch})
	case l.p.phase == waiting:
		l.set(State{Name: Waiting, Holder: l.p.seen.rec.holder()})
	}
}

func (l *Lease) set(s State) {
	if l.state == s || l.state.Name == Released {
		return
	}
	l.state = s
	if l.cfg.OnState != nil {
		l.cfg.OnState(s)
	}
}

// State returns the state of the moment.
func (l *Lease) State() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state.Name == Held {
		l.judge()
	}
	return l.state
}

// Check returns why the newest request for the lease has failed, or whether one
// has worked within the given time. It makes no request: renewals do.
func (l *Lease) Check(within time.Duration) (fresh bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.p.owned && l.clock()-l.answered < within, l.failure
}

// Release gives the lease back, so that the next one need not wait. Nothing is
// written after it, whatever its outcome.
func (l *Lease) Release(ctx context.Context) error {
	l.fence.close()
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-l.turn }()
	l.mu.Lock()
	was, rec, tag, owned := l.state.Name, l.p.rec, l.p.tag, l.p.owned
	l.set(State{Name: Released, Epoch: rec.Epoch})
	l.mu.Unlock()
	if rec.Renewal == 0 || was == Lost || was == Unsupported || was == Released {
		return nil // nothing was ever written, or nothing there is ours
	}
	rec.Released = true
	for range 3 {
		if owned {
			rec.Renewal++
			_, err := l.write(ctx, rec, tag)
			if !errors.Is(err, os.ErrExist) {
				return err
			}
		}
		// The record is a write of ours whose answer was lost, our own release, or another
		// instance's.
		f, err := l.read(ctx)
		if err != nil || f == nil || f.rec.Owner != l.p.me || f.rec.Released {
			return err
		}
		owned, tag, rec.Renewal = true, f.tag, max(rec.Renewal, f.rec.Renewal)
	}
	return nil
}

// pause reports whether the time has passed without ctx ending.
func (l *Lease) pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
