package replicate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/benbjohnson/litestream/file"
	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/exit"
	"github.com/slashacom/slasha-init/internal/wal"
)

// refusing is a replica whose client refuses uploads for a while.
type refusing struct {
	*file.ReplicaClient
	tries atomic.Int32
	why   atomic.Pointer[error]
}

func (*refusing) Check(context.Context) error { return nil }

func (c *refusing) refuse(err error) { c.why.Store(&err) }

func (c *refusing) WriteLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, r io.Reader) (*ltx.FileInfo, error) {
	c.tries.Add(1)
	if why := c.why.Load(); why != nil && *why != nil {
		return nil, *why
	}
	return c.ReplicaClient.WriteLTXFile(ctx, level, minTXID, maxTXID, r)
}

// verdict is an error of a lease or a line.
type verdict bool

func (v verdict) Error() string { return fmt.Sprintf("final: %t", bool(v)) }
func (v verdict) Final() bool   { return bool(v) }

// captures lists what is captured beside a database.
func captures(t *testing.T, db *litestream.DB) []localFile {
	t.Helper()
	files, err := localFiles(db)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Nothing continues what was dropped: the next session compares again, and begins with
// a snapshot as the transaction after the replica's newest.
func TestWhatASessionLeavesToTheNext(t *testing.T) {
	client := &refusing{ReplicaClient: file.NewReplicaClient(t.TempDir())}
	line := &noted{}
	r, stop := replicated(t, client, line, nil)
	stop()
	s, ctx := r.session, t.Context()
	was := line.synced
	if was == 0 || line.Acked() != was || r.compactable.get() != s {
		t.Fatalf("synced up to %s, acknowledged up to %s", was, line.Acked())
	}
	s.unsure = time.Unix(1, 0)
	if err := r.abandon(ctx, s, true); err != nil {
		t.Fatal(err)
	}
	if want := (handover{anew: true, dropped: true, unsure: s.unsure}); r.left != want {
		t.Errorf("it leaves %+v, want %+v", r.left, want)
	}
	if r.session != nil || r.compactable.get() != nil || len(captures(t, s.db)) > 0 || line.called("drop") != 1 {
		t.Errorf("session %v, files %v, %v", r.session, captures(t, s.db), line.calls)
	}
	if _, err := s.client.WriteLTXFile(ctx, 0, was+1, was+1, strings.NewReader("")); !errors.Is(err, errGone) {
		t.Errorf("a session that has ended uploads: %v", err)
	}

	// A session that can't begin leaves the same to the one that can.
	line.admit = func() error { return errors.New("the bucket is away") }
	var reported error
	r.cfg.OnError = func(err error) { reported = err }
	err := r.turn(ctx)
	r.report(err)
	var dropped *DroppedError
	if !errors.As(reported, &dropped) || !r.left.anew {
		t.Errorf("%v is reported, %+v left", reported, r.left)
	}
	line.admit = nil
	err = r.turn(ctx)
	r.report(err)
	if err != nil || reported != nil {
		t.Fatalf("%v, %v is reported", err, reported)
	}
	if n := line.called("admit"); n != 3 { // once in Run
		t.Errorf("Admit was called %d times", n)
	}
	files := captures(t, r.session.db)
	if r.session == s || r.hasDropped() || len(files) != 1 || files[0].txid != was+1 || line.synced != was+1 {
		t.Errorf("after transaction %s it has %+v, and synced up to %s", was, files, line.synced)
	}
	if err := r.Finish(ctx); err != nil {
		t.Error(err)
	}
}

// After a bug the library's work goes on where it was.
func TestWhatABugLeaves(t *testing.T) {
	client := &refusing{ReplicaClient: file.NewReplicaClient(t.TempDir())}
	line := &noted{}
	r, stop := replicated(t, client, line, nil)
	stop()
	s := r.takeSession()
	s.unsure = time.Unix(1, 0)
	left, closed := s.endAfterBug()
	if want := (handover{unsure: s.unsure}); !closed || left != want {
		t.Errorf("closed: %v, left: %+v", closed, left)
	}
	r.left = left
	if err := r.turn(t.Context()); err != nil || line.called("drop") > 0 {
		t.Errorf("%v, %v", err, line.calls)
	}
	if tries := client.tries.Load(); tries != 1 {
		t.Errorf("%d uploads: what was there already was uploaded again", tries)
	}
	if err := r.Finish(t.Context()); err != nil {
		t.Error(err)
	}
}

// listPanics is a replica whose client has a bug, from a moment on.
type listPanics struct {
	*file.ReplicaClient
	now atomic.Bool
}

func (*listPanics) Check(context.Context) error { return nil }

func (p *listPanics) LTXFiles(ctx context.Context, level int, seek ltx.TXID, useMetadata bool) (ltx.FileIterator, error) {
	if p.now.Load() {
		panic("a bug")
	}
	return p.ReplicaClient.LTXFiles(ctx, level, seek, useMetadata)
}

// A bug while a database is closed to be dropped does not lose sight of it: it is closed
// after all, or stays open for good. A second connection, and the end of the first, would
// drop SQLite's locks. What was to be dropped is dropped.
func TestABugWhileDropping(t *testing.T) {
	client := &listPanics{ReplicaClient: file.NewReplicaClient(t.TempDir())}
	r, stop := replicated(t, client, &noted{}, nil)
	stop()
	s := r.session
	s.resumed = resumed{txid: 1, salts: [2]uint32{1, 2}} // as after a WAL that was reset unseen
	s.db.Replica.SetPos(ltx.Pos{})
	client.now.Store(true)
	if err := r.guarded(t.Context()); err == nil {
		t.Fatal("the bug is not reported")
	}
	client.now.Store(false)
	if open := s.db.SQLDB() != nil; r.session != nil || open != (r.leaked == s) || !r.left.anew {
		t.Fatalf("session %v, still open: %v, kept: %v, left: %+v", r.session != nil, open, r.leaked == s, r.left)
	}
	if err := r.guarded(t.Context()); r.leaked != nil {
		if !errors.Is(err, errLeaked) || r.session != nil {
			t.Errorf("a second session was opened beside the first: %v", err)
		}
	} else if files := captures(t, s.db); err != nil || len(files) != 1 || files[0].txid <= 1 {
		t.Errorf("%v, captured: %+v", err, files)
	}
}

// Nothing is dropped before it is noted what the database goes on from. If the disk is
// too full for the note, room is made for it.
func TestDroppingIsNotedFirst(t *testing.T) {
	for name, c := range map[string]struct {
		errs    []error // of Drop, in turn
		drops   int
		dropped bool
	}{
		"noted":                   {nil, 1, true},
		"it can't be noted":       {[]error{fs.ErrPermission}, 1, false},
		"the disk is full":        {[]error{&fs.PathError{Err: syscall.ENOSPC}}, 2, true},
		"it is full for too much": {[]error{syscall.ENOSPC, syscall.ENOSPC}, 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			line := &noted{}
			r, stop := replicated(t, &refusing{ReplicaClient: file.NewReplicaClient(t.TempDir())}, line, nil)
			stop()
			s := r.session
			had := captures(t, s.db)
			line.drop = func() error {
				// The newest file makes room, and no more than that.
				if n, files := line.called("drop"), captures(t, s.db); len(files) != len(had)-n+1 {
					t.Errorf("when asked for the %d. time there are %d of %d files", n, len(files), len(had))
				}
				if n := line.called("drop"); n <= len(c.errs) {
					return c.errs[n-1]
				}
				return nil
			}
			err := r.abandon(t.Context(), s, false)
			if (err == nil) != c.dropped || (r.session == nil) != c.dropped || line.called("drop") != c.drops {
				t.Errorf("%v, session %v, %v", err, r.session, line.calls)
			}
			if err != nil && (!errors.Is(err, c.errs[0]) || r.left != handover{}) {
				t.Errorf("%v, and it leaves %+v", err, r.left)
			}
			r.Release(t.Context())
		})
	}
}

