package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/slashacom/slasha-init/internal/durable"
)

// ToFile restores for a person, to dst: an absolute path where no file is. Where dst is
// the database's own path, the caller keeps containers off the volume meanwhile; ToFile
// sets aside what an earlier database left behind, gives the file the owner and mode
// that an app expects, and notes through cfg.Line what of the replica it goes on from.
//
// ToFile returns a *Failure, or an error that wraps the one of cfg.Lock while another
// process restores to dst, or the cause of the end of ctx. Nothing is at dst then. It
// does not use the request of cfg.What, Line.Seal, OnStale, Reserve and OnWaiting.
func ToFile(ctx context.Context, cfg Config, dst string) (Progress, error) {
	cfg.Line.Seal = nil // it writes nothing to the replica
	inPlace := dst == cfg.Place.DBPath
	if _, err := os.Lstat(dst); err == nil {
		return Progress{}, failuref("%s is there already; restore to another path with --output, or move it away", dst)
	}
	if left := leftover(dst); left != "" && !inPlace {
		return Progress{}, failuref("%s is there, and would be taken for a part of the restored database; move it away", left)
	}
	scratch := filepath.Join(filepath.Dir(dst), "."+filepath.Base(dst)+".slasha-restore")
	put := func(file string, _ Progress) error { return moveToNew(file, dst) }
	if inPlace {
		scratch = cfg.Place.Scratch // which a container's start clears too
		put = func(file string, got Progress) error {
			if err := noteLine(ctx, cfg, file, got); err != nil {
				return err
			}
			return install(cfg, file)
		}
	}
	done, err := lockScratch(cfg, scratch, dst)
	if err != nil {
		return Progress{}, err
	}
	defer done()
	return job{
		scratch: scratch,
		find:    cfg.locate,
		last: func(file string, got Progress) error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := put(file, got); err != nil {
				return failuref("cannot put the restored database into place: %w", err)
			}
			return nil
		},
	}.do(ctx, cfg)
}

// lockScratch makes the folder on the file system of dst in which the database is put
// together, and keeps others out of it as long as done is not called. It removes what
// an earlier restore to dst left there because it was killed.
func lockScratch(cfg Config, dir, dst string) (done func(), err error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, failuref("cannot restore beside the output: %w", err)
	}
	const lock = "lock"
	release, err := cfg.Lock(filepath.Join(dir, lock))
	if err != nil {
		return nil, fmt.Errorf("%s is being restored already: %w", dst, err)
	}
	done = func() {
		release()
		_ = os.RemoveAll(dir)
	}
	left, err := os.ReadDir(dir)
	for _, e := range left {
		if e.Name() != lock {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	if err != nil {
		done()
		return nil, failuref("cannot clear what an earlier restore left behind: %w", err)
	}
	return done, nil
}

// moveToNew moves a file to a path, and fails if another has come there meanwhile.
func moveToNew(file, dst string) error {
	err := unix.Renameat2(unix.AT_FDCWD, file, unix.AT_FDCWD, dst, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // not on this file system
		err = os.Link(file, dst)
	}
	if err != nil {
		return &os.PathError{Op: "move to", Path: dst, Err: err}
	}
	return durable.SyncDir(filepath.Dir(dst))
}
