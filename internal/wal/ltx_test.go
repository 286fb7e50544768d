package wal

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
)

func TestReadLTX(t *testing.T) {
	path := filepath.Join(t.TempDir(), ltx.FormatFilename(7, 7))
	if _, err := ReadLTX(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is missing: %v", err)
	}
	want := ltx.Header{Version: ltx.Version, Flags: ltx.HeaderFlagNoChecksum, PageSize: 4096, Commit: 1, MinTXID: 7, MaxTXID: 7, WALOffset: HeaderSize, WALSalt1: 1, WALSalt2: 2}
	b, err := want.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(b, "what follows"...), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := ReadLTX(path)
	if err != nil || got != want || SaltsOf(got) != [2]uint32{1, 2} {
		t.Errorf("%+v, %v", got, err)
	}
	if err := os.WriteFile(path, b[:50], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadLTX(path); err == nil {
		t.Error("a file that ends within its header is read")
	}
}

// Our own name for Litestream's folder is Litestream's.
func TestLitestreamDir(t *testing.T) {
	for _, path := range []string{"/data/app.db", "app.db", "/data/a b/x"} {
		if got, want := LitestreamDir(path), litestream.NewDB(path).MetaPath(); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

// One file of one replica, whose end may be an error.
type single struct {
	content []byte
	open    error
	end     error // io.EOF if nil

	requests int
	closed   bool
}

func (s *single) OpenLTXFile(_ context.Context, level int, minTXID, maxTXID ltx.TXID, offset, size int64) (io.ReadCloser, error) {
	s.requests++
	if level != 3 || minTXID != 1 || maxTXID != 7 || offset != 0 || size != ltx.HeaderSize {
		return nil, errors.New("another file or part")
	}
	if s.open != nil {
		return nil, s.open
	}
	return s, nil
}

func (s *single) Read(p []byte) (int, error) {
	if len(s.content) == 0 {
		if s.end != nil {
			return 0, s.end
		}
		return 0, io.EOF
	}
	n := copy(p, s.content)
	s.content = s.content[n:]
	return n, nil
}

func (s *single) Close() error { s.closed = true; return nil }

func TestFetchLTX(t *testing.T) {
	broken := errors.New("the connection broke")
	header := bytes.Repeat([]byte("h"), ltx.HeaderSize)
	for name, c := range map[string]struct {
		file single
		want []byte
		err  error
		cut  bool
	}{
		"whole":           {single{content: append(bytes.Clone(header), 'x')}, header, nil, false},
		"short":           {single{content: header[:40]}, header[:40], nil, false},
		"empty":           {single{}, nil, nil, false},
		"can't be opened": {single{open: broken}, nil, broken, false},
		"breaks off":      {single{content: header[:40], end: broken}, nil, broken, true},
	} {
		got, err := FetchLTX(t.Context(), &c.file, 3, 1, 7)
		var cut *CutError
		if !bytes.Equal(got, c.want) || !errors.Is(err, c.err) || errors.As(err, &cut) != c.cut || c.file.requests != 1 {
			t.Errorf("%s: %q, %v after %d requests", name, got, err, c.file.requests)
		}
		if c.cut && err.Error() != broken.Error() {
			t.Errorf("%s: the error says %q", name, err)
		}
		if c.file.closed != (c.file.open == nil) {
			t.Errorf("%s: closed: %v", name, c.file.closed)
		}
	}
}

// A baseline has no salts, and whatever can't be read is none.
func TestIsBaseline(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		salt1, salt2 uint32
		size         int
		want         bool
	}{
		"a baseline":       {0, 0, ltx.HeaderSize, true},
		"a capture":        {1, 2, ltx.HeaderSize, false},
		"one salt is zero": {0, 2, ltx.HeaderSize, false},
		"cut":              {0, 0, 50, false},
	} {
		h := ltx.Header{Version: ltx.Version, Flags: ltx.HeaderFlagNoChecksum, PageSize: 4096, Commit: 1, MinTXID: 7, MaxTXID: 7, WALOffset: HeaderSize, WALSalt1: c.salt1, WALSalt2: c.salt2}
		b, err := h.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "file")
		if err := os.WriteFile(path, b[:c.size], 0o600); err != nil {
			t.Fatal(err)
		}
		if got := IsBaseline(path); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if IsBaseline(filepath.Join(dir, "missing")) {
		t.Error("a file that is missing is a baseline")
	}
}
