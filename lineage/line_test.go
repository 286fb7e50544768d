package lineage

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/superfly/ltx"
)

// counted counts the comparisons by their lists of level 0, and fails them on demand.
type counted struct {
	Client
	n    atomic.Int64
	fail atomic.Pointer[error]
}

func (c *counted) LTXFiles(ctx context.Context, level int, seek ltx.TXID, useMetadata bool) (ltx.FileIterator, error) {
	if level == 0 {
		c.n.Add(1)
	}
	if err := c.fail.Load(); err != nil {
		return nil, *err
	}
	return c.Client.LTXFiles(ctx, level, seek, useMetadata)
}

// testLine returns a Line whose database and replica are equal, up to transaction 5.
func testLine(t *testing.T) (l *Line, dir string, c *counted) {
	t.Helper()
	dir = t.TempDir()
	l = lineOf(dir)
	c = &counted{Client: l.cfg.Client}
	l.cfg.Client = c
	if err := os.WriteFile(l.cfg.DBPath, []byte("a database"), 0o600); err != nil {
		t.Fatal(err)
	}
	place(t, captured(dir), small(1, 5, 7))
	place(t, filepath.Join(dir, "bucket"), small(1, 5, 7))
	return l, dir, c
}

// Admit compares only where it is not known that the database continues the replica.
func TestAdmit(t *testing.T) {
	away := errors.New("the bucket is away")
	compare := func(l *Line) { _, _ = l.Compare(context.Background()) }
	for name, c := range map[string]struct {
		before   func(l *Line, c *counted)
		compares bool
	}{
		"nothing is known":             {func(*Line, *counted) {}, true},
		"compared":                     {func(l *Line, _ *counted) { compare(l) }, false},
		"admitted":                     {func(l *Line, _ *counted) { _ = l.Admit(context.Background()) }, false},
		"trusted":                      {func(l *Line, _ *counted) { l.Trust() }, false},
		"compared, then doubted":       {func(l *Line, _ *counted) { compare(l); l.Doubt() }, true},
		"compared, then dropped":       {func(l *Line, _ *counted) { compare(l); _ = l.Drop() }, true},
		"compared, then not compared":  {func(l *Line, c *counted) { compare(l); c.fail.Store(&away); compare(l); c.fail.Store(nil) }, true},
		"dropping that was not noted":  {func(l *Line, _ *counted) { compare(l); _ = os.Remove(l.cfg.DBPath); _ = l.Drop() }, false},
		"the replica could not answer": {func(l *Line, c *counted) { c.fail.Store(&away); _ = l.Admit(context.Background()); c.fail.Store(nil) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			l, _, client := testLine(t)
			c.before(l, client)
			n := client.n.Load()
			if err := l.Admit(t.Context()); err != nil {
				t.Fatal(err)
			}
			if compared := client.n.Load() > n; compared != c.compares {
				t.Errorf("compared: %v", compared)
			}
		})
	}
}

// An empty replica admits every database.
func TestAdmitToAnEmptyReplica(t *testing.T) {
	l, dir, client := testLine(t)
	if err := os.RemoveAll(filepath.Join(dir, "bucket")); err != nil {
		t.Fatal(err)
	}
	if f, err := l.Compare(t.Context()); err != nil || f.Relation != Empty {
		t.Fatalf("%v, %v", f, err)
	}
	n := client.n.Load()
	if err := l.Admit(t.Context()); err != nil || client.n.Load() != n {
		t.Errorf("%v, after %d comparisons", err, client.n.Load()-n)
	}
}

// A stale database is not admitted, however often it is tried, until another one is in
// its place.
func TestAdmitOfAStaleDatabase(t *testing.T) {
	l, dir, _ := testLine(t)
	place(t, filepath.Join(dir, "bucket"), small(6, 9, 8))
	if f, err := l.Compare(t.Context()); err != nil || !f.Stale() {
		t.Fatalf("%v, %v", f, err)
	}
	for range 2 {
		err := l.Admit(t.Context())
		var stale *StaleError
		if !errors.As(err, &stale) || !stale.Final() || stale.Finding.Replica != 9 || !strings.HasPrefix(err.Error(), "the database is stale: the database ends at transaction ") {
			t.Fatalf("%v", err)
		}
	}
	l.Trust()
	if err := l.Admit(t.Context()); err != nil {
		t.Error(err)
	}
}

// Admit compares under the lease. What it found without the lease does not count.
func TestAdmitUnderTheLease(t *testing.T) {
	l, _, client := testLine(t)
	lost := errors.New("the lease ended")
	under, over := false, true
	l.cfg.While = func(ctx context.Context, f func(context.Context) error) error {
		under = true
		if err := f(ctx); err != nil || !over {
			return err
		}
		return lost
	}
	for range 2 {
		n := client.n.Load()
		if err := l.Admit(t.Context()); !errors.Is(err, lost) || err.Error() != "compare with the replica: the lease ended" || client.n.Load() == n {
			t.Fatalf("%v, after %d comparisons", err, client.n.Load()-n)
		}
	}
	over = false
	if err := l.Admit(t.Context()); err != nil || !under {
		t.Errorf("%v, under the lease: %v", err, under)
	}
}

