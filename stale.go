package main

import (
	"context"
	"fmt"

	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/control"
	"github.com/slashacom/slasha-init/lineage"
	"github.com/slashacom/slasha-init/replicate"
	"github.com/slashacom/slasha-init/restore"
)

// compare says how the database stands to the replica, before the app starts.
func (l *life) compare(ctx context.Context) (restore.Comparison, error) {
	if err := l.unreachable(); err != nil {
		return restore.Comparison{}, err // the start has waited for it once
	}
	f, err := lineage.Compare(ctx, l.client, l.cfg.DBPath, l.cfg.StateDir())
	l.noteContinues(f)
	return restore.Comparison{Empty: f.Relation == lineage.Empty, Stale: f.Stale(), How: f.String()}, err
}

// noteContinues remembers which of the replica's transactions is the newest that
// the database goes on from, for as long as nothing is uploaded from here.
func (l *life) noteContinues(f lineage.Finding) {
	if !f.Stale() {
		l.continues.Store(uint64(f.Replica))
	}
}

// adopt notes what a restored file goes on from.
func (l *life) adopt(file string, newest ltx.TXID) error {
	l.continues.Store(uint64(newest))
	return lineage.Adopt(l.cfg.DBPath, l.cfg.StateDir(), file, newest)
}

// dropping notes what the live database goes on from, before what was captured
// of it is dropped.
func (l *life) dropping(got replicate.Got) error {
	if err := openStateDir(l.cfg); err != nil {
		return err
	}
	acked := max(got.Acked, l.acked(), ltx.TXID(l.continues.Load()))
	return lineage.Drop(l.cfg.StateDir(), l.cfg.DBPath, acked, got.Snapshot)
}

// admit says whether the database may be uploaded, where the replica did not
// answer before the app was started. If it is stale, the app is stopped: what it
// writes now is not going to be in the replica. Only while the lease is held does
// the comparison say anything about later: before that, whoever holds it goes on.
func (l *life) admit(ctx context.Context) error {
	var f lineage.Finding
	look := func(ctx context.Context) (err error) {
		f, err = lineage.Compare(ctx, l.client, l.cfg.DBPath, l.cfg.StateDir())
		return err
	}
	under := look
	if l.claim.lease != nil {
		under = func(ctx context.Context) error { return barred(l.claim.lease.Do(ctx, look)) }
	}
	if err := under(ctx); err != nil {
		return fmt.Errorf("compare with the replica: %w", err)
	}
	l.noteContinues(f)
	if !f.Stale() {
		return nil
	}
	o := newOrder(control.Order{})
	o.stale = true
	if l.orders.place(o) {
		l.log.Error("the database is stale: the app is stopped, and nothing is uploaded", "how", f.String())
	}
	return fmt.Errorf("%w: %s", replicate.ErrStale, f)
}
