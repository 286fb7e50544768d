package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/control"
	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/replica/lease"
	"github.com/slashacom/slasha-init/replica/storage"
	"github.com/slashacom/slasha-init/replicate"
)

// What instances on different volumes agree on, by a lease in the bucket: who may
// write the replica. On one volume, the locks have settled that before (see
// lead.go), and so whoever leads a volume may take back what it held last.

// leaseName is the record's name in our folder of the replica.
const leaseName = "lease.json"

// leased is the replica as this container may write it: as long as it holds the
// lease.
type leased struct {
	*storage.Client
	lease   *lease.Lease
	checked atomic.Int64 // when the replica answered a check, in nanoseconds of Unix time
}

func (c *leased) WriteLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, r io.Reader) (info *ltx.FileInfo, err error) {
	err = c.lease.Do(ctx, func(ctx context.Context) error {
		info, err = c.Client.WriteLTXFile(ctx, level, minTXID, maxTXID, c.lease.Reader(r))
		return err
	})
	return info, barred(err)
}

func (c *leased) DeleteLTXFiles(ctx context.Context, files []*ltx.FileInfo) error {
	return barred(c.lease.Do(ctx, func(ctx context.Context) error { return c.Client.DeleteLTXFiles(ctx, files) }))
}

// LTXFiles lists what the replica has, and fails where that may be another instance's:
// its transactions have the same numbers as those that are missing of ours, which would
// pass for uploaded.
func (c *leased) LTXFiles(ctx context.Context, level int, seek ltx.TXID, useMetadata bool) (ltx.FileIterator, error) {
	itr, err := c.Client.LTXFiles(ctx, level, seek, useMetadata)
	if err != nil {
		return nil, err
	}
	return ownFiles{itr, c.lease}, nil
}

// ownFiles says at its end whether what it has listed is ours.
type ownFiles struct {
	ltx.FileIterator
	lease *lease.Lease
}

func (f ownFiles) Err() error   { return barred(cmp.Or(f.FileIterator.Err(), f.lease.Valid())) }
func (f ownFiles) Close() error { return barred(cmp.Or(f.FileIterator.Close(), f.lease.Valid())) }

// barred marks what no later try can change.
func barred(err error) error {
	var lost *lease.LostError
	if errors.As(err, &lost) {
		return fmt.Errorf("%w: %w", replicate.ErrBarred, err)
	}
	return err
}

// Check makes a request only where no renewal of the lease has been made of late.
func (c *leased) Check(ctx context.Context) error {
	fresh, err := c.lease.Check(checkInterval)
	if err != nil || fresh || time.Since(time.Unix(0, c.checked.Load())) < checkInterval {
		return err
	}
	if err := c.Client.Check(ctx); err != nil {
		return err
	}
	c.checked.Store(time.Now().UnixNano())
	return nil
}

// leaseStore keeps the record in the replica.
type leaseStore struct{ *storage.Client }

func (s leaseStore) Read(ctx context.Context) (data []byte, tag string, age time.Duration, err error) {
	own, err := s.ReadOwn(ctx, leaseName)
	return own.Data, own.Tag, own.Age, err
}

func (s leaseStore) Write(ctx context.Context, data []byte, ifTag string) (string, error) {
	return s.WriteOwn(ctx, leaseName, data, ifTag)
}

// claim is this container's side of the lease.
type claim struct {
	lease   *lease.Lease
	waiting atomic.Bool           // the start waits for it
	lost    atomic.Pointer[error] // why this container may never write again
	end     context.CancelFunc    // of the renewals
	ended   chan struct{}
}

// openLease readies the lease, and the replica as it may be written under it.
func (l *life) openLease() {
	if l.client == nil {
		return
	}
	l.writer = l.client
	if l.cfg.Lease == LeaseOff {
		return
	}
	cfg := lease.Config{
		Store:   leaseStore{l.client},
		TTL:     l.cfg.LeaseTTL,
		Host:    whoWeAre(),
		Replica: l.client.String(),
		OnState: l.leaseChanged,
		Logger:  l.log,
	}
	if !l.locks.none.Load() {
		cfg.Memory = l.leaseFile()
	}
	l.claim.lease = lease.New(cfg)
	l.writer = &leased{Client: l.client, lease: l.claim.lease}
	if !l.following.Load() {
		l.health.LeaseBy(l.leaseStatus)
	}
}

func (l *life) leaseStatus() healthz.Lease {
	s := l.claim.lease.State()
	return healthz.Lease{State: string(s.Name), Epoch: s.Epoch, Holder: s.Holder}
}

// leaseChanged tells of a change.
func (l *life) leaseChanged(s lease.State) {
	switch s.Name {
	case lease.Held:
		l.log.Info("this instance holds the replica's lease", "epoch", s.Epoch)
	case lease.Lapsed:
		l.log.Warn("the replica's lease could not be renewed in time: nothing is uploaded until it is", "epoch", s.Epoch)
	case lease.Waiting:
		held := &lease.HeldError{By: s.Holder}
		l.log.Warn("waiting for another instance to leave this replica", "instance", s.Holder, "for", l.cfg.LockTimeout)
		if l.claim.waiting.Load() {
			l.enter(healthz.Waiting)
			l.health.Problem("waiting: " + held.Error())
		}
	}
}

