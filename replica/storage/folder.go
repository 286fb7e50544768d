package storage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/benbjohnson/litestream/file"
	"github.com/superfly/ltx"
	"golang.org/x/sys/unix"

	"github.com/slashacom/slasha-init/internal/durable"
)

// folder is a replica in a local folder. Litestream's own client handles its LTX files.
type folder struct {
	root string
	ltx  *file.ReplicaClient
}

func newFolder(dir string) *folder { return &folder{root: dir, ltx: file.NewReplicaClient(dir)} }

func (f *folder) typeName() string            { return "file" }
func (f *folder) ready(context.Context) error { return nil }

// check accepts a folder that does not exist yet, as the first upload makes it, if its
// nearest parent is a folder.
func (f *folder) check(context.Context) error {
	for dir := f.root; ; dir = filepath.Dir(dir) {
		d, err := os.Open(dir)
		if errors.Is(err, os.ErrNotExist) && dir != "/" {
			continue
		} else if err != nil {
			return fmt.Errorf("open replica folder: %w", err)
		}
		_, err = d.Readdirnames(1)
		_ = d.Close()
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read replica folder: %w", err)
		}
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			return &os.PathError{Op: "write to", Path: dir, Err: err}
		}
		return nil
	}
}

func (f *folder) empty(ctx context.Context) (bool, error) {
	if err := f.check(ctx); err != nil {
		return false, err
	}
	entries, err := os.ReadDir(f.root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	for _, e := range entries {
		if e.Name() != ownFolder {
			return false, nil
		}
	}
	return true, nil
}

func (f *folder) path(name string) string { return filepath.Join(f.root, filepath.FromSlash(name)) }

func (f *folder) list(name string, want contents) pages { return folderPages{f.path(name), want} }

// folderPages is the only page of a folder's list.
type folderPages struct {
	dir  string
	want contents
}

func (p folderPages) next(context.Context) (page []entry, last bool, err error) {
	all, err := os.ReadDir(p.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, true, nil
	} else if err != nil {
		return nil, false, err
	}
	for _, e := range all {
		if e.IsDir() != (p.want == folders) {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted since
		} else if err != nil {
			return nil, false, err
		}
		page = append(page, entry{e.Name(), info.Size(), info.ModTime()})
	}
	return page, true, nil
}

func (f *folder) open(_ context.Context, name string) (io.ReadCloser, error) {
	r, err := os.Open(f.path(name))
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (f *folder) ltxFolder(level int) string { return litestream.LTXLevelDir("", level) }

func (f *folder) openLTX(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, offset, size int64) (io.ReadCloser, error) {
	return f.ltx.OpenLTXFile(ctx, level, minTXID, maxTXID, offset, size)
}

func (f *folder) writeLTX(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, r io.Reader) (*ltx.FileInfo, error) {
	return f.ltx.WriteLTXFile(ctx, level, minTXID, maxTXID, r)
}

func (f *folder) deleteLTX(ctx context.Context, infos []*ltx.FileInfo) error {
	return f.ltx.DeleteLTXFiles(ctx, infos)
}

func (f *folder) ownFile(name string) string { return f.path(ownFolder + "/" + name) }

func (f *folder) readOwn(_ context.Context, name string) (Own, error) {
	b, err := os.ReadFile(f.ownFile(name))
	if err != nil {
		return Own{}, err
	}
	own := Own{Data: b, Tag: tagOf(b)}
	if fi, err := os.Stat(f.ownFile(name)); err == nil {
		own.Age = time.Since(fi.ModTime())
	}
	return own, nil
}

// writeOwn compares and writes under a lock on the folder, which the kernel drops when a
// process dies half-way.
func (f *folder) writeOwn(ctx context.Context, name string, data []byte, ifTag string) (tag string, err error) {
	path := f.ownFile(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if err := flock(ctx, dir); err != nil {
		return "", err
	}
	present, err := f.readOwn(ctx, name)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if present.Tag != ifTag {
		return "", fmt.Errorf("%w: %s was written by another", os.ErrExist, path)
	}
	return tagOf(data), durable.WriteFile(path, data, 0o644)
}

// flock waits for the lock on an open folder until ctx ends.
func flock(ctx context.Context, dir *os.File) error {
	for {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("%w: %s can't be locked: %w", errors.ErrUnsupported, dir.Name(), err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond): // it is held for one small file's write
		}
	}
}

// tagOf returns a tag for a file's content, like a server's ETag.
func tagOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
