package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/slashacom/slasha-init/control"
	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/durable"
	"github.com/slashacom/slasha-init/internal/exit"
	"github.com/slashacom/slasha-init/internal/wait"
	"github.com/slashacom/slasha-init/replica"
	"github.com/slashacom/slasha-init/replicate"
	"github.com/slashacom/slasha-init/restore"
	"github.com/slashacom/slasha-init/volume"
)

// keeper keeps a container's databases. There are two: a *backup, and unbacked where
// backups are off. run calls the methods in this order.
type keeper interface {
	// join returns when this instance leads its volume or follows the one that does.
	join(ctx context.Context) error
	// begin puts the right databases at their paths, where this instance leads.
	begin(ctx context.Context) error
	// replicate begins to stream the databases to the replica.
	replicate()
	// finish makes the last upload, until the deadline. The error says what the replica
	// lacks.
	finish(deadline time.Time) error
	// comply does what the app was stopped for. After an error the app is not started
	// again.
	comply(ctx context.Context, r *control.Request) error
	// leave lets the next instance go on. It comes last, and not after a join that failed.
	leave()
}

// newKeeper returns what keeps the container's databases. It makes no request.
func newKeeper(c *container) (keeper, error) {
	if !c.cfg.Enabled() {
		return unbacked{c}, nil
	}
	return newBackup(c)
}

// unbacked is the keeper of a container without backups: the app is only supervised.
type unbacked struct{ *container }

func (unbacked) join(context.Context) error { return nil }

// begin opens a control socket that refuses what only a container with backups can do.
func (u unbacked) begin(context.Context) error {
	if err := u.stopped(); err != nil {
		return err
	}
	refusal := &control.Refusal{Why: "backups are off in this container: neither --db-path nor --bucket is set"}
	u.openControl(control.Config{
		May:     func(uid, _ uint32) bool { return u.isApp(uid) },
		Sync:    func(context.Context) (control.Synced, error) { return control.Synced{}, refusal },
		Foresee: func(context.Context, time.Time) error { return refusal },
	})
	return nil
}

func (unbacked) replicate()                                     {}
func (unbacked) finish(time.Time) error                         { return nil }
func (unbacked) comply(context.Context, *control.Request) error { return nil }
func (unbacked) leave()                                         {}

// backup is the keeper of a container with backups. Its databases share the membership
// of a volume, the lease and the replica.
type backup struct {
	*container
	databases []*database // the main one first
	replica   *replica.Replica
	volume    *volume.Volume
	member    *volume.Member // nil before join
	work      *replication   // the newest; nil before replicate
	unsynced  error          // why the last upload failed
}

func newBackup(c *container) (b *backup, err error) {
	b = &backup{container: c}
	b.replica, err = openReplica(c.cfg, replica.Config{
		Who: volume.Who(), OnResult: b.requested, OnWaiting: c.waiting,
		OnLost: func(error) { b.requests.Place(&control.Request{Kind: control.Lost}) },
		Logger: c.log,
	})
	if err != nil {
		return nil, exit.With(exit.Config, err)
	}
	for _, path := range c.cfg.Databases {
		b.databases = append(b.databases, newDatabase(c, b.replica, path))
	}
	b.volume = volume.New(volume.Config{DBPath: b.databases[0].path, Logger: c.log})
	return b, nil
}

func (b *backup) requested(r replica.Result) {
	if r.Err == nil {
		b.health.Checked(r.At)
	}
	b.health.Requested(r.Op, r.Took, r.Class)
}

func (b *backup) join(ctx context.Context) (err error) {
	b.member, err = b.volume.Join(ctx, volume.Joining{
		Web:      b.cfg.Processes.Web(),
		Patience: b.cfg.LockTimeout,
		// A requested restore is not left to the leader, which may not know of it.
		Due:       func() bool { return b.some((*database).restoreIsDue) },
		Ready:     func() bool { return !b.some((*database).isIncomplete) },
		OnWaiting: b.waiting,
	})
	if err != nil {
		return err
	}
	for _, d := range b.databases {
		d.reserve = b.member.Reserve
	}
	return nil
}

