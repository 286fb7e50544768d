package main

import (
	"context"
	"fmt"
	"os"

	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/control"
	"github.com/slashacom/slasha-init/lineage"
	"github.com/slashacom/slasha-init/replicate"
	"github.com/slashacom/slasha-init/restore"
)

// compare says how the database stands to the replica, before the app starts.
func (l *life) compare(ctx context.Context) (restore.Comparison, error) {
	f, err := lineage.Compare(ctx, l.client, l.cfg.DBPath, l.cfg.StateDir())
	return restore.Comparison{Empty: f.Relation == lineage.Empty, Stale: f.Stale(), How: f.String()}, err
}

// adopt notes what a restored file goes on from.
func (l *life) adopt(file string, newest ltx.TXID) error {
	return lineage.Adopt(l.cfg.StateDir(), file, newest)
}

// dropping notes what the live database goes on from, before what was captured
// of it is dropped.
func (l *life) dropping() error {
	if err := os.MkdirAll(l.cfg.StateDir(), 0o711); err != nil {
		return err
	}
	return lineage.Drop(l.cfg.StateDir(), l.cfg.DBPath, l.acked())
}

// admit says whether the database may be uploaded, where the replica did not
// answer before the app was started. If it is stale, the app is stopped: what it
// writes now is not going to be in the replica.
func (l *life) admit(ctx context.Context) error {
	f, err := lineage.Compare(ctx, l.client, l.cfg.DBPath, l.cfg.StateDir())
	if err != nil {
		return fmt.Errorf("compare with the replica: %w", err)
	}
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