// Acked returns the newest transaction that was reported. What is synced is all there is:
// where the replica lost its files, the numbers begin anew.
func TestAcked(t *testing.T) {
	l, _, _ := testLine(t)
	if got := l.Acked(); got != 0 {
		t.Errorf("%s before anything was uploaded", got)
	}
	for _, c := range []struct {
		report func(ltx.TXID)
		txid   ltx.TXID
		want   ltx.TXID
	}{
		{l.Synced, 3, 3},
		{l.Uploaded, 5, 5},
		{l.Uploaded, 2, 5},
		{l.Tried, 9, 5},
		{l.Synced, 6, 6},
		{l.Synced, 1, 1},
	} {
		c.report(c.txid)
		if got := l.Acked(); got != c.want {
			t.Errorf("%s, not %s", got, c.want)
		}
	}
}

// Numbers that the replica has lost count no more: not as acknowledged, and not as what
// the database goes on from. Otherwise another host's transactions of the same numbers
// would pass for ours.
func TestAReplicaThatWasPutBack(t *testing.T) {
	for name, back := range map[string]func(t *testing.T, l *Line, dir string){
		"restored": func(t *testing.T, l *Line, dir string) {
			file := filepath.Join(dir, "restored")
			if err := errors.Join(os.WriteFile(file, []byte("restored"), 0o600), l.Adopt(file, 6), os.Rename(file, l.cfg.DBPath)); err != nil {
				t.Fatal(err)
			}
			l.Trust()
		},
		"compared": func(t *testing.T, l *Line, _ string) {
			if _, err := l.Compare(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l, bucket := lineOf(dir), filepath.Join(dir, "bucket")
			if err := os.WriteFile(l.cfg.DBPath, []byte("a database"), 0o600); err != nil {
				t.Fatal(err)
			}
			l.Synced(20)
			place(t, bucket, small(1, 6, 7)) // an older copy
			back(t, l, dir)
			if got := l.Acked(); got > 6 {
				t.Errorf("%s counts as acknowledged, and the replica ends at 6", got)
			}
			place(t, bucket, small(7, 12, 8))
			l.Uploaded(12)
			l.Synced(12)
			if err := l.Drop(); err != nil {
				t.Fatal(err)
			}
			place(t, bucket, small(13, 15, 9)) // another host goes on
			if f, err := lineOf(dir).Compare(t.Context()); err != nil || !f.Stale() {
				t.Errorf("the next start here: %v, %v", f, err)
			}
		})
	}
}

// Before anything is uploaded, the database goes on from what it was compared with, or
// restored from.
func TestDropBeforeAnUpload(t *testing.T) {
	for name, before := range map[string]func(*Line) error{
		"compared": func(l *Line) error { _, err := l.Compare(context.Background()); return err },
		"admitted": func(l *Line) error { return l.Admit(context.Background()) },
		"restored": func(l *Line) error { return l.Adopt(l.cfg.DBPath, 5) },
	} {
		t.Run(name, func(t *testing.T) {
			l, dir, _ := testLine(t)
			place(t, captured(dir), small(6, 8, 7)) // captured, and not uploaded
			if err := before(l); err != nil {
				t.Fatal(err)
			}
			if err := l.Drop(); err != nil {
				t.Fatal(err)
			}
			if a := l.adopted(); a.TXID != 5 || len(a.After) != 3 {
				t.Errorf("it goes on from %s, and maybe %d after it", a.TXID, len(a.After))
			}
		})
	}
}

// A snapshot that was tried of one file says nothing about another.
func TestASnapshotOfAnotherFile(t *testing.T) {
	l, dir, _ := testLine(t)
	l.Tried(8)
	if err := l.Adopt(l.cfg.DBPath, 5); err != nil {
		t.Fatal(err)
	}
	l.Trust()
	if err := l.Drop(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(captured(dir)); err != nil {
		t.Fatal(err)
	}
	place(t, filepath.Join(dir, "bucket"), []span{{9, 1, 8, 0}}) // of the file before
	if f, err := l.Compare(t.Context()); err != nil || !f.Stale() {
		t.Errorf("%v, %v", f, err)
	}
}

// A new line stays one, over restarts, until the replica has a snapshot of it.
func TestNewLine(t *testing.T) {
	l, dir, _ := testLine(t)
	if l.IsNew() {
		t.Error("new before it begins")
	}
	if err := l.Begin(); err != nil || !l.IsNew() || !lineOf(dir).IsNew() {
		t.Errorf("%v, new: %v", err, l.IsNew())
	}
	for range 2 {
		if err := l.Anchored(); err != nil || l.IsNew() {
			t.Errorf("%v, new: %v", err, l.IsNew())
		}
	}
}
