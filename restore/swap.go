package restore

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/slashacom/slasha-init/internal/durable"
)

// ledger is what we remember beside the database: which request for a restore
// has been carried out, and the swap that is being made, so that a crash at any
// moment is followed by the right step: forward where the new database is in
// place, back where it is not.
type ledger struct {
	Done    *carriedOut  `json:"done,omitempty"`    // the last one
	Earlier []carriedOut `json:"earlier,omitempty"` // those before it, the newest first
	Swap    *swap        `json:"swap,omitempty"`
}

// requestsKept is how many earlier requests are remembered.
const requestsKept = 100

// has reports whether a request was carried out.
func (l *ledger) has(request string) bool {
	return l.Done != nil && l.Done.Request == request ||
		slices.ContainsFunc(l.Earlier, func(c carriedOut) bool { return c.Request == request })
}

// add notes that a request was carried out.
func (l *ledger) add(c carriedOut) {
	if l.Done != nil && l.Done.Request != c.Request {
		l.Earlier = slices.Insert(l.Earlier, 0, *l.Done)
		l.Earlier = l.Earlier[:min(len(l.Earlier), requestsKept)]
	}
	l.Done = &c
}

// carriedOut is a request that is not to be repeated.
type carriedOut struct {
	Request string    `json:"request"`
	At      time.Time `json:"at"`
	TXID    string    `json:"txid,omitempty"`
	Aside   string    `json:"set_aside,omitempty"` // where the old database is
}

// swap is the exchange of the database for a restored one.
type swap struct {
	carriedOut
	Device uint64 `json:"device"` // of the restored file, which keeps them when it is moved
	Inode  uint64 `json:"inode"`
}

func ledgerFile(cfg Config) string { return filepath.Join(cfg.StateDir, "restored.json") }

// asideTime names the folders of what was set aside, so that they sort by time.
const asideTime = "20060102T150405.000000Z"

func asideDir(cfg Config) string { return filepath.Join(cfg.StateDir, "aside") }

// newAside names a folder for what is about to be set aside. It sorts behind those
// that are there, also when the clock was set back meanwhile.
func newAside(cfg Config) string {
	at := time.Now().UTC()
	entries, err := os.ReadDir(asideDir(cfg))
	if err == nil && len(entries) > 0 {
		last, err := time.Parse(asideTime, entries[len(entries)-1].Name())
		if err == nil && !last.Before(at.Truncate(time.Microsecond)) {
			at = last.Add(time.Microsecond)
		}
	}
	return filepath.Join(asideDir(cfg), at.Format(asideTime))
}

// asidesKept is how many databases that were set aside are kept.
const asidesKept = 2

func readLedger(cfg Config) (ledger, error) {
	var l ledger
	b, err := os.ReadFile(ledgerFile(cfg))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return l, nil
	case err != nil:
		return l, fmt.Errorf("cannot read which restores were made: %w", err)
	}
	if err := json.Unmarshal(b, &l); err != nil {
		return ledger{}, fmt.Errorf("%s is damaged, so nobody knows which restores were made: %w; if the database is as it should be, remove that file", ledgerFile(cfg), err)
	}
	return l, nil
}

// write replaces the ledger: the whole old one or the whole new one is there
// after a crash.
func (l ledger) write(cfg Config) error {
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("cannot make our folder: %w", err)
	}
	if err := durable.WriteFile(ledgerFile(cfg), append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("cannot note a restore: %w", err)
	}
	return nil
}

// exchange puts a verified file in the place of the database, which is set aside
// with all that belongs to it, and notes that the request, unless it is "", was
// carried out. On an
// error the old database is where it was. It returns where it was moved to, or ""
// when there was none.
//
// The steps, each on the disk before the next: the ledger says what is about to
// happen; -wal, -shm, -journal and Litestream's folder are moved away, because
// they must never meet the new file; a second name for the old file is made in
// our folder; one rename puts the new file in its place; the ledger says that it
// is done. recoverSwap finishes or takes back what a crash left.
func exchange(cfg Config, file string, request string, txid string) (aside string, err error) {
	if fi, err := os.Lstat(cfg.DBPath); err == nil && !fi.Mode().IsRegular() {
		return "", fmt.Errorf("%s is a link, or no file at all; name the database file itself in --db-path to restore over it", cfg.DBPath)
	}
	if err := own(file, cfg.DBPath); err != nil {
		return "", fmt.Errorf("cannot finish the restored file: %w", err)
	}
	fi, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	l, err := readLedger(cfg)
	if err != nil {
		return "", err
	}
	aside = newAside(cfg)
	l.Swap = &swap{carriedOut: carriedOut{Request: request, At: time.Now().UTC(), TXID: txid, Aside: aside}}
	l.Swap.Device, l.Swap.Inode = identity(fi)
	if err := l.write(cfg); err != nil {
		return "", err
	}
	cfg.step("noted")
	failed := exchangeFiles(cfg, file, aside)
	// The same look at the facts as after a crash decides what to do next.
	inPlace, err := recoverSwap(cfg)
	if !inPlace {
		return "", fmt.Errorf("cannot put the restored database into place: %w", errors.Join(failed, err))
	}
	// After the rename: the new one is there, and the old one is kept.
	if failed != nil {
		cfg.Logger.Warn("the restored database is in place, but not known to be on the disk", "error", failed)
	}
	if err != nil {
		cfg.Logger.Warn("the restored database is in place; the next start notes that it is", "error", err)
	}
	cfg.Logger.Warn("set the old database aside", "to", aside)
	pruneAside(cfg, aside)
	return aside, nil
}

