package wal

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
)

// LitestreamDir is the folder beside a database where Litestream keeps what it captured.
// See litestream.NewDB.
func LitestreamDir(dbPath string) string {
	dir, name := filepath.Split(dbPath)
	return filepath.Join(dir, "."+name+litestream.MetaDirSuffix)
}

// ReadLTX reads the header of the LTX file at a path. The error is fs.ErrNotExist
// where there is none.
func ReadLTX(path string) (ltx.Header, error) {
	f, err := os.Open(path)
	if err != nil {
		return ltx.Header{}, err
	}
	defer func() { _ = f.Close() }()
	h, _, err := ltx.PeekHeader(f)
	return h, err
}

// Client opens files of a replica. See litestream.ReplicaClient.
type Client interface {
	OpenLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, offset, size int64) (io.ReadCloser, error)
}

// FetchLTX returns the header of an LTX file in the replica as it is, in one request: it
// is not looked at, and less than ltx.HeaderSize bytes come back from a file that is
// shorter. The error is the client's where the file can't be opened, and a *CutError
// where reading it failed.
func FetchLTX(ctx context.Context, client Client, level int, minTXID, maxTXID ltx.TXID) ([]byte, error) {
	rc, err := client.OpenLTXFile(ctx, level, minTXID, maxTXID, 0, ltx.HeaderSize)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rc.Close() }()
	b := make([]byte, ltx.HeaderSize)
	n, err := io.ReadFull(rc, b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, &CutError{err}
	}
	return b[:n], nil
}

// CutError says that a file of the replica was opened, and reading it failed.
type CutError struct{ Err error }

func (e *CutError) Error() string { return e.Err.Error() }
func (e *CutError) Unwrap() error { return e.Err }

// SaltsOf returns the salts of the WAL that an LTX file was captured from. Both are 0 in
// a baseline.
func SaltsOf(h ltx.Header) [2]uint32 { return [2]uint32{h.WALSalt1, h.WALSalt2} }

// IsBaseline reports whether the LTX file at a path holds no transaction of the
// database, but only says which one of the replica the next is to follow. Package
// replicate puts it there before its first capture. It was not captured from a WAL, so
// it has no salts. A file that can't be read counts as none.
func IsBaseline(path string) bool {
	h, err := ReadLTX(path)
	return err == nil && SaltsOf(h) == [2]uint32{}
}