// takeLease takes the lease, before anything of the replica is used: an old writer
// may still be uploading. Only another instance that has it is waited for; a
// replica that does not answer is the next steps' affair, unless the lease is
// required. When it returns false the container ends with the
// code.
func (l *life) takeLease() (code int, ok bool) {
	if l.claim.lease == nil || l.following.Load() {
		return 0, true
	}
	err := l.tryLease()
	if l.stopped(&code) {
		return code, false
	}
	var held *lease.HeldError
	switch {
	case err == nil:
	case errors.Is(err, errors.ErrUnsupported) && l.cfg.Lease == LeaseRequired:
		return l.unleased(exitConfig, "--lease required: the replica's service knows no conditional writes, so there can be no lease; set auto or off, or use another service")
	case errors.Is(err, errors.ErrUnsupported):
	case errors.As(err, &held):
		return l.unleased(exitHeld, held.Error())
	case l.cfg.Lease == LeaseRequired:
		sentence, _ := l.explain(err)
		return l.unleased(exitHeld, "the replica's lease can't be taken: "+sentence)
	default:
		sentence, _ := l.explain(err)
		l.log.Info("the replica's lease is not taken yet", "because", sentence)
	}
	if l.health.Status().Phase == healthz.Waiting {
		l.health.Problem("")
		l.enter(healthz.Starting)
	}
	l.keepLease()
	return 0, true
}

// settleLease takes the lease where the replica answered later than that. What was
// restored meanwhile is compared again before anything is uploaded.
func (l *life) settleLease() (code int, ok bool) {
	if !l.brought || l.unreachable() == nil {
		return 0, true
	}
	l.compared = false
	return l.takeLease()
}

// tryLease returns when the lease is held, when another instance has had it for
// --lock-timeout, or when the replica does not answer: with a lease that is
// required, for as long.
func (l *life) tryLease() error {
	stopped, cancel := l.untilStopped()
	defer cancel()
	ctx, cancel := context.WithTimeout(stopped, l.cfg.LockTimeout)
	defer cancel()
	l.claim.waiting.Store(true)
	defer l.claim.waiting.Store(false)
	for {
		try, cancel := context.WithCancel(ctx)
		bound := time.AfterFunc(answering, func() {
			if l.claim.lease.State().Name != lease.Waiting {
				cancel()
			}
		})
		err := l.claim.lease.Take(try)
		bound.Stop()
		cancel()
		if l.cfg.Lease != LeaseRequired || err == nil || errors.Is(err, errors.ErrUnsupported) || ctx.Err() != nil {
			if errors.Is(err, context.Canceled) {
				err = context.DeadlineExceeded
			}
			return err
		}
		l.enter(healthz.Waiting)
		sentence, _ := l.explain(err)
		l.health.Problem("the replica's lease can't be taken: " + sentence)
		wait(ctx, time.Second)
	}
}

// answering is for how long a start waits for a replica to answer before it goes
// on without, where it can.
const answering = 3 * time.Second

// unreachable returns why the replica did not answer when it was asked for the
// lease, a moment ago; nil where it has, or where there is no lease.
func (l *life) unreachable() error {
	if l.claim.lease == nil || l.following.Load() {
		return nil
	}
	if s := l.claim.lease.State().Name; s == lease.Held || s == lease.Unsupported {
		return nil
	}
	return &lease.NotHeldError{Err: context.DeadlineExceeded}
}

func (l *life) unleased(code int, why string) (int, bool) {
	l.log.Error("the app is not started", "error", why, "waited", l.cfg.LockTimeout)
	_ = l.health.Fail(why)
	return code, false
}

// keepLease renews the lease from now on, and stops the app when another instance
// has taken it.
func (l *life) keepLease() {
	if l.claim.end != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.claim.end, l.claim.ended = cancel, make(chan struct{})
	go func() {
		defer close(l.claim.ended)
		err := l.claim.lease.Keep(ctx, l.cfg.LockTimeout)
		var lost *lease.LostError
		var held *lease.HeldError
		if !errors.As(err, &lost) && !errors.As(err, &held) {
			return
		}
		l.log.Error("another instance writes this replica: the app is stopped, and nothing is uploaded", "error", err)
		l.claim.lost.Store(&err)
		l.stopForLost()
	}()
}

// stopForLost stops the app when the lease is lost, or is called too early for
// that, and then again when the app is about to be started.
func (l *life) stopForLost() {
	if l.claim.lost.Load() == nil {
		return
	}
	o := newOrder(control.Order{})
	o.lost = true
	l.orders.place(o)
}

// lostLease ends a container whose lease another instance has. It returns true as
// long as that is not so.
func (l *life) lostLease() (code int, ok bool) {
	err := l.claim.lost.Load()
	if err == nil {
		return 0, true
	}
	_ = l.health.Fail((*err).Error())
	return exitHeld, false
}

// giveBack ends the renewals, and gives the lease back unless something is left
// here that the replica lacks: then this volume is the one to go on with, until the
// lease's time is over.
func (l *life) giveBack() {
	if l.claim.lease == nil || l.following.Load() {
		return
	}
	if l.claim.end != nil {
		l.claim.end()
		<-l.claim.ended
	}
	if l.unsynced || l.claim.lost.Load() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), givingBack)
	defer cancel()
	if err := l.claim.lease.Release(ctx); err != nil {
		sentence, _ := l.explain(err)
		l.log.Warn("the replica's lease was not given back: another instance has to wait until its time is over", "error", sentence, "time", l.cfg.LeaseTTL)
		return
	}
	if !l.started {
		_ = os.Remove(l.leaseFile()) // nothing has happened here
	}
}

// leaseFile is where this volume remembers what it held.
func (l *life) leaseFile() string { return filepath.Join(l.cfg.StateDir(), leaseName) }

// givingBack is for how long a stop may last beyond its own time. The last upload
// has just worked, so this will not take as long.
const givingBack = time.Second

// replica is what may be written; see storage.Client for what it is.
type replica interface {
	litestream.ReplicaClient
	litestream.ReplicaClientV3
	Check(ctx context.Context) error
}