// On a new line a snapshot follows the first upload, once.
func TestANewLine(t *testing.T) {
	client := &refusing{ReplicaClient: file.NewReplicaClient(t.TempDir())}
	line := &noted{isNew: true, anchored: func() error { return fs.ErrPermission }}
	r, stop := replicated(t, client, line, nil)
	stop()
	if n := line.called("anchored"); n != 1 || r.session.anchor {
		t.Errorf("Anchored was called %d times", n)
	}
	if files, err := os.ReadDir(filepath.Join(client.Path(), "ltx", "9")); err != nil || len(files) != 1 {
		t.Errorf("snapshots: %v, %v", files, err)
	}
	if err := r.Finish(t.Context()); err != nil {
		t.Error(err)
	}
}

// The line learns what the replica has, and what it may have.
func TestWhatTheLineLearns(t *testing.T) {
	client := &refusing{ReplicaClient: file.NewReplicaClient(t.TempDir())}
	line := &noted{}
	a := &acknowledged{Client: client, line: line}
	for _, upload := range []struct {
		level        int
		txid         ltx.TXID
		err          error
		acked, tried ltx.TXID
		n            int64
	}{
		{0, 5, nil, 5, 0, 1},
		{0, 6, io.ErrUnexpectedEOF, 5, 0, 1},
		{1, 7, nil, 7, 0, 1},
		{litestream.SnapshotLevel, 8, io.ErrUnexpectedEOF, 7, 8, 1},
		{litestream.SnapshotLevel, 9, nil, 9, 8, 1},
	} {
		client.refuse(upload.err)
		_, err := a.WriteLTXFile(t.Context(), upload.level, upload.txid, upload.txid, ltxFile(t, upload.txid, 1))
		if !errors.Is(err, upload.err) || line.acked != upload.acked || line.tried != upload.tried || a.n.Load() != upload.n {
			t.Errorf("%+v: %v, acknowledged up to %d, tried %d, %d L0 files", upload, err, line.acked, line.tried, a.n.Load())
		}
	}
}