func (b *backup) some(is func(*database) bool) bool {
	for _, d := range b.databases {
		if is(d) {
			return true
		}
	}
	return false
}

func (b *backup) begin(ctx context.Context) error {
	if b.member.Leads() {
		return b.lead(ctx, b.atStart)
	}
	b.health.Following(true)
	b.followed(b.member.Leader())
	return b.stopped()
}

// followed reports whom this instance follows.
func (b *backup) followed(leader string) {
	b.health.Lease(healthz.Lease{State: "following", Holder: leader})
}

// lead is the start of a leader's life: prepare (atStart or atTakeOver) takes the lease,
// before anything of the replica is used, and makes sure that the right databases are at
// their paths; then others may ask for a sync or a restore.
func (b *backup) lead(ctx context.Context, prepare func(context.Context) error) error {
	b.health.Following(false)
	b.health.LeaseBy(func() healthz.Lease {
		state, epoch, holder := b.replica.Lease()
		return healthz.Lease{State: state, Epoch: epoch, Holder: holder}
	})
	if err := prepare(ctx); err != nil {
		return err
	}
	_ = b.volume.Folder().Make() // for the socket; if this fails, openControl logs that there is none
	b.openControl(control.Config{May: b.mayAsk, Sync: b.sync, Foresee: b.foresee})
	return nil
}

// atStart prepares a leader whose app has not started.
func (b *backup) atStart(ctx context.Context) error {
	if err := b.replica.Take(ctx, b.memory()); err != nil {
		return err
	}
	answered, err := b.restore(ctx)
	if err != nil || !answered || b.replica.LeaseMissing() == nil {
		return err
	}
	// The replica did not answer when Take asked for the lease, and has answered since.
	// Whoever held the lease may have written in between.
	for _, d := range b.databases {
		d.line.Doubt()
	}
	return b.replica.Take(ctx, b.memory())
}

// atTakeOver prepares a leader whose app runs on the databases already.
func (b *backup) atTakeOver(ctx context.Context) error {
	b.replica.TakeOver(ctx, b.memory())
	return nil
}

// takeOver waits until the leader has left, and then leads. A commit between the two
// leaders is in the WAL, and is captured from there.
func (b *backup) takeOver(ctx context.Context) error {
	if err := b.member.AwaitLead(ctx, b.followed); err != nil {
		return err
	}
	b.log.Info("the leader has left: this instance replicates from now on")
	return b.lead(ctx, b.atTakeOver)
}

// memory returns where the volume remembers its lease, or nil where that note may be
// another instance's.
func (b *backup) memory() *durable.Note {
	if !b.member.CanLock() {
		return nil
	}
	note := b.volume.Folder().Lease()
	return &note
}

// restore makes sure that the right databases are at their paths. It reports whether it
// asked the replica for that and got an answer.
func (b *backup) restore(ctx context.Context) (answered bool, err error) {
	for _, d := range b.databases {
		out, err := d.bring(ctx, d.asked())
		switch stopped := b.stopped(); {
		case stopped != nil:
			return false, stopped
		case err != nil:
			return false, err
		}
		answered = answered || out.Answered
	}
	b.health.Problem("")
	b.enter(healthz.Starting)
	return answered, nil
}

// replication is what goes on between replicate and finish.
type replication struct {
	cancel      context.CancelFunc      // ends all of it
	endRest     context.CancelFunc      // ends all but the uploads
	leads       chan struct{}           // closed when this instance replicates
	ended       chan struct{}           // closed when nothing goes on any more
	replicators []*replicate.Replicator // one for each database, once leads is closed
}