func exchangeFiles(cfg Config, file, aside string) error {
	dir := filepath.Dir(cfg.DBPath)
	if err := os.MkdirAll(aside, 0o700); err != nil {
		return err
	}
	for _, path := range belongings(cfg.DBPath) {
		if err := moveIfThere(path, filepath.Join(aside, filepath.Base(path))); err != nil {
			return err
		}
		cfg.step("moved " + filepath.Base(path))
	}
	if err := errors.Join(durable.SyncDir(aside), durable.SyncDir(dir)); err != nil {
		return err
	}
	old := filepath.Join(aside, filepath.Base(cfg.DBPath))
	if err := os.Link(cfg.DBPath, old); err != nil {
		// A file system without second names: for a moment there is none at the
		// path. recoverSwap knows.
		if err := os.Rename(cfg.DBPath, old); err != nil {
			return err
		}
	}
	if err := durable.SyncDir(aside); err != nil {
		return err
	}
	cfg.step("kept the old one")
	if err := os.Rename(file, cfg.DBPath); err != nil {
		return err
	}
	cfg.step("in place")
	return durable.SyncDir(dir)
}

// Interrupted reports whether a swap was begun and the old database is still at the
// path, or none: until Run has ended it, that may lack its WAL. One that is only not
// noted has put the new database there, whole.
func Interrupted(dbPath, stateDir string) bool {
	l, err := readLedger(Config{StateDir: stateDir})
	if err != nil || l.Swap == nil {
		return err != nil
	}
	fi, err := os.Stat(dbPath)
	return err != nil || !l.Swap.isAt(fi)
}

// isAt reports whether a file is the restored one.
func (s *swap) isAt(fi os.FileInfo) bool {
	device, inode := identity(fi)
	return device == s.Device && inode == s.Inode
}

// recoverSwap ends a swap, whichever of its steps was the last to happen, and
// reports whether the new database is in place. It is called after each, and
// before anything else at a start.
func recoverSwap(cfg Config) (inPlace bool, err error) {
	l, err := readLedger(cfg)
	if err != nil || l.Swap == nil {
		return false, err
	}
	fi, err := os.Stat(cfg.DBPath)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	if err == nil {
		if l.Swap.isAt(fi) {
			if l.Swap.Request != "" {
				l.add(l.Swap.carriedOut)
			}
			l.Swap = nil
			return true, l.write(cfg)
		}
	}
	if err == nil && !isOld(cfg, l.Swap, fi) {
		cfg.Logger.Warn("somebody has put another database into the place of the one that was being replaced; what belonged to that stays aside", "aside", l.Swap.Aside)
		l.Swap = nil
		return false, l.write(cfg)
	}
	if err := putBack(cfg, l.Swap, errors.Is(err, os.ErrNotExist)); err != nil {
		return false, err
	}
	l.Swap = nil
	return false, l.write(cfg)
}

// isOld reports whether the file at the path is still the one that was to be
// replaced. As long as it has no second name, nothing has been seen to the contrary.
func isOld(cfg Config, s *swap, there os.FileInfo) bool {
	old, err := os.Stat(filepath.Join(s.Aside, filepath.Base(cfg.DBPath)))
	return err != nil || os.SameFile(old, there)
}

// putBack moves everything back to where it was: the old database stays. It is
// missing where it could not be given a second name.
func putBack(cfg Config, s *swap, missing bool) error {
	old := filepath.Join(s.Aside, filepath.Base(cfg.DBPath))
	if missing {
		if err := moveIfThere(old, cfg.DBPath); err != nil {
			return err
		}
	} else if err := os.Remove(old); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err // it is only a second name
	}
	for _, path := range belongings(cfg.DBPath) {
		from := filepath.Join(s.Aside, filepath.Base(path))
		if _, err := os.Lstat(path); err == nil {
			continue // it was not moved
		}
		if err := moveIfThere(from, path); err != nil {
			return err
		}
	}
	if err := durable.SyncDir(filepath.Dir(cfg.DBPath)); err != nil {
		return err
	}
	_ = os.Remove(s.Aside) // only if empty
	return nil
}

// belongings lists what may stand beside a database and is part of it.
func belongings(dbPath string) []string {
	var paths []string
	for _, suffix := range companions {
		paths = append(paths, dbPath+suffix)
	}
	return append(paths, litestreamDir(dbPath))
}

func moveIfThere(from, to string) error {
	if err := os.Rename(from, to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// identity is what a file keeps when it is renamed.
func identity(fi os.FileInfo) (device, inode uint64) {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Dev), st.Ino //nolint:unconvert // a different type on other architectures
	}
	return 0, 0
}

// pruneAside removes the oldest databases that were set aside, but never the one
// that just was. What is not a database, a WAL that was left behind alone, is kept:
// nobody has decided against it.
func pruneAside(cfg Config, newest string) {
	// Not by a pattern: the path is somebody's, and may hold a * or a [.
	all := asideDir(cfg)
	entries, err := os.ReadDir(all) // sorted by name, and so by time
	if err != nil {
		cfg.Logger.Warn("cannot look at what was set aside", "error", err)
		return
	}
	var dirs []string
	for _, e := range entries {
		dir := filepath.Join(all, e.Name())
		if _, err := os.Lstat(filepath.Join(dir, filepath.Base(cfg.DBPath))); err == nil {
			dirs = append(dirs, dir)
		}
	}
	for _, dir := range dirs[:max(len(dirs)-asidesKept, 0)] {
		if dir == newest {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			cfg.Logger.Warn("cannot remove an old database that was set aside", "path", dir, "error", err)
			continue
		}
		cfg.Logger.Info("removed the oldest database that was set aside", "path", dir, "kept", asidesKept)
	}
}
