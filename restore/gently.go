package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/psanford/sqlite3vfs"
)

// A restore that nobody waits for, a drill, leaves most of a processor, and most of
// the line and the disk, to those whom somebody waits for: after each bit of work it
// rests for three times as long. The kernel's priorities are of threads, and Go's
// are not ours to choose.
const (
	restsFor    = 3
	longestRest = time.Second
	workBetween = 20 * time.Millisecond
)

// pace makes one goroutine rest. The nil pace never rests.
type pace struct {
	since time.Time // when the work began that has not been rested from

	now   func() time.Time
	sleep func(context.Context, time.Duration)
}

func (cfg Config) pace() *pace {
	if !cfg.Gently {
		return nil
	}
	return &pace{now: time.Now, sleep: sleep}
}

// rest rests from what was done since the last time, if that is worth it.
func (p *pace) rest(ctx context.Context) {
	if p == nil {
		return
	}
	now := p.now()
	switch worked := now.Sub(p.since); {
	case p.since.IsZero():
		p.since = now
	case worked >= workBetween:
		p.sleep(ctx, min(restsFor*worked, longestRest))
		p.since = p.now()
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// SQLite's check rests where it reads its file: in a VFS of ours,
// https://www.sqlite.org/vfs.html. Files in it go by the names that they were given,
// as a name is all that SQLite passes on.

const gentleVFS = "slasha-gently"

var (
	registerGently = sync.OnceValue(func() error { return sqlite3vfs.RegisterVFS(gentleVFS, openGently{}) })
	gentleFiles    sync.Map // of *gentleFile
)

// verifyGently is Verify, with rests.
func verifyGently(ctx context.Context, path string, check Check, p *pace) (err error) {
	if err := registerGently(); err != nil {
		return fmt.Errorf("SQLite's check can't be slowed down: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, there := gentleFiles.LoadOrStore(path, &gentleFile{ctx: ctx, file: f, pace: p}); there {
		return fmt.Errorf("%s is being checked already", path)
	}
	defer gentleFiles.Delete(path)
	return verify(ctx, path, check, gentleVFS)
}

// gentleFile is a database that one connection reads, and nobody writes.
type gentleFile struct {
	ctx  context.Context //nolint:containedctx // SQLite has no way to pass one on
	file *os.File
	pace *pace
}

// ReadAt gives SQLite what it asks for.
func (f *gentleFile) ReadAt(p []byte, off int64) (int, error) {
	f.pace.rest(f.ctx)
	n, err := f.file.ReadAt(p, off)
	if n < len(p) && err == nil {
		err = io.EOF
	}
	return n, err
}

// FileSize is in bytes.
func (f *gentleFile) FileSize() (int64, error) {
	fi, err := f.file.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// The rest is that of a file which is only read, by one.

func (*gentleFile) Close() error                                           { return nil }
func (*gentleFile) WriteAt([]byte, int64) (int, error)                     { return 0, sqlite3vfs.ReadOnlyError }
func (*gentleFile) Truncate(int64) error                                   { return sqlite3vfs.ReadOnlyError }
func (*gentleFile) Sync(sqlite3vfs.SyncType) error                         { return nil }
func (*gentleFile) Lock(sqlite3vfs.LockType) error                         { return nil }
func (*gentleFile) Unlock(sqlite3vfs.LockType) error                       { return nil }
func (*gentleFile) CheckReservedLock() (bool, error)                       { return false, nil }
func (*gentleFile) SectorSize() int64                                      { return 0 }
func (*gentleFile) DeviceCharacteristics() sqlite3vfs.DeviceCharacteristic { return 0 }

type openGently struct{}

func (openGently) Open(name string, flags sqlite3vfs.OpenFlag) (sqlite3vfs.File, sqlite3vfs.OpenFlag, error) {
	f, ok := gentleFiles.Load(name)
	if !ok || flags&sqlite3vfs.OpenMainDB == 0 {
		return nil, 0, sqlite3vfs.CantOpenError
	}
	return f.(*gentleFile), flags, nil //nolint:forcetypeassert // it holds nothing else
}

func (openGently) Delete(string, bool) error                          { return sqlite3vfs.ReadOnlyError }
func (openGently) Access(string, sqlite3vfs.AccessFlag) (bool, error) { return false, nil }
func (openGently) FullPathname(name string) string                    { return name }
