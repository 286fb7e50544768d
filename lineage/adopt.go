package lineage

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/durable"
)

// adoption is the note that a file was made from the replica: until the first
// transaction after it has been captured, nothing else beside the database says
// where it stands.
type adoption struct {
	Device uint64   `json:"device"` // of the file, which keeps them when it is moved
	Inode  uint64   `json:"inode"`
	TXID   ltx.TXID `json:"txid"` // the newest that the replica had
	// Next is the header of the transaction after it, of which nobody knows
	// whether it got there: the answer to an upload can be lost.
	Next []byte `json:"next,omitempty"`
	// Instead is what was noted of the file that this one was to replace, in case
	// that it never did.
	Instead *adoption `json:"instead,omitempty"`
}

func adoptionFile(stateDir string) string { return filepath.Join(stateDir, "adopted.json") }

// Adopt notes, on the disk, that a file was restored from the replica when txid
// was its newest transaction, and is about to become the database: it goes on
// from there, also when it was restored to an earlier point in time. What is known
// of the file that is at the path now stays known.
func Adopt(dbPath, stateDir, file string, txid ltx.TXID) error {
	a := adoption{TXID: txid}
	if before := adopted(dbPath, stateDir); before.Inode != 0 {
		before.Instead = nil
		a.Instead = &before
	}
	return a.write(stateDir, file)
}

// Drop notes the same of a database whose captured transactions are about to be
// dropped: it goes on from acked, the newest that the replica has acknowledged,
// and maybe has the next one too.
func Drop(stateDir, dbPath string, acked ltx.TXID) error {
	a := adoption{TXID: acked}
	here, err := listLocal(dbPath)
	if err != nil {
		return err
	}
	if acked == 0 {
		a.TXID = here.newest() // nothing better is known
	} else if next, err := here.header(acked + 1); err == nil {
		a.Next = next
	}
	return a.write(stateDir, dbPath)
}

// write notes it, for the file as it is now.
func (a adoption) write(stateDir, file string) error {
	fi, err := os.Stat(file)
	if err != nil {
		return err
	}
	a.Device, a.Inode = identity(fi)
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(adoptionFile(stateDir), append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("note what was restored: %w", err)
	}
	return nil
}

// adopted returns what was noted of the file that is at the path now.
func adopted(dbPath, stateDir string) (a adoption) {
	b, err := os.ReadFile(adoptionFile(stateDir))
	if err != nil || json.Unmarshal(b, &a) != nil {
		return adoption{}
	}
	fi, err := os.Stat(dbPath)
	if err != nil {
		return adoption{}
	}
	device, inode := identity(fi)
	for _, a := range []*adoption{&a, a.Instead} {
		if a != nil && device == a.Device && inode == a.Inode {
			return *a
		}
	}
	return adoption{}
}

func identity(fi os.FileInfo) (device, inode uint64) {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Dev), st.Ino //nolint:unconvert // a different type on other architectures
	}
	return 0, 0
}
