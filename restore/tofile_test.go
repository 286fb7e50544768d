package restore

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/exit"
)

// errHeld is the error of a lock that somebody else has.
var errHeld = exit.With(exit.Held, errors.New("held by somebody else"))

// flock is a Config's Lock.
func flock(path string) (release func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, errHeld
	}
	return func() { _ = f.Close() }, nil
}

// personsConfig is a Config for ToFile, and a path beside the database to restore to.
func personsConfig(t *testing.T, client Client) (cfg Config, dst string) {
	t.Helper()
	cfg = config(t, client)
	cfg.Lock = flock
	if err := os.Mkdir(stateDir(cfg), 0o700); err != nil {
		t.Fatal(err)
	}
	return cfg, filepath.Join(filepath.Dir(cfg.Place.DBPath), "copy.db")
}

func TestToFile(t *testing.T) {
	cfg, dst := personsConfig(t, filled(t, 30))
	before := old(t, cfg) // what is at the database's path does not matter
	got, err := ToFile(t.Context(), cfg, dst)
	if err != nil || got.TXID == 0 || got.BytesDone == 0 || count(t, dst) != 30 {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := os.Remove(dst); err != nil {
		t.Fatal(err)
	}
	if after := tree(t, filepath.Dir(dst), ""); len(after) != len(before) {
		t.Errorf("beside the restored file: %v, want %v", after, before)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(dst), ".copy.db.slasha-restore")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the scratch folder is still there: %v", err)
	}
}

// ToFile never touches what is there already, whatever stops the restore.
func TestToFileRefuses(t *testing.T) {
	whole := filled(t, 30)
	for name, c := range map[string]struct {
		there  string // beside dst, "" for dst itself, "-" for nothing
		client Client
		want   string
	}{
		"an existing file":           {there: "", client: whole, want: "is there already"},
		"a WAL beside it":            {there: "-wal", client: whole, want: "copy.db-wal is there, and would be taken for a part"},
		"a journal beside it":        {there: "-journal", client: whole, want: "copy.db-journal is there, and would be taken for a part"},
		"a replica without a backup": {there: "-", client: replica{filled(t, 1).ReplicaClient, t.TempDir()}, want: ""},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, dst := personsConfig(t, c.client)
			if r, ok := c.client.(replica); ok && c.there == "-" {
				if err := os.RemoveAll(r.Path()); err != nil {
					t.Fatal(err)
				}
			} else if err := os.WriteFile(dst+c.there, []byte("somebody's"), 0o600); err != nil {
				t.Fatal(err)
			}
			before := tree(t, filepath.Dir(dst), "")
			_, err := ToFile(t.Context(), cfg, dst)
			if err == nil || !strings.Contains(err.Error(), c.want) || exit.Code(err) != exit.Restore {
				t.Errorf("%v, exit code %d", err, exit.Code(err))
			}
			if after := tree(t, filepath.Dir(dst), ""); !equal(before, after) {
				t.Errorf("%v, not %v", after, before)
			}
		})
	}
}

func equal(a, b map[string]string) bool {
	for name, content := range a {
		if other, ok := b[name]; !ok || other != content {
			return false
		}
	}
	return len(a) == len(b)
}

// meanwhile does something once, when the first file of the restore is opened, and not
// just its header.
type meanwhile struct {
	Client
	do   func()
	once sync.Once
}

func (m *meanwhile) OpenLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, offset, size int64) (io.ReadCloser, error) {
	if size != ltx.HeaderSize {
		m.once.Do(m.do)
	}
	return m.Client.OpenLTXFile(ctx, level, minTXID, maxTXID, offset, size)
}

// Two restores to one path don't meet, and the second says why by the lock's own
// error.
func TestToFileTwiceAtTheSameTime(t *testing.T) {
	for _, inPlace := range []bool{false, true} {
		source := filled(t, 30)
		first, dst := personsConfig(t, nil)
		if inPlace {
			dst = first.Place.DBPath
		}
		second := first
		second.Source.Client = source
		tried := false
		first.Source.Client = &meanwhile{Client: source, do: func() {
			tried = true
			_, err := ToFile(t.Context(), second, dst)
			if !errors.Is(err, errHeld) || !strings.Contains(err.Error(), dst+" is being restored already") || exit.Code(err) != exit.Held {
				t.Errorf("in place %v: the second: %v", inPlace, err)
			}
		}}
		if _, err := ToFile(t.Context(), first, dst); err != nil || !tried || count(t, dst) != 30 {
			t.Errorf("in place %v: the first: %v", inPlace, err)
		}
	}
}