func (b *backup) replicate() {
	ctx, cancel := context.WithCancel(context.Background())
	rest, endRest := context.WithCancel(ctx)
	w := &replication{cancel: cancel, endRest: endRest, leads: make(chan struct{}), ended: make(chan struct{})}
	b.work = w
	go func() {
		defer close(w.ended)
		if !b.member.Leads() && b.takeOver(rest) != nil {
			return
		}
		for _, d := range b.databases {
			w.replicators = append(w.replicators, d.newReplicator())
		}
		close(w.leads)
		var work sync.WaitGroup
		for i, d := range b.databases {
			work.Go(func() { d.drills().Run(rest) })
			work.Go(func() { w.replicators[i].Run(ctx) })
		}
		work.Wait()
	}()
}

func (b *backup) finish(deadline time.Time) error {
	b.unsynced = b.lastUpload(deadline)
	if b.unsynced != nil {
		b.log.Error(b.unsynced.Error())
	}
	return b.unsynced
}

// lastUpload ends the replication. It gives up at the deadline, and when somebody at
// the keyboard does.
func (b *backup) lastUpload(deadline time.Time) error {
	w := b.work
	defer w.cancel()
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	go func() {
		select {
		case <-b.sup.GaveUp():
			b.log.Warn("third interrupt: giving up the last upload")
			cancel()
		case <-ctx.Done():
		}
	}()
	if has, err := b.leaderHasIt(ctx); has || err != nil {
		w.endRest()
		w.cancel()
		<-w.ended
		return err
	}
	b.log.Info("last upload", "budget", time.Until(deadline).Round(time.Millisecond))
	w.endRest()
	for _, r := range w.replicators {
		r.Stop()
	}
	select {
	case <-w.ended:
	case <-ctx.Done():
		w.cancel()
		<-w.ended // its requests end with their context
	}
	var errs []error
	for i, d := range b.databases {
		errs = append(errs, w.replicators[i].Finish(ctx))
		d.replicator.Store(nil)
	}
	return errors.Join(errs...)
}

// leaderHasIt returns true on an instance that follows, when the leader has uploaded
// what was written here, or goes on and will upload it. It returns false on the instance
// that leads, which this one may become meanwhile: two instances that stop at the same
// time must not both leave the upload to the other.
func (b *backup) leaderHasIt(ctx context.Context) (has bool, err error) {
	asked := make(chan struct{})
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	if !b.member.Leads() {
		go func() {
			defer close(asked)
			b.askLeader(asking)
		}()
	}
	select {
	case <-b.work.leads:
		return false, nil
	case <-asked:
	case <-ctx.Done():
	}
	select {
	case <-b.work.leads:
		return false, nil
	default:
	}
	switch {
	case ctx.Err() == nil:
		return true, nil
	case !b.member.Leads():
		b.log.Warn("the last upload is left to the leader, which has not confirmed it")
		return true, nil
	}
	return false, errNoTime
}

// errNoTime says that the container was stopped just when its leader was gone.
var errNoTime = exit.With(exit.Upload, errors.New("the last upload failed: the instance that replicated this database is gone, and there was no time to continue its upload"))

// askAgain is how often this instance asks a leader that does not answer.
const askAgain = 100 * time.Millisecond

// askLeader returns when the leader has uploaded everything that was committed before
// the call, or when ctx ends.
func (b *backup) askLeader(ctx context.Context) {
	leader := control.Client{Path: b.volume.Folder().ControlSocket()}
	for ctx.Err() == nil {
		if _, err := leader.Sync(ctx); err == nil {
			b.log.Info("the leader has uploaded what was written last")
			return
		}
		wait.For(ctx, askAgain)
	}
}

func (b *backup) comply(ctx context.Context, r *control.Request) error {
	switch {
	case r.Kind == control.Lost:
		return b.replica.Lost()
	case r.Kind == control.Stale:
		return b.again(ctx)
	case b.unsynced != nil:
		letGo, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		for _, rep := range b.work.replicators {
			rep.Release(letGo)
		}
		r.Answer(control.Restored{}, fmt.Errorf("what the app wrote last can't be uploaded, so nothing was restored and the app goes on: %w", b.unsynced))
		return b.again(ctx)
	}
	return b.restoreAsRequested(ctx, r)
}

