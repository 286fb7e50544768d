package restore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/disk"
	"github.com/slashacom/slasha-init/internal/durable"
	"github.com/slashacom/slasha-init/restore/check"
)

// verified is one call of OnVerified.
type verified struct {
	at    time.Time
	took  time.Duration
	wrong string
}

// drills returns the drills of a live database of which nothing was ever acknowledged,
// and what they report.
func drills(t *testing.T, client Client) (d Drills, got *[]verified) {
	t.Helper()
	dir := t.TempDir()
	db := filepath.Join(dir, "app.db")
	if err := os.WriteFile(db, []byte("live"), 0o600); err != nil {
		t.Fatal(err)
	}
	got = &[]verified{}
	return Drills{
		DBPath:  db,
		Scratch: filepath.Join(dir, ".app.db.slasha", "drill"),
		Note:    durable.NoteAt(filepath.Join(dir, ".app.db.slasha", "verified.json")),
		Source:  Source{Client: client, Explain: func(err error) (string, bool) { return err.Error(), false }},
		Acked:   func() ltx.TXID { return 0 },
		SizeAt:  func(ltx.TXID) (int64, bool) { return 0, false },
		OnVerified: func(at time.Time, took time.Duration, wrong string) {
			*got = append(*got, verified{at, took, wrong})
		},
		Logger:  slog.New(slog.DiscardHandler),
		newPace: func() *pace { return nil },
	}, got
}

// A drill finds fault with the replica, or finds none. A drill that can't be made has
// no result, because it shows nothing about the replica.
func TestDrill(t *testing.T) {
	whole := filled(t, 30)
	damaged := filled(t, 30)
	flip(t, damaged.files(t, 0)[1])
	for name, c := range map[string]struct {
		prepare func(*testing.T, *Drills)
		result  bool
		wrong   string // "" for nothing
	}{
		"a sound replica": {func(*testing.T, *Drills) {}, true, ""},
		"without a check": {func(_ *testing.T, d *Drills) { d.Check = check.Off }, true, ""},
		"all that is acknowledged": {func(_ *testing.T, d *Drills) {
			d.Acked = func() ltx.TXID { return 3 }
		}, true, ""},
		"more is acknowledged": {func(_ *testing.T, d *Drills) {
			d.Acked = func() ltx.TXID { return 99 }
		}, true, "it restores to transaction 0000000000000003, but 0000000000000063 was acknowledged"},
		"another size": {func(_ *testing.T, d *Drills) {
			d.SizeAt = func(txid ltx.TXID) (int64, bool) { return 4711, txid == 3 }
		}, true, "bytes, but had 4711"},
		"a damaged file": {func(_ *testing.T, d *Drills) { d.Source.Client = damaged }, true, "in the replica is damaged"},
		"an empty replica": {func(t *testing.T, d *Drills) {
			r := filled(t, 1)
			if err := os.RemoveAll(r.dir); err != nil {
				t.Fatal(err)
			}
			d.Source.Client = r
		}, true, "the replica holds no backup"},
		"a replica that does not answer": {func(_ *testing.T, d *Drills) { d.Source.Client = away{whole} }, false, ""},
		"no room": {func(t *testing.T, d *Drills) {
			free, _, err := disk.Free(filepath.Dir(d.DBPath))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(d.DBPath, free); err != nil { // a file of holes
				t.Fatal(err)
			}
		}, false, ""},
		"no live database": {func(t *testing.T, d *Drills) {
			if err := os.Remove(d.DBPath); err != nil {
				t.Fatal(err)
			}
		}, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			d, got := drills(t, whole)
			c.prepare(t, &d)
			if result := d.drill(t.Context()); result != c.result {
				t.Errorf("it came to a result: %v", result)
			}
			b, err := d.Note.Read()
			switch {
			case !c.result:
				if len(*got) != 0 || !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%+v; noted %s, %v", *got, b, err)
				}
			case len(*got) != 1:
				t.Errorf("%+v", *got)
			default:
				v := (*got)[0]
				if (v.wrong == "") != (c.wrong == "") || !strings.Contains(v.wrong, c.wrong) || v.took <= 0 || time.Since(v.at) > time.Minute {
					t.Errorf("%+v", v)
				}
				if c.wrong != "" && !strings.HasPrefix(v.wrong, "verifying the replica failed: ") {
					t.Error(v.wrong)
				}
				var note drilled
				if err := errors.Join(err, json.Unmarshal(b, &note)); err != nil || !note.At.Equal(v.at) || note.Wrong != v.wrong {
					t.Errorf("noted %s, %v", b, err)
				}
			}
			if _, err := os.Stat(d.Scratch); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the scratch folder is still there: %v", err)
			}
		})
	}
}