// A file that comes to the path during the restore stays.
func TestToFileIsOvertaken(t *testing.T) {
	cfg, dst := personsConfig(t, nil)
	cfg.Source.Client = &meanwhile{Client: filled(t, 30), do: func() {
		if err := os.WriteFile(dst, []byte("somebody's"), 0o600); err != nil {
			t.Error(err)
		}
	}}
	_, err := ToFile(t.Context(), cfg, dst)
	if err == nil || !strings.Contains(err.Error(), "cannot put the restored database into place: move to") || exit.Code(err) != exit.Restore {
		t.Error(err)
	}
	if b, err := os.ReadFile(dst); err != nil || string(b) != "somebody's" {
		t.Errorf("%q, %v", b, err)
	}
}

// The files that a killed restore left do not stand in the way of the next one, and
// are gone after it.
func TestToFileAfterAKill(t *testing.T) {
	for _, inPlace := range []bool{false, true} {
		cfg, dst := personsConfig(t, filled(t, 30))
		scratch := filepath.Join(filepath.Dir(dst), ".copy.db.slasha-restore")
		if inPlace {
			dst, scratch = cfg.Place.DBPath, cfg.Place.Scratch
		}
		for _, name := range []string{"lock", "restored", "restored-journal", filepath.Join("more", "of it")} {
			path := filepath.Join(scratch, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte("half of it"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := ToFile(t.Context(), cfg, dst); err != nil || count(t, dst) != 30 {
			t.Errorf("in place %v: %v", inPlace, err)
		}
		if after := tree(t, filepath.Dir(dst), ""); len(after) != 1 {
			t.Errorf("in place %v: %v", inPlace, after)
		}
	}
}

// After a stop nothing is at the path, and the error is the cause of the stop.
func TestToFileIsStopped(t *testing.T) {
	why := errors.New("stopped")
	for name, late := range map[string]bool{"while it reads": false, "when all is read": true} {
		ctx, cancel := context.WithCancelCause(t.Context())
		cfg, dst := personsConfig(t, nil)
		cfg.Source.Client = &meanwhile{Client: filled(t, 30), do: func() {
			if !late {
				cancel(why)
			}
		}}
		if late {
			cfg.onStep = func(step string) {
				if step == "fetched" {
					cancel(why)
				}
			}
		}
		if _, err := ToFile(ctx, cfg, dst); !errors.Is(err, why) {
			t.Errorf("%s: %v", name, err)
		}
		if after := tree(t, filepath.Dir(dst), ""); len(after) != 0 {
			t.Errorf("%s: %v", name, after)
		}
	}
}

// If the file becomes the database, an app can go on from it: leftovers are set aside,
// owner and mode are the folder's, and the line knows of it. Nothing is sealed, because
// a person's restore writes nothing to the replica.
func TestToFileInPlace(t *testing.T) {
	r := filled(t, 90) // rows 0, then up to 20, 40, 60, 80, 89
	newest, err := config(t, r).locate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		what What
		rows int
		want []string
	}{
		"the newest":      {What{}, 90, []string{"adopt"}},
		"a transaction":   {What{TXID: newest.txid - 1}, 81, []string{"begin", "adopt"}},
		"a point in time": {What{Timestamp: time.Now().Add(time.Hour)}, 90, []string{"adopt"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, _ := personsConfig(t, r)
			cfg.What = c.what
			var calls []string
			cfg.Line = lineOf(&calls, cfg)
			if err := os.WriteFile(cfg.Place.DBPath+"-wal", []byte("of an earlier one"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(filepath.Dir(cfg.Place.DBPath), 0o750); err != nil {
				t.Fatal(err)
			}
			got, err := ToFile(t.Context(), cfg, cfg.Place.DBPath)
			if err != nil || got.Newest != newest.txid || count(t, cfg.Place.DBPath) != c.rows {
				t.Fatalf("%+v, %v", got, err)
			}
			if !slices.Equal(calls, c.want) {
				t.Errorf("before the file was in place: %v, want %v", calls, c.want)
			}
			if fi, err := os.Stat(cfg.Place.DBPath); err != nil || fi.Mode().Perm() != 0o640 {
				t.Errorf("mode %v, %v", fi.Mode(), err)
			}
			if list := asides(t, cfg); len(list) != 1 {
				t.Errorf("set aside: %v", list)
			}
		})
	}
}