// ltxFile is a file of one transaction, from a WAL with the given salt.
func ltxFile(t *testing.T, txid ltx.TXID, salt uint32) io.Reader {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := writeBaseline(path, txid); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var h ltx.Header
	if err := h.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	h.WALSalt1, h.WALSalt2 = salt, salt
	head, err := h.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReader(string(head) + string(b[ltx.HeaderSize:]))
}

// A baseline holds no transaction. It is found also where a session ended between a
// capture and the baseline's removal: a compaction would take it for the replica's.
func TestWhatWasCapturedBefore(t *testing.T) {
	for name, c := range map[string]struct {
		salts    []uint32 // of the files from transaction 1 on
		damaged  bool     // the newest
		newest   ltx.TXID
		baseline ltx.TXID
	}{
		"nothing":                         {},
		"a baseline":                      {salts: []uint32{0}, baseline: 1},
		"a capture":                       {salts: []uint32{7}, newest: 1},
		"captures":                        {salts: []uint32{7, 7, 8}, newest: 3},
		"a baseline and a capture":        {salts: []uint32{0, 7}, newest: 2, baseline: 1},
		"a damaged file":                  {salts: []uint32{7, 7}, damaged: true, newest: 2},
		"a damaged file after a baseline": {salts: []uint32{0, 7}, damaged: true, newest: 2, baseline: 1},
		"only a damaged file":             {salts: []uint32{7}, damaged: true, newest: 1},
	} {
		t.Run(name, func(t *testing.T) {
			db := litestream.NewDB(filepath.Join(t.TempDir(), "app.db"))
			if err := os.MkdirAll(db.LTXLevelDir(0), 0o755); err != nil {
				t.Fatal(err)
			}
			for i, salt := range c.salts {
				txid := ltx.TXID(i + 1)
				b, err := io.ReadAll(ltxFile(t, txid, salt))
				if err != nil {
					t.Fatal(err)
				}
				if c.damaged && i == len(c.salts)-1 {
					b = b[:10]
				}
				if err := os.WriteFile(db.LTXPath(0, txid, txid), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			had, err := lookAtCaptured(db)
			if err != nil {
				t.Fatal(err)
			}
			want := captured{newest: c.newest}
			if c.baseline != 0 {
				want.baseline = db.LTXPath(0, c.baseline, c.baseline)
			}
			header := had.header
			had.header = ltx.Header{}
			if had != want {
				t.Errorf("%+v, want %+v", had, want)
			}
			had.header = header
			if resume := had.resume(); c.newest != 0 && !c.damaged {
				salt := c.salts[len(c.salts)-1]
				if want := (resumed{c.newest, [2]uint32{salt, salt}}); resume != want || wal.SaltsOf(header) != want.salts {
					t.Errorf("it is to follow %+v", resume)
				}
			} else if resume != (resumed{}) {
				t.Errorf("nothing can follow %+v", resume)
			}
		})
	}
}

func TestIsFinal(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"an ordinary one":       {io.ErrUnexpectedEOF, false},
		"final":                 {verdict(true), true},
		"not final":             {verdict(false), false},
		"final, with its cause": {fmt.Errorf("upload: %w", errors.Join(io.EOF, verdict(true))), true},
		"the database is gone":  {fmt.Errorf("app.db %w", errDeleted), true},
		"a bug":                 {errLeaked, false},
	} {
		if got := isFinal(c.err); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// The last upload is tried until the time is over, unless no try can work.
func TestTheLastUploadOfADatabaseThatIsNotAdmitted(t *testing.T) {
	for _, v := range []verdict{true, false} {
		synctest.Test(t, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "app.db")
			if err := os.WriteFile(path, append([]byte("SQLite format 3\x00\x10\x00"), make([]byte, 4096)...), 0o600); err != nil {
				t.Fatal(err)
			}
			line := &noted{admit: func() error { return v }}
			client := &refusing{ReplicaClient: file.NewReplicaClient(t.TempDir())}
			r := New(Config{DBPath: path, Client: client, Line: line, Logger: slog.New(slog.DiscardHandler)})
			ctx, cancel := context.WithTimeout(t.Context(), 5*retryLast+retryLast/2)
			defer cancel()
			began := time.Now()
			err := r.Finish(ctx)
			var unsynced *UnsyncedError
			if !errors.As(err, &unsynced) || !errors.Is(err, v) || exit.Code(err) != exit.Upload || client.tries.Load() > 0 {
				t.Errorf("%v, %d uploads", err, client.tries.Load())
			}
			want := 6
			if v {
				want = 1
			}
			if n := line.called("admit"); n != want {
				t.Errorf("%v: tried %d times in %s, want %d", v, n, time.Since(began), want)
			}
		})
	}
}

// The same for a replica that this instance may never write again. If the answer may
// be another one next time, everything gets there.
func TestTheLastUploadThatIsBarred(t *testing.T) {
	client := &refusing{ReplicaClient: file.NewReplicaClient(t.TempDir())}
	line := &noted{}
	r, stop := replicated(t, client, line, nil)
	stop()
	was := line.synced
	write(t, r.cfg.DBPath)
	client.refuse(verdict(true))
	before := client.tries.Load()
	err := r.Finish(t.Context())
	var unsynced *UnsyncedError
	if !errors.As(err, &unsynced) || unsynced.Replica != was || unsynced.Local != was+1 || client.tries.Load() != before+1 {
		t.Errorf("%v after %d tries", err, client.tries.Load()-before)
	}
	client.refuse(nil)
	r.Release(t.Context())
	if client.tries.Load() != before+1 || r.session != nil {
		t.Error("Release uploads, or leaves the database open")
	}

	r = New(r.cfg)
	client.refuse(verdict(false))
	r.cfg.OnError = func(error) { client.refuse(nil) }
	if err := r.Finish(t.Context()); err != nil || line.synced != was+1 {
		t.Errorf("%v, synced up to %s", err, line.synced)
	}
}