// again puts the right databases at their paths, before the app is started again: it
// decides by the facts, as at a start.
func (b *backup) again(ctx context.Context) error {
	_, err := b.restore(ctx)
	return err
}

// restoreAsRequested restores for who asked on the control socket. Whatever comes of it, the app is started again, on
// what was restored or on what it had, unless the container is to stop.
func (b *backup) restoreAsRequested(ctx context.Context, r *control.Request) error {
	out, err := b.databases[0].bring(ctx, restore.What{Request: restore.Now(), Timestamp: r.Timestamp})
	restored := control.Restored{
		TXID: out.Progress.TXID.String(), Bytes: out.Progress.BytesDone,
		TookSeconds: out.Progress.Took.Seconds(), SetAside: out.Aside,
	}
	switch stopped := b.stopped(); {
	case stopped != nil && out.Restored:
		r.Answer(restored, nil)
		return stopped
	case stopped != nil:
		r.Answer(control.Restored{}, &control.Refusal{Why: "the container was stopped; the database is as it was"})
		return stopped
	case err != nil:
		b.log.Error("the requested restore failed: the app goes on with the database that it had", "error", err)
		r.Answer(control.Restored{}, fmt.Errorf("%w; the app goes on with the database that it had", err))
		return b.again(ctx) // ends what was begun, and looks at the facts again
	}
	b.enter(healthz.Starting)
	r.Answer(restored, nil)
	return nil
}

// leave gives the lease back, unless something is left here that the replica lacks:
// then this volume is the one to go on with, until the lease's time is over.
func (b *backup) leave() {
	switch {
	case !b.member.Leads():
	case b.unsynced != nil:
		b.replica.Abandon()
	case b.replica.Release() && !b.started:
		if memory := b.memory(); memory != nil {
			_ = memory.Remove() // nothing has happened here
		}
	}
	b.member.Leave()
}

// mayAsk lets the app's user ask, and those who can put another file in the database's
// place anyway.
func (b *backup) mayAsk(uid, gid uint32) bool {
	return b.isApp(uid) || b.volume.Folder().MayReplace(uid, gid)
}

// sync returns when everything that was committed before the call is in the replica.
func (b *backup) sync(ctx context.Context) (done control.Synced, err error) {
	for i, d := range b.databases {
		r := d.replicator.Load()
		if r == nil {
			return control.Synced{}, &control.Refusal{Why: fmt.Sprintf("the container is %s: nothing is replicated now", b.health.Status().Phase)}
		}
		txid, err := r.Sync(ctx)
		if err != nil {
			return control.Synced{}, err
		}
		if i == 0 && txid != 0 {
			done.TXID = txid.String()
		}
	}
	return done, nil
}

// foreseeing is how long foresee asks the replica whether a restore is possible, before
// the app is stopped for it.
const foreseeing = 20 * time.Second

// foresee refuses a restore that can't work, while the app still runs.
func (b *backup) foresee(ctx context.Context, timestamp time.Time) error {
	if phase := b.health.Status().Phase; phase != healthz.Running {
		return &control.Refusal{Why: fmt.Sprintf("the container is %s; a restore is possible only while it is running", phase)}
	}
	if !b.member.Leads() {
		return &control.Refusal{Why: "another instance on this volume leads; ask that one"}
	}
	release, err := b.member.Reserve()
	if err != nil {
		return &control.Refusal{Why: err.Error() + "; the app goes on"}
	}
	release()
	ctx, cancel := context.WithTimeout(ctx, foreseeing)
	defer cancel()
	for _, d := range b.databases {
		if _, err := restore.Foresee(ctx, d.restoreConfig(restore.What{Timestamp: timestamp})); err != nil {
			if ctx.Err() != nil {
				err = errors.New("the replica does not answer")
			}
			return &control.Refusal{Why: "this can't be restored: " + err.Error() + "; the app goes on"}
		}
	}
	return nil
}
