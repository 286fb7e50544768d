package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/slashacom/slasha-init/control"
	"github.com/slashacom/slasha-init/replicate"
	"github.com/slashacom/slasha-init/restore"
)

// The app's commits on their way into the replica, while it runs and when it has ended.

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
