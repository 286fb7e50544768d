package restore

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/slashacom/slasha-init/internal/disk"
	"github.com/slashacom/slasha-init/internal/durable"
	"github.com/slashacom/slasha-init/internal/wal"
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

// asideTime names the folders of what was set aside, so that they sort by time.
const asideTime = "20060102T150405.000000Z"

// newAside names a folder for what is about to be set aside. It sorts behind those
// that are there, also when the clock was set back meanwhile.
func newAside(p Place) string {
	at := time.Now().UTC()
	entries, err := os.ReadDir(p.Aside)
	if err == nil && len(entries) > 0 {
		last, err := time.Parse(asideTime, entries[len(entries)-1].Name())
		if err == nil && !last.Before(at.Truncate(time.Microsecond)) {
			at = last.Add(time.Microsecond)
		}
	}
	return filepath.Join(p.Aside, at.Format(asideTime))
}

// asidesKept is how many databases that were set aside are kept.
const asidesKept = 2

func readLedger(p Place) (ledger, error) {
	var l ledger
	b, err := p.Ledger.Read()
	switch {
	case errors.Is(err, os.ErrNotExist):
		return l, nil
	case err != nil:
		return l, fmt.Errorf("cannot read which restores were made: %w", err)
	}
	if err := json.Unmarshal(b, &l); err != nil {
		return ledger{}, fmt.Errorf("%s is damaged, so it is not known which restores were made: %w; if the database is as it should be, remove that file", p.Ledger.Path(), err)
	}
	return l, nil
}

// write replaces the ledger: the whole old one or the whole new one is there
// after a crash.
func (l ledger) write(p Place) error {
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	if err := p.Ledger.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("cannot note a restore: %w", err)
	}
	return nil
}

// exchange puts a verified file in the place of the database, which is set aside
// with all that belongs to it, and notes that a request with an id was carried out. On
// an error the old database is where it was. It returns where that was moved to, or ""
// when there was none.
//
// The steps, each on the disk before the next: the ledger says what is about to
// happen; -wal, -shm, -journal and Litestream's folder are moved away, because
// they must never meet the new file; a second name for the old file is made in
// our folder; one rename puts the new file in its place; the ledger says that it
// is done. recoverSwap finishes or takes back what a crash left.
func exchange(cfg Config, file, txid string) (aside string, err error) {
	if fi, err := os.Lstat(cfg.Place.DBPath); err == nil && !fi.Mode().IsRegular() {
		return "", fmt.Errorf("%s is a link or is not a regular file; name the database file itself in --db-path to restore over it", cfg.Place.DBPath)
	}
	if err := own(file, cfg.Place.DBPath); err != nil {
		return "", fmt.Errorf("cannot finish the restored file: %w", err)
	}
	fi, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	l, err := readLedger(cfg.Place)
	if err != nil {
		return "", err
	}
	aside = newAside(cfg.Place)
	l.Swap = &swap{carriedOut: carriedOut{Request: cfg.What.Request.id, At: time.Now().UTC(), TXID: txid, Aside: aside}}
	l.Swap.Device, l.Swap.Inode = disk.Identity(fi)
	if err := l.write(cfg.Place); err != nil {
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
		cfg.Logger.Warn("the restored database is in place, but may not be safely on the disk yet", "error", failed)
	}
	if err != nil {
		cfg.Logger.Warn("the restored database is in place, but this could not be noted; the next start notes it", "error", err)
	}
	cfg.Logger.Warn("set the old database aside", "to", aside)
	pruneAside(cfg, aside)
	return aside, nil
}

func exchangeFiles(cfg Config, file, aside string) error {
	dir := filepath.Dir(cfg.Place.DBPath)
	if err := os.MkdirAll(aside, 0o700); err != nil {
		return err
	}
	for _, path := range belongings(cfg.Place.DBPath) {
		if err := moveIfThere(path, filepath.Join(aside, filepath.Base(path))); err != nil {
			return err
		}
		cfg.step("moved " + filepath.Base(path))
	}
	if err := errors.Join(durable.SyncDir(aside), durable.SyncDir(dir)); err != nil {
		return err
	}
	old := filepath.Join(aside, filepath.Base(cfg.Place.DBPath))
	if err := os.Link(cfg.Place.DBPath, old); err != nil {
		// A file system without second names: for a moment there is none at the
		// path. recoverSwap knows.
		if err := os.Rename(cfg.Place.DBPath, old); err != nil {
			return err
		}
	}
	if err := durable.SyncDir(aside); err != nil {
		return err
	}
	cfg.step("kept the old one")
	if err := os.Rename(file, cfg.Place.DBPath); err != nil {
		return err
	}
	cfg.step("in place")
	return durable.SyncDir(dir)
}

