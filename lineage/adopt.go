package lineage

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/superfly/ltx"
)

// adoption is the note that a file was made from the replica: until the first
// transaction after it has been captured, nothing else beside the database says
// where it stands.
type adoption struct {
	Device uint64   `json:"device"` // of the file, which keeps them when it is moved
	Inode  uint64   `json:"inode"`
	TXID   ltx.TXID `json:"txid"` // the newest that the replica had
}

func adoptionFile(stateDir string) string { return filepath.Join(stateDir, "adopted.json") }

// Adopt notes, on the disk, that a file was restored from the replica when txid
// was its newest transaction, and is about to become the database: it goes on
// from there, also when it was restored to an earlier point in time.
func Adopt(stateDir, file string, txid ltx.TXID) error {
	fi, err := os.Stat(file)
	if err != nil {
		return err
	}
	a := adoption{TXID: txid}
	a.Device, a.Inode = identity(fi)
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	tmp := adoptionFile(stateDir) + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("note what was restored: %w", err)
	}
	_, err = f.Write(append(b, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("note what was restored: %w", errors.Join(err, os.Remove(tmp)))
	}
	if err := os.Rename(tmp, adoptionFile(stateDir)); err != nil {
		return fmt.Errorf("note what was restored: %w", err)
	}
	d, err := os.Open(stateDir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}

// adopted returns what Adopt noted of the file that is at the path now, or 0.
func adopted(dbPath, stateDir string) ltx.TXID {
	b, err := os.ReadFile(adoptionFile(stateDir))
	if err != nil {
		return 0
	}
	var a adoption
	if json.Unmarshal(b, &a) != nil {
		return 0
	}
	fi, err := os.Stat(dbPath)
	if err != nil {
		return 0
	}
	if device, inode := identity(fi); device != a.Device || inode != a.Inode {
		return 0
	}
	return a.TXID
}

func identity(fi os.FileInfo) (device, inode uint64) {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Dev), st.Ino //nolint:unconvert // a different type on other architectures
	}
	return 0, 0
}