// away is a replica that does not answer.
type away struct{ replica }

func (away) LTXFiles(context.Context, int, ltx.TXID, bool) (ltx.FileIterator, error) {
	return nil, errors.New("away")
}

// buggy is a replica whose client panics when a file is read, in whatever goroutine.
type buggy struct{ replica }

func (buggy) OpenLTXFile(context.Context, int, ltx.TXID, ltx.TXID, int64, int64) (io.ReadCloser, error) {
	panic("a bug while reading")
}

// The app does not die of a bug in a drill: it is reported, and the drill counts as one
// that could not be made.
func TestABugInADrill(t *testing.T) {
	whole := filled(t, 30)
	for says, spoil := range map[string]func(*Drills){
		"a bug while reading": func(d *Drills) { d.Source.Client = buggy{whole} },
		"a bug of ours":       func(d *Drills) { d.Acked = func() ltx.TXID { panic("a bug of ours") } },
	} {
		var log bytes.Buffer
		d, got := drills(t, whole)
		d.Logger = slog.New(slog.NewTextHandler(&log, nil))
		spoil(&d)
		if d.guarded(t.Context()) {
			t.Errorf("%s: it came to a result", says)
		}
		if s := log.String(); !strings.Contains(s, "a bug in slasha-init or Litestream, please report it") || !strings.Contains(s, says) || !strings.Contains(s, "drill_test.go") {
			t.Errorf("%s: it is not reported: %s", says, s)
		}
		if _, err := d.Note.Read(); len(*got) != 0 || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %+v, noted: %v", says, *got, err)
		}
		if _, err := os.Stat(d.Scratch); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the scratch folder is still there: %v", says, err)
		}
	}
}

// A drill that is due waits a while after the start; the next ones keep their
// distance, over restarts too; one that could not be made is soon tried again.
func TestWhenDrillsAreMade(t *testing.T) {
	whole := filled(t, 5)
	d, got := drills(t, whole)
	if err := os.MkdirAll(filepath.Join(d.Scratch, "of one that was killed"), 0o700); err != nil {
		t.Fatal(err)
	}
	d.Run(t.Context()) // off
	if _, err := os.Stat(d.Scratch); !errors.Is(err, os.ErrNotExist) || len(*got) != 0 {
		t.Errorf("without drills: %v, %v", *got, err)
	}
	d.Every = time.Hour
	synctest.Test(t, func(t *testing.T) {
		run := func(d Drills, length time.Duration) (calls []verified) {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), length)
			defer cancel()
			*got = nil
			d.Run(ctx)
			return *got
		}
		const slack = time.Second // of the reports of progress
		near := func(at, want time.Time) bool { return !at.Before(want) && at.Before(want.Add(slack)) }
		start := time.Now()
		calls := run(d, 70*time.Minute)
		if len(calls) != 2 || !near(calls[0].at, start.Add(firstDrill)) || !near(calls[1].at, calls[0].at.Add(time.Hour)) {
			t.Fatalf("started at %s: %+v", start, calls)
		}
		last := calls[1]
		calls = run(d, time.Hour)
		if len(calls) != 2 || !calls[0].at.Equal(last.at) || calls[0].took != 0 || !near(calls[1].at, last.at.Add(time.Hour)) {
			t.Fatalf("after a restart before the next is due: %+v, the last one was at %s", calls, last.at)
		}
		time.Sleep(24 * time.Hour) // of the bubble's
		start = time.Now()
		if calls = run(d, time.Hour); len(calls) != 2 || !near(calls[1].at, start.Add(firstDrill)) {
			t.Fatalf("after a restart at %s, when one is due: %+v", start, calls)
		}
		if err := d.Note.Remove(); err != nil {
			t.Fatal(err)
		}
		tries := 0
		d.Source.Client = away{whole}
		d.Acked = func() ltx.TXID { tries++; return 0 }
		if calls = run(d, firstDrill+3*drillAgain-time.Second); len(calls) != 0 || tries != 3 {
			t.Errorf("out of reach: %d tries, %+v", tries, calls)
		}
		tries = 0
		d.Source.Client = buggy{whole}
		if calls = run(d, firstDrill+3*drillAgain-time.Second); len(calls) != 0 || tries != 3 {
			t.Errorf("with a bug: %d tries, %+v", tries, calls)
		}
	})
}
