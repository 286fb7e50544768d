package storage

import (
	"bytes"
	"context"
	"errors"
	"io"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/benbjohnson/litestream/file"
	"github.com/superfly/ltx"
)

// silent is a place that never answers.
type silent struct{ place }

func hang(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

func (silent) ready(context.Context) error                     { return nil }
func (silent) check(ctx context.Context) error                 { return hang(ctx) }
func (silent) empty(ctx context.Context) (bool, error)         { return false, hang(ctx) }
func (silent) ltxFolder(int) string                            { return "" }
func (s silent) list(string, contents) pages                   { return s }
func (silent) next(ctx context.Context) ([]entry, bool, error) { return nil, false, hang(ctx) }
func (silent) open(ctx context.Context, _ string) (io.ReadCloser, error) {
	return nil, hang(ctx)
}

func (silent) openLTX(ctx context.Context, _ int, _, _ ltx.TXID, _, _ int64) (io.ReadCloser, error) {
	return nil, hang(ctx)
}

func (silent) writeLTX(ctx context.Context, _ int, _, _ ltx.TXID, _ io.Reader) (*ltx.FileInfo, error) {
	return nil, hang(ctx)
}
func (silent) deleteLTX(ctx context.Context, _ []*ltx.FileInfo) error { return hang(ctx) }
func (silent) readOwn(ctx context.Context, _ string) (Own, error)     { return Own{}, hang(ctx) }
func (silent) writeOwn(ctx context.Context, _ string, _ []byte, _ string) (string, error) {
	return "", hang(ctx)
}

// neverReady is a place that is silent from the start.
type neverReady struct{ silent }

func (neverReady) ready(ctx context.Context) error { return hang(ctx) }

// Every method of Client that asks the replica ends when that is silent, and reports it
// once. The methods are found by reflection, so that the next one can't be forgotten.
func TestEveryMethodIsWatched(t *testing.T) {
	old := stallAfter
	stallAfter = 30 * time.Millisecond
	defer func() { stallAfter = old }()
	asksNothing := []string{"DeleteAll"} // refuses
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, p := range []place{silent{}, neverReady{}} {
		var got []Result
		c := &Client{place: p, cfg: Config{OnResult: func(r Result) { got = append(got, r) }}}
		v := reflect.ValueOf(c)
		methods := 0
		for i := range v.NumMethod() {
			m, name := v.Method(i), v.Type().Method(i).Name
			if m.Type().NumIn() == 0 || m.Type().In(0) != reflect.TypeFor[context.Context]() || slices.Contains(asksNothing, name) {
				continue
			}
			if _, initOnly := p.(silent); initOnly && name == "Init" {
				continue
			}
			methods++
			got = nil
			in := []reflect.Value{reflect.ValueOf(ctx)}
			for j := 1; j < m.Type().NumIn(); j++ {
				switch m.Type().In(j) {
				case reflect.TypeFor[[]*ltx.FileInfo]():
					in = append(in, reflect.ValueOf([]*ltx.FileInfo{{}}))
				case reflect.TypeFor[io.Reader]():
					in = append(in, reflect.ValueOf(bytes.NewReader(nil)))
				default:
					in = append(in, reflect.Zero(m.Type().In(j)))
				}
			}
			out := m.Call(in)
			err, _ := out[len(out)-1].Interface().(error)
			if itr, ok := out[0].Interface().(ltx.FileIterator); ok && err == nil {
				for itr.Next() {
					t.Error("a file")
				}
				err = itr.Err()
				if again := itr.Close(); !errors.Is(again, errStalled) {
					t.Errorf("%s: then %v", name, again)
				}
			}
			if !errors.Is(err, errStalled) || len(got) != 1 || !errors.Is(got[0].Err, errStalled) || got[0].Op == "" {
				t.Errorf("%s: %v, reported %+v", name, err, got)
			}
		}
		if methods < 12 {
			t.Errorf("%d methods", methods)
		}
	}
}

// Every method reports that all is well, too, but those that need not have asked.
func TestEveryMethodReports(t *testing.T) {
	var got []string
	c, err := Open(Config{Endpoint: Endpoint{Dir: t.TempDir()}, OnResult: func(r Result) {
		if r.Err != nil {
			t.Errorf("%+v", r)
		}
		got = append(got, r.Op)
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if _, err := c.WriteLTXFile(ctx, 0, 1, 1, ltxFile(t, 10)); err != nil {
		t.Fatal(err)
	}
	list := func(use func(ltx.FileIterator)) {
		itr, err := c.LTXFiles(ctx, 0, 0, false)
		if err != nil {
			t.Fatal(err)
		}
		use(itr)
		if err := errors.Join(itr.Close(), itr.Close()); err != nil {
			t.Fatal(err)
		}
		if itr.Next() {
			t.Error("a file after the end")
		}
	}
	for name, x := range map[string]struct {
		do   func()
		want []string
	}{
		"ready":            {func() { _ = c.Init(ctx) }, nil},
		"check":            {func() { _ = c.Check(ctx) }, []string{"check"}},
		"empty":            {func() { _, _ = c.Empty(ctx) }, []string{"list"}},
		"a list":           {func() { list(func(itr ltx.FileIterator) { itr.Next(); itr.Next() }) }, []string{"list"}},
		"part of a list":   {func() { list(func(itr ltx.FileIterator) { itr.Next() }) }, []string{"list"}},
		"nothing of it":    {func() { list(func(ltx.FileIterator) {}) }, nil},
		"no such file":     {func() { _, _ = c.OpenLTXFile(ctx, 0, 7, 7, 0, 0) }, []string{"read"}},
		"no such snapshot": {func() { _, _ = c.OpenSnapshotV3(ctx, older, 7) }, []string{"read"}},
		"generations":      {func() { _, _ = c.GenerationsV3(ctx) }, []string{"list"}},
		"snapshots":        {func() { _, _ = c.SnapshotsV3(ctx, older) }, []string{"list"}},
		"segments":         {func() { _, _ = c.WALSegmentsV3(ctx, older) }, []string{"list"}},
		"no object of ours": {func() {
			_, _ = c.ReadOwn(ctx, "x")
			_, _ = c.WriteOwn(ctx, "x", nil, "tag")
		}, []string{"lease", "lease"}},
		"nothing to delete": {func() { _ = c.DeleteLTXFiles(ctx, nil) }, nil},
		"a file to delete":  {func() { _ = c.DeleteLTXFiles(ctx, []*ltx.FileInfo{{MinTXID: 9, MaxTXID: 9}}) }, []string{"delete"}},
	} {
		got = nil
		x.do()
		if !slices.Equal(got, x.want) {
			t.Errorf("%s: reported %v, want %v", name, got, x.want)
		}
	}
}

// A folder is read as Litestream's client reads it.
func TestFolderReadsAsLitestreamDoes(t *testing.T) {
	dir := t.TempDir()
	c, err := Open(Config{Endpoint: Endpoint{Dir: dir}})
	if err != nil {
		t.Fatal(err)
	}
	reference := file.NewReplicaClient(dir)
	content := olderReplica(t, func(name string, data []byte) { writeFile(t, dir, name, data) })
	if got, want := readOlder(t, c, content), readOlder(t, reference, content); got != want {
		t.Errorf("ours:\n%s\nLitestream's:\n%s", got, want)
	}
	for _, u := range uploadsOfBoth[:3] {
		u.write(t, c)
		u.write(t, reference)
	}
	writeFile(t, dir, "ltx/0/readme.txt", nil)
	for _, level := range []int{0, 5} {
		for _, seek := range []ltx.TXID{0, 2} {
			if ours, theirs := filesOf(t, c, level, seek, true), filesOf(t, reference, level, seek, true); !reflect.DeepEqual(ours, theirs) {
				t.Errorf("level %d from %d: %+v, and by Litestream's client %+v", level, seek, ours, theirs)
			}
		}
	}
}