// Interrupted reports whether a swap was begun, and the old database or none is at the
// path. Until Run has ended the swap, that database may lack its WAL. A swap that only
// lacks the note of its end does not count: the new database is there, whole.
func Interrupted(p Place) bool {
	l, err := readLedger(p)
	if err != nil || l.Swap == nil {
		return err != nil
	}
	fi, err := os.Stat(p.DBPath)
	return err != nil || !l.Swap.isAt(fi)
}

// isAt reports whether a file is the restored one.
func (s *swap) isAt(fi os.FileInfo) bool {
	device, inode := disk.Identity(fi)
	return device == s.Device && inode == s.Inode
}

// recoverSwap ends a swap, whichever of its steps was the last to happen, and
// reports whether the new database is in place. It is called after each, and
// before anything else at a start.
func recoverSwap(cfg Config) (inPlace bool, err error) {
	l, err := readLedger(cfg.Place)
	if err != nil || l.Swap == nil {
		return false, err
	}
	fi, err := os.Stat(cfg.Place.DBPath)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	if err == nil {
		if l.Swap.isAt(fi) {
			if l.Swap.Request != "" {
				l.add(l.Swap.carriedOut)
			}
			l.Swap = nil
			return true, l.write(cfg.Place)
		}
	}
	if err == nil && !isOld(cfg, l.Swap, fi) {
		cfg.Logger.Warn("another database is in the place of the one that was being replaced; the files of the old one stay set aside", "aside", l.Swap.Aside)
		l.Swap = nil
		return false, l.write(cfg.Place)
	}
	if err := putBack(cfg, l.Swap, errors.Is(err, os.ErrNotExist)); err != nil {
		return false, err
	}
	l.Swap = nil
	return false, l.write(cfg.Place)
}

// isOld reports whether the file at the path is still the one that was to be
// replaced. Until that one has a second name, nothing shows the contrary.
func isOld(cfg Config, s *swap, there os.FileInfo) bool {
	old, err := os.Stat(filepath.Join(s.Aside, filepath.Base(cfg.Place.DBPath)))
	return err != nil || os.SameFile(old, there)
}

// putBack moves everything back to where it was: the old database stays. It is
// missing where it could not be given a second name.
func putBack(cfg Config, s *swap, missing bool) error {
	old := filepath.Join(s.Aside, filepath.Base(cfg.Place.DBPath))
	if missing {
		if err := moveIfThere(old, cfg.Place.DBPath); err != nil {
			return err
		}
	} else if err := os.Remove(old); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err // it is only a second name
	}
	for _, path := range belongings(cfg.Place.DBPath) {
		from := filepath.Join(s.Aside, filepath.Base(path))
		if _, err := os.Lstat(path); err == nil {
			continue // it was not moved
		}
		if err := moveIfThere(from, path); err != nil {
			return err
		}
	}
	if err := durable.SyncDir(filepath.Dir(cfg.Place.DBPath)); err != nil {
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
	return append(paths, wal.LitestreamDir(dbPath))
}

func moveIfThere(from, to string) error {
	if err := os.Rename(from, to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// pruneAside removes the oldest databases that were set aside, but never the one
// that just was. It keeps a folder without a database, such as one with a WAL that was
// left behind alone: nobody has decided to give that up.
func pruneAside(cfg Config, newest string) {
	// A glob pattern would not work: the path is the user's and may contain a * or a [.
	all := cfg.Place.Aside
	entries, err := os.ReadDir(all) // sorted by name, and so by time
	if err != nil {
		cfg.Logger.Warn("cannot look at what was set aside", "error", err)
		return
	}
	var dirs []string
	for _, e := range entries {
		dir := filepath.Join(all, e.Name())
		if _, err := os.Lstat(filepath.Join(dir, filepath.Base(cfg.Place.DBPath))); err == nil {
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
